"""Prompts as conditions: checked, tokenized and encoded by the run's text encoder, joined with other conditions."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nova_jax import conditions, weights
from nova_jax.diffusion import conditioning
from nova_jax.generation import placement
from nova_jax.runs.load import TrainedRun
from nova_jax.tasks import checks
from nova_jax.types import Conditioning, Params


def check_prompts(encoder: Any, prompts: Sequence[str]) -> None:  # Any: a protocol's check would read T5's folder
    """Refuses prompts that a `TextEncoder` cannot read, all of them before the first is sampled.

    Raises:
        CaptionTooLong: a prompt is too long for the text encoder.
        ValueError: a prompt holds half a character, or bytes that are not UTF-8.
    """
    if wrong := [prompt for prompt in prompts if not checks.is_unicode(prompt)]:
        raise ValueError(
            f"the prompt {checks.show(wrong[0])} holds half a character, or bytes that are not UTF-8: give Unicode text"
        )
    encoder.tokenize(list(prompts))


def encode(trained: TrainedRun, prompts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
    """The encoded prompts, one row each, and the encoded absence of a prompt, one row.

    Raises:
        CaptionTooLong: a prompt is too long for the text encoder.
    """
    ids, mask = trained.text_encoder.tokenize(list(prompts))
    if not trained.text_encoder.is_frozen:
        return placement.call(trained, _make_encode(trained.network), trained.params, ids, mask)
    encode = functools.partial(weights.encode_text, trained.text_encoder, mesh=trained.mesh)
    states, mask = placement.call(trained, encode, ids, mask)
    cond = Conditioning(text=states, text_mask=mask)
    return cond, conditioning.null(jax.tree.map(lambda leaf: leaf[:1], cond), parts=("text",))


@functools.lru_cache(maxsize=8)
def _make_encode(network: Any) -> Any:
    def encode(params: Params, ids: jax.Array, mask: jax.Array) -> tuple[Conditioning, Conditioning]:
        cond = Conditioning(text_ids=ids, text_mask=mask)
        nothing = conditioning.null(jax.tree.map(lambda leaf: leaf[:1], cond), parts=("text",))
        cond = placement.constrain_rows(cond)
        return tuple(network.apply({"params": params}, c, method="encode_text") for c in (cond, nothing))  # pyright: ignore[reportReturnType]

    return jax.jit(encode)


def join(
    encoded: tuple[Conditioning, Conditioning], extra: Conditioning, negative: Conditioning | None
) -> tuple[Conditioning, Conditioning]:
    """The encoded prompts with further conditions, and what guidance moves away from.

    The latter lacks those conditions whose entry in `nova_jax.conditions` says `is_guided`, such as the palette.
    """
    cond, null = encoded
    against = null if negative is None else negative
    parts = {name: value for name, value in extra._asdict().items() if value is not None}
    if not parts:
        return cond, against
    rows = len(jax.tree.leaves(parts)[0])
    against = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])), against)
    guided = [c.name for c in conditions.CONDITIONS.values() if c.is_guided and c.value(extra) is not None]
    return cond._replace(**parts), conditioning.null(against._replace(**parts), parts=guided)
