"""The exam of a video model of moving scenes: requests whose right answers are known, part by part, and the bars.

    video, video_held_out    caption
    camera                   caption of actors standing still under every motion of the camera, as often as each other
    start                    caption and first frame
    film                     captions of `shots` shots of one cast, of which the later ones may leave out its colours
    film_apart               the same captions, each filmed by itself, without knowing of the others
    still                    caption of a single image

Shots are those of `video.elements` under a seed that no training uses, scores those of `video_scores`. What a film
gains over its shots apart (`carried_gain`) is what it remembers: apart, a shot can only guess the colours left out.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.scenes import randomness
from data_pipelines.scenes.exams import video_scores
from data_pipelines.scenes.video import captions as video_captions
from data_pipelines.scenes.video import render as video_render
from data_pipelines.scenes.video import sampling as video_sampling
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.elements import TASKS, Elements
from data_pipelines.scenes.video.world import CAMERA_MOTIONS, Film, ReelWorld, Shot
from nova_jax import tasks
from nova_jax.evaluation import exam
from nova_jax.evaluation.exam import Bar, Clips, Comparison, Judged, Part, Question

SEED = 2001  # training has 0, autoencoders 1 and 1001

BARS = (
    Bar("video", "correct", "at least", 0.9),
    Bar("video", "direction", "at least", 0.9),
    Bar("video", "persistent", "at least", 0.98),
    Bar("video_held_out", "correct", "at least", 0.85),
    Bar("camera", "family", "at least", 0.9),
    Bar("start", "psnr_gap", "at most", 1),
    Bar("start", "motion", "within", 0.8, 1.25),
    Bar("film", "cuts", "at least", 0.99),
    Bar("film", "carried_gain", "at least", 20),
    Bar("film", "leaked", "at most", 0.02),
    Bar("still", "correct", "at least", 0.95),
)
COMPARISONS = (
    Comparison("start", "psnr_gap", ("start", "start_psnr", "ceiling"), ("start", "start_psnr", "model"), exam.lost),
    Comparison(
        "film", "carried_gain", ("film_apart", "carried", "model"), ("film", "carried", "model"), exam.points_gained
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exam:
    """Questions about a world; an `evaluation.exam.Exam`.

    Attributes:
        world: With held-out pairs.
        per_task: Questions in each part, 2 or more, and half as many films: chance is what the clip of another question
            scores.
        shots: Of a film, 2 to 4.
        seed: 0 to 2^32 - 1, none that the model was trained on.
        cut: Captions to what of them the model reads, as in training.
        comparisons: Numbers made of two scores.
        bars: What is to be reached.
    """

    world: ReelWorld = video_world.REEL_36
    per_task: int = 64
    shots: int = 3
    seed: int = SEED
    cut: Callable[[str], str] = str
    comparisons: tuple[Comparison, ...] = COMPARISONS
    bars: tuple[Bar, ...] = BARS

    def __post_init__(self) -> None:
        if self.per_task < 2:
            raise ValueError(f"per_task is {self.per_task}; give 2 or more.")
        if not 2 <= self.shots <= 4:
            raise ValueError(f"shots is {self.shots}; the world's films have 2 to 4.")
        if not self.world.held_out:
            raise ValueError("an exam needs a world with held-out pairs.")

    def parts(self, limits: tasks.VideoLimits, guidance: float) -> list[Part]:
        """All parts.

        Args:
            limits: Of the model.
            guidance: Scale of the requests of single images, 1.1 to 10; that of videos is for whoever draws them.

        Raises:
            ValueError: The model does not film clips of the world's size and length.
        """
        if (limits.height, limits.width, limits.frames) != (self.world.height, self.world.width, self.world.frames):
            raise ValueError(
                f"this exam asks for {self.world.frames} frames of {self.world.width} x {self.world.height} pixels, "
                f"but the model films {limits.frames} of {limits.width} x {limits.height}"
            )
        return [
            self._clips("video", self._shots(held_out=False), limits),
            self._clips("video_held_out", self._shots(held_out=True), limits),
            self._clips("camera", [self._still_cast(index) for index in range(self.per_task)], limits),
            self._clips("start", self._shots(held_out=False, first=self.per_task), limits, is_started=True),
            *self._films(limits),
            self._stills(guidance),
        ]

    def _shots(self, *, held_out: bool, first: int = 0) -> list[tuple[str, Shot]]:
        """Captions and shots of the seen or of the held-out pairs."""
        reels = Elements(self.world, "video", self.seed, held_out=held_out)
        each = range(first, first + self.per_task)
        return [(reels[index]["caption"], reels.shot(index)) for index in each]

    def _still_cast(self, index: int) -> tuple[str, Shot]:
        """A caption and a shot of actors standing still; the motions of the camera take turns."""
        rng = self._rng("camera", index)
        cameras = self.world.cameras[::2] + self.world.cameras[1::2]  # neighbours of unlike families
        of = dataclasses.replace(self.world, cameras=(cameras[index % len(cameras)],))
        while True:
            shot = video_sampling.sample_shot(of, rng, of.seen)
            if all(actor.direction is None and not actor.spin for actor in shot.actors):
                return video_captions.caption(shot, rng), shot

    def _clips(
        self, name: str, asked: Sequence[tuple[str, Shot]], limits: tasks.VideoLimits, *, is_started: bool = False
    ) -> Part:
        """A part of single shots, with their first frames or without."""
        truths = [video_render.render_shot(shot, self._size) for _, shot in asked]
        common: dict[str, Any] = {"limits": limits, "fps": limits.fps}
        questions = tuple(
            Question(
                tasks.TextToVideo(text=self.cut(text), image=true[0] if is_started else None, seed=index, **common),
                true,
                (CAMERA_MOTIONS[shot.camera.motion],),
            )
            for index, ((text, shot), true) in enumerate(zip(asked, truths, strict=True))
        )

        def judge(samples: Clips) -> list[Judged]:
            judged = []
            for (text, shot), true, clip in zip(asked, truths, samples, strict=True):
                scores = video_scores.judge(shot, clip, true, self.world, video_scores.said(text, shot))
                judged.append(scores | ({"start_psnr": video_scores.start_psnr(clip, true[0])} if is_started else {}))
            return judged

        return Part(name, questions, judge)

    def _films(self, limits: tasks.VideoLimits) -> list[Part]:
        """The same shots as one film, and each by itself."""
        films = [self._film(index) for index in range(max(2, self.per_task // 2))]
        common: dict[str, Any] = {"limits": limits, "fps": limits.fps}
        together, apart = [], []
        for index, (texts, film) in enumerate(films):
            true = np.concatenate([video_render.render_shot(shot, self._size) for shot in film.shots])
            told = [self.cut(text) for text in texts]
            shots = [tasks.ShotRequest(text) for text in told]
            together.append(Question(tasks.MultiShotManual(shots=shots, seed=index, **common), true))
            alone = (tasks.TextToVideo(text=text, seed=index + k, **common) for k, text in enumerate(told))
            apart.append(Question(exam.Apart(tuple(alone)), true))

        def judge(samples: Clips) -> list[Judged]:
            pairs = zip(films, samples, strict=True)
            return [video_scores.judge_film(film, texts, clip, self.world) for (texts, film), clip in pairs]

        return [Part("film", tuple(together), judge), Part("film_apart", tuple(apart), judge)]

    def _film(self, index: int) -> tuple[list[str], Film]:
        """The captions and the first shots of a film."""
        rng = self._rng("film", index)
        while True:
            shots = video_sampling.sample_film(self.world, rng, self.world.seen).shots[: self.shots]
            if len(shots) == self.shots:
                later = [video_captions.later_caption(shot, rng) for shot in shots[1:]]
                return [video_captions.caption(shots[0], rng), *later], Film(shots)

    def _stills(self, guidance: float) -> Part:
        """Single images."""
        height, width = self._size
        side = math.gcd(height, width)
        limits = tasks.Limits(min_side=side, max_side=max(height, width), multiple=side, default_side=side)
        reels = Elements(self.world, "image", self.seed)
        questions, told = [], []
        for index in range(self.per_task):
            element, shot = reels[index], reels.shot(index)
            settings = tasks.ImageSettings(width=width, height=height, cfg_scale=guidance, seed=index)
            request = tasks.TextToImage(text=self.cut(element["caption"]), limits=limits, settings=settings)
            questions.append(Question(request, element["pixels"]))
            told.append((shot, video_scores.said(element["caption"], shot)))

        def judge(samples: Clips) -> list[Judged]:
            pairs = zip(told, samples, strict=True)
            return [{"correct": video_scores.shows(shot, clip[0], self.world, what)} for (shot, what), clip in pairs]

        return Part("still", tuple(questions), judge)

    @property
    def _size(self) -> tuple[int, int]:
        return self.world.height, self.world.width

    def _rng(self, part: str, index: int) -> np.random.Generator:
        """Of what is no element's: those of the tasks have the streams below."""
        number = len(TASKS) + 1 + ("camera", "film").index(part)
        return randomness.make_rng(self.seed | (number << 32), index)
