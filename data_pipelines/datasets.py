"""What an experiment trains on: source, transform and codec joined into a stream of `Batch`es.

`Pixels` feeds an autoencoder, `CaptionedLatents` a text-to-image network; `conditioned` has the tasks of editing and
video. All are `DataSource`s: the position in the stream is one integer, so a run resumes on any number of processes.

Latents and the states of frozen text encoders are made once, before training, by `encode()`:

    source -> transform -> autoencoder (and text encoder) -> cache_path/HASH/*.array_record -> loader -> Batch
"""

import abc
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import captions, encoding, images, loader, workers
from data_pipelines.sources import base, digests, memory
from nova_jax import conditions, config, weights
from nova_jax.generation import codec as codecs
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.runs.config import DataSource, OnDevice
from nova_jax.types import Batch, Params

LATENTS = ("latents", "source", "control", "references")
TEXT_STATES = ("text", "text_mask")  # of a frozen encoder, kept beside the latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels(DataSource):
    """Images or clips of one size in [-1, 1], without captions.

    Attributes:
        source: samples with `pixels`, uint8 (f, h, w, 3).
        size: (h, w) to fit images into; None when they already agree.
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
        return {"pixel_shape": list(self.examples()[0][1].x0.shape[1:]), "samples": len(self.source)}

    def examples(self) -> list[tuple[float, Batch]]:
        """One sample."""
        return [(1.0, next(dataclasses.replace(self, processes=0).batches(0, 1)))]

    def fingerprint(self) -> str:
        """Hash of source, seed and order."""
        return self._loader(1).fingerprint()

    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """Rows of one shard, from a position on."""
        if self.processes:
            alone = dataclasses.replace(self, processes=0)
            return workers.join(alone, self.processes, start, batch_size, shard_index, shard_count)
        shard, order = {"shard_index": shard_index, "shard_count": shard_count}, self._loader(batch_size)
        held = self.source.samples if isinstance(self.source, memory.InMemory) and self.size is None else None
        if held and not held.faults:  # twice as fast as sample by sample
            batches = (images.to_float(held.arrays["pixels"][records]) for records in order.records(start, **shard))
        else:
            batches = (rows["pixels"] for rows in order.batches(start, **shard))
        return (loader.to_batch({"pixels": pixels}) for pixels in batches)

    def on_device(self) -> OnDevice | None:
        """Images of one size that are in memory, as bytes; made floats on the devices."""
        held = self.source.samples if isinstance(self.source, memory.InMemory) and self.size is None else None
        if held is None or held.faults:
            return None
        return OnDevice(held.arrays["pixels"], _as_pixels, lambda start, rows: self._loader(rows).records(start))

    def _loader(self, batch_size: int) -> loader.Loader:
        return loader.Loader(
            self.source,
            batch_size=batch_size,
            seed=self.seed,
            transform=images.Transform(size=self.size),
            threads=self.threads,
            max_corrupt=self.max_corrupt,
        )


class Plan(NamedTuple):
    """How the samples of a source become what is stored of them.

    Attributes:
        arrays: (encode, batch) -> arrays by name, where `encode` turns pixels into normalised latents.
        transform: (sample, numpy Generator) -> sample, before that.
        choices: all else that decides shape, dtype or values of a stored array, as text.
        labels: numbers stored with every sample.
        max_batch: samples encoded together at most.
    """

    arrays: Callable[[Callable[[np.ndarray], np.ndarray], loader.Batch], dict[str, np.ndarray]]
    transform: images.Transform | None = None
    choices: tuple[str, ...] = ()
    labels: Mapping[str, int] = {}
    max_batch: int | None = None


class _Job(NamedTuple):
    """A plan with all that it needs: what is encoded by which models, how, and where it is kept."""

    source: Any
    example: base.Sample
    plan: Plan
    codec: Any
    params: Params
    text_encoder: TextEncoder | None
    model: str
    folder: str
    options: encoding.Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents(DataSource):
    """Normalised latents, encoded once, with captions as a text encoder reads them; what its kinds share.

    Attributes:
        codec_path: folder of the autoencoder (`weights.load`).
        text_encoder: what reads the captions, cut to its length; None: the one that the network trains.
        caches_text: keep the states of a frozen text encoder beside the latents, rather than make them for every batch.
        cache_path: where latents are kept between runs, on a disk that all processes share; whatever differs in source,
            models or choices has a folder of its own in it.
        stored_as: float32, or float16 in half the space.
        encode_batch: images, or frames of clips, for each call of the autoencoder.
        encode_dtype: that the autoencoder computes in; None: its own, float32 of those that are trained here.
        seed: of the order and of what is random in a batch.
        threads: that read.
        processes: that read what is encoded, in place of threads.
        max_corrupt: unreadable records left out of the cache, per shard.
    """

    codec_path: str
    text_encoder: Any = None
    caches_text: bool = True
    cache_path: str = "runs/cache"
    stored_as: Literal["float32", "float16"] = "float32"
    encode_batch: int = 256
    encode_dtype: Literal["float32", "bfloat16"] | None = None
    seed: int = 0
    threads: int = 2
    processes: int = 0
    max_corrupt: int = 8

    @property
    @abc.abstractmethod
    def all_sources(self) -> tuple[Any, ...]:
        """What is encoded."""

    @property
    @abc.abstractmethod
    def latents(self) -> base.Source:
        """The encoded samples of all sources."""

    @abc.abstractmethod
    def _plan(self, source: Any, example: base.Sample) -> Plan:
        """How a source is encoded."""

    @abc.abstractmethod
    def _transform(self) -> Callable[[base.Sample, np.random.Generator], base.Sample]:
        """From an encoded sample to what a batch is made of."""

    def encode(self, report: encoding.Report | None = None) -> None:
        """Encodes what is not in the cache yet, together with the other processes of the job; see `encoding`."""
        for source in self.all_sources:
            job = self._job(source)
            self._encode(job, encoding.over_devices(codecs.make_encode(job.codec), job.params), report)

    def with_text_encoder(self, encoder: TextEncoder) -> DataSource:
        """The same data, read by the encoder that a network trains; see `captions.bind`."""
        return captions.bind(self, encoder)

    def fingerprint(self) -> str:
        """Hash of the latents, the captions, the seed and the order."""
        return self._loader(1).fingerprint()

    def codec(self) -> tuple[Any, Params]:
        """The autoencoder and its parameters."""
        return load_codec(self.codec_path)

    def scorer(self, per_task: int) -> Any:
        """What scores images of such data, if the first source knows; see `sources.base.Examinable`."""
        return base.examinable(self.all_sources[0]).scorer(per_task)

    def exam(self, per_task: int) -> Any:
        """What examines models of such data, if the first source knows; see `sources.base.Examinable`."""
        return base.examinable(self.all_sources[0]).exam(per_task, captions.check(self.text_encoder).cut)

    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """Rows of one shard, from a position on."""
        stream = self._loader(batch_size).batches(start, shard_index=shard_index, shard_count=shard_count)
        return (loader.to_batch(rows) for rows in stream)

    def cache(self, source: Any) -> encoding.LatentCache:
        """What is stored of one of the sources; a process that is alone encodes what is missing."""
        job = self._job(source)
        cache = encoding.LatentCache(job.folder, model=job.model)
        if jax.process_count() == 1 and not cache.is_complete:
            self._encode(job, lambda rows: np.asarray(codecs.make_encode(job.codec)(job.params, rows)))
        return cache

    def _loader(self, batch_size: int) -> loader.Loader:
        encoder = captions.check(self.text_encoder)
        return loader.Loader(
            self.latents,
            batch_size=batch_size,
            seed=self.seed,
            transform=self._transform(),
            batch_transform=captions.batch_step(encoder, is_cached=self.caches_text),
            threads=self.threads,
        )

    def _encode(
        self, job: _Job, encode: Callable[[np.ndarray], np.ndarray], report: encoding.Report | None = None
    ) -> None:
        def arrays(batch: loader.Batch) -> dict[str, Any]:
            made = job.plan.arrays(encode, batch)
            latents = {name: made[name].astype(self.stored_as) for name in LATENTS if name in made}
            states = captions.states_of(job.text_encoder, batch["caption"]) if job.text_encoder else {}
            labels = {name: np.full(len(batch["pixels"]), value) for name, value in job.plan.labels.items()}
            return made | latents | states | labels

        encoding.encode_together(job.source, arrays, job.folder, model=job.model, options=job.options, report=report)

    def _job(self, source: Any) -> _Job:
        identity = base.fingerprint(source)
        example = _first(source, identity, self.max_corrupt)
        plan = self._plan(source, example)
        codec, params = self.codec()
        if self.encode_dtype is not None:
            codec = dataclasses.replace(codec, dtype=jnp.dtype(self.encode_dtype).type)
        text_encoder = captions.cached_encoder(self)
        model = json.dumps(config.to_dict(codec)) + _codec_fingerprint(self.codec_path, codec_digests(self.codec_path))
        model += ("" if self.stored_as == "float32" else self.stored_as) + "".join(plan.choices)
        model += _text_fingerprint(text_encoder) if text_encoder else ""
        model = hashlib.sha256(model.encode()).hexdigest()
        name = hashlib.sha256((model + identity).encode()).hexdigest()[:16]
        batch_size = max(1, self.encode_batch // len(example["pixels"]))
        options = encoding.Options(
            batch_size=min(batch_size, plan.max_batch or batch_size),
            transform=plan.transform,
            threads=self.threads,
            processes=self.processes,
            max_corrupt=self.max_corrupt,
        )
        folder = str(pathlib.Path(self.cache_path).expanduser() / name)
        return _Job(source, example, plan, codec, params, text_encoder, model, folder, options)

    def _shape_and_count(self, source: Any) -> tuple[list[int], int]:
        """Shape of a source's latents and number of its samples: from the cache, or as the models say without it."""
        job = self._job(source)
        cache = encoding.LatentCache(job.folder, model=job.model)
        if cache.is_complete:
            return cache.arrays["latents"][1], len(cache)
        sample = job.plan.transform(job.example, np.random.default_rng(0)) if job.plan.transform else job.example
        pixels = jax.ShapeDtypeStruct((1, *sample["pixels"].shape), sample["pixels"].dtype)
        return list(jax.eval_shape(codecs.make_encode(job.codec), job.params, pixels).shape[1:]), len(source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedLatents(Latents):
    """Normalised latents of captioned images or clips, with the arrays of registered conditions that samples hold.

    Attributes:
        source: samples with `pixels`, uint8 (f, h, w, 3), and `caption`.
        size: (h, w) to fit images into; None when they already agree.
        in_memory: hold all latents in memory; else they are read from the cache as they are needed.
    """

    source: Any
    size: tuple[int, int] | None = None
    in_memory: bool = True

    @property
    def all_sources(self) -> tuple[Any, ...]:
        """The one."""
        return (self.source,)

    @property
    def latents(self) -> base.Source:
        """The encoded source; encodes what is not in the cache yet."""
        cache = self.cache(self.source)
        return _in_memory(cache, cache.fingerprint()) if self.in_memory else cache

    def describe(self) -> dict[str, Any]:
        """Shape of the latents, length of the captions, and number of samples."""
        length = captions.check(self.text_encoder).length
        shape, count = self._shape_and_count(self.source)
        return {"latent_shape": shape, "text_length": length, "samples": count}

    def on_device(self) -> OnDevice | None:
        """All latents, as they are stored, with their captions as ids or as states that are kept."""
        encoder, latents = captions.check(self.text_encoder), self.latents
        if not isinstance(latents, memory.Arrays) or (encoder.is_frozen and not self.caches_text):
            return None
        table = {"latents": latents.latents, **latents.extra, "caption": np.asarray(latents.captions)}
        read = captions.batch_step(encoder, is_cached=self.caches_text)
        return OnDevice(read(table), _as_batch, lambda start, rows: self._loader(rows).records(start))

    def pixels_of(self, source: Any) -> Pixels:
        """Images to train an autoencoder on, such as its own: of the same size, and as many may be corrupt."""
        limit = encoding.max_corrupt_of_all(source, self.max_corrupt)
        return Pixels(source=source, size=self.size, max_corrupt=limit)

    def _plan(self, source: Any, example: base.Sample) -> Plan:
        del source
        own = sorted(conditions.registered_arrays() & set(example))
        arrays = functools.partial(_encode_pixels, own=own)
        return Plan(arrays, images.Transform(size=self.size), (repr(self.size), *own))

    def _transform(self) -> Callable[[base.Sample, np.random.Generator], base.Sample]:
        return _without_index


def _as_pixels(pixels: jax.Array) -> Batch:
    """What `images.to_float` makes of them on the host, to the bit: looked up, since compilers rearrange arithmetic."""
    levels = jnp.asarray(images.to_float(np.arange(256, dtype=np.uint8)))
    return loader.to_batch({"pixels": levels[pixels.astype(jnp.int32)]})


def _as_batch(rows: Mapping[str, jax.Array]) -> Batch:
    """A batch of rows as they are stored, on the device."""
    return loader.to_batch({**rows, "latents": rows["latents"].astype(jnp.float32)})


def load_codec(path: str) -> tuple[Any, Params]:
    """An autoencoder and its parameters, read again when its files have changed."""
    return _load_codec(path, codec_digests(path))


def codec_digests(path: str) -> tuple[str, ...]:
    """What the files of an autoencoder's folder hold; none where there is no folder."""
    return tuple(digests.digests(sorted(pathlib.Path(path).expanduser().glob("*"))))


@functools.lru_cache(maxsize=4)
def _load_codec(path: str, content: tuple[str, ...]) -> tuple[Any, Params]:
    del content
    return weights.load(pathlib.Path(path).expanduser())


@functools.lru_cache(maxsize=4)
def _codec_fingerprint(path: str, content: tuple[str, ...]) -> str:
    return encoding.fingerprint(_load_codec(path, content)[1])


@functools.lru_cache(maxsize=4)
def _text_fingerprint(encoder: TextEncoder) -> str:
    return weights.text_fingerprint(encoder)


@functools.lru_cache(maxsize=32)
def _first(source: Any, identity: str, max_corrupt: int) -> base.Sample:
    """The first sample that can be read."""
    del identity
    return next(loader.readable(source, range(len(source)), max_corrupt))


@functools.lru_cache(maxsize=4)
def _in_memory(cache: encoding.LatentCache, content: str) -> memory.Arrays:
    """A cache of captioned latents as arrays."""
    del content
    arrays, others, _ = memory.InMemory(cache).samples
    extra = {name: arrays[name] for name in (*TEXT_STATES, *conditions.registered_arrays()) if name in arrays}
    return memory.Arrays(arrays["latents"], [sample["caption"] for sample in others], extra=extra)


def _encode_pixels(
    encode: Callable[[np.ndarray], np.ndarray], batch: loader.Batch, own: Sequence[str]
) -> dict[str, np.ndarray]:
    return {"latents": encode(batch["pixels"])} | {name: batch[name] for name in own}


def _without_index(sample: base.Sample, rng: np.random.Generator) -> base.Sample:
    """Keeps what a batch is made of."""
    del rng
    names = ("latents", "caption", *TEXT_STATES, *conditions.registered_arrays())
    kept = {name: sample[name] for name in names if name in sample}
    return kept | {"latents": kept["latents"].astype(np.float32, copy=False)}
