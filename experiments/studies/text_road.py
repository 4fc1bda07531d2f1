"""Which text road teaches what: colours, shapes, binding and relations after how many samples.

    python -m experiments.studies.text_road                                    every road, one after the other
    python -m experiments.studies.text_road roads=words,byte_groups seeds=0,1  some of them
    python -m experiments.studies.text_road size=64 steps=14000 examined=128   scenes of 64 px, for a GPU

Each road is the quickstart (or `experiments.scenes`) with one thing changed: how captions become tokens, what the
encoder knows of the order of words, how the denoiser reads them, or what captions say. Each is examined on GenEval's
six tasks on the way, from its EMA parameters. A run that was killed goes on; one that is done is only read. All curves
stand in report.html and curves.json of the folder, each score with its interval.

What came out, and what became the default because of it, is in docs/text.md.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np

from data_pipelines.scenes import world
from data_pipelines.scenes.exams import geneval_scores
from experiments import quickstart, scenes
from nova_jax import atomic, environment, experiment, generation
from nova_jax import config as configs
from nova_jax.evaluation import geneval, plots, report
from nova_jax.models.text import ByteTextEncoder, WordTextEncoder
from nova_jax.training import loop
from nova_jax.types import TrainState

SETTINGS = generation.SamplingSettings(sampler="euler", num_steps=16, guidance_scale=2.0)
NEW = quickstart.CONFIG
WORDS = NEW.model.text_encoder
BYTES = ByteTextEncoder(width=96, depth=1, num_heads=2, downsample=4)
EARLIER: dict[str, Any] = {  # what the quickstart was before this study
    "scene_world": world.QUICKSTART,
    "denoiser": (("has_absolute_positions", False),),
    "rates": (("matrices", "blocks"), ("adam_scale", 1.0)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Road:
    """What differs from the quickstart as it is.

    Attributes:
        says: what the road is, for the report.
        encoder: captions to states; its width is fitted to the network.
        denoiser: fields of the transformer.
        scene_world: scenes and what captions say of them; None: as the experiment has it.
        rates: fields of the optimizer.
    """

    says: str
    encoder: Any = WORDS
    denoiser: tuple[tuple[str, Any], ...] = ()
    scene_world: world.World | None = None
    rates: tuple[tuple[str, Any], ...] = ()


def _words(**fields: Any) -> WordTextEncoder:
    return dataclasses.replace(WORDS, **fields)


EVEN = dataclasses.replace(world.QUICKSTART, wording=world.Wording(color=0.5, relation=0.75))
ANY_ORDER = dataclasses.replace(quickstart.WORLD, wording=dataclasses.replace(quickstart.WORLD.wording, in_order=0.0))
PLACED: dict[str, Any] = EARLIER | {"denoiser": (("has_absolute_positions", True),)}
EVENED: dict[str, Any] = PLACED | {"scene_world": EVEN}
ROADS: dict[str, Road] = {
    # From the earlier quickstart to today's, one change after the other.
    "byte_groups": Road(says="four bytes a token, wherever words fall", encoder=BYTES, **EARLIER),
    "aligned_groups": Road(
        says="four bytes a token, words padded to whole groups",
        encoder=dataclasses.replace(BYTES, aligns_words=True, length=128),
        **EARLIER,
    ),
    "words_alone": Road(says="a token a word, without its neighbours", encoder=_words(window=1), **EARLIER),
    "words": Road(says="a token a word, told of two neighbours on each side", encoder=_words(window=5), **EARLIER),
    "places": Road(
        says="words, and image tokens know their place in the frame",
        encoder=_words(window=5),
        **PLACED,
    ),
    "even": Road(
        says="places, and captions with fewer colours and more relations",
        encoder=_words(window=5),
        **EVENED,
    ),
    "rates": Road(says="even, with other captions still, and lower rates outside the blocks", scene_world=ANY_ORDER),
    "in_order": Road(says="today's quickstart: lists name objects from left to right"),
    # Today's quickstart with one thing changed.
    "depth_0": Road(says="no encoder blocks", encoder=_words(depth=0)),
    "depth_2": Road(says="two encoder blocks", encoder=_words(depth=2)),
    "absolute": Road(says="sines and cosines for the places of words", encoder=_words(positions="absolute")),
    "frozen": Road(says="random word embeddings, never trained", encoder=_words(has_frozen_words=True)),
    "frozen_no_order": Road(
        says="random word embeddings in no order", encoder=_words(has_frozen_words=True, positions="none", window=1)
    ),
    "no_pooled": Road(says="without the pooled text", denoiser=(("pooled_dim", 0),)),
    "joint": Road(says="text tokens in the self-attention", denoiser=(("text_attention", "joint"),)),
    "today_byte_groups": Road(
        says="four bytes a token, all else as today", encoder=dataclasses.replace(BYTES, length=96)
    ),
    "earlier_rates": Road(
        says="lists in any order, and the optimizer as it was", scene_world=ANY_ORDER, rates=EARLIER["rates"]
    ),
    "earlier_captions": Road(says="scenes and captions as they were", scene_world=world.QUICKSTART),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRoad:
    """The study.

    Attributes:
        roads: names of `ROADS`.
        seeds: each road is trained once for each.
        size: 32 or 64 pixels.
        steps: of each run.
        points: of each curve.
        examined: images a task, at every point.
        folder: of all runs and the report.
        results: a JSON file for the curves beside it; "": none.
        trains: roads without a curve; if not, only the runs that are there are reported, finished or not.
    """

    roads: tuple[str, ...] = tuple(ROADS)
    seeds: tuple[int, ...] = (0,)
    size: int = 32
    steps: int = quickstart.STEPS
    points: int = 4
    examined: int = 128
    folder: str = "runs/text_road"
    results: str = ""
    trains: bool = True

    def __post_init__(self) -> None:
        if unknown := [name for name in self.roads if name not in ROADS]:
            raise ValueError(f"there is no road {', '.join(unknown)}: choose of {', '.join(ROADS)}")
        if self.size not in (32, 64):
            raise ValueError(f"size={self.size}: the scenes are drawn at 32 or 64 pixels")
        if self.steps % self.points:
            raise ValueError(f"steps={self.steps} must be a multiple of points={self.points}")


def make_config(settings: TextRoad, name: str, seed: int) -> experiment.TrainConfig:
    """The run of a road."""
    base, road = quickstart.CONFIG if settings.size == 32 else scenes.CONFIG, ROADS[name]
    dit, source = base.model.dit, base.data.source
    encoder = dataclasses.replace(road.encoder, width=dit.text_dim)
    if settings.size == 64:  # up to six objects
        encoder = dataclasses.replace(encoder, length=encoder.length * 3 // 2)
    model = dataclasses.replace(base.model, dit=dataclasses.replace(dit, **dict(road.denoiser)), text_encoder=encoder)
    shown = source.world
    if road.scene_world is not None:  # the same share of pairs and of relations, at any size
        shown = dataclasses.replace(shown, wording=road.scene_world.wording, kinds=road.scene_world.kinds)
    return dataclasses.replace(
        base,
        name=f"text_road_{name}",
        model=model,
        data=dataclasses.replace(base.data, source=dataclasses.replace(source, world=shown)),
        optimizer=dataclasses.replace(base.optimizer, **dict(road.rates)),
        steps=settings.steps,
        checkpoint_every=settings.steps // settings.points,
        preview=None,
        seed=seed,
        run_dir=f"{settings.folder}/{name}_{seed}",
    )


def run_road(settings: TextRoad, name: str, seed: int) -> list[dict[str, Any]]:
    """The curve of a road: trains it, or reads it."""
    config = make_config(settings, name, seed)
    if settings.size == 64:
        codec = scenes.prepare(dataclasses.replace(config, run_dir=f"{settings.folder}/scenes")).data.codec_path
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, codec_path=codec))
    path = config.directory / "curve.jsonl"
    done = {line["step"] for line in read_curve(path)}
    make = experiment.make_trained_run(config)
    exam = geneval_scores.Scorer(config.data.source.world, settings.examined)

    def examine(step: int, state: TrainState) -> None:
        if step in done:
            return
        prompts = [prompt.text for prompt in exam.prompts]
        images = generation.generate(make(step, state), prompts, range(len(prompts)), SETTINGS)
        summary = exam.summarize(list(images))
        line = {"step": step, "samples": step * config.batch_size, "overall": summary.overall}
        line |= {"tasks": {task: score._asdict() for task, score in summary.tasks.items()}}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name} {seed}: {step:6} steps  " + "  ".join(f"{t} {s.rate:.2f}" for t, s in summary.tasks.items()))

    result = experiment.run(config, [loop.Callback(settings.steps // settings.points, examine)])
    if settings.steps not in {line["step"] for line in read_curve(path)}:  # killed between its last step and its exam
        examine(settings.steps, result.state)
    return read_curve(path)


def read_curve(path: pathlib.Path) -> list[dict[str, Any]]:
    """The points of a curve so far, each once, in order."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def training_loss(directory: pathlib.Path) -> float:
    """The mean loss over the last quarter of the steps."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return float(np.mean([line["loss"] for line in lines[-(len(lines) // 4) :]]))


def main(settings: TextRoad) -> None:
    """Runs all roads, and reports after each."""
    found: list[dict[str, Any]] = []
    for seed in settings.seeds:
        for name in settings.roads:
            directory = make_config(settings, name, seed).directory
            curve = run_road(settings, name, seed) if settings.trains else read_curve(directory / "curve.jsonl")
            if not curve:
                continue
            loss = training_loss(directory)
            found.append({"road": name, "says": ROADS[name].says, "seed": seed, "loss": loss, "curve": curve})
            write(settings, found)
    print(f"report: {settings.folder}/report.html")


def write(settings: TextRoad, found: list[dict[str, Any]]) -> None:
    """The table at the end of training, a plot for each task, and all numbers as JSON."""
    tasks = list(geneval.TASKS)
    rows = []
    for run in found:
        last = run["curve"][-1]
        rates = [last["tasks"][task]["rate"] for task in tasks]
        rows.append([run["road"], run["seed"], *rates, last["overall"], run["loss"]])
    legend = [[name, road.says] for name, road in ROADS.items() if name in settings.roads]
    sections: dict[str, Any] = {
        "At the end": [report.table(["road", "seed", *tasks, "overall", "loss"], rows)],
        "Roads": [report.table(["road", "what it is"], legend)],
    }
    for task in tasks:
        sections[task] = [plots.draw([_series(run, task) for run in found], x_label="samples", y_label=task)]
    said = f"{settings.size} px, {settings.examined} images a task, 95 % Wilson intervals"
    atomic.write(f"{settings.folder}/report.html", report.page("Text roads", sections, subtitle=said))
    record = {
        "command": " ".join(["python -m experiments.studies.text_road", *sys.argv[1:]]),
        "settings": configs.to_dict(settings),
        "sampling": configs.to_dict(SETTINGS),
        "environment": environment.describe(),
        "roads": found,
    }
    for path in filter(None, (f"{settings.folder}/curves.json", settings.results)):
        pathlib.Path(path).write_text(json.dumps(record, indent=1) + "\n")


def _series(run: dict[str, Any], task: str) -> plots.Series:
    points = [line["tasks"][task] for line in run["curve"]]
    samples = [line["samples"] for line in run["curve"]]
    values = {key: [point[key] for point in points] for key in ("rate", "low", "high")}
    return plots.Series(f"{run['road']} {run['seed']}", samples, values["rate"], values["low"], values["high"])


if __name__ == "__main__":
    try:
        main(configs.override(TextRoad(), sys.argv[1:]))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"text_road: {error}")
