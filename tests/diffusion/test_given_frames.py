"""Given frames: what training counts, and what held sampling reaches when the answer is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import sampling
from nova_jax.diffusion import (
    FlowMatching,
    GivenFrames,
    MinSNR,
    RectifiedFlow,
    TimeNoise,
    Uniform,
    VariancePreservingCosine,
    classifier_free,
    given_frames,
    hold,
)
from nova_jax.diffusion import prediction as predictions
from nova_jax.diffusion.denoiser import declare, evaluations
from nova_jax.sampling import Heun, noise, time_grids
from nova_jax.types import Batch, Conditioning, Denoised

FRAMES = 5
MEAN = np.linspace(-0.5, 0.8, FRAMES)
COV = 0.5 * np.exp(-np.abs(np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES))) / 2) + 0.1 * np.eye(FRAMES)
PATTERNS = {"first": [0], "ends": [0, 4], "prefix": [0, 1, 2]}


def exact_denoiser(schedule):
    """The conditional mean for frames of one pixel ~ N(MEAN, COV), each at its own noise level."""

    def denoise(x, t, cond):
        t = jnp.broadcast_to(t if t.ndim == 2 else t[:, None], x.shape[:2])
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        seen = COV[None] * alpha[:, :, None] * alpha[:, None, :] + jnp.eye(FRAMES)[None] * sigma[:, :, None] ** 2
        residual = x.reshape(t.shape) - alpha * MEAN[None]
        x0 = MEAN[None] + jnp.einsum("ij,bj->bi", COV, alpha * jnp.linalg.solve(seen, residual[..., None])[..., 0])
        return predictions.denoised_from("x0", x0.reshape(x.shape), x, t, schedule)

    return denoise


def wild_denoiser(x, t, cond):
    """Any answer, different on every frame."""
    t = predictions.right_pad(t, x)
    return Denoised(jnp.sin(3 * x) + t, jnp.cos(x))


def as_frames(values):
    return jnp.asarray(values).reshape(*np.shape(values), 1, 1, 1)


def make_mask(rows, given):
    return jnp.broadcast_to(jnp.isin(jnp.arange(FRAMES), jnp.asarray(given))[None], (rows, FRAMES))


@pytest.mark.parametrize(
    ("schedule", "pattern"),
    [*((RectifiedFlow(), pattern) for pattern in PATTERNS), (VariancePreservingCosine(), "ends")],
)
def test_held_sampling_reaches_the_exact_conditional_mean_and_covariance(float64, schedule, pattern):
    given = PATTERNS[pattern]
    free = [i for i in range(FRAMES) if i not in given]
    known = np.random.default_rng(1).standard_normal(FRAMES)
    weights = COV[np.ix_(free, given)] @ np.linalg.inv(COV[np.ix_(given, given)])
    mean = MEAN[free] + weights @ (known - MEAN)[given]
    cov = COV[np.ix_(free, free)] - weights @ COV[np.ix_(given, free)]

    rows = FRAMES + 1  # the walk is affine in the noise: the images of 0 and of each unit vector say all
    start = as_frames(np.concatenate([np.zeros((1, FRAMES)), np.eye(FRAMES)]))
    latents = as_frames(np.broadcast_to(known, (rows, FRAMES)))
    denoise = hold(exact_denoiser(schedule), latents, make_mask(rows, given), schedule=schedule)
    times = time_grids.uniform_angle(200, schedule, std=0.5)
    walk = jax.jit(lambda x: sampling.sample(denoise, x, sampler=Heun(), times=times, schedule=schedule).x)
    drawn = np.asarray(walk(start)).reshape(rows, FRAMES)
    slopes = drawn[1:] - drawn[:1]
    np.testing.assert_allclose(drawn[0, free], mean, atol=3e-3)
    np.testing.assert_allclose(slopes[:, free].T @ slopes[:, free], cov, atol=3e-3)
    np.testing.assert_array_equal(slopes[given][:, free], 0)  # given frames of the noise have no effect
    np.testing.assert_allclose(drawn[:, given], np.broadcast_to(known[given], (rows, len(given))), atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_every_sampler_keeps_given_frames(float64, name):
    schedule, rows = RectifiedFlow(), 2
    latents = jax.random.normal(jax.random.key(0), (rows, FRAMES, 1, 1, 2))
    eps = noise.initial_noise([3, 4], latents.shape[1:])
    mask = jnp.asarray([[True, False, False, False, True], [True, True, False, False, False]])
    denoise = hold(wild_denoiser, latents, mask, schedule=schedule, eps=eps)

    @jax.jit
    def walk(eps):
        cond = Conditioning(text=jnp.zeros((rows, 1, 1)))
        grid, keys = time_grids.uniform(6), noise.keys_from_seeds([3, 4])
        return sampling.sample(
            denoise, eps, sampler=sampling.named(name), times=grid, schedule=schedule, cond=cond, key=keys
        ).x

    drawn = walk(eps)
    np.testing.assert_allclose(drawn[mask], latents[mask], atol=1e-9)
    pasted = given_frames.paste(drawn, latents, mask)
    np.testing.assert_array_equal(pasted[mask], latents[mask])
    np.testing.assert_array_equal(pasted[~mask], drawn[~mask])


def test_guidance_inside_and_outside_are_the_same(float64):
    schedule, rows = RectifiedFlow(), 3
    latents, x = (jax.random.normal(jax.random.key(i), (rows, FRAMES, 1, 1, 2)) for i in (0, 1))
    mask = make_mask(rows, [0, 2]) & jnp.asarray([[True], [True], [False]])
    cond = jnp.arange(rows)[:, None] + jnp.ones((rows, 1))

    def conditional(x, t, cond):
        return jax.tree.map(lambda a: a * predictions.right_pad(cond[:, 0], a), wild_denoiser(x, t, cond))

    keep = functools.partial(hold, latents=latents, mask=mask, schedule=schedule)
    guide = functools.partial(classifier_free, scale=2.5, null=jnp.zeros_like)
    t = jnp.asarray([0.9, 0.5, 0.1])
    inside, outside = jax.jit(lambda: (keep(guide(conditional))(x, t, cond), guide(keep(conditional))(x, t, cond)))()
    for a, b in zip(inside, outside, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    np.testing.assert_allclose(inside.x0[mask], latents[mask])
    held = keep(declare(conditional, lambda t: 3))
    assert evaluations(held, jnp.ones(())) == 3


def test_the_denoiser_is_shown_given_frames_at_their_own_level_and_never_above_the_others():
    def spy(x, t, cond):
        seen.append((x, t))
        return Denoised(x, x)

    schedule = RectifiedFlow()
    latents, x, eps = (jax.random.normal(jax.random.key(i), (1, FRAMES, 2, 2, 3)) for i in range(3))
    denoise = hold(spy, latents, make_mask(1, [0]), 0.25, schedule=schedule, eps=eps)

    @jax.jit
    def show(t):
        seen.clear()
        denoise(x, t, None)
        return seen[0]

    seen = []
    for t, level in ((0.8, 0.25), (0.1, 0.1)):
        shown, times = show(jnp.asarray([t]))
        np.testing.assert_allclose(times, [[level] + [t] * (FRAMES - 1)])
        np.testing.assert_allclose(shown[:, 0], (1 - level) * latents[:, 0] + level * eps[:, 0], rtol=1e-6)
        np.testing.assert_array_equal(shown[:, 1:], x[:, 1:])


def test_noise_that_is_not_given_is_refused():
    latents = jnp.zeros((1, FRAMES, 1, 1, 1))
    with pytest.raises(ValueError, match="pass eps"):
        hold(wild_denoiser, latents, make_mask(1, [0]), 0.5, schedule=RectifiedFlow())
    with pytest.raises(ValueError, match=r"a time in \[0, 1\]"):
        hold(wild_denoiser, latents, make_mask(1, [0]), 2, schedule=RectifiedFlow())


def draw(given, frames=FRAMES, count=20_000, t=0.7):
    return jax.jit(given.sample)(jax.random.key(0), jnp.full((count, frames), t))


def test_patterns_come_in_their_shares():
    drawn = draw(GivenFrames(first=0.3, ends=0.2, prefix=0.4))
    patterns = np.asarray(drawn.counts == 0)
    assert not patterns.all(axis=1).any()
    rows, counts = np.unique(patterns, axis=0, return_counts=True)
    shares = {tuple(np.flatnonzero(row)): count / len(patterns) for row, count in zip(rows, counts, strict=True)}
    expected = {(): 0.1, (0,): 0.3 + 0.1, (0, 4): 0.2, (0, 1): 0.1, (0, 1, 2): 0.1, (0, 1, 2, 3): 0.1}
    assert shares.keys() == expected.keys()
    for pattern, share in expected.items():
        assert abs(shares[pattern] - share) < 4 * np.sqrt(share / len(patterns)), pattern
    np.testing.assert_array_equal(drawn.times, np.where(patterns, np.float32(0), np.float32(0.7)))
    np.testing.assert_allclose(drawn.counts.mean(axis=1), 1, rtol=1e-6)


def test_two_frames_leave_one_free():
    patterns = np.asarray(draw(GivenFrames(first=0.0, ends=0.5, prefix=0.5), frames=2, count=100).counts == 0)
    np.testing.assert_array_equal(patterns, np.broadcast_to([True, False], (100, 2)))


@pytest.mark.parametrize("shares", [(0.5, 0.4, 0.2), (-0.1, 0.0, 0.0)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="at most 1 in all"):
        GivenFrames(first=shares[0], ends=shares[1], prefix=shares[2])


def test_the_guard_rises_with_time_and_stays_below_its_limit():
    guard = TimeNoise(max_level=0.6)
    u, t = jnp.meshgrid(jnp.linspace(0.01, 0.99, 21), jnp.linspace(0, 1, 21), indexing="ij")
    levels = np.asarray(jax.jit(guard.quantile)(u, t))
    assert (np.diff(levels, axis=0) > 0).all()
    assert (np.diff(levels[:, 6:], axis=1) > 0).all()  # t^5 is flat near 0
    assert (np.diff(levels, axis=1) >= 0).all()
    assert 0 < levels.min() < levels.max() < 0.6

    means = []
    for t in (0.2, 0.9):
        drawn = draw(GivenFrames(first=0.0, ends=1.0, prefix=0.0, guard=guard), count=2000, t=t)
        np.testing.assert_array_equal(drawn.times[:, 0], drawn.times[:, -1])  # one level for a sample
        np.testing.assert_allclose(drawn.times[:, 1], t)
        means.append(float(drawn.times[:, 0].mean()))
    assert means[1] > means[0] + 0.05


def test_the_guard_leaves_a_share_of_samples_clean():
    guard = TimeNoise(clean=0.25)
    drawn = draw(GivenFrames(first=1.0, ends=0.0, prefix=0.0, guard=guard), count=4000)
    assert abs(float((drawn.times[:, 0] == 0).mean()) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    assert float(guard.quantile(jnp.asarray(1 - 1e-6), jnp.ones(()))) > 0.49


def constant_network(params, x, t, cond):
    return jnp.zeros_like(x) + params["shift"]


@functools.partial(jax.jit, static_argnums=0)
def evaluate(objective, shift, batch, seed=0):
    return objective(constant_network, {"shift": shift}, batch, jax.random.key(seed))


def slopes_of(objective, shape, batch):
    return jax.grad(lambda shift: evaluate(objective, shift, batch, 1)[0])(jnp.zeros(shape))


def make_batch(frames=4, rows=6):
    values = jnp.broadcast_to(jnp.arange(1.0, frames + 1)[None, :, None, None, None], (rows, frames, 2, 2, 1))
    return Batch(values)


@pytest.mark.parametrize(("shares", "free"), [((1, 0, 0), [1, 2, 3]), ((0, 1, 0), [1, 2]), ((0, 0, 0), [0, 1, 2, 3])])
def test_the_loss_is_the_mean_over_free_frames(shares, free):
    given = GivenFrames(first=float(shares[0]), ends=float(shares[1]), prefix=float(shares[2]))
    objective = FlowMatching(prediction="x0", given=given)
    loss, metrics = evaluate(objective, 0.0, make_batch())
    np.testing.assert_allclose(loss, np.mean([(i + 1.0) ** 2 for i in free]), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_by_time"].sum(), loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["share_by_time"].sum(), 1, rtol=1e-6)


def test_a_sample_counts_alike_however_many_of_its_frames_are_given():
    objective = FlowMatching(prediction="x0", given=GivenFrames(first=0.0, ends=0.0, prefix=1.0))
    batch = Batch(jnp.ones((8, 4, 2, 2, 1)))
    slopes = slopes_of(objective, (8, 1, 1, 1, 1), batch)
    np.testing.assert_allclose(slopes, -2 / 8, rtol=1e-6)


@pytest.mark.parametrize("weighting", [None, MinSNR()])
def test_given_frames_receive_no_gradient(weighting):
    changes = {} if weighting is None else {"weighting": weighting}
    objective = FlowMatching(given=GivenFrames(first=1.0, ends=0.0, prefix=0.0), **changes)
    batch = make_batch()
    slopes = slopes_of(objective, batch.x0.shape, batch)
    assert not np.any(slopes[:, 0])
    assert np.all(slopes[:, 1:] != 0)
    assert np.all(np.isfinite(slopes))


def test_single_frames_and_no_choice_keep_the_program_to_the_letter():
    def program(objective, batch):
        params, key = {"shift": 0.0}, jax.random.key(0)
        return str(jax.make_jaxpr(lambda params, key: objective(constant_network, params, batch, key))(params, key))

    plain, giving = FlowMatching(time_sampling=Uniform()), FlowMatching(time_sampling=Uniform(), given=GivenFrames())
    assert program(plain, make_batch(frames=1)) == program(giving, make_batch(frames=1))
    assert program(plain, make_batch()) != program(giving, make_batch())


def test_the_start_has_the_spread_of_the_marginal():
    schedule = RectifiedFlow()
    eps = jax.random.normal(jax.random.key(0), (1000, 4))
    np.testing.assert_array_equal(noise.start(eps, jnp.ones(()), schedule), eps)
    late = noise.start(eps, jnp.asarray(0.6), schedule, std=0.5)
    np.testing.assert_allclose(late, eps * np.sqrt(0.2**2 + 0.6**2), rtol=1e-6)
