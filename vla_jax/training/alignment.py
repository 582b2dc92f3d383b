"""Patch-aligned training: an image token says which thing its patch shows, and where that is."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.models.vla import Vla
from vla_jax.types import Params

SCALE = 20.0
"""Times the cosine between a patch and a word: their logit."""
PLACE_DEVIATION = 3.0
"""Standard deviation, in bins, of the target over places: patches need not know them to the bin."""


class Alignment(NamedTuple):
    """What `alignment_loss` found; float32 [B, P] all but the loss.

    Attributes:
      loss: [], what is minimised.
      word_nats: mean over the words of the patch's name.
      correct: 1 where the likeliest word is one of the name's.
      thing: 1 where the patch shows a thing.
    """

    loss: jax.Array
    word_nats: jax.Array
    correct: jax.Array
    thing: jax.Array


def alignment_loss(
    model: Vla,
    params: Params,
    image_tokens: jax.Array,
    batch: dict[str, jax.Array],
    name_ids: np.ndarray,
) -> Alignment:
    """Cross-entropy of the name of what a patch shows and of its place, read off the image token.

    Image tokens share the space of word embeddings, so the embedding table is the classifier and no
    parameter is added (patch-aligned training, arXiv 2212.04994, with cross-entropy). It gets the
    decoder across the plateau before grounding: looking for "dog" becomes comparing like with like,
    and "where?" a linear map of what was found.

    Cosines, because attention sees normed inputs: with plain products the loss also falls when all
    words drift away from all pictures together. One token carries three codes, each the embedding
    of a word rolled by its own part of the width, so that they do not get in each other's way: the
    name by a half (what is most like a word shall be its picture and not the word itself, or
    attention would have to unlearn that; see `models.presets.DecoderConfig`), the integers of y and
    x by a quarter and three quarters.

    Args:
      image_tokens: [B, P, D].
      batch: "patch_tokens" int32 [B, P, W], up to W tokens of the name, the background's one token
        (the first of `name_ids`) for nothing, -1 for none; patches with none do not count.
        "patch_places" int32 [B, P, 2], bins of the thing's centre (y, x), -1 for none.
      name_ids: int [K], every id that can be in "patch_tokens". The softmax is over these: all
        other words, pushed the same way by every patch, would end as one and the same vector.

    Raises:
      ValueError: the model has no integer rows.
    """
    rows = model.config.decoder.integer_rows
    if rows is None:
        raise ValueError(f"preset {model.config.preset!r} has no integer rows to say places with")
    table = params["llm"]["embedder"]["input_embedding"]
    width = table.shape[1]
    seen = _unit(image_tokens.astype(jnp.float32))

    def log_p(words: jax.Array, roll: int) -> jax.Array:
        cosine = jnp.einsum("BPD,KD->BPK", seen, jnp.roll(_unit(words), roll, axis=1))
        return jax.nn.log_softmax(SCALE * cosine, axis=-1)

    label = batch["patch_tokens"]
    there = label >= 0
    column = np.zeros(table.shape[0], np.int32)
    column[name_ids] = np.arange(len(name_ids))
    label = jnp.asarray(column)[jnp.where(there, label, 0)]
    names = log_p(table[name_ids], width // 2)
    words = jnp.sum(there, axis=-1)
    word_nats = -jnp.sum(jnp.take_along_axis(names, label, axis=-1) * there, axis=-1)
    word_nats /= jnp.maximum(words, 1)
    correct = jnp.any((jnp.argmax(names, axis=-1)[..., None] == label) & there, axis=-1)
    nothing = there[..., 0] & (label[..., 0] == 0)
    thing = (words > 0) & ~nothing

    integers = table[rows[0] : rows[1]]
    place_nats = jnp.zeros_like(word_nats)
    for axis, roll in enumerate((width // 4, 3 * width // 4)):
        place = batch["patch_places"][..., axis]
        target = gaussian_target(place, len(integers), PLACE_DEVIATION)
        place_nats -= jnp.sum(target * log_p(integers, roll), axis=-1) / 2

    def mean(values: jax.Array, group: jax.Array) -> jax.Array:
        return jnp.sum(values * group) / jnp.maximum(jnp.sum(group), 1)

    # Apart, since most patches are background.
    loss = mean(word_nats, thing) + mean(word_nats, nothing) + mean(place_nats, thing)
    return Alignment(loss, word_nats, *(x.astype(jnp.float32) for x in (correct, thing)))


def gaussian_target(integers: jax.Array, count: int, deviation: float) -> jax.Array:
    """Soft labels for ordered classes: int [...] -> float32 [..., count], each row summing to 1."""
    apart = (integers[..., None] - jnp.arange(count)).astype(jnp.float32)
    return jax.nn.softmax(-0.5 * jnp.square(apart / deviation), axis=-1)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
