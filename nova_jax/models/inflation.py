"""From an autoencoder of single images to a causal one of video that begins where it left off.

Inflation puts every 2-D kernel into the last tap of its 3-D one, so that no frame sees another yet:

    W_3D[k-1] = W_2D,   W_3D[j] = 0 for j < k-1                     y_i = W_2D * x_i

(Carreira and Zisserman 2017, arXiv 1705.07750, section 2.2, spread the kernel over all taps instead, which is not
causal.) The new convolutions that halve time start by keeping the last frame of each window, those that double it by
repeating:

    halved     y_i = x_{2i}               doubled    y_{2i-1} = y_{2i} = x_i

So the latents of a video are at first those of its frames 0, t, 2t, .. for t frames per latent, and a single image is
encoded and decoded as before, to the bit: it meets no tap but the last, and no convolution in time alone.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nova_jax.models.vae import VAE
from nova_jax.types import Params

FREE = ("is_temporal", "halves_time", "latents_mean", "latents_std", "dtype")  # what inflation may change


def without_time(video_vae: VAE) -> VAE:
    """The same network for single images: what `inflate` can start from."""
    return dataclasses.replace(video_vae, is_temporal=False, halves_time=(False,) * len(video_vae.halves_time))


def inflate(image_vae: VAE, params: Params, video_vae: VAE) -> Params:
    """Parameters of `video_vae` with which it does frame by frame what `image_vae` does with `params`.

    Taps in time and halvings of it that `image_vae` already has are kept: inflated into itself, it is copied.

    Raises:
        ValueError: the two differ in more than time; every field at fault is named with both values.
    """
    check(image_vae, video_vae)
    shapes = jax.eval_shape(video_vae.init, jax.random.key(0))
    params = jax.tree.map(np.asarray, params)
    return jax.tree_util.tree_map_with_path(functools.partial(_start, params), shapes)


def check(image_vae: VAE, video_vae: VAE) -> None:
    """Refuses two autoencoders of which the second is not the first with time added.

    Raises:
        ValueError: see `inflate`.
    """
    ours, theirs = dataclasses.asdict(image_vae), dataclasses.asdict(video_vae)
    for fields in (ours, theirs):  # two ways to say the same
        fields["halves_space"] = fields["halves_space"] or (True,) * len(fields["halves_time"])
        fields["decoder_width"] = fields["decoder_width"] or fields["width"]
    faults = [
        f"{name} is {ours[name]!r} in the first and {theirs[name]!r} in the second"
        for name in ours
        if name not in FREE and ours[name] != theirs[name]
    ]
    if image_vae.is_temporal and not video_vae.is_temporal:
        faults.append("is_temporal is True in the first and False in the second")
    lost = any(old and not new for old, new in zip(image_vae.halves_time, video_vae.halves_time, strict=False))
    if lost:
        faults.append(f"halves_time is {image_vae.halves_time} in the first and {video_vae.halves_time} in the second")
    if video_vae.has_shortcuts and image_vae.halves_time != video_vae.halves_time:
        faults.append("has_shortcuts is True: shortcuts average over frames where time is halved, so no frame is kept")
    if faults:
        raise ValueError(
            "an autoencoder can be inflated into one that only adds taps in time (is_temporal) and halvings of it "
            "(halves_time); here " + "; ".join(faults)
        )


def _start(params: Params, path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
    """The first value of one parameter of the video network."""
    names = [key.key for key in path]
    old = _find(params, names)
    value = np.zeros(leaf.shape, leaf.dtype)
    if old is not None:
        value[-old.shape[0] :] = old  # the last taps of a kernel, or all there is
    elif names[-1] == "kernel":  # of a convolution in time alone: gives back the last frame, or gives it twice
        channels, features = leaf.shape[-2:]
        value[-1, 0, 0] = np.tile(np.eye(channels), (1, features // channels))
    return jnp.asarray(value)


def _find(params: Params, names: list[str]) -> np.ndarray | None:
    node: Any = params
    for name in names:
        if not isinstance(node, Mapping) or name not in node:
            return None
        node = node[name]
    return node
