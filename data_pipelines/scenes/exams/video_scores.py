"""What clips are worth, held against the shots that were asked for; clips and shots are those of `video_world`.

    attributes      share of the frames whose cast has the right shapes, and colours where they are said
    persistent      every object keeps its shape and colour in all frames from its first to the clip's end
    cast            the objects that stay in the clip are those asked for
    direction       every actor moves in its direction, or stands still, after the camera's motion is taken back
    speed           and those that move do so slowly or quickly, where that is said
    velocity_error  mean distance of the actors' velocities to the true ones, in heights per second
    family          of the camera: static, pan, tilt, truck, pedestal, zoom, dolly, roll
    camera          the camera's motion: the family and which way
    motion          how far everything moves, over how far it does in truth: the objects and the backdrop
    flicker         the energy of the frames' second difference, over that of the true clip, each above rounding
    start_psnr      of the first frame with a given image, in decibels
    cuts            F1 of the cuts of a film, each at exactly its frame
    carried         every later shot of a film has the cast that its first shot shows
    leaked          in some later shot the camera does what it should do in the shot before, which is never the same
    correct         what the caption says: cast, direction, speed, camera; of a film that of all shots, and carried

Actors meet at times: the velocity that counts is that before. What does not apply to a clip is None.
"""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from data_pipelines.scenes import parser
from data_pipelines.scenes.exams import video_reading
from data_pipelines.scenes.exams.video_reading import Name, Reading, Track
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.camera_motion import Drift
from data_pipelines.scenes.video.world import BACKDROP, CAMERA_MOTIONS, Actor, Camera, Film, ReelWorld, Shot
from data_pipelines.scenes.world import Object
from nova_jax.evaluation import image_metrics
from nova_jax.evaluation.geneval import Detected

MAX_PSNR = 60.0  # that of images which agree
ROUNDING = 1.0  # squared levels of 255: the second difference of frames that are rounded alone
LEAST_MOTION = 0.05  # heights; of a truth that moves less no ratio is taken
LASTING = 0.5  # share of a clip's frames from which an object belongs to its cast

TOLD = ("cast", "direction", "speed", "camera")  # what a caption says

Clip = UInt8[np.ndarray, "f h w 3"]
Judged = dict[str, bool | float | None]


class Said(NamedTuple):
    """What a caption leaves no choice about."""

    color: bool = True
    speed: bool = True
    background: bool = False


ALL = Said()


def said(text: str, shot: Shot) -> Said:
    """What a caption of a shot says, by its words."""
    words = set(text.replace(",", " ").split())
    return Said(
        color=all(actor.object.color in words for actor in shot.actors),
        speed=bool(words & {"slowly", "quickly"}),
        background=shot.background in words,
    )


def judge(shot: Shot, clip: Clip, true: Clip, world: ReelWorld, what: Said = ALL) -> Judged:
    """The scores of one shot.

    Args:
        shot: What was asked for.
        clip: What was sampled.
        true: The shot, rendered.
        world: Of the shot.
        what: What the caption said.
    """
    reading = video_reading.read(clip, world)
    found = video_reading.camera(reading)
    judged = judge_cast(shot, reading, what) | judge_camera(shot, found)
    judged |= judge_motion(shot, reading, found, world, what)
    judged |= {"motion": motion_ratio(shot, reading), "flicker": flicker(clip, true)}
    return {"correct": all(judged[name] is not False for name in TOLD)} | judged


def judge_cast(shot: Shot, reading: Reading, what: Said) -> Judged:
    """Who is there, and whether they stay as they are."""
    asked = _cast([actor.object[:2] for actor in shot.actors], what)
    right = [_cast([d[:2] for d in found], what) == asked for found in reading.objects]
    frames = len(reading.objects)
    kept = [len(t.frames) == frames - t.frames[0] and len({d[:2] for d in t.seen}) == 1 for t in reading.tracks]
    return {
        "attributes": float(np.mean(right)),
        "persistent": all(kept) and bool(kept),
        "cast": _cast([t.name for t in lasting(reading)], what) == asked,
    }


def judge_camera(shot: Shot, found: Camera | None) -> Judged:
    """What the camera does."""
    return {
        "family": found is not None and CAMERA_MOTIONS[found.motion] == CAMERA_MOTIONS[shot.camera.motion],
        "camera": found is not None and found.motion == shot.camera.motion,
    }


def judge_motion(shot: Shot, reading: Reading, found: Camera | None, world: ReelWorld, what: Said) -> Judged:
    """How the actors move; a clip that lacks one has its motion wrong."""
    pairs = match(shot, lasting(reading))
    if len(pairs) < len(shot.actors):
        return {"direction": False, "speed": None, "velocity_error": None}
    read = [(actor, video_reading.motion(t, found or Camera(), world)) for actor, t in pairs]
    errors = [math.dist(motion.before, (actor.dx, actor.dy)) for actor, motion in read]
    speeds = [motion.speed == actor.speed for actor, motion in read if actor.speed is not None]
    return {
        "direction": all(motion.direction == actor.direction for actor, motion in read),
        "speed": all(speeds) if what.speed and speeds else None,
        "velocity_error": float(np.mean(errors)),
    }


def shows(shot: Shot, image: UInt8[np.ndarray, "h w 3"], world: ReelWorld, what: Said = ALL) -> bool:
    """Whether an image shows the cast of a shot, and nothing else."""
    found = [d[:2] for d in parser.parse(image, world)]
    return _cast(found, what) == _cast([actor.object[:2] for actor in shot.actors], what)


def match(shot: Shot, tracks: Sequence[Track]) -> list[tuple[Actor, Track]]:
    """Each actor with a track of its shape and colour, or else of its shape; of several, the nearest at the start."""
    free, pairs = list(tracks), []
    for actor in shot.actors:
        o = actor.object

        def unlike(t: Track, o: Object = o) -> tuple[bool, bool, float]:
            return t.name[0] != o.shape, t.name[1] != o.color, math.dist(t.seen[0][3:5], (o.x, o.y))

        best = min(free, key=unlike, default=None)
        if best is not None and best.name[0] == o.shape:
            free.remove(best)
            pairs.append((actor, best))
    return pairs


def lasting(reading: Reading) -> list[Track]:
    """The tracks of objects that are there for most of the clip."""
    return [t for t in reading.tracks if len(t.frames) > LASTING * len(reading.objects)]


def judge_film(film: Film, texts: Sequence[str], clip: Clip, world: ReelWorld) -> Judged:
    """The scores of a film whose shots follow each other as they should: each is judged by itself, and all together.

    Args:
        film: What was asked for.
        texts: The caption of each shot; what it leaves open of a later one is as in the first.
        clip: What was sampled, as many frames as the film has.
        world: Of the film.
    """
    parts = np.split(clip, list(film.cuts))
    casts, motions, right = [], [], []
    for shot, text, part in zip(film.shots, texts, parts, strict=True):
        reading, what = video_reading.read(part, world), said(text, shot)
        found = video_reading.camera(reading)
        motions.append(None if found is None else found.motion)
        casts.append(_cast([t.name for t in lasting(reading)], ALL))
        judged = judge_cast(shot, reading, what) | judge_camera(shot, found)
        right.append(judged | judge_motion(shot, reading, found, world, what))
    whole: Judged = {name: all(judged[name] is not False for judged in right) for name in TOLD}
    carried = bool(casts[0]) and all(cast == casts[0] for cast in casts[1:])
    return {
        "correct": carried and all(whole.values()),
        "carried": carried,
        **whole,
        "cuts": video_reading.cut_f1(video_reading.cuts(clip), film.cuts),
        "leaked": any(was == before.camera.motion for was, before in zip(motions[1:], film.shots, strict=False)),
    }


def true_drift(shot: Shot) -> Drift:
    """How the camera moves the backdrop."""
    by = video_world.view(shot.camera, BACKDROP, 1.0)
    return Drift(by.dx, by.dy, math.log(by.scale), by.degrees)


def motion_ratio(shot: Shot, reading: Reading) -> float | None:
    """How far the objects and the backdrop get from where they start, on average over the clip, over that in truth."""
    objects = zip(*(video_world.truth(shot, k) for k in range(shot.frames)), strict=True)
    true = _way([list(seen) for seen in objects], true_drift(shot))
    moved = _way([t.seen for t in lasting(reading)], reading.drift)
    return moved / true if true >= LEAST_MOTION else None


def flicker(clip: Clip, true: Clip) -> float | None:
    """The mean square of the frames' second difference, over that of the truth."""
    if len(clip) < 3:
        return None
    drawn, least = (float((np.diff(each.astype(np.float64), 2, axis=0) ** 2).mean()) for each in (clip, true))
    return (drawn + ROUNDING) / (least + ROUNDING)


def start_psnr(clip: Clip, given: UInt8[np.ndarray, "h w 3"]) -> float:
    """Peak signal to noise ratio of the first frame and an image, at most `MAX_PSNR`."""
    return min(image_metrics.psnr(clip[0], given, np.ones(given.shape[:2], bool)), MAX_PSNR)


def _cast(names: Sequence[Name], what: Said) -> collections.Counter[str]:
    """How many of each there are, by what is said of them."""
    return collections.Counter(f"{color} {shape}" if what.color else shape for shape, color in names)


def _way(objects: Sequence[Sequence[Detected]], drift: Drift | None) -> float:
    """The mean distance from the start: of the objects on average, and of the backdrop."""
    ways = [np.hypot(*np.transpose([(d.x - seen[0].x, d.y - seen[0].y) for d in seen])).mean() for seen in objects]
    return (float(np.mean(ways)) if ways else 0.0) + (drift.way / 2 if drift else 0.0)
