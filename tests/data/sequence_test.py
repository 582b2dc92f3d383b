from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vla_jax.actions.digits import DigitTokenizer
from vla_jax.actions.fast import FastTokenizer
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data import sequence
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.state import StateInput
from vla_jax.text.prompts import PLAN_TEMPLATE, robot_prompt
from vla_jax.text.vocabulary import Vocabulary
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


def _row_by_hand(builder: SequenceBuilder, example: Example) -> dict[str, np.ndarray]:
    """One row, token by token, with the plain calls of vocabulary and tokenizer."""
    vocabulary, tokenizer = builder.vocabulary, builder.action_tokenizer
    prompt = [vocabulary.bos_id, *vocabulary.encode(example.prompt)]
    if example.action is None:
        answer = vocabulary.encode(example.answer)
        trained = [True] * len(answer)
    else:
        answer = tokenizer.encode(example.action).tolist()
        trained = [True] * len(answer)
        if example.action_valid is not None:
            trained = tokenizer.tokens_valid(np.asarray(answer), example.action_valid).tolist()
    answer, trained = [*answer, vocabulary.eos_id], [*trained, True]
    truncated = len(answer) > builder.max_answer_tokens
    answer, trained = answer[: builder.max_answer_tokens], trained[: builder.max_answer_tokens]
    rest = builder.max_tokens - len(prompt) - len(answer)
    said = [False] * len(prompt) + [True] * len(answer) + [False] * rest
    return {
        "tokens": np.asarray([*prompt, *answer, *[vocabulary.pad_id] * rest], np.int32),
        "attend_causal": np.asarray(said),
        "in_loss": np.asarray([False] * len(prompt) + trained + [False] * rest),
        "valid": np.asarray([True] * (len(prompt) + len(answer)) + [False] * rest),
        "truncated": np.asarray(truncated),
    }


@pytest.mark.parametrize("kind", ["uniform", "digits", "fast"])
def test_rows_built_together_are_those_made_by_hand(vocabulary, spec, kind):
    """Robots with and without padded steps, texts short, long and repeated; bit by bit."""
    rng = np.random.default_rng(1)

    def chunk() -> np.ndarray:
        action = rng.uniform(spec.low - 0.01, spec.high + 0.01, (3, 8)).astype(np.float32)
        action[:, 0] = action[:, 0] > 0.5
        return action

    tokenizer = {
        "uniform": lambda: UniformTokenizer(spec, vocabulary.integer_ids, chunk=3),
        "digits": lambda: DigitTokenizer(
            spec, vocabulary.digit_ids[:10], int(vocabulary.digit_ids[10]), chunk=3
        ),
        "fast": lambda: FastTokenizer.fit(
            spec, [chunk() for _ in range(50)], token_ids=np.arange(1000, 1300), vocabulary=300
        ),
    }[kind]()
    builder = SequenceBuilder(vocabulary, tokenizer, max_tokens=130, max_answer_tokens=98)
    steps = np.repeat([[True], [True], [False]], 8, axis=1)
    examples = []
    for number in range(40):
        prompt = robot_prompt(f"pick dog number {number % 7}")
        valid = (None, steps)[number % 2]
        examples.append(Example((b"",), prompt, action=chunk(), action_valid=valid))
        words = " ".join(rng.choice(["a", "dog", "<017>", "Bär", "é, "], number * 4 + 1))
        examples.append(text(prompt=f"<003> number {number % 5}", answer=words))
    rows = builder.build_rows(examples)
    assert rows["truncated"].any() and not rows["truncated"].all()
    again = builder.build_rows(examples)  # every prompt is known now
    for number, example in enumerate(examples):
        for key, want in _row_by_hand(builder, example).items():
            np.testing.assert_array_equal(rows[key][number], want)
            np.testing.assert_array_equal(again[key][number], rows[key][number], strict=True)


def test_a_batch_is_encoded_by_one_call_of_each_kind(spec, monkeypatch):
    vocabulary = Vocabulary()
    tokenizer = UniformTokenizer(spec, vocabulary.integer_ids)
    builder = SequenceBuilder(vocabulary, tokenizer, max_tokens=48, max_answer_tokens=12)
    texts, actions = [], []
    encode, encode_actions = vocabulary.encode_batch, tokenizer.encode_batch
    monkeypatch.setattr(vocabulary, "encode_batch", lambda t: texts.append(t) or encode(t))
    monkeypatch.setattr(tokenizer, "encode_batch", lambda a: actions.append(a) or encode_actions(a))
    examples = [robot(np.zeros((1, 8))), text(), robot(np.ones((1, 8)) * 0.01), text(answer="b")]
    for _ in range(2):
        builder.build_rows(examples)
    # Prompts once each, the answers again.
    assert texts == [[examples[0].prompt, PROMPT, "a dog", "b"], ["a dog", "b"]]
    assert [a.shape for a in actions] == [(2, 1, 8)] * 2


def test_prompts_used_long_ago_are_forgotten(builder, monkeypatch):
    monkeypatch.setattr(sequence, "_KNOWN_TEXTS", 2)
    rows = builder.build_rows([text(prompt=f"Q: {n}? A:") for n in (0, 1, 0, 2)])
    assert len(builder._known) == 2
    again = builder.build_rows([text(prompt=f"Q: {n}? A:") for n in (0, 1, 0, 2)])
    np.testing.assert_array_equal(rows["tokens"], again["tokens"])


def test_a_long_answer_is_cut_has_no_eos_and_says_so(builder, vocabulary):
    answer = "a dog, " * 20
    row = builder.build(text(answer=answer))
    assert row["in_loss"].sum() == 12
    assert row["tokens"][row["in_loss"]].tolist() == vocabulary.encode(answer)[:12]
    # 11 tokens and EOS are not too long.
    fits = vocabulary.decode(vocabulary.encode(answer)[:11])
    examples = [text(answer=answer), text(), text(answer=fits), robot(np.zeros((1, 8)))]
    assert builder.build_rows(examples)["truncated"].tolist() == [True, False, False, False]


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


def test_a_plan_comes_before_its_action(vocabulary, spec):
    """`Instruction: ... Plan: pick the dog. Action:`, then the bins; all of it is trained."""
    tokenizer = UniformTokenizer(spec, vocabulary.integer_ids)
    builder = SequenceBuilder(vocabulary, tokenizer, max_tokens=80, max_answer_tokens=30)
    prompt = robot_prompt("I'm hungry.", PLAN_TEMPLATE)
    action, valid = np.zeros((1, 8), np.float32), np.arange(8)[None] != 2
    planned = Example((b"",), prompt, action=action, plan="pick the dog.", action_valid=valid)
    rows = builder.build_rows([robot(action), planned])
    row = {key: column[1] for key, column in rows.items()}
    bins = tokenizer.encode(action)
    said = [*vocabulary.encode("pick the dog."), *vocabulary.encode("Action:"), *bins.tolist()]
    answer = row["attend_causal"]
    assert row["tokens"][answer].tolist() == [*said, vocabulary.eos_id]
    spoken = vocabulary.decode(row["tokens"][row["valid"]][:-9])
    assert spoken == "Instruction: I'm hungry. Plan: pick the dog. Action:"
    in_loss = [True] * (len(said) - 8) + valid[0].tolist() + [True]
    assert row["in_loss"][answer].tolist() == in_loss and not row["in_loss"][~answer].any()
    # The example beside it is not touched.
    alone = builder.build(robot(action))
    np.testing.assert_array_equal(rows["tokens"][0], alone["tokens"])
    with pytest.raises(ValueError, match=r"plan and its action are .* more than max_answer_tokens"):
        builder.build(dataclasses.replace(planned, plan="pick the dog " * 20))
    with pytest.raises(ValueError, match="plan without an action"):
        builder.build(dataclasses.replace(text(), plan="think"))


def test_a_sample_gets_one_of_its_prompts_and_answers(builder, vocabulary):
    several = dataclasses.replace(text(), prompt=("Q: a? A:", "Q: b? A:"), answer=("1", "2", "3"))
    paired = dataclasses.replace(text(), prompt=("Q: a? A:", "Q: b? A:"), answer=("1", "2"))
    draws = np.arange(6)

    def texts(example, draws) -> list[tuple[str, str]]:
        rows = builder.build_rows([example] * len(draws), draws)
        said, asked = rows["in_loss"], rows["valid"] & ~rows["in_loss"]
        return [
            (vocabulary.decode(t[a]), vocabulary.decode(t[b]))
            for t, a, b in zip(rows["tokens"], asked, said)
        ]

    assert set(texts(several, draws)) == {
        (f"Q: {q}? A:", n) for q in ("a", "b") for n in ("1", "2", "3")
    }
    assert set(texts(paired, draws)) == {("Q: a? A:", "1"), ("Q: b? A:", "2")}
    # Evaluation draws nothing.
    first = builder.build_rows([several] * 2)
    np.testing.assert_array_equal(
        first["tokens"], builder.build_rows([several] * 2, [0, 0])["tokens"]
    )
    assert texts(several, [0]) == [("Q: a? A:", "1")] == texts(paired, [0])
    with pytest.raises(ValueError, match="empty prompt"):
        builder.build(dataclasses.replace(text(), prompt=()))
    with pytest.raises(ValueError, match="neither action nor answer"):
        builder.build(dataclasses.replace(text(), answer=()))


def _with_state(vocabulary, spec, token_ids) -> SequenceBuilder:
    return SequenceBuilder(
        vocabulary,
        UniformTokenizer(spec, vocabulary.integer_ids),
        max_tokens=48,
        max_answer_tokens=12,
        state=StateInput([-1, 0], [1, 4], token_ids),
    )


def test_a_state_in_tokens_begins_the_prompt(vocabulary, spec, builder):
    mine = _with_state(vocabulary, spec, vocabulary.integer_ids)
    moving = dataclasses.replace(robot(np.zeros((1, 8))), state=np.asarray([0.5, 9.0]))
    rows = mine.build_rows([moving, robot(np.zeros((1, 8))), text()])
    # 0.5 of -1 .. 1 is bin 192, 9 is clipped to 4.
    state = [*vocabulary.encode("State:"), *vocabulary.integer_ids[[192, 255]].tolist()]
    plain = builder.build_rows([robot(np.zeros((1, 8))), text()])
    want = [2, *state, *plain["tokens"][0][1:].tolist()][:48]
    assert rows["tokens"][0].tolist() == want and "state" not in rows
    begin = 1 + len(state)
    for key in ("attend_causal", "in_loss", "valid"):
        np.testing.assert_array_equal(rows[key][0, begin:], plain[key][0, 1 : 49 - begin])
    assert not rows["attend_causal"][0, :begin].any() and rows["valid"][0, :begin].all()
    for key in plain:  # those without a state are as ever
        np.testing.assert_array_equal(rows[key][1:], plain[key])
    prompts = mine.prompts([moving.prompt, PROMPT], [moving.state, None])
    n = int(prompts["valid"][0].sum())
    assert prompts["tokens"][0, :n].tolist() == rows["tokens"][0, :n].tolist()
    assert mine.prompts([PROMPT])["tokens"].tolist() == prompts["tokens"][1:].tolist()


def test_a_state_in_a_vector_is_a_column(vocabulary, spec, builder):
    mine = _with_state(vocabulary, spec, None)
    moving = dataclasses.replace(robot(np.zeros((1, 8))), state=np.asarray([0.5, 3.0]))
    rows = mine.build_rows([text(), moving])
    np.testing.assert_array_equal(
        rows["state"], np.asarray([[0, 0], [0.5, 0.5]], np.float32), strict=True
    )
    assert rows["state_valid"].tolist() == [False, True]
    plain = builder.build_rows([text(), moving])
    for key in plain:
        np.testing.assert_array_equal(rows[key], plain[key])
    prompts = mine.prompts([PROMPT, moving.prompt], np.asarray([[0, 2], [0.5, 3.0]]))
    assert prompts["state"].tolist() == [[0, 0], [0.5, 0.5]] and prompts["state_valid"].all()
    with pytest.raises(ValueError, match=r"state of shape \(3,\), but bounds are given for 2"):
        mine.build(dataclasses.replace(moving, state=np.zeros(3)))


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
