"""What a scene is, and how scenes are drawn: a balanced prior over GenEval's six tasks.

Lengths are fractions of the image side; x runs right and y down. A scene is one of

    single   one object, small or large
    pair     two objects, mostly of different shapes, each small or large
    group    several objects of one shape, half of the time of one colour      (counting)
    mixed    three or more objects, anything goes

Objects never touch: their bounding boxes are apart by `World.gap` along x or along y.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from data_pipelines.scenes import outlines, palette
from nova_jax.evaluation import geneval

MAX_OBJECTS = 6
LARGE = 0.165  # radius that separates the sizes; every range below keeps 9 % or more away from it
_LARGE_ALONE, _LARGE_PAIR = (0.22, 0.3), (0.18, 0.195)
_SMALL, _SMALL_CROWD = (0.135, 0.15), (0.095, 0.105)  # a crowd is five or more

T = TypeVar("T")
Box = tuple[float, float, float, float]  # left, top, right, bottom
Pairs = tuple[tuple[str, str], ...]


class NoRoom(ValueError):
    """Some objects have no other place than the one they have."""


class Object(NamedTuple):
    """One shape: `x`, `y` is its centroid, `radius` that of a circle as large, `rotation` clockwise in degrees."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    rotation: int = 0

    @property
    def box(self) -> Box:
        """The bounding box."""
        left, top, right, bottom = outlines.extent(self.shape, self.rotation)
        return (
            self.x + self.radius * left,
            self.y + self.radius * top,
            self.x + self.radius * right,
            self.y + self.radius * bottom,
        )


class Scene(NamedTuple):
    """Objects on a plain background."""

    objects: tuple[Object, ...]
    background: str


@runtime_checkable
class Vocabulary(Protocol):
    """What has to be known of a world to read its images. Lengths are in units of the image's height."""

    @property
    def height(self) -> int:
        """Of an image, in pixels."""
        ...

    @property
    def width(self) -> int:
        """Of an image, in pixels."""
        ...

    @property
    def shapes(self) -> tuple[str, ...]:
        """Names from `outlines.SHAPES`."""
        ...

    @property
    def colors(self) -> tuple[str, ...]:
        """Names from `palette.COLORS`."""
        ...

    @property
    def backgrounds(self) -> tuple[str, ...]:
        """Names from `palette.BACKGROUNDS`."""
        ...

    @property
    def held_out(self) -> Pairs:
        """(shape, color) pairs kept from training."""
        ...

    @property
    def min_radius(self) -> float:
        """The smallest radius of an object."""
        ...

    @property
    def max_radius(self) -> float:
        """The largest radius of an object."""
        ...

    @property
    def turns(self) -> tuple[int, ...]:
        """Some of the turns of an object, in whole degrees, the extreme ones among them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
    """What captions say of scenes.

    Attributes:
        color: Share of captions that say colours, of all objects.
        relation: Share of the pairs whose caption says how one lies to the other, if GenEval's rule finds how.
        in_order: Share of the lists that name objects from left to right, as people often do; others are shuffled.
    """

    color: float = 0.75
    relation: float = 0.5
    in_order: float = 0.0

    def __repr__(self) -> str:
        """Its fields; `in_order` only where it is not what it was before it could be chosen: caches go by this text."""
        order = f", in_order={self.in_order!r}" if self.in_order else ""
        return f"Wording(color={self.color!r}, relation={self.relation!r}{order})"

    def __post_init__(self) -> None:
        if not (0 <= self.color <= 1 and 0 <= self.relation <= 1 and 0 <= self.in_order <= 1):
            raise ValueError(f"{self}: the shares lie in [0, 1].")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The vocabulary and the prior of a family of scenes.

    Attributes:
        image_size: Side of the square image in pixels, 32 or more.
        shapes: Names from `outlines.SHAPES`; three are readable at 32 pixels, all eight at 64.
        colors: Names from `palette.COLORS`.
        backgrounds: Names from `palette.BACKGROUNDS`.
        max_objects: 1 to 6; more than 4 need 64 pixels.
        max_rotation: Largest turn either way, in whole degrees, 0 to 20.
        held_out: (shape, color) pairs that `sample_scene` never draws and `sample_held_out` draws alone.
        kinds: Weights of single, pair, group and mixed scenes.
        gap: Least distance between the boxes of two objects.
        border: Least distance between a box and the image's edge.
        wording: What captions say.
    """

    image_size: int = 32
    shapes: tuple[str, ...] = ("circle", "square", "triangle")
    colors: tuple[str, ...] = tuple(palette.COLORS)
    backgrounds: tuple[str, ...] = tuple(palette.BACKGROUNDS)
    max_objects: int = 4
    max_rotation: int = 8
    held_out: tuple[tuple[str, str], ...] = ()
    kinds: tuple[float, float, float, float] = (0.35, 0.4, 0.2, 0.05)
    gap: float = 0.07
    border: float = 0.025
    wording: Wording = Wording()

    def __repr__(self) -> str:
        """Its fields; `wording` only where it is not what it was before it could be chosen: caches go by this text."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "wording" or self.wording != Wording()]
        return f"World({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __post_init__(self) -> None:
        check_vocabulary(self)
        if self.image_size < 32:
            raise ValueError(f"image_size is {self.image_size}; shapes can be told apart from 32 pixels on.")
        limit = MAX_OBJECTS if self.image_size >= 64 else 4
        if not 1 <= self.max_objects <= limit:
            raise ValueError(
                f"max_objects is {self.max_objects}; {self.image_size} pixels hold 1 to {limit} (64 pixels: 6)."
            )
        if not 0 <= self.max_rotation <= 20:
            raise ValueError(f"max_rotation is {self.max_rotation}; give whole degrees from 0 to 20.")
        if min(self.kinds) < 0 or sum(self.kinds) <= 0:
            raise ValueError(f"kinds is {self.kinds}; give four weights, none negative and not all zero.")

    @functools.cached_property
    def seen(self) -> tuple[tuple[str, str], ...]:
        """The (shape, color) pairs of the training scenes."""
        return seen_pairs(self)

    def fits(self, objects: Sequence[Object]) -> bool:
        """Whether the objects keep their distance from each other and from the image's edge."""
        boxes = [o.box for o in objects]
        low, high = self.border - 1e-9, 1 - self.border + 1e-9
        inside = all(min(box) >= low and max(box) <= high for box in boxes)
        return inside and all(apart(a, b, self.gap) for a, b in itertools.combinations(boxes, 2))

    @property
    def height(self) -> int:
        """Of an image, in pixels."""
        return self.image_size

    @property
    def width(self) -> int:
        """Of an image, in pixels."""
        return self.image_size

    @property
    def turns(self) -> tuple[int, ...]:
        """Some of the turns of an object, in degrees, both ends among them."""
        return tuple(sorted({round(turn) for turn in np.linspace(-self.max_rotation, self.max_rotation, 5)}))

    @property
    def min_radius(self) -> float:
        """The smallest radius of an object."""
        return (_SMALL_CROWD if self.max_objects > 4 else _SMALL)[0]

    @property
    def max_radius(self) -> float:
        """The largest radius of an object."""
        return _LARGE_ALONE[1]


def seen_pairs(of: Vocabulary) -> Pairs:
    """Every (shape, color) of a world that is not held out."""
    return tuple((s, c) for s in of.shapes for c in of.colors if (s, c) not in of.held_out)


def check_vocabulary(of: Vocabulary) -> None:
    """Raises ValueError when names are unknown, or when the held-out pairs leave no colour for a shape."""
    check_names("shapes", of.shapes, outlines.SHAPES)
    check_names("colors", of.colors, palette.COLORS)
    check_names("backgrounds", of.backgrounds, palette.BACKGROUNDS)
    for shape, color in of.held_out:
        if shape not in of.shapes or color not in of.colors:
            raise ValueError(f"held_out names ({shape}, {color}), which is not in this world's shapes and colors.")
    uncovered = [shape for shape in of.shapes if not any(s == shape for s, _ in seen_pairs(of))]
    if uncovered:
        raise ValueError(f"held_out leaves no colour for {', '.join(uncovered)}; keep a pair of every shape.")


def check_names(field: str, given: Sequence[str], allowed: Iterable[str]) -> None:
    """Raises ValueError unless a field has one or more different names out of the allowed ones."""
    unknown = [name for name in given if name not in allowed]
    if unknown or not given or len(set(given)) < len(given):
        raise ValueError(f"{field} is {given}; give one or more different names out of {', '.join(allowed)}.")


VARIED_32 = World()
VARIED_64 = World(image_size=64, shapes=tuple(outlines.SHAPES), max_objects=6, gap=0.04)
# Upright shapes on white, which a CPU can learn: after the same 5 minutes one network drew colours right in 73 % of the
# images of QUICKSTART, and in 33 % of those of VARIED_32.
QUICKSTART = dataclasses.replace(VARIED_32, backgrounds=("white",), max_rotation=0)
SHAPES_64 = dataclasses.replace(VARIED_64, backgrounds=("white",), max_rotation=0)
# Upright shapes on three backgrounds, for a model of every editing task; some pairs are kept for tests of composition.
CANVAS_32 = dataclasses.replace(
    VARIED_32, max_rotation=0, held_out=(("circle", "purple"), ("square", "orange"), ("triangle", "cyan"))
)
CANVAS_64 = dataclasses.replace(
    VARIED_64, max_rotation=0, held_out=(("circle", "purple"), ("star", "blue"), ("heart", "green"))
)


def sample_scene(world: World, rng: np.random.Generator) -> Scene:
    """A training scene: only pairs that are not held out."""
    return sample_of(world, rng, world.seen)


def sample_held_out(world: World, rng: np.random.Generator) -> Scene:
    """A scene made of held-out pairs alone, otherwise from the same prior."""
    if not world.held_out:
        raise ValueError("This world holds nothing out; set World.held_out to (shape, color) pairs.")
    return sample_of(world, rng, world.held_out)


def truth(scene: Scene) -> list[geneval.Detected]:
    """The scene as a perfect detector would report it."""
    return [detected(o) for o in scene.objects]


def detected(o: Object) -> geneval.Detected:
    """One object as a perfect detector would report it."""
    left, top, right, bottom = o.box
    return geneval.Detected(o.shape, o.color, o.size, o.x, o.y, right - left, bottom - top)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely (`rng.choice` is some forty times slower)."""
    return options[int(rng.random() * len(options))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number in low..high."""
    return low + (high - low) * rng.random()


def sample_of(world: World, rng: np.random.Generator, pairs: Pairs) -> Scene:
    """A scene of the given (shape, color) pairs."""
    objects = arrange(world, rng, _sample_cast(world, rng, pairs))
    return Scene(objects, pick(rng, world.backgrounds))


def arrange(world: World, rng: np.random.Generator, cast: Sequence[tuple[str, str]]) -> tuple[Object, ...]:
    """Objects of the given (shape, color) pairs, with sizes, turns and places of the world's prior."""
    # One object takes either size; three or more are small so that they fit.
    sizes = [pick(rng, ("small", "large")) if len(cast) < 3 else "small" for _ in cast]
    for _ in range(1000):
        if objects := _place(world, rng, cast, sizes):
            return tuple(objects)
    raise ValueError(f"{len(cast)} objects find no room with gap {world.gap} and border {world.border}; lower them.")


def rearrange(
    world: World,
    rng: np.random.Generator,
    objects: Sequence[Object],
    around: Sequence[Object] = (),
    reach: float = 1.0,
) -> tuple[Object, ...]:
    """The same objects in new places, at their distance from each other and from those they are put around.

    Args:
        world: Says where there is room.
        rng: Draws the places.
        objects: To be moved.
        around: Stay where they are.
        reach: How far an object moves at most, along each axis.

    Raises:
        NoRoom: 200 tries found none.
    """
    for _ in range(200):
        placed: list[Object] = []
        boxes = [o.box for o in around]
        for o in objects:
            if (moved := find_room(world, rng, o, boxes, reach)) is None:
                break
            placed.append(moved)
            boxes.append(moved.box)
        else:
            return tuple(placed)
    raise NoRoom(f"{len(objects)} objects find no room around {len(around)} others; give fewer or smaller ones.")


def find_room(
    world: World, rng: np.random.Generator, o: Object, boxes: Sequence[Box], reach: float = 1.0
) -> Object | None:
    """The object at a random place within reach and apart from the boxes; None when 20 tries find no such place."""
    left, top, right, bottom = (o.radius * side for side in outlines.extent(o.shape, o.rotation))
    low_x, low_y = world.border - left, world.border - top
    span_x, span_y = 1 - world.border - right - low_x, 1 - world.border - bottom - low_y
    if reach < 1.0:
        high_x, high_y = min(low_x + span_x, o.x + reach), min(low_y + span_y, o.y + reach)
        low_x, low_y = max(low_x, o.x - reach), max(low_y, o.y - reach)
        span_x, span_y = high_x - low_x, high_y - low_y
    for _ in range(20):  # the innermost loop of every source: plain arithmetic
        x, y = low_x + span_x * rng.random(), low_y + span_y * rng.random()
        box = (x + left, y + top, x + right, y + bottom)
        for other in boxes:
            if not apart(box, other, world.gap):
                break
        else:
            return o._replace(x=x, y=y)
    return None


def _sample_cast(world: World, rng: np.random.Generator, pairs: Pairs) -> list[tuple[str, str]]:
    """The (shape, color) of every object."""
    single, pair, group, mixed = world.kinds
    u = rng.random() * (single + pair + group + mixed)
    if world.max_objects == 1 or u < single:
        return [pick(rng, pairs)]
    if u < single + pair or (u >= single + pair + group and world.max_objects == 2):
        first, second = pick(rng, pairs), pick(rng, pairs)
        others = [p for p in pairs if p[0] != first[0]]
        return [first, pick(rng, others) if others and rng.random() < 0.7 else second]
    if u < single + pair + group:
        first = pick(rng, pairs)
        same_shape = [first] if rng.random() < 0.5 else [p for p in pairs if p[0] == first[0]]
        count = 2 + int(rng.random() * (world.max_objects - 1))
        return [pick(rng, same_shape) for _ in range(count)]
    return [pick(rng, pairs) for _ in range(3 + int(rng.random() * (world.max_objects - 2)))]


def radius_range(size: str, count: int) -> tuple[float, float]:
    """The radii of a size in an image of `count` objects."""
    if size == "small":
        return _SMALL if count < 5 else _SMALL_CROWD
    return _LARGE_ALONE if count == 1 else _LARGE_PAIR


def _place(
    world: World, rng: np.random.Generator, cast: Sequence[tuple[str, str]], sizes: list[str]
) -> list[Object] | None:
    """One try at radii, turns and places; None when an object finds no room."""
    placed: list[Object] = []
    for (shape, color), size in zip(cast, sizes, strict=True):
        radius = between(rng, *radius_range(size, len(cast)))
        rotation = pick(rng, range(-world.max_rotation, world.max_rotation + 1))
        o = find_room(world, rng, Object(shape, color, size, 0.0, 0.0, radius, rotation), [p.box for p in placed])
        if o is None:
            return None
        placed.append(o)
    return placed


def apart(a: Box, b: Box, gap: float) -> bool:
    """Whether two boxes are `gap` apart along x or along y."""
    return a[0] - b[2] >= gap or b[0] - a[2] >= gap or a[1] - b[3] >= gap or b[1] - a[3] >= gap
