"""Tasks of one model as training batches: images and clips encoded once, conditions sampled for every batch.

A source of one task, such as `scenes.CanvasScenes`, has `task` and gives samples with `pixels`, the image or clip to
generate, `caption`, and what the task shows beside it:

    source, mask                 the image before, and where it is to be replaced       aligned
    control                      edges or segmentation of the target                    aligned
    references, num_references   images of the same objects, or of earlier shots        extra frames
    similarity                   how much of the first one's layout is kept             time of the frames
    palette, num_colors          sRGB 0 .. 255                                          palette

All images of a sample go through the autoencoder once, into the cache; strength, and the noise on control and
references, are sampled when a batch is made.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipelines import captions, datasets, loader
from data_pipelines.sources import base, memory
from nova_jax.tasks import color, conditions

TASK_TOKENS = {"add": "fill", "replace": "fill"}  # the network does not see what the mask hides, so both are one task
TASK_TOKENS |= dict.fromkeys(("image", "video", "film"), "generate")  # the number of frames tells them apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionedLatents(datasets.Latents):
    """Batches of one shape of conditions, from sources of one task each.

    Attributes:
        sources: one for each task; a batch mixes them in proportion to their lengths.
        is_aligned: source, mask and control are joined on channels.
        num_frames: reference images there is room for.
        has_palette: colours are a condition.
    """

    sources: tuple[Any, ...]
    is_aligned: bool = False
    num_frames: int = 0
    has_palette: bool = False

    @property
    def all_sources(self) -> tuple[Any, ...]:
        """All of them."""
        return self.sources

    @property
    def latents(self) -> base.Source:
        """The encoded samples of all tasks, in memory."""
        return Joined(tuple(memory.InMemory(self.cache(source)) for source in self.sources))

    def describe(self) -> dict[str, Any]:
        """Shape of the latents, length of the captions, and the tasks."""
        length = captions.check(self.text_encoder).length
        shape, _ = self._shape_and_count(self.sources[0])
        return {"latent_shape": shape, "text_length": length, "tasks": [source.task for source in self.sources]}

    def _plan(self, source: Any, example: base.Sample) -> datasets.Plan:
        task = conditions.TASKS.index(TASK_TOKENS.get(source.task, source.task))
        choices = [f" task {task}"] if task else []
        choices += [f" references {self.num_frames}"] if "references" in example else []
        arrays = functools.partial(encode_images, num_references=self.num_frames)
        return datasets.Plan(arrays, choices=tuple(choices), labels={"task": task}, max_batch=len(source))

    def _transform(self) -> "Conditions":
        codec, _ = self.codec()
        return Conditions(self.is_aligned, self.num_frames, self.has_palette, codec.compression[1])


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
        """Samples the strength, and the noise that strength and similarity stand for."""
        sample = {name: _as_float32(value) for name, value in sample.items()}
        out = {name: sample[name] for name in ("latents", "caption", *datasets.TEXT_STATES) if name in sample}
        if sample["task"]:  # text to image has none: it is what the network did before it learnt tasks
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


def encode_images(
    encode: Callable[[np.ndarray], np.ndarray], batch: loader.Batch, num_references: int
) -> dict[str, np.ndarray]:
    """The images of a batch of one task as latents; numbers, masks and colours as they are.

    Args:
        encode: pixels, uint8 (b, f, h, w, 3), -> normalised latents.
        batch: stacked samples.
        num_references: reference images to encode; the others are left out.
    """
    out = {"latents": encode(batch["pixels"])}
    for name in ("mask", "num_references", "similarity", "palette", "num_colors"):
        if name in batch:
            out[name] = batch[name]
    if "source" in batch:
        source = batch["source"]
        if "mask" in batch:
            source = np.stack([conditions.hide(*pair) for pair in zip(source, batch["mask"], strict=True)])
        out["source"] = encode(source)
    if "control" in batch:
        out["control"] = encode(batch["control"])
    if "references" in batch:
        images = batch["references"][:, :num_references]
        each = [encode(images[:, i : i + 1])[:, 0] for i in range(images.shape[1])]
        out["references"] = np.stack(each, axis=1)
    return out
