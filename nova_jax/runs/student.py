"""The run of a few-step student, made from the record of its teacher's."""

import dataclasses

from nova_jax import distillation
from nova_jax.generation.settings import SamplingSettings
from nova_jax.runs import record
from nova_jax.runs.config import TrainConfig
from nova_jax.training import optimizer as optimizers


def make_config(
    teacher: str, method: distillation.Method, *, name: str, optimizer: optimizers.Optimizer, steps: int
) -> TrainConfig:
    """A student on the teacher's data, network and autoencoder; the network gains a target time.

    Args:
        teacher: run folder; the student's is TEACHER_NAME.
        method: what the student learns.
        name: of the method, as folders are named.
        optimizer: its learning rate falls to zero with the last step.
        steps: of training.

    Raises:
        FileNotFoundError: the teacher is no run.
    """
    saved = record.read(teacher)["config"]
    model, data, preview = (record.build(saved[key]) for key in ("model", "data", "preview"))
    known = method.trained_steps or (4,)
    settings = SamplingSettings(sampler=method.sampler, num_steps=4 if 4 in known else min(known), guidance_scale=1.0)
    return TrainConfig(
        name="distill",
        model=dataclasses.replace(model, dit=dataclasses.replace(model.dit, has_second_time=True)),
        objective=method,
        data=data,
        optimizer=dataclasses.replace(optimizer, schedule="linear"),
        steps=steps,
        batch_size=saved["batch_size"],
        ema_decay=0.99,
        log_every=20,
        checkpoint_every=500,
        preview=preview and dataclasses.replace(preview, settings=settings),
        run_dir=f"{teacher.rstrip('/')}_{name}",
        teacher=teacher,
    )
