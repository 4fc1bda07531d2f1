"""Plans for simulated devices: what is compiled, extrapolated, ranked, and refused."""

import dataclasses

import jax
import pytest

from nova_jax.cli import commands
from nova_jax.parallel import rules
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.planning import hardware, plan, programs

SMALL = (
    "model.width=32",
    "model.num_heads=2",
    "data.latent_shape=(1,8,8,4)",
    "model.in_channels=4",
    "batch_size=8",
    "model.dtype=float32",
)


@pytest.fixture(scope="module")
def config():
    return programs.find("nano", [*SMALL, "model.depth=2", "data.text_length=4"])


@pytest.fixture(scope="module")
def here():
    target = hardware.find("here")
    chip = dataclasses.replace(target.chip, flops=1e12, memory=10**9, bandwidth=1e11, link=1e10)
    return dataclasses.replace(target, chip=chip)


@pytest.fixture(scope="module")
def both(config, here):
    return plan.make(config, here, [MeshConfig(data=8), MeshConfig(data=1, fsdp=8)])


@pytest.mark.long
def test_state_is_what_the_table_of_parameters_says_and_flops_are_of_the_closed_form(both, config, here):
    by_mesh = {tuple(row.mesh.items()): row for row in both.rows}
    example = programs.make_example(config)
    for axes, row in by_mesh.items():
        mesh = MeshConfig(**{"data": 1} | dict(axes)).make()
        state, _ = programs.plan_state(config, example, mesh)
        batch = sum(leaf.nbytes for leaf in jax.tree.leaves(example))
        assert row.costs.state == pytest.approx(rules.bytes_per_device(state, mesh) + batch, rel=0.02)
        assert row.fits
    assert by_mesh[("fsdp", 8),].costs.state < by_mesh[("data", 8),].costs.state / 3
    assert both.model_flops == 3 * 8 * config.model.flops((1, 8, 8), 4)


@pytest.mark.long
def test_products_of_a_program_come_to_the_closed_form(config, here):
    mesh = MeshConfig(data=8).make()
    made = programs.make_example(config)
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))
    costs = plan.measure(plain, made, here, mesh, "train")
    assert costs.flops * 8 == pytest.approx(plan.model_flops(plain, made, "train", mesh), rel=0.05)


@pytest.mark.long
def test_the_best_mesh_comes_first_and_the_table_names_each(both):
    seconds = [row.costs.seconds.seconds for row in both.rows]
    assert seconds == sorted(seconds)
    text = plan.table(both)
    assert "data=8" in text
    assert "fsdp=8" in text
    assert "does not fit" not in text


@pytest.mark.long
def test_what_does_not_fit_comes_with_what_would_help(config, here):
    tight = dataclasses.replace(here, chip=dataclasses.replace(here.chip, memory=100_000))
    text = plan.table(plan.make(dataclasses.replace(config, batch_size=16), tight, [MeshConfig(data=8)]))
    assert "data=8 does not fit into 0.09 MB of a device. What helps:" in text
    for knob in ("mesh.fsdp=8, data=1: state", "accumulate=2: ", "model.remat=full"):
        assert knob in text


@pytest.mark.slow  # three unrolled networks
def test_unrolled_depth_is_linear_in_kernels_bytes_and_exchanges(config, here):
    mesh, example = MeshConfig(data=2, fsdp=4).make(), programs.make_example(config)
    deep = plan.with_depth(config, 10)
    found = plan.measure(deep, example, here, mesh, "train")
    whole = plan.compile_costs(deep, example, here, mesh, "train")
    assert sum(found.kernels.values()) == pytest.approx(sum(whole.kernels.values()), rel=0.02)
    assert sum(found.traffic.values()) == pytest.approx(sum(whole.traffic.values()), rel=0.02)
    assert found.flops == pytest.approx(whole.flops, rel=1e-6)
    assert found.state == pytest.approx(whole.state, rel=0.01)
    assert found.activations == pytest.approx(whole.activations, rel=0.1)
    for axis in ("data", "fsdp"):
        assert found.sent[axis] == pytest.approx(whole.sent[axis], rel=0.02)


def test_an_evaluation_of_sampling_holds_parameters_alone(config, here):
    found = plan.make(config, here, [MeshConfig(data=8)], "sample")
    assert 4 * found.parameters <= found.rows[0].costs.state < 1.2 * 4 * found.parameters
    assert found.model_flops == 2 * 8 * config.model.flops((1, 8, 8), 4)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("XXL", (), "there is no experiment 'XXL': give a module, as experiments.quickstart, or one of nano"),
        ("experiments.reel", (), "the data of experiments.reel is only made when it starts"),
        ("experiments.studies", (), "has no CONFIG"),
        ("nano", ("model.dept=2",), "dept"),
    ],
)
def test_what_cannot_be_planned_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        programs.find(name, changes)


def test_meshes_and_batches_that_do_not_divide_are_refused(config, here):
    assert plan.read_mesh("data=2,context=4") == MeshConfig(data=2, context=4)
    for text in ("data", "rows=8", "data=2,data=4", "data=2 fsdp=4"):
        with pytest.raises(ValueError, match=f"--mesh {text}: give axes of data, fsdp, context, tensor"):
            plan.read_mesh(text)
    with pytest.raises(ValueError, match="needs at least 16 devices, but there are 8"):
        plan.make(config, here, [MeshConfig(data=16)])
    with pytest.raises(ValueError, match="batch_size 4 does not divide over data x fsdp = 8 x 1"):
        plan.make(dataclasses.replace(config, batch_size=4), here, [MeshConfig(data=8)])


@pytest.mark.long
def test_the_command_prints_a_table_for_each_program(capsys):
    commands.main(["plan", "nano", *SMALL, "model.depth=1", "--target", "here", "--mesh", "data=8"])
    text = capsys.readouterr().out
    assert "training step" in text
    assert "guided evaluation" in text
    with pytest.raises(SystemExit, match="nova: unknown target 'mars'"):
        commands.main(["plan", "nano", "--target", "mars"])
