"""Services that show the scalars of a run while it trains: TensorBoard, Weights & Biases, trackio.

Each is an optional package, and a name in `TrainConfig.trackers`. A run that resumes goes on with its own curves. What
is not said here, such as project, mode and key, is taken by each service from its own environment variables.
"""

import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tracker(Protocol):
    """Gets what log.jsonl gets."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Takes the scalars of one step; steps rise."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


def open_tracker(name: str, directory: pathlib.Path, start_step: int) -> Tracker:
    """Opens a service for one run.

    Args:
        name: a key of `TRACKERS`.
        directory: of the run; its name is that of the run.
        start_step: of the restored state.

    Raises:
        ValueError: an unknown name.
        ImportError: its package is not installed; says which.
    """
    check(name)
    package = PACKAGES[name]
    try:
        return TRACKERS[name](directory, start_step)
    except ImportError as error:
        raise ImportError(f'{name} needs the package {package}: pip install "nova-jax[{name}]"') from error


def check(name: str) -> None:
    """Refuses a name that is no tracker.

    Raises:
        ValueError: an unknown name.
    """
    if name not in TRACKERS:
        raise ValueError(f"unknown tracker {name!r}: use one of {', '.join(TRACKERS)}")


class _TensorBoard:
    def __init__(self, directory: pathlib.Path, start_step: int) -> None:
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=start_step + 1)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, directory: pathlib.Path, start_step: int) -> None:
        import wandb

        del start_step  # it leaves out steps that it has already
        name = directory.absolute().name
        self._run = wandb.init(name=name, id=_identity(directory), dir=str(directory), resume="allow")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, directory: pathlib.Path, start_step: int) -> None:
        import trackio

        del start_step
        self._run = trackio.init(project="nova_jax", name=_identity(directory), resume="allow")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


def _identity(directory: pathlib.Path) -> str:
    """By which a service knows the run again: the name of its folder, and where that lies."""
    path = directory.absolute()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


TRACKERS: dict[str, Callable[[pathlib.Path, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
