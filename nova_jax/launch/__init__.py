"""Starting a command as many processes: here, or as a file for the scheduler of a cluster.

    local.run        N processes on this machine, watched until the last one ends
    clusters         sbatch script, JobSet, gcloud lines, SkyPilot task: text to read, change and submit

Every way ends in the same environment, which `parallel.distributed` reads. Nothing here imports jax: the launcher must
not take the devices that its processes need.
"""

from nova_jax.launch import clusters, local

__all__ = ["clusters", "local"]
