"""Whether a run may go on from a checkpoint: with the same samples and the same update."""

from __future__ import annotations

from vla_jax.actions import stored
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.checkpoints.manager import CheckpointMeta

# Keys that may differ between a checkpoint and the run that resumes it: they change neither the
# samples nor the update, or, as `train.on_nan`, only what becomes of one that cannot be applied.
# `train.steps` may grow, to train on (a schedule that decays to the last step then decays to the
# new one).
_MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.keep_best",
    "train.keep_best_is",
    "train.on_nan",
    "train.max_bad_batches",
    "train.stop_within_s",
    "train.init_from",
    "train.watch",
    "train.micro_batches",
    "train.source_gradient_norms",
    "train.tpu_options",
    "model.remat",
    "model.unroll_layers",
    "mesh",
    "data.threads",
    "data.prefetch",
    "data.readers",
    "data.host_memory_gib",
    "data.max_bad_records",
    "evaluation",
)


def require_same_config(before: CheckpointMeta, now: CheckpointMeta, *, where: str) -> None:
    """Raises ValueError naming what differs between a checkpoint and the run that resumes it."""
    lines = [
        f"{key}: the checkpoint has {old!r}, this run has {new!r}"
        for key, old, new in _differences(before.config, now.config)
    ]
    if before.vocabulary != now.vocabulary:
        lines.append(f"vocabulary: {before.vocabulary} against {now.vocabulary}")
    lines += [
        f"data.sources.{name}: {count} records when the run began, {now.records.get(name)} now"
        for name, count in before.records.items()
        if now.records.get(name) != count
    ]
    if lines:
        raise ValueError(
            f"{where} holds a run of another config:\n  "
            + "\n  ".join(lines)
            + "\nUse a new --workdir, or start from it with train.init_from."
        )
    old = {t.spec.name: t for t in before.action_tokenizers}
    for tokenizer in now.action_tokenizers:
        if tokenizer.spec.name not in old:
            raise ValueError(
                f"{where} knows the actions of {', '.join(old) or 'no robot'}, not those of "
                f"{tokenizer.spec.name}: use a new --workdir, or start from it with train.init_from"
            )
        _require_same_tokens(old[tokenizer.spec.name], tokenizer)


def _require_same_tokens(old: ActionTokenizer, new: ActionTokenizer) -> None:
    """Raises ValueError if the same tokens would mean other actions."""
    old.spec.require_same(new.spec, here="the checkpoint", there="the data")
    before, after = stored.to_json(old), stored.to_json(new)
    changed = [key for key in before if before[key] != after[key]]
    if changed:
        raise ValueError(
            f"the action tokenizer is another one than the checkpoint's: {', '.join(changed)} "
            "differ; use the file that it was trained with, or a new --workdir"
        )


def _differences(old: dict, new: dict, prefix: str = ""):
    for key in sorted({*old, *new}):
        name = prefix + key
        if name in _MAY_CHANGE:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, name + ".")
        elif a != b:
            yield name, a, b
