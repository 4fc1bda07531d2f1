"""The training step: reproducible, sharded equal to single, and deaf to gradients that are not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import objectives
from nova_jax.models import dit, text, text_to_latent
from nova_jax.parallel import distributed, rules
from nova_jax.parallel import mesh as meshes
from nova_jax.training import optimizer, step
from nova_jax.types import Batch, Conditioning
from tests.training import toy

FACTORIZATIONS = [(d, f, 1, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]
WITH_CONTEXT = [(1, 2, 2, 2)]


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Half the compile time, and the same arithmetic on both sides of every comparison."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def start_toy(key):
    return step.start(toy.init_params(key), toy.OPTIMIZER)


@functools.cache
def initial_state():
    return jax.device_get(step.build(start_toy, jax.random.key(0)))


def new_state(mesh=None):
    """The same state every time, on one device or on a mesh; a copy, since steps donate it."""
    state = jax.tree.map(jnp.array, initial_state())
    return state if mesh is None else jax.device_put(state, rules.shardings(state, mesh))


def train(train_step, state, batches):
    """Losses and the last state; the given state is donated."""
    losses = []
    for batch in batches:
        state, metrics = train_step(state, batch)
        losses.append(np.asarray(metrics["loss"]))
    return np.stack(losses), state


def toy_batches(number=5):
    return [toy.rows(i * toy.BATCH) for i in range(number)]


def relative_error(tree, reference):
    """The largest relative error, in the 2-norm, of any leaf."""
    pairs = zip(jax.tree.leaves(jax.device_get(tree)), jax.tree.leaves(jax.device_get(reference)), strict=True)
    return max(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30) for a, b in pairs)


@pytest.fixture(scope="module")
def train_step():
    return step.make_step(toy.objective, toy.network, toy.OPTIMIZER)


@pytest.fixture(scope="module")
def single_device(train_step):
    return train(train_step, new_state(), toy_batches())


@pytest.mark.long
def test_two_runs_agree_to_the_bit(train_step, single_device):
    losses, state = train(train_step, new_state(), toy_batches())
    np.testing.assert_array_equal(losses, single_device[0])
    jax.tree.map(np.testing.assert_array_equal, state, single_device[1])


@pytest.mark.long
def test_noise_depends_on_seed_and_step_alone(train_step):
    def mean_t(train_step, number):
        state = new_state()._replace(step=jnp.int32(number))
        return float(train_step(state, toy.rows(0))[1]["mean_t"])

    other_seed = step.make_step(toy.objective, toy.network, toy.OPTIMIZER, seed=1)
    assert mean_t(train_step, 0) == mean_t(train_step, 0)
    assert len({mean_t(train_step, 0), mean_t(train_step, 1), mean_t(other_seed, 0)}) == 3


def make_mesh(sizes):
    return meshes.MeshConfig(**dict(zip(meshes.AXES, sizes, strict=True))).make()


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes", FACTORIZATIONS + WITH_CONTEXT, ids=lambda sizes: "data{}-fsdp{}-context{}-tensor{}".format(*sizes)
)
def test_every_mesh_of_eight_devices_trains_like_one_device(sizes, single_device):
    mesh = make_mesh(sizes)
    sharding = meshes.batch_sharding(mesh)
    batches = [distributed.global_batch(batch, sharding, toy.BATCH) for batch in toy_batches()]
    train_step = step.make_step(toy.objective, toy.network, toy.OPTIMIZER)
    placed = rules.shardings(initial_state(), mesh)
    with jax.set_mesh(mesh):
        losses, state = train(train_step, new_state(mesh), batches)
    np.testing.assert_allclose(losses, single_device[0], rtol=1e-5)
    assert relative_error(state.params, single_device[1].params) < 1e-5
    assert jax.tree.map(lambda a: a.sharding, state) == placed
    assert train_step._cache_size() == 1, "one compilation serves every step"


@pytest.mark.long
def test_muon_trains_on_a_mesh_like_on_one_device():
    choice = optimizer.Muon(peak=3e-3, warmup=5, weight_decay=0.01)

    def trained(mesh):
        state = step.build(lambda params: step.start(params, choice), initial_state().params, mesh=mesh)
        batches = toy_batches()
        if mesh is not None:
            batches = [distributed.global_batch(batch, meshes.batch_sharding(mesh), toy.BATCH) for batch in batches]
        return train(step.make_step(toy.objective, toy.network, choice), state, batches)

    reference_losses, reference = trained(None)
    for sizes in [(8, 1, 1, 1), (1, 8, 1, 1), (1, 2, 1, 4), (2, 2, 1, 2), *WITH_CONTEXT]:
        mesh = make_mesh(sizes)
        with jax.set_mesh(mesh):
            losses, state = trained(mesh)
        np.testing.assert_allclose(losses, reference_losses, rtol=1e-5, err_msg=str(sizes))
        error = relative_error(state.params, reference.params)
        print(f"{sizes}: parameters within {error:.2g}")
        assert error < 1e-5, sizes


class Real:
    """The DiT with its byte encoder, at a size that compiles in seconds."""

    batch_size = 8
    optimizer = optimizer.AdamW(peak=1e-3, warmup=1)
    module = text_to_latent.TextToLatent(
        dit=dit.DiT(width=32, depth=2, num_heads=8, in_channels=4, text_dim=16, freq_dim=32, gate_init="random"),
        text_encoder=text.ByteTextEncoder(width=16, depth=1, num_heads=8, byte_width=8),
    )

    def batches(self):
        rng = np.random.default_rng(0)
        ids, mask = text.encode_bytes([f"an image of {i}" for i in range(self.batch_size)], 16)
        cond = Conditioning(text_ids=ids, text_mask=mask)
        shape = (self.batch_size, 2, 8, 8, 4)
        return [Batch(rng.standard_normal(shape, np.float32), cond) for _ in range(5)]

    def params(self):
        """Past initialisation: the zeros of the head and elsewhere are gone, or every other gradient would be zero."""
        batch = self.batches()[0]
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), batch.x0, jnp.zeros(self.batch_size), batch.cond)
        rng = np.random.default_rng(1)
        return jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) * a.shape[-1] ** -0.5, shapes["params"])

    def network(self, params, x, t, cond):
        return self.module.apply({"params": params}, x, t, cond)

    def train(self, mesh):
        state = step.build(lambda params: step.start(params, self.optimizer), self.params(), mesh=mesh)
        batches = self.batches()
        if mesh is not None:
            sharding = meshes.batch_sharding(mesh)
            batches = [distributed.global_batch(batch, sharding, self.batch_size) for batch in batches]
        return train(step.make_step(objectives.FlowMatching(), self.network, self.optimizer), state, batches)


def check_real_model(meshes_of_eight):
    reference_losses, reference = Real().train(None)
    for sizes in meshes_of_eight:
        mesh = make_mesh(sizes)
        with jax.set_mesh(mesh):
            losses, state = Real().train(mesh)
        np.testing.assert_allclose(losses, reference_losses, rtol=1e-5, err_msg=str(sizes))
        error = relative_error(state.params, reference.params)
        print(f"{sizes}: parameters within {error:.2g}")
        assert error < 1e-5, sizes


@pytest.mark.long
def test_text_to_latent_trains_on_a_mesh_like_on_one_device():
    check_real_model([(2, 2, 1, 2)])


@pytest.mark.slow
def test_text_to_latent_trains_on_every_mesh_like_on_one_device():
    check_real_model(FACTORIZATIONS + WITH_CONTEXT)


@pytest.mark.long
def test_accumulated_gradients_equal_those_of_the_whole_batch():
    def plain(network, params, batch, key):
        t = jnp.full(batch.x0.shape[:1], 0.5)
        return jnp.mean((network(params, batch.x0, t, batch.cond) - 1) ** 2), {}

    def params(accumulate, mesh=None):
        batches = toy_batches(3)
        if mesh is not None:
            batches = [distributed.global_batch(b, meshes.batch_sharding(mesh), toy.BATCH) for b in batches]
        train_step = step.make_step(plain, toy.network, toy.OPTIMIZER, accumulate=accumulate)
        return train(train_step, new_state(mesh), batches)[1].params

    mesh = meshes.MeshConfig(data=1, fsdp=2, tensor=4).make()
    with jax.set_mesh(mesh):
        parts = params(4, mesh)
    assert relative_error(parts, params(1)) < 1e-5


def test_a_batch_that_cannot_be_accumulated_evenly_is_refused():
    train_step = step.make_step(toy.objective, toy.network, toy.OPTIMIZER, accumulate=3)
    with pytest.raises(ValueError, match="batch of 8 cannot be accumulated in 3 equal parts"):
        train_step(new_state(), toy.rows(0))


@pytest.mark.long
def test_ema_follows_its_recursion_and_starts_fast(train_step):
    state = new_state()
    expected = jax.device_get(state.ema)
    for number in range(5):
        state, _ = train_step(state, toy.rows(number * toy.BATCH))
        decay = (1 + number) / (10 + number)
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, jax.device_get(state.params))
    assert relative_error(state.ema, expected) < 1e-6


def test_the_warm_up_of_the_ema_ends_at_its_decay():
    def weight_of_the_past(number, decay):
        ema = step.update_ema({"p": jnp.ones(3)}, {"p": jnp.zeros(3)}, jnp.int32(number), decay)
        return float(ema["p"][0])

    assert weight_of_the_past(0, 0.5) == pytest.approx(0.1)
    assert weight_of_the_past(8, 0.5) == weight_of_the_past(10**6, 0.5) == 0.5
    assert weight_of_the_past(10**6, 0.9999) == pytest.approx(0.9999)


@pytest.mark.long
def test_a_step_that_is_not_finite_changes_nothing(train_step):
    _, state = train(train_step, new_state(), toy_batches(2))
    before = jax.device_get(state)
    bad = toy.rows(0)._replace(x0=np.full((toy.BATCH, *toy.SHAPE), np.nan, np.float32))
    after, metrics = train_step(state, bad)
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)


def test_a_finite_loss_with_infinite_gradient_is_not_finite():
    def root(network, params, batch, key):  # the slope of a square root at 0
        return jnp.sqrt(0.0 * params["head"]["kernel"][0, 0]), {}

    state, metrics = step.make_step(root, toy.network, toy.OPTIMIZER)(new_state(), toy.rows(0))
    assert np.isfinite(metrics["loss"])
    assert not metrics["finite"]
    assert int(state.step) == 0


@pytest.mark.long
def test_metrics_report_the_rate_of_the_step_and_the_gradient_before_clipping(train_step):
    _, metrics = train_step(new_state(), toy.rows(0))
    assert float(metrics["learning_rate"]) == pytest.approx(toy.OPTIMIZER.peak / toy.OPTIMIZER.warmup)
    assert float(metrics["grad_norm"]) > toy.OPTIMIZER.clip_norm


def test_a_planned_state_has_the_shapes_and_shardings_of_the_real_one():
    mesh = meshes.MeshConfig(data=1, fsdp=4, tensor=2).make()
    abstract = step.plan(start_toy, jax.random.key(0), mesh=mesh)
    state = step.build(start_toy, jax.random.key(0), mesh=mesh)
    described = jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), state)
    assert described == jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), abstract)


@pytest.mark.long
def test_fine_tuning_state_leaves_the_given_parameters_usable(train_step):
    params = toy.init_params(jax.random.key(0))
    train_step(step.build(lambda params: step.start(params, toy.OPTIMIZER), params), toy.rows(0))
    assert np.isfinite(np.asarray(params["head"]["kernel"])).all()


@pytest.mark.long
def test_extra_state_is_placed_by_the_rules_of_its_parameters_and_passes_through_the_step():
    mesh = meshes.MeshConfig(data=1, fsdp=8).make()
    batch = distributed.global_batch(toy.rows(0), meshes.batch_sharding(mesh), toy.BATCH)
    with jax.set_mesh(mesh):
        state = step.build(
            lambda key: step.start(
                toy.init_params(key),
                toy.OPTIMIZER,
                lambda params: {"teacher": params, "key": jax.random.key(7)},
            ),
            jax.random.key(0),
            mesh=mesh,
        )
        placed = jax.tree.map(lambda a: a.sharding, state)
        assert placed.extra["teacher"] == placed.params
        teacher = jax.device_get(state.extra["teacher"])
        state, _ = step.make_step(toy.objective, toy.network, toy.OPTIMIZER)(state, batch)
    assert jax.tree.map(lambda a: a.sharding, state) == placed
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.extra["teacher"]), teacher)
    assert jax.random.key_data(state.extra["key"]).tolist() == [0, 7]
