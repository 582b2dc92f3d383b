"""What a job is rendered to: checked by schemas and linters, and run beside fake programs."""

from __future__ import annotations

import json
import mmap
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from launch import docker, gke, slurm, tpu_vm
from launch.__main__ import TARGETS, main
from launch.accelerators import parse_accelerator
from launch.flags import GPU_FLAGS, LIBTPU_FLAGS
from launch.job import load
from vla_jax.config import load_config, parse

ROOT = Path(__file__).parents[2]
POD, GPUS = ROOT / "launch/pod.toml", ROOT / "launch/gpus.toml"
TWO_SLICES = ["accelerator=v5p:8x8x8", "slices=2", "google.spot=false", "google.reservation=mine"]


def _linter(name: str) -> str:
    """A program of the extra dev: beside Python, wherever that is."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{name} is not installed: pip install -e '.[dev]'"
    return found


def _checked(script: str, tmp_path: Path) -> str:
    """The script, after shellcheck has seen it."""
    file = tmp_path / "script.sh"
    file.write_text(script)
    done = subprocess.run([_linter("shellcheck"), "--shell=bash", file], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    return script


def _on_host(script: str) -> str:
    """The part of a TPU VM's script that runs on every host."""
    [part] = re.findall(r"<<'ON_HOST'\n(.*?)^ON_HOST$", script, re.M | re.S)
    return part


def _words(script: str, program: str) -> list[str]:
    """Words of the command in a script that begins so."""
    joined = script.replace("\\\n", " ")
    [line] = [x for x in map(str.strip, joined.splitlines()) if x.startswith(program)]
    return shlex.split(line)


@pytest.mark.parametrize(
    ("text", "hosts", "per_host", "accelerator_type"),
    [
        ("v4:4x4x8", 32, 4, "v4-256"),  # two TensorCores a chip are counted
        ("v5e:16x16", 64, 4, "v5litepod-256"),
        ("v5e:2x4", 1, 8, "v5litepod-8"),
        ("v5p:8x8x8", 128, 4, "v5p-1024"),
        ("v5p:2x2x1", 1, 4, "v5p-8"),
        ("v6e:8x16", 32, 4, "v6e-128"),
    ],
)
def test_names_of_slices(text, hosts, per_host, accelerator_type):
    chips = parse_accelerator(text)
    assert (chips.hosts, chips.chips_per_host) == (hosts, per_host)
    assert chips.accelerator_type == accelerator_type
    assert chips.usual_topology == text.split(":")[1] or text.startswith("v4")


@pytest.mark.parametrize("overrides", [[], TWO_SLICES, ["accelerator=tpu7x:4x4x8"]])
def test_jobset_follows_its_schema(overrides):
    job = load(POD, overrides)
    jobset = yaml.safe_load(gke.manifest(job))
    schema = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())
    jsonschema.validate(jobset, schema)
    [slices] = jobset["spec"]["replicatedJobs"]
    spec = slices["template"]["spec"]
    batch_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(batch_job, "1.33", strict=True)

    # All chips of all slices, each host asking for its own.
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["completions"] * chips * slices["replicas"] == job.chips.chips * job.slices
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == job.chips.topology
    # 75 and eviction fail the Job by its podFailurePolicy, and that reason alone is not counted.
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    codes, disruption = spec["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["values"] == [75] and spec["backoffLimit"] == 0
    assert codes["onExitCodes"]["containerName"] == container["name"]
    assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"


def test_the_schemas_refuse_what_is_wrong():
    jobset = yaml.safe_load(gke.manifest(load(POD)))
    schema = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())
    jobset["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(jobset, schema)
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    spec["template"]["spec"]["terminationGracePeriod"] = 1
    batch_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(batch_job, "1.33", strict=True)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes fake programs; each call is a line of `calls`."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()

    def make(**bodies: str) -> Path:
        for name, body in {"sleep": "exit 0", **bodies}.items():
            lines = ["#!/bin/bash", f'echo "{name} $*" | head -1 >>{calls}', body]
            (folder / name).write_text("\n".join(lines) + "\n")
            (folder / name).chmod(0o755)
        return calls

    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return make


def _pop(file: Path) -> str:
    """Shell code that takes the first line off a file."""
    return f"$(head -1 {file}; sed -i 1d {file})"


def _tpu_vm(programs, tmp_path, states: list[str], codes: list[int], **options):
    """Runs the script of a TPU VM beside a `gcloud` that says these states and exit codes."""
    for name, lines in (("states", states), ("codes", map(str, codes))):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    calls = programs(
        gcloud=f"""case "$4" in
            list) echo "{_pop(tmp_path / "states")}" ;;
            ssh) exit "{_pop(tmp_path / "codes")}" ;;
        esac"""
    )
    script = _checked(tpu_vm.script(load(POD, [f"{k}={v}" for k, v in options.items()])), tmp_path)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert not (tmp_path / "states").read_text() and not (tmp_path / "codes").read_text()
    lines = [line.split() for line in calls.read_text().splitlines()]
    verbs = [words[4] for words in lines if words[0] == "gcloud" and words[4] != "list"]
    return done, verbs


def test_tpu_vms_are_asked_for_used_replaced_and_given_back(programs, tmp_path):
    states = ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    # The connection is lost; preempted; the queued resource is gone and asked for again; a crash
    # while it is taken away does not count.
    states += ["ACTIVE", "SUSPENDED", "", "ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"]
    done, verbs = _tpu_vm(programs, tmp_path, states, [255, 75, 1, 0], restarts=0)
    assert done.returncode == 0, done.stderr
    assert verbs == [
        *("create", "ssh", "ssh", "delete"),
        *("create", "ssh", "delete"),
        *("create", "ssh", "delete"),
    ]


def test_tpu_vms_stop_after_so_many_failures_and_say_what_costs(programs, tmp_path):
    # After each failure the state is asked for once more.
    done, verbs = _tpu_vm(programs, tmp_path, ["ACTIVE"] * 6, [1, 134, 1], restarts=2)
    assert done.returncode == 1 and verbs == ["ssh"] * 3
    assert "queued-resources delete rtx-3b --project=my-project --zone=us-west4-a" in done.stderr


def test_a_refused_config_is_not_tried_again(programs, tmp_path):
    done, verbs = _tpu_vm(programs, tmp_path, ["ACTIVE"], [2])
    assert done.returncode == 2 and verbs == ["ssh"]


def test_a_tpu_host_mounts_starts_and_tells_the_exit_code(programs, tmp_path):
    """Started when nothing runs; joined when something does."""
    running = tmp_path / "running"
    calls = programs(
        sudo='exec "$@"',
        gcsfuse="",
        mountpoint="exit 1",
        mkdir="",
        gcloud="echo token",
        docker=f"""case "$1" in
            ps) if [ -e {running} ]; then echo id; fi ;;
            login) cat >/dev/null ;;
            wait) echo 75 ;;
        esac""",
    )
    job = load(POD, ["accelerator=v5p:8x8x8"])
    part = _checked(_on_host(tpu_vm.script(job)), tmp_path)
    for _ in range(2):
        done = subprocess.run(["bash", "-c", part], capture_output=True, text=True, timeout=60)
        assert done.returncode == 75, done.stderr
        running.touch()
    lines = calls.read_text().splitlines()
    [mount] = {line for line in lines if line.startswith("gcsfuse")}
    assert mount.endswith(" -o allow_other my-bucket /data")
    [start] = [line for line in lines if line.startswith("docker run")]
    words = _words(part, "sudo docker run")
    assert words[words.index(job.image) + 1 :] == job.command()
    flags = f"--env=LIBTPU_INIT_ARGS={' '.join(LIBTPU_FLAGS['v5p'])}"
    assert flags in words and flags in start and "--env=VLA_JAX_JOIN=1" in words


def test_several_slices_on_tpu_vms():
    script = tpu_vm.script(load(POD, TWO_SLICES))
    words = _words(script, "gcloud compute tpus queued-resources create")
    assert {"--accelerator-type=v5p-1024", "--node-count=2", "--reserved"} <= set(words)
    assert not {"--spot", "--node-id=rtx-3b"} & set(words)


# Long options of sbatch that the script may have, and what their values look like.
SBATCH = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "partition": r"[\w,-]+",
    "account": r"[\w-]+",
    "qos": r"[\w-]+",
    "constraint": r"\S+",
    "output": r"(?=.*%j)\S+",
    "open-mode": "append|truncate",
    "signal": r"([BR]:)?(TERM|USR1|USR2)@\d+",
    "exclusive": None,
    "requeue": None,
}


def test_sbatch_options(tmp_path):
    overrides = ["slurm.account=lab-1", "slurm.qos=high", "slurm.constraint=h100&ib"]
    script = _checked(slurm.script(load(GPUS, [*overrides, "slurm.hours=1.5"])), tmp_path)
    lines = script.splitlines()
    assert lines[0].startswith("#!")
    # sbatch reads no options after the first line that is no comment.
    until = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    found = dict(
        re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups()  # pyright: ignore
        for line in lines
        if line.startswith("#SBATCH")
    )
    assert sum(line.startswith("#SBATCH") for line in lines[:until]) == len(found)
    for name, value in found.items():
        pattern = SBATCH[name]
        assert value is None if pattern is None else re.fullmatch(pattern, value), (name, value)
    assert found["time"] == "1:30:00" and found["signal"] == "TERM@180"
    assert int(found["nodes"]) * int(found["ntasks-per-node"]) == 32


def _slurm(programs, tmp_path, *codes: int) -> tuple[list[int], list[str]]:
    """Runs the batch script once for each code that `srun` ends with; -> its codes, its calls."""
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    calls = programs(srun=f'exit "{_pop(tmp_path / "codes")}"', scontrol="")
    job = load(GPUS, [f"slurm.directory={tmp_path}", f"workdir={tmp_path}/run", "restarts=2"])
    script = _checked(slurm.script(job), tmp_path)
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    ends = [
        subprocess.run(["bash", "-c", script], env=environment, timeout=60).returncode
        for _ in codes
    ]
    return ends, calls.read_text().splitlines()


def test_a_slurm_job_queues_itself_again(programs, tmp_path):
    """Without end when it was told to stop; `restarts` times when it failed."""
    ends, calls = _slurm(programs, tmp_path, 75, 1, 75, 137, 75, 0, 1)
    assert ends == [0, 0, 0, 0, 0, 0, 1]
    assert calls.count("scontrol requeue 7") == 5
    assert calls[0].endswith("--config.mesh.data=4 --config.mesh.fsdp=8")


def test_a_slurm_job_that_refuses_its_config_ends(programs, tmp_path):
    ends, calls = _slurm(programs, tmp_path, 2)
    assert ends == [2] and not any(line.startswith("scontrol") for line in calls)


def test_xpk(tmp_path):
    job = load(POD, TWO_SLICES)
    words = _words(_checked(gke.xpk(job), tmp_path), "xpk workload create")
    assert {"--tpu-type=v5p-8x8x8", "--num-slices=2"} <= set(words)
    [command] = [w.removeprefix("--command=") for w in words if w.startswith("--command=")]
    assert shlex.split(command) == job.command()


def test_image(tmp_path):
    """A linter reads the Dockerfile; what it copies is there, and what it asks for."""
    file = ROOT / "launch/Dockerfile"
    done = subprocess.run([_linter("hadolint"), file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    copied = re.findall(r"^COPY (.*) \S+$", file.read_text(), re.M)
    needed = {path for paths in copied for path in paths.split()}
    assert needed and all((ROOT / path).exists() for path in needed)
    ignored = (ROOT / "launch/Dockerfile.dockerignore").read_text().split("\n")
    assert {line[1:] for line in ignored if line.startswith("!")} == needed
    for job, extras in ((load(POD), "tpu,gcs"), (load(GPUS, ["image=here/x:1"]), "gpu")):
        words = _words(_checked(docker.script(job), tmp_path), "docker build")
        assert f"--build-arg=EXTRAS={extras}" in words and f"--tag={job.image}" in words
        [section] = re.findall(
            r"^\[project\.optional-dependencies\]\n(.*?)^\[",
            (ROOT / "pyproject.toml").read_text(),
            re.M | re.S,
        )
        assert all(re.search(rf"^{extra} = ", section, re.M) for extra in extras.split(","))


def test_flags_are_known_to_the_compilers():
    """XLA ends a program that names an unknown flag; libtpu's names stand in its library."""
    program = "import jax; jax.devices()"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(GPU_FLAGS)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    libtpu = pytest.importorskip("libtpu", reason="the extra plan is not installed")
    with Path(libtpu.__file__).with_name("libtpu.so").open("rb") as file:
        library = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for flag in {flag for flags in LIBTPU_FLAGS.values() for flag in flags}:
        assert library.find(flag.removeprefix("--").split("=")[0].encode() + b"\0") > 0, flag


@pytest.mark.parametrize("file", [POD, GPUS])
def test_the_examples_train_what_is_there(file):
    job = load(file)
    config = parse(load_config(ROOT / job.config, job.overrides))
    data = job.chips.chips // config.mesh.fsdp if config.mesh.data == -1 else config.mesh.data
    assert data * config.mesh.fsdp == job.chips.chips
    assert config.train.batch_size % job.chips.chips == 0


@pytest.mark.parametrize(
    ("target", "file", "overrides", "message"),
    [
        ("gke", POD, ["accelerator=v5p:8x8"], "three sides"),
        ("gke", POD, ["accelerator=v5q:8x8x8"], "did you mean 'v5"),
        ("gke", POD, ["accelerator=v5e:3x3"], "comes as 1x1, 2x2"),
        ("gke", POD, ["google.clustre=x"], "did you mean 'cluster'"),
        ("gke", POD, ["google.cluster="], "gke needs google.cluster"),
        ("gke", GPUS, [], "gke starts TPU jobs"),
        ("xpk", POD, ["image="], "xpk needs image"),
        ("slurm", POD, [], "slurm starts GPU jobs"),
        ("tpu_vm", POD, ["accelerator=tpu7x:4x4x4"], "use gke or xpk"),
        ("tpu_vm", POD, ["accelerator=v5p:4x8x16"], "v5p-1024 on a TPU VM is 8x8x8"),
        ("tpu_vm", POD, ["workdir=gs://bucket/run"], "google.bucket"),
        ("tpu_vm", POD, ["workdir=/home/run"], "not below google.mount '/data'"),
        ("tpu_vm", POD, ["google.reservation=x"], "capacity is one or the other"),
        ("tpu_vm", POD, ["name=Run_1"], "lower-case letters"),
        ("tpu_vm", POD, ["accelerator=v5e:2x2", "slices=2"], "several hosts"),
        ("docker", ROOT / "none.toml", [], "no job file"),
    ],
)
def test_mistakes_are_named(target, file, overrides, message, capsys):
    assert main([target, f"--job={file}", *(f"--{x}" for x in overrides)]) == 2
    out, err = capsys.readouterr()
    assert message in err and not out


def test_dry_run_prints_exactly_what_run_runs(tmp_path, programs, capsys):
    for name, target in TARGETS.items():
        file = GPUS if name == "slurm" else POD
        assert main([name, f"--job={file}"]) == 0
        text = capsys.readouterr().out
        programs(**{program: "" for program in target.needs if program != "bash"})
        seen = tmp_path / name
        # The last word is the file.
        programs(**{target.command[0]: f'cp "${{@: -1}}" {seen}; exit 3'})
        assert main([name, f"--job={file}", "--run"]) == 3
        assert seen.read_text() == text
        (tmp_path / "bin" / target.command[0]).unlink()


def test_a_program_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "sbatch" else name)
    assert main(["slurm", f"--job={GPUS}", "--run"]) == 2
    assert "sbatch not found: install it" in capsys.readouterr().err
