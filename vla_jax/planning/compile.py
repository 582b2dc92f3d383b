"""Runs the TPU compiler on a program and takes from it what it has found out.

The optimised, scheduled program and its use of memory are on disk seconds after compilation begins;
minutes of code generation follow, which only the compiler's own estimates of cycles need. So a
quick compilation is ended as soon as the schedule is there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.planning.hlo import Module, parse_module
from vla_jax.planning.network import Placement
from vla_jax.planning.worker import PLACEMENT, REQUEST, RESULT
from vla_jax.sharding.topology import Topology, require_libtpu

_POLL_SECONDS = 0.1
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile.

    Attributes:
      program: "module:function", called with (settings, devices); gives a `program.Program`.
      settings: of the program, as JSON.
      quick: end once the schedule is there.
      timeout_s: after which the compiler is given up.
      dump: directory for a copy of all that the compiler wrote; empty: none is kept.
    """

    topology: Topology
    program: str
    settings: dict[str, Any]
    compiler_options: dict[str, str] = dataclasses.field(default_factory=dict)
    quick: bool = True
    timeout_s: float = 1800.0
    dump: str = ""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One piece of HBM, and the arrays that lie in it, one after the other."""

    bytes: int
    arrays: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    Attributes:
      hbm_bytes: of each chip, in all; `argument_bytes` says what of it the program is given.
      global_bytes: of the same parts, over all chips, each number counted once.
      has_estimates: the module holds the compiler's estimates of cycles.
    """

    module: Module
    placement: Placement
    hbm_bytes: int
    argument_bytes: dict[str, int]
    global_bytes: dict[str, int]
    buffers: tuple[Buffer, ...]
    has_estimates: bool
    seconds: float


@dataclasses.dataclass(frozen=True)
class DoesNotFit:
    """The compiler's refusal. Sizes in GiB, of each chip."""

    needed_gib: float
    budget_gib: float
    seconds: float
    argument_bytes: dict[str, int]


def compile_program(request: Request) -> Compiled | DoesNotFit:
    """Compiles in a process of its own, which it ends.

    Raises:
      ModuleNotFoundError: no TPU compiler.
      ValueError: what the program's own checks say, or an option that the compiler does not know.
      RuntimeError: the compiler failed in another way, or took longer than the time limit.
    """
    require_libtpu()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vla_jax_plan_") as name:
        directory = Path(name)
        (directory / REQUEST).write_text(
            json.dumps({**dataclasses.asdict(request), "topology": request.topology.name})
        )
        result = _run(request, directory, begun + request.timeout_s)
        seconds = time.monotonic() - begun
        if result is not None and "error" in result:
            return _refusal(result, directory, seconds)
        if request.dump:
            shutil.copytree(directory, request.dump, dirs_exist_ok=True)
        return _collect(directory, request.topology, seconds, full=result is not None)


def _run(request: Request, directory: Path, deadline: float) -> dict[str, Any] | None:
    """The worker's result; None if it was ended before it had one."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vla_jax.planning.worker", str(directory)],
            env={**os.environ, **_environment(directory)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            before: list[int] = []  # still growing files are not the end
            while process.poll() is None:
                if request.quick:
                    now = _written(directory)
                    if now and now == before:
                        return None
                    before = now
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"compiling for {request.topology.name} took longer than "
                        f"{request.timeout_s:.0f} s"
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
    if not (directory / RESULT).exists():
        raise RuntimeError(
            f"the process that compiles died with code {process.returncode}:\n"
            + _last_lines(directory)
        )
    return json.loads((directory / RESULT).read_text())


def _environment(directory: Path) -> dict[str, str]:
    """CPU stays the backend; libtpu asks nobody where it is and may be loaded several times."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "XLA_FLAGS": f"--xla_dump_to={directory / 'xla'} --xla_dump_hlo_as_text",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def _dumps(directory: Path, suffix: str) -> list[Path]:
    """XLA's files of the program with this end, newest first."""
    name = json.loads((directory / PLACEMENT).read_text())["name"]
    found = (directory / "xla").glob(f"module_*.jit_{name}.cl_*.{suffix}")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


_SCHEDULE = "after_optimizations_after_buffer_assignment.txt"
_MEMORY = "after_optimizations-memory-usage-report.txt"
_AFTER = "debug_options"  # what XLA writes next


def _written(directory: Path) -> list[int]:
    """Sizes of what a quick compilation waits for; empty while some of it is missing."""
    if not (directory / PLACEMENT).exists():
        return []
    found = [_dumps(directory, suffix) for suffix in (_SCHEDULE, _MEMORY, _AFTER)]
    if not all(found):
        return []
    with found[0][0].open("rb") as schedule:
        schedule.seek(-min(64, schedule.seek(0, os.SEEK_END)), os.SEEK_END)
        if not schedule.read().rstrip().endswith(b"}"):
            return []
    return [path.stat().st_size for paths in found for path in paths]


def _refusal(result: dict[str, Any], directory: Path, seconds: float) -> DoesNotFit:
    message = result["error"]
    sizes = re.search(
        r"total memory required[^(]*\(([\d.]+)([KMGT])\) exceeds available HBM"
        r" \(([\d.]+)([KMGT])\)",
        message,
    )
    if sizes:
        unit = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}
        needed, budget = (float(sizes.group(i)) * unit[sizes.group(i + 1)] for i in (1, 3))
        placement = json.loads((directory / PLACEMENT).read_text())
        return DoesNotFit(needed, budget, seconds, placement["bytes"])
    if "No such compile option" in message:
        raise ValueError(f"compiler options: {message}")
    if result["expected"]:
        raise ValueError(message)
    raise RuntimeError(f"{result['type']}: {message}\n{_last_lines(directory)}")


def _last_lines(directory: Path) -> str:
    return "\n".join((directory / "log").read_text(errors="replace").splitlines()[-15:])


def _collect(directory: Path, topology: Topology, seconds: float, *, full: bool) -> Compiled:
    generated = _dumps(directory, "after_codegen.txt") if full else []
    schedule = generated or _dumps(directory, _SCHEDULE)
    if not schedule:
        raise RuntimeError(f"the compiler left no schedule:\n{_last_lines(directory)}")
    info = json.loads((directory / PLACEMENT).read_text())
    total, buffers = parse_memory_report(_dumps(directory, _MEMORY)[0].read_text())
    placement = Placement(
        chip=topology.chip,
        coordinates=np.array(info["coordinates"]),
        slices=np.array(info["slices"]),
        mesh_axes=tuple(info["mesh"]),
        mesh_sizes=tuple(info["mesh"].values()),
        torus=topology.torus,
        wrap=topology.wrap,
    )
    return Compiled(
        module=parse_module(schedule[0].read_text()),
        placement=placement,
        hbm_bytes=total,
        argument_bytes=info["bytes"],
        global_bytes=info["global_bytes"],
        buffers=buffers,
        has_estimates=bool(generated),
        seconds=seconds,
    )


def parse_memory_report(text: str, largest: int = 12) -> tuple[int, tuple[Buffer, ...]]:
    """XLA's memory-usage report -> (bytes of HBM in all, its largest buffers).

    Raises ValueError for another text.
    """
    head = re.search(r"Memory Space: default.*\nTotal bytes: (\d+)", text)
    if head is None:
        raise ValueError(f"not a memory-usage report of XLA: {text[:80]!r}")
    section = text[head.end() :].partition("Memory Space:")[0]
    row = re.compile(
        r"^\s*[\d.]+\w+\(\s*\d+%\);\s*([\d.]+)(B|KiB|MiB|GiB);\s*\d+;\s*\d+; (.*)$", re.M
    )
    unit = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": _GIB}
    found = [
        Buffer(int(float(size) * unit[name]), arrays) for size, name, arrays in row.findall(section)
    ]
    ordered = sorted(found, key=lambda buffer: -buffer.bytes)
    return int(head.group(1)), tuple(ordered[:largest])
