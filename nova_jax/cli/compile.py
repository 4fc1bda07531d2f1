"""`nova compile`: the programs of a run compiled ahead of time, by drawing once and keeping what that needed.

nova compile runs/quickstart                               for prompts, as `nova generate` draws them
nova compile runs/canvas --request request.json            for requests of this kind and size
nova compile runs/quickstart --platforms cuda tpu          and in a form that other machines compile
nova compile runs/quickstart --train                       the training step, into RUN/cache
"""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import tyro

from nova_jax.cli.options import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compile:
    """Compile the programs that draw with a trained run, for `nova generate --compiled`, which compiles nothing."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """The run folder; programs go to RUN/programs."""
    request: pathlib.Path | None = None
    """A request in the public JSON form whose kind and size are meant. Default: prompts, or one clip of a video run."""
    count: int = 1
    """How many images are drawn at once; more than one device can share many otherwise than few."""
    sampler: str | None = None
    """As in `nova generate`, which needs another program for each."""
    num_steps: int | None = None
    """As in `nova generate`; up to 32 share one program."""
    time_grid: str | None = None
    """As in `nova generate`; all share one program."""
    guidance_scale: float | None = None
    """As in `nova generate`: 0, 1 and all others are three programs."""
    guidance_interval: tuple[float, float] | None = None
    """As in `nova generate`, which needs another program for each."""
    text_encoder: pathlib.Path | None = None
    """Folder of the run's frozen text encoder, if it has moved since the run was trained."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ()
    """Keep the programs before compilation as well, for machines with other devices."""
    train: bool = False
    """Compile the training step in place of what draws: the run goes on from RUN/cache without compiling it."""
    mesh: Mesh = Mesh()

    def execute(self) -> None:
        """Draws once, and prints the programs that this needed."""
        if self.train:
            from nova_jax.runs import record, train

            train.compile_step(record.build(record.read(self.run)["config"]))
            return
        from nova_jax import generation
        from nova_jax.cli import images
        from nova_jax.generation import compiled

        trained = generation.load_run(self.run, text_path=self.text_encoder, mesh=self.mesh.make(self.run))
        writer = compiled.Writer(self.run, self.platforms)
        names = ("sampler", "num_steps", "time_grid", "guidance_scale", "guidance_interval")
        self._draw(trained._replace(programs=writer), images.given(self, *names))
        for name in writer.written:
            path = writer.folder / f"{name}.program"
            print(f"{path}  {path.stat().st_size:,} bytes")

    def _draw(self, trained: Any, sampling: dict[str, Any]) -> None:
        from nova_jax import generation
        from nova_jax.cli import images, videos

        settings = dataclasses.replace(generation.settings_for(trained), **sampling)
        if videos.draws_videos(trained):
            prompts = () if self.request else ("",) * self.count
            for request in videos.read_requests(trained, prompts, self.request, None, {}):
                for _ in generation.videos.draw_stream(trained, request, settings):
                    pass
        elif self.request:
            request = images.read_request(trained, self.request, None, {})
            generation.images.draw(trained, request, images.settings_of(request, sampling))
        else:
            generation.generate(trained, [""] * self.count, list(range(self.count)), settings)
