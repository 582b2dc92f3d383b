"""A bundle's parameters: safetensors with big_vision's names, in float32, bfloat16 or int8.

`serving.dtypes` makes the int8. The tree stays one of plain arrays, a matrix and its scales, which
any reader of safetensors and StableHLO can use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vla_jax.checkpoints.hugging_face import in_shards
from vla_jax.checkpoints.pretrained import place
from vla_jax.tree import flatten, unflatten
from vla_jax.types import Params

Dtype = Literal["float32", "bfloat16", "int8"]
MAX_FILE_BYTES = 5_000_000_000
SCALE = "/scale_of_int8"


def usable(tensors: Mapping[str, Any], compute_dtype: str) -> dict[str, Any]:
    """What the files have -> parameters by name, int8 as `compute_dtype`. NumPy or traced arrays.

    The model multiplies in `compute_dtype` in any case, so nothing is lost.
    """
    found: dict[str, Any] = {}
    for name, x in tensors.items():
        if name.endswith(SCALE):
            continue
        scale = tensors.get(name + SCALE)
        if scale is not None:
            x = (x.astype(np.float32) * scale).astype(jnp.dtype(compute_dtype))
        found[name] = x
    return found


def write(directory: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `parameters*.safetensors`, of up to 5 GB each or of one tensor."""
    parts = in_shards({n: np.ascontiguousarray(x) for n, x in tensors.items()}, MAX_FILE_BYTES)
    for number, part in enumerate(parts, 1):
        of = "" if len(parts) == 1 else f"-{number:05d}-of-{len(parts):05d}"
        path = directory / f"parameters{of}.safetensors"
        save_file(part, path)
        path.chmod(0o644)  # safetensors lets only its writer read; a server is often somebody else


def read(directory: Path) -> dict[str, np.ndarray]:
    """What `write` wrote."""
    tensors = {}
    for path in sorted(directory.glob("parameters*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def placed(tensors: Mapping[str, np.ndarray], like: Params, compute_dtype: str) -> Params:
    """Parameters on the devices.

    Args:
      like: tree of ShapeDtypeStruct with shardings, of the model.

    Raises ValueError, naming them, if names or shapes are not the model's.
    """
    wanted, found = flatten(like), usable(tensors, compute_dtype)
    shapes = {name: tuple(x.shape) for name, x in found.items()}
    wrong = [f"{name} {x.shape}" for name, x in wanted.items() if shapes.get(name) != x.shape]
    wrong += [f"{name} {shape}" for name, shape in shapes.items() if name not in wanted]
    if wrong:
        raise ValueError(f"parameters are not those of the bundle's model: {', '.join(wrong[:5])}")
    return unflatten({n: place(x, x.dtype, wanted[n].sharding) for n, x in found.items()})


def shapes_of(tensors: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """For tracing."""
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()}
