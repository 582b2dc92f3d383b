"""Packed rows: what is in them, and that a model treats each example as if it stood alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from vla_jax.data.packing import Packing
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.state import StateInput
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import Segments, State, Vla, init_params
from vla_jax.training.losses import answer_loss
from vla_jax.types import Example

TOKEN_COLUMNS = ("tokens", "attend_causal", "in_loss", "valid")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 2, 28, 28, 3), np.uint8)  # of 6 examples, 2 views each
TEXTS = [("Q: point to the dog A:", "<010><200>"), ("Q: what is it? A:", "a red apple")]
CONFIG = ModelConfig("tiny", image_size=28, num_views=2, compute_dtype="float32")


def _examples() -> list[Example]:
    """Six of all kinds, of different lengths."""
    texts = [Example((b"", b""), *text) for text in TEXTS]
    action = np.linspace(-0.05, 0.05, 8, dtype=np.float32)[None]
    valid = np.arange(8)[None] != 3
    robots = [
        Example(
            (b"", b""),
            "put the red block on the blue mat on the left, with care:",
            action=action,
            state=np.asarray([0.5, -1.0]),
        ),
        Example((b"", b""), "pick", action=-action, action_valid=valid),
    ]
    short = Example((b"", b""), "so", "a")
    return [texts[0], robots[0], texts[1], robots[1], texts[1], short]


def test_examples_lie_one_after_the_other(builder):
    columns = builder.build_rows(_examples())
    packed = Packing(3, 60, 30).pack(columns)
    assert packed["tokens"].shape == (2, 60) and not packed["left_out"].any()
    for row in range(2):
        start = 0
        for n in range(3):
            size = int(columns["valid"][3 * row + n].sum())
            where = slice(start, start + size)
            assert (packed["segment"][row, where] == n + 1).all()
            for key in TOKEN_COLUMNS:
                np.testing.assert_array_equal(
                    packed[key][row, where], columns[key][3 * row + n, :size], strict=True
                )
            start += size
        for key in (*TOKEN_COLUMNS, "segment"):
            assert not packed[key][row, start:].any()
    assert packed["truncated"].tolist() == [[False] * 3] * 2
    assert Packing(3, 60, 30).image_segments(2, 2).tolist() == [[1, 1, 2, 2, 3, 3]] * 2


def test_what_does_not_fit_is_left_out_and_later_ones_may_fit(builder):
    columns = builder.build_rows(_examples())
    sizes, losses = columns["valid"].sum(1), columns["in_loss"].sum(1)
    # Without room for the robot in the middle, its place is the next one's.
    packed = Packing(3, int(sizes[0] + sizes[2]), 30).pack(columns)
    assert packed["left_out"][0].tolist() == [False, True, False]
    assert packed["segment"][0].tolist() == [1] * sizes[0] + [3] * sizes[2]
    packed = Packing(3, 60, int(losses[0] + losses[2])).pack(columns)
    assert packed["left_out"][0].tolist() == [False, True, False]
    assert packed["in_loss"][0].sum() == losses[0] + losses[2]
    with pytest.raises(ValueError, match="no example fits into 4 tokens"):
        Packing(3, 4, 20).pack(columns)
    with pytest.raises(ValueError, match="6 examples do not make rows of 4"):
        Packing(4, 60, 20).pack(columns)


@pytest.fixture(scope="module")
def params():
    config = dataclasses.replace(CONFIG, state_size=2)
    return jax.jit(lambda: init_params(config, jax.random.key(0)))()


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("sees", [True, False])
def test_a_packed_example_gives_the_states_it_gives_alone(builder, params, sees, with_state):
    """Text and robot, each with its own pictures; one of them is left out."""
    size = 2 if with_state else 0
    config = dataclasses.replace(CONFIG, image_sees_text=sees, state_size=size)
    if with_state:
        builder = SequenceBuilder(
            builder.vocabulary,
            builder.action_tokenizer,
            max_tokens=48,
            max_answer_tokens=12,
            state=StateInput([-1, -2], [1, 2]),
        )
    columns = builder.build_rows(_examples())
    sizes = columns["valid"].sum(1)
    packing = Packing(3, int(max(sizes[0] + sizes[2], sizes[3:].sum())) + 2, 30)
    packed = packing.pack(columns)
    assert packed["left_out"].tolist() == [[False, True, False], [False] * 3]

    @jax.jit
    def apply(images, columns, segments=None):
        state = State(columns["state"], columns["state_valid"]) if with_state else None
        inputs = (images, *(columns[k] for k in ("tokens", "attend_causal", "valid")))
        return Vla(config).apply({"params": params}, *inputs, segments, state=state)[0]

    alone = apply(IMAGES, columns)
    images = IMAGES.reshape(2, 6, 28, 28, 3)
    got = apply(images, packed, Segments(packing.image_segments(2, 2), packed["segment"]))
    for row in range(2):
        for n in np.flatnonzero(~packed["left_out"][row]):
            mine = packed["segment"][row] == n + 1
            want = alone[3 * row + n, : mine.sum()]
            np.testing.assert_allclose(got[row, mine], want, atol=1e-5)


def test_texts_may_share_one_picture(builder, params):
    config = dataclasses.replace(CONFIG, num_views=1, image_sees_text=False)
    apply = jax.jit(lambda *x: Vla(config).apply({"params": params}, *x)[0])
    columns = builder.build_rows([Example((b"",), *text) for text in TEXTS])
    packed = Packing(2, 60, 20).pack(columns)
    keys = ("tokens", "attend_causal", "valid")
    segments = Segments(np.zeros((1, 1), np.int32), packed["segment"])
    got = apply(IMAGES[:1, :1], *(packed[k] for k in keys), segments)
    picture = np.repeat(IMAGES[:1, :1], 2, axis=0)
    alone = apply(picture, *(columns[k] for k in keys))
    for n in range(2):
        mine = packed["segment"][0] == n + 1
        np.testing.assert_allclose(got[0, mine], alone[n, : mine.sum()], atol=1e-5)


def test_a_shared_picture_sees_no_text_in_any_model(builder, params):
    """Else one text would reach the other through it."""
    packed = Packing(2, 60, 20).pack(builder.build_rows([Example((b"",), *t) for t in TEXTS]))
    segments = Segments(np.zeros((1, 1), np.int32), packed["segment"])
    config = dataclasses.replace(CONFIG, num_views=1, image_sees_text=True)
    apply = jax.jit(lambda *x: Vla(config).apply({"params": params}, *x)[0])
    first, second = (packed["segment"][0] == n for n in (1, 2))
    other = packed["tokens"] + np.where(second, 7, 0)
    got, changed = (
        apply(IMAGES[:1, :1], tokens, packed["attend_causal"], packed["valid"], segments)[0]
        for tokens in (packed["tokens"], other.astype(np.int32))
    )
    np.testing.assert_array_equal(got[first], changed[first])
    assert np.abs(got[second] - changed[second]).max() > 1e-3


def test_the_loss_of_packed_rows_is_that_of_the_examples(builder, params):
    """And so are the sums by source, without what was left out."""
    columns = builder.build_rows(_examples())
    columns["source"] = np.asarray([0, 1, 0, 1, 2, 2], np.int32)
    columns["truncated"] = np.asarray([True, True, False, False, False, True])
    sizes = columns["valid"].sum(1)
    packing = Packing(3, int(max(sizes[0] + sizes[2], sizes[3:].sum())), 36)
    packed = packing.pack(columns)
    packed |= {"images": IMAGES.reshape(2, 6, 28, 28, 3)}
    packed |= {"image_segment": packing.image_segments(2, 2)}
    kept = np.flatnonzero(~packed["left_out"].reshape(-1))
    assert kept.tolist() == [0, 2, 3, 4, 5]
    single = {key: value[kept] for key, value in columns.items()} | {"images": IMAGES[kept]}
    model = Vla(CONFIG)

    def loss(batch, most):
        run = jax.jit(lambda p: answer_loss(model, p, batch, max_answer_tokens=most, num_sources=3))
        return run({k: params[k] for k in ("img", "llm")})

    want, want_sums = loss(single, 12)
    got, sums = loss(packed, 36)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for key in ("loss", "correct", "tokens", "samples", "truncated"):
        np.testing.assert_allclose(sums[key], want_sums[key], rtol=1e-5, err_msg=key)
    assert sums["left_out"].tolist() == [0, 1, 0] and not want_sums["left_out"].any()
    # 4 patches of 2 views each, and the tokens.
    used = 5 * 8 + packed["valid"].sum()
    np.testing.assert_allclose(sums["used"].sum(), used / (2 * (24 + packing.length)), rtol=1e-6)
    in_single = 5 * 8 + sizes[kept].sum()
    np.testing.assert_allclose(want_sums["used"].sum(), in_single / (5 * (8 + 48)), rtol=1e-6)
    used = sums["used"][1] * 2 * (24 + packing.length)
    np.testing.assert_allclose(used, 8 + sizes[3], rtol=1e-6)
