"""A process that is watched and does as told; the tests start several and see how they end. It touches no device."""

import sys
import time

from nova_jax.parallel import distributed
from nova_jax.training import watch

HANGS = 3600.0


def main(heartbeat, step, program):
    """The program is a word for each process: what it does in its third step."""
    index, _ = (distributed.initialize(heartbeat_seconds=60, join_seconds=60), distributed.process_place())[1]
    words = program.split(",")
    print("started", flush=True)
    with watch.Watch(watch.Limits(heartbeat=heartbeat, step=step, start=step)):
        for number in range(1, 5):
            watch.phase("waiting for a batch", number)
            if number == 3 and words[index] == "hangs":
                time.sleep(HANGS)
            if number == 3 and words[index] == "fails":
                raise ValueError("the data is not good\nin many ways")
            watch.phase("computing", number)
            distributed.gather("step", "")
            if number == 2:
                print("at work", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
