"""Environment variables and XLA flags of each kind of chip: one table for every target."""

from __future__ import annotations

from launch.job import Job
from vla_jax.sharding.topology import CHIPS

LIBTPU_FLAGS: dict[str, tuple[str, ...]] = {
    kind: tuple(f"--{name}={value}" for name, value in chip.compiler_options.items())
    for kind, chip in CHIPS.items()
}
"""Go into LIBTPU_INIT_ARGS: those that `python -m vla_jax.plan` compiles with."""

GPU_FLAGS: tuple[str, ...] = (
    # Collectives start early and end late, under the computation between (JAX, "GPU performance
    # tips").
    "--xla_gpu_enable_latency_hiding_scheduler=true",
)
"""Go into XLA_FLAGS."""


def environment(job: Job) -> dict[str, str]:
    """What every process of the job finds in its environment; the job's own variables win."""
    variables = {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    kind = job.chips.kind
    if job.chips.is_tpu:
        # Without it, a TPU that cannot be opened would mean training on the host's CPU.
        variables["JAX_PLATFORMS"] = "tpu,cpu"
        if flags := LIBTPU_FLAGS[kind]:
            variables["LIBTPU_INIT_ARGS"] = " ".join(flags)
    else:
        variables["JAX_PLATFORMS"] = "cuda,cpu"
        variables["XLA_FLAGS"] = " ".join(GPU_FLAGS)
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    if job.compilation_cache:
        variables["JAX_COMPILATION_CACHE_DIR"] = job.compilation_cache
        # Small programs compile faster than a bucket answers.
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "5"
    return variables | job.environment
