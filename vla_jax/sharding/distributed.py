"""Joining the processes of a multi-host job."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

HEARTBEAT_S = 60
"""A process not heard of for so long is gone, and the others end. JAX's own is 100."""
_SHUTDOWN_S = 60
# What XLA's collectives and JAX's coordination service say when a process has gone.
_LOST = (
    "Gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "oordination service",
    "eartbeat",
)


class LostProcessError(ConnectionError):
    """Another process of the job is gone, so this one cannot go on."""


def lost_process(error: BaseException) -> bool:
    """Whether an error inside a step or a save is that another process is gone."""
    cause = error.__cause__ or error
    # Of XLA; a data set's storage that has closed a connection raises an OSError.
    of_xla = isinstance(cause, ValueError | RuntimeError)
    return jax.process_count() > 1 and of_xla and any(text in str(cause) for text in _LOST)


def join_processes(environment: Mapping[str, str] = os.environ) -> None:
    """Makes `jax.devices()` the devices of the whole job, if this process is part of one.

    It is one of several if the environment says so: `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (what `launch/local_processes.py` sets), a TPU slice of
    several hosts, or a Slurm step of several tasks, which JAX reads for itself. A TPU VM's
    environment says nothing (JAX asks the machine's metadata): there set `VLA_JAX_JOIN=1`. Call it
    before anything else touches a device; without such an environment it does nothing.

    A process that dies ends the others: at once where its connections break, else after
    `HEARTBEAT_S`, or the seconds in `VLA_JAX_HEARTBEAT_S`.

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
        jax.distributed.initialize(
            environment[names[0]],
            count,
            index,
            heartbeat_timeout_seconds=_heartbeat_s(environment),
            shutdown_timeout_seconds=_SHUTDOWN_S,
        )
    elif given:
        missing = [name for name in names if name not in given]
        raise ValueError(f"{', '.join(given)} set, but not {', '.join(missing)}: set all or none")
    elif _cluster_of_several(environment):
        jax.distributed.initialize(
            heartbeat_timeout_seconds=_heartbeat_s(environment),
            shutdown_timeout_seconds=_SHUTDOWN_S,
        )


def _heartbeat_s(environment: Mapping[str, str]) -> int:
    """What the environment asks for. Raises ValueError if it is no number of seconds."""
    text = environment.get("VLA_JAX_HEARTBEAT_S", str(HEARTBEAT_S))
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"VLA_JAX_HEARTBEAT_S must be a whole number of seconds, not {text!r}")
    return int(text)


def _cluster_of_several(environment: Mapping[str, str]) -> bool:
    if environment.get("VLA_JAX_JOIN") == "1":
        return True
    hosts = [h for h in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    return len(hosts) > 1 or slices != "1" or int(environment.get("SLURM_NTASKS", "1")) > 1
