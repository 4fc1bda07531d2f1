"""What a trained model of images or of videos is worth, task by task: `nova evaluate`.

The run's data sets the exam (`exam.Exam`): requests, true images, scores, bars. Each score stands between two others,

    ceiling   the true images or clips after the model's autoencoder, pasted outside a mask as the model's own are
    chance    the model's images, each judged by another question of its part

and a part with a dial (a number of the request at several settings) gives curves and, over all its images, Spearman's
rank correlation of setting and score. Rates carry Wilson intervals, means Student's, correlations those of a bootstrap
over elements.
"""

import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from jaxtyping import Float

from nova_jax import environment, generation
from nova_jax.evaluation import image_metrics, intervals, task_sampling
from nova_jax.evaluation.exam import Bar, Clips, Comparison, Exam, Judged, Level, Part, Question
from nova_jax.evaluation.intervals import Estimate
from nova_jax.parallel import distributed
from nova_jax.runs import record as records
from nova_jax.tasks import checks
from nova_jax.tasks.limits import CFG_SCALE, Range
from nova_jax.tasks.problems import refuse

SCORES = "scores.json"
RESAMPLES = 500  # of the bootstrap
PER_TASK = Range(2, 100_000)

Sample = Callable[[Sequence[Question]], Clips]  # one answer per question


class Answered(NamedTuple):
    """A part, the model's images, and how each was judged; a part with a dial has no ceiling and no chance."""

    part: Part
    samples: Clips
    judged: dict[Level, list[Judged]]
    seconds: float

    def score(self, name: str, level: Level, group: str = "") -> Estimate | None:
        """One score over all questions or those of a group; None where it applies to none."""
        questions = zip(self.part.questions, self.judged.get(level, ()), strict=False)
        return intervals.summarize([judged[name] for q, judged in questions if not group or group in q.groups])


class Row(NamedTuple):
    """A line of the table."""

    part: str
    score: str
    value: float
    low: float
    high: float
    n: float
    group: str = ""
    ceiling: float | None = None
    chance: float | None = None
    bar: Bar | None = None

    @property
    def name(self) -> str:
        """The part, and the group if it is one."""
        return f"{self.part}, {self.group}" if self.group else self.part

    @property
    def is_met(self) -> bool | None:
        """Whether the value reaches the bar; None without one."""
        return None if self.bar is None else self.bar.is_met(self.value)


class Curve(NamedTuple):
    """A score against a dial: means with their intervals at each setting, and the rank correlation."""

    part: str
    dial: str
    score: str
    settings: list[float]
    points: list[Estimate]
    correlation: Estimate


class Evaluation(NamedTuple):
    """All that was found, and where it is kept."""

    rows: list[Row]
    curves: list[Curve]
    answered: dict[str, Answered]
    facts: dict[str, Any]  # run, settings, command, environment, seconds
    folder: pathlib.Path


def run(
    run_dir: str | pathlib.Path,
    *,
    per_task: int = 64,
    guidance: float = 2.0,
    folder: str | pathlib.Path | None = None,
    overwrite: bool = False,
    command: str = "",
    console: rich.console.Console | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Evaluation:
    """Examines a run and writes scores.json; `task_report.write` makes the page.

    Several processes sample together; the main one writes.

    Args:
        run_dir: A trained run.
        per_task: Questions in each part.
        guidance: Scale of classifier-free guidance, 1.1 to 10; masks and alphas are sampled without.
        folder: Where results go; RUN/evaluation when not given. If it is there already, a folder beside it is made.
        overwrite: Whether to write into a folder that is there, over its results.
        command: What the user typed, for the record.
        console: Where progress is shown; None: standard output.
        mesh: What to sample on, see `generation.mesh_for`; None: one device.

    Raises:
        FileNotFoundError: No such run.
        ValueError: A number out of range, the run's data sets no exam or is not installed here, or the network lacks
            what the exam asks for.
    """
    check(per_task, guidance)
    run_dir = pathlib.Path(run_dir)
    trained = generation.load_run(run_dir, mesh=mesh)
    saved = records.read(run_dir)["config"]
    exam = find_exam(run_dir, saved["data"], per_task)
    parts = exam.parts(task_sampling.limits_of(trained), guidance)
    task_sampling.check(trained, [q.ask for part in parts for q in part.questions])
    start = time.perf_counter()
    console = console or rich.console.Console(quiet=not distributed.is_main())
    answered = {}
    for part in parts:
        found = sit(
            part,
            lambda questions: task_sampling.sample(trained, [q.ask for q in questions], guidance),
            lambda questions: task_sampling.rebuild(trained, questions),
        )
        answered[part.name] = found
        line = f"{len(answered)}/{len(parts)}  {part.name:24} {len(found.samples):4} images in {found.seconds:.1f} s"
        console.print(line, highlight=False, soft_wrap=True)
    facts = {
        "run": str(run_dir),
        "model": saved["name"],
        "step": trained.step,
        "per_task": per_task,
        "guidance": guidance,
        "sampler": task_sampling.SAMPLER,
        "command": command,
        "seconds": round(time.perf_counter() - start, 1),
        "mesh": dict(mesh.shape) if mesh else {},
        "environment": environment.describe(),
    }
    place = pathlib.Path(folder) if folder else run_dir / "evaluation"
    if not distributed.is_main():
        return Evaluation(*grade(exam, answered), answered, facts, place)
    with generation.files.folder(place, overwrite=overwrite) as where:
        evaluation = Evaluation(*grade(exam, answered), answered, facts, where)
        (where / SCORES).write_text(json.dumps(record(evaluation), indent=1) + "\n", encoding="utf-8")
    return evaluation


def check(per_task: int, guidance: float) -> None:
    """Refuses settings of `run`, before a run is looked for.

    Raises:
        InvalidRequest: numbers out of range.
    """
    refuse([*checks.whole("per_task", per_task, PER_TASK), *checks.number("guidance", guidance, CFG_SCALE)])


def find_exam(run_dir: pathlib.Path, data: dict[str, Any], per_task: int) -> Exam:
    """The exam of the data that the run's own config names.

    Raises:
        ValueError: It sets none.
    """
    source = records.build(data)
    found = source.exam(per_task)
    if found is None:
        raise ValueError(
            f"{run_dir} was trained on data without known answers: evaluate a run of `experiments.canvas` or of "
            "`experiments.reel`"
        )
    return found


def sit(part: Part, sample: Sample, rebuild: Sample) -> Answered:
    """Answers a part and has it judged."""
    start = time.perf_counter()
    samples = sample(part.questions)
    judged: dict[Level, list[Judged]] = {"model": part.judge(samples)}
    if not part.dial:
        judged |= {"ceiling": part.judge(rebuild(part.questions)), "chance": part.judge(np.roll(samples, 1, axis=0))}
    return Answered(part, samples, judged, time.perf_counter() - start)


def grade(exam: Exam, answered: dict[str, Answered]) -> tuple[list[Row], list[Curve]]:
    """The table, part by part, and the curves of the dials."""
    curves = [curve for found in answered.values() if found.part.dial for curve in trace(found)]
    bars = {(bar.part, bar.score): bar for bar in exam.bars}
    rows = []
    for name, found in answered.items():
        if found.part.dial:
            mine = [_row(name, f"{c.score}_correlation", c.correlation) for c in curves if c.part == name]
        else:
            mine = list(_tabulate(found))
        mine += [_compare(c, answered) for c in exam.comparisons if c.part == name]
        rows += [row._replace(bar=None if row.group else bars.get((name, row.score))) for row in mine]
    return rows, curves


def trace(found: Answered) -> list[Curve]:
    """The curve of every score of a part with a dial."""
    questions, judged = found.part.questions, found.judged["model"]
    settings = sorted({q.setting for q in questions if q.setting is not None})
    curves = []
    for score in judged[0]:
        values = np.array([j[score] for j in judged], np.float64).reshape(-1, len(settings))  # element, setting
        points = [intervals.mean(column) for column in values.T]
        curves.append(Curve(found.part.name, found.part.dial, score, settings, points, correlate(settings, values)))
    return curves


def correlate(settings: Sequence[float], values: Float[np.ndarray, "n k"]) -> Estimate:
    """Rank correlation of setting and value over all pairs, with the 95 % interval of a bootstrap over elements.

    Args:
        settings: The k settings.
        values: One row per element.

    Returns:
        {value, low, high, n}, n pairs; not a number where the values are constant.
    """

    def correlation(rows: Float[np.ndarray, "n k"]) -> float:
        return image_metrics.rank_correlation(np.tile(np.asarray(settings, np.float64), len(rows)), rows.ravel())

    rng = np.random.default_rng(0)
    again = [correlation(values[rng.integers(0, len(values), len(values))]) for _ in range(RESAMPLES)]
    finite = [value for value in again if math.isfinite(value)] or [math.nan]
    low, high = np.quantile(finite, (0.025, 0.975)).tolist()
    return {"value": correlation(values), "low": low, "high": high, "n": values.size}


def verdict(judged: Judged) -> bool | None:
    """Whether an image is right on the whole; None where no single score says so."""
    named = (judged.get(name) for name in ("correct", "hit", "empty", "clear"))
    return next((bool(value) for value in named if value is not None), None)


def table(evaluation: Evaluation) -> str:
    """The table for a terminal."""
    head = f"{'':36} {'score':20} {'value':>8}   {'95 % interval':17} {'ceiling':>8} {'chance':>8} {'n':>4}  bar"
    lines = [head]
    for row in evaluation.rows:
        others = " ".join(f"{'' if x is None else format(x, '.3f'):>8}" for x in (row.ceiling, row.chance))
        met = {True: f"{row.bar}  met", False: f"{row.bar}  NOT MET", None: ""}[row.is_met]
        interval = f"{row.low:.3f} to {row.high:.3f}"
        line = f"{row.name:36} {row.score:20} {row.value:8.3f}   {interval:17} {others} {row.n:4}  {met}"
        lines.append(line.rstrip())
    return "\n".join([*lines, summary(evaluation)])


def summary(evaluation: Evaluation) -> str:
    """How many bars are met, in words."""
    barred = [row.is_met for row in evaluation.rows if row.is_met is not None]
    return f"{sum(barred)} of {len(barred)} bars met"


def record(evaluation: Evaluation) -> dict[str, Any]:
    """What scores.json holds; a number that is not finite becomes null."""
    rows = [row._asdict() | {"bar": str(row.bar) if row.bar else None, "is_met": row.is_met} for row in evaluation.rows]
    seconds = {name: round(found.seconds, 1) for name, found in evaluation.answered.items()}
    curves = [curve._asdict() for curve in evaluation.curves]
    return _finite(evaluation.facts | {"seconds_by_part": seconds, "scores": rows, "dials": curves})


def _tabulate(found: Answered) -> Iterable[Row]:
    """A row for each score over all questions, then over each group."""
    groups = sorted({group for q in found.part.questions for group in q.groups}, key=_in_order)
    for group in ("", *groups):
        for score in found.judged["model"][0]:
            if (value := found.score(score, "model", group)) is None:
                continue
            levels: tuple[Level, Level] = ("ceiling", "chance")
            ceiling, chance = (
                other["value"] if (other := found.score(score, level, group)) else None for level in levels
            )
            yield _row(found.part.name, score, value)._replace(group=group, ceiling=ceiling, chance=chance)


def _compare(comparison: Comparison, answered: dict[str, Answered]) -> Row:
    first, second = (answered[part].score(score, level) for part, score, level in (comparison.first, comparison.second))
    assert first is not None
    assert second is not None
    return _row(comparison.part, comparison.name, comparison.combine(first, second))


def _row(part: str, name: str, score: Estimate) -> Row:
    return Row(part, name, score["value"], score["low"], score["high"], score["n"])


def _in_order(group: str) -> tuple[int, str]:
    """Sorts "10 colors" after "9 colors", and what has no number last."""
    first = group.split()[0]
    return (int(first), group) if first.isdigit() else (1000, group)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
