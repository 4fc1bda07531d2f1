"""What an evaluation found, as one page: the table, the dials, and every part's first images or clips."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from nova_jax import atomic
from nova_jax.evaluation import exam, plots, report, task_evaluation
from nova_jax.evaluation.task_evaluation import Answered, Curve, Evaluation, Row
from nova_jax.runs.config import TrainConfig
from nova_jax.runs.train import Result
from nova_jax.tasks import ColorGuided, Inpaint, Outpaint, RemoveBackground, TextToImage, Vary, VideoRequest, conditions
from nova_jax.tasks.image_inputs import RGBImage

REPORT = "report.html"
SHOWN = 8  # questions of each part: the first ones, not chosen
FRAMES = 6  # of a clip
ZOOM = 2
TINT = (255, 0, 90)  # of what is to be sampled


def write(evaluation: Evaluation) -> pathlib.Path:
    """Writes report.html beside the scores and returns its path."""
    facts = evaluation.facts
    sections: dict[str, list[Any]] = {
        "Scores": [
            f"{task_evaluation.summary(evaluation)}. Ceiling: the true images after the autoencoder. Chance: each "
            "image judged by another question. Intervals are of 95 %.",
            _table(evaluation.rows),
        ],
        "Dials": [part for curves in _by_part(evaluation.curves) for part in _plot(curves)],
    }
    for name, found in evaluation.answered.items():
        sections[name] = [_sheet_of_dial(found) if found.part.dial else _sheet(found)]
    sections["Run"] = [
        report.command(facts["command"] or f"nova evaluate --run {facts['run']}"),
        report.facts({key: value for key, value in facts.items() if key not in ("command", "environment")}),
    ]
    sections["Environment"] = [report.facts(facts["environment"])]
    subtitle = f"step {facts['step']:,}, {facts['per_task']} questions per part, guidance {facts['guidance']:g}"
    document = report.page(f"Tasks: {facts['model']}", sections, subtitle=subtitle)
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    atomic.write(evaluation.folder / REPORT, document)
    return evaluation.folder / REPORT


def finish(config: TrainConfig, result: Result, *, sheet: tuple[str, ...]) -> None:
    """Examines a run on every task, prints the table, and writes its report; `nova evaluate` does it again.

    Args:
        config: of the run.
        result: of the run.
        sheet: the parts of the exam that sheet.png shows.
    """
    del config
    command = f"nova evaluate --run {result.directory}"
    found = task_evaluation.run(result.directory, overwrite=True, command=command)
    print(task_evaluation.table(found))
    save_sheet(found, found.folder / "sheet.png", sheet)
    print(f"\nreport: {write(found)}")


def _table(rows: Sequence[Row]) -> plots.Markup:
    marks = {
        True: plots.Markup('<span class="good">met</span>'),
        False: plots.Markup('<span class="bad">not met</span>'),
        None: "",
    }
    lines = [
        [
            *(row.name, row.score, f"{row.value:.3f}", f"{row.low:.3f} to {row.high:.3f}"),
            *("" if value is None else f"{value:.3f}" for value in (row.ceiling, row.chance)),
            *(row.n, row.bar or "", marks[row.is_met]),
        ]
        for row in rows
    ]
    return report.table(["part", "score", "value", "interval", "ceiling", "chance", "n", "bar", ""], lines)


def _by_part(curves: Sequence[Curve]) -> list[list[Curve]]:
    parts = dict.fromkeys(curve.part for curve in curves)
    return [[curve for curve in curves if curve.part == part] for part in parts]


def _plot(curves: Sequence[Curve]) -> list[Any]:
    """The curves of one dial, and their correlations in words."""
    series = []
    for c in curves:
        value, low, high = ([point[key] for point in c.points] for key in ("value", "low", "high"))
        series.append(plots.Series(c.score, c.settings, value, low, high))
    found = ", ".join(f"{c.score} {c.correlation['value']:.3f}" for c in curves)
    plot = plots.draw(series, x_label=curves[0].dial, y_label=" and ".join(c.score for c in curves))
    return [f"{curves[0].part}: rank correlation of setting and score over all images: {found}.", plot]


def _sheet(found: Answered) -> plots.Markup:
    """The first questions of a part and their answers."""
    shown = list(zip(found.part.questions, found.samples, found.judged["model"], strict=True))[:SHOWN]
    strips = [compared(q, image) for q, image, _ in shown]
    how = "given, sampled, true" if len(found.samples[0]) == 1 else "sampled above, true below"
    captions = [f"{words(q.ask)} ({how})".lstrip() for q, _, _ in shown]
    verdicts = [task_evaluation.verdict(judged) for _, _, judged in shown]
    return report.images(strips, captions, zoom=ZOOM, verdicts=verdicts)


def _sheet_of_dial(found: Answered) -> plots.Markup:
    """What was given, what was sampled at every setting, and what the full one leads to, for the first elements."""
    questions, samples = found.part.questions, found.samples
    count = len({q.setting for q in questions})
    strips, captions = [], []
    for start in range(0, min(len(questions), SHOWN * count), count):
        mine = questions[start : start + count]
        strips.append(strip([*given(mine[0].ask), *samples[start : start + count, 0], mine[0].truth[0]]))
        captions.append(f"{words(mine[0].ask)} ({', '.join(f'{q.setting:g}' for q in mine)})".lstrip())
    return report.images(strips, captions, zoom=ZOOM)


def save_sheet(
    evaluation: Evaluation, path: pathlib.Path, parts: Sequence[str], per_part: int = 4, upscale: int = 2
) -> pathlib.Path:
    """Writes one PNG, a row for each part: its first questions, `compared` with their answers."""
    rows = []
    for name in parts:
        found = evaluation.answered[name]
        pairs = list(zip(found.part.questions, found.samples, strict=True))[:per_part]
        rows.append([compared(q, image) for q, image in pairs])
    width = max(piece.shape[1] for row in rows for piece in row) + 8
    lines = [np.concatenate([_padded(piece, width) for piece in row], axis=1) for row in rows]
    sheet = Image.fromarray(np.concatenate([_padded(line, line.shape[1], line.shape[0] + 4) for line in lines]))
    sheet.resize((sheet.width * upscale, sheet.height * upscale), Image.Resampling.NEAREST).save(path)
    return path


def _padded(image: RGBImage, width: int, height: int | None = None) -> RGBImage:
    """The image on white, at the upper left."""
    page = np.full((height or image.shape[0], width, 3), 255, np.uint8)
    page[: image.shape[0], : image.shape[1]] = image
    return page


def compared(question: exam.Question, samples: exam.Clip) -> RGBImage:
    """What was given, the answer and the truth, side by side; of clips some frames, the true ones below."""
    left = given(question.ask)
    if len(samples) == 1:
        return strip([*left, samples[0], question.truth[0]])
    blank = [np.full_like(image, 255) for image in left]
    above, below = strip([*left, *some_frames(samples)]), strip([*blank, *some_frames(question.truth)])
    return np.concatenate([above, np.full((2, *above.shape[1:]), 255, np.uint8), below])


def some_frames(clip: exam.Clip) -> list[RGBImage]:
    """At most `FRAMES` of a clip's frames, spread evenly from the first to the last."""
    return list(clip[np.linspace(0, len(clip) - 1, min(len(clip), FRAMES)).round().astype(int)])


def strip(row: Sequence[RGBImage]) -> RGBImage:
    """Images of one height side by side, two white pixels apart."""
    gap = np.full((row[0].shape[0], 2, 3), 255, np.uint8)
    return np.concatenate([part for image in row for part in (gap, image)][1:], axis=1)


def swatches(palette: UInt8[np.ndarray, "p 3"], size: tuple[int, int]) -> RGBImage:
    """Colours as columns of equal width, (height, width) in all."""
    height, width = size
    return np.repeat(palette[None, np.arange(width) * len(palette) // width], height, axis=0)


def words(ask: Any) -> str:
    """The texts of a question: what is wanted, shot by shot, and what is not."""
    if isinstance(ask, exam.Apart):
        return " / ".join(map(words, ask.requests))
    if isinstance(ask, VideoRequest):
        return " / ".join(shot.text or "" for shot in ask.storyboard)
    text = getattr(ask, "prompt", None) or getattr(ask, "text", None) or ""
    unwanted = getattr(ask, "negative_text", None)
    return f"{text}; without: {unwanted}" if unwanted else text


@functools.singledispatch
def given(ask: Any) -> list[RGBImage]:
    """The images that a question shows beside its words.

    Raises:
        TypeError: a kind of question that it does not know.
    """
    raise TypeError(f"{type(ask).__name__} is no question of an exam")


@given.register(exam.Locate)
@given.register(RemoveBackground)
def _(ask: Any) -> list[RGBImage]:
    return [ask.image]


@given.register(Inpaint)
@given.register(Outpaint)
def _(ask: Any) -> list[RGBImage]:
    tinted = np.rint(0.5 * ask.image + 0.5 * np.array(TINT)).astype(np.uint8)
    return [np.where(ask.mask[..., None], tinted, ask.image)]


@given.register
def _(ask: exam.Apart) -> list[RGBImage]:
    return [image for request in ask.requests for image in given(request)]


@given.register
def _(ask: VideoRequest) -> list[RGBImage]:
    return [shot.image for shot in ask.storyboard if shot.image is not None]


@given.register
def _(ask: TextToImage) -> list[RGBImage]:
    if ask.condition_image is None:
        return []
    edges = [conditions.canny(ask.condition_image)] if ask.control_mode == "CANNY_EDGE" else []
    return [ask.condition_image, *edges]


@given.register
def _(ask: Vary) -> list[RGBImage]:
    return list(ask.images)


@given.register
def _(ask: ColorGuided) -> list[RGBImage]:
    shown = swatches(ask.rgb, ask.size)
    return [shown] if ask.reference_image is None else [shown, ask.reference_image]
