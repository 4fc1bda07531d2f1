"""The points of a step benchmark: those of a trained run, and those of the few-step students distilled from it."""

import dataclasses
import itertools
import math
import pathlib
import warnings
from collections.abc import Sequence

from nova_jax import distillation, generation, sampling

TEACHER = "teacher"  # the model of the run itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """What to compare.

    Attributes:
        samplers: Names of `sampling.SAMPLERS`.
        steps: Numbers of steps.
        time_grids: Names that `time_grids.named` knows; "{num_steps}" in the path of a fitted grid is filled in.
        guidance: Scales of classifier-free guidance.
        images: To sample in each cell; rounded to whole batches.
        batch_size: Images at once.
        reference_steps: Of the path that latents are compared with.
        prompts: What to draw where the run's data brings no prompts of its own.
        seed: Of the first image.
        students: Run folders of students of the run; each is called by its folder's name.
        student_steps: Numbers of steps of a student, as far as it has learnt them.
        diversity_prompts: Different prompts that diversity is measured on.
        diversity_seeds: Images of each of them.
        pictures: The earlier name of `images`.
    """

    samplers: tuple[str, ...] = ("euler", "heun", "ab2", "dpmpp_2m", "unipc_2", "deis_3")
    steps: tuple[int, ...] = (4, 8, 16, 32)
    time_grids: tuple[str, ...] = ("uniform",)
    guidance: tuple[float, ...] = (2.0,)
    images: int = 192
    batch_size: int = 64
    reference_steps: int = 1000
    prompts: tuple[str, ...] = ()
    seed: int = 0
    students: tuple[str, ...] = ()
    student_steps: tuple[int, ...] = (1, 2, 4, 8)
    diversity_prompts: int = 8
    diversity_seeds: int = 8
    pictures: dataclasses.InitVar[int | None] = None

    def __post_init__(self, pictures: int | None) -> None:
        if pictures is not None:
            warnings.warn("Grid(pictures=) is now Grid(images=)", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "images", pictures)
        for field in ("samplers", "steps", "time_grids", "guidance", "student_steps"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{field} is {values}; give one or more different values")
        for sampler, steps in itertools.product(self.samplers, self.steps):
            sampling.named(sampler, steps)
        if not all(0 <= scale < math.inf for scale in self.guidance):
            raise ValueError(f"guidance is {self.guidance}; scales must be 0 or more (1 is no guidance)")
        if not 0 <= self.seed < generation.SEEDS.high:
            raise ValueError(f"seed is {self.seed}; it must be a whole number {generation.SEEDS}")
        if self.images < 1 or self.batch_size < 1 or self.reference_steps < max(self.steps):
            raise ValueError(
                "images and batch_size must be at least 1 and reference_steps no less than the most steps, got "
                f"{self.images}, {self.batch_size} and {self.reference_steps}"
            )
        if min(self.student_steps) < 1 or self.diversity_prompts < 1 or self.diversity_seeds < 2:
            raise ValueError(
                "student_steps and diversity_prompts must be at least 1 and diversity_seeds 2, got "
                f"{self.student_steps}, {self.diversity_prompts} and {self.diversity_seeds}"
            )
        names = [student_name(student) for student in self.students]
        if len({TEACHER, *names}) < len(names) + 1:
            raise ValueError(
                f"students are called {names}, by their folders: give them different names, not {TEACHER!r}"
            )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    sampler: str
    time_grid: str
    guidance: float
    steps: int
    model: str = TEACHER  # or a student's name

    @property
    def key(self) -> str:
        """A name for files and messages."""
        whose = "" if self.model == TEACHER else f"{self.model}-"
        return f"{whose}{self.sampler}-{self.time_grid}-g{self.guidance:g}-{self.steps}"


def cells(grid: Grid) -> list[Cell]:
    """All points of the run itself, the cheap ones of each sampler first."""
    product = itertools.product(grid.samplers, grid.time_grids, grid.guidance, grid.steps)
    return [Cell(*point) for point in product]


def student_name(run_dir: str) -> str:
    """What results call a student: the name of its run folder."""
    return pathlib.Path(run_dir).absolute().name


def student_cells(name: str, student: generation.TrainedRun, grid: Grid) -> list[Cell]:
    """A student's points: its own sampler, uniform times, the steps that it has learnt.

    Guidance is distilled in (scale 1), unless the network reads the scale: then those of the grid are asked for.

    Raises:
        ValueError: it has learnt none of the grid's `student_steps`.
    """
    method: distillation.Method = student.objective
    known = method.trained_steps
    steps = [number for number in grid.student_steps if known is None or number in known]
    if not steps:
        raise ValueError(
            f"{name} has learnt none of student_steps={_listed(grid.student_steps)}, but {_listed(known or ())}"
        )
    sampler = generation.settings_for(student).sampler
    scales = grid.guidance if reads_guidance(student) else (1.0,)
    return [Cell(sampler, "uniform", scale, number, name) for scale, number in itertools.product(scales, steps)]


def reads_guidance(student: generation.TrainedRun) -> bool:
    """Whether a student is told the scale of guidance instead of having learnt one."""
    return student.objective.guidance.max_scale is not None


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
