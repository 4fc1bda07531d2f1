"""Seconds until a new process has its first image: compiled there, read from the run's cache, or compiled ahead.

    python -m experiments.benchmarks.first_image PATH             writes the seconds as JSON to PATH

A run of the quickstart's model, hardly trained, samples one prompt as `nova generate` does by default, each time in a
process of its own; the three ways take turns. Of every way the median: until the libraries are imported, from there
until the run is loaded, and from there until the image. `whole` is measured outside, from the start of the process to
its end.

Measured in 2026-12 on one of two CPU cores that other work kept busy (experiments/results/first_image.json), seconds:

             import   load   image   whole   compilations
    anew        9.7    2.8    63.9    79.7   5
    cache      11.0    3.0    18.4    35.5   5, read from RUN/cache
    ahead       9.8    2.5     6.3    22.1   0

Compiled ahead, the image of a loaded run is there 10.2 times sooner, the whole process ends 3.6 times sooner.
"""

import contextlib
import dataclasses
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

WAYS = ("anew", "cache", "ahead")
REPEATS = 3


def sample(run_dir: str, way: str) -> dict[str, float]:
    """Seconds of each part in this process, and how often it compiled."""
    start = time.perf_counter()
    import jax

    from nova_jax import compilation_cache, generation
    from nova_jax.generation import compiled

    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compilations.append(event))
    imported = time.perf_counter()
    with compilation_cache.kept_in(run_dir) if way == "cache" else contextlib.nullcontext():
        trained = generation.load_run(run_dir)
        if way == "ahead":
            trained = trained._replace(programs=compiled.Reader(run_dir))
        loaded = time.perf_counter()
        generation.generate(trained, ["a red circle"], [0])
    done = time.perf_counter()
    count = compilations.count("/jax/core/compile/backend_compile_duration")
    return {"import": imported - start, "load": loaded - imported, "image": done - loaded, "compilations": count}


def measure(run_dir: str, way: str) -> dict[str, float]:
    """The same in a new process, with the seconds of all of it."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "experiments.benchmarks.first_image", run_dir, way]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found | {"whole": time.perf_counter() - start}


def prepare(folder: pathlib.Path) -> str:
    """A run of one step, the programs of its sampling, and its cache."""
    from experiments import quickstart
    from nova_jax import cli, experiment

    data = dataclasses.replace(
        quickstart.CONFIG.data,
        source=dataclasses.replace(quickstart.CONFIG.data.source, length=64),
        cache_path=str(folder / "latents"),
    )
    config = dataclasses.replace(quickstart.CONFIG, data=data, steps=1, preview=None, run_dir=str(folder / "run"))
    run_dir = str(experiment.run(config).directory)
    cli.main(["compile", run_dir])
    measure(run_dir, "cache")
    return run_dir


def main() -> None:
    """Writes the medians of every way, and how much sooner an image is there than where it is compiled."""
    from nova_jax import environment

    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = prepare(pathlib.Path(folder))
        for _ in range(REPEATS):
            for way in WAYS:
                rows[way].append(measure(run_dir, way))
                print(way, json.dumps(rows[way][-1]), flush=True)
    medians = {
        way: {key: statistics.median(row[key] for row in found) for key in found[0]} for way, found in rows.items()
    }
    sooner = {way: {key: medians["anew"][key] / medians[way][key] for key in ("image", "whole")} for way in WAYS[1:]}
    record = {
        "command": shlex.join(["python", "-m", "experiments.benchmarks.first_image", *sys.argv[1:]]),
        "environment": environment.describe(),
        "seconds": medians,
        "times_sooner": sooner,
        "all": rows,
    }
    pathlib.Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[2:]:
        print(json.dumps(sample(*sys.argv[1:])))
    else:
        main()
