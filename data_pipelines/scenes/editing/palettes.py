"""Ground truth of colour guidance: images in 1 to 10 arbitrary colours.

With several colours the background takes one, the objects take the next ones in turn, and those left over are further
bands of the background, equally high. A single colour is that of the objects.
"""

import numpy as np
from jaxtyping import UInt8

from data_pipelines.scenes import captions, palette, world
from data_pipelines.scenes.editing.truth import Truth
from data_pipelines.scenes.world import Pairs, Scene, World
from nova_jax.tasks import conditions

MAX_BANDS = 6  # where an image has objects for the other colours
APART = 20.0  # CIE 1976 distance in Lab between any two colours of an image


def sample_colors(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """Objects and bands in the colours of a palette; half of the time the same layout in named colours to go by."""
    count = 1 + int(rng.random() * conditions.MAX_COLORS)
    least = min(max(count - MAX_BANDS, 1), of.max_objects)
    cast = [world.pick(rng, of.seen) for _ in range(least + int(rng.random() * (of.max_objects + 1 - least)))]
    plain = Scene(world.arrange(of, rng, cast), world.pick(rng, of.backgrounds))
    if count == 1:
        colors = sample_palette(rng, 1, apart_from=plain.background)
        bands, paints = (plain.background,), colors
    else:
        colors = sample_palette(rng, count)
        bands, paints = (colors[0], *colors[1 + len(cast) :]), colors[1 : 1 + len(cast)]
    objects = tuple(o._replace(color=paints[i % len(paints)]) for i, o in enumerate(plain.objects))
    after = Scene(objects, bands[0])
    said = captions.describe(after, rng, color=False, background=False)
    asked = tuple(colors[i] for i in rng.permutation(count))
    references = (plain,) if rng.random() < 0.5 else ()
    return Truth(after, said, references=references, palette=asked, bands=bands)


def sample_palette(rng: np.random.Generator, count: int, apart_from: str | None = None) -> tuple[str, ...]:
    """Random sRGB colours as "#rrggbb", at least `APART` from each other and from a given one."""
    given = [] if apart_from is None else [palette.rgb(apart_from)]
    while True:
        levels = np.concatenate([np.reshape(given, (-1, 3)), rng.integers(0, 256, (2 * count + 4, 3))]).astype(np.uint8)
        lab = palette.to_lab(levels)
        far = (((lab[:, None] - lab) ** 2).sum(axis=-1) >= APART**2).tolist()
        taken: list[int] = []
        for i, row in enumerate(far):
            if all(row[j] for j in taken):
                taken.append(i)
        if len(taken) >= count + len(given):
            return tuple("#" + levels[i].tobytes().hex() for i in taken[len(given) : len(given) + count])


def banded(bands: tuple[str, ...], image_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Horizontal bands of equal height, to the row."""
    table = np.array([palette.rgb(name) for name in bands], np.uint8)
    rows = table[np.arange(image_size) * len(bands) // image_size]
    return np.repeat(rows[:, None], image_size, axis=1)
