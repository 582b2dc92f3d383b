"""Run checkpoints: train state by Orbax, and beside it everything needed to know what it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from vla_jax.actions import stored
from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer

Tree = Any


@dataclasses.dataclass(frozen=True)
class CheckpointMeta:
    """What travels with the arrays.

    Attributes:
      step: updates finished.
      next_sample: first sample of the mixture that is not used yet. All there is to the data's
        state.
      config: the run's config, plain JSON values.
      action_tokenizers: what tokens mean to each robot, with its ActionSpec; none for a model
        without robot data.
      vocabulary: digest of the vocabulary file.
      records: data set -> how many it has; with another number the order of samples is another.
      loss_tokens: data set -> mean tokens in the loss of a sample, if the mixture's weights are in
        those.
    """

    step: int
    next_sample: int
    config: dict[str, Any]
    action_tokenizers: tuple[ActionTokenizer, ...]
    vocabulary: str
    records: dict[str, int] = dataclasses.field(default_factory=dict)
    loss_tokens: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def action_specs(self) -> tuple[ActionSpec, ...]:
        return tuple(tokenizer.spec for tokenizer in self.action_tokenizers)

    def to_json(self) -> dict[str, Any]:
        raw = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return raw | {"action_tokenizers": [stored.to_json(t) for t in self.action_tokenizers]}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        tokenizers = tuple(stored.from_json(t) for t in raw["action_tokenizers"])
        return cls(**{**raw, "action_tokenizers": tokenizers})


class Checkpoints:
    """The `checkpoints/` of a run directory. Saves in the background; use as a context.

    Args:
      workdir: the run directory.
      keep: newest checkpoints kept.
    """

    def __init__(self, workdir: str | Path, keep: int = 2):
        self.directory = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        # Named here, so that a process that only reads knows how to.
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=handlers
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Newest complete step; a save cut off by a crash does not count."""
        return self._manager.latest_step()

    def save(self, state: Tree, meta: CheckpointMeta) -> None:
        """Starts saving; the state may be donated to the next step as soon as this returns."""
        if meta.step == self.latest:
            return
        self._manager.save(
            meta.step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta.to_json())
            ),
        )

    def meta(self, step: int | None = None) -> CheckpointMeta:
        """Raises FileNotFoundError if there is no checkpoint."""
        step = self._require(step)
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return CheckpointMeta.from_json(restored["meta"])

    def restore(self, abstract: Tree, shardings: Tree, step: int | None = None) -> Tree:
        """The train state, or the part of it that `abstract` has, placed by `shardings`.

        Args:
          abstract: shapes and dtypes, e.g. of `jax.eval_shape`.
          shardings: the same tree of shardings; need not be those it was saved with.

        Raises:
          FileNotFoundError: no checkpoint.
          ValueError: the stored tree does not fit `abstract`.
        """
        step = self._require(step)
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
        )
        stored = self._manager.item_metadata(step)["state"]
        problems = _mismatches(target, stored)
        if problems:
            raise ValueError(
                f"checkpoint {self.directory / str(step)} is of another model or optimizer:\n  "
                + "\n  ".join(problems)
            )
        partial = set(target) != set(stored)
        args = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=partial,
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(state=args))
        return restored["state"]

    def _require(self, step: int | None) -> int:
        found = self.latest if step is None else step
        if found is None or found not in self._manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint {'' if step is None else step} in {self.directory}; "
                f"there are {list(self._manager.all_steps())}"
            )
        return found


def _mismatches(target: Tree, stored: Tree) -> list[str]:
    def shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        # A named tuple comes back as a dict: only simple names are the same for both.
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves
        }

    wanted, found = shapes(target), shapes({k: stored[k] for k in target if k in stored})
    lines = [f"missing {k} {v}" for k, v in wanted.items() if k not in found]
    lines += [f"unexpected {k} {v}" for k, v in found.items() if k not in wanted]
    lines += [
        f"{k} is {found[k]}, expected {v}"
        for k, v in wanted.items()
        if k in found and found[k] != v
    ]
    return lines
