import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import rope, stack
from nova_jax.models import dit
from nova_jax.types import Conditioning

SIZES = {"width": 24, "depth": 2, "num_heads": 2, "in_channels": 3, "text_dim": 5, "freq_dim": 16}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, T = normal(2, 3, 4, 6, 3), jnp.asarray([0.3, 0.8])
TEXT = Conditioning(text=normal(2, 4, 5, seed=1), text_mask=jnp.asarray([[True, True, False, False], [True] * 4]))
ALL_INPUTS = {
    "pooled_dim": 7, "aligned_channels": 2, "num_frame_roles": 2, "has_second_time": True, "has_guidance": True,
    "has_palette": True, "num_tasks": 3,
}  # fmt: skip
ALL_GIVEN = TEXT._replace(
    pooled=normal(2, 7, seed=4),
    aligned=normal(2, 3, 4, 6, 2, seed=2),
    frames=normal(2, 2, 4, 6, 3, seed=3),
    frame_roles=jnp.asarray([[0, 1], [1, 1]]),
    frame_times=jnp.asarray([[0.0, 0.2], [0.1, 0.5]]),
    r=T / 2,
    guidance_scale=jnp.asarray([2.0, 5.0]),
    palette=normal(2, 4, 3, seed=5),
    palette_mask=jnp.asarray([[True, True, True, False], [True, False, False, False]]),
    task=jnp.asarray([0, 2]),
)


@functools.cache
def make(**fields):
    """A small network and its parameters at initialisation."""
    model = dit.DiT(**{**SIZES, **fields})
    return model, jax.jit(model.init)(jax.random.key(0), X, T, TEXT)["params"]


@functools.cache
def make_trained(**fields):
    """A network whose parameters are all random, those that start at zero or one included."""
    model = dit.DiT(**{**SIZES, **fields})
    rng = np.random.default_rng(0)

    def draw(path, shape):
        noise = rng.standard_normal(shape.shape)
        name = path[-1].key
        values = noise / shape.shape[-2] ** 0.5 if name == "kernel" else (name == "scale") + 0.2 * noise
        return jnp.asarray(values, shape.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), X, T, TEXT)["params"]
    return model, jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def compiled(model):
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args))


@functools.cache
def gradient_of_energy(model):
    return jax.jit(jax.grad(lambda params, *args: jnp.sum(model.apply({"params": params}, *args) ** 2)))


def apply(model_and_params, *args):
    model, params = model_and_params
    return np.asarray(compiled(model)(params, *args))


def test_every_block_is_the_identity_at_initialisation():
    x = normal(2, 6, 24)
    block = dit.Block(2, 48, "per_head", True, 1e-6, "zero", None, jnp.float32)

    @jax.jit
    def run(key):
        shared = jnp.zeros((2, 1, 6 * 24))  # time_modulation starts at zero
        context = dit.Context(shared, normal(2, 4, 24), None, rope.grid_rotation(np.arange(6), 1, 1, 12))
        return block.init_with_output(key, x, context)[0][0]

    np.testing.assert_array_equal(run(jax.random.key(0)), x)


@pytest.mark.long
def test_the_output_is_zero_at_initialisation():
    assert not apply(make(gate_init="random"), X, T, TEXT).any()


@pytest.mark.long
def test_new_inputs_change_nothing_until_they_are_trained():
    _, old = make_trained()
    model, new = make(**ALL_INPUTS)
    grown = (model, {**new, **old})
    given = ALL_GIVEN._replace(frames=None, frame_roles=None, frame_times=None, palette=None, task=None)
    np.testing.assert_allclose(apply(grown, X, T, given), apply(make_trained(), X, T, TEXT), atol=1e-6)

    gradient = gradient_of_energy(model)(grown[1], X, T, ALL_GIVEN)
    added = set(new) - set(old)
    assert added == {"pooled_embed", "patch_embed_aligned", "frame_roles", "time_embed_r", "guidance_embed"} | {
        "palette_embed",
        "task_embed",
    }
    assert all(any(np.any(leaf) for leaf in jax.tree.leaves(gradient[name])) for name in added)


@pytest.mark.long
def test_every_parameter_matters_once_away_from_initialisation():
    model, params = make_trained(**ALL_INPUTS)
    gradient = gradient_of_energy(model)(params, X, T, ALL_GIVEN)
    assert not [
        jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(g)
    ]


def test_every_input_matters_once_the_network_is_trained():
    others = {
        "text": normal(2, 4, 5, seed=8),
        "pooled": normal(2, 7, seed=8),
        "aligned": normal(2, 3, 4, 6, 2, seed=8),
        "frames": normal(2, 2, 4, 6, 3, seed=8),
        "frame_roles": jnp.asarray([[1, 0], [0, 0]]),
        "frame_times": jnp.asarray([[0.3, 0.0], [0.0, 0.0]]),
        "r": T / 3,
        "guidance_scale": jnp.asarray([1.0, 7.0]),
        "palette": normal(2, 4, 3, seed=8),
        "palette_mask": jnp.ones((2, 4), bool),
        "task": jnp.asarray([1, 1]),
    }
    network = make_trained(**ALL_INPUTS)
    before = apply(network, X, T, ALL_GIVEN)
    for name, other in others.items():
        after = apply(network, X, T, ALL_GIVEN._replace(**{name: other}))
        assert after.shape == X.shape
        assert np.all(np.abs(after - before).max((1, 2, 3, 4)) > 1e-3), name


def test_time_per_frame_with_equal_times_is_time_per_sample():
    network = make_trained()
    per_frame = jnp.broadcast_to(T[:, None], (2, 3))
    np.testing.assert_allclose(apply(network, X, per_frame, TEXT), apply(network, X, T, TEXT), atol=1e-5)


def test_time_per_frame_reaches_each_frame():
    network = make_trained()
    moved = jnp.broadcast_to(T[:, None], (2, 3)).at[:, 1].set(0.0)
    change = np.abs(apply(network, X, moved, TEXT) - apply(network, X, T, TEXT)).mean((0, 2, 3, 4))
    assert change[1] > 2 * change[[0, 2]].max()


@pytest.mark.long
def test_the_derivative_in_t_at_r_equal_t_is_that_from_above():
    model, params = make_trained(has_second_time=True)
    cond = TEXT._replace(r=T)

    @jax.jit
    def slope(t):
        return jax.jvp(lambda t: model.apply({"params": params}, X, t, cond), (t,), (jnp.ones_like(t),))[1]

    h = 2e-5  # small against the shortest wavelength, 2 pi / time_scale
    above = (apply((model, params), X, T + h, cond) - apply((model, params), X, T, cond)) / h
    assert np.linalg.norm(slope(T) - above) / np.linalg.norm(above) < 0.05


def test_without_r_the_second_time_is_t():
    network = make_trained(has_second_time=True)
    np.testing.assert_array_equal(apply(network, X, T, TEXT), apply(network, X, T, TEXT._replace(r=T)))


def test_masked_text_has_no_influence():
    network = make_trained()
    noise = TEXT._replace(text=TEXT.text + 10 * ~TEXT.text_mask[:, :, None])
    np.testing.assert_array_equal(apply(network, X, T, noise), apply(network, X, T, TEXT))


def test_a_network_that_does_not_mask_text_reads_masked_states_as_zeros():
    network = make_trained(masks_text=False)
    zeroed = TEXT._replace(text=TEXT.text * TEXT.text_mask[:, :, None])
    np.testing.assert_array_equal(apply(network, X, T, TEXT), apply(network, X, T, zeroed))
    assert np.abs(apply(network, X, T, TEXT) - apply(make_trained(), X, T, TEXT)).max() > 1e-3


@pytest.mark.parametrize("masks_text", [True, False])
def test_a_text_mask_of_ones_and_zeros_is_one_of_booleans(masks_text):
    network = make_trained(masks_text=masks_text)
    whole = TEXT._replace(text_mask=TEXT.text_mask.astype(jnp.int32))
    np.testing.assert_array_equal(apply(network, X, T, whole), apply(network, X, T, TEXT))


def test_a_text_mask_of_floats_is_refused():
    model, params = make_trained(masks_text=False)
    with pytest.raises(TypeError, match="a mask of float32: give booleans, or the integers 1"):
        model.apply({"params": params}, X, T, TEXT._replace(text_mask=TEXT.text_mask.astype(jnp.float32)))


def test_no_text_is_the_null_caption_of_zeros():
    network = make_trained()
    null = TEXT._replace(text=0 * TEXT.text, text_mask=jnp.asarray([[True, False, False, False]] * 2))
    np.testing.assert_allclose(apply(network, X, T, None), apply(network, X, T, null), atol=1e-5)


def test_samples_do_not_see_each_other():
    network = make_trained()
    other = jax.tree.map(lambda a: a[jnp.array([0, 0])], (X, T, TEXT))
    np.testing.assert_allclose(apply(network, *other)[0], apply(network, X, T, TEXT)[0], atol=1e-5)


def test_frames_lie_in_order():
    network = make_trained()
    assert np.abs(apply(network, X[:, ::-1], T, TEXT)[:, ::-1] - apply(network, X, T, TEXT)).max() > 1e-3


@pytest.mark.long
def test_values_and_gradients_do_not_depend_on_how_the_network_is_compiled():
    reference, params = make_trained()
    other = reference.clone(scan_unroll=2, remat="none", attention_implementation="tiled")
    np.testing.assert_allclose(apply((other, params), X, T, TEXT), apply((reference, params), X, T, TEXT), atol=1e-4)
    gradients = (gradient_of_energy(model)(params, X, T, TEXT) for model in (reference, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2), *gradients)


@pytest.mark.long
def test_forward_mode_agrees_with_finite_differences_and_can_be_differentiated():
    model, params = make_trained()
    direction = normal(*X.shape, seed=5)

    @jax.jit
    @jax.value_and_grad
    def squared_slope(params):
        return jnp.sum(jax.jvp(lambda x: model.apply({"params": params}, x, T, TEXT), (X,), (direction,))[1] ** 2)

    h = 1e-2
    ahead, behind = (apply((model, params), X + step * direction, T, TEXT) for step in (h, -h))
    exact, gradient = squared_slope(params)
    np.testing.assert_allclose(exact, np.sum((ahead - behind) ** 2) / (2 * h) ** 2, rtol=1e-2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_bfloat16_stays_close_to_float32_and_predicts_in_float32():
    model, params = make_trained()
    exact, rounded = apply((model, params), X, T, TEXT), apply((model.clone(dtype=jnp.bfloat16), params), X, T, TEXT)
    assert rounded.dtype == np.float32
    assert np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.03


@pytest.mark.parametrize(
    ("remat", "per_width", "of_text"),
    [("names_most", 34, 6), ("names", 28, 4), ("names_light", 20, 4), ("attention_only", 6, 0), ("full", 2, 0)],
)
def test_a_remat_policy_keeps_the_bytes_it_promises(remat, per_width, of_text):
    b, n, l, depth = 2, 16, 4, 2
    model = dit.DiT(**SIZES, remat=remat, dtype=jnp.bfloat16)
    x = jnp.zeros((b, 1, 8, 8, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), x, T, TEXT)

    def residuals(params):
        return jax.vjp(lambda p: model.apply(p, x, T, TEXT), params)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, params))
    stacked = [a for a in kept if a.shape[:2] == (depth, b) and a.dtype == jnp.bfloat16]
    size = sum(a.size * a.dtype.itemsize for a in stacked) / (depth * b * SIZES["width"])
    assert size == per_width * n + of_text * l


@pytest.mark.parametrize(("remat", "runs"), [("names", 2), ("attention_only", 2), ("full", 4)])
def test_flash_attention_runs_forward_once_unless_everything_is_rematerialised(monkeypatch, remat, runs):
    # Self- and cross-attention: two kernels in the body of the scan. Tracing needs no GPU; only these checks do.
    kernels = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{kernels}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{kernels}.check_compute_capability", lambda capability: True)
    sizes = {**SIZES, "width": 32}
    shapes = jax.eval_shape(dit.DiT(**sizes).init, jax.random.key(0), X, T, TEXT)
    model = dit.DiT(**sizes, remat=remat, attention_implementation="cudnn", dtype=jnp.bfloat16)
    gradient = jax.grad(lambda params: jnp.sum(model.apply(params, X, T, TEXT)))
    assert str(jax.make_jaxpr(gradient)(shapes)).count(f"{stack.FLASH_FORWARD}[") == runs


def test_parameters_have_the_names_that_sharding_and_checkpoints_rely_on():
    model = dit.DiT(**SIZES, **{**ALL_INPUTS, "num_frame_roles": 3})
    shapes = jax.eval_shape(model.init, jax.random.key(0), X, T)["params"]
    paths = {
        jax.tree_util.keystr(k, simple=True, separator="/"): v.shape
        for k, v in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert paths["patch_embed/kernel"] == (12, 24)
    assert paths["patch_embed_aligned/kernel"] == (8, 24)
    assert paths["frame_roles/embedding"] == (3, 24)
    assert paths["time_modulation/kernel"] == (24, 144)
    assert paths["blocks/modulation"] == (2, 6, 24)
    assert paths["blocks/self_attention/query/kernel"] == (2, 24, 24)
    assert paths["blocks/self_attention/key_norm/scale"] == (2, 12)
    assert paths["blocks/mlp/up/kernel"] == (2, 24, 96)
    assert paths["head_modulation"] == (2, 24)
    assert {path.split("/")[0] for path in paths} == {
        "patch_embed", "patch_embed_aligned", "frame_roles", "time_embed", "time_embed_r", "guidance_embed",
        "pooled_embed", "palette_embed", "task_embed", "time_modulation", "text_embed", "blocks", "head_modulation",
        "head",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (Conditioning(text_ids=jnp.zeros((2, 4), int)), "TextToLatent"),
        (Conditioning(text=jnp.zeros((2, 4, 7))), "width 7.*text_dim=5"),
        (Conditioning(aligned=jnp.zeros((2, 3, 4, 6, 1))), "aligned_channels=0"),
        (Conditioning(frames=jnp.zeros((2, 3, 4, 6, 3))), "num_frame_roles=0"),
        (Conditioning(r=T), "has_second_time=False"),
        (Conditioning(guidance_scale=T), "has_guidance=False"),
        (Conditioning(pooled=jnp.zeros((2, 4))), "pooled_dim=0"),
    ],
)
def test_conditioning_that_the_network_has_no_input_for_is_an_error(cond, message):
    model = dit.DiT(**SIZES)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), X, T, cond)


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match=r"width 24 .* 5 heads"):
        dit.DiT(**{**SIZES, "num_heads": 5})


JOINT = {"text_attention": "joint"}


def test_joint_attention_needs_no_parameters_of_its_own():
    _, cross = make_trained()
    _, joint = make_trained(**JOINT)
    assert set(joint) == set(cross)
    assert set(cross["blocks"]) - set(joint["blocks"]) == {"cross_attention", "cross_norm"}


def test_joint_attention_without_real_text_is_a_transformer_of_the_latents_alone():
    """What the other kind computes when its cross-attention adds nothing: two ways to read no text at all."""
    cross, params = make_trained()
    silent = jax.tree.map(jnp.zeros_like, params["blocks"]["cross_attention"]["out"])
    attention = {**params["blocks"]["cross_attention"], "out": silent}
    without = {**params, "blocks": {**params["blocks"], "cross_attention": attention}}
    expected = apply((cross, without), X, T, TEXT)
    shared = {name: leaf for name, leaf in params["blocks"].items() if not name.startswith("cross_")}
    nothing = TEXT._replace(text_mask=jnp.zeros_like(TEXT.text_mask))
    joint = (cross.clone(**JOINT), {**params, "blocks": shared})
    np.testing.assert_allclose(apply(joint, X, T, nothing), expected, atol=1e-5)
    assert np.abs(apply(joint, X, T, TEXT) - expected).max() > 1e-3


def test_joint_attention_treats_text_as_tokens_like_those_of_the_latents():
    """One patch and text that embed to the same token: attention over copies of a token is that over one of them."""
    model, params = make_trained(**JOINT)
    same = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in ("patch_embed", "text_embed")}
    network, patch = (model, {**params, **same}), X[:, :1, :2, :2]
    one = TEXT._replace(text=TEXT.text[:, :1], text_mask=TEXT.text_mask[:, :1])
    np.testing.assert_allclose(apply(network, patch, T, TEXT), apply(network, patch, T, one), atol=1e-5)
    assert np.abs(apply(network, patch, T, one)).max() > 1e-2


def test_masked_text_has_no_influence_in_joint_attention_and_real_text_has():
    network = make_trained(**JOINT)
    noise = TEXT._replace(text=TEXT.text + 10 * ~TEXT.text_mask[:, :, None])
    np.testing.assert_array_equal(apply(network, X, T, noise), apply(network, X, T, TEXT))
    other = TEXT._replace(text=TEXT.text.at[:, 0].add(1.0))
    assert np.all(np.abs(apply(network, X, T, other) - apply(network, X, T, TEXT)).max((2, 3, 4)) > 1e-3)


def test_length_of_padding_changes_nothing_in_joint_attention():
    network = make_trained(**JOINT)
    padded = Conditioning(
        text=jnp.pad(TEXT.text, ((0, 0), (0, 3), (0, 0)), constant_values=7.0),
        text_mask=jnp.pad(TEXT.text_mask, ((0, 0), (0, 3))),
    )
    np.testing.assert_allclose(apply(network, X, T, padded), apply(network, X, T, TEXT), atol=1e-5)


def test_joint_attention_reads_text_as_a_set():
    """Text lies at no place of the grid: its order is known to its encoder."""
    network, order = make_trained(**JOINT), jnp.asarray([2, 0, 3, 1])
    shuffled = Conditioning(text=TEXT.text[:, order], text_mask=TEXT.text_mask[:, order])
    np.testing.assert_allclose(apply(network, X, T, shuffled), apply(network, X, T, TEXT), atol=1e-5)


def test_joint_attention_without_text_reads_the_null_caption_of_zeros():
    network = make_trained(**JOINT)
    null = TEXT._replace(text=0 * TEXT.text, text_mask=jnp.asarray([[True, False, False, False]] * 2))
    np.testing.assert_allclose(apply(network, X, T, None), apply(network, X, T, null), atol=1e-5)


@pytest.mark.long
def test_every_input_and_parameter_matters_in_joint_attention():
    fields = {name: value for name, value in ALL_INPUTS.items() if name != "num_frame_roles"}
    model, params = make_trained(**JOINT, **fields)
    given = ALL_GIVEN._replace(frames=None, frame_roles=None, frame_times=None)
    for name in ("text", "pooled", "aligned", "r", "guidance_scale", "palette"):
        other = given._replace(**{name: getattr(given, name) / 4 + 0.1})
        change = np.abs(apply((model, params), X, T, other) - apply((model, params), X, T, given))
        assert np.all(change.max((1, 2, 3, 4)) > 1e-3), name
    gradient = gradient_of_energy(model)(params, X, T, given)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_joint_attention_does_not_depend_on_how_the_network_is_compiled():
    reference, params = make_trained(**JOINT)
    other = reference.clone(scan_unroll=2, remat="none", attention_implementation="tiled")
    np.testing.assert_allclose(apply((other, params), X, T, TEXT), apply((reference, params), X, T, TEXT), atol=1e-4)


def test_joint_attention_and_frames_with_times_of_their_own_are_refused_together():
    with pytest.raises(ValueError, match="use text_attention='cross' with frames"):
        dit.DiT(**SIZES, **JOINT, num_frame_roles=1)


def test_joint_attention_and_times_per_frame_are_refused_together():
    """Text tokens would be modulated with the times of frames."""
    model, params = make_trained(**JOINT)
    per_frame = jnp.broadcast_to(T[:, None], (2, 3))
    for length in (3, 4):  # 18 tokens of latents and 3 of text divide over 3 frames, and 4 do not
        cond = Conditioning(text=TEXT.text[:, :length])
        with pytest.raises(ValueError, match="text_attention='cross'"):
            jax.eval_shape(model.apply, {"params": params}, X, per_frame, cond)


@pytest.mark.long
def test_positions_in_the_frame_change_nothing_until_they_are_trained():
    _, old = make_trained()
    model, new = make(has_absolute_positions=True)
    assert set(new) - set(old) == {"patch_embed_position"}
    grown = {**new, **old}
    np.testing.assert_array_equal(apply((model, grown), X, T, TEXT), apply(make_trained(), X, T, TEXT))
    gradient = gradient_of_energy(model)(grown, X, T, TEXT)
    assert np.any(gradient["patch_embed_position"]["kernel"])


def test_only_absolute_positions_tell_tokens_of_a_uniform_clip_apart():
    x = jnp.broadcast_to(X[:, :1, :1, :1], X.shape)
    answers = [apply(make_trained(has_absolute_positions=has), x, T, TEXT) for has in (False, True)]
    spread = [np.ptp(np.asarray(answer)[:, :, ::2, ::2], axis=(2, 3)).max() for answer in answers]
    assert spread[0] < 1e-4 < 1e-2 < spread[1]


@pytest.mark.long
def test_absolute_positions_are_silent_at_first():
    plain, placed = make(), make(has_absolute_positions=True)
    np.testing.assert_array_equal(placed[1]["patch_embed_position"]["kernel"], 0)
    np.testing.assert_array_equal(apply(placed, X, T, TEXT), apply(plain, X, T, TEXT))
