"""Ground truth of the tasks that read or re-draw a whole image: generate, segment, matte, vary, structure."""

import numpy as np

from data_pipelines.scenes import captions, referring, world
from data_pipelines.scenes.captions import Described
from data_pipelines.scenes.editing.truth import Truth
from data_pipelines.scenes.world import Pairs, Scene, World
from nova_jax.tasks import conditions, limits

ABSENT = 0.1  # share of the referring phrases that mean nothing in the image
# Label colours of segmentation images; the background is black.
LABELS = ("#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff", "#ff00ff", "#ffffff", "#ff8000")


def sample_generate(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """A scene of the given pairs and its caption."""
    scene = world.sample_of(of, rng, pairs)
    return Truth(scene, captions.describe(scene, rng, wording=of.wording))


def sample_segment(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """A scene and a phrase for some of its objects, or for none."""
    scene = world.sample_scene(of, rng)
    referral, chosen = referring.sample_referral(scene, of, rng, ABSENT)
    return Truth(scene, Described(referral.text), scene, chosen=chosen)


def sample_matte(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """A scene whose objects all stay."""
    scene = world.sample_scene(of, rng)
    return Truth(scene, Described(""), scene, chosen=tuple(range(len(scene.objects))))


def sample_vary(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """One cast in several layouts; of the captions half are empty and a quarter set the background alone.

    The more similar, the nearer the objects stay to their places in the first reference, and the more often they keep
    its background.
    """
    cast = world.sample_scene(of, rng).objects
    count = 1 + int(rng.random() * conditions.MAX_REFERENCES)
    references = tuple(Scene(world.rearrange(of, rng, cast), world.pick(rng, of.backgrounds)) for _ in range(count))
    lowest = limits.SIMILARITY_STRENGTH.low
    similarity = world.between(rng, lowest, 1.0)
    freedom = (1 - similarity) / (1 - lowest)
    background = world.pick(rng, of.backgrounds) if rng.random() < freedom else references[0].background
    after = Scene(world.rearrange(of, rng, references[0].objects, reach=freedom), background)
    u = rng.random()
    if u < 0.5:
        said = Described("")
    elif u < 0.75:
        said = Described(captions.place_phrase(after.background, rng), background=True)
    else:
        said = captions.describe(after, rng, wording=of.wording)
    return Truth(after, said, references=references, similarity=similarity)


def sample_structure(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """A layout in new colours, which the caption says."""
    before = world.sample_scene(of, rng)
    objects = tuple(
        o._replace(color=world.pick(rng, [color for shape, color in of.seen if shape == o.shape]))
        for o in before.objects
    )
    after = Scene(objects, world.pick(rng, of.backgrounds))
    said = captions.describe(after, rng, color=True, wording=of.wording)
    labels = tuple(LABELS[i] for i in rng.permutation(len(LABELS))[: len(objects)])
    return Truth(after, said, before, labels=labels, mode=int(rng.random() * 2))
