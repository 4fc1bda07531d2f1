"""What an experiment trains on: source, transform and codec joined into a stream of `Batch`es.

`Pixels` feeds an autoencoder, `CaptionedLatents` a text-to-image network. Both are `nova_jax.experiment.DataSource`s:
the position in the stream is one integer, so a run resumes on any number of processes.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from data_pipelines import captions, encoding, images, loader, workers
from data_pipelines.sources import arrays, base, digests
from data_pipelines.sources.memory import Held
from nova_jax import config, weights
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.types import Batch, Params

TEXT_STATES = ("text", "text_mask")  # of a frozen encoder, kept beside the latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """Pictures of one size in [-1, 1], without captions.

    Attributes:
        source: samples with `pixels`, uint8 (f, h, w, 3).
        size: (h, w) to fit pictures into; None when they already agree.
        seed: of the order.
        threads: that read and transform.
        processes: that make the batches, each with its threads; 0: this one does.
        max_corrupt: unreadable records to replace: a number, or a fraction of the source when a float.
    """

    source: Any
    size: tuple[int, int] | None = None
    seed: int = 0
    threads: int = 2
    processes: int = 0
    max_corrupt: int | float = 0.001

    def describe(self) -> dict[str, Any]:
        """Shape of a sample and number of samples."""
        return {"pixel_shape": list(self.example().x0.shape[1:]), "samples": len(self.source)}

    def example(self) -> Batch:
        """One sample."""
        return next(dataclasses.replace(self, processes=0).batches(0, 1))

    def fingerprint(self) -> str:
        """Hash of source, seed and order."""
        return self._loader(1).fingerprint()

    def codec(self) -> None:
        """Pixels have none."""
        return

    def with_text_encoder(self, encoder: TextEncoder) -> "Pixels":
        """The same: there are no captions."""
        del encoder
        return self

    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """Rows of one shard, from a position on."""
        if self.processes:
            alone = dataclasses.replace(self, processes=0)
            return workers.join(alone, self.processes, start, batch_size, shard_index, shard_count)
        shard, order = {"shard_index": shard_index, "shard_count": shard_count}, self._loader(batch_size)
        is_held = isinstance(self.source, Held) and self.size is None and not self.source.faults
        if is_held:  # twice as fast as sample by sample
            batches = (images.to_float(self.source.pixels[records]) for records in order.records(start, **shard))
        else:
            batches = (rows["pixels"] for rows in order.batches(start, **shard))
        return (loader.to_batch({"pixels": pixels}) for pixels in batches)

    def _loader(self, batch_size: int) -> loader.Loader:
        return loader.Loader(
            self.source,
            batch_size=batch_size,
            seed=self.seed,
            transform=images.Transform(size=self.size),
            threads=self.threads,
            max_corrupt=self.max_corrupt,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedLatents:
    """Normalised latents of captioned pictures, encoded once, with captions as a text encoder reads them.

    Attributes:
        source: samples with `pixels`, uint8 (f, h, w, 3), and `caption`.
        codec_path: folder of the autoencoder (`weights.load`).
        text_encoder: what reads the captions, cut to its length; None: the one that the network trains.
        caches_text: keep the states of a frozen text encoder beside the latents, rather than make them for every batch.
        size: (h, w) to fit pictures into; None when they already agree.
        cache_path: where latents are kept between runs; each (source, codec, size) has a folder of its own in it.
        in_memory: hold all latents in memory; else they are read from the cache as they are needed.
        seed: of the order.
        threads: that read.
        processes: that read what is encoded, in place of threads.
        max_corrupt: unreadable records left out of the cache, per shard.
    """

    source: Any
    codec_path: str
    text_encoder: Any = None
    caches_text: bool = True
    size: tuple[int, int] | None = None
    cache_path: str = "runs/cache"
    in_memory: bool = True
    seed: int = 0
    threads: int = 2
    processes: int = 0
    max_corrupt: int = 8

    def describe(self) -> dict[str, Any]:
        """What `nova generate` needs to know: shape of the latents, and that a text encoder reads its prompts."""
        shape = list(self.example().x0.shape[1:])
        length = captions.check(self.text_encoder).length
        return {"latent_shape": shape, "text_length": length, "samples": len(self.latents)}

    def with_text_encoder(self, encoder: TextEncoder) -> "CaptionedLatents":
        """The same data, read by the encoder that a network trains; see `text.bind`."""
        return captions.bind(self, encoder)

    def example(self) -> Batch:
        """One sample."""
        return next(self.batches(0, 1))

    def fingerprint(self) -> str:
        """Hash of the latents, the captions, the seed and the order."""
        return self._loader(1).fingerprint()

    def codec(self) -> tuple[Any, Params]:
        """The autoencoder and its parameters."""
        return load_codec(self.codec_path)

    def pixels_of(self, source: Any) -> Pixels:
        """Pictures to train an autoencoder on, such as its own: of the same size, and as many may be corrupt."""
        limit = encoding.max_corrupt_of_all(source, self.max_corrupt)
        return Pixels(source=source, size=self.size, max_corrupt=limit)

    def scorer(self, per_task: int) -> Any:
        """What scores images of such data, if its source knows; see `sources.base.Examinable`."""
        return base.examinable(self.source).scorer(per_task)

    @property
    def latents(self) -> base.Source:
        """The encoded source; encodes what is not in the cache yet."""
        return _open_latents(self, base.fingerprint(self.source), codec_digests(self.codec_path))

    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """Rows of one shard, from a position on."""
        stream = self._loader(batch_size).batches(start, shard_index=shard_index, shard_count=shard_count)
        return (loader.to_batch(rows) for rows in stream)

    def _loader(self, batch_size: int) -> loader.Loader:
        return loader.Loader(
            self.latents,
            batch_size=batch_size,
            seed=self.seed,
            transform=_without_index,
            batch_transform=captions.batch_step(captions.check(self.text_encoder), is_cached=self.caches_text),
            threads=self.threads,
        )


def load_codec(path: str) -> tuple[Any, Params]:
    """An autoencoder and its parameters, read again when its files have changed."""
    return _load_codec(path, codec_digests(path))


@functools.lru_cache(maxsize=4)
def _load_codec(path: str, content: tuple[str, ...]) -> tuple[Any, Params]:
    del content
    return weights.load(pathlib.Path(path).expanduser())


def codec_digests(path: str) -> tuple[str, ...]:
    """What the files of an autoencoder's folder hold; none where there is no folder."""
    return tuple(digests.digests(sorted(pathlib.Path(path).expanduser().glob("*"))))


def model_identity(codec: Any, params: Params, encoder: TextEncoder | None, *choices: Any) -> str:
    """Hash of all that shapes what is stored beside the source itself: the `model` of `cache.encode_source`.

    Args:
        codec: the autoencoder.
        params: its parameters.
        encoder: the frozen text encoder whose states are stored, if any.
        choices: whatever else decides shape, dtype or values of a stored array.
    """
    identity = json.dumps(config.to_dict(codec)) + encoding.fingerprint(params) + "".join(map(str, choices))
    identity += weights.text_fingerprint(encoder) if encoder else ""
    return hashlib.sha256(identity.encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def _open_latents(data: CaptionedLatents, source: str, autoencoder: tuple[str, ...]) -> base.Source:
    """Encodes a source of this fingerprint by this autoencoder into its folder of the cache, or finds it there."""
    del autoencoder
    codec, params = data.codec()
    encoder = captions.cached_encoder(data)
    model = model_identity(codec, params, encoder, repr(data.size))
    folder = pathlib.Path(data.cache_path).expanduser() / hashlib.sha256((model + source).encode()).hexdigest()[:16]
    encode = functools.partial(  # one program for every training of this autoencoder
        jax.jit(lambda params, pixels: codec.normalize(codec.encode(params, pixels)[0])), params
    )
    options = encoding.Options(
        batch_size=256,
        transform=images.Transform(size=data.size),
        threads=data.threads,
        processes=data.processes,
        max_corrupt=data.max_corrupt,
    )

    def encode_rows(rows: loader.Batch) -> dict[str, Any]:
        states = captions.states_of(encoder, rows["caption"]) if encoder else {}
        return {"latents": encode(rows["pixels"])} | states

    encoding.encode_source(data.source, encode_rows, folder, model=model, options=options)
    encoded = encoding.LatentCache(str(folder), model=model)
    if not data.in_memory:
        return encoded
    samples = [encoded[i] for i in range(len(encoded))]
    extra = {name: np.stack([s[name] for s in samples]) for name in TEXT_STATES if encoder}
    return arrays.Arrays(np.stack([s["latents"] for s in samples]), [s["caption"] for s in samples], extra=extra)


def _without_index(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Keeps what a batch is made of."""
    del rng
    return {name: sample[name] for name in ("latents", "caption", *TEXT_STATES) if name in sample}
