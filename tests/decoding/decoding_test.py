"""Decoding against the slow way, and what can and cannot come out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.decoding.policy import ActResult, Policy
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import Vla, init_params
from vla_jax.text.prompts import question_prompt, robot_prompt
from vla_jax.text.vocabulary import Vocabulary

CONFIG = ModelConfig("tiny", image_size=28, compute_dtype="float32", image_sees_text=False)
SPEC = end_effector_spec("test", max_position_m=0.1, max_rotation_rad=0.5, control_hz=3)
VOCABULARY = Vocabulary()


PARAMS = jax.jit(lambda: init_params(CONFIG, jax.random.key(3)))()
_LENGTH = 40


@jax.jit
def _next_logits(params, image, ids, causal, count):
    """Logits after the first `count` of the padded ids."""
    hidden, _ = Vla(CONFIG).apply(
        {"params": params},
        image[None, None],
        ids[None],
        causal[None],
        (jnp.arange(_LENGTH) < count)[None],
    )
    return Vla(CONFIG).apply({"params": params}, hidden[0, count - 1], method="logits")


def _policy(scale: float = 1.0, batch_size: int = 5) -> Policy:
    params = jax.tree.map(lambda a: a * scale, PARAMS)
    builder = SequenceBuilder(
        VOCABULARY,
        UniformTokenizer(SPEC, VOCABULARY.action_ids),
        max_tokens=40,
        max_answer_tokens=10,
    )
    return Policy(params, CONFIG, builder, batch_size=batch_size)


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 28, 28, 3), np.uint8)


def _greedy(policy: Policy, image, prompt: str, steps: int, allowed) -> list[int]:
    """Without cache: the whole sequence again for each token."""
    ids = [VOCABULARY.bos_id, *VOCABULARY.encode(prompt)]
    start = len(ids)
    for i in range(steps):
        n = len(ids)
        padded = np.pad(np.asarray(ids, np.int32), (0, _LENGTH - n))
        causal = np.arange(_LENGTH) >= start
        logits = np.asarray(_next_logits(policy.params, image, padded, causal, n))
        choice = allowed(i)
        ids.append(int(choice[np.argmax(logits[choice])]))
    return ids[start:]


INSTRUCTIONS = ["pick the dog", "put the red block on the blue mat", "push the cat left"]


def test_actions_equal_the_slow_way():
    policy, images = _policy(), _images(3)
    got = policy.act(images, INSTRUCTIONS)
    ids, legal = policy.action_tokenizer.automaton[:2]
    for row in range(3):
        want = _greedy(
            policy, images[row], robot_prompt(INSTRUCTIONS[row]), 8, lambda i: ids[legal[i]]
        )
        assert got.ids[row].tolist() == want
    for row in range(3):
        want = policy.action_tokenizer.decode(got.ids[row])
        np.testing.assert_array_equal(got.actions[row], want)


def test_answers_equal_the_slow_way():
    policy, images = _policy(), _images(3)
    questions = ["what is this?", "point to the small brown dog", "how many?"]
    everything = np.arange(VOCABULARY.size)
    for row, answer in enumerate(policy.answer(images, questions)):
        ids = _greedy(
            policy, images[row], question_prompt(questions[row]), 10, lambda i: everything
        )
        end = ids.index(VOCABULARY.eos_id) if VOCABULARY.eos_id in ids else len(ids)
        assert answer == VOCABULARY.decode(ids[:end])


def test_result_does_not_depend_on_batching():
    images = _images(7)
    instructions = [INSTRUCTIONS[i % 3] for i in range(7)]
    whole = _policy(batch_size=7).act(images, instructions).ids
    np.testing.assert_array_equal(_policy(batch_size=3).act(images, instructions).ids, whole)


def test_sampled_tokens_have_the_models_distribution():
    """4000 seeds, second token: shares equal softmax(logits / T). The flag before it is greedy."""
    policy, temperature, count = _policy(batch_size=500), 0.7, 4000
    images = np.repeat(_images(1), count, axis=0)
    seeds = range(count)
    got = policy.act(images, INSTRUCTIONS[:1] * count, temperature=temperature, seeds=seeds).ids
    flag = policy.act(images[:1], INSTRUCTIONS[:1]).ids[0, 0]
    assert (got[:, 0] == flag).all()
    ids = [VOCABULARY.bos_id, *VOCABULARY.encode(robot_prompt(INSTRUCTIONS[0])), flag]
    padded = np.pad(np.asarray(ids, np.int32), (0, _LENGTH - len(ids)))
    causal = np.arange(_LENGTH) >= len(ids) - 1
    logits = np.asarray(_next_logits(policy.params, images[0], padded, causal, len(ids)))
    want = np.exp(logits[VOCABULARY.action_ids] / temperature)
    bins = np.searchsorted(VOCABULARY.action_ids, got[:, 1])
    found = np.bincount(bins, minlength=256).reshape(16, 16).sum(1) / count
    np.testing.assert_allclose(found, (want / want.sum()).reshape(16, 16).sum(1), atol=0.025)
    # The same seed draws the same, alone or in a batch; without a temperature the likeliest comes.
    alone = policy.act(images[:1], INSTRUCTIONS[:1], temperature=temperature, seeds=[7]).ids
    np.testing.assert_array_equal(alone[0], got[7])
    cold = policy.act(images[:2], INSTRUCTIONS[:1] * 2, temperature=1e-6, seeds=[1, 2]).ids
    np.testing.assert_array_equal(cold, policy.act(images[:2], INSTRUCTIONS[:1] * 2).ids)
    with pytest.raises(ValueError, match="0 seeds for 1 rows"):
        policy.act(images[:1], INSTRUCTIONS[:1], temperature=0.5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, float("nan"), 1e20])
def test_nothing_malformed_comes_out(scale):
    """Any weights, broken ones too: 8 legal tokens and a finite action within bounds."""
    policy = _policy(scale, batch_size=50)
    instructions = [INSTRUCTIONS[i % 3] for i in range(50)]
    half = {"temperature": 0.5, "seeds": range(25)}
    parts = (
        policy.act(_images(50)[:25], instructions[:25]),
        policy.act(_images(50)[25:], instructions[25:], **half),
    )
    result = ActResult(*(np.concatenate(columns) for columns in zip(*parts)))
    bins = np.searchsorted(VOCABULARY.action_ids, result.ids)
    assert np.array_equal(VOCABULARY.action_ids[bins], result.ids)
    assert bins[:, 0].max() <= 1
    assert np.isfinite(result.actions).all()
    assert np.all((result.actions >= SPEC.low) & (result.actions <= SPEC.high))


def test_action_decoding_multiplies_action_rows_only():
    policy = _policy()
    text = policy._decode_action.lower(
        policy.params,
        jnp.zeros((5, 1, 28, 28, 3), jnp.uint8),
        jnp.zeros((5, 30), jnp.int32),
        jnp.ones((5, 30), bool),
        jnp.zeros(5),
        jnp.zeros(5, jnp.int32),
    ).as_text()
    assert "5x256xf32" in text and "5x4096xf32" not in text


def test_bad_requests_are_refused():
    policy = _policy()
    with pytest.raises(ValueError, match="uint8"):
        policy.act(_images(1).astype(np.float32), ["pick the dog"])
    with pytest.raises(ValueError, match=r"\[28, 28, 3\]"):
        policy.act(_images(1)[0], ["pick the dog"])
    with pytest.raises(ValueError, match="empty instruction"):
        policy.act(_images(1), ["  "])
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        policy.act(_images(1), ["pick the dog", "pick the cat"])
    with pytest.raises(ValueError, match="longer than the 30"):
        policy.act(_images(1), ["pick the dog " * 30])
