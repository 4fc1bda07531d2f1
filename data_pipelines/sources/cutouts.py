"""Editing tasks from cut-outs: captioned images with alpha, such as emoji, logos or product photographs.

    task        conditions                                         target (`pixels`)
    generate    caption                                            the cut-out on white
    matte       one or two cut-outs on a background (`source`)     their alpha, as gray
    colors      caption, 1 to 5 colours, perhaps a reference in    the cut-out on white, most often in another hue than
                gray levels                                        its own, so only the palette tells the colours

    source = (alpha * cut-out + (255 - alpha) * background) / 255, rounded to nearest

The alpha of the target is the very one that made the source. Element i depends on (seed, task, i) and the images
alone; every tenth image is held out.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFilter
from jaxtyping import Float, Int, UInt8

from data_pipelines import images, loader
from data_pipelines.sources import base
from nova_jax.evaluation import image_metrics
from nova_jax.tasks import color, conditions

TASKS = ("generate", "matte", "colors")  # a task's place enters the random numbers of its elements
REPEATS = {"generate": 1, "matte": 16, "colors": 8}  # elements per image, of different backgrounds and hues
HOLD_OUT = 10  # one image of so many
PAIRED = 0.25  # share of mattes with two cut-outs
TURNED = 0.75  # share of palettes in another hue than the image's own
WHOLE = 0.5  # share of palettes with all dominant colours; the others have a random number of the largest
REFERRED = 0.5  # share of palettes with a reference beside them

MAX_DOMINANT = 5  # colours of a palette
CUTS = 8  # groups that the pixels of a cut-out are cut into
UNIFORM = 5.0  # standard deviation in Lab below which a group is not cut
MIN_SHARE = 0.03  # of the pixels that count, below which a group gives no colour
APART = 12.0  # CIE 1976 distance in Lab between any two colours of a palette

Size = tuple[int, int]  # height, width
Cutout = UInt8[np.ndarray, "h w 4"]
RGBImage = UInt8[np.ndarray, "h w 3"]
Sample = dict[str, Any]

WHITE = np.full((1, 1, 3), 255, np.uint8)


@dataclasses.dataclass(frozen=True)
class Cutouts(base.Source):
    """Elements of one task; the keys are those that `data_pipelines.conditioned` reads.

    Every element has `pixels` uint8 (1, h, w, 3) and `caption`; a matte also `source`, like `pixels`; colours also
    `palette` uint8 (10, 3), black from `num_colors` on, and `references` uint8 (1, h, w, 3), mid gray where
    `num_references` is 0.

    Attributes:
        source: captioned images with alpha, read by `images.WITH_ALPHA`.
        task: one of `TASKS`.
        size: (h, w) that images are fitted into.
        seed: 0 to 2^32 - 1; different seeds give unrelated elements.
        length: how many elements there are; None: `REPEATS` for each image.
        held_out: show every tenth image instead of the other nine.
    """

    source: Any
    task: str = "generate"
    size: Size = (32, 32)
    seed: int = 0
    length: int | None = None
    held_out: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; give one of {', '.join(TASKS)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; give 0 to 2^32 - 1")

    def __len__(self) -> int:
        return REPEATS[self.task] * self.num_images if self.length is None else self.length

    @functools.cached_property
    def num_images(self) -> int:
        """How many images of the source this part of it has.

        Raises:
            DatasetError: this part has none.
        """
        held_out = -(-len(self.source) // HOLD_OUT)
        count = held_out if self.held_out else len(self.source) - held_out
        if not count:
            raise base.DatasetError(f"{len(self.source)} images cannot be split: give a source of two or more")
        return count

    def image_of(self, index: int) -> int:
        """The number in the source of the image that element `index` is made of: each in turn."""
        number = index % self.num_images
        return HOLD_OUT * number if self.held_out else number + number // (HOLD_OUT - 1) + 1

    def read(self, index: int) -> Sample:
        """The element at 0 <= index < len.

        Raises:
            DatasetError: the source gives images without alpha.
            CorruptRecord: an image cannot be read, or is opaque or transparent all over.
        """
        rng = loader.make_rng(self.seed | ((TASKS.index(self.task) + 1) << 32), index)
        return DRAW[self.task](self, index, rng)

    def fingerprint(self) -> str:
        """Hash of the source's fingerprint and of all choices."""
        facts = (base.fingerprint(self.source), self.task, self.size, self.seed, len(self), self.held_out)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def cutout(self, index: int, size: Size) -> tuple[Cutout, str]:
        """The cut-out of element `index`, fitted into a size, and its caption. See `read` for what it raises."""
        number = self.image_of(index)
        sample = self.source[number]
        pixels = sample["pixels"]
        if pixels.shape[-1] != 4:
            raise base.DatasetError(
                f"{type(self.source).__name__} gives images of {pixels.shape[-1]} channels, without alpha: read them "
                "with decoder=images.WITH_ALPHA"
            )
        fitted = np.asarray(images.fit(PIL.Image.fromarray(pixels[0]), size))
        if fitted[..., 3].min() == fitted[..., 3].max():
            key = sample.get("key", number)
            raise base.CorruptRecord(type(self.source).__name__, key, "alpha is the same all over: not a cut-out")
        return fitted, sample["caption"]


@dataclasses.dataclass(frozen=True)
class CutoutImages(base.Source):
    """Single images of every kind that the tasks show or ask for, as `pixels`, to train an autoencoder on.

    Attributes:
        source: captioned images with alpha.
        size: (h, w) that images are fitted into.
        seed: 0 to 2^32 - 1; different seeds give unrelated images.
        length: how many there are.
        held_out: show every tenth image instead of the other nine.
    """

    source: Any
    size: Size = (32, 32)
    seed: int = 0
    length: int = 20_000
    held_out: bool = False

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        """The image at 0 <= index < len: target, source or reference of an element of a random task."""
        rng = loader.make_rng(self.seed | ((len(TASKS) + 1) << 32), index)
        task = TASKS[rng.integers(len(TASKS))]
        element = Cutouts(self.source, task, self.size, self.seed, self.length, self.held_out).read(index)
        shown = [name for name in ("pixels", "source") if name in element]
        shown += ["references"] * element.get("num_references", 0)
        return {"pixels": element[shown[rng.integers(len(shown))]]}

    def fingerprint(self) -> str:
        """Hash of the source's fingerprint and of all choices."""
        facts = (base.fingerprint(self.source), self.size, self.seed, self.length, self.held_out)
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def draw_generate(of: Cutouts, index: int, rng: np.random.Generator) -> Sample:
    """A caption and its cut-out on white."""
    del rng
    cutout, caption = of.cutout(index, of.size)
    return {"pixels": over(cutout, WHITE)[None], "caption": caption}


def draw_matte(of: Cutouts, index: int, rng: np.random.Generator) -> Sample:
    """Cut-outs on a background, and their alpha; mirrored half of the time."""
    other = int(rng.integers(of.num_images))
    if rng.random() < PAIRED:
        half = (of.size[0] // 2, of.size[1] // 2)
        cutout = side_by_side(of.cutout(index, half)[0], of.cutout(other, half)[0], of.size, rng)
    else:
        cutout = of.cutout(index, of.size)[0]
    if rng.random() < 0.5:
        cutout = cutout[:, ::-1]
    make = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    background = make(of, int(rng.integers(of.num_images)), rng)
    return {"pixels": alpha_image(cutout)[None], "caption": "", "source": over(cutout, background)[None]}


def draw_colors(of: Cutouts, index: int, rng: np.random.Generator) -> Sample:
    """A caption, all of the cut-out's dominant colours or the largest, shuffled, perhaps a reference in gray levels."""
    cutout, caption = of.cutout(index, of.size)
    if rng.random() < TURNED:
        cutout = turn_hue(cutout, rng.random())
    found = dominant_colors(cutout)
    count = len(found) if rng.random() < WHOLE else int(rng.integers(1, len(found) + 1))
    asked = rng.permutation(found[:count])
    palette = np.zeros((conditions.MAX_COLORS, 3), np.uint8)
    palette[: len(asked)] = asked
    is_referred = rng.random() < REFERRED
    image = over(cutout, WHITE)
    return {
        "pixels": image[None],
        "caption": caption,
        "palette": palette,
        "num_colors": len(asked),
        "references": gray_levels(image)[None] if is_referred else np.full_like(image[None], conditions.GRAY),
        "num_references": int(is_referred),
    }


DRAW: dict[str, Callable[[Cutouts, int, np.random.Generator], Sample]] = {
    "generate": draw_generate,
    "matte": draw_matte,
    "colors": draw_colors,
}


def over(cutout: Cutout, background: UInt8[np.ndarray, "#h #w 3"]) -> RGBImage:
    """Lays a cut-out over a background."""
    alpha = cutout[..., 3:].astype(np.float64)
    return np.rint((alpha * cutout[..., :3] + (255 - alpha) * background) / 255).astype(np.uint8)


def alpha_image(cutout: Cutout) -> RGBImage:
    """Alpha from black (clear) to white (opaque)."""
    return np.repeat(cutout[..., 3:], 3, axis=-1)


def side_by_side(
    left: Cutout, right: Cutout, size: Size, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 4"]:
    """Two cut-outs of half the size, each somewhere in its half of an otherwise clear image."""
    whole = np.zeros((*size, 4), np.uint8)
    for start, cutout in ((0, left), (size[1] - right.shape[1], right)):
        top = int(rng.integers(size[0] - cutout.shape[0] + 1))
        whole[top : top + cutout.shape[0], start : start + cutout.shape[1]] = cutout
    return whole


def plain(of: Cutouts, other: int, rng: np.random.Generator) -> RGBImage:
    """One random colour."""
    del other
    return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (*of.size, 3))


def gradient(of: Cutouts, other: int, rng: np.random.Generator) -> RGBImage:
    """From one random colour to another, in a random direction."""
    del other
    angle = 2 * np.pi * rng.random()
    y, x = np.mgrid[: of.size[0], : of.size[1]]
    along = x * np.cos(angle) + y * np.sin(angle)
    share = ((along - along.min()) / np.ptp(along))[..., None]
    first, last = rng.integers(0, 256, (2, 3))
    return np.rint((1 - share) * first + share * last).astype(np.uint8)


def blurred(of: Cutouts, other: int, rng: np.random.Generator) -> RGBImage:
    """Another cut-out on a random colour, out of focus."""
    scene = over(of.cutout(other, of.size)[0], plain(of, other, rng))
    return np.asarray(PIL.Image.fromarray(scene).filter(PIL.ImageFilter.GaussianBlur(min(of.size) / 8)))


BACKGROUNDS: tuple[Callable[[Cutouts, int, np.random.Generator], RGBImage], ...] = (plain, gradient, blurred)


def turn_hue(cutout: Cutout, turn: float) -> Cutout:
    """The cut-out with its hues (HSV) turned by a share of the circle; grays stay as they are."""
    red, green, blue, alpha = PIL.Image.fromarray(cutout).split()
    hue, saturation, value = PIL.Image.merge("RGB", (red, green, blue)).convert("HSV").split()
    turned = hue.point([(level + round(256 * turn)) % 256 for level in range(256)])
    colors = PIL.Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    return np.asarray(PIL.Image.merge("RGBA", (*colors.split(), alpha)))


def gray_levels(image: RGBImage) -> RGBImage:
    """The luma of an image (BT.601)."""
    return np.asarray(PIL.Image.fromarray(image).convert("L").convert("RGB"))


def dominant_colors(cutout: Cutout) -> UInt8[np.ndarray, "n 3"]:
    """1 to `MAX_DOMINANT` colours of a cut-out laid on white, sRGB, that of most pixels first.

    Opaque pixels inside an area of one colour count (`image_metrics.is_flat`); all opaque ones, where nothing is flat.
    Groups of pixels are cut in two until they are uniform, as in median cut (Heckbert 1982, "Color image quantization
    for frame buffer display"), but at the mean and in Lab: the median would cut through the larger of two flat colours.
    A group gives the pixel nearest to its median, so every colour is one that the image has.
    """
    image = over(cutout, WHITE)
    is_opaque = cutout[..., 3] == cutout[..., 3].max()
    is_inside = is_opaque & image_metrics.is_flat(color.to_lab(image))
    pixels = image[is_inside if is_inside.any() else is_opaque]
    lab = color.to_lab(pixels)
    groups = sorted(cut(lab), key=len, reverse=True)
    found: list[int] = []
    for group in groups:
        middle = np.median(lab[group], axis=0)
        nearest = int(group[np.linalg.norm(lab[group] - middle, axis=-1).argmin()])
        is_large = not found or len(group) >= MIN_SHARE * len(lab)
        if is_large and all(np.linalg.norm(lab[nearest] - lab[other]) >= APART for other in found):
            found.append(nearest)
    return pixels[found[:MAX_DOMINANT]]


def cut(lab: Float[np.ndarray, "n 3"]) -> list[Int[np.ndarray, " m"]]:
    """Numbers of the pixels in at most `CUTS` groups: the group of the largest scatter is cut at its mean."""
    groups = [np.arange(len(lab))]
    while len(groups) < CUTS:
        scatter = [len(group) * lab[group].var(axis=0).max() for group in groups]
        widest = groups[int(np.argmax(scatter))]
        spread = lab[widest].std(axis=0)
        if spread.max() < UNIFORM:
            break
        along = lab[widest, int(spread.argmax())]
        is_low = along <= along.mean()
        groups = [group for group in groups if group is not widest] + [widest[is_low], widest[~is_low]]
    return groups
