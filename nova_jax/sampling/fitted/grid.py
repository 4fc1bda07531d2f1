"""A fitted grid as a small file: the times, and where they come from."""

import dataclasses
import json
import pathlib
from typing import Any

from nova_jax.sampling import time_grids


@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedGrid:
    """A time grid and where it comes from. `times` goes wherever a grid does.

    Attributes:
        times: from 1 to 0.
        sampler: the solver it was fitted for.
        schedule: the schedule of the denoiser.
        method: "gradient", "dynamic programming", "curvature", or "fixed" where fitting did not help.
        start: the best of the fixed grids, that of the two "before".
        nfe: evaluations for each sample.
        rmse_fitted: distance to the reference before and after, on the samples it was fitted on.
        rmse_held_out: the same on samples that fitting did not see.
        samples: how many there were in all.
        date: of the fit, ISO 8601.
        model: free text, like the three below; set them with `dataclasses.replace`.
        task: what the model was sampled for.
        guidance: kind and scale.
        seeds: of the noise.
    """

    times: tuple[float, ...]
    sampler: str
    schedule: str
    method: str
    start: str
    nfe: int
    rmse_fitted: tuple[float, float]
    rmse_held_out: tuple[float, float]
    samples: int
    date: str
    model: str = ""
    task: str = ""
    guidance: str = ""
    seeds: str = ""

    def __post_init__(self) -> None:
        time_grids.check(self.times)

    @property
    def num_steps(self) -> int:
        """The steps it was fitted for."""
        return len(self.times) - 1

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """Writes a small JSON file, which `load` and `time_grids.named` read."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        return path


def load(path: str | pathlib.Path) -> FittedGrid:
    """Reads what `FittedGrid.save` wrote.

    Raises:
        ValueError: the file holds no fitted grid; what is missing or unknown.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
        return FittedGrid(**fields)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no fitted grid: {error}") from error
