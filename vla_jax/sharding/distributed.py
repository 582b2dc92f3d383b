"""Joining the processes of a multi-host job."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax


def join_processes(environment: Mapping[str, str] = os.environ) -> None:
    """Makes `jax.devices()` the devices of the whole job, if this process is part of one.

    It is one of several if the environment says so: `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (what `launch/local_processes.py` sets), a TPU slice of
    several hosts, or a Slurm step of several tasks, which JAX reads for itself. A TPU VM's
    environment says nothing (JAX asks the machine's metadata): there set `VLA_JAX_JOIN=1`. Call it
    before anything else touches a device; without such an environment it does nothing.

    Raises:
      ValueError: only some of the three variables are set, or they are not numbers.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if environment.get(name)]
    if len(given) == len(names):
        try:
            count, index = (int(environment[name]) for name in names[1:])
        except ValueError as e:
            raise ValueError(f"{names[1]} and {names[2]} must be whole numbers: {e}") from None
        jax.distributed.initialize(environment[names[0]], count, index)
    elif given:
        missing = [name for name in names if name not in given]
        raise ValueError(f"{', '.join(given)} set, but not {', '.join(missing)}: set all or none")
    elif _cluster_of_several(environment):
        jax.distributed.initialize()


def _cluster_of_several(environment: Mapping[str, str]) -> bool:
    if environment.get("VLA_JAX_JOIN") == "1":
        return True
    hosts = [h for h in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    return len(hosts) > 1 or slices != "1" or int(environment.get("SLURM_NTASKS", "1")) > 1
