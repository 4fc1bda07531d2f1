"""Captions of shots: true, and naming every actor with its motion, and the motion of the camera.

    a red circle moving right and a blue square standing still, camera pan left
    pan left, a red circle moving right and a blue square standing still
    a red circle moving right hits a blue square standing still
    the circle moves right and the square stands still, zoom in        (a later shot of a film)

The camera's words stand at the start or at the end; those of a static one may be left out. A colour or a size is said
of all actors or of none; in a later shot of a film an actor may be called by its shape alone, for earlier shots show
what it looks like.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.scenes import world
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.world import Actor, Shot
from nova_jax.evaluation import geneval

MAX_LENGTH = 120  # bytes

_WAYS = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
_ADVERBS = {"slow": " slowly", "fast": " quickly"}


class _Verbs(NamedTuple):
    """The forms of the verbs, and what joins two actors that meet."""

    stand: str
    move: str
    spin: str
    then: str
    that: str
    and_: str
    they: str


_DOING = _Verbs("standing", "moving", "spinning", then="", that="", and_=" and", they="")
_DOES = _Verbs("stands", "moves", "spins", then=" and", that=", which", and_=",", they=" and they")
_HITS = ("hits", "bumps into")
_BOUNCES = ("bounce off each other", "collide")


def caption(shot: Shot, rng: np.random.Generator) -> str:
    """One of a shot's captions."""
    color = rng.random() < 0.8
    keeps_size = video_world.CAMERA_MOTIONS[shot.camera.motion] not in ("zoom", "dolly")
    size = keeps_size and len(shot.actors) == 1 and rng.random() < 0.3
    names = [geneval.phrase(o.shape, o.color if color else None, o.size if size else None) for o, *_ in shot.actors]
    return _with_surroundings(_tell(shot, names, _DOING, rng), shot, rng)


def later_caption(shot: Shot, rng: np.random.Generator) -> str:
    """One of the captions of a later shot of a film, whose actors are known; their shapes differ."""
    by_shape = rng.random() < 0.6
    names = [f"the {o.shape}" if by_shape else f"the {o.color} {o.shape}" for o, *_ in shot.actors]
    return _with_surroundings(_tell(shot, names, _DOES, rng), shot, rng)


def _tell(shot: Shot, names: list[str], verbs: _Verbs, rng: np.random.Generator) -> str:
    """What every actor does: at length, or in few words where that leaves no room for the camera's motion."""
    camera = 0 if shot.camera.motion == "static" else len(shot.camera.motion) + 2
    speed = rng.random() < 0.5
    actions = [_action(actor, verbs, _ADVERBS if speed else {}, rng) for actor in shot.actors]
    told = _join(shot, names, actions, verbs, rng)
    if len(told) + camera > MAX_LENGTH:
        told = _join(shot, names, [_action(actor, verbs, {}, None) for actor in shot.actors], verbs, rng)
    return told


def _join(shot: Shot, names: list[str], actions: list[str], verbs: _Verbs, rng: np.random.Generator) -> str:
    told = [f"{name} {action}" for name, action in zip(names, actions, strict=True)]
    if video_world.impact(shot) is None:
        return " and ".join(told)
    if shot.actors[-1].direction is None:
        return f"{told[0]}{verbs.then} {world.pick(rng, _HITS)} {names[1]}{verbs.that} {actions[1]}"
    return f"{told[0]}{verbs.and_} {told[1]}{verbs.they} {world.pick(rng, _BOUNCES)}"


def _action(actor: Actor, verbs: _Verbs, adverbs: dict[str, str], rng: np.random.Generator | None) -> str:
    """What an actor does, after its name; without a generator in few words."""
    if actor.direction is None or actor.speed is None:
        return verbs.spin + " in place" if actor.spin else verbs.stand + " still"
    ways = _WAYS[actor.direction]
    spin = verbs.spin + " and " if actor.spin else ""
    return f"{spin}{verbs.move}{adverbs.get(actor.speed, '')} {world.pick(rng, ways) if rng else ways[0]}"


def _with_surroundings(told: str, shot: Shot, rng: np.random.Generator) -> str:
    """What happens, the camera's motion, and at times the background, where there is room."""
    motion = shot.camera.motion
    phrases = ("", "", "", "static camera") if motion == "static" else (motion, f"camera {motion}")
    camera = world.pick(rng, phrases)
    is_first, says_ground = rng.random() < 0.5, rng.random() < 0.3
    ground = f" on a {shot.background} background"
    if camera and len(told) + len(camera) + 2 > MAX_LENGTH:
        camera = phrases[0]
    if says_ground and len(told) + len(ground) + (len(camera) + 2 if camera else 0) <= MAX_LENGTH:
        told += ground
    if not camera:
        return told
    return f"{camera}, {told}" if is_first else f"{told}, {camera}"
