"""A tiny teacher and its tiny student, from the command line's config to images."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from experiments import distill
from nova_jax import cli, experiment, generation
from nova_jax.evaluation import student_report
from nova_jax.training import checkpoint
from tests import tiny_run


@pytest.fixture(scope="module")
def teacher(once, tmp_path_factory):
    return shutil.copytree(once("tiny_run", tiny_run.train), tmp_path_factory.mktemp("distill") / "run")


def make_config(teacher, method="shortcut", steps=2):
    config = distill.make_config(str(teacher), method)
    return dataclasses.replace(config, steps=steps, batch_size=8, log_every=1, checkpoint_every=1, preview=None)


@pytest.fixture(scope="module")
def student(teacher):
    return experiment.run(make_config(teacher))


@pytest.mark.long
def test_a_student_lies_beside_its_teacher_and_says_whose_it_is(teacher, student):
    assert student.directory == teacher.with_name("run_shortcut")
    record = json.loads((student.directory / "config.json").read_text())
    assert record["config"]["teacher"] == str(teacher)
    forward = json.loads((teacher / "config.json").read_text())["flops_per_step"] / 3
    method = distill.METHODS["shortcut"].method
    assert record["flops_per_step"] > method.forwards * forward, "the target time is one more embedding"
    assert record["flops_per_step"] < 1.2 * method.forwards * forward


@pytest.mark.long
def test_a_student_starts_from_the_averaged_teacher(teacher, student):
    params = generation.load_run(teacher).params
    jax.tree.map(np.testing.assert_array_equal, student.state.extra["teacher"], params)


@pytest.mark.long
def test_a_student_goes_on_where_it_stopped(teacher, student):
    longer = experiment.run(make_config(teacher, steps=3))
    assert int(longer.state.step) == 3
    events = (student.directory / "events.jsonl").read_text()
    assert "resumed at step 2" in events


@pytest.mark.long
def test_a_student_draws_as_its_method_says(student):
    trained = generation.load_run(student.directory)
    settings = generation.settings_for(trained)
    assert (settings.sampler, settings.num_steps, settings.guidance_scale) == ("flow_map", 4, 1.0)
    pictures = generation.generate(trained, ["a red circle"], [0])
    np.testing.assert_array_equal(pictures, generation.generate(trained, ["a red circle"], [0], settings))
    assert [found.num_steps for found in student_report.student_settings(trained)] == [1, 2, 4, 8]


@pytest.mark.long
def test_steps_and_guidance_that_a_student_has_not_learnt_are_refused(student):
    trained = generation.load_run(student.directory)
    settings = generation.settings_for(trained)
    with pytest.raises(ValueError, match="has not learnt num_steps=3: use one of 1, 2, 4, 8, 16"):
        generation.generate(trained, ["a red circle"], [0], dataclasses.replace(settings, num_steps=3))
    with pytest.raises(ValueError, match="guidance of 2 is distilled into this student: use 1"):
        generation.generate(trained, ["a red circle"], [0], dataclasses.replace(settings, guidance_scale=4.0))


@pytest.mark.long
def test_the_command_line_draws_with_a_student(student, tmp_path, capsys):
    cli.main(["generate", "--run", str(student.directory), "a red circle", "--out", str(tmp_path)])
    assert (tmp_path / "a-red-circle-seed0.png").is_file()
    with pytest.raises(SystemExit, match="has not learnt num_steps=5"):
        cli.main(["generate", "--run", str(student.directory), "a red circle", "--num-steps", "5"])


@pytest.mark.long
def test_every_preset_makes_a_run(teacher):
    for method in distill.METHODS:
        config = distill.make_config(str(teacher), method)
        assert config.run_dir == f"{teacher}_{method}"
        assert config.model.dit.has_second_time


@pytest.mark.long
def test_a_teacher_without_a_checkpoint_and_an_unknown_method_are_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match="unknown method 'magic': choose one of guidance, progressive, shortcut"):
        distill.make_config(str(teacher), "magic")
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        distill.make_config(str(tmp_path), "shortcut")
    (tmp_path / "config.json").write_text((teacher / "config.json").read_text())
    empty = dataclasses.replace(make_config(teacher), teacher=str(tmp_path), run_dir=str(tmp_path / "student"))
    with pytest.raises((checkpoint.CheckpointError, FileNotFoundError), match="checkpoint"):
        experiment.run(empty)


def test_the_arguments_that_choose_the_config_are_taken_out():
    chosen, rest = distill.split_arguments(["teacher=runs/a", "steps=5", "objective.guidance.scale=3"])
    assert chosen == {"teacher": "runs/a", "method": distill.DEFAULT_METHOD}
    assert rest == ["steps=5", "objective.guidance.scale=3"]
