"""`nova launch`: a command as many processes, here or as a file for a cluster.

nova launch --backend local --processes 2 --devices 4 -- python -m experiments.quickstart mesh.fsdp=8
nova launch --backend slurm --processes 4 --gpus 8 -- python -m experiments.quickstart mesh.fsdp=8 > job.sbatch
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from nova_jax.launch import clusters, local


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Start a command as many processes on this machine, or print the file that starts it on a cluster."""

    command: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The command and its arguments, after --."""
    backend: Literal["local", "slurm", "gke", "tpu-vm", "skypilot"] = "local"
    """local runs; the others print an sbatch script, a JobSet, gcloud lines, a SkyPilot task."""
    processes: int | None = None
    """How many; on a cluster one for each machine. Default: 2; of a TPU as its topology has machines."""
    devices: int | None = None
    """Simulated CPU devices of each process: local, to rehearse a mesh without accelerators."""
    grace: float = 30.0
    """Seconds that the other processes have to end after one has failed: local."""
    print_only: Annotated[bool, tyro.conf.arg(name="print")] = False
    """Print what would be started, and start nothing; the other backends never do more."""
    cluster: tyro.conf.OmitArgPrefixes[clusters.Cluster] = dataclasses.field(default_factory=clusters.Cluster)

    def execute(self) -> None:
        """Prints the file, or runs the processes and exits as the first that failed."""
        count = 2 if self.processes is None else self.processes
        local.check(self.command, count, self.devices)
        if self.backend != "local":
            print(self._render(), end="")
        elif self.print_only:
            print(local.script(self.command, count, self.devices), end="")
        else:
            sys.exit(local.run(self.command, count, self.devices, self.grace))

    def _render(self) -> str:
        if self.devices is not None:
            raise ValueError(
                f"--devices simulates CPU devices and is for --backend local; {self.backend} has real ones"
            )
        if self.backend == "tpu-vm" and self.processes is not None:
            raise ValueError("--processes is not for tpu-vm: the accelerator type says how many machines there are")
        given = {} if self.processes is None else {"processes": self.processes}
        return clusters.RENDER[self.backend](self.cluster, self.command, **given)


def main(argv: Sequence[str]) -> None:
    """The command line behind `nova launch`; what follows -- is not read, whatever it looks like."""
    own, found, command = list(argv), "--" in argv, ()
    if found:
        cut = own.index("--")
        own, command = own[:cut], tuple(own[cut + 1 :])
    try:
        options = tyro.cli(Launch, prog="nova launch", args=own)
        dataclasses.replace(options, command=options.command + command).execute()
    except (ValueError, OSError) as error:
        sys.exit(f"nova: {error}")
