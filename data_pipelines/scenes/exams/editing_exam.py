"""The exam of an editing model of scenes: requests whose right answers are known, part by part, and the bars.

    generate, generate_held_out      caption
    add, add_held_out, replace       source, mask, caption
    remove                           source, mask, no text
    segment                          source, phrase
    outpaint, outpaint_soft          source, mask, caption, boundary PRECISE and DEFAULT
    matte                            source
    vary                             1 to 5 references, each at its own similarity, perhaps a caption
    structure_edges, _segmentation   caption, and the layout at full strength as an image whose contours are taken (in
                                     colours other than those asked for), or as labelled areas
    colors                           1 to 10 colours, caption without any, perhaps a reference
    negative                         caption, and the same caption "on black" (or white, or gray) as negative text

Elements are those of `canvas.Elements` under a seed that no training uses, and scores those of `editing_scores`.
Beside them stand what some numbers are measured against: `structure_text` and `colors_text` have the captions alone,
from the same seeds; `negative_off` has no negative text.

Negative text. The caption leaves the background open, so a model draws each of the three about equally often: `shown`,
the rate of the one asked away, starts near 1/3. The negative text is a caption as in training, which differs from the
prompt in the background alone; `negative_words` gives the background alone, as "on a black background".

Dials. `vary_similarity` turns the similarity to one reference and measures the layout, as the intersection over union
of what differs from the background (`iou`), and the cast, as the share of objects that have a partner of their shape
and colour (`content`). `structure_strength` turns the strength of an edge image and measures the edges (`edge_f1`).
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines.scenes import parser, randomness, render, world
from data_pipelines.scenes.editing import drawing, elements
from data_pipelines.scenes.editing.drawing import Element
from data_pipelines.scenes.editing.elements import Elements
from data_pipelines.scenes.editing.truth import Truth
from data_pipelines.scenes.exams import editing_scores
from data_pipelines.scenes.world import Scene, World
from nova_jax import tasks
from nova_jax.evaluation import exam, geneval, image_metrics
from nova_jax.evaluation.exam import Bar, Clips, Comparison, Judged, Part, Question

SEED = 2001  # training has 0, autoencoders 1 and 1001
SIMILARITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DIAL_SHARE = 2  # elements of a part for each element of a dial, which has five settings

BARS = (
    Bar("generate", "correct", "at least", 0.95),
    Bar("generate_held_out", "correct", "at least", 0.85),
    Bar("add", "correct", "at least", 0.95),
    Bar("add", "outside", "at most", 0),
    Bar("replace", "correct", "at least", 0.95),
    Bar("replace", "outside", "at most", 0),
    Bar("remove", "absent", "at least", 0.98),
    Bar("remove", "psnr_gap", "at most", 3),
    Bar("segment", "iou", "at least", 0.90),
    Bar("matte", "error", "at most", 0.02),
    Bar("matte", "kept", "at least", 0.98),
    Bar("vary", "correct", "at least", 0.90),
    Bar("vary_similarity", "iou_correlation", "at least", 0.9),
    Bar("structure_edges", "edge_f1", "at least", 0.9),
    Bar("structure_edges", "caption_loss", "at most", 2),
    Bar("structure_segmentation", "edge_f1", "at least", 0.9),
    Bar("structure_segmentation", "caption_loss", "at most", 2),
    Bar("structure_strength", "edge_f1_correlation", "at least", 0.9),
    Bar("colors", "palette_error", "at most", 6),
    Bar("colors", "caption_loss", "at most", 2),
    Bar("negative", "share_left", "at most", 0.2),
)


def _versus(part: str, name: str, other: str, score: str, combine: Any) -> Comparison:
    """A number from the score that another part has to the one that this part has."""
    return Comparison(part, name, (other, score, "model"), (part, score, "model"), combine)


COMPARISONS = (
    Comparison("remove", "psnr_gap", ("remove", "psnr", "ceiling"), ("remove", "psnr", "model"), exam.lost),
    _versus("structure_edges", "caption_loss", "structure_text", "correct", exam.points_lost),
    _versus("structure_segmentation", "caption_loss", "structure_text", "correct", exam.points_lost),
    _versus("colors", "caption_loss", "colors_text", "correct", exam.points_lost),
    _versus("negative", "share_left", "negative_off", "shown", exam.share_left),
    _versus("negative_words", "share_left", "negative_off", "shown", exam.share_left),
)

Ask = Callable[[Truth, Element, dict[str, Any]], Any]  # the request of an element; all share the last arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exam:
    """Questions about a world; an `evaluation.exam.Exam`.

    Attributes:
        world: With held-out pairs and several backgrounds.
        per_task: Questions in each part, 2 or more: chance is what the image of another question scores.
        seed: 0 to 2^32 - 1, none that the model was trained on.
        cut: Captions to what of them the model reads, as in training.
        comparisons: Numbers made of two scores.
        bars: What is to be reached.
    """

    world: World = world.CANVAS_32
    per_task: int = 64
    seed: int = SEED
    cut: Callable[[str], str] = str
    comparisons: tuple[Comparison, ...] = COMPARISONS
    bars: tuple[Bar, ...] = BARS

    def __post_init__(self) -> None:
        if self.per_task < 2:
            raise ValueError(f"per_task is {self.per_task}; give 2 or more.")
        if not self.world.held_out or len(self.world.backgrounds) < 2:
            raise ValueError("an exam needs a world with held-out pairs and with two backgrounds or more.")

    def parts(self, limits: tasks.Limits, guidance: float) -> list[Part]:
        """All parts.

        Args:
            limits: Of the model.
            guidance: Scale of the requests, 1.1 to 10.

        Raises:
            InvalidRequest: The model does not draw images of the world's size, or the scale is out of range.
        """

        def common(index: int) -> dict[str, Any]:
            return {"limits": limits, "settings": tasks.ImageSettings(cfg_scale=guidance, seed=index)}

        parts = [self._part(name, kind, common) for name, kind in KINDS.items()]
        return [*parts, *self._negatives(common), self._similarity(common), self._strength(common)]

    def _part(self, name: str, kind: "Kind", common: Callable[[int], dict[str, Any]]) -> Part:
        """A part from the first elements of a task."""
        scenes = self._scenes(kind.task, held_out=kind.held_out)

        def make(index: int) -> Question:
            truth, element = scenes.truth(index), self._element(scenes, index)
            return Question(kind.ask(truth, element, common(index)), element["pixels"], kind.groups(truth))

        def judge(samples: Clips) -> list[Judged]:
            judged = editing_scores.judge(scenes, samples)
            return [{key: j[key] for key in kind.scores or j} for j in judged]

        return Part(name, tuple(map(make, range(self.per_task))), judge)

    def _negatives(self, common: Callable[[int], dict[str, Any]]) -> list[Part]:
        """The same captions without negative text, with one, and with the bare background as one."""
        wishes = [_sample_wish(self.world, self._rng(index)) for index in range(self.per_task)]
        texts: dict[str, Callable[[Wish], str | None]] = {
            "negative_off": lambda wish: None,
            "negative": lambda wish: f"{wish.text} on {wish.unwanted}",
            "negative_words": lambda wish: f"on a {wish.unwanted} background",
        }

        def make(index: int, text: str | None) -> Question:
            wish = wishes[index]
            scene = wish.scene if text is None or wish.scene.background != wish.unwanted else wish.otherwise
            true = render.render(scene, self.world.image_size)[None]
            return Question(tasks.TextToImage(text=wish.text, negative_text=text, **common(index)), true)

        judge = functools.partial(_judge_wishes, wishes, self.world)
        return [
            Part(name, tuple(make(index, text(wish)) for index, wish in enumerate(wishes)), judge)
            for name, text in texts.items()
        ]

    def _similarity(self, common: Callable[[int], dict[str, Any]]) -> Part:
        """Variations of one reference at every similarity."""
        scenes = self._scenes("vary")
        shown = [scenes.truth(index).references[0] for index in range(self._dial_count)]
        samples = [render.render(scene, self.world.image_size) for scene in shown]
        questions = tuple(
            Question(
                tasks.Vary(images=[image], similarity_strength=setting, **common(index)),
                image[None],
                setting=setting,
            )
            for index, image in enumerate(samples)
            for setting in SIMILARITIES
        )
        references = [scene for scene in shown for _ in SIMILARITIES]
        judge = functools.partial(_judge_likeness, references, self.world)
        return Part("vary_similarity", questions, judge, dial="similarity_strength")

    def _strength(self, common: Callable[[int], dict[str, Any]]) -> Part:
        """One layout at every strength of its edges."""
        scenes = self._scenes("structure")
        indices = [index for index in range(self._dial_count) for _ in STRENGTHS]
        questions = []
        for index in range(self._dial_count):
            truth, element = scenes.truth(index), self._element(scenes, index)
            for setting in STRENGTHS:
                request = _ask_edges(truth, element, common(index), strength=setting)
                questions.append(Question(request, element["pixels"], setting=setting))

        def judge(samples: Clips) -> list[Judged]:
            return [{"edge_f1": judged["edge_f1"]} for judged in editing_scores.judge(scenes, samples, indices)]

        return Part("structure_strength", tuple(questions), judge, dial="control_strength")

    def _scenes(self, task: str, *, held_out: bool = False) -> Elements:
        return Elements(self.world, task, self.seed, self.per_task, held_out=held_out)

    def _element(self, scenes: Elements, index: int) -> Element:
        element = scenes[index]
        return element | {"caption": self.cut(element["caption"])}

    def _rng(self, index: int) -> np.random.Generator:
        """Of what is no task's: tasks and autoencoder images have the streams below."""
        return randomness.make_rng(self.seed | ((len(elements.TASKS) + 2) << 32), index)

    @property
    def _dial_count(self) -> int:
        return max(2, self.per_task // DIAL_SHARE)


class Wish(NamedTuple):
    """A caption that leaves the background open, the one that is not wanted, and scenes with any and with another."""

    text: str
    unwanted: str
    scene: Scene
    otherwise: Scene


def _sample_wish(of: World, rng: np.random.Generator) -> Wish:
    shape, color = world.pick(rng, of.seen)
    scene = Scene(world.arrange(of, rng, [(shape, color)]), world.pick(rng, of.backgrounds))
    unwanted = world.pick(rng, of.backgrounds)
    others = [name for name in of.backgrounds if name != unwanted]
    return Wish(geneval.phrase(shape, color), unwanted, scene, scene._replace(background=world.pick(rng, others)))


def _judge_wishes(wishes: Sequence[Wish], of: World, samples: Clips) -> list[Judged]:
    """Whether the object is there, and whether what was asked away is."""

    def judge(wish: Wish, image: exam.Clip) -> Judged:
        found = [d[:2] for d in parser.parse(image, of)]
        return {
            "correct": found == [o[:2] for o in wish.scene.objects],
            "shown": parser.background(image, of) == wish.unwanted,
        }

    return [judge(wish, image) for wish, image in zip(wishes, samples, strict=True)]


def _judge_likeness(references: Sequence[Scene], of: World, samples: Clips) -> list[Judged]:
    """How much of the layout and of the cast of its reference an image has, 0..1."""

    def judge(scene: Scene, image: exam.Clip) -> Judged:
        layout = np.logical_or.reduce(render.masks(scene, of.image_size), axis=0)
        found = collections.Counter(d[:2] for d in parser.parse(image, of))
        cast = collections.Counter(o[:2] for o in scene.objects)
        return {
            "iou": image_metrics.mask_iou(parser.foreground(image, of), layout),
            "content": (found & cast).total() / max(found.total(), cast.total()),
        }

    return [judge(scene, image) for scene, image in zip(references, samples, strict=True)]


def _ask_text(truth: Truth, element: Element, common: dict[str, Any]) -> tasks.TextToImage:
    return tasks.TextToImage(text=element["caption"], **common)


def _ask_inpaint(truth: Truth, element: Element, common: dict[str, Any]) -> tasks.Inpaint:
    mask = _two_tone(~element["mask"])  # black is changed
    return tasks.Inpaint(image=element["source"][0], mask_image=mask, text=element["caption"] or None, **common)


def _ask_outpaint(truth: Truth, element: Element, common: dict[str, Any], mode: Any = "PRECISE") -> tasks.Outpaint:
    mask = _two_tone(element["mask"])  # white is changed
    return tasks.Outpaint(image=element["source"][0], mask_image=mask, text=element["caption"], mode=mode, **common)


def _ask_segment(truth: Truth, element: Element, common: dict[str, Any]) -> exam.Locate:
    return exam.Locate(element["source"][0], element["caption"])


def _ask_matte(truth: Truth, element: Element, common: dict[str, Any]) -> tasks.RemoveBackground:
    return tasks.RemoveBackground(image=element["source"][0], limits=common["limits"])


def _ask_vary(truth: Truth, element: Element, common: dict[str, Any]) -> tasks.Vary:
    images = list(element["references"][: element["num_references"]])
    text, similarity = element["caption"] or None, truth.similarity
    return tasks.Vary(images=images, text=text, similarity_strength=similarity, **common)


def _ask_edges(truth: Truth, element: Element, common: dict[str, Any], strength: float = 1.0) -> tasks.TextToImage:
    assert truth.before is not None
    before = render.render(truth.before, element["pixels"].shape[1])
    told = {"condition_image": before, "control_mode": "CANNY_EDGE", "control_strength": strength}
    return tasks.TextToImage(text=element["caption"], **told, **common)


def _ask_areas(truth: Truth, element: Element, common: dict[str, Any]) -> tasks.TextToImage:
    areas = drawing.segmentation_image(truth, element["pixels"].shape[1])
    told = {"condition_image": areas, "control_mode": "SEGMENTATION", "control_strength": 1.0}
    return tasks.TextToImage(text=element["caption"], **told, **common)


def _ask_colors(truth: Truth, element: Element, common: dict[str, Any]) -> tasks.ColorGuided:
    shown = element["references"][0] if element["num_references"] else None
    colors = [f"#{bytes(rgb.tolist()).hex()}" for rgb in element["palette"][: element["num_colors"]]]
    return tasks.ColorGuided(colors=colors, text=element["caption"], reference_image=shown, **common)


def _two_tone(is_white: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    return np.where(is_white, 255, 0).astype(np.uint8)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


class Kind(NamedTuple):
    """A part made of the elements of a task: how they are asked for, and which scores count (empty: all)."""

    task: str
    ask: Ask
    held_out: bool = False
    groups: Callable[[Truth], tuple[str, ...]] = lambda truth: ()
    scores: tuple[str, ...] = ()


KINDS = {
    "generate": Kind("generate", _ask_text),
    "generate_held_out": Kind("generate", _ask_text, held_out=True),
    "add": Kind("add", _ask_inpaint),
    "add_held_out": Kind("add", _ask_inpaint, held_out=True),
    "replace": Kind("replace", _ask_inpaint),
    "remove": Kind("remove", _ask_inpaint),
    "segment": Kind("segment", _ask_segment),
    "outpaint": Kind("outpaint", _ask_outpaint),
    "outpaint_soft": Kind("outpaint", functools.partial(_ask_outpaint, mode="DEFAULT")),
    "matte": Kind("matte", _ask_matte),
    "vary": Kind("vary", _ask_vary, groups=lambda truth: (_number(len(truth.references), "reference"),)),
    "structure_text": Kind("structure", _ask_text, scores=("correct",)),
    "structure_edges": Kind("structure", _ask_edges),
    "structure_segmentation": Kind("structure", _ask_areas),
    "colors_text": Kind("colors", _ask_text, scores=("correct",)),
    "colors": Kind(
        "colors",
        _ask_colors,
        groups=lambda truth: (
            _number(len(truth.palette), "color"),
            "with a reference" if truth.references else "without a reference",
        ),
    ),
}
