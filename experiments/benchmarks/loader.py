"""Records per second of the input pipeline: read, decode, resize, batch; no model.

    python -m experiments.benchmarks.loader PATH [SIZE] [THREADS]

PATH is a folder of images, a .tar (WebDataset), a .parquet or an .array_record. One JSON line comes out: the rate of
the whole loader (shuffled, resized to SIZE pixels, batches of 64), and of reading and decoding alone, in file order, in
one thread.

Measured in 2026-11 on two CPU cores that other jobs kept busy, warm file cache, 2 threads; records per CPU second:

    records                                             loader     read and decode alone
    WebDataset, 1,870 RGBA PNG of 128 px, SIZE 64        1,370       2,600
    Parquet, 50,000 JPEG of 32 px, SIZE 32               5,800      10,000
    ArrayRecord, 1,870 raw images of 64 px, SIZE 64   10,900      38,000
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Iterable

from data_pipelines import images, loader, sources

SECONDS = 5.0
BATCH_SIZE = 64


def open_source(path: str) -> sources.Source:
    """The source for a path by its ending."""
    kinds = {".tar": sources.WebDataset, ".parquet": sources.Parquet, ".array_record": sources.ArrayRecords}
    return sources.Folder(path) if os.path.isdir(path) else kinds[os.path.splitext(path)[1]](path)


def measure(path: str, size: int, threads: int) -> dict[str, float | int | str]:
    """Opening time, and records per second of the loader and of single reads."""
    start = time.perf_counter()
    source = open_source(path)
    length = len(source)
    opened = time.perf_counter() - start
    transform = images.Transform(size=(size, size))
    batches = loader.Loader(source, batch_size=BATCH_SIZE, transform=transform, threads=threads).batches()
    next(batches)  # fills the prefetch queue and the file cache
    loaded, loaded_cpu = rates(BATCH_SIZE for _ in batches)
    batches.close()
    read, read_cpu = rates(source[i]["pixels"].shape[0] for i in itertools.cycle(range(length)))
    return {
        "path": os.path.basename(path),
        "records": length,
        "size": size,
        "threads": threads,
        "open_seconds": round(opened, 3),
        "loader_per_second": round(loaded),
        "loader_per_cpu_second": round(loaded_cpu),
        "read_per_second": round(read),
        "read_per_cpu_second": round(read_cpu),
    }


def rates(counts: Iterable[int]) -> tuple[float, float]:
    """Sum of the counts drawn within a few seconds, per second and per CPU second of this process."""
    start, start_cpu, total = time.perf_counter(), time.process_time(), 0
    for count in counts:
        total += count
        if time.perf_counter() - start > SECONDS:
            break
    return total / (time.perf_counter() - start), total / (time.process_time() - start_cpu)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    defaults = ["", "64", "4"]
    path, size, threads = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
    print(json.dumps(measure(path, int(size), int(threads))))
