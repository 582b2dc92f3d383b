"""The process that compiles: `python -m vla_jax.planning.worker DIRECTORY`.

It reads `request.json` there and leaves, beside XLA's dumps, `placement.json` (before compiling)
and `result.json` (after; a quick plan ends the process before). A process of its own, as a quick
plan kills it in the middle of compiling and XLA reads its flags once.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import jax

from vla_jax.planning.program import Program, bytes_per_device
from vla_jax.sharding.topology import parse_topology, topology_devices

PLACEMENT, RESULT, REQUEST = "placement.json", "result.json", "request.json"


def work(directory: Path) -> None:
    """Compiles what `request.json` asks for. Errors go to `result.json`."""
    request = json.loads((directory / REQUEST).read_text())
    try:
        result = _compile(request, directory)
    except Exception as e:  # whatever it is belongs to who asked
        traceback.print_exc()
        expected = isinstance(e, ValueError | FileNotFoundError | ModuleNotFoundError)
        result = {"error": str(e), "type": type(e).__name__, "expected": expected}
    _write(directory / RESULT, result)


def _compile(request: dict[str, Any], directory: Path) -> dict[str, Any]:
    devices = topology_devices(parse_topology(request["topology"]))
    module, _, function = request["program"].partition(":")
    program = getattr(importlib.import_module(module), function)(request["settings"], devices)
    _write(directory / PLACEMENT, _placement(program))
    lowered = program.function.trace(*program.arguments).lower(lowering_platforms=("tpu",))
    compiled = lowered.compile(compiler_options=request["compiler_options"] or None)
    memory = compiled.memory_analysis()
    total = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return {"hbm_bytes": total, "code_bytes": memory.generated_code_size_in_bytes}


def _placement(program: Program) -> dict[str, Any]:
    devices = list(program.mesh.devices.flat)
    return {
        "name": program.name,
        "coordinates": [list(device.coords) for device in devices],
        "slices": [getattr(device, "slice_index", 0) for device in devices],
        "mesh": dict(program.mesh.shape),
        "bytes": {name: bytes_per_device(part) for name, part in program.parts.items()},
        "global_bytes": {
            name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part))
            for name, part in program.parts.items()
        },
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, as the other process may be looking."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.rename(path)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
