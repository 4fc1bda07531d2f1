"""Captions of shots: true, and naming every actor with its motion, and the motion of the camera.

    a red circle moving right and a blue square standing still, camera pan left
    pan left, a red circle moving right and a blue square standing still
    a red circle moving right hits a blue square standing still
    the circle moves right and the blue square stands still, zoom in        (a later shot of a film)

The camera's words stand at the start or at the end; those of a static one may be left out. A colour or a size is said
of all actors or of none; in a later shot of a film an actor may be called by its shape alone, for earlier shots show
what it looks like.
"""

import numpy as np

from data_pipelines.scenes import reel_world, world
from data_pipelines.scenes.reel_world import Actor, Shot
from nova_jax.evaluation import geneval

MAX_LENGTH = 120  # bytes

_WAYS = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
_ADVERBS = {"slow": " slowly", "fast": " quickly"}
_HITS = ("hits", "bumps into")
_BOUNCES = ("bounce off each other", "collide")


def caption(shot: Shot, rng: np.random.Generator) -> str:
    """One of a shot's captions."""
    color = rng.random() < 0.8
    keeps_size = reel_world.CAMERA_MOTIONS[shot.camera.motion] not in ("zoom", "dolly")
    size = keeps_size and len(shot.actors) == 1 and rng.random() < 0.3
    names = [geneval.phrase(o.shape, o.color if color else None, o.size if size else None) for o, *_ in shot.actors]
    speed = rng.random() < 0.5
    met = reel_world.impact(shot)
    actions = [_moving(actor, rng, speed) for actor in shot.actors]
    if met is None:
        told = " and ".join(f"{name} {action}" for name, action in zip(names, actions, strict=True))
    elif shot.actors[-1].direction is None:
        told = f"{names[0]} {actions[0]} {world.pick(rng, _HITS)} {names[1]} {actions[1]}"
    else:
        told = f"{names[0]} {actions[0]} and {names[1]} {actions[1]} {world.pick(rng, _BOUNCES)}"
    return _with_surroundings(told, shot, rng)


def later_caption(shot: Shot, rng: np.random.Generator) -> str:
    """One of the captions of a later shot of a film, whose actors are known; their shapes differ."""
    by_shape = rng.random() < 0.6
    names = [f"the {o.shape}" if by_shape else f"the {o.color} {o.shape}" for o, *_ in shot.actors]
    speed = rng.random() < 0.5
    met = reel_world.impact(shot)
    actions = [_moves(actor, rng, speed) for actor in shot.actors]
    if met is None:
        told = " and ".join(f"{name} {action}" for name, action in zip(names, actions, strict=True))
    elif shot.actors[-1].direction is None:
        told = f"{names[0]} {actions[0]} and {world.pick(rng, _HITS)} {names[1]}, which stands still"
    else:
        told = f"{names[0]} {actions[0]}, {names[1]} {actions[1]} and they {world.pick(rng, _BOUNCES)}"
    return _with_surroundings(told, shot, rng)


def _moving(actor: Actor, rng: np.random.Generator, speed: bool) -> str:
    """What an actor does, after "a red circle"."""
    if actor.direction is None or actor.speed is None:
        return "spinning in place" if actor.spin else "standing still"
    adverb = _ADVERBS[actor.speed] if speed else ""
    return f"{'spinning and ' if actor.spin else ''}moving{adverb} {world.pick(rng, _WAYS[actor.direction])}"


def _moves(actor: Actor, rng: np.random.Generator, speed: bool) -> str:
    """What an actor does, after "the circle"."""
    if actor.direction is None or actor.speed is None:
        return "spins in place" if actor.spin else "stands still"
    adverb = _ADVERBS[actor.speed] if speed else ""
    return f"{'spins and ' if actor.spin else ''}moves{adverb} {world.pick(rng, _WAYS[actor.direction])}"


def _with_surroundings(told: str, shot: Shot, rng: np.random.Generator) -> str:
    """What happens, the camera's motion, and at times the background where there is room."""
    camera = camera_phrase(shot.camera.motion, rng)
    is_first, says_ground = rng.random() < 0.5, rng.random() < 0.3
    ground = f" on a {shot.background} background"
    if camera and len(told) + len(camera) + 2 > MAX_LENGTH:
        camera = shot.camera.motion
    room = MAX_LENGTH - len(told) - (len(camera) + 2 if camera else 0)
    if says_ground and len(ground) <= room:
        told += ground
    if not camera:
        return told
    return f"{camera}, {told}" if is_first else f"{told}, {camera}"


def camera_phrase(motion: str, rng: np.random.Generator) -> str:
    """Such as "pan left"; of a static camera nothing, three times in four."""
    if motion == "static":
        return world.pick(rng, ("", "", "", "static camera"))
    return world.pick(rng, (motion, f"camera {motion}"))
