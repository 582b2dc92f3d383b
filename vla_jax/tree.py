"""Parameter trees by name: "llm/layers/attn/q_einsum/w"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from vla_jax.types import Params


def flatten(params: Params) -> dict[str, Any]:
    """Nested dicts -> leaves by name."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(k.key) for k in key): leaf for key, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """The inverse."""
    params: Params = {}
    for name, leaf in leaves.items():
        *above, last = name.split("/")
        inner = params
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = leaf
    return params
