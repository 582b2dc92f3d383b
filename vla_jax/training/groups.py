"""Which parameters learn how fast: regular expressions over names, first match wins."""

from __future__ import annotations

import difflib
import re

import jax

from vla_jax.types import Params

Groups = tuple[tuple[str, float], ...]
"""(expression, factor) pairs. An expression must match the whole name, "llm/layers/mlp/linear";
factor 0 freezes."""


def factors(params: Params, groups: Groups) -> Params:
    """The factor of each parameter, 1 where nothing matches.

    Raises:
      ValueError: an expression that is none, or that matches no parameter.
    """
    used: set[str] = set()
    names: list[str] = []

    def one(path, _) -> float:
        name = "/".join(str(k.key) for k in path)
        names.append(name)
        for expression, factor in groups:
            if re.fullmatch(expression, name):
                used.add(expression)
                return factor
        return 1.0

    try:
        tree = jax.tree_util.tree_map_with_path(one, params)
    except re.error as e:
        raise ValueError(f"optimizer.groups: {e.pattern!r} is no regular expression: {e}") from e
    for expression, _ in groups:
        if expression not in used:
            close = difflib.get_close_matches(expression, names, n=1, cutoff=0.0)
            raise ValueError(
                f"optimizer.groups: {expression!r} matches no parameter that an earlier one does "
                f"not; names look like {close[0]!r}"
            )
    return tree


def freeze(params: Params, groups: Groups) -> Params:
    """The same parameters; those with factor 0 get no gradient, and none is computed for them."""
    if not groups:
        return params

    def one(factor: float, leaf: jax.Array) -> jax.Array:
        return leaf if factor else jax.lax.stop_gradient(leaf)

    return jax.tree.map(one, factors(params, groups), params)
