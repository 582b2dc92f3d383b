"""Slurm: a batch script with one process for each GPU."""

from __future__ import annotations

import shlex

from launch.flags import environment
from launch.job import REFUSED, Job, quoted
from vla_jax.training.preemption import EXIT_CODE

# Slurm signals the processes of the step, not this script, so it is still there to queue again.
_SCRIPT = """\
#!/usr/bin/env bash
{options}
# {name}: {accelerator}, a process for each GPU; JAX finds the others by Slurm's variables.
set -euo pipefail
cd {directory}
{exports}
mkdir -p {workdir}
failures_file={workdir}/slurm-$SLURM_JOB_ID.failures

# After the first process ends, the others have a minute, and then are ended too. (Killing them at
# once would break a save.)
code=0
srun --wait=60 --cpu-bind=cores --cpus-per-task={cpus} \\
  {command} || code=$?

case "$code" in
  0)
    exit 0
    ;;
  {refused})
    echo "training refuses its config or data; see the error above" >&2
    exit "$code"
    ;;
  {resumable})
    echo "told to stop, saved: queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
    ;;
  *)
    failures=$(($(cat "$failures_file" 2>/dev/null || echo 0) + 1))
    echo "$failures" >"$failures_file"
    echo "failed with exit code $code, time $failures" >&2
    if [ "$failures" -gt {restarts} ]; then
      exit "$code"
    fi
    scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
"""


def script(job: Job) -> str:
    """The script for sbatch.

    Raises:
      ValueError: the job is not for GPUs, or misses the section [slurm].
    """
    chips, slurm = job.chips, job.slurm
    if chips.is_tpu:
        raise ValueError(
            f"slurm starts GPU jobs, and accelerator is {job.accelerator!r}; TPUs: tpu_vm, gke, xpk"
        )
    if slurm is None:
        raise ValueError("slurm needs the section [slurm]: directory, partition, hours")
    minutes = round(slurm.hours * 60)
    options = {
        "job-name": job.name,
        "nodes": chips.hosts,
        "ntasks-per-node": chips.chips_per_host,
        "gpus-per-node": chips.chips_per_host,
        "cpus-per-task": slurm.cpus_per_gpu,
        "time": f"{minutes // 60}:{minutes % 60:02d}:00",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "output": "%x-%j.out",
        "open-mode": "append",
        # So long before the time limit, and where the cluster is set up so before preemption.
        "signal": f"TERM@{job.grace_s}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    lines += ["#SBATCH --exclusive", "#SBATCH --requeue"]
    exports = [f"export {k}={shlex.quote(v)}" for k, v in environment(job).items()]
    return _SCRIPT.format(
        options="\n".join(lines),
        name=job.name,
        accelerator=job.accelerator,
        directory=shlex.quote(slurm.directory),
        workdir=shlex.quote(job.workdir),
        exports="\n".join(exports),
        cpus=slurm.cpus_per_gpu,
        command=quoted(job.command(".venv/bin/python"), "  "),
        refused=REFUSED,
        resumable=EXIT_CODE,
        restarts=job.restarts,
    )
