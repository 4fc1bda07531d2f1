"""What a step benchmark found, as one page to read, and two benchmarks as what changed between them."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nova_jax.evaluation import intervals, plots, report, step_benchmark

Line = dict[str, Any]
Number = float | int


def write(folder: str | pathlib.Path) -> pathlib.Path:
    """Writes report.html beside the results: Pareto plots, contact sheet, table, commands, environment."""
    folder = pathlib.Path(folder)
    header, lines = step_benchmark.read(folder)
    cells = [line for line in lines if line["kind"] == "cell"]
    grid = header["grid"]
    sections: dict[str, list[Any]] = {}
    if any("overall" in cell for cell in cells):
        sections["Quality against evaluations"] = [
            "Share of pictures that show what their prompt asks for, over all tasks, with 95 % intervals. The line "
            "joins the points that no other beats; above them, their steps. Points of equal cost stand side by side.",
            _pareto(cells, lambda cell: cell["nfe"], "network evaluations per picture"),
        ]
        sections["Quality against seconds"] = [
            f"Seconds from noise to latents for {grid['batch_size']} pictures, median of the batches.",
            _pareto(cells, lambda cell: cell["seconds"]["median"], "seconds per batch"),
        ]
    sections["Distance to the fine path"] = [
        f"Root mean square distance of the latents to the same model's path of {grid['reference_steps']} steps from "
        "the same noise. What it costs in quality, the scores say.",
        _distances(cells),
    ]
    sections["Contact sheet"] = [
        "The same prompts and seeds in every cell: down the samplers, along the evaluations.",
        *_contact_sheet(folder, cells),
    ]
    sections["All cells"] = [_table(cells)]
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
        subtitle=f"{header['parameters']:,} parameters, {len(cells)} cells",
    )
    report.write(folder / step_benchmark.REPORT, document)
    return folder / step_benchmark.REPORT


def command(header: Line, cell: Line) -> str:
    """How to draw with a cell's settings."""
    return (
        f'nova generate --run {header["run"]} "PROMPT" --sampler {cell["sampler"]} --num-steps {cell["steps"]} '
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

    A score is better or worse when the interval of the difference leaves out 0, a distance when the two intervals do
    not meet, evaluations when they are not equal. Seconds are of two moments and machines: never judged.

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
    return step_benchmark.Cell(*(cell[name] for name in ("sampler", "time_grid", "guidance", "steps"))).key


def _series(cells: Sequence[Line]) -> dict[str, list[Line]]:
    """Cells by what is on one line of a plot: sampler, and time grid and guidance where there are several."""
    many_grids, many_scales = (len({cell[name] for cell in cells}) > 1 for name in ("time_grid", "guidance"))
    found: dict[str, list[Line]] = {}
    for cell in sorted(cells, key=lambda cell: cell["nfe"]):
        name = cell["sampler"] + many_grids * f" {cell['time_grid']}" + many_scales * f" g{cell['guidance']:g}"
        found.setdefault(name, []).append(cell)
    return found


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
        )
        for name, line in _series(scored).items()
    ]
    frontier = plots.Series("frontier", [costs[i] for i in front], [rates[i] for i in front], style="steps")
    return plots.draw([*drawn, frontier], x_label=label, y_label="right pictures", log_x=True)


def _distances(cells: Sequence[Line]) -> plots.Markup:
    lines = [
        plots.Series(name, [cell["nfe"] for cell in line], [cell["rmse"]["value"] for cell in line])
        for name, line in _series(cells).items()
    ]
    return plots.draw(lines, x_label="network evaluations per picture", y_label="latent RMSE", log_x=True, log_y=True)


def _contact_sheet(folder: pathlib.Path, cells: Sequence[Line]) -> list[Any]:
    """One row of strips per sampler, each strip the kept pictures of a cell."""
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
    header = ["sampler", "grid", "guidance", "steps", "nfe", "GFLOP", "s/batch", "overhead", "rmse", *scored]
    rows = []
    for cell in cells:
        rates = {name: task["rate"] for name, task in cell.get("scores", {}).items()}
        rates |= {"overall": cell["overall"]["rate"]} if rates else {}
        rows.append(
            [
                *(cell[name] for name in ("sampler", "time_grid", "guidance", "steps", "nfe")),
                round(cell["flops"] / 1e9, 2),
                round(cell["seconds"]["median"], 3),
                round(cell["overhead"]["median"], 3),
                round(cell["rmse"]["value"], 4),
                *(round(rates[name], 3) for name in scored),
            ]
        )
    return report.table(header, rows)
