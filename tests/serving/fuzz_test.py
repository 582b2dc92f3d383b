"""What no robot would send; `tools/fuzz_serve.py` sends 10,000 such."""

from __future__ import annotations

from tools import fuzz_serve


def test_nothing_sent_crashes_it_or_stays_in_it():
    with fuzz_serve.fake_server() as ports:
        result = fuzz_serve.fuzz(ports, cases=250, seed=0)
    seen = result["seen"]
    assert sum(seen.values()) >= 250
    # All ways of sending were tried, and among what was answered are errors, holds and actions.
    assert {name.partition(":")[0] for name in seen} == {
        *("frame", "body", "call", "bytes", "slow body"),
        *("dropped frame", "dropped answer", "dropped body"),
    }
    assert {"frame: error", "frame: hold", "frame: action"} <= set(seen)
    before, after = result["before"], result["after"]
    # The robot that behaves is all that is left.
    for held in (before, after):
        assert (held["vla_connections"], held["vla_sessions"], held["vla_queue"]) == (1, 1, 0)
    assert after["process_open_fds"] <= before["process_open_fds"] + 3
    assert after["memory_mib"] < before["memory_mib"] + 32
