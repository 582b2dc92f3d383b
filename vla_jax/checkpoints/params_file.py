"""Parameters as one `.npz` with big_vision's names: `params/img/...`, `params/llm/...`."""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Container
from pathlib import Path

import numpy as np

from vla_jax.checkpoints.surgery import Stored
from vla_jax.tree import flatten, unflatten
from vla_jax.types import Params

_LAYER = re.compile(r"(.*/encoderblock)_(\d+)/(.*)")
# What big_vision's encoders have and most VLAs have not: SigLIP's pooling head, text tower and
# temperature; a classifier's token and head.
_NO_PLACE = ("img/MAPHead_0/", "txt/", "t", "b", "img/cls", "img/pre_logits/")


def save_params(path: str | Path, params: Params, dtype: str = "float32") -> None:
    """Writes the tree in `dtype` ("float16" halves the file). The write is atomic."""
    path = Path(path)
    flat = {f"params/{k}": np.asarray(v).astype(dtype) for k, v in flatten(params).items()}
    partial = path.with_name(path.name + ".partial.npz")
    np.savez(partial, **flat)  # pyright: ignore[reportArgumentType]
    partial.replace(path)


def load_params(path: str | Path, like: Params) -> Params:
    """Reads a file of the whole model into float32 arrays with the structure of `like`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an npz, or missing, unexplained or wrong-shaped tensors (each is listed).
    """
    found, left_out = read_params(path, like)
    names = {k: tuple(v.shape) for k, v in flatten(like).items()}
    problems = [f"missing: params/{k} {v}" for k, v in names.items() if k not in found]
    problems += [f"unexplained: params/{k}" for k in left_out]
    problems += [
        f"wrong shape: params/{k} is {v.shape}, the model has {names[k]}"
        for k, v in found.items()
        if v.shape != names[k]
    ]
    _require_none(problems, path)
    return unflatten({k: found[k].read().astype(np.float32) for k in names})


def read_params(path: str | Path, like: Params) -> tuple[dict[str, Stored], list[str]]:
    """The parts that a file has: the whole model, or the encoder alone. Reads shapes only.

    Args:
      like: parameters or shapes that say what the model has.

    Returns:
      Parameters by name, in the file's own sizes where only the vocabulary or the number of patches
      differs; and what was left out because a VLA has no place for it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an npz, or missing, unexplained or wrong-shaped tensors (each is listed).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no parameter file {path}: check train.init_from")
    try:
        stored = {key.removeprefix("params/"): x for key, x in _members(path).items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path} is not a readable npz parameter file: {e}") from e
    alone = not any(key.startswith(("img/", "llm/")) for key in stored)
    if alone:  # a ViT by itself; its head is a classifier
        stored = {f"img/{k}": v for k, v in stored.items()}
    stored = _stacked(stored)
    names = {k: tuple(v.shape) for k, v in flatten(like).items()}
    left_out = [k for k in stored if _has_no_place(k, alone, names)]
    found = {k: v for k, v in stored.items() if k not in left_out}
    parts = tuple(p for p in ("img/", "llm/") if any(k.startswith(p) for k in found))
    optional = () if "llm/" in parts else ("img/head/",)
    problems = [
        f"missing: params/{k} {v}"
        for k, v in names.items()
        if k.startswith(parts) and k not in found and not k.startswith(optional)
    ]
    problems += [f"unexplained: params/{k} {v.shape}" for k, v in found.items() if k not in names]
    problems += [
        f"wrong shape: params/{k} is {v.shape}, the model has {names[k]}"
        for k, v in found.items()
        if k in names and not _resizable(k, v.shape, names[k])
    ]
    _require_none(problems, path)
    return found, left_out


def _members(path: Path) -> dict[str, Stored]:
    """The arrays of an npz by name; only their headers are read."""

    def read(name: str) -> np.ndarray:
        with path.open("rb") as opened, np.load(opened) as file:
            return file[name]

    found = {}
    with zipfile.ZipFile(path) as file:
        for member in file.namelist():
            with file.open(member) as opened:
                major, _ = np.lib.format.read_magic(opened)
                header = np.lib.format.read_array_header_1_0
                if major == 2:
                    header = np.lib.format.read_array_header_2_0
                shape, _, _ = header(opened)
            name = member.removesuffix(".npy")
            found[name] = Stored(tuple(shape), functools.partial(read, name))
    return found


def _stacked(stored: dict[str, Stored]) -> dict[str, Stored]:
    """`encoderblock_0`, `encoderblock_1`, ... as one tensor with a leading layer axis."""
    layers: dict[str, dict[int, Stored]] = {}
    stacked = {}
    for key, value in stored.items():
        if match := _LAYER.fullmatch(key):
            layers.setdefault(f"{match[1]}/{match[3]}", {})[int(match[2])] = value
        else:
            stacked[key] = value
    for key, found in layers.items():
        parts = [found[i] for i in sorted(found)]
        shapes = {part.shape for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"layers of {key} have different shapes: {sorted(shapes)}")
        shape = (len(parts), *parts[0].shape)
        stacked[key] = Stored(shape, functools.partial(_stack, parts))
    return stacked


def _stack(parts: list[Stored]) -> np.ndarray:
    return np.stack([part.read() for part in parts])


def _has_no_place(name: str, alone: bool, names: Container[str]) -> bool:
    if alone and name.startswith("img/head/"):
        return True
    return name not in names and any(
        name == n or (n.endswith("/") and name.startswith(n)) for n in _NO_PLACE
    )


def _resizable(name: str, shape: tuple[int, ...], want: tuple[int, ...]) -> bool:
    axis = {"llm/embedder/input_embedding": 0, "img/pos_embedding": 1}.get(name)
    return len(shape) == len(want) and all(
        a == b or i == axis for i, (a, b) in enumerate(zip(shape, want))
    )


def _require_none(problems: list[str], path: str | Path) -> None:
    if problems:
        raise ValueError(
            f"{path} does not fit the model (another preset or image size?):\n  "
            + "\n  ".join(problems)
        )
