"""One process of a small training run, as an experiment would start it; the tests kill it."""

import argparse
import functools
import sys

import jax

from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes
from nova_jax.training import checkpoint, lock, logging, loop, step
from tests.distillation import toy_students
from tests.training import toy


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--checkpoint-every", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--heartbeat", type=int, default=100)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--distil", help="a method of toy_students, instead of plain training")
    options = parser.parse_args()
    distributed.initialize(heartbeat_seconds=options.heartbeat)
    mesh = meshes.MeshConfig(fsdp=options.fsdp, tensor=options.tensor).make()
    meshes.check_batch_size(mesh, toy.BATCH)
    with (
        jax.set_mesh(mesh),
        lock.RunLock(options.directory),
        checkpoint.Checkpoints(f"{options.directory}/checkpoints") as checkpoints,
    ):
        train(mesh, checkpoints, options)
    return 0


def recipe_of(options):
    """How the state is made, of what, the step that trains it, and the rows of a batch."""
    if options.distil:
        made = toy_students.make_recipe(options.distil)
        return made.make_state, made.arguments, made.train_step, toy_students.rows
    train_step = step.make_step(toy.objective, toy.network, toy.OPTIMIZER, ema_decay=0.99)
    return lambda key: step.start(toy.init_params(key), toy.OPTIMIZER), (jax.random.key(0),), train_step, toy.rows


def train(mesh, checkpoints, options):
    make_state, arguments, train_step, rows = recipe_of(options)
    restored = checkpoints.restore(step.plan(make_state, *arguments, mesh=mesh))
    if restored:
        state, position = restored.state, restored.metadata["position"]
    else:
        state, position = step.build(make_state, *arguments, mesh=mesh), 0
    sharding = meshes.batch_sharding(mesh)
    stream = functools.partial(
        toy.batches,
        place=lambda batch: distributed.global_batch(batch, sharding, toy.BATCH),
        shard=distributed.data_shard(sharding, toy.BATCH),
        pause=options.pause,
        rows=rows,
    )
    first = int(state.step)
    with logging.RunLog(
        options.directory, logging.Throughput(toy.BATCH), total_steps=options.steps, start_step=first
    ) as log:
        for note in restored.notes if restored else ():
            log.event(note)
        log.event(f"starting at step {first}", step=first)
        loop.fit(
            state,
            train_step,
            stream,
            loop=loop.Loop(
                steps=options.steps, batch_size=toy.BATCH, log_every=1, checkpoint_every=options.checkpoint_every
            ),
            checkpoints=checkpoints,
            log=log,
            position=position,
        )


if __name__ == "__main__":
    sys.exit(main())
