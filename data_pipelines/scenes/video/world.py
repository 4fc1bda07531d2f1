"""Moving scenes: what a shot and a film are, and where everything is in every frame.

Lengths are in units of the image's height: x runs right from 0 to width / height, y down from 0 to 1. An actor's
place, size and turn are those of the first frame. It stands still or moves at constant velocity until it meets another
actor; then the two exchange their velocities across the sides that meet (an elastic impact of equal masses).

The camera looks at layers: a backdrop of faint marks at depth `BACKDROP`, and in front of it actors at depths from 1
on. With s the share of the shot that has passed, and z a layer's depth, the layer is moved by

    pan, tilt          -amount s along x, y            every layer alike: the camera turns
    truck, pedestal    -amount s / z                   parallax: the camera travels sideways, up or down
    zoom               scale amount^(+-s)              every layer alike: the lens changes
    dolly              scale z / (z -+ amount s)       parallax: the camera travels forwards or backwards
    roll               turn by -+amount s degrees      every layer alike

about the middle of the image; what the camera does to the left, the image does to the right.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

from data_pipelines.scenes import palette, world
from data_pipelines.scenes.world import Object
from nova_jax.evaluation.geneval import Detected

# The name of every motion of the camera -> its family.
CAMERA_MOTIONS: dict[str, str] = {
    "static": "static",
    "pan left": "pan",
    "pan right": "pan",
    "tilt up": "tilt",
    "tilt down": "tilt",
    "truck left": "truck",
    "truck right": "truck",
    "pedestal up": "pedestal",
    "pedestal down": "pedestal",
    "zoom in": "zoom",
    "zoom out": "zoom",
    "dolly in": "dolly",
    "dolly out": "dolly",
    "roll clockwise": "roll",
    "roll counterclockwise": "roll",
}
# How far a family goes in the course of a shot: heights of the image, a factor (zoom), a distance in units of the
# nearest depth (dolly), degrees (roll).
AMOUNTS: dict[str, tuple[float, float]] = {
    "static": (0.0, 0.0),
    "pan": (0.3, 0.5),
    "tilt": (0.26, 0.36),
    "truck": (0.35, 0.5),
    "pedestal": (0.3, 0.4),
    "zoom": (1.3, 1.45),
    "dolly": (0.22, 0.3),
    "roll": (22.0, 35.0),
}
BACKDROP = 3.0  # depth of the marks
DEPTHS = (1.0, 1.4)  # of the actors

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS: dict[str, tuple[float, float]] = {"slow": (0.12, 0.17), "fast": (0.28, 0.36)}  # heights per second
STILL, FAST = 0.06, 0.22  # heights per second: what is slower stands still, what is faster moves quickly
READABLE = ("circle", "square", "triangle")  # at every height
RADII: dict[str, tuple[float, float]] = {"small": (0.135, 0.15), "large": (0.185, 0.205)}  # in the first frame
SPINS = (70.0, 110.0)  # degrees per second, either way
CONTACT = 0.02  # distance of the sides at which two actors bounce


class Actor(NamedTuple):
    """An object as the first frame shows it, and what it does.

    Attributes:
        object: Its place, size and turn in the first frame.
        depth: 1 or more; the camera's travel moves it by 1 / depth.
        dx: Velocity to the right before any impact, in heights per second, apart from the camera's motion.
        dy: Velocity downwards.
        spin: Clockwise turn about its centroid in degrees per second.
        direction: The velocity in words: left, right, up or down; None when it stands still at first.
        speed: slow or fast; None when it stands still at first.
    """

    object: Object
    depth: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    spin: float = 0.0
    direction: str | None = None
    speed: str | None = None


class Camera(NamedTuple):
    """A name of `CAMERA_MOTIONS` and how far it goes in the course of the shot, in the unit of `AMOUNTS`."""

    motion: str = "static"
    amount: float = 0.0


class Shot(NamedTuple):
    """One take: `frames` frames at `fps` of an image `aspect` times as wide as high; `backdrop` seeds the marks."""

    actors: tuple[Actor, ...]
    background: str
    camera: Camera
    frames: int
    fps: int = 24
    aspect: float = 16 / 9
    backdrop: int = 0


class Film(NamedTuple):
    """Shots of one cast: the same shapes, colours and sizes in the same order; between two shots is a cut."""

    shots: tuple[Shot, ...]

    @property
    def frames(self) -> int:
        """Of all shots together."""
        return sum(shot.frames for shot in self.shots)

    @property
    def cuts(self) -> tuple[int, ...]:
        """The number of the first frame of every shot but the first."""
        ends = [sum(shot.frames for shot in self.shots[: k + 1]) for k in range(len(self.shots))]
        return tuple(ends[:-1])


class View(NamedTuple):
    """How a layer of the first frame appears later: scaled and turned clockwise about the middle, then moved."""

    scale: float = 1.0
    degrees: float = 0.0
    dx: float = 0.0
    dy: float = 0.0


class Impact(NamedTuple):
    """When two actors meet, in seconds, and the axis along which they exchange velocities: 0 is x, 1 is y."""

    seconds: float
    axis: int


def view(camera: Camera, depth: float, share: float) -> View:
    """What the camera does to a layer after `share` (0..1) of the shot."""
    family, way, moved = CAMERA_MOTIONS[camera.motion], camera.motion.split()[-1], camera.amount * share
    if family in ("truck", "pedestal"):
        moved /= depth
    match family:
        case "pan" | "truck":
            return View(dx=moved if way == "left" else -moved)
        case "tilt" | "pedestal":
            return View(dy=moved if way == "up" else -moved)
        case "zoom":
            return View(scale=camera.amount ** (share if way == "in" else -share))
        case "dolly":
            return View(scale=depth / (depth - moved if way == "in" else depth + moved))
        case "roll":
            return View(degrees=-moved if way == "clockwise" else moved)
        case _:
            return View()


def seen(o: Object, by: View, aspect: float) -> Object:
    """An object of the first frame's layer as a later view shows it; its turn is rounded to a degree."""
    turn = math.radians(by.degrees)
    cos, sin = math.cos(turn) * by.scale, math.sin(turn) * by.scale
    x, y = o.x - aspect / 2, o.y - 0.5
    return o._replace(
        x=aspect / 2 + x * cos - y * sin + by.dx,
        y=0.5 + x * sin + y * cos + by.dy,
        radius=o.radius * by.scale,
        rotation=round(o.rotation + by.degrees),
    )


@functools.lru_cache(maxsize=256)
def impact(shot: Shot) -> Impact | None:
    """The only meeting of the shot's two actors in its course, if any: spinning ones and those at other depths miss."""
    if len(shot.actors) < 2:
        return None
    a, b = shot.actors
    if a.depth != b.depth or a.spin or b.spin:
        return None
    box_a, box_b = a.object.box, b.object.box
    entries, exits = [], []
    for axis, closing in enumerate((a.dx - b.dx, a.dy - b.dy)):
        before, after = box_b[axis] - box_a[axis + 2] - CONTACT, box_a[axis] - box_b[axis + 2] - CONTACT
        # b lies `before` ahead of a, or a lies `after` ahead of b; both are negative while the sides overlap.
        if closing == 0:
            entries.append(-math.inf if max(before, after) < 0 else math.inf)
            exits.append(math.inf)
        else:
            times = sorted((before / closing, -after / closing))
            entries.append(times[0])
            exits.append(times[1])
    seconds = max(entries)
    if not 0 <= seconds < min(min(exits), (shot.frames - 1) / shot.fps):
        return None
    return Impact(seconds, entries.index(seconds))


def unmoved(shot: Shot, seconds: float) -> tuple[Object, ...]:
    """The objects at a time as a camera that stays as it is would see them."""
    velocities = [(actor.dx, actor.dy) for actor in shot.actors]
    met = impact(shot)
    after = max(seconds - met.seconds, 0.0) if met else 0.0
    objects = []
    for i, (actor, (dx, dy)) in enumerate(zip(shot.actors, velocities, strict=True)):
        x, y = actor.object.x + seconds * dx, actor.object.y + seconds * dy
        if met and after:
            other = velocities[1 - i]
            x += after * (other[0] - dx) * (met.axis == 0)
            y += after * (other[1] - dy) * (met.axis == 1)
        turn = actor.object.rotation + actor.spin * seconds
        objects.append(actor.object._replace(x=x, y=y, rotation=round(turn)))
    return tuple(objects)


def objects_at(shot: Shot, frame: int) -> tuple[Object, ...]:
    """The objects in one frame's image, in the order of the actors."""
    share = frame / max(shot.frames - 1, 1)
    objects = unmoved(shot, frame / shot.fps)
    views = [view(shot.camera, actor.depth, share) for actor in shot.actors]
    return tuple(seen(o, by, shot.aspect) for o, by in zip(objects, views, strict=True))


def truth(shot: Shot, frame: int) -> list[Detected]:
    """One frame as a perfect detector would report it; an object keeps the name of its size however near it comes."""
    return [world.detected(o) for o in objects_at(shot, frame)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReelWorld:
    """The vocabulary and the prior of a family of moving scenes.

    Attributes:
        height: Of the image in pixels, 32 or more.
        width: Of the image in pixels, one to three times the height.
        fps: Frames per second.
        frames: Frames of a shot, 4 k + 1.
        shapes: Names from `outlines.SHAPES`; below 64 pixels of height only `READABLE` ones can be told apart.
        colors: Names from `palette.COLORS`.
        backgrounds: Names from `palette.BACKGROUNDS`.
        cameras: Names from `CAMERA_MOTIONS`.
        static: Share of the shots with a static camera, where `cameras` has it and others.
        max_actors: 1 or 2.
        held_out: (shape, color) pairs that are never drawn for training.
        gap: Least distance between the boxes of two actors that do not meet.
        border: Least distance between a box and the image's edge, in every frame.
    """

    height: int = 36
    width: int = 64
    fps: int = 24
    frames: int = 25
    shapes: tuple[str, ...] = READABLE
    colors: tuple[str, ...] = tuple(palette.COLORS)
    backgrounds: tuple[str, ...] = tuple(palette.BACKGROUNDS)
    cameras: tuple[str, ...] = tuple(CAMERA_MOTIONS)
    static: float = 0.4
    max_actors: int = 2
    held_out: tuple[tuple[str, str], ...] = ()
    gap: float = 0.06
    border: float = 0.02

    def __post_init__(self) -> None:
        world.check_vocabulary(self)
        if self.height < 32 or not 1 <= self.aspect <= 3:
            raise ValueError(
                f"The image is {self.height} pixels high and {self.width} wide; give a height of 32 or more and one "
                "to three times as much width."
            )
        small = [shape for shape in self.shapes if shape not in READABLE]
        if self.height < 64 and small:
            raise ValueError(
                f"shapes names {', '.join(small)}; at {self.height} pixels of height (below 64) give some of "
                f"{', '.join(READABLE)}."
            )
        if self.frames % 4 != 1 or self.frames < 1:
            nearest = max((self.frames + 1) // 4 * 4 + 1, 1)
            raise ValueError(f"frames is {self.frames}; a shot has 4 k + 1 frames, the nearest being {nearest}.")
        if self.fps < 1:
            raise ValueError(f"fps is {self.fps}; give 1 frame per second or more.")
        world.check_names("cameras", self.cameras, CAMERA_MOTIONS)
        if not 0 <= self.static <= 1:
            raise ValueError(f"static is {self.static}; give a share from 0 to 1.")
        if self.max_actors not in (1, 2):
            raise ValueError(f"max_actors is {self.max_actors}; give 1 or 2.")

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height

    @functools.cached_property
    def seen(self) -> world.Pairs:
        """The (shape, color) pairs of training."""
        return world.seen_pairs(self)

    @property
    def turns(self) -> tuple[int, ...]:
        """Some of the turns of an object, in degrees: spinning and rolling take it through all."""
        return tuple(range(0, 360, 12))

    @property
    def min_radius(self) -> float:
        """The smallest radius of an object, where the camera is farthest from it."""
        return RADII["small"][0] / AMOUNTS["zoom"][1]

    @property
    def max_radius(self) -> float:
        """The largest radius of an object, where the camera is nearest to it."""
        return RADII["large"][1] * AMOUNTS["zoom"][1]


# Three shapes on three backgrounds; some pairs are kept for tests of composition.
REEL_36 = ReelWorld(held_out=(("circle", "purple"), ("square", "orange"), ("triangle", "cyan")))
REEL_72 = dataclasses.replace(REEL_36, height=72, width=128)
