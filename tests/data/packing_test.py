"""Packed rows: what is in them, and that a model treats their texts as if each stood alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from vla_jax.data.packing import pack_row
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import Vla, init_params
from vla_jax.types import Example

IMAGE = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
TEXTS = [("Q: point to the dog A:", "<010><200>"), ("Q: what is it? A:", "a red apple")]


def _examples(texts) -> list[Example]:
    return [Example((IMAGE,), prompt, answer) for prompt, answer in texts]


def test_texts_lie_one_after_the_other(builder):
    row = pack_row(builder, _examples(TEXTS), length=60, max_loss_tokens=20)
    alone = [builder.build(e) for e in _examples(TEXTS)]
    start = 0
    for segment, built in enumerate(alone, 1):
        size = int(built["valid"].sum())
        where = slice(start, start + size)
        assert (row["segment"][where] == segment).all()
        for key in ("tokens", "attend_causal", "in_loss", "valid"):
            np.testing.assert_array_equal(row[key][where], built[key][:size])
        start += size
    assert not row["valid"][start:].any() and not row["segment"][start:].any()


def test_what_does_not_fit_is_left_out(builder):
    first = int(builder.build(_examples(TEXTS)[0])["valid"].sum())
    row = pack_row(builder, _examples(TEXTS), length=first, max_loss_tokens=20)
    assert row["segment"].tolist() == [1] * first
    row = pack_row(builder, _examples(TEXTS), length=60, max_loss_tokens=3)
    assert row["segment"].max() == 1 and row["in_loss"].sum() == 3
    with pytest.raises(ValueError, match="no example fits into 4 tokens"):
        pack_row(builder, _examples(TEXTS), length=4, max_loss_tokens=20)


def test_a_packed_text_gives_the_states_it_gives_alone(builder):
    config = ModelConfig("tiny", image_size=28, compute_dtype="float32", image_sees_text=False)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    apply = jax.jit(lambda *x: Vla(config).apply({"params": params}, *x)[0])
    images = IMAGE[None, None]
    keys = ("tokens", "attend_causal", "valid")
    row = pack_row(builder, _examples(TEXTS), length=60, max_loss_tokens=20)
    packed = apply(images, *(row[k][None] for k in keys), row["segment"][None])
    start = 0
    for example in _examples(TEXTS):
        built = builder.build(example)
        size = int(built["valid"].sum())
        alone = apply(images, *(built[k][None] for k in keys))
        np.testing.assert_allclose(packed[0, start : start + size], alone[0, :size], atol=1e-5)
        start += size


def test_packing_needs_images_that_do_not_see_text(builder):
    config = ModelConfig("tiny", image_size=28, compute_dtype="float32")
    row = pack_row(builder, _examples(TEXTS), length=60, max_loss_tokens=20)
    inputs = [row[k][None] for k in ("tokens", "attend_causal", "valid", "segment")]
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    with pytest.raises(ValueError, match="image_sees_text=False"):
        jax.eval_shape(
            lambda p: Vla(config).apply({"params": p}, IMAGE[None, None], *inputs), params
        )
