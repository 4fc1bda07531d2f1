"""Training and test data of one image model that does every editing task, with exact counterfactual truth.

    task        given                                                  to draw (`pixels`)
    generate    caption                                                the scene
    add         source, mask, caption of the object or the scene       with one object more
    replace     source, mask, caption of the object or the scene       with another object in its place
    remove      source, mask                                           without the object
    outpaint    source, mask around kept objects, caption              the kept objects in a new surrounding
    segment     source, referring phrase                               white where the phrase means, else black
    matte       source                                                 how much of each pixel objects cover, as gray
    vary        1 to 5 references, perhaps a caption                   the same objects in another layout
    structure   control image, caption that says the colours           the control's layout in these colours
    colors      1 to 10 colours, caption without any, perhaps a        the objects and the background in these colours
                reference in the layout to draw

Outside the mask, source and target of add, replace and remove agree bit for bit. Element i depends on (seed, task, i)
alone.
"""

import contextlib
import dataclasses
import hashlib
from typing import SupportsIndex

from data_pipelines.scenes import randomness, world
from data_pipelines.scenes.editing import drawing, edits, palettes, views
from data_pipelines.scenes.editing.drawing import Element
from data_pipelines.scenes.editing.truth import Sampler, Truth
from data_pipelines.scenes.world import World

SAMPLERS: dict[str, Sampler] = {
    "generate": views.sample_generate,
    "add": edits.sample_add,
    "replace": edits.sample_replace,
    "remove": edits.sample_remove,
    "outpaint": edits.sample_outpaint,
    "segment": views.sample_segment,
    "matte": views.sample_matte,
    "vary": views.sample_vary,
    "structure": views.sample_structure,
    "colors": palettes.sample_colors,
}
TASKS = tuple(SAMPLERS)  # a task's place enters the random numbers of its elements
VERSIONS = {"vary": 2}  # of a task's elements where they are no longer the first ones
COMPOSED = ("generate", "add", "replace")  # the tasks that can ask for held-out pairs


@dataclasses.dataclass(frozen=True)
class Elements:
    """Elements of one task. Picklable; no state.

    Every element has `pixels` uint8 (1, h, w, 3) and `caption`; by task also `source`, `control` like `pixels`,
    `mask` bool (h, w), True where to draw anew; `mode`, an index into `drawing.MODES`; `references` uint8
    (5, h, w, 3), gray from `num_references` on; `palette` uint8 (10, 3), black from `num_colors` on.

    Attributes:
        world: Vocabulary and prior.
        task: One of `TASKS`.
        seed: 0 to 2^32 - 1; different seeds give unrelated elements.
        length: How many elements `len` reports.
        held_out: Ask for the world's held-out (shape, color) pairs alone: all objects of generate, the object that
            add and replace draw. Other tasks refuse.
        canny: Share of the edge images that are Canny's (Canny 1986) instead of exact; needs scikit-image.
    """

    world: World = world.CANVAS_32
    task: str = "generate"
    seed: int = 0
    length: int = 1_000_000
    held_out: bool = False
    canny: float = 0.0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; give one of {', '.join(TASKS)}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; give 0 to 2^32 - 1.")
        if self.held_out and (self.task not in COMPOSED or not self.world.held_out):
            raise ValueError(f"held_out needs a world with held-out pairs and one of the tasks {', '.join(COMPOSED)}.")

    def __len__(self) -> int:
        return self.length

    def fingerprint(self) -> str:
        """Hash of the fields, and of how elements are made where that has changed."""
        version = VERSIONS.get(self.task)
        return hashlib.sha256((repr(self) + (f" {version}" if version else "")).encode()).hexdigest()

    def truth(self, index: SupportsIndex) -> Truth:
        """The ground truth of element `index`."""
        stream = self.seed | ((TASKS.index(self.task) + 1) << 32)
        rng = randomness.make_rng(stream, randomness.check_index(index, self.length))
        pairs = self.world.held_out if self.held_out else self.world.seen
        truth = None
        while truth is None:
            with contextlib.suppress(world.NoRoom):  # few find no other layout: then another scene
                truth = SAMPLERS[self.task](self.world, rng, pairs)
        return truth._replace(is_canny=rng.random() < self.canny)

    def __getitem__(self, index: SupportsIndex) -> Element:
        return drawing.draw(self.truth(index), self.task, self.world.image_size)
