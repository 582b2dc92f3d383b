"""Starting from the parameters of another run, whose model may differ in size of some of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from vla_jax.checkpoints.manager import Checkpoints
from vla_jax.checkpoints.pretrained import place
from vla_jax.checkpoints.surgery import Change, Stored, fit
from vla_jax.sharding.mesh import replicated
from vla_jax.tree import flatten, unflatten
from vla_jax.types import Params

# Parts that a model may have and the run it starts from may not.
_ADDED = ("_lora/", "state/")


def load_run_params(
    workdir: str | Path, init: Callable[[], Params], shardings: Params, step: int | None = None
) -> tuple[Params, list[Change]]:
    """Parameters of a run's checkpoint in the form of the model, and what became of each.

    Of a run that keeps a running mean of its parameters, that mean.

    Position embeddings are resized and the vocabulary is extended as for published weights. LoRA
    matrices and the projection of the state start fresh if the run had none; those that the model
    has no place for are left out, but learned LoRA matrices never. What keeps its shape is read
    straight to where it goes, each host its own shards; the rest is read whole, one at a time.

    Args:
      workdir: the run directory.
      init: makes fresh parameters; what the run has is never computed.
      shardings: a NamedSharding for each parameter.
      step: of the checkpoint; None: the newest.

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: another model.
    """
    shapes, places = flatten(jax.eval_shape(init)), flatten(shardings)
    with Checkpoints(workdir) as checkpoints:
        stored = checkpoints.stored(step)
        key = "ema" if "ema" in stored else "params"
        have = flatten(stored[key])
        _require_same_model(str(workdir), set(have), set(shapes))

        def read(name: str) -> np.ndarray:
            like = jax.ShapeDtypeStruct(have[name].shape, have[name].dtype)
            to = replicated(places[name].mesh)
            return np.asarray(_read(checkpoints, step, key, {name: like}, {name: to})[name])

        changes, resized = {}, {}
        for name, x in have.items():
            if name not in shapes:
                changes[name] = Change(name, "left out", str(x.shape))
                continue
            found = Stored(tuple(x.shape), functools.partial(read, name))
            resized[name], changes[name] = fit(name, found, shapes[name].shape)
        same = {name: shapes[name] for name in resized if have[name].shape == shapes[name].shape}
        params = _read(checkpoints, step, key, same, places)
        for name, found in resized.items():
            if name not in same:
                params[name] = place(found.read(), shapes[name].dtype, places[name])

    missing = [name for name in shapes if name not in have]

    def fresh() -> dict[str, jax.Array]:
        made = flatten(init())
        return {name: made[name] for name in missing}

    params |= jax.jit(fresh, out_shardings={name: places[name] for name in missing})()
    for name in missing:
        changes[name] = Change(name, "fresh", str(shapes[name].shape))
    for name in same:
        old, new = np.dtype(have[name].dtype).name, np.dtype(shapes[name].dtype).name
        if old != new:
            changes[name] = Change(name, "cast", f"{old} -> {new}")
    return unflatten({name: params[name] for name in shapes}), list(changes.values())


def _read(
    checkpoints: Checkpoints, step: int | None, key: str, like: dict, places: dict
) -> dict[str, jax.Array]:
    """Those of state[key] that `like` has, by name."""
    if not like:
        return {}
    to = unflatten({name: places[name] for name in like})
    return flatten(checkpoints.restore({key: unflatten(like)}, {key: to}, step, part=True)[key])


def _require_same_model(workdir: str, have: set[str], want: set[str]) -> None:
    learned = sorted(name for name in have - want if "_lora/" in name)
    if learned:
        raise ValueError(
            f"train.init_from {workdir} has trained LoRA matrices, such as {learned[0]}, and this "
            "model has none: set model.lora_rank to that of the run"
        )
    other = [f"missing {n}" for n in sorted(want - have) if not any(part in n for part in _ADDED)]
    other += [f"unexpected {n}" for n in sorted(have - want) if not any(p in n for p in _ADDED)]
    if other:
        raise ValueError(
            f"train.init_from {workdir} is of another model:\n  " + "\n  ".join(other[:20])
        )
