"""A run folder as a value that can sample: network, EMA parameters, autoencoder, text encoder.

The folder holds everything: the resolved config (network, objective, text encoder, latent shape), the checkpoints, and
in `codec/` the autoencoder whose latents were learnt. Only a frozen text encoder stays where it was, in the folder that
the config names.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from nova_jax import config, weights
from nova_jax.models import tiling
from nova_jax.models.text import encoder as text_encoders
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.runs import mirror, record
from nova_jax.training import checkpoint
from nova_jax.types import Params

CODEC_FOLDER = "codec"


class Programs(Protocol):
    """Where the compiled programs of a run come from; see `generation.compiled`."""

    def find(self, function: Any, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """What to call with these arguments in place of a jitted function."""
        ...


class TrainedRun(NamedTuple):
    """All that is needed to draw: the network with its parameters, the codec with its own, and the shapes.

    `objective` is what the network was trained with; a distillation method makes it a few-step student. `text_encoder`
    reads the prompts; its parameters are among the network's, unless it is frozen. With a `mesh` the parameters lie on
    it, and whatever is sampled is one program on all of its devices; `tiles` cut what the codec decodes.
    """

    network: Any
    params: Params
    objective: Any
    codec: Any
    codec_params: Params
    latent_shape: tuple[int, int, int, int]  # f h w c
    text_encoder: TextEncoder
    step: int = 0  # training steps behind the parameters
    mesh: jax.sharding.Mesh | None = None  # None: one device
    tiles: tiling.Tiles | None = None  # None: images and clips are decoded whole
    programs: Programs | None = None  # None: functions are compiled when they are called


def load_run(
    run_dir: str | pathlib.Path,
    step: int | None = None,
    *,
    text_path: str | pathlib.Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainedRun:
    """Loads the EMA parameters of a run's newest good checkpoint (or of `step`).

    Args:
        run_dir: the run folder, or the URL of its copy in a bucket (`runs.mirror`).
        step: of a checkpoint; of a copy there is the newest alone.
        text_path: folder of the run's frozen text encoder where it has moved; None: as the run's config names it.
        mesh: where to put the parameters, by `parallel.rules`: every part is read to where it stays. None: on one
            device.

    Raises:
        FileNotFoundError: the folder is not a run folder, or holds no checkpoint yet.
        ValueError: the run did not train a network that draws from a text, or `text_path` is given to one that trains
            its own text encoder.
    """
    run_dir = mirror.local(run_dir)
    saved = record.read(run_dir)
    if "text_length" not in saved["data"]:
        raise ValueError(f"{run_dir} trained {saved['config']['name']!r}, which is no run that draws from a text")
    step, params = checkpoint.read_ema(run_dir / "checkpoints", step=step, mesh=mesh)
    codec, codec_params = weights.load(run_dir / CODEC_FOLDER, mesh=mesh)
    network = config.from_dict(saved["config"]["model"])
    if text_path is not None and text_encoders.find(network):
        raise ValueError(f"{run_dir} trains its own text encoder: leave the folder of a frozen one out")
    return TrainedRun(
        network=network,
        params=params,
        objective=config.from_dict(saved["config"]["objective"]),
        codec=codec,
        codec_params=codec_params,
        latent_shape=tuple(saved["data"]["latent_shape"]),
        text_encoder=text_encoders.find(network) or _frozen_encoder(saved, text_path),
        step=step,
        mesh=mesh,
    )


def _frozen_encoder(saved: dict[str, Any], path: str | pathlib.Path | None) -> Any:
    """The frozen text encoder that the data of a run names; of a mixture that of its first part."""
    data = saved["config"]["data"]
    while "text_encoder" not in data:
        data = data["parts"][0][0]
    encoder = config.from_dict(data["text_encoder"])
    return encoder if path is None else dataclasses.replace(encoder, path=str(path))
