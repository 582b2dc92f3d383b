"""Starting from published weights: big_vision `.npz`, Hugging Face safetensors, GGUF."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from vla_jax.checkpoints.gguf import GgufFile
from vla_jax.checkpoints.hugging_face import TheirFile, read_hugging_face
from vla_jax.checkpoints.params_file import read_params
from vla_jax.checkpoints.surgery import TABLE, Change, fit, reassign_rows
from vla_jax.tree import flatten, unflatten
from vla_jax.types import Params

FORMATS = "a big_vision .npz, .safetensors (a file, or a directory of them) or .gguf"


def is_pretrained(path: str | Path) -> bool:
    """Whether `load_pretrained` would read it: by its name, or what the directory holds."""
    path = Path(path)
    return path.suffix in (".npz", ".safetensors", ".gguf") or any(path.glob("*.safetensors"))


def load_pretrained(
    path: str | Path,
    init: Callable[[], Params],
    shardings: Params,
    *,
    action_rows: Sequence[int] = (),
) -> tuple[Params, list[Change]]:
    """Parameters of a file in the form of the model, on its devices, and what became of each.

    A file may hold the whole model or its encoder or decoder alone; what it lacks starts fresh.
    Position embeddings are resized, the vocabulary is extended, see `checkpoints.surgery`. They get
    the dtype of fresh ones: a file is often float16 or bfloat16, master weights are float32.

    Shapes are compared before anything is read. Then one parameter after the other is read and
    placed, so a host holds one at a time, in the file's dtype, and a device its own shards.

    Args:
      init: makes fresh parameters; what the file has is never computed.
      shardings: a NamedSharding for each parameter.
      action_rows: rows of the embedding that get a new meaning, see `reassign_rows`.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: another model, a truncated file, or one of no known format.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no parameter file {path}: check train.init_from")
    like = jax.eval_shape(init)
    try:
        if path.suffix == ".npz":
            found, left_out = read_params(path, like)
        elif path.suffix == ".gguf":
            found, left_out = read_hugging_face(GgufFile(path), like)
        elif path.suffix == ".safetensors" or path.is_dir():
            found, left_out = read_hugging_face(TheirFile(path), like)
        else:
            raise ValueError(f"it is not {FORMATS}")
        shapes, places = flatten(like), flatten(shardings)
        fitted = {k: fit(k, found[k], shapes[k].shape) for k in shapes if k in found}
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    missing = [k for k in shapes if k not in found]

    def fresh() -> Params:
        made = flatten(init())
        return {k: made[k] for k in missing}

    params = jax.jit(fresh, out_shardings={k: places[k] for k in missing})()
    for name, (parameter, _) in fitted.items():
        x = parameter.read()
        if name == TABLE and len(action_rows):
            x = reassign_rows(x, action_rows)
        params[name] = place(x, shapes[name].dtype, places[name])
    changes = [
        fitted[k][1] if k in fitted else Change(k, "fresh", str(shapes[k].shape)) for k in shapes
    ]
    changes += [Change(name, "left out") for name in left_out]
    return unflatten({k: params[k] for k in shapes}), changes


def place(x: np.ndarray, dtype: np.dtype, sharding: jax.sharding.Sharding) -> jax.Array:
    """A whole array of a host -> its shards on the devices, in `dtype`."""
    return jax.make_array_from_callback(
        x.shape, sharding, lambda index: np.ascontiguousarray(x[index], dtype)
    )


def change_table(changes: list[Change]) -> str:
    """What was done, for the log: counts, and by name whatever was not simply loaded."""
    counts = collections.Counter(change.status for change in changes)
    lines = [", ".join(f"{n} {status}" for status, n in counts.items())]
    lines += [f"  {c.status:9}{c.name}  {c.note}" for c in changes if c.status != "loaded"]
    return "\n".join(lines)
