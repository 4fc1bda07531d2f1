"""The step benchmark on a teacher and its students: one that has learnt nothing yet draws what its teacher draws."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
import rich.console

from nova_jax import cli, distillation, experiment, generation
from nova_jax.evaluation import step_benchmark, step_grid, step_report, step_sampling
from nova_jax.training.optimizer import AdamW
from tests import tiny_run

TEACHER = step_benchmark.TEACHER


@pytest.fixture(scope="module")
def student(trained, tmp_path_factory):
    """One step at a rate of nothing: the teacher's own network, which now reads a target time."""
    still = AdamW(peak=1e-30, warmup=1)
    config = tiny_run.make_student_config(
        trained, tmp_path_factory.mktemp("students") / "still", optimizer=still, steps=1
    )
    return experiment.run(dataclasses.replace(config, checkpoint_every=1)).directory


@pytest.fixture(scope="module")
def twin(student):
    """Its copy, said to have started from it."""
    folder = shutil.copytree(student, student.parent / "twin")
    record = json.loads((folder / "config.json").read_text())
    record["config"]["start_from"] = str(student)
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def make_grid(*students, **fields):
    return step_benchmark.Grid(
        **{
            "samplers": ("euler",),
            "steps": (2, 4),
            "guidance": (1.0,),
            "images": 6,
            "batch_size": 6,
            "reference_steps": 8,
            "students": tuple(map(str, students)),
            "student_steps": (2, 3, 4),
            "diversity_prompts": 3,
            "diversity_seeds": 2,
        }
        | fields
    )


def run(run_dir, grid, folder):
    return step_benchmark.run(run_dir, grid, folder, console=rich.console.Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def bench(trained, student, twin, tmp_path_factory):
    return run(trained, make_grid(student, twin), tmp_path_factory.mktemp("results") / "bench")


def lines_of(folder, kind):
    return [line for line in step_benchmark.read(folder)[1] if line["kind"] == kind]


@pytest.mark.long
def test_an_untrained_student_draws_from_the_teachers_noise_what_the_teacher_draws(bench):
    """Steps of a flow map that has learnt nothing are Euler's: distances, diversity and images agree."""
    cells = {(cell["model"], cell["steps"]): cell for cell in lines_of(bench, "cell")}
    for steps in (2, 4):
        teacher, student = cells[TEACHER, steps], cells["still", steps]
        assert (teacher["sampler"], student["sampler"]) == ("euler", "flow_map")
        assert teacher["nfe"] == student["nfe"] == steps
        for what in ("rmse", "diversity"):
            np.testing.assert_allclose(student[what]["value"], teacher[what]["value"], rtol=1e-4)
        drawn = [np.load(bench / "pictures" / f"{name}-uniform-g1-{steps}.npy") for name in ("euler", "still-flow_map")]
        assert np.abs(drawn[0].astype(int) - drawn[1].astype(int)).max() <= 1  # rounding to whole numbers


@pytest.mark.long
def test_steps_that_a_student_has_not_learnt_are_left_out(bench, trained, student, tmp_path):
    steps = [cell["steps"] for cell in lines_of(bench, "cell") if cell["model"] == "still"]
    assert steps == [2, 4]
    with pytest.raises(ValueError, match=r"still has learnt none of student_steps=3, 16, but 1, 2, 4, 8"):
        run(trained, make_grid(student, student_steps=(3, 16)), tmp_path / "bench")


@pytest.mark.long
def test_models_of_one_network_share_a_program(bench):
    """Euler, the reference, and one program for both students at all their steps."""
    (programs,) = lines_of(bench, "programs")
    assert programs["count"] == 3


@pytest.mark.long
def test_training_cost_is_in_units_of_the_teachers(bench, trained, student):
    models = {line["name"]: line for line in lines_of(bench, "model")}
    assert list(models) == [TEACHER, "still", "twin"]
    costs = [json.loads((folder / "config.json").read_text())["flops_per_step"] for folder in (trained, student)]
    assert models[TEACHER]["training_steps"] == 4
    assert models["still"]["training_steps"] == 1
    assert models[TEACHER]["teacher_trainings"] == 1
    np.testing.assert_allclose(models["still"]["teacher_trainings"], costs[1] / (4 * costs[0]))
    np.testing.assert_allclose(models["twin"]["teacher_trainings"], 2 * models["still"]["teacher_trainings"])
    assert models["still"]["parameters"] > models[TEACHER]["parameters"]  # the target time's embedder


@pytest.mark.long
def test_a_killed_benchmark_of_students_goes_on_and_refuses_other_students(bench, trained, student, twin, tmp_path):
    folder = shutil.copytree(bench, tmp_path / "bench")
    path = folder / step_benchmark.RESULTS
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole[:6]) + "\n" + whole[6][:40])
    run(trained, make_grid(student, twin), folder)
    assert path.read_text().splitlines()[:6] == whole[:6]  # header, models, two cells
    keys = [step_benchmark.cell_of(cell).key for cell in lines_of(folder, "cell")]
    assert sorted(keys) == sorted(step_benchmark.cell_of(cell).key for cell in lines_of(bench, "cell"))
    assert len(lines_of(folder, "model")) == 3
    header = json.loads(whole[0])
    header["students"]["twin"]["digest"] = "another"
    path.write_text("\n".join([json.dumps(header), *whole[1:]]) + "\n")
    with pytest.raises(ValueError, match="results of other students"):
        run(trained, make_grid(student, twin), folder)


@pytest.mark.long
def test_results_from_before_students_are_read_continued_and_compared(bench, trained, tmp_path):
    folder = run(trained, make_grid(), tmp_path / "old")
    path = folder / step_benchmark.RESULTS
    header, *lines = map(json.loads, path.read_text().splitlines())
    del header["students"]
    fields = ("students", "student_steps", "diversity_prompts", "diversity_seeds")
    kept = {k: v for k, v in header["grid"].items() if k not in fields}
    header["grid"] = {"_class_name": "somewhere:Grid", "pictures": kept.pop("images")} | kept
    old = [{k: v for k, v in line.items() if k not in ("model", "diversity")} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *old) if line["kind"] != "model"))
    before = len(lines_of(folder, "cell"))
    grid = make_grid(**{f.name: f.default for f in dataclasses.fields(step_benchmark.Grid) if f.name in fields})
    run(trained, grid, folder)
    assert len(lines_of(folder, "cell")) == before == 2
    assert {change.cell for change in step_report.compare(folder, bench)} == {
        "euler-uniform-g1-2",
        "euler-uniform-g1-4",
    }
    assert "Diversity" not in step_report.write(folder).read_text()


@pytest.mark.long
def test_comparing_judges_students_and_diversity(bench, tmp_path):
    worse = shutil.copytree(bench, tmp_path / "worse")
    path = worse / step_benchmark.RESULTS
    lines = list(map(json.loads, path.read_text().splitlines()))
    for line in lines:
        if line.get("model") == "still" and line["kind"] == "cell":
            line["diversity"] = {"value": 0.0, "low": 0.0, "high": 1e-9, "n": 3}
            line["rmse"] = {key: 100 * value for key, value in line["rmse"].items()}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = {(c.cell, c.what) for c in step_report.compare(bench, worse) if c.verdict == "worse"}
    cells = ("still-flow_map-uniform-g1-2", "still-flow_map-uniform-g1-4")
    assert changed >= {(cell, "rmse") for cell in cells}
    assert {cell for cell, _ in changed} == set(cells)


@pytest.mark.long
def test_the_report_shows_students_apart_and_names_their_runs(bench, student):
    text = step_report.write(bench).read_text()
    assert "still (flow_map)" in text
    assert 'class="dot c1" d="M' in text  # a diamond
    assert "Training cost" in text
    assert "Diversity against evaluations" in text
    header, lines = step_benchmark.read(bench)
    cell = next(line for line in lines if line["kind"] == "cell" and line["model"] == "still")
    assert f"--run {student} " in step_report.command(header, cell)


def test_diversity_is_the_root_of_the_mean_variance_over_seeds(trained, tmp_path):
    models = {TEACHER: generation.load_run(trained)}
    grid = make_grid(prompts=("a red circle", "a blue square", "a red circle"), batch_size=4)
    bench = step_sampling.Bench(models, grid, tmp_path)
    cell = step_benchmark.Cell("euler", "uniform", 1.0, 2)
    assert sorted(bench.varied) == ["a blue square", "a red circle"]  # different ones
    latents = np.asarray(bench.walk(cell, bench.judged)[1].x, np.float64)
    halved = np.square(latents[0::2] - latents[1::2]) / 2  # the variance of two
    np.testing.assert_allclose(bench.variances(cell), halved.mean(axis=(1, 2, 3, 4)), rtol=1e-6)
    assert np.all(bench.variances(cell) > 0)


@pytest.mark.long
def test_diversity_of_a_model_that_ignores_its_noise_is_0(trained, tmp_path, monkeypatch):
    bench = step_sampling.Bench({TEACHER: generation.load_run(trained)}, make_grid(prompts=("a circle",)), tmp_path)
    cell = step_benchmark.Cell("euler", "uniform", 1.0, 2)
    sampled = bench.walk(cell, bench.judged)[1]
    same = sampled._replace(x=np.ones_like(sampled.x))
    monkeypatch.setattr(bench, "walk", lambda cell, batch: (0.0, same))
    np.testing.assert_array_equal(bench.variances(cell), 0)


@pytest.mark.long
def test_a_students_target_is_the_guidance_that_is_distilled_into_it(trained, student, tmp_path):
    of = generation.load_run(student)
    fixed, told = (
        of._replace(objective=distillation.Shortcut(max_steps=8, guidance=guidance))
        for guidance in (
            distillation.Guidance(scale=3.0, interval=(0.1, 0.9)),
            distillation.Guidance(scale=1.0, max_scale=4.0),
        )
    )
    models = {TEACHER: generation.load_run(trained), "fixed": fixed, "told": told}
    grid = make_grid(guidance=(1.0, 2.0), prompts=("a circle",))
    bench = step_sampling.Bench(models, grid, tmp_path)
    targets = {
        name: [bench.target(cell) for cell in step_grid.student_cells(name, models[name], grid)]
        for name in models
        if name != TEACHER
    }
    assert set(targets["fixed"]) == {(3.0, (0.1, 0.9))}
    assert targets["told"] == [(1.0, None)] * 2 + [(2.0, None)] * 2


@pytest.mark.long
def test_students_that_are_none_are_refused(trained, student, tmp_path):
    with pytest.raises(ValueError, match="is not a student: it was trained with FlowMatching"):
        run(trained, make_grid(shutil.copytree(trained, tmp_path / "plain")), tmp_path / "bench")
    other = shutil.copytree(student, tmp_path / "other")
    record = json.loads((other / "config.json").read_text())
    record["data"]["latent_shape"] = [1, 2, 2, 4]
    (other / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"other draws latents \(1, 2, 2, 4\) and the run"):
        run(trained, make_grid(other), tmp_path / "bench")
    empty = shutil.copytree(student, tmp_path / "empty", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(SystemExit, match=r"empty.checkpoints holds no intact checkpoint"):
        cli.main(["bench", "--run", str(trained), "--students", str(empty), "--out", str(tmp_path / "bench")])
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        run(trained, make_grid(tmp_path), tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


@pytest.mark.long
def test_a_student_of_another_autoencoder_is_refused(trained, student):
    of = generation.load_run(student)
    other = of._replace(codec_params=jax.tree.map(lambda leaf: leaf + 1, of.codec_params))
    with pytest.raises(ValueError, match="another autoencoder"):
        step_benchmark.check_student("s", other, generation.load_run(trained))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"students": ("a/same", "b/same")}, "different names"),
        ({"students": ("a/teacher",)}, "not 'teacher'"),
        ({"student_steps": (0,)}, "student_steps"),
        ({"diversity_seeds": 1}, "diversity_seeds 2"),
    ],
)
def test_grids_of_students_that_cannot_be_meant_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        step_benchmark.Grid(**fields)
