"""Starting from published weights: big_vision `.npz`, Hugging Face safetensors, GGUF."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from vla_jax.checkpoints.gguf import GgufFile
from vla_jax.checkpoints.hugging_face import TheirFile, read_hugging_face
from vla_jax.checkpoints.params_file import read_params
from vla_jax.checkpoints.surgery import TABLE, Change, Stored, fit, reassign_rows
from vla_jax.tree import flatten, unflatten
from vla_jax.types import Params

FORMATS = "a big_vision .npz, .safetensors (a file, or a directory of them) or .gguf"


def is_pretrained(path: str | Path) -> bool:
    """Whether `load_pretrained` would read it: by its name, or what the directory holds."""
    path = Path(path)
    return path.suffix in (".npz", ".safetensors", ".gguf") or any(path.glob("*.safetensors"))


def load_pretrained(
    paths: Sequence[str | Path],
    init: Callable[[], Params],
    shardings: Params,
    *,
    action_rows: Sequence[int] = (),
) -> tuple[Params, list[Change]]:
    """Parameters of files in the form of the model, on its devices, and what became of each.

    A file may hold the whole model or its encoder or decoder alone, so several make one model; what
    all of them lack starts fresh.
    Position embeddings are resized, the vocabulary is extended, see `checkpoints.surgery`. They get
    the dtype of fresh ones: a file is often float16 or bfloat16, master weights are float32.

    Shapes are compared before anything is read. Then one parameter after the other is read and
    placed, so a host holds one at a time, in the file's dtype, and a device its own shards.

    Args:
      paths: files, or directories of safetensors.
      init: makes fresh parameters; what a file has is never computed.
      shardings: a NamedSharding for each parameter.
      action_rows: rows of the embedding that get a new meaning, see `reassign_rows`.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: another model, a truncated file, one of no known format, or two with the same
        parameter.
    """
    like = jax.eval_shape(init)
    shapes, places = flatten(like), flatten(shardings)
    fitted: dict[str, tuple[Stored, Change]] = {}
    left_out: list[Change] = []
    for path in map(Path, paths):
        found, unused = _fitted(path, like)
        twice = sorted(fitted.keys() & found.keys())
        if twice:
            raise ValueError(
                f"{path} has {twice[0]}, and so has {fitted[twice[0]][1].file}: of several files "
                "in train.init_from each must hold a part of its own"
            )
        fitted |= found
        left_out += [Change(name, "left out", file=str(path)) for name in unused]
    missing = [k for k in shapes if k not in fitted]

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
    return unflatten({k: params[k] for k in shapes}), changes + left_out


def _fitted(path: Path, like: Params) -> tuple[dict[str, tuple[Stored, Change]], list[str]]:
    """What a file has of the model, not yet read, and what it has besides."""
    if not path.exists():
        raise FileNotFoundError(f"no parameter file {path}: check train.init_from")
    try:
        if path.suffix == ".npz":
            found, left_out = read_params(path, like)
        elif path.suffix == ".gguf":
            found, left_out = read_hugging_face(GgufFile(path), like)
        elif path.suffix == ".safetensors" or path.is_dir():
            found, left_out = read_hugging_face(TheirFile(path), like)
        else:
            raise ValueError(f"it is not {FORMATS}")
        shapes = {k: leaf.shape for k, leaf in flatten(like).items() if k in found}
        fitted = {k: fit(k, found[k], shape) for k, shape in shapes.items()}
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    named = {
        k: (stored, dataclasses.replace(change, file=str(path)))
        for k, (stored, change) in fitted.items()
    }
    return named, left_out


def _counts(changes: list[Change]) -> str:
    counts = collections.Counter(change.status for change in changes)
    return ", ".join(f"{n} {status}" for status, n in counts.items())


def place(x: np.ndarray, dtype: np.dtype, sharding: jax.sharding.Sharding) -> jax.Array:
    """A whole array of a host -> its shards on the devices, in `dtype`."""
    return jax.make_array_from_callback(
        x.shape, sharding, lambda index: np.ascontiguousarray(x[index], dtype)
    )


def change_table(changes: list[Change]) -> str:
    """What was done, for the log: counts, and by name whatever was not simply loaded.

    Of several files each has a line of counts.
    """
    files = list(dict.fromkeys(change.file for change in changes if change.file))
    parts = [("", changes)]
    if len(files) > 1:
        parts = [(f"{file}: ", [c for c in changes if c.file == file]) for file in files]
        parts += [("in none of them: ", [c for c in changes if not c.file])]
    lines = [title + _counts(part) for title, part in parts if part]
    lines += [f"  {c.status:9}{c.name}  {c.note}" for c in changes if c.status != "loaded"]
    return "\n".join(lines)
