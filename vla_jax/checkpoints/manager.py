"""Run checkpoints: train state by Orbax, and beside it everything needed to know what it is."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint import type_handlers

from vla_jax.actions import stored
from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.checkpoints.intact import damage, write_file_list

Tree = Any

# Copies of an array share its writing where each has so much to do. Cutting it up is a program for
# each of its shapes, and small arrays have most of them: the first save would compile for seconds.
_SLICE_BYTES = 2**24


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
      bad_steps: those whose loss or gradient was not finite, see `training.bad_batches`.
    """

    step: int
    next_sample: int
    config: dict[str, Any]
    action_tokenizers: tuple[ActionTokenizer, ...]
    vocabulary: str
    records: dict[str, int] = dataclasses.field(default_factory=dict)
    loss_tokens: dict[str, float] = dataclasses.field(default_factory=dict)
    bad_steps: tuple[int, ...] = ()

    @property
    def action_specs(self) -> tuple[ActionSpec, ...]:
        return tuple(tokenizer.spec for tokenizer in self.action_tokenizers)

    def to_json(self) -> dict[str, Any]:
        raw = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return raw | {"action_tokenizers": [stored.to_json(t) for t in self.action_tokenizers]}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        tokenizers = tuple(stored.from_json(t) for t in raw["action_tokenizers"])
        bad = tuple(raw.get("bad_steps", ()))
        return cls(**{**raw, "action_tokenizers": tokenizers, "bad_steps": bad})


class CheckpointWriteError(OSError):
    """A checkpoint could not be written: a full disk, a directory that is gone or read-only."""


class DamagedCheckpointError(ValueError):
    """A checkpoint that was finished once cannot be read any more."""


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay; the newest always does.

    Attributes:
      newest: so many of the newest.
      every: all at multiples of so many steps; 0 for none.
      best: the one with the best value of this metric; empty for none.
      best_is: what the best value is.
    """

    newest: int = 2
    every: int = 0
    best: str = ""
    best_is: Literal["lowest", "highest"] = "lowest"

    def options(self) -> dict[str, Any]:
        """For Orbax's CheckpointManagerOptions."""
        rules: list[policies.PreservationPolicy] = [policies.LatestN(self.newest)]
        if self.every:
            rules.append(policies.EveryNSteps(self.every))
        if not self.best:
            return {"preservation_policy": policies.AnyPreservationPolicy(rules)}
        lowest = self.best_is == "lowest"

        def value(metrics: Mapping[str, float]) -> float:
            # Orbax compares all of them, also what an earlier run of other settings has left.
            return metrics.get(self.best, np.inf if lowest else -np.inf)

        # Orbax sorts, and keeps those at the end.
        rules.append(
            policies.BestN(
                get_metric_fn=value, reverse=lowest, n=1, keep_checkpoints_without_metrics=False
            )
        )
        return {
            "preservation_policy": policies.AnyPreservationPolicy(rules),
            "best_fn": value,
        }


class Checkpoints:
    """The `checkpoints/` of a run directory. Saves in the background; use as a context.

    Args:
      workdir: the run directory.
      retention: of the run that writes here, which must be the only one; half-written checkpoints
        are removed. None: it is only read.

    Raises:
      CheckpointWriteError: `checkpoints/` cannot be made.
    """

    def __init__(self, workdir: str | Path, retention: Retention | None = None):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._retention = retention
        self._started: tuple[int, float] | None = None
        self._written_at: float | None = None
        self._blocking_s = 0.0
        self._costs: dict[str, float] = {}
        self._abandoned = False
        options = ocp.CheckpointManagerOptions(
            create=retention is not None,
            cleanup_tmp_directories=retention is not None,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._before_commit,
                # Else, where that fails, threads that wait for it keep the process for minutes.
                create_directories_asynchronously=False,
            ),
            **({} if retention is None else retention.options()),
        )
        # Named here, so that a process that only reads knows how to.
        arrays = type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICE_BYTES)
        registry = type_handlers.create_type_handler_registry((jax.Array, arrays))
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "meta": ocp.JsonCheckpointHandler(),
        }
        try:
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )
        except OSError as e:
            raise CheckpointWriteError(f"cannot use {self.directory} for checkpoints: {e}") from e
        if retention is not None and not self.directory.is_dir():
            raise CheckpointWriteError(f"cannot make {self.directory} for checkpoints")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        if self._abandoned:
            return
        try:
            self.wait()
        except CheckpointWriteError:
            if kind is None:  # or the first error is what matters
                raise
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Newest complete step; a save cut off by a crash does not count."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Complete ones, in order."""
        return sorted(self._manager.all_steps())

    def find(self, which: str) -> int:
        """The step of one of them.

        Args:
          which: "newest", "best" by the `train.keep_best` of the run, or a step.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: the run did not keep its best one, or `which` is none of these.
        """
        if which == "best":
            return self._best()
        if which != "newest" and not which.isdecimal():
            raise ValueError(f"checkpoint {which!r}: write newest, best or one of {self.steps}")
        return self._require(None if which == "newest" else int(which))

    def _best(self) -> int:
        train = self.meta().config.get("train", {})
        name, lowest = train.get("keep_best"), train.get("keep_best_is") == "lowest"
        known = {step: (self._manager.metrics(step) or {}).get(name) for step in self.steps}
        values = {step: value for step, value in known.items() if value is not None}
        if not name or not values:
            raise ValueError(
                f"the run of {self.directory} did not keep its best checkpoint (train.keep_best "
                f"{name!r}): name one of {self.steps}"
            )
        return (min if lowest else max)(values, key=values.__getitem__)

    def save(
        self, state: Tree, meta: CheckpointMeta, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts saving; the state may be donated to the next step as soon as this returns.

        Args:
          metrics: what `Retention.best` is chosen by.

        Raises:
          CheckpointWriteError: this one, or the one before, cannot be written.
          ValueError: `metrics` lacks that of `Retention.best`.
        """
        if meta.step == self.latest and self._started is None:
            return
        best = self._retention.best if self._retention else ""
        if best and best not in (metrics or {}):
            names = ", ".join(sorted(metrics or {}))
            raise ValueError(f"train.keep_best {best!r} is not among what is logged: {names}")
        begun = time.perf_counter()
        self._finish()
        if meta.step == self.latest:
            return
        self._started = meta.step, begun
        with self._write_errors(meta.step):
            saved = self._manager.save(
                meta.step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta.to_json())
                ),
                metrics={best: float((metrics or {})[best])} if best else None,
                force=True,  # when to save is the loop's business
            )
        assert saved
        self._blocking_s = time.perf_counter() - begun

    def check(self) -> dict[str, float]:
        """To be called often: it does not wait.

        Returns:
          What the last save cost, once, as soon as it is done: seconds that training stood still
          for it ("checkpoint/blocking_s"), and seconds until it was written
          ("checkpoint/background_s").

        Raises CheckpointWriteError if it failed.
        """
        if self._started is not None and not self._manager.is_saving_in_progress():
            self._finish()
        costs, self._costs = self._costs, {}
        return costs

    def wait(self) -> dict[str, float]:
        """`check`, after waiting for the save to end."""
        self._finish()
        return self.check()

    def _finish(self) -> None:
        if self._started is None:
            return
        step, begun = self._started
        with self._write_errors(step):
            self._manager.wait_until_finished()
        self._started = None
        self._costs["checkpoint/blocking_s"] = self._blocking_s
        if self._written_at is not None:  # of process 0 alone
            self._costs["checkpoint/background_s"] = self._written_at - begun

    def abandon(self) -> None:
        """Leaving the context waits for nothing: other processes that a save needs are gone."""
        self._abandoned = True

    def set_damaged_aside(self, print_line: Callable[[str], None] = print) -> None:
        """Moves newest checkpoints that lack files out of the way, so that an older one is used.

        They go to `damaged_checkpoints/` beside this directory; nothing is deleted. All processes
        call it together.

        Raises FileNotFoundError if none is intact: training must not start anew over that.
        """
        if jax.process_index() == 0:
            for step in reversed(self.steps):
                problems = damage(self.directory / str(step))
                if not problems:
                    break
                self._set_aside(step, "; ".join(problems[:3]), print_line)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()
        self._require_one_left()

    def _set_aside(self, step: int, why: str, print_line: Callable[[str], None]) -> None:
        aside = self.directory.with_name("damaged_checkpoints")
        aside.mkdir(exist_ok=True)
        place = aside / f"{step}.{time.time_ns()}"
        (self.directory / str(step)).rename(place)
        print_line(f"WARNING: checkpoint {step} is damaged ({why}); it is now {place}")

    def _require_one_left(self) -> None:
        aside = self.directory.with_name("damaged_checkpoints")
        if self.latest is None and aside.is_dir() and any(aside.iterdir()):
            raise FileNotFoundError(
                f"no checkpoint in {self.directory} is intact, the damaged ones are in {aside}: "
                "bring a copy back, or begin again in a new --workdir"
            )

    def meta(self, step: int | None = None) -> CheckpointMeta:
        """Raises FileNotFoundError if there is no checkpoint, DamagedCheckpointError."""
        step = self._require(step)
        with self._read_errors(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
        return CheckpointMeta.from_json(restored["meta"])

    def stored(self, step: int | None = None) -> Tree:
        """Shapes and dtypes of a checkpoint's arrays; named tuples come as dicts or lists."""
        step = self._require(step)
        with self._read_errors(step):
            tree = self._manager.item_metadata(step)["state"]
            return {key: tree[key] for key in tree}

    def restore(
        self, abstract: Tree, shardings: Tree, step: int | None = None, *, part: bool = False
    ) -> Tree:
        """The train state, or the part of it that `abstract` has, placed by `shardings`.

        Args:
          abstract: shapes and dtypes, e.g. of `jax.eval_shape`.
          shardings: the same tree of shardings; need not be those it was saved with.
          part: whether the checkpoint may have more arrays, which are left out, and arrays of other
            dtypes, which are cast.

        Raises:
          FileNotFoundError: no checkpoint.
          ValueError: the stored tree does not fit `abstract`.
          DamagedCheckpointError: it cannot be read.
        """
        step = self._require(step)
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
        )
        stored = self.stored(step)
        problems = _mismatches(target, stored, part)
        if problems:
            raise ValueError(
                f"checkpoint {self.directory / str(step)} is of another model or optimizer:\n  "
                + "\n  ".join(problems)
            )
        args = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=part or set(target) != set(stored),
        )
        with self._read_errors(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=args))
        return restored["state"]

    def _before_commit(self) -> None:
        """Orbax calls it in the background when all is written, before the directory is renamed."""
        self._written_at = time.perf_counter()
        if self._started is None or jax.process_index():
            return
        for directory in self.directory.glob(f"{self._started[0]}{ocp.utils.TMP_DIR_SUFFIX}*"):
            write_file_list(directory, under=("state", "meta"))

    @contextlib.contextmanager
    def _write_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            self._started = None
            safe = [s for s in ocp.utils.checkpoint_steps(self.directory) if s != step]
            raise CheckpointWriteError(
                f"cannot write checkpoint {step} to {self.directory}: {str(e).splitlines()[0]}\n"
                + (f"Checkpoint {max(safe)} is complete. " if safe else "There is no other. ")
                + "Make room there and see that it may be written, then start again to go on."
            ) from e

    @contextlib.contextmanager
    def _read_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            raise DamagedCheckpointError(
                f"checkpoint {self.directory / str(step)} is damaged, it cannot be read: "
                f"{str(e).splitlines()[0]}\nMove it away to use an older one"
            ) from e

    def _require(self, step: int | None) -> int:
        found = self.latest if step is None else step
        if found is None or found not in self._manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint {'' if step is None else step} in {self.directory}; "
                f"there are {list(self._manager.all_steps())}"
            )
        return found


def _mismatches(target: Tree, stored: Tree, part: bool) -> list[str]:
    def leaves(tree: Tree) -> dict[str, tuple[tuple[int, ...], str]]:
        # A named tuple comes back as a dict: only simple names are the same for both.
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): (
                tuple(leaf.shape),
                np.dtype(leaf.dtype).name,
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    wanted, found = leaves(target), leaves({k: stored[k] for k in target if k in stored})
    lines = [f"missing {k} {v[0]}" for k, v in wanted.items() if k not in found]
    if not part:
        lines += [f"unexpected {k} {v[0]}" for k, v in found.items() if k not in wanted]
    for k, (shape, dtype) in wanted.items():
        if k in found and found[k][0] != shape:
            lines.append(f"{k} is {found[k][0]}, expected {shape}")
        elif k in found and found[k][1] != dtype and not part:
            lines.append(f"{k} is {found[k][1]}, expected {dtype}")
    return lines
