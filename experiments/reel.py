"""One model of moving scenes: text to video, image to video, films of several shots; single images as well.

    python -m experiments.reel                                       the autoencoder of clips, then the model
    python -m experiments.reel model.dit.dtype=bfloat16 data.processes=8        on a GPU; docs/reel.md has a longer run

64 x 36 pixels, 25 frames at 24 a second: seven latent frames. Captioned clips, images and shots of films take turns
in batches of about the same number of tokens, so three programs are compiled. Half of the clips are given some of their
frames (`diffusion.given_frames`), which is all that image to video, interpolation and continuation need. It ends with
the exam of every ability in `runs/reel/evaluation`, which `nova evaluate --run runs/reel` repeats.

On two CPU cores the model took 53 minutes with captions in groups of bytes, its exam 12; what that taught is in
docs/reel.md.
"""

import dataclasses
import functools
from typing import Any

from data_pipelines import autoencoders, datasets, mixture
from data_pipelines.mixture import Mixture
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.source import Reels
from data_pipelines.scenes.video.world import ReelWorld
from data_pipelines.sources.memory import InMemory
from experiments import video_vae
from nova_jax import experiment, generation
from nova_jax.diffusion import DropRates, FlowMatching, GivenFrames, TimeNoise, time_sampling
from nova_jax.evaluation import task_report
from nova_jax.models.dit import DiT
from nova_jax.models.text import WordTextEncoder
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.training import optimizer

STEPS = 6500
SHEET = ("video", "camera", "start", "film")


def make_model(width: int = 128, depth: int = 6, text_width: int = 128, **fields: Any) -> TextToLatent:
    """The network; `fields` are the transformer's. 168 tokens a clip."""
    dit = DiT(
        width=width,
        depth=depth,
        num_heads=max(2, width // 64),
        in_channels=video_vae.VIDEO.latent_channels,
        patch_size=(1, 3, 2),
        text_dim=text_width,
        pooled_dim=text_width,
        num_frame_roles=1,
        has_absolute_positions=True,
        scan_unroll=depth,
    )
    encoder = WordTextEncoder(width=text_width, depth=1, num_heads=2, length=28, window=7)
    return TextToLatent(dit=dataclasses.replace(dit, **fields), text_encoder=encoder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moving:
    """What can be chosen of the data; `prepare` makes batches of it.

    Attributes:
        world: vocabulary, prior, size and length of a clip.
        length: clips; as many shots of films, and twice as many images.
        codec_path: folder of an autoencoder of clips; "": that of the run to start from, or a new one.
        cache_path: where latents are kept between runs.
        processes: that draw clips and make batches; 0: threads of this one do.
    """

    world: ReelWorld = video_world.REEL_36
    length: int = 4_000
    codec_path: str = ""
    cache_path: str = "runs/cache"
    processes: int = 0


def make_batches(data: Moving) -> Mixture:
    """Of eight batches four hold clips, two images, seven times as many, and two shots of films."""
    parts = mixture.of_videos(
        videos=Reels(data.world, "video", length=data.length),
        images=Reels(data.world, "image", length=2 * data.length),
        films=Reels(data.world, "film", length=data.length),
        codec_path=data.codec_path,
        cache_path=data.cache_path,
        processes=data.processes,
    )
    return dataclasses.replace(parts, processes=data.processes)


CONFIG = experiment.TrainConfig(
    name="reel",
    model=make_model(),
    objective=FlowMatching(
        time_sampling=time_sampling.Shifted(shift=3.0),  # many tokens show the same motion through much noise
        given=GivenFrames(guard=TimeNoise(clean=0.5)),
        drop_rates=DropRates(frames=0.1),
    ),
    data=Moving(),
    optimizer=optimizer.Muon(peak=4e-3, matrices="hidden", adam_scale=0.25, warmup=200, b2=0.99, schedule="linear"),
    steps=STEPS,
    batch_size=8,  # a loss of 0.39 on clips took a quarter of the rows that batches of 64 took
    ema_decay=0.999,
)


def prepare(config: experiment.TrainConfig) -> experiment.TrainConfig:
    """Trains the autoencoder of clips, unless the data names one or the run that is started from has it."""
    data = config.data
    codec = f"{config.start_from}/{generation.CODEC_FOLDER}" if config.start_from else ""
    codec = data.codec_path or codec or train_codec(data, f"{config.directory}_vae")
    return dataclasses.replace(config, data=make_batches(dataclasses.replace(data, codec_path=codec)))


def train_codec(data: Moving, run_dir: str, steps: int = video_vae.CLIP_STEPS) -> str:
    """The autoencoder of clips of this world; returns its folder."""
    clips = InMemory(Reels(data.world, "video", seed=1, length=data.length), processes=None)
    images = InMemory(Reels(data.world, "image", seed=1, length=5 * data.length), processes=None)
    config = video_vae.make_video_config(
        datasets.Pixels(source=clips), datasets.Pixels(source=images), name="reel_vae", steps=steps
    )
    return video_vae.train(dataclasses.replace(config, run_dir=run_dir), autoencoders.under_another_seed(clips))


finish = functools.partial(task_report.finish, sheet=SHEET)

if __name__ == "__main__":
    experiment.main(CONFIG, then=finish, prepare=prepare)
