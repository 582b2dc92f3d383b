"""Starting from published weights: big_vision `.npz`, Hugging Face safetensors, GGUF."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

from vla_jax.checkpoints.gguf import read_gguf
from vla_jax.checkpoints.hugging_face import TheirFile, read_hugging_face
from vla_jax.checkpoints.params_file import read_params
from vla_jax.checkpoints.surgery import Change, fit
from vla_jax.tree import flatten, unflatten
from vla_jax.types import Params

FORMATS = "a big_vision .npz, .safetensors (a file, or a directory of them) or .gguf"


def is_pretrained(path: str | Path) -> bool:
    """Whether `load_pretrained` would read it: by its name, or what the directory holds."""
    path = Path(path)
    return path.suffix in (".npz", ".safetensors", ".gguf") or any(path.glob("*.safetensors"))


def load_pretrained(
    path: str | Path, like: Params, init: Callable[[], Params]
) -> tuple[Params, list[Change]]:
    """Parameters of a file in the form of the model, and what became of each.

    A file may hold the whole model or its encoder or decoder alone; what it lacks starts fresh.
    Position embeddings are resized, the vocabulary is extended, see `checkpoints.surgery`.

    Args:
      like: the model's parameters as shapes; read first, so a misfit is found without memory.
      init: makes fresh parameters.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: another model, a truncated file, or one of no known format.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no parameter file {path}: check train.init_from")
    left_out: list[str] = []
    try:
        if path.suffix == ".npz":
            found, left_out = read_params(path, like)
        elif path.suffix == ".gguf":
            found, left_out = read_hugging_face(read_gguf(path), like)
        elif path.suffix == ".safetensors" or path.is_dir():
            found, left_out = read_hugging_face(TheirFile(path), like)
        else:
            raise ValueError(f"it is not {FORMATS}")
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    fitted, changes = fit(found, flatten(init()))
    changes += [Change(name, "left out") for name in left_out]
    return unflatten(fitted), changes


def change_table(changes: list[Change]) -> str:
    """What was done, for the log: counts, and by name whatever was not simply loaded."""
    counts = collections.Counter(change.status for change in changes)
    lines = [", ".join(f"{n} {status}" for status, n in counts.items())]
    lines += [f"  {c.status:9}{c.name}  {c.note}" for c in changes if c.status != "loaded"]
    return "\n".join(lines)
