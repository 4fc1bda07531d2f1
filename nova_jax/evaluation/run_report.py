"""The report.html of a training run: samples of its preview's prompts, loss curves, config and environment."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from nova_jax import atomic, environment, generation
from nova_jax.evaluation import plots, report
from nova_jax.runs import record as records
from nova_jax.runs.config import TrainConfig
from nova_jax.runs.train import Result

SETTINGS = generation.SamplingSettings(sampler="heun", num_steps=12, guidance_scale=2.0)
PER_PROMPT = 4


def write(config: TrainConfig, result: Result, sections: Mapping[str, Any] | None = None) -> None:
    """Writes report.html into the run folder, and says where.

    Args:
        config: of the run.
        result: of the run.
        sections: shown after the samples; see `report.page`.
    """
    trained = generation.load_run(result.directory)
    prompts = [prompt for prompt in config.preview.prompts for _ in range(PER_PROMPT)] if config.preview else []
    seeds = [seed % PER_PROMPT for seed in range(len(prompts))]
    settings = generation.settings_for(trained) if config.teacher else SETTINGS
    samples = generation.generate(trained, prompts, seeds, settings) if prompts else []
    record = json.loads((result.directory / "config.json").read_text())
    lines = [json.loads(line) for line in (result.directory / "log.jsonl").read_text().splitlines()]
    speed = [line["images_per_s"] for line in lines if "images_per_s" in line]
    facts = {"steps": lines[-1]["step"], "images/s (median)": float(np.median(speed)) if speed else "n/a"}
    facts |= {key: record[key] for key in ("parameters", "flops_per_step", "peak_flops", "peak_source")}
    document = report.page(
        config.name,
        {
            "Samples": [
                f"Seeds 0 to {PER_PROMPT - 1} of each prompt; {describe(settings)}.",
                report.images(samples, prompts, zoom=3),
            ],
            **(sections or {}),
            "Loss": [plots.draw(loss_curves(lines), x_label="step", y_label="loss", log_y=True)],
            "Time": time_parts(lines, records.activity_seconds(result.directory)),
            "Run": [report.command(f"python -m experiments.{config.name}"), report.facts(facts)],
            "Environment": [report.facts(environment.describe())],
            "Config": [report.facts(record["config"])],
        },
        subtitle=f"{record['parameters']:,} parameters, {lines[-1]['step']:,} steps of {config.batch_size}",
    )
    atomic.write(result.directory / "report.html", document)
    print(f"\nreport: {result.directory / 'report.html'}")


def loss_curves(lines: list[dict[str, Any]]) -> list[plots.Series]:
    """The loss over steps, smoothed, and the loss in each bin of the time axis."""
    steps = [line["step"] for line in lines]
    window = max(1.0, len(lines) / 40)
    curves = [plots.Series("loss", steps, plots.smooth([line["loss"] for line in lines], window))]
    bins = len(lines[0].get("loss_by_time", []))
    for i in range(bins):
        shares = [line["share_by_time"][i] or float("nan") for line in lines]
        values = [line["loss_by_time"][i] / share for line, share in zip(lines, shares, strict=True)]
        curves.append(plots.Series(f"t in {i / bins:g} .. {(i + 1) / bins:g}", steps, plots.smooth(values, window)))
    return curves


def time_parts(lines: list[dict[str, Any]], seconds: Mapping[str, float]) -> list[Any]:
    """What the time of a run went to, and how well the devices were used over its steps."""
    total = sum(seconds.values())
    parts: list[Any] = []
    if total:
        rows = [[name, value, 100 * value / total] for name, value in (*seconds.items(), ("all", total))]
        share = seconds.get("step", 0.0) / total
        parts += [f"Goodput, the share of training in {total:.0f} s: {share:.1%}."]
        parts += [report.table(["activity", "seconds", "percent"], rows)]
    for name in ("mfu", "data_wait"):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if len(points) > 1:
            steps, values = zip(*points, strict=True)
            curve = plots.Series(name, steps, plots.smooth(values, max(1.0, len(values) / 40)))
            parts += [plots.draw([curve], x_label="step", y_label=name)]
    return parts


def describe(settings: generation.SamplingSettings) -> str:
    """Solver, steps and guidance in words."""
    return f"{settings.sampler}, {settings.num_steps} steps, guidance {settings.guidance_scale:g}"
