"""An experiment: where model, objective, data, mesh and loop meet.

An experiment file is a `TrainConfig` and ends in `main(CONFIG)`:

    python -m experiments.NAME --print                    shows the resolved config and stops
    python -m experiments.NAME steps=1000 mesh.fsdp=8     changes values by dotted paths

The run folder holds everything: `config.json` (resolved, with versions and devices), `log.jsonl`, `events.jsonl`,
`checkpoints/`, `codec/`, `samples/`. Running the same command again resumes it; with more `steps` it goes on.
A learning rate that falls reaches zero with the last step, so that of a finished run rises again when it goes on.

These are the names that an experiment file needs; their modules are in `nova_jax.runs`.
"""

from nova_jax.runs.config import DataSource, Preview, TrainConfig
from nova_jax.runs.main import main
from nova_jax.runs.preview import make_trained_run
from nova_jax.runs.train import Result, run
from nova_jax.training.watch import Limits

__all__ = ["DataSource", "Limits", "Preview", "Result", "TrainConfig", "main", "make_trained_run", "run"]
