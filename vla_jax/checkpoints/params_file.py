"""Parameters as one `.npz` with big_vision's names: `params/img/...`, `params/llm/...`."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from vla_jax.types import Params


def save_params(path: str | Path, params: Params, dtype: str = "float32") -> None:
    """Writes the tree in `dtype` ("float16" halves the file). The write is atomic."""
    path = Path(path)
    flat = {
        "params/" + "/".join(str(k.key) for k in key): np.asarray(leaf).astype(dtype)
        for key, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    partial = path.with_name(path.name + ".partial.npz")
    np.savez(partial, **flat)  # pyright: ignore[reportArgumentType]
    partial.replace(path)


def load_params(path: str | Path, like: Params) -> Params:
    """Reads a file into float32 arrays with the structure of `like` (arrays or shapes).

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an npz, or missing, unexplained or wrong-shaped tensors (each is listed).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no parameter file {path}: check train.init_from")
    try:
        with np.load(path) as file:
            stored = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError) as e:
        raise ValueError(f"{path} is not a readable npz parameter file: {e}") from e
    wanted = {
        "params/" + "/".join(str(k.key) for k in key): leaf
        for key, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    problems = [f"missing: {k} {tuple(v.shape)}" for k, v in wanted.items() if k not in stored]
    problems += [f"unexplained: {k} {v.shape}" for k, v in stored.items() if k not in wanted]
    problems += [
        f"wrong shape: {k} is {stored[k].shape}, the model has {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in stored and stored[k].shape != tuple(v.shape)
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit the model (another preset or image size?):\n  "
            + "\n  ".join(problems)
        )

    def one(key, _):
        return stored["params/" + "/".join(str(k.key) for k in key)].astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, like)
