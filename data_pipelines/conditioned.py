"""Tasks of one model as training batches: pictures and clips encoded once, conditions drawn anew for every sample.

A source of one task, such as `scenes.CanvasScenes`, has `task` and gives samples with `pixels`, the picture or
clip to draw, `caption`, and what the task shows beside it:

    source, mask                 the picture before, and where it is drawn anew         aligned
    control                      edges or segmentation of the target                    aligned
    references, num_references   pictures of the same objects, or of earlier shots      extra frames
    similarity                   how much of the first one's layout is kept             time of the frames
    palette, num_colors          sRGB 0 .. 255                                          palette

All pictures of a sample go through the autoencoder once, into the cache; strength, and the noise on control and
references, are drawn when a batch is made.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np

from data_pipelines import captions, datasets, encoding, loader
from data_pipelines.sources import base
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.tasks import color, conditions
from nova_jax.types import Batch, Params

PICTURES_PER_CALL = 256  # of the autoencoder
LATENTS = ("latents", "source", "control", "references")
TOLD = {"add": "fill", "replace": "fill"}  # what the mask hides is not seen, so the network need not know which it is
TOLD |= dict.fromkeys(("image", "video", "film"), "generate")  # the number of frames says it


@dataclasses.dataclass(frozen=True, kw_only=True)
class CanvasLatents:
    """Batches of one shape of conditions, from sources of one task each.

    Attributes:
        sources: one for each task; a batch mixes them in proportion to their lengths.
        is_aligned: source, mask and control are joined on channels.
        num_frames: reference pictures there is room for.
        has_palette: colours are given.
        codec_path: folder of the autoencoder.
        text_encoder: what reads the captions, cut to its length; None: the one that the network trains.
        caches_text: keep the states of a frozen text encoder beside the latents, rather than make them for every batch.
        cache_path: where latents are kept between runs.
        stored_as: float32, or float16 in half the space.
        seed: of the order and of what is drawn.
        threads: that read.
        processes: that draw the pictures to encode; 0: threads do.
        max_corrupt: unreadable records left out of the cache, per shard.
    """

    sources: tuple[Any, ...]
    is_aligned: bool = False
    num_frames: int = 0
    has_palette: bool = False
    codec_path: str
    text_encoder: Any = None
    caches_text: bool = True
    cache_path: str = "runs/cache"
    stored_as: Literal["float32", "float16"] = "float32"
    seed: int = 0
    threads: int = 2
    processes: int = 0
    max_corrupt: int = 8

    def describe(self) -> dict[str, Any]:
        """What drawing needs to know: shape of the latents, length of the text."""
        shape = list(self.example().x0.shape[1:])
        length = captions.check(self.text_encoder).length
        return {"latent_shape": shape, "text_length": length, "tasks": [s.task for s in self.sources]}

    def with_text_encoder(self, encoder: TextEncoder) -> "CanvasLatents":
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
        return datasets.load_codec(self.codec_path)

    def scorer(self, per_task: int) -> Any:
        """What scores images of such data, if the first source knows; see `sources.base.Examinable`."""
        return base.examinable(self.sources[0]).scorer(per_task)

    def exam(self, per_task: int) -> Any:
        """What examines models of such data, if the first source knows; see `sources.base.Examinable`."""
        return base.examinable(self.sources[0]).exam(per_task, captions.check(self.text_encoder).cut)

    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """Rows of one shard, from a position on."""
        stream = self._loader(batch_size).batches(start, shard_index=shard_index, shard_count=shard_count)
        return (loader.to_batch(rows) for rows in stream)

    def _loader(self, batch_size: int) -> loader.Loader:
        codec, _ = self.codec()
        return loader.Loader(
            Joined(tuple(_encoded(source, self) for source in self.sources)),
            batch_size=batch_size,
            seed=self.seed,
            transform=Conditions(self.is_aligned, self.num_frames, self.has_palette, codec.compression[1]),
            batch_transform=captions.batch_step(captions.check(self.text_encoder), is_cached=self.caches_text),
            threads=self.threads,
        )


@dataclasses.dataclass(frozen=True)
class Joined(base.Source):
    """Sources end to end."""

    sources: tuple[Any, ...]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)

    def fingerprint(self) -> str:
        """Hash of all of them."""
        return hashlib.sha256(repr([base.fingerprint(source) for source in self.sources]).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Loader step: an encoded sample to its latents and fields of `Conditioning`."""

    is_aligned: bool
    num_frames: int
    has_palette: bool
    compression: int

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Draws the strength, and the noise that strength and similarity mean."""
        sample = {name: _as_float32(value) for name, value in sample.items()}
        out = {name: sample[name] for name in ("latents", "caption", *datasets.TEXT_STATES) if name in sample}
        if sample["task"]:  # text to image is told no task: it is what the network did before it learnt any
            out["task"] = np.int32(sample["task"])
        if self.is_aligned:
            out["aligned"] = conditions.aligned(
                sample["latents"].shape,
                self.compression,
                source=sample.get("source"),
                mask=sample.get("mask"),
                control=sample.get("control"),
                strength=float(rng.random()),
                rng=rng,
            )
        if self.num_frames:
            shown = sample["references"][: int(sample["num_references"])]
            similarity = float(sample.get("similarity", 1.0))
            frames, times = conditions.references(shown, self.num_frames, similarity=similarity, rng=rng)
            out |= {"frames": frames, "frame_times": times}
        if self.has_palette:
            lab = color.to_lab(sample["palette"][: int(sample["num_colors"])])
            out["palette"], out["palette_mask"] = conditions.palette(lab)
        return out


def _as_float32(value: Any) -> Any:
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float16 else value


def _encoded(source: Any, data: CanvasLatents) -> base.Source:
    """A source of one task with its pictures as latents, from the cache or into it; held in memory."""
    return _encode(source, data, base.fingerprint(source), datasets.codec_digests(data.codec_path))


@functools.lru_cache(maxsize=32)
def _encode(source: Any, data: CanvasLatents, fingerprint: str, autoencoder: tuple[str, ...]) -> base.Source:
    """The same for a source of this fingerprint and an autoencoder of these files."""
    del autoencoder
    codec, params = data.codec()
    encoder = captions.cached_encoder(data)
    task = conditions.TASKS.index(TOLD.get(source.task, source.task))
    example = next(loader.readable(source, range(len(source)), data.max_corrupt))
    choices = ["" if data.stored_as == "float32" else data.stored_as, f" task {task}" if task else ""]
    choices += [f" references {data.num_frames}"] if "references" in example else []
    model = datasets.model_identity(codec, params, encoder, *choices)
    name = hashlib.sha256((model + fingerprint).encode()).hexdigest()[:16]
    folder = pathlib.Path(data.cache_path).expanduser() / name
    encode = functools.partial(  # one program for every training of this autoencoder
        jax.jit(lambda params, pixels: codec.normalize(codec.encode(params, pixels / 127.5 - 1.0)[0])), params
    )

    def rows(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        shown = {name: a[:, : data.num_frames] if name == "references" else a for name, a in batch.items()}
        encoded = encode_pictures(encode, shown)
        latents = {name: encoded[name].astype(data.stored_as) for name in LATENTS if name in encoded}
        states = captions.states_of(encoder, batch["caption"]) if encoder else {}
        return encoded | latents | states | {"task": np.full(len(batch["pixels"]), task)}

    clips = min(len(source), max(1, PICTURES_PER_CALL // len(example["pixels"])))
    options = encoding.Options(
        batch_size=clips, threads=data.threads, processes=data.processes, max_corrupt=data.max_corrupt
    )
    encoding.encode_source(source, rows, folder, model=model, options=options)
    return InMemory(encoding.LatentCache(str(folder), model=model))


def encode_pictures(encode: Any, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The pictures of a batch of one task as latents; numbers, masks and colours as they are.

    Args:
        encode: pixels 0 .. 255 (b, f, h, w, 3) -> normalised latents.
        batch: stacked samples.
    """
    out = {"latents": np.asarray(encode(batch["pixels"].astype(np.float32)))}
    for name in ("mask", "num_references", "similarity", "palette", "num_colors"):
        if name in batch:
            out[name] = batch[name]
    if "source" in batch:
        source = batch["source"]
        if "mask" in batch:
            source = np.stack([conditions.hide(*pair) for pair in zip(source, batch["mask"], strict=True)])
        out["source"] = np.asarray(encode(source.astype(np.float32)))
    if "control" in batch:
        out["control"] = np.asarray(encode(batch["control"].astype(np.float32)))
    if "references" in batch:
        pictures = batch["references"].astype(np.float32)
        each = [np.asarray(encode(pictures[:, i : i + 1]))[:, 0] for i in range(pictures.shape[1])]
        out["references"] = np.stack(each, axis=1)
    return out


@dataclasses.dataclass(frozen=True)
class InMemory(base.Source):
    """All samples of another source, each read once, when it is first asked for."""

    source: base.Source

    @functools.cached_property
    def _samples(self) -> dict[int, base.Sample]:
        return {}

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        if index not in self._samples:
            self._samples[index] = self.source[index]
        return self._samples[index]

    def fingerprint(self) -> str:
        """That of the other source."""
        return self.source.fingerprint()
