"""Which host the others wait for."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

# Above the median host's share of time, at which a host's waiting for its input is worth a line.
_MUCH_SLOWER = 0.15


def compare_hosts(input_wait_share: float) -> tuple[dict[str, float], str]:
    """What each process's share of time spent waiting for its own batches says of the slowest.

    All processes of a job step together, so each is as slow as the slowest; but only that one waits
    for its input, the others wait for it inside the step. All call this together.

    Returns:
      Scalars for the log, and a line that names a process much slower than the median one; both
      empty for a job of one process, the line also if there is none.
    """
    if jax.process_count() == 1:
        return {}, ""
    shares = multihost_utils.process_allgather(np.float32(input_wait_share)).reshape(-1)
    return slowest_host(shares)


def slowest_host(shares: np.ndarray) -> tuple[dict[str, float], str]:
    """`compare_hosts` of the shares of all processes, float32 [P]."""
    worst = int(np.argmax(shares))
    # The lower one of two: with the mean of both, one of two could never be far above.
    median = float(np.sort(shares)[(len(shares) - 1) // 2])
    most = float(shares[worst])
    scalars = {
        "hosts/input_wait_share_max": most,
        "hosts/input_wait_share_median": median,
        "hosts/slowest": float(worst),
    }
    if most <= median + _MUCH_SLOWER:
        return scalars, ""
    return scalars, (
        f"WARNING: process {worst} waits {most:.0%} of the time for its input, the median process "
        f"{median:.0%}: all wait for it; see its disk, network and CPUs"
    )
