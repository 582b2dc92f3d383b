"""Environment variables and XLA flags of each kind of chip: one table for every target."""

from __future__ import annotations

from launch.job import Job

# All-gathers and reduce-scatters run on the SparseCores, beside the matrix units. By the compiler's
# own schedule of a 55 B model on v5p:8x8x8 a chip then waits 0.2 s of a 3 s step for them, not 1.1;
# it takes more HBM. v5e has no such cores, and hides all-gathers by default.
_SPARSE_CORE = (
    "--xla_tpu_enable_sparse_core_collective_offload_all_gather=true",
    "--xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true",
    "--xla_tpu_enable_sparse_core_collective_offload_2d_all_gather=true",
    "--xla_tpu_enable_sparse_core_collective_offload_3d_all_gather=true",
    "--xla_tpu_use_single_sparse_core_for_all_gather_offload=true",
)

LIBTPU_FLAGS: dict[str, tuple[str, ...]] = {
    "v4": (),
    "v5e": (),
    "v5p": _SPARSE_CORE,
    "v6e": _SPARSE_CORE,
    "tpu7x": (),
}
"""Go into LIBTPU_INIT_ARGS."""

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
