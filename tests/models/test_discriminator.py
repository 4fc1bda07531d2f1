import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.models import discriminator
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules

PLAIN = discriminator.Discriminator(mlp_dim=8)
WITH_TEXT = discriminator.Discriminator(mlp_dim=8, pooled_dim=4)
KINDS = pytest.mark.parametrize("head", [PLAIN, WITH_TEXT], ids=["plain", "with_text"])


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


TOKENS, POOLED = normal(2, 5, 16), normal(2, 4, seed=1)


def pooled_of(head):
    return POOLED if head.pooled_dim else None


@functools.cache
def params_of(head):
    """Parameters that are all random, those that start at zero included."""
    shapes = jax.eval_shape(head.init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), shapes)


@functools.cache
def compiled(head):
    return jax.jit(head.apply)


def judge(head, tokens, pooled, params=None):
    return np.asarray(compiled(head)({"params": params or params_of(head)}, tokens, pooled))


@KINDS
def test_a_new_discriminator_is_undecided_and_can_learn(head):
    params = jax.jit(head.init)(jax.random.key(0), TOKENS, pooled_of(head))["params"]

    def total(params):
        return jnp.sum(head.apply({"params": params}, TOKENS, pooled_of(head)))

    assert not np.any(judge(head, TOKENS, pooled_of(head), params))
    gradient = jax.jit(jax.grad(total))(params)
    assert np.any(gradient["head"]["kernel"])
    assert not head.pooled_dim or np.any(gradient["pooled_embed"]["out"]["kernel"])


def test_the_text_enters_as_a_projection():
    # w -> w + V(pooled) / sqrt(d): a discriminator without text, whose last layer is the sum.
    params, pooled = jax.tree.map(np.asarray, (params_of(WITH_TEXT), POOLED))
    embed = params["pooled_embed"]
    inner = pooled @ embed["in"]["kernel"] + embed["in"]["bias"]
    directions = (inner / (1 + np.exp(-inner)) @ embed["out"]["kernel"] + embed["out"]["bias"]) / 4
    for sample, direction in enumerate(directions):
        head = {**params["head"], "kernel": params["head"]["kernel"] + direction[:, None]}
        by_hand = judge(PLAIN, TOKENS, None, {"mlp": params["mlp"], "head": head})
        np.testing.assert_allclose(by_hand[sample], judge(WITH_TEXT, TOKENS, POOLED)[sample], rtol=1e-4, atol=1e-5)


def test_no_text_is_a_vector_of_zeros():
    np.testing.assert_array_equal(judge(WITH_TEXT, TOKENS, None), judge(WITH_TEXT, TOKENS, 0 * POOLED))
    assert np.abs(judge(WITH_TEXT, TOKENS, None) - judge(WITH_TEXT, TOKENS, POOLED)).max() > 1e-2


@KINDS
def test_every_token_is_judged_on_its_own(head):
    logits = judge(head, TOKENS, pooled_of(head))
    assert logits.shape == (2, 5)
    np.testing.assert_allclose(judge(head, TOKENS[:, 2:3], pooled_of(head)), logits[:, 2:3], atol=1e-5)


@KINDS
def test_scale_and_offset_of_the_tokens_do_not_matter(head):
    before, after = (judge(head, tokens, pooled_of(head)) for tokens in (TOKENS, 30 * TOKENS + 7))
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_logits_are_float32_whatever_the_tokens_are():
    head = WITH_TEXT.clone(dtype=jnp.bfloat16)
    logits = judge(head, TOKENS.astype(jnp.bfloat16), POOLED, params_of(WITH_TEXT))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, judge(WITH_TEXT, TOKENS, POOLED), atol=0.2)


def test_the_sharding_table_cuts_every_matrix():
    mesh = meshes.MeshConfig(data=1, fsdp=4, tensor=2).make()
    placed = rules.placements({"discriminator": params_of(WITH_TEXT)}, mesh)
    assert {p.path.removeprefix("discriminator/") for p in placed if p.is_sharded} >= {
        "mlp/up/kernel", "mlp/down/kernel", "pooled_embed/in/kernel", "pooled_embed/out/kernel", "head/kernel"
    }  # fmt: skip
    assert not rules.unsharded(params_of(WITH_TEXT), mesh)


@KINDS
def test_sharded_logits_equal_unsharded_ones(head):
    mesh = meshes.MeshConfig(data=2, fsdp=2, tensor=2).make()
    with jax.set_mesh(mesh):
        params = jax.device_put(params_of(head), rules.shardings(params_of(head), mesh))
        sharded = jax.jit(lambda *args: head.apply(*args))({"params": params}, TOKENS, pooled_of(head))
    np.testing.assert_allclose(sharded, judge(head, TOKENS, pooled_of(head)), atol=1e-5)


def test_text_of_another_width_is_an_error():
    with pytest.raises(ValueError, match="width 4; this discriminator has pooled_dim=0"):
        PLAIN.apply({"params": params_of(PLAIN)}, TOKENS, POOLED)
