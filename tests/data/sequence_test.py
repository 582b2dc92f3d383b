from __future__ import annotations

import numpy as np
import pytest

from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.text.prompts import robot_prompt
from vla_jax.types import Example

PROMPT = "Q: what is this? A:"


def text(prompt: str = PROMPT, answer: str | None = "a dog") -> Example:
    return Example(images=(b"",), prompt=prompt, answer=answer)


def robot(action: np.ndarray) -> Example:
    return Example(images=(b"",), prompt=robot_prompt("pick the dog"), action=action)


def test_a_text_row_position_by_position(builder, vocabulary):
    row = builder.build(text())
    prompt, answer = vocabulary.encode(PROMPT), vocabulary.encode("a dog")
    n, k = len(prompt), len(answer)
    expected = [2, *prompt, *answer, 1, *[0] * (48 - n - k - 2)]
    assert row["tokens"].tolist() == expected and row["tokens"].dtype == np.int32
    is_answer = [False] * (n + 1) + [True] * (k + 1) + [False] * (48 - n - k - 2)
    assert row["in_loss"].tolist() == row["attend_causal"].tolist() == is_answer
    assert row["valid"].tolist() == [True] * (n + k + 2) + [False] * (48 - n - k - 2)


def test_a_robot_row_ends_in_eight_bins_and_eos(builder, vocabulary):
    # terminate 0; 0.05 and -0.05 are the bounds of position, 0.1 of rotation; 0 is in bin 128.
    action = np.asarray([[0, 0.05, -0.05, 0, 0.1, -0.1, 0, 0.999]], np.float32)
    row = builder.build(robot(action))
    bins = [0, 255, 0, 128, 255, 0, 128, 255]
    answer = row["tokens"][row["in_loss"]]
    assert answer.tolist() == [*vocabulary.integer_ids[bins].tolist(), vocabulary.eos_id]
    prompt = row["tokens"][row["valid"] & ~row["in_loss"]]
    assert vocabulary.decode(prompt) == "Q: what action should the robot take to pick the dog? A:"


def test_padded_steps_are_not_in_the_loss(vocabulary, spec):
    """Their tokens are there, attended to as answers are, and not predicted; EOS is."""
    tokenizer = UniformTokenizer(spec, vocabulary.integer_ids, chunk=3)
    builder = SequenceBuilder(vocabulary, tokenizer, max_tokens=60, max_answer_tokens=26)
    action = np.random.default_rng(0).uniform(spec.low, spec.high, (3, 8)).astype(np.float32)
    valid = np.repeat([[True], [True], [False]], 8, axis=1)
    valid[0, 3] = False
    example = Example((b"",), robot_prompt("pick the dog"), action=action, action_valid=valid)
    row, whole = builder.build(example), builder.build(robot(action))
    for key in ("tokens", "attend_causal", "valid"):
        np.testing.assert_array_equal(row[key], whole[key])
    start = int(np.argmax(whole["in_loss"]))
    expected = whole["in_loss"].copy()
    expected[start : start + 24] = valid.reshape(-1)
    assert row["in_loss"].tolist() == expected.tolist() and row["in_loss"].sum() == 15 + 1


def test_the_uniform_tokens_decode_to_within_half_a_bin(builder, spec):
    tokenizer = builder.action_tokenizer
    actions = np.random.default_rng(0).uniform(spec.low, spec.high, (200, 1, 8))
    actions[..., 0] = actions[..., 0] > 0.5
    rows = builder.build_rows([robot(a) for a in actions.astype(np.float32)])
    ids = rows["tokens"][rows["in_loss"]].reshape(200, 9)[:, :8]
    error = np.abs(np.stack([tokenizer.decode(row)[0] for row in ids]) - actions[:, 0])
    assert (error <= (spec.high - spec.low) / 512 + 1e-6).all()


def test_rows_equal_rows_built_one_by_one(builder):
    examples = [text(), text(answer="a"), robot(np.zeros((1, 8))), text(prompt="Q: so? A:")]
    together = builder.build_rows(examples)
    for number, example in enumerate(examples):
        for key, row in builder.build(example).items():
            np.testing.assert_array_equal(together[key][number], row, strict=True)


def test_a_long_answer_is_cut_and_has_no_eos(builder, vocabulary):
    answer = "a dog, " * 20
    row = builder.build(text(answer=answer))
    assert row["in_loss"].sum() == 12
    assert row["tokens"][row["in_loss"]].tolist() == vocabulary.encode(answer)[:12]


def test_a_row_may_be_full_and_not_more(vocabulary):
    n = len(vocabulary.encode(PROMPT)) + 1
    k = len(vocabulary.encode("a dog")) + 1
    full = SequenceBuilder(vocabulary, None, max_tokens=n + k, max_answer_tokens=k)
    assert full.build(text())["valid"].all()
    short = SequenceBuilder(vocabulary, None, max_tokens=n + k - 1, max_answer_tokens=k)
    with pytest.raises(ValueError, match=rf"prompt of {n} tokens leaves {k - 1} .* answer of {k}"):
        short.build(text())


def test_prompts_alone_are_the_beginning_of_the_row(builder):
    prompts = builder.prompts([PROMPT, "Q: so? A:"])
    assert prompts["tokens"].shape == prompts["valid"].shape == (2, 36)
    rows = builder.build_rows([text(), text(prompt="Q: so? A:")])
    is_prompt = rows["valid"] & ~rows["in_loss"]
    np.testing.assert_array_equal(prompts["valid"], is_prompt[:, :36])
    np.testing.assert_array_equal(prompts["tokens"], np.where(is_prompt, rows["tokens"], 0)[:, :36])
    with pytest.raises(ValueError, match="longer than the 36 that the model was trained with"):
        builder.prompts(["a " * 60])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (text(prompt="  "), "empty prompt"),
        (text(answer=None), "neither action nor answer"),
        (text(answer=""), "neither action nor answer"),
        (robot(np.full((1, 8), np.nan)), "NaN or infinite"),
        (robot(np.zeros((1, 7))), "action of shape"),
        (
            Example((b"",), PROMPT, action=np.zeros((1, 8)), action_valid=np.zeros((2, 8), bool)),
            "action_valid is",
        ),
        (
            Example((b"",), PROMPT, "a dog", action_valid=np.zeros((1, 8), bool)),
            "action_valid without an action",
        ),
    ],
)
def test_bad_examples_are_refused(builder, example, message):
    with pytest.raises(ValueError, match=message):
        builder.build(example)


def test_bad_lengths_are_refused(vocabulary, spec):
    with pytest.raises(ValueError, match="max_answer_tokens 8 must be between 1 and"):
        SequenceBuilder(vocabulary, None, max_tokens=8, max_answer_tokens=8)
    tokenizer = UniformTokenizer(spec, vocabulary.integer_ids)
    with pytest.raises(ValueError, match="must be at least 9"):
        SequenceBuilder(vocabulary, tokenizer, max_tokens=48, max_answer_tokens=8)
    plain = SequenceBuilder(vocabulary, None, max_tokens=48, max_answer_tokens=12)
    with pytest.raises(ValueError, match="needs an action tokenizer"):
        plain.build(robot(np.zeros((1, 8))))
