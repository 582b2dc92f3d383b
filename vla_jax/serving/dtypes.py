"""Parameters as a bundle's files hold them: float32, bfloat16, or int8 by qwix.

int8 is of the weights alone. Each matrix has one float32 scale for each of its outputs, which it is
multiplied with before use, so a number is off by at most 1/255 of the largest of its output. What
is no matrix (biases, norms, position embeddings: under 0.1% of PaliGemma) stays float32.
"""

from __future__ import annotations

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import qwix

from vla_jax.serving.parameters import SCALE, Dtype
from vla_jax.tree import flatten
from vla_jax.types import Params

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
    outputs = [axis for axis in range(weights.ndim) if axis not in summed]
    found = qwix.quantize(jnp.asarray(weights), jnp.int8, channelwise_axes=outputs)
    return np.asarray(found.qvalue), np.asarray(found.scale)


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
