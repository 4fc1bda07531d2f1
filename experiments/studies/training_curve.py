"""Scores of one task's exam against training, and what each bar would take: a curve through several finished runs.

    python -m experiments.studies.training_curve runs=runs/canvas,runs/canvas_longer report=curve.json

Every run has been examined (`nova evaluate`), and may start from another (`start_from`), whose samples count as well.
How far a score is from its ceiling (the true images after the autoencoder; 1 for correlations, 100 for points gained,
0 for losses) is taken to fall as a power of the samples (`evaluation.power_law`), counted to the last line of the log.
Printed for each bar that the last run misses: the scores, the exponent, and the samples at which the law reaches the
goal, with the 95 % interval that the exam's own intervals leave. The goal is the bar or, where the autoencoder itself
misses it, 0.95 of its ceiling.
"""

import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

from nova_jax import config, environment
from nova_jax.config import ConfigError
from nova_jax.evaluation import power_law, task_evaluation

NEAR = 0.95

Rows = dict[tuple[str, str], dict[str, Any]]  # by part and score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Which runs, in any order, and the JSON file for what is found."""

    runs: tuple[str, ...] = ()
    report: str | None = None


def main(settings: Settings) -> None:
    """Prints the curves, and writes them if asked."""
    if len(settings.runs) < 2:
        raise ConfigError(f"runs={','.join(settings.runs)}: name two or more examined runs, separated by commas")
    examined = [(samples_seen(run), run, read_scores(run)) for run in settings.runs]
    examined.sort(key=lambda found: found[0])
    rows = [trace(key, examined) for key in missed(examined[-1][2])]
    head = "".join(f"{samples:>10,}" for samples, _, _ in examined)
    print(f"{'':44}{'bar':>8}{'goal':>8}{head}  exponent       samples needed")
    for row in rows:
        values = "".join(f"{_shown(score['value']):>10}" for score in row["scores"])
        print(f"{row['part'] + ' ' + row['score']:44}{row['bar']:>8}{row['goal']:8.3f}{values}  {_describe(row)}")
    if settings.report:
        runs = [{"run": run, "samples": samples} for samples, run, _ in examined]
        record = {"settings": config.to_dict(settings), "environment": environment.describe(), "runs": runs}
        pathlib.Path(settings.report).write_text(json.dumps(record | {"curves": rows}, indent=1) + "\n")


def samples_seen(run: str) -> int:
    """Rows that a run has learnt from, and those of the runs that it started from."""
    folder = pathlib.Path(run)
    record = json.loads(_read(folder / "config.json"))
    steps = json.loads(_read(folder / "log.jsonl").splitlines()[-1])["step"]
    before = record["config"]["start_from"]
    return steps * record["samples_per_step"] + (samples_seen(before) if before else 0)


def read_scores(run: str) -> Rows:
    """The exam's rows over all questions."""
    record = json.loads(_read(pathlib.Path(run) / "evaluation" / task_evaluation.SCORES))
    return {(row["part"], row["score"]): row for row in record["scores"] if not row["group"]}


def missed(scores: Rows) -> list[tuple[str, str]]:
    """What the exam misses; not the bars with two ends."""
    return [key for key, row in scores.items() if row["is_met"] is False and row["bar"][0] in "≥≤"]


def trace(key: tuple[str, str], examined: list[tuple[int, str, Rows]]) -> dict[str, Any]:
    """A score in every run, the law of its distance to the ceiling, and the samples that its goal takes.

    The goal is the bar, or `NEAR` of a ceiling that itself misses the bar.
    """
    for _, run, scores in examined:
        if key not in scores:
            raise ConfigError(f"{run} was not examined on {' '.join(key)}: name runs that sat the same exam")
    rows = [scores[key] for _, _, scores in examined]
    last, goal = rows[-1], float(rows[-1]["bar"].split()[1])
    is_rate = last["bar"].startswith("≥")
    top = 100.0 if goal > 1 else 1.0  # points gained, or a correlation
    best = last["ceiling"] if last["ceiling"] is not None else is_rate * top
    sign = 1 if is_rate else -1
    if sign * (best - goal) <= 0:
        goal = best * (NEAR if is_rate else 2 - NEAR)
    found = {
        "part": key[0],
        "score": key[1],
        "bar": last["bar"],
        "ceiling": best,
        "goal": goal,
        "scores": [
            {"samples": samples, **{name: row[name] for name in ("value", "low", "high", "n")}}
            for (samples, _, _), row in zip(examined, rows, strict=True)
        ],
        "law": None,
        "samples_needed": None,
    }
    if any(row["value"] is None or not row["low"] < row["high"] for row in rows):
        return found
    distances = [sign * (best - row["value"]) for row in rows]
    if min(distances) <= 0 or goal == best:
        return found
    law = power_law.fit(
        [n for n, _, _ in examined], distances, [power_law.standard_error(row["low"], row["high"]) for row in rows]
    )
    needed = {name: value if math.isfinite(value) else None for name, value in law.spent_for(abs(best - goal)).items()}
    return found | {"law": law._asdict(), "samples_needed": needed}


def _describe(row: dict[str, Any]) -> str:
    if row["law"] is None:
        return "no law: a run is at the ceiling, or its score has no interval"
    exponent, error = row["law"]["exponent"], power_law.Z * row["law"]["exponent_error"]
    needed = row["samples_needed"]
    value, low, high = ("never" if needed[name] is None else f"{needed[name]:.2g}" for name in ("value", "low", "high"))
    return f"{exponent:.2f} +- {error:.2f}   {value} ({low} to {high})"


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: name runs that are trained and examined (`nova evaluate`)") from None


if __name__ == "__main__":
    try:
        main(config.override(Settings(), sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"training_curve: {error}")
