"""A bundle's parameters: safetensors with big_vision's names, in float32, bfloat16 or int8.

int8 is of the weights alone. Each matrix has one float32 scale for each of its outputs, which it is
multiplied with before use, so a number is off by at most half of 1/127 of the largest of its
output. What is no matrix (biases, norms, position embeddings: under 0.1% of PaliGemma) stays
float32. Packages that quantize Flax models (qwix, AQT) put their own array types into the tree and
have the model run inside their interpreter; here the tree stays one of plain arrays, which any
reader of safetensors and StableHLO can use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
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
_LARGEST = 127

# (name pattern, axes that are summed over where the matrix is used): the others have scales.
_SUMMED: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"img/(embedding|stem\w*_\d)/kernel", (0, 1, 2)),
    (r"img/.*MultiHeadDotProductAttention_0/(query|key|value)/kernel", (1,)),
    (r"img/.*MultiHeadDotProductAttention_0/out/kernel", (1, 2)),
    (r"img/.*MlpBlock_0/Dense_[01]/kernel", (1,)),
    (r"(img/head|state)/kernel", (0,)),
    (r"llm/embedder/input_embedding", (1,)),
    (r"llm/layers/attn/q_einsum/w", (2,)),
    (r"llm/layers/attn/kv_einsum/w", (3,)),
    (r"llm/layers/attn/attn_vec_einsum/w", (1, 2)),
    (r"llm/layers/mlp/gating_einsum", (2,)),
    (r"llm/layers/mlp/linear", (1,)),
)


def quantize(weights: np.ndarray, summed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """float32 matrix -> int8 of the same shape, and scales float32, 1 long where `summed`."""
    largest = np.abs(weights).max(axis=summed, keepdims=True)
    scale = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    return np.round(weights / scale).astype(np.int8), scale


def stored(params: Params, dtype: Dtype) -> dict[str, np.ndarray]:
    """Parameters by name, as a bundle's files have them; scales as `NAME/scale_of_int8`."""
    found: dict[str, np.ndarray] = {}
    for name, x in flatten(params).items():
        x = np.asarray(x)
        summed = next((axes for pattern, axes in _SUMMED if re.fullmatch(pattern, name)), None)
        if dtype == "bfloat16":
            found[name] = x.astype(ml_dtypes.bfloat16)
        elif dtype == "int8" and summed is not None:
            found[name], found[name + SCALE] = quantize(x.astype(np.float32), summed)
        else:
            found[name] = x.astype(np.float32)
    return found


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
