"""The command line of an experiment: `python -m experiments.NAME path=value ... [--print]`."""

import contextlib
import io
import json
import sys
from collections.abc import Callable

from nova_jax import config as configs
from nova_jax.parallel import distributed
from nova_jax.runs.config import TrainConfig, with_schedule
from nova_jax.runs.train import CHECKPOINTS, Result, run
from nova_jax.training import checkpoint, lock, loop, watch


def main(
    config: TrainConfig,
    then: Callable[[TrainConfig, Result], object] | None = None,
    prepare: Callable[[TrainConfig], TrainConfig] | None = None,
) -> None:
    """The command line of an experiment: overrides, `--print`, errors in one sentence.

    Args:
        config: the experiment's CONFIG.
        then: what to do with the finished run, such as scoring it and writing its report. All processes call it, and
            process 0 alone prints.
        prepare: a last change to the config before the run, such as training the autoencoder it needs.
    """
    arguments = sys.argv[1:]
    try:
        config = configs.override(config, [text for text in arguments if text != "--print"])
        if "--print" in arguments:
            print(json.dumps(configs.to_dict(with_schedule(config)), indent=2))
            return
        config = prepare(config) if prepare else config
        result = run(config)
        if then is not None:
            quiet = contextlib.nullcontext() if distributed.is_main() else contextlib.redirect_stdout(io.StringIO())
            with quiet, watch.Watch(config.limits, "what comes after training"):
                then(config, result)
    except loop.NonFiniteLoss as error:
        sys.exit(f"{config.name}: {error} {_advise(config, error)}")
    except (ValueError, OSError, ImportError, lock.RunLocked, checkpoint.CheckpointError) as error:
        sys.exit(f"{config.name}: {error}")


def _advise(config: TrainConfig, error: loop.NonFiniteLoss) -> str:
    """What to type after a loss that is not finite; nothing where the run was not this one, but one before it."""
    if error.directory != (config.directory / CHECKPOINTS).absolute():
        return f"It is a run that {config.name} needs first, whose optimizer is set in Python."
    return f"Run the same command again with optimizer.peak={config.optimizer.peak / 2:g}: half of what it was."
