"""How shots and films are drawn: what happens first, then places where it fits into the image.

A static camera sees actors that stand still or move, some of them spinning, and pairs that meet. Under a moving camera
actors stand still, but for one in a third of the shots; it moves across a camera that pans, tilts, trucks or rises, so
that its own motion and the camera's can be told apart. Every actor stays inside the image, and apart from the other
one unless the two meet.
"""

from collections.abc import Sequence

import numpy as np

from data_pipelines.scenes import outlines, world
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.world import (
    AMOUNTS,
    CAMERA_MOTIONS,
    CONTACT,
    DEPTHS,
    DIRECTIONS,
    RADII,
    SPEEDS,
    SPINS,
    Actor,
    Camera,
    Film,
    ReelWorld,
    Shot,
)
from data_pipelines.scenes.world import Object, Pairs, between, pick

_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
_ACROSS = {"pan": ("up", "down"), "truck": ("up", "down"), "tilt": ("left", "right"), "pedestal": ("left", "right")}
_TRIES = 300
_SLACK = 1e-6
_NO_ROOM = "The actors find no room in any of 300 tries; give a wider image, fewer frames or one actor."
_ROUND = ("circle", "ring")  # nobody sees these spin


def sample_shot(of: ReelWorld, rng: np.random.Generator, pairs: Pairs) -> Shot:
    """A shot of one or two actors of the given (shape, color) pairs."""
    cast = _sample_cast(of, rng, pairs)
    return _take(of, rng, cast, pick(rng, of.backgrounds), _sample_motion(of, rng))


def sample_film(of: ReelWorld, rng: np.random.Generator, pairs: Pairs) -> Film:
    """A film of 2 to 4 shots of one cast, whose shapes differ; background and camera change at every cut."""
    cast = _sample_cast(of, rng, pairs)
    if len(cast) == 2 and cast[0].shape == cast[1].shape:
        cast = cast[:1]
    shots: list[Shot] = []
    for _ in range(2 + int(rng.random() * 3)):
        background, motion = pick(rng, of.backgrounds), _sample_motion(of, rng)
        if shots:
            others = [name for name in of.backgrounds if name != shots[-1].background]
            background = pick(rng, others) if others else background
            while motion == shots[-1].camera.motion and len(of.cameras) > 1:
                motion = pick(rng, of.cameras)
        shots.append(_take(of, rng, cast, background, motion))
    return Film(tuple(shots))


def sample_still(of: ReelWorld, rng: np.random.Generator, pairs: Pairs) -> Shot:
    """One frame of actors standing still."""
    cast, background = _sample_cast(of, rng, pairs), pick(rng, of.backgrounds)
    for _ in range(_TRIES):
        if shot := _place(of, rng, _blank(of, background, Camera(), frames=1), [Actor(o) for o in cast]):
            return shot
    raise ValueError(_NO_ROOM)


def fits(of: ReelWorld, shot: Shot) -> bool:
    """Whether every frame shows all of every actor, and two actors apart from each other unless they meet."""
    gap = CONTACT if video_world.impact(shot) else of.gap
    last = shot.frames - 1
    return all(_frame_fits(of, shot, frame, gap) for frame in (last, *range(last)))  # the last one fails most often


def _frame_fits(of: ReelWorld, shot: Shot, frame: int, gap: float) -> bool:
    boxes = [o.box for o in video_world.objects_at(shot, frame)]
    low, right, bottom = of.border - _SLACK, of.aspect - of.border + _SLACK, 1 - of.border + _SLACK
    inside = all(min(box) >= low and box[2] <= right and box[3] <= bottom for box in boxes)
    return inside and (len(boxes) < 2 or world.apart(boxes[0], boxes[1], gap - _SLACK))


def _sample_cast(of: ReelWorld, rng: np.random.Generator, pairs: Pairs) -> tuple[Object, ...]:
    """One or two objects, mostly of different shapes, somewhere."""
    first, second = pick(rng, pairs), pick(rng, pairs)
    others = [pair for pair in pairs if pair[0] != first[0]]
    if others and rng.random() < 0.7:
        second = pick(rng, others)
    names = [first] if of.max_actors == 1 or rng.random() < 0.5 else [first, second]
    sizes = [pick(rng, tuple(RADII)) for _ in names]
    return tuple(
        Object(shape, color, size, 0.0, 0.0, between(rng, *RADII[size]))
        for (shape, color), size in zip(names, sizes, strict=True)
    )


def _sample_motion(of: ReelWorld, rng: np.random.Generator) -> str:
    """The name of a camera motion."""
    moving = [name for name in of.cameras if name != "static"]
    if "static" in of.cameras and (not moving or rng.random() < of.static):
        return "static"
    return pick(rng, moving)


def _take(of: ReelWorld, rng: np.random.Generator, cast: Sequence[Object], background: str, motion: str) -> Shot:
    """A shot of the cast under a camera motion."""
    family = CAMERA_MOTIONS[motion]
    can_meet = family == "static" and len({o.color for o in cast}) == 2
    for _ in range(_TRIES):
        blank = _blank(of, background, Camera(motion, between(rng, *AMOUNTS[family])), of.frames)
        if can_meet and rng.random() < 0.35:
            tries = (_meet(of, rng, blank, cast) for _ in range(20))
        else:
            actors = _act(rng, cast) if family == "static" else _act_under(rng, cast, family)
            tries = (_place(of, rng, blank, actors) for _ in range(20))
        if shot := next(filter(None, tries), None):
            return shot
    raise ValueError(_NO_ROOM)


def _blank(of: ReelWorld, background: str, camera: Camera, frames: int) -> Shot:
    return Shot((), background, camera, frames, of.fps, of.aspect)


def _act(rng: np.random.Generator, cast: Sequence[Object]) -> list[Actor]:
    """What the cast does under a static camera."""
    actors = []
    for o in cast:
        actor = Actor(o) if rng.random() < 0.2 else _moving(rng, o, tuple(DIRECTIONS))
        if o.shape not in _ROUND and rng.random() < 0.2:
            actor = actor._replace(spin=pick(rng, (-1, 1)) * between(rng, *SPINS))
        actors.append(actor)
    return actors


def _act_under(rng: np.random.Generator, cast: Sequence[Object], family: str) -> list[Actor]:
    """What the cast does under a moving camera: at most one of it moves."""
    mover = int(rng.random() * len(cast)) if rng.random() < 1 / 3 else None
    actors = [
        _moving(rng, o, _ACROSS.get(family, tuple(DIRECTIONS))) if i == mover else Actor(o) for i, o in enumerate(cast)
    ]
    return [actor._replace(depth=between(rng, *DEPTHS)) for actor in actors]


def _moving(
    rng: np.random.Generator, o: Object, directions: Sequence[str], speeds: Sequence[str] = tuple(SPEEDS)
) -> Actor:
    direction, speed = pick(rng, directions), pick(rng, speeds)
    x, y = DIRECTIONS[direction]
    fast = between(rng, *SPEEDS[speed])
    return Actor(o, dx=x * fast, dy=y * fast, direction=direction, speed=speed)


def _place(of: ReelWorld, rng: np.random.Generator, blank: Shot, actors: Sequence[Actor]) -> Shot | None:
    """One try at places from where the actors' and the camera's motions keep the actors in the image."""
    placed = []
    for actor in actors:
        by = video_world.view(blank.camera, actor.depth, 1.0)
        seconds = (blank.frames - 1) / blank.fps
        moved = (actor.dx * seconds + by.dx, actor.dy * seconds + by.dy)
        extent = outlines.extent(actor.object.shape, 0)
        ends = []
        for axis, length in enumerate((of.aspect, 1.0)):
            low = of.border - actor.object.radius * extent[axis] - min(moved[axis], 0)
            high = length - of.border - actor.object.radius * extent[axis + 2] - max(moved[axis], 0)
            if low > high:
                return None
            ends.append(between(rng, low, high))
        placed.append(actor._replace(object=actor.object._replace(x=ends[0], y=ends[1])))
    shot = blank._replace(actors=tuple(placed), backdrop=int(rng.random() * 2**31))
    return shot if video_world.impact(shot) is None and fits(of, shot) else None


def _meet(of: ReelWorld, rng: np.random.Generator, blank: Shot, cast: Sequence[Object]) -> Shot | None:
    """One try at the first actor, a fast one, running into the second one, which stands still or comes towards it."""
    a = _moving(rng, cast[0], tuple(DIRECTIONS), ("fast",))
    b = Actor(cast[1]) if rng.random() < 0.5 else _moving(rng, cast[1], (_OPPOSITE[str(a.direction)],))
    seconds = between(rng, 0.3, 0.6) * (blank.frames - 1) / blank.fps
    way = DIRECTIONS[str(a.direction)]
    # Where they meet, their centroids are level and their sides `CONTACT` apart.
    axis = 0 if way[0] else 1
    sides = [o.radius * np.abs(outlines.extent(o.shape, 0)) for o in cast]
    ahead = 2 if way[axis] > 0 else 0
    reach = sides[0][axis + ahead] + sides[1][axis + 2 - ahead] + CONTACT
    x, y = between(rng, 0.0, of.aspect), between(rng, 0.0, 1.0)
    first = cast[0]._replace(x=x - seconds * a.dx, y=y - seconds * a.dy)
    second = cast[1]._replace(
        x=x + way[0] * float(reach) - seconds * b.dx, y=y + way[1] * float(reach) - seconds * b.dy
    )
    actors = (a._replace(object=first), b._replace(object=second))
    shot = blank._replace(actors=actors, backdrop=int(rng.random() * 2**31))
    return shot if video_world.impact(shot) and fits(of, shot) else None
