"""Next-token cross-entropy on answers, with sums per source."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.models.vla import Segments, State, Vla, run_model
from vla_jax.training.alignment import alignment_loss, gaussian_target
from vla_jax.types import Params


def _segments(batch: dict[str, jax.Array]) -> Segments | None:
    return Segments(batch["image_segment"], batch["segment"]) if "segment" in batch else None


class AnswerLogits(NamedTuple):
    """What the model says where there is loss, K = max_answer_tokens positions of a row."""

    logits: jax.Array  # float32 [B, K, V]
    position: jax.Array  # int32 [B, K]: of the predicted token in its row
    target: jax.Array  # int32 [B, K]
    in_loss: jax.Array  # bool [B, K]
    image_tokens: jax.Array  # [B, P, D]


def answer_logits(
    model: Vla, params: Params, batch: dict[str, jax.Array], max_answer_tokens: int
) -> AnswerLogits:
    """Logits only where there is loss.

    The K loss positions of a row are gathered before the vocabulary product: no [B, T, V] array
    exists.
    """
    # A stable sort brings the positions with loss to the front, in order.
    position = jnp.argsort(~batch["in_loss"], axis=1, stable=True)[:, :max_answer_tokens]
    target = jnp.take_along_axis(batch["tokens"], position, axis=1)
    in_loss = jnp.take_along_axis(batch["in_loss"], position, axis=1)
    # The position before a token predicts it; the first answer token follows a prompt of >= 1.
    hidden, image_tokens = run_model(
        model,
        params,
        batch["images"],
        batch["tokens"],
        batch["attend_causal"],
        batch["valid"],
        segments=_segments(batch),
        wanted=jnp.maximum(position - 1, 0),
        state=State(batch["state"], batch["state_valid"]) if "state" in batch else None,
    )
    logits = run_model(model, params, hidden, method="logits")
    return AnswerLogits(logits, position, target, in_loss, image_tokens)


def answer_loss(
    model: Vla,
    params: Params,
    batch: dict[str, jax.Array],
    *,
    max_answer_tokens: int,
    num_sources: int,
    integer_smoothing: float = 0.0,
    exact_integers: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    name_ids: np.ndarray | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy over the answer tokens of the global batch.

    Args:
      integer_smoothing: standard deviation, in bins, of the target over the integer tokens (soft
        labels for ordered classes; Diaz and Marathe, CVPR 2019). 0 is RT-2's plain one-hot target.
      exact_integers: the first so many integers keep one-hot targets: those that stand for the
        levels of a discrete action dimension, where 1 is not nearly 0.
      label_smoothing: share of the target that is spread over the whole vocabulary (arXiv
        1512.00567, section 7); the rest is the target that `integer_smoothing` makes.
      z_loss: times the squared logarithm of the softmax's denominator, which keeps logits from
        drifting; PaLM (arXiv 2204.02311, section 5): 1e-4.
      name_ids: adds `alignment.alignment_loss` over these names, for batches with patch labels.

    Returns:
      The loss (nats per token), and float32 [num_sources] sums by source: "loss" (nats, without
      label smoothing and z-loss, so that runs with and without compare), "correct"
      (greedy token matches), "tokens", "samples", "truncated" (samples whose answer was cut),
      "left_out" (those that did not fit into their packed row, which are no samples) and "used",
      the share of the batch's positions, images included, that is not padding. Sums, not means:
      hosts and sources hold different numbers of loss tokens, so a mean of means is biased.
    """
    logits, position, target, in_loss, image_tokens = answer_logits(
        model, params, batch, max_answer_tokens
    )
    target_logit = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    weight = in_loss.astype(jnp.float32)
    # The target is the likeliest token if nothing is above it: a maximum is a quicker pass over the
    # vocabulary than an argmax.
    correct = (target_logit >= jnp.max(logits, axis=-1)) * weight
    if integer_smoothing:
        target_logit = _smoothed_target_logit(
            model, logits, target, target_logit, integer_smoothing, exact_integers
        )
    log_z = jax.nn.logsumexp(logits, axis=-1)
    nats = log_z - target_logit
    by_source = _sums_by_source(batch, position, num_sources, nats * weight, correct, weight)
    by_source |= _rows_by_source(batch, num_sources, image_tokens.shape[1])
    tokens = jnp.maximum(jnp.sum(by_source["tokens"]), 1.0)
    loss = jnp.sum(by_source["loss"]) / tokens
    if label_smoothing:  # of e: (1 - e) target logit + e mean logit in place of the target logit
        spread = target_logit - jnp.mean(logits, axis=-1)
        loss += label_smoothing * jnp.sum(spread * weight) / tokens
    if z_loss:
        loss += z_loss * jnp.sum(jnp.square(log_z) * weight) / tokens
    if name_ids is not None:
        loss += alignment_loss(model, params, image_tokens, batch, name_ids).loss
    return loss, by_source


def patch_label_loss(
    model: Vla,
    params: Params,
    batch: dict[str, jax.Array],
    *,
    num_sources: int,
    name_ids: np.ndarray,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`alignment.alignment_loss` alone, for training the image encoder before the decoder.

    Returns:
      The loss, and sums by source as `answer_loss` does, over patches that show a thing: "loss" of
      the words, "correct" if the likeliest word is one of the name's.
    """
    image_tokens = run_model(model, params, batch["images"], method="image_tokens")
    found = alignment_loss(model, params, image_tokens, batch, name_ids)
    by_source = _sums_by_source(
        batch,
        jnp.zeros(found.thing.shape, jnp.int32),
        num_sources,
        found.word_nats * found.thing,
        found.correct * found.thing,
        found.thing,
    )
    return found.loss, by_source | _rows_by_source(batch, num_sources, image_tokens.shape[1])


def _source_at(batch: dict[str, jax.Array], position: jax.Array) -> jax.Array:
    """int [B, K] positions of the text -> int [B, K], the source of each."""
    source = batch["source"].reshape(len(position), -1)  # [B, k], k = 1 unless examples are packed
    segment = batch.get("segment", jnp.ones_like(batch["tokens"]))
    example = jnp.clip(jnp.take_along_axis(segment, position, axis=1) - 1, 0, source.shape[1] - 1)
    return jnp.take_along_axis(source, example, axis=1)


def source_of_tokens(batch: dict[str, jax.Array]) -> jax.Array:
    """int [B, T], the source of each position of the text; of padding, any."""
    every = jnp.broadcast_to(jnp.arange(batch["tokens"].shape[1]), batch["tokens"].shape)
    return _source_at(batch, every)


def _sums_by_source(
    batch: dict[str, jax.Array],
    position: jax.Array,
    num_sources: int,
    nats: jax.Array,
    correct: jax.Array,
    weight: jax.Array,
) -> dict[str, jax.Array]:
    """Sums of what is [B, K], for tokens at these positions of the text."""
    source = _source_at(batch, position).reshape(-1)
    per_token = {"loss": nats, "correct": correct, "tokens": weight}
    return {
        k: jax.ops.segment_sum(v.reshape(-1), source, num_sources) for k, v in per_token.items()
    }


def _rows_by_source(
    batch: dict[str, jax.Array], num_sources: int, image_tokens: int
) -> dict[str, jax.Array]:
    """Sums of what an example has once, and of the positions that it takes."""
    source = batch["source"].reshape(len(batch["tokens"]), -1)

    def total(x: jax.Array, of: jax.Array = source) -> jax.Array:
        return jax.ops.segment_sum(x.astype(jnp.float32).reshape(-1), of.reshape(-1), num_sources)

    nowhere = jnp.zeros(source.shape, bool)
    left_out = batch.get("left_out", nowhere).reshape(source.shape)
    truncated = batch.get("truncated", nowhere).reshape(source.shape) & ~left_out
    rows, length = batch["tokens"].shape
    used = total(batch["valid"], source_of_tokens(batch))
    used += total(~left_out) * (image_tokens / source.shape[1])
    return {
        "samples": total(~left_out),
        "truncated": total(truncated),
        "left_out": total(left_out),
        "used": used / (rows * (image_tokens + length)),
    }


def _smoothed_target_logit(
    model: Vla,
    logits: jax.Array,
    target: jax.Array,
    target_logit: jax.Array,
    deviation: float,
    exact_integers: int,
) -> jax.Array:
    """Expected logit [B, K] under the soft target: for integers a Gaussian round them."""
    rows = model.config.decoder.integer_rows
    if rows is None:
        raise ValueError(
            f"train.integer_smoothing needs integer rows, preset {model.config.preset!r} has none"
        )
    first, last = rows
    weight = gaussian_target(target - first, last - first, deviation)
    soft = jnp.sum(weight * logits[..., first:last], axis=-1)
    return jnp.where((target >= first + exact_integers) & (target < last), soft, target_logit)
