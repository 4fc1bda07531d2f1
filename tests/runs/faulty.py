"""Runs the configs of JSON files, one after the other in one program: what the tests start as several processes.

worker.py CONFIG.json ...
worker.py --kill 1 5 CONFIG.json     process 1 kills itself in step 5
worker.py --hang 1 9 CONFIG.json     in process 1 the tenth and later reads of encoded samples never return
"""

import json
import os
import pathlib
import signal
import sys
import time

from data_pipelines import encoding
from nova_jax import config as configs
from nova_jax import experiment
from nova_jax.parallel import distributed
from nova_jax.training import loop


def kill_at(index, step):
    """A callback that ends a process as `kill -9` does."""

    def run(at, state):
        if (at, distributed.process_place()[0]) == (step, index):
            os.kill(os.getpid(), signal.SIGKILL)

    return [loop.Callback(1, run)]


def hang_after(index, reads):
    """Makes the reads of encoded samples block."""
    read, done = encoding.LatentCache.read, []

    def blocking(self, at):
        done.append(at)
        if len(done) > reads and distributed.process_place()[0] == index:
            time.sleep(3600)
        return read(self, at)

    encoding.LatentCache.read = blocking
    return []


def main(arguments):
    callbacks = []
    if arguments[0].startswith("--"):
        fault, index, number = arguments[0], *map(int, arguments[1:3])
        arguments = arguments[3:]
        callbacks = kill_at(index, number) if fault == "--kill" else hang_after(index, number)
    for path in arguments:
        saved = json.loads(pathlib.Path(path).read_text())
        experiment.run(configs.from_dict(saved, ("nova_jax", "data_pipelines")), callbacks)


if __name__ == "__main__":
    main(sys.argv[1:])
