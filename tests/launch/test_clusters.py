"""Files for schedulers: they parse, say what the options say, and start the command as it was given."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml

from nova_jax import cli
from nova_jax.launch import clusters
from nova_jax.launch.clusters import Cluster

ODD = ["a b", "it's", '"quoted"', "$HOME", "$(date)", "`date`", "\\", "*", "", "é", "two\nlines", "--x_y=1", "--"]
COMMAND = ["report", *ODD]
REPORT = f"""#!{sys.executable}
import json, os, sys
names = ("NOVA_", "JAX_LOCAL")
found = {{name: value for name, value in os.environ.items() if name.startswith(names)}}
with open(os.environ["REPORTS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], found]) + "\\n")
"""


@pytest.fixture
def run_script(tmp_path):
    """(script, stand-ins for programs, environment) -> the exit code, and what the programs reported."""

    def run(text, programs, **environment):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, shell in {"report": None, **programs}.items():
            body = REPORT if shell is None else f"#!/bin/bash\n{shell}\n"
            (folder / name).write_text(body)
            (folder / name).chmod(0o755)
        path = f"{folder}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "REPORTS": str(tmp_path / "reports"), **environment}
        assert subprocess.run(["bash", "-n", "-c", text]).returncode == 0
        done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=env)
        lines = (tmp_path / "reports").read_text().splitlines()
        return done.returncode, [json.loads(line) for line in lines]

    return run


def test_the_slurm_script_asks_for_what_the_options_say():
    cluster = Cluster(name="big", gpus=4, cpus=16, time="2-12:00:00", lead=300, partition="a100")
    lines = clusters.slurm(cluster, COMMAND, processes=3).splitlines()
    asked = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH")]
    options = {name: value for name, _, value in asked}
    assert options == {
        "job-name": "big",
        "partition": "a100",
        "nodes": "3",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "16",
        "time": "2-12:00:00",
        "signal": "TERM@300",
        "requeue": "",
        "open-mode": "append",
        "output": "big-%j.log",
    }
    assert "--partition" not in clusters.slurm(Cluster(), COMMAND)


SRUN = 'while [[ "$1" == --* ]]; do shift; done; "$@"; '


@pytest.mark.parametrize(
    ("srun", "code", "requeues"),
    [
        ("exit 75", 75, True),
        ("exit 1", 1, False),
        ("exit 0", 0, False),
        ('kill -TERM "$PPID"; exit 75', 75, False),  # cancelled
    ],
)
def test_the_slurm_script_requeues_what_has_saved_itself(run_script, srun, code, requeues):
    text = clusters.slurm(Cluster(gpus=2), COMMAND)
    found, reports = run_script(text, {"srun": SRUN + srun, "scontrol": 'report "$@"'}, SLURM_JOB_ID="17")
    assert found == code
    name, arguments, environment = reports[0]
    assert (name, arguments) == ("report", ODD)
    assert environment["NOVA_DISTRIBUTED"] == "auto"
    assert environment["JAX_LOCAL_DEVICE_IDS"] == "0,1"
    assert [report[1] for report in reports[1:]] == [["requeue", "17"]] * requeues


def pod_of(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return job, job["template"]["spec"], container


def test_the_jobset_of_a_tpu_slice_has_a_pod_for_each_machine():
    cluster = Cluster(name="big", accelerator="tpu-v5p-slice", topology="2x2x4", image="eu/nova:1", lead=200)
    text = clusters.gke(cluster, COMMAND)
    jobset = yaml.safe_load(text)
    job, pod, container = pod_of(jobset)
    assert jobset["metadata"]["name"] == jobset["spec"]["network"]["subdomain"] == "big"
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    assert job["parallelism"] == job["completions"] == 4
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
    }
    assert pod["terminationGracePeriodSeconds"] == 200
    assert container["image"] == "eu/nova:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["env"] == [{"name": "NOVA_DISTRIBUTED", "value": "auto"}]
    comment = "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    words = shlex.split(comment.partition("without this file: ")[2])
    assert words[:3] == ["xpk", "workload", "create"]
    assert {"--workload=big", "--tpu-type=v5p-32", "--docker-image=eu/nova:1"} < set(words)
    assert {"--restart-on-exit-codes=75", "--max-restarts=3"} < set(words)
    assert shlex.split(words[-1].removeprefix("--command=")) == COMMAND


def test_the_jobset_of_gpus_names_coordinator_and_index():
    cluster = Cluster(name="big", accelerator="nvidia-h100-80gb", gpus=8)
    _, pod, container = pod_of(yaml.safe_load(clusters.gke(cluster, COMMAND, processes=5)))
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values == {
        "NOVA_COORDINATOR": "big-worker-0-0.big:8476",
        "NOVA_NUM_PROCESSES": "5",
        "NOVA_PROCESS_ID": None,
    }
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["env"][2]["valueFrom"]["fieldRef"]["fieldPath"] == index


@pytest.mark.parametrize("accelerator", ["tpu-v6e-slice", "nvidia-h100-80gb"])
def test_the_jobset_starts_again_after_75_and_counts_crashes(accelerator):
    jobset = yaml.safe_load(clusters.gke(Cluster(accelerator=accelerator, max_restarts=7), COMMAND))
    job, pod, container = pod_of(jobset)
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    saved, evicted = job["podFailurePolicy"]["rules"]
    assert saved["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [75]}
    assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (job["backoffLimit"], pod["restartPolicy"], job["completionMode"]) == (0, "Never", "Indexed")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_hands_the_command_on_as_it_is():
    _, _, container = pod_of(yaml.safe_load(clusters.gke(Cluster(), COMMAND)))
    assert [word.replace("$$", "$") for word in container["command"]] == COMMAND
    assert all(word.count("$") % 2 == 0 for word in container["command"]), "a single dollar would be expanded"


def test_the_gcloud_lines_create_wait_copy_and_run_on_all_workers(run_script, tmp_path):
    cluster = Cluster(name="big", accelerator="v5p-32", zone="europe-west4-b", runtime="v2-alpha-tpuv5", spot=False)
    programs = {"gcloud": 'report "$@"; [[ "$*" != *describe* ]] || echo ACTIVE', "git": 'report "$@"'}
    code, reports = run_script(clusters.tpu_vm(cluster, COMMAND), programs)
    assert code == 0
    create, describe, archive, copy, unpack, install, start = (report[1] for report in reports)
    assert create[:5] == ["compute", "tpus", "queued-resources", "create", "big"]
    assert {"--node-id=big", "--accelerator-type=v5p-32", "--runtime-version=v2-alpha-tpuv5"} < set(create)
    assert "--spot" not in create
    assert "--spot" in clusters.tpu_vm(Cluster(), COMMAND)
    assert archive[0] == "archive"
    for line in (create, describe, copy, unpack, install, start):
        assert "--zone=europe-west4-b" in line
    for line in (copy, unpack, install, start):
        assert "--worker=all" in line
    (remote,) = [word.removeprefix("--command=") for word in start if word.startswith("--command=")]
    activate = tmp_path / "nova_jax" / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "REPORTS": str(tmp_path / "remote")}
    subprocess.run(["bash", "-c", remote], cwd=tmp_path, env=env, check=True)
    _, arguments, environment = json.loads((tmp_path / "remote").read_text())
    assert (arguments, environment["NOVA_DISTRIBUTED"]) == (ODD, "auto")


def test_the_skypilot_task_maps_its_rank_to_ours(run_script):
    cluster = Cluster(name="big", accelerator="A100", gpus=4, max_restarts=5)
    task = yaml.safe_load(clusters.skypilot(cluster, COMMAND, processes=3))
    assert (task["name"], task["num_nodes"]) == ("big", 3)
    assert task["resources"]["accelerators"] == "A100:4"
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 5, "recover_on_exit_codes": [75]}
    given = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3", "SKYPILOT_NUM_NODES": "3", "SKYPILOT_NODE_RANK": "2"}
    code, ((_, arguments, environment),) = run_script(task["run"], {}, **given)
    assert (code, arguments) == (0, ODD)
    assert environment["NOVA_COORDINATOR"] == "10.0.0.1:8476"
    assert environment["NOVA_NUM_PROCESSES"] == "3"
    assert environment["NOVA_PROCESS_ID"] == "2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Big job"}, "--name 'Big job'"),
        ({"time": "a day"}, "--time 'a day'"),
        ({"topology": "4"}, "--topology '4'"),
        ({"image": "a b"}, "--image 'a b'"),
        ({"partition": "x\n#SBATCH --nodes=9"}, "--partition"),
        ({"gpus": 0}, "--gpus must be at least 1, got 0"),
        ({"max_restarts": -1}, "--max-restarts must be at least 0"),
    ],
)
def test_values_that_would_break_a_file_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**options)


def test_a_slice_must_divide_over_its_pods():
    with pytest.raises(ValueError, match="--processes 3 does not divide the 16 chips"):
        clusters.gke(Cluster(), COMMAND, processes=3)


@pytest.mark.parametrize("backend", list(clusters.RENDER))
def test_the_command_prints_the_file(capsys, backend):
    cli.main(["launch", "--backend", backend, "--name", "big", "--", *COMMAND])
    assert capsys.readouterr().out == clusters.RENDER[backend](Cluster(name="big"), COMMAND)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch"], "no command to launch"),
        (["launch", "--processes", "0", "--", "x"], "--processes must be at least 1"),
        (["launch", "--backend", "slurm", "--devices", "2", "--", "x"], "--devices simulates CPU devices"),
        (["launch", "--backend", "tpu-vm", "--processes", "2", "--", "x"], "--processes is not for tpu-vm"),
        (["launch", "--", "no_such_program"], "no_such_program"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message) as refused:
        cli.main(arguments)
    assert "\n" not in str(refused.value)


def test_an_unknown_backend_is_refused_with_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        cli.main(["launch", "--backend", "pbs", "--", "x"])
    assert "'pbs'" in capsys.readouterr().err
