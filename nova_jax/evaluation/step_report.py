"""What a step benchmark found, as one page to read, and two benchmarks as what changed between them.

Students are drawn with diamonds and dashes, samplers of the run itself with dots and lines.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nova_jax import atomic
from nova_jax.evaluation import intervals, plots, report, step_benchmark

Line = dict[str, Any]
Number = float | int


def write(folder: str | pathlib.Path) -> pathlib.Path:
    """Writes report.html beside the results: Pareto plots, contact sheet, tables, commands, environment."""
    folder = pathlib.Path(folder)
    header, lines = step_benchmark.read(folder)
    cells = [line for line in lines if line["kind"] == "cell"]
    models = [line for line in lines if line["kind"] == "model"]
    students = header.get("students", {})
    sections = _plots(header, cells)
    sections["Contact sheet"] = [
        "The same prompts and seeds in every cell: down the samplers and students, along the evaluations.",
        *_contact_sheet(folder, cells),
    ]
    sections["All cells"] = [_table(cells)]
    if models:
        sections["Training cost"] = [
            "Of each model's own training so far, teacher's evaluations within it included; what a student begins "
            "from, the trained teacher, is not counted again. One teacher training is that of the run itself.",
            _costs(models),
        ]
    sections["Commands"] = [
        "Draw with the settings of a point; fill in the prompt.",
        *(report.command(command(header, cell)) for cell in _front(cells)),
        "The whole benchmark again:",
        report.command(header["command"] or "nova bench --run " + header["run"]),
    ]
    sections["Environment"] = [report.facts(header["environment"])]
    document = report.page(
        f"Step benchmark: {header['model']}",
        sections,
        subtitle=f"{header['parameters']:,} parameters, {len(cells)} cells, students: {', '.join(students) or 'none'}",
    )
    atomic.write(folder / step_benchmark.REPORT, document)
    return folder / step_benchmark.REPORT


def _plots(header: Line, cells: Sequence[Line]) -> dict[str, list[Any]]:
    """Quality, diversity and distance, as far as the cells have them."""
    sections: dict[str, list[Any]] = {}
    batch_size, reference_steps = header["grid"]["batch_size"], header["grid"]["reference_steps"]
    if any("overall" in cell for cell in cells):
        sections["Quality against evaluations"] = [
            "Share of images that show what their prompt asks for, over all tasks, with 95 % intervals. The line "
            "joins the points that no other beats; above them, their steps. Points of equal cost stand side by side.",
            _pareto(cells, lambda cell: cell["nfe"], "network evaluations per image"),
        ]
        sections["Quality against seconds"] = [
            f"Seconds from noise to latents for {batch_size} images, median of the batches.",
            _pareto(cells, lambda cell: cell["seconds"]["median"], "seconds per batch"),
        ]
    if any("diversity" in cell for cell in cells):
        sections["Diversity against evaluations"] = [
            "Standard deviation of the latents from seed to seed of one prompt, root mean square over prompts and "
            "elements, with 95 % intervals over prompts. A model that draws one image per prompt falls towards 0. "
            "Guidance lowers it too: hold a student against its teacher at the scale that is distilled into it.",
            _diversity(cells),
        ]
    sections["Distance to the fine path"] = [
        f"Root mean square distance of the latents to the run's own path of {reference_steps} steps from "
        "the same noise; for a student, at the guidance that is distilled into it. What it costs in quality, the "
        "scores say. A student of a flow map learns to end where that path ends. One that matches distributions "
        "(DMD2, and joint methods) does not: its distance need not be small.",
        _distances(cells),
    ]
    return sections


def command(header: Line, cell: Line) -> str:
    """How to draw with a cell's settings."""
    model = step_benchmark.cell_of(cell).model
    run = header["run"] if model == step_benchmark.TEACHER else header["students"][model]["run"]
    return (
        f'nova generate --run {run} "PROMPT" --sampler {cell["sampler"]} --num-steps {cell["steps"]} '
        f"--guidance-scale {cell['guidance']:g} --time-grid {cell['time_grid']}"
    )


class Change(NamedTuple):
    """One number of one cell in two benchmarks."""

    cell: str
    what: str
    before: Number
    after: Number
    verdict: str  # "better", "worse" or "same": beyond the intervals or not


def compare(first: str | pathlib.Path, second: str | pathlib.Path) -> list[Change]:
    """What changed from one benchmark to another, cell by cell; cells that only one of them has are left out.

    A score is better or worse when the interval of the difference leaves out 0, a distance or a diversity (more is
    better) when the two intervals do not meet, evaluations when they are not equal. Seconds are of two moments and
    machines: never judged.

    Raises:
        ValueError: they have no cell in common.
    """
    sides = []
    for folder in (first, second):
        _, lines = step_benchmark.read(folder)
        sides.append({_key(line): line for line in lines if line["kind"] == "cell"})
    common = [key for key in sides[0] if key in sides[1]]
    if not common:
        raise ValueError(f"{first} and {second} have no cell in common: nothing to compare")
    return [change for key in common for change in _changes(key, sides[0][key], sides[1][key])]


def _changes(key: str, before: Line, after: Line) -> list[Change]:
    changes = [
        _judged(key, "nfe", before["nfe"], after["nfe"], after["nfe"] - before["nfe"], after["nfe"] - before["nfe"])
    ]
    first, second = before["rmse"], after["rmse"]
    apart = (second["low"] - first["high"], second["high"] - first["low"])
    changes.append(_judged(key, "rmse", first["value"], second["value"], *apart))
    if "diversity" in before and "diversity" in after:
        first, second = before["diversity"], after["diversity"]
        apart = (first["low"] - second["high"], first["high"] - second["low"])
        changes.append(_judged(key, "diversity", first["value"], second["value"], *apart))
    rates = {"overall": (before.get("overall"), after.get("overall"))}
    rates |= {task: (score, after.get("scores", {}).get(task)) for task, score in before.get("scores", {}).items()}
    for what, (p, q) in rates.items():
        if p and q:
            low, high = intervals.difference((p["rate"], p["low"], p["high"]), (q["rate"], q["low"], q["high"]))
            changes.append(_judged(key, what, p["rate"], q["rate"], -high, -low))
    seconds = before["seconds"]["median"], after["seconds"]["median"]
    return [*changes, Change(key, "seconds", *seconds, "same")]


def _judged(key: str, what: str, before: Number, after: Number, least: Number, most: Number) -> Change:
    """`least` and `most`: the interval of how much worse it got."""
    verdict = "worse" if least > 0 else "better" if most < 0 else "same"
    return Change(key, what, before, after, verdict)


def _key(cell: Line) -> str:
    return step_benchmark.cell_of(cell).key


def _series(cells: Sequence[Line]) -> dict[str, list[Line]]:
    """Cells by what is on one line of a plot: sampler or student; time grid and guidance where it has several."""
    found: dict[str, list[Line]] = {}
    for is_student in (False, True):
        some = [cell for cell in cells if _is_student(cell) == is_student]
        many_grids, many_scales = (len({cell[name] for cell in some}) > 1 for name in ("time_grid", "guidance"))
        for cell in sorted(some, key=lambda cell: cell["nfe"]):
            name = f"{cell['model']} ({cell['sampler']})" if is_student else cell["sampler"]
            name += many_grids * f" {cell['time_grid']}" + many_scales * f" g{cell['guidance']:g}"
            found.setdefault(name, []).append(cell)
    return found


def _is_student(cell: Line) -> bool:
    return step_benchmark.cell_of(cell).model != step_benchmark.TEACHER


def _front(cells: Sequence[Line]) -> list[Line]:
    """The cells that no other beats in evaluations and quality (or distance, where nothing is scored)."""
    quality = [cell["overall"]["rate"] if "overall" in cell else -cell["rmse"]["value"] for cell in cells]
    return [cells[i] for i in plots.pareto_front([cell["nfe"] for cell in cells], quality)]


def _pareto(cells: Sequence[Line], cost: Any, label: str) -> plots.Markup:
    scored = [cell for cell in cells if "overall" in cell]
    costs, rates = [cost(cell) for cell in scored], [cell["overall"]["rate"] for cell in scored]
    front = plots.pareto_front(costs, rates)
    named = [scored[i] for i in front]
    drawn = [
        plots.Series(
            name,
            [cost(cell) for cell in line],
            [cell["overall"]["rate"] for cell in line],
            [cell["overall"]["low"] for cell in line],
            [cell["overall"]["high"] for cell in line],
            labels=[str(cell["steps"]) if cell in named else "" for cell in line],
            style="points",
            is_set_apart=_is_student(line[0]),
        )
        for name, line in _series(scored).items()
    ]
    frontier = plots.Series("frontier", [costs[i] for i in front], [rates[i] for i in front], style="steps")
    return plots.draw([*drawn, frontier], x_label=label, y_label="right images", log_x=True)


def _diversity(cells: Sequence[Line]) -> plots.Markup:
    drawn = [
        plots.Series(
            name,
            [cell["nfe"] for cell in line],
            *([cell["diversity"][part] for cell in line] for part in ("value", "low", "high")),
            style="points",
            is_set_apart=_is_student(line[0]),
        )
        for name, line in _series([cell for cell in cells if "diversity" in cell]).items()
    ]
    return plots.draw(drawn, x_label="network evaluations per image", y_label="latent deviation", log_x=True)


def _distances(cells: Sequence[Line]) -> plots.Markup:
    lines = [
        plots.Series(
            name,
            [cell["nfe"] for cell in line],
            [cell["rmse"]["value"] for cell in line],
            is_set_apart=_is_student(line[0]),
        )
        for name, line in _series(cells).items()
    ]
    return plots.draw(lines, x_label="network evaluations per image", y_label="latent RMSE", log_x=True, log_y=True)


def _contact_sheet(folder: pathlib.Path, cells: Sequence[Line]) -> list[Any]:
    """One row of strips per sampler or student, each strip the kept images of a cell."""
    rows: list[Any] = []
    for name, line in _series(cells).items():
        strips, captions = [], []
        for cell in line:
            kept = np.load(folder / "pictures" / f"{_key(cell).replace('/', '_')}.npy")
            strips.append(np.concatenate(np.split(np.concatenate(kept, axis=1), 2, axis=1), axis=0))
            captions.append(f"{name}, {cell['steps']} steps, nfe {cell['nfe']}")
        rows.append(report.images(strips, captions))
    return rows


def _table(cells: Sequence[Line]) -> plots.Markup:
    scored = [*cells[0]["scores"], "overall"] if cells and "overall" in cells[0] else []
    measured = ["rmse", "diversity"] if any("diversity" in cell for cell in cells) else ["rmse"]
    settings = ["model", "sampler", "grid", "guidance", "steps", "nfe"]
    rows = []
    for cell in cells:
        point = step_benchmark.cell_of(cell)
        rates = {name: task["rate"] for name, task in cell.get("scores", {}).items()}
        rates |= {"overall": cell["overall"]["rate"]} if rates else {}
        rows.append(
            [
                *(point.model, point.sampler, point.time_grid, point.guidance, point.steps, cell["nfe"]),
                round(cell["flops"] / 1e9, 2),
                round(cell["seconds"]["median"], 3),
                round(cell["overhead"]["median"], 3),
                *(round(cell[name]["value"], 4) if name in cell else "" for name in measured),
                *(round(rates[name], 3) for name in scored),
            ]
        )
    return report.table([*settings, "GFLOP", "s/batch", "overhead", *measured, *scored], rows)


def _costs(models: Sequence[Line]) -> plots.Markup:
    rows = [
        [
            *(model["name"], model["method"], f"{model['parameters']:,}", f"{model['training_steps']:,}"),
            *(model["flops_per_step"] / 1e9, model["training_flops"] / 1e12, model["teacher_trainings"]),
        ]
        for model in models
    ]
    header = ["model", "trained with", "parameters", "steps", "GFLOP/step", "TFLOP", "teacher trainings"]
    return report.table(header, rows)
