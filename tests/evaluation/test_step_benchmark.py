"""The step benchmark on an untrained model: what it measures, how it goes on, what it refuses."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
import rich.console
from jax.sharding import NamedSharding, PartitionSpec

from data_pipelines.scenes import world
from data_pipelines.scenes.exams import geneval_scores
from nova_jax import cli, generation, sampling
from nova_jax.evaluation import intervals, step_benchmark, step_report
from nova_jax.parallel import mesh as meshes

GRID = step_benchmark.Grid(
    samplers=("euler", "heun"),
    steps=(1, 3),
    guidance=(1.0, 2.0),
    images=6,
    batch_size=4,
    reference_steps=8,
    diversity_prompts=2,
    diversity_seeds=2,
)


@pytest.fixture(scope="module")
def bench(trained, tmp_path_factory):
    return run(trained, GRID, tmp_path_factory.mktemp("results") / "bench")


def run(run_dir, grid, folder):
    console = rich.console.Console(file=io.StringIO())
    return step_benchmark.run(run_dir, grid, folder, command="nova bench", console=console)


def results(folder):
    header, lines = step_benchmark.read(folder)
    kinds = {kind: [line for line in lines if line["kind"] == kind] for kind in ("cell", "programs")}
    return header, kinds


@pytest.mark.long
def test_every_cell_says_what_it_costs_and_how_good_it_is(bench):
    header, kinds = results(bench)
    cells = {(c["sampler"], c["steps"], c["guidance"]): c for c in kinds["cell"]}
    assert len(cells) == len(kinds["cell"]) == 8
    nfe = {key: cell["nfe"] for key, cell in cells.items()}
    assert nfe["euler", 3, 1.0] == 3
    assert nfe["euler", 3, 2.0] == 6
    assert nfe["heun", 3, 2.0] == 10
    for cell in cells.values():
        assert cell["flops"] == cell["nfe"] * header["flops_per_evaluation"]
        for times in (cell["seconds"], cell["overhead"]):
            assert 0 < times["low"] <= times["median"] <= times["high"]
        assert cell["rmse"]["low"] <= cell["rmse"]["value"] <= cell["rmse"]["high"]
        assert len(cell["scores"]) == 6
        assert cell["overall"]["n"] == 6
        assert cell["overall"]["low"] <= cell["overall"]["rate"] <= cell["overall"]["high"]
    assert header["environment"]["versions"]


@pytest.mark.long
def test_more_steps_come_nearer_to_the_fine_path_of_the_same_noise(bench):
    _, kinds = results(bench)
    for sampler in GRID.samplers:
        for scale in GRID.guidance:
            one, three = (
                cell["rmse"]["value"]
                for cell in kinds["cell"]
                if (cell["sampler"], cell["guidance"]) == (sampler, scale)
            )
            assert three < one


@pytest.mark.long
def test_a_cell_draws_what_generate_draws(trained, bench):
    """The same noise in every cell, whatever the batch: image by image those of the plain function."""
    trained = generation.load_run(trained)
    kept = np.load(bench / "pictures" / "euler-uniform-g2-3.npy")
    settings = generation.SamplingSettings(sampler="euler", num_steps=3, guidance_scale=2.0)
    order = np.random.default_rng(GRID.seed).permutation(6)
    prompts = geneval_scores.Scorer(world.World(), per_task=1).prompts
    texts = [prompts[i].text for i in order[:3]]
    drawn = generation.generate(trained, texts, [int(i) for i in order[:3]], settings)
    difference = np.abs(drawn[:, 0].astype(int) - kept[:3].astype(int))
    assert difference.max() <= 1  # rounding to whole numbers, batches of another size


def make_bench(run_dir, folder, batch_size, devices=1):
    """A benchmark of six prompts, its batches cut over this many devices, and the noise that they must begin with."""
    mesh = meshes.MeshConfig().make(jax.devices()[:devices])
    everywhere, cut = NamedSharding(mesh, PartitionSpec()), meshes.batch_sharding(mesh)
    trained = generation.load_run(run_dir)
    trained = trained._replace(params=jax.device_put(trained.params, everywhere))
    grid = dataclasses.replace(GRID, batch_size=batch_size)
    models = {step_benchmark.TEACHER: trained}
    bench = step_benchmark.Bench(models, grid, folder, geneval_scores.Scorer(world.World(), per_task=1))
    for batches in bench.batches.values():
        batches[:] = [jax.device_put(batch, (cut, everywhere, cut)) for batch in batches]
    return bench, sampling.initial_noise(np.random.default_rng(grid.seed).permutation(6), trained.latent_shape)


def start_and_pictures(bench, name):
    """Where the first six walks of a cell begin, by a walk without a step, and the images that they end in."""
    program = bench.program(sampling.named(name), 2.0, bench.room)
    starts = [program(*bench.arguments(batch, np.ones(bench.room + 1), 2.0)).x for batch in range(bench.judged)]
    bench.measure(step_benchmark.Cell(name, "uniform", 2.0, 3))
    pictures = np.load(bench.folder / "pictures" / f"{name}-uniform-g2-3.npy")
    return np.concatenate(starts)[:6], pictures[:6].astype(int)


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    return make_bench(trained, tmp_path_factory.mktemp("whole"), batch_size=6)


@pytest.mark.long
def test_every_cell_begins_with_the_noise_of_its_seeds(whole):
    bench, noise = whole
    for name in GRID.samplers:
        np.testing.assert_array_equal(start_and_pictures(bench, name)[0], noise)


@pytest.mark.long
@pytest.mark.parametrize(("batch_size", "devices"), [(2, 1), (8, 8)])
def test_noise_and_pictures_depend_neither_on_the_batch_split_nor_on_the_number_of_devices(
    trained, whole, tmp_path, batch_size, devices
):
    bench, noise = whole
    parts, _ = make_bench(trained, tmp_path, batch_size, devices)
    start, pictures = start_and_pictures(parts, "euler")
    np.testing.assert_array_equal(start, noise)
    difference = np.abs(pictures - start_and_pictures(bench, "euler")[1])
    assert difference.max() <= 1  # products of other shapes, rounded to whole numbers


@pytest.mark.long
def test_six_samplers_and_eight_step_counts_compile_six_programs_and_a_reference(trained, tmp_path):
    samplers = ("euler", "heun", "ab2", "dpmpp_2m", "unipc_2", "deis_2")
    grid = step_benchmark.Grid(
        samplers=samplers,
        steps=tuple(range(2, 10)),
        images=6,
        batch_size=6,
        reference_steps=12,
        diversity_prompts=2,
        diversity_seeds=2,
    )
    _, kinds = results(run(trained, grid, tmp_path / "sweep"))
    assert len(kinds["cell"]) == 48
    assert kinds["programs"][0]["count"] == len(samplers) + 1


@pytest.mark.long
def test_a_killed_benchmark_goes_on_where_it_stopped(bench, trained, tmp_path):
    folder = tmp_path / "bench"
    shutil.copytree(bench, folder)
    path = folder / step_benchmark.RESULTS
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if '"kind": "cell"' in line)
    path.write_text("\n".join(lines[: first + 3]) + "\n" + lines[first + 3][:40])  # the fourth cell half written
    run(trained, GRID, folder)
    _, kinds = results(folder)
    keys = [(c["sampler"], c["guidance"], c["steps"]) for c in kinds["cell"]]
    assert len(keys) == len(set(keys)) == 8
    assert [json.dumps(cell) for cell in kinds["cell"][:3]] == lines[first : first + 3]  # not measured again
    before = {k: c["rmse"] for k, c in zip(keys, results(bench)[1]["cell"], strict=True)}
    after = {k: c["rmse"] for k, c in zip(keys, kinds["cell"], strict=True)}
    assert before == after


@pytest.mark.long
def test_results_of_another_grid_or_model_are_not_mixed(bench, trained):
    with pytest.raises(ValueError, match="results of another grid"):
        run(trained, step_benchmark.Grid(samplers=("euler",), steps=(1,), reference_steps=8), bench)


@pytest.mark.long
def test_the_report_is_one_file_with_plots_pictures_and_commands(bench):
    text = step_report.write(bench).read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert 'src="data:image/png;base64,' in text
    assert text.count("<svg") >= 3
    assert "nova generate --run" in text
    assert "frontier" in text
    for sampler in GRID.samplers:
        assert f"{sampler} g2" in text


@pytest.mark.long
def test_comparing_with_itself_finds_no_change_and_with_a_worse_one_fails(bench, tmp_path, capsys):
    assert all(change.verdict == "same" for change in step_report.compare(bench, bench))
    worse = tmp_path / "worse"
    shutil.copytree(bench, worse)
    header, *lines = (worse / step_benchmark.RESULTS).read_text().splitlines()
    changed = []
    for line in map(json.loads, lines):
        if line["kind"] == "cell" and line["steps"] == 3:
            line["rmse"] = {key: 3 * value for key, value in line["rmse"].items()}
            line["overall"] = {"rate": 0.0, "low": 0.0, "high": 0.02, "n": 200}
        changed.append(json.dumps(line))
    (worse / step_benchmark.RESULTS).write_text("\n".join([header, *changed]) + "\n")
    verdicts = {(c.cell, c.what): c.verdict for c in step_report.compare(bench, worse)}
    assert verdicts["euler-uniform-g2-3", "rmse"] == "worse"
    assert verdicts["euler-uniform-g2-1", "rmse"] == "same"
    back = {(c.cell, c.what): c.verdict for c in step_report.compare(worse, bench)}
    assert back["euler-uniform-g2-3", "rmse"] == "better"
    cli.main(["bench", "compare", str(worse), str(bench)])
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "compare", str(bench), str(worse)])
    assert caught.value.code == 1
    assert "worse beyond the intervals" in capsys.readouterr().out


def test_the_interval_of_a_difference_is_that_of_newcombe():
    """56 of 70 against 48 of 80: the example of the paper, 0.2 with 0.0524 to 0.3339."""
    rates = [(k / n, *intervals.wilson(k, n)) for k, n in ((48, 80), (56, 70))]
    np.testing.assert_allclose(intervals.difference(*rates), (0.0524, 0.3339), atol=5e-5)


def test_grids_that_cannot_be_meant_are_refused():
    for fields, message in [
        ({"samplers": ("eule",)}, "unknown sampler 'eule': choose one of euler, heun"),
        ({"samplers": ("unipc_3",), "steps": (2,)}, "unipc_3 needs at least 3 steps"),
        ({"steps": (0,)}, "num_steps is 0"),
        ({"steps": (4, 4)}, "different values"),
        ({"guidance": (-1.0,)}, "0 or more"),
        ({"images": 0}, "at least 1"),
        ({"steps": (2000,)}, "reference_steps"),
        ({"guidance": (float("nan"),)}, "guidance is .*nan"),
        ({"guidance": (float("inf"),)}, "guidance is .*inf"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ]:
        with pytest.raises(ValueError, match=message):
            step_benchmark.Grid(**({"samplers": ("euler",)} | fields))


def test_the_earlier_name_of_images_still_works():
    with pytest.warns(DeprecationWarning, match="images"):
        assert step_benchmark.Grid(pictures=6) == step_benchmark.Grid(images=6)


@pytest.mark.long
@pytest.mark.usefixtures("only_the_wheel")
def test_without_the_repository_a_benchmark_measures_all_but_scores_and_says_so(trained, tmp_path, monkeypatch):
    console = rich.console.Console(file=io.StringIO())
    grid = dataclasses.replace(GRID, samplers=("euler",), steps=(1,))
    for _ in range(2):  # the second goes on from the first
        step_benchmark.run(trained, grid, tmp_path, console=console)
    assert "are not scored: class 'data_pipelines.datasets:CaptionedLatents' is part of" in console.file.getvalue()
    header, kinds = results(tmp_path)
    assert len(kinds["cell"]) == len(grid.steps) * len(grid.guidance)
    assert not header["is_scored"]
    assert all(cell["rmse"]["value"] > 0 and "scores" not in cell for cell in kinds["cell"])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="holds results of other prompts"):
        run(trained, grid, tmp_path)


def test_a_missing_run_a_missing_checkpoint_and_missing_results_are_one_sentence(tmp_path, trained):
    with pytest.raises(SystemExit, match="is not a run folder"):
        cli.main(["bench", "--run", str(tmp_path)])
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    with pytest.raises(SystemExit, match="checkpoint"):
        cli.main(["bench", "--run", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"holds no results\.jsonl"):
        cli.main(["bench", "compare", str(tmp_path), str(tmp_path)])


@pytest.mark.long
def test_a_walk_that_breaks_down_says_which_sampler_step_and_time(trained):
    trained = generation.load_run(trained)
    broken = trained._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, trained.params))
    settings = generation.SamplingSettings(sampler="dpmpp_2m", num_steps=4)
    with pytest.raises(FloatingPointError, match=r"DPMSolverPP.* after step 1 of 4, from t = 1 to 0\.75"):
        generation.generate(broken, ["a circle"], [0], settings)
