"""The same command on a cluster: one file for its scheduler, written to be read, changed and submitted.

Every machine runs one process, which drives all its accelerators. Exit code 75 means that the run has saved itself and
goes on when the same command starts again: each file tells its scheduler so, as far as that can be told. The run folder
must be one that every machine sees at the same path.

    slurm       sbatch                  Slurm tells JAX the rest
    gke         kubectl apply           a JobSet of TPU or GPU pods, and the same as an xpk command
    tpu-vm      bash                    gcloud: a queued resource, and one command on all its workers
    skypilot    sky jobs launch         SkyPilot's rank becomes ours
"""

import dataclasses
import json
import math
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence

from nova_jax.launch.local import PREEMPTED

PORT = 8476  # of the coordinator, where the scheduler does not choose one
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # what all of them take
VALUE = re.compile(r"[\w.:/@+~-]+")  # one word of shell and YAML
TIME = re.compile(r"(\d+-)?\d+(:\d{2}){0,2}")
TOPOLOGY = re.compile(r"\d+(x\d+){1,2}")
CHIPS_PER_MACHINE = 4  # of TPU slices of more than one machine
XPK_TYPES = {  # GKE's name of an accelerator -> the start of xpk's, and what its number counts per chip
    "tpu-v4-podslice": ("v4", 2),
    "tpu-v5-lite-podslice": ("v5litepod", 1),
    "tpu-v5p-slice": ("v5p", 2),
    "tpu-v6e-slice": ("v6e", 1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines and limits of a cluster; every option names the backends that read it."""

    name: str = "nova"
    """Of the job, lower-case letters, digits and hyphens: all."""
    gpus: int = 8
    """GPUs of each machine: slurm, skypilot, and gke with an accelerator that is no TPU."""
    cpus: int = 32
    """CPU cores of each machine for the loader: slurm."""
    accelerator: str | None = None
    """As the scheduler calls it. Default: tpu-v6e-slice (gke), v6e-16 (tpu-vm), H100 (skypilot)."""
    topology: str = "4x4"
    """Of a TPU slice: gke."""
    time: str = "24:00:00"
    """Limit of the job: slurm."""
    lead: int = 120
    """Seconds between SIGTERM and the end, for saving: slurm, gke."""
    partition: str | None = None
    """Of the cluster: slurm. Default: its own."""
    image: str = "REGISTRY/nova-jax:latest"
    """Container with nova_jax and its data packages: gke."""
    zone: str = "us-east5-b"
    """Of the machines: tpu-vm."""
    runtime: str = "v2-alpha-tpuv6e"
    """Software version of the machines: tpu-vm."""
    spot: bool = True
    """Take machines that may be called back: tpu-vm, skypilot."""
    max_restarts: int = 3
    """Restarts after crashes, not counting those after exit code 75: gke, skypilot."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"--name {self.name!r}: use up to 40 lower-case letters, digits and hyphens, a letter first"
            )
        if not TIME.fullmatch(self.time):
            raise ValueError(f"--time {self.time!r}: write it as Slurm does, such as 24:00:00 or 2-12:00:00")
        if not TOPOLOGY.fullmatch(self.topology):
            raise ValueError(f"--topology {self.topology!r}: write it as GKE does, such as 4x4 or 2x2x4")
        for field in ("accelerator", "partition", "image", "zone", "runtime"):
            value = getattr(self, field)
            if value is not None and not VALUE.fullmatch(value):
                raise ValueError(f"--{field} {value!r}: letters, digits and . : / @ + ~ _ - only")
        for field, least in (("gpus", 1), ("cpus", 1), ("lead", 1), ("max_restarts", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"--{field.replace('_', '-')} must be at least {least}, got {getattr(self, field)}")


def slurm(cluster: Cluster, command: Sequence[str], processes: int = 2) -> str:
    """A batch script for sbatch."""
    partition = f"#SBATCH --partition={cluster.partition}\n" if cluster.partition else ""
    return f"""\
#!/bin/bash
# sbatch {cluster.name}.sbatch
#SBATCH --job-name={cluster.name}
{partition}#SBATCH --nodes={processes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={cluster.gpus}
#SBATCH --cpus-per-task={cluster.cpus}
#SBATCH --time={cluster.time}
# Without "B:" the signal goes to the processes, which save and end, and not to this script.
#SBATCH --signal=TERM@{cluster.lead}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={cluster.name}-%j.log

# Here: module load, source .venv/bin/activate, cd to the checkout.

export NOVA_DISTRIBUTED=auto
# One process a node drives all its GPUs; JAX would give it the first one only.
export JAX_LOCAL_DEVICE_IDS={",".join(map(str, range(cluster.gpus)))}

# SIGTERM reaches this script only when the job is cancelled or preempted: then it must not requeue itself.
cancelled=
trap 'cancelled=1' TERM

# When a process dies the others notice; --wait ends those that do not.
srun --kill-on-bad-exit=0 --wait={cluster.lead} --cpus-per-task={cluster.cpus} \\
  {shlex.join(command)}
code=$?
if [ "$code" -eq {PREEMPTED} ] && [ -z "$cancelled" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def gke(cluster: Cluster, command: Sequence[str], processes: int | None = None) -> str:
    """A JobSet for kubectl; for TPUs with the xpk command that starts the same.

    Raises:
        ValueError: the slice does not divide over the pods.
    """
    accelerator = cluster.accelerator or "tpu-v6e-slice"
    if accelerator.startswith("tpu-"):
        pods = _slice_machines(cluster, processes)
        placed = _tpu_pod(cluster, accelerator, pods, command)
    else:
        pods = 2 if processes is None else processes
        placed = _gpu_pod(cluster, accelerator, pods)
    # Kubernetes reads $(NAME) in a command; a doubled dollar is a dollar.
    words = json.dumps([word.replace("$", "$$") for word in command], ensure_ascii=False)
    return f"""\
# kubectl apply -f {cluster.name}.yaml
{placed["head"]}apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {cluster.name}
{placed["metadata"]}spec:
  network:
    enableDNSHostnames: true  # makes the headless service through which the pods find each other
    subdomain: {cluster.name}
  failurePolicy:
    maxRestarts: {cluster.max_restarts}  # after crashes; all pods start again together
    rules:
      # What podFailurePolicy names below, saved or evicted, starts again without being counted.
      - name: goesOn
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: worker
      replicas: 1
      template:
        spec:
          parallelism: {pods}
          completions: {pods}
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: nova
                  operator: In
                  values: [{PREEMPTED}]
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: {cluster.lead}
{placed["node"]}
              containers:
                - name: nova
                  image: {cluster.image}
                  command: {words}
                  env:
{placed["env"]}
                  resources:
                    limits:
                      {placed["limit"]}
                  volumeMounts:
                    - name: runs
                      mountPath: /runs
                    - name: shared-memory
                      mountPath: /dev/shm
              volumes:
                - name: runs
                  persistentVolumeClaim:
                    claimName: nova-runs  # ReadWriteMany: run_dir=/runs/... is the same folder in every pod
                - name: shared-memory
                  emptyDir:
                    medium: Memory
"""


def tpu_vm(cluster: Cluster, command: Sequence[str]) -> str:
    """A shell script of gcloud lines: machines, code, packages, command, and how to give them back."""
    name, where = cluster.name, f"--zone={cluster.zone}"
    remote = f"cd nova_jax && source .venv/bin/activate && NOVA_DISTRIBUTED=auto {shlex.join(command)}"
    install = "cd nova_jax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[data,tpu]'"
    everywhere = f"gcloud compute tpus tpu-vm ssh {name} {where} --worker=all"
    return f"""\
#!/bin/bash
# From the root of a checkout: bash {name}.sh
set -euo pipefail

# The machines; the request waits until there are some.
gcloud compute tpus queued-resources create {name} --node-id={name} {where} \\
  --accelerator-type={cluster.accelerator or "v6e-16"} --runtime-version={cluster.runtime}{" --spot" * cluster.spot}
until gcloud compute tpus queued-resources describe {name} {where} --format='value(state.state)' | grep -qx ACTIVE; do
  sleep 30
done

# Code and packages, on every worker.
git archive --format=tar.gz --output={name}.tar.gz HEAD
gcloud compute tpus tpu-vm scp {name}.tar.gz {name}: {where} --worker=all
{everywhere} --command='mkdir -p nova_jax && tar -xzf {name}.tar.gz -C nova_jax'
{everywhere} --command={shlex.quote(install)}

# The same command on every worker; JAX finds the others. Repeat this line to resume.
{everywhere} \\
  --command={shlex.quote(remote)}

# Afterwards:
# gcloud compute tpus queued-resources delete {name} {where} --force
"""


def skypilot(cluster: Cluster, command: Sequence[str], processes: int = 2) -> str:
    """A task for SkyPilot's managed jobs."""
    start = textwrap.indent(shlex.join(command), "  ", lambda line: True)
    return f"""\
# sky jobs launch {cluster.name}.yaml
name: {cluster.name}
num_nodes: {processes}
workdir: .  # the checkout
resources:
  accelerators: "{cluster.accelerator or "H100"}:{cluster.gpus}"
  use_spot: {str(cluster.spot).lower()}
  job_recovery:
    max_restarts_on_errors: {cluster.max_restarts}  # after crashes
    recover_on_exit_codes: [{PREEMPTED}]  # saved: goes on, and is not counted
setup: |
  pip install -e '.[data,cuda13]'
run: |
  export NOVA_COORDINATOR="$(echo "$SKYPILOT_NODE_IPS" | head -n1):{PORT}"
  export NOVA_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
  export NOVA_PROCESS_ID="$SKYPILOT_NODE_RANK"
{start}
"""


RENDER: dict[str, Callable[..., str]] = {"slurm": slurm, "gke": gke, "tpu-vm": tpu_vm, "skypilot": skypilot}


def _slice_machines(cluster: Cluster, processes: int | None) -> int:
    """How many pods a TPU slice has."""
    chips = _chips(cluster)
    pods = max(chips // CHIPS_PER_MACHINE, 1) if processes is None else processes
    if chips % pods:
        raise ValueError(f"--processes {pods} does not divide the {chips} chips of --topology {cluster.topology}")
    return pods


def _chips(cluster: Cluster) -> int:
    return math.prod(map(int, cluster.topology.split("x")))


def _tpu_pod(cluster: Cluster, accelerator: str, pods: int, command: Sequence[str]) -> dict[str, str]:
    node = f"""\
nodeSelector:
  cloud.google.com/gke-tpu-accelerator: {accelerator}
  cloud.google.com/gke-tpu-topology: "{cluster.topology}\""""
    metadata = """\
annotations:  # all pods in one node pool, which is one slice
  alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
"""
    return {
        "head": textwrap.indent(_xpk(cluster, accelerator, command), "# ", lambda line: True),
        "metadata": textwrap.indent(metadata, " " * 2),
        "node": textwrap.indent(node, " " * 14),
        "env": textwrap.indent("- name: NOVA_DISTRIBUTED  # GKE tells JAX the rest\n  value: auto", " " * 20),
        "limit": f"google.com/tpu: {_chips(cluster) // pods}",
    }


def _gpu_pod(cluster: Cluster, accelerator: str, pods: int) -> dict[str, str]:
    env = f"""\
- name: NOVA_COORDINATOR
  value: "{cluster.name}-worker-0-0.{cluster.name}:{PORT}"
- name: NOVA_NUM_PROCESSES
  value: "{pods}"
- name: NOVA_PROCESS_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']"""
    return {
        "head": "",
        "metadata": "",
        "node": textwrap.indent(f"nodeSelector:\n  cloud.google.com/gke-accelerator: {accelerator}", " " * 14),
        "env": textwrap.indent(env, " " * 20),
        "limit": f"nvidia.com/gpu: {cluster.gpus}",
    }


def _xpk(cluster: Cluster, accelerator: str, command: Sequence[str]) -> str:
    start, per_chip = XPK_TYPES.get(accelerator, ("TYPE", 1))
    return (
        f"or, without this file: xpk workload create --cluster=CLUSTER --workload={cluster.name} --num-slices=1 \\\n"
        f"  --tpu-type={start}-{_chips(cluster) * per_chip} --docker-image={cluster.image} "
        f"--max-restarts={cluster.max_restarts} \\\n"
        f"  --restart-on-exit-codes={PREEMPTED} --command={shlex.quote(shlex.join(command))}\n"
    )
