"""Many processes, one program: start-up, which rows each process loads, agreement, and stopping together.

JAX's own runtime does the work (`jax.distributed`); this is the only module of the library that reads the environment:

    NOVA_COORDINATOR=host:port  NOVA_NUM_PROCESSES=n  NOVA_PROCESS_ID=i    explicit, any cluster
    NOVA_DISTRIBUTED=auto                                                  let JAX find out (SLURM, Open MPI, TPU, GKE)

SLURM steps, Open MPI jobs and TPU pods that show themselves in their usual variables need neither.
"""

import atexit
import collections
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import distributed as runtime  # whose key-value store has no public door yet
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding


class NoCoordinator(OSError):
    """The processes of a job do not find each other; the message says who waited where, how long, and for whom."""


class NoDevice(OSError):
    """JAX finds nothing to compute on; the message says what was asked for and what to do."""


EXPLICIT = ("NOVA_COORDINATOR", "NOVA_NUM_PROCESSES", "NOVA_PROCESS_ID")
PREFIX = "nova_jax/"  # of our keys in the store
DAY = 86400  # seconds: a barrier waits so long, since a `watch` knows better when to give up

_calls: collections.Counter[str] = collections.Counter()  # see `serial`


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 100,
    join_seconds: int = 300,
) -> None:
    """Joins the other processes of the job; returns at once when there are none. Call before anything touches a device.

    Arguments come before the environment. A process that dies takes the others down within `heartbeat_seconds`, and
    all must come within `join_seconds`. Calling it again changes nothing: a program may hold several runs.

    Raises:
        ValueError: only some of coordinator, num_processes and process_id are known, they are no numbers or not such
            of one job, the processes disagree about how many they are, or this process has joined as another one.
        NoCoordinator: the coordinator does not answer, or not all processes come.
    """
    seconds: Any = {"heartbeat_timeout_seconds": heartbeat_seconds, "initialization_timeout": join_seconds}
    given = (coordinator, num_processes, process_id)
    known = [os.environ.get(name) if value is None else value for name, value in zip(EXPLICIT, given, strict=True)]
    if all(value is None for value in known):
        if _is_cluster() and not jax.distributed.is_initialized():
            jax.distributed.initialize(**seconds)
        return
    if missing := [name for name, value in zip(EXPLICIT, known, strict=True) if value is None]:
        raise ValueError(f"a job of several processes also needs {', '.join(missing)} (or all three as arguments)")
    address, number, index = _checked(*map(str, known))
    if jax.distributed.is_initialized():
        if (jax.process_count(), jax.process_index()) != (number, index):
            raise ValueError(
                f"process {index} of {number} has joined already, as {jax.process_index()} of {jax.process_count()}"
            )
        return
    is_loopback = address.rsplit(":", 1)[0] in ("localhost", "127.0.0.1")
    waited = _who_waited(address, number, index, join_seconds)

    def say_so() -> None:
        print(f"nova: {waited}", file=sys.stderr, flush=True)
        os._exit(1)

    try:
        with before_abort(say_so):
            jax.distributed.initialize(
                address,
                num_processes=number,
                process_id=index,
                coordinator_bind_address=address if is_loopback else None,  # the default listens on every interface
                **seconds,
            )
    except RuntimeError as error:
        raise NoCoordinator(f"{waited} ({str(error).splitlines()[0][:300]})") from error
    _check_count(number, index, join_seconds)


def _checked(address: str, number: str, index: str) -> tuple[str, int, int]:
    """What the environment says of a job, as numbers."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and number.isdigit() and index.isdigit() and int(index) < int(number)):
        raise ValueError(
            f"NOVA_COORDINATOR={address} NOVA_NUM_PROCESSES={number} NOVA_PROCESS_ID={index}: give host:port of "
            "process 0, the number of processes, and for each process its own number from 0 to one less"
        )
    return address, int(number), int(index)


def _who_waited(address: str, number: int, index: int, seconds: int) -> str:
    if index:
        return (
            f"process {index} of {number} on {socket.gethostname()} found no coordinator at {address} within "
            f"{seconds} s: process 0 must run there with the same NOVA_COORDINATOR and NOVA_NUM_PROCESSES, and its "
            "port be open to this host"
        )
    return (
        f"process 0 of {number} waited {seconds} s at {address} for the others, and not all came: start processes 1 to "
        f"{number - 1} with this NOVA_COORDINATOR, or correct NOVA_NUM_PROCESSES"
    )


@contextlib.contextmanager
def before_abort(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action` when JAX aborts this process, as it does when its coordinator is lost or never found.

    Python's own handlers come too late: they run in the main thread, for which an abort does not wait.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: action())
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    previous = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, previous)


def _check_count(number: int, index: int, seconds: int) -> None:
    """Refuses processes that were told different numbers: they would wait for those that never come."""
    if not jax.distributed.is_initialized():
        return
    post(f"count/{index}", str(number))
    for other in range(1, number) if index == 0 else (0,):
        count = _store().blocking_key_value_get(f"{PREFIX}count/{other}", 1000 * seconds)
        if int(count) != number:
            raise ValueError(
                f"process {index} was told NOVA_NUM_PROCESSES={number} and process {other} {count}: start all with the "
                "same number"
            )


def process_place() -> tuple[int, int]:
    """The number of this process, and of all; asks no device."""
    state = runtime.global_state
    return (state.process_id, state.num_processes) if jax.distributed.is_initialized() else (0, 1)


def coordinator_answers() -> bool:
    """Whether process 0 still takes connections."""
    host, _, port = str(runtime.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError:
        return False
    return True


def _store() -> Any:
    return runtime.global_state.client


def post(key: str, text: str) -> None:
    """Writes a short text where all processes can read it: at the coordinator, which is process 0."""
    _store().key_value_set(PREFIX + key, text, allow_overwrite=True)


def posted(folder: str) -> dict[str, str]:
    """What was posted under keys `folder/...`: the texts by the rest of their keys."""
    found = _store().key_value_dir_get(f"{PREFIX}{folder}/")
    return {key.rpartition("/")[2]: text for key, text in found}


def gather(name: str, text: str) -> list[str]:
    """The text of every process, in their order, on every process.

    It needs no device, so a background thread may call it: all processes must, as often, under the same name.
    """
    index, count = process_place()
    if count == 1:
        return [text]
    number = serial(name)
    post(f"{name}/{number}/{index}", text)
    barrier(name)
    if number > 1:  # every process has read the texts before these, or it would not have posted again
        _store().key_value_delete(f"{PREFIX}{name}/{number - 1}/{index}")
    found = posted(f"{name}/{number}")
    return [found[str(other)] for other in range(count)]


def serial(name: str) -> int:
    """1, 2, .. by name: the processes of a job do the same in the same order, so they count alike."""
    _calls[name] += 1
    return _calls[name]


def exit_alone() -> None:
    """Lets this process end without waiting for the others, which JAX does when it ends."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    atexit.register(leave)


def check_devices() -> None:
    """Starts JAX's backends; call it after `initialize`, before anything else touches a device.

    Raises:
        NoDevice: there is no device of the platforms that JAX is told to use.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the assertion: a platform is known, and has no device
        asked, reason = getattr(jax.config, "jax_platforms", None) or "", f" ({error})" if str(error) else ""
        raise NoDevice(
            f"JAX finds no device of JAX_PLATFORMS={asked}{reason}: set JAX_PLATFORMS=cpu to compute without an "
            "accelerator, unset it to take what there is, or install nova-jax[cuda12], [cuda13] or [tpu]"
        ) from error


def _is_cluster() -> bool:
    """Whether the environment speaks of more than one process."""
    if os.environ.get("NOVA_DISTRIBUTED") == "auto":
        return True
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return len(workers) > 1 or any(int(os.environ.get(name) or 1) > 1 for name in sizes)


def is_main() -> bool:
    """Whether this process writes logs, samples and manifests."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here, under the same name; it needs no device, and may take a day."""
    if process_place()[1] > 1:
        key = f"{PREFIX}{name}/{serial(f'{name} barrier')}"
        _store().wait_at_barrier(key, int(1000 * DAY))


def agree(value: int) -> int:
    """The main process's value, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def whole(tree: Any) -> Any:
    """Global arrays as whole ones on every process's host, for work that a process does alone; all must call it.

    Changes nothing when there is one process.
    """
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def spread(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, as global ones of which each keeps its part: nothing is sent.

    Changes nothing when there is one process.
    """
    return tree if jax.process_count() == 1 else jax.tree.map(place, tree, shardings)


def place(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, as a global one of which each keeps its part: nothing is sent."""
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def data_shard(sharding: NamedSharding, batch_size: int) -> tuple[int, int]:
    """Which part of the global batch this process loads: (index, count).

    Not the process index: when tensor or context axes span processes, several of them load the same rows.

    Raises:
        ValueError: the batch does not divide over the sharding, or the rows of this process are not one even part.
    """
    rows = set()
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        start, stop, _ = (index or (slice(None),))[0].indices(batch_size)
        rows.add((start, stop))
    low, high = min(rows)[0], max(rows)[1]
    size = high - low
    if sum(stop - start for start, stop in rows) != size or low % size or batch_size % size:
        raise ValueError(
            f"process {jax.process_index()} holds rows {sorted(rows)} of a batch of {batch_size}, not one of equal "
            "parts: let the data and fsdp axes be the outer ones of the mesh, as MeshConfig arranges them, and data "
            "times fsdp a multiple of the processes or a divisor of them"
        )
    return low // size, batch_size // size


def global_batch(local: Any, sharding: NamedSharding, batch_size: int) -> Any:
    """Global arrays from the rows that `data_shard` names; every leaf has its samples on axis 0."""

    def join(rows: np.ndarray) -> jax.Array:
        # Without the global shape JAX guesses it from the local one and is silently wrong when processes share rows.
        return jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))

    return jax.tree.map(join, local)


@contextlib.contextmanager
def graceful_stop() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and SIGINT into a question the loop asks between steps: `should_stop(step)`.

    With several processes a signal to any of them becomes True at the same step on all, through JAX's preemption
    service (which owns SIGTERM; Ctrl-C is passed on to it). A second signal ends the process at once: whatever is being
    written then stays uncommitted.
    """
    received: list[int] = []

    def on_signal(signum: int, frame: Any) -> None:
        del frame
        if received:
            os._exit(128 + signum)
        received.append(signum)
        if jax.process_count() > 1 and signum == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(received)

    caught = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        caught = ()
    previous = {number: signal.signal(number, on_signal) for number in caught}
    try:
        yield should_stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
