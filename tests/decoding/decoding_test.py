"""Decoding against the slow way, and what can and cannot come out."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.actions.digits import DigitTokenizer
from vla_jax.actions.fast import FastTokenizer
from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.state import StateInput
from vla_jax.decoding.policy import ActResult, Policy
from vla_jax.decoding.sampler import _Picker, make_decoder
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import State, Vla, init_params
from vla_jax.text.prompts import PLAN_TEMPLATE, question_prompt, robot_prompt
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.types import Example

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
        UniformTokenizer(SPEC, VOCABULARY.integer_ids),
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


@pytest.mark.parametrize(("cores", "rows"), [(1, [6]), (2, [3, 3]), (4, [2, 2, 2])])
def test_rows_are_split_over_cores(cores, rows, monkeypatch):
    images, instructions = _images(6), [INSTRUCTIONS[i % 3] for i in range(6)]
    options = {"temperature": 2.0, "seeds": list(range(6))}
    whole = [
        _policy(batch_size=1).act(images[[i]], [instructions[i]], temperature=2.0, seeds=[i]).ids[0]
        for i in range(6)
    ]
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    policy = _policy(batch_size=6)
    programs, decode = [], policy.decoder("test")

    def seen(params, images, *rest, state):
        programs.append(len(images))
        return decode(params, images, *rest, state=state)

    policy._decoders["test"] = seen
    np.testing.assert_array_equal(policy.act(images, instructions, **options).ids, whole)
    assert programs == rows
    np.testing.assert_array_equal(policy.act(images, instructions, **options).ids, whole)
    assert programs == 2 * rows


@pytest.mark.usefixtures("optimized")
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
    want = np.exp(logits[VOCABULARY.integer_ids] / temperature)
    bins = np.searchsorted(VOCABULARY.integer_ids, got[:, 1])
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
    bins = np.searchsorted(VOCABULARY.integer_ids, result.ids)
    assert np.array_equal(VOCABULARY.integer_ids[bins], result.ids)
    assert bins[:, 0].max() <= 1
    assert np.isfinite(result.actions).all()
    assert np.all((result.actions >= SPEC.low) & (result.actions <= SPEC.high))


def test_action_decoding_multiplies_action_rows_only():
    policy = _policy()
    text = (
        policy.decoder(SPEC.name)
        .lower(
            policy.params,
            jnp.zeros((5, 1, 28, 28, 3), jnp.uint8),
            jnp.zeros((5, 30), jnp.int32),
            jnp.ones((5, 30), bool),
            jnp.zeros(5),
            jnp.zeros(5, jnp.int32),
        )
        .as_text()
    )
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


# Every tokenizer's automaton over the same model: bins, digits, FAST.
_RNG = np.random.default_rng(5)
_CHUNKS = [np.cumsum(_RNG.normal(0, 0.02, (4, 8)), axis=0).astype(np.float32) for _ in range(200)]
TOKENIZERS = {
    "uniform": UniformTokenizer(SPEC, VOCABULARY.integer_ids),
    "uniform chunks": UniformTokenizer(SPEC, VOCABULARY.integer_ids, chunk=2),
    "digits": DigitTokenizer(SPEC, VOCABULARY.integer_ids[:10], int(VOCABULARY.integer_ids[10])),
    "fast": FastTokenizer.fit(
        SPEC, _CHUNKS, token_ids=np.arange(1000, 1300), vocabulary=300, scale=3.0
    ),
}


def _noisy(seed: int, scale: float):
    """Random weights: the tree of `PARAMS`, every leaf drawn anew at `scale` of its own size."""
    rng = np.random.default_rng(seed)

    def drawn(x):
        return np.float32(scale * (np.std(x) + 0.1)) * rng.standard_normal(x.shape, np.float32)

    return jax.tree.map(drawn, PARAMS)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_malformed_action_in_a_mixed_batch(name):
    """2,500 actions a tokenizer over random weights, prompts, temperatures and batch mixes.

    Beside it, how many are well formed when the model chooses from the whole vocabulary.
    """
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(0)
    ends = {"eos_id": VOCABULARY.eos_id, "pad_id": VOCABULARY.pad_id}
    longest = tokenizer.max_tokens
    both = make_decoder(
        CONFIG, "both", automaton=tokenizer.automaton, max_answer_tokens=longest, **ends
    )
    free = make_decoder(CONFIG, "text", max_answer_tokens=longest, **ends)
    batch, actions, tried, well_formed = 250, 0, 0, 0
    images = rng.integers(0, 256, (batch, 1, 28, 28, 3), np.uint8)
    lengths = rng.integers(2, 12, batch)
    valid = np.arange(12) < lengths[:, None]
    for round_ in range(12):
        params = _noisy(round_, scale=[0.1, 1.0, 10.0][round_ % 3])
        tokens = rng.integers(4, VOCABULARY.size, (batch, 12)).astype(np.int32)
        temperature = rng.choice([0.0, 0.7, 2.0], batch).astype(np.float32)
        is_action = rng.random(batch) < 0.85
        seeds = np.arange(batch, dtype=np.int32)
        ids = np.asarray(both(params, images, tokens, valid, temperature, seeds, is_action))
        for row in ids[is_action]:
            action = tokenizer.decode(row)  # refuses what is malformed
            assert np.all((action >= SPEC.low - 1e-6) & (action <= SPEC.high + 1e-6))
        actions += int(is_action.sum())
        if round_ % 5 == 0:
            loose = np.asarray(free(params, images, tokens, valid, temperature, seeds))
            np.testing.assert_array_equal(ids[~is_action], loose[~is_action])
            well_formed += sum(_is_whole(tokenizer, row) for row in loose[is_action])
            tried += int(is_action.sum())
    assert actions > 2400
    print(f"{name}: {actions} actions, 0 malformed; unconstrained {tried - well_formed}/{tried}")
    assert well_formed < 0.1 * tried


def _is_whole(tokenizer, ids: np.ndarray) -> bool:
    try:
        tokenizer.decode(ids)
    except ValueError:
        return False
    return True


def test_rows_of_both_kinds_equal_each_kind_alone():
    ends = {"eos_id": VOCABULARY.eos_id, "pad_id": VOCABULARY.pad_id}
    automaton = TOKENIZERS["uniform"].automaton
    tokens = np.random.default_rng(3).integers(4, 4096, (6, 9)).astype(np.int32)
    inputs = _images(6)[:, None], tokens, np.ones((6, 9), bool)
    options = np.full(6, 0.5, np.float32), np.arange(6, dtype=np.int32)
    is_action = np.array([True, False, False, True, True, False])
    both = make_decoder(CONFIG, "both", automaton=automaton, max_answer_tokens=5, **ends)
    mixed = np.asarray(both(PARAMS, *inputs, *options, is_action))
    alone = make_decoder(CONFIG, "action", automaton=automaton, **ends)
    words = make_decoder(CONFIG, "text", max_answer_tokens=5, **ends)
    np.testing.assert_array_equal(mixed[is_action], alone(PARAMS, *inputs, *options)[is_action])
    np.testing.assert_array_equal(
        mixed[~is_action, :5], words(PARAMS, *inputs, *options)[~is_action]
    )
    assert (mixed[~is_action, 5:] == VOCABULARY.pad_id).all()


def test_spare_rows_of_a_padded_table_are_no_words():
    """With the table cut at 300 words, each token is the likeliest of those before it."""
    ends = {"eos_id": VOCABULARY.eos_id, "pad_id": VOCABULARY.pad_id}
    tokens = np.random.default_rng(3).integers(4, 300, (8, 9)).astype(np.int32)
    inputs = _images(8)[:, None], tokens, np.ones((8, 9), bool)
    options = np.zeros(8, np.float32), np.zeros(8, np.int32)
    whole = make_decoder(CONFIG, "text", max_answer_tokens=1, **ends)
    cut = make_decoder(CONFIG, "text", max_answer_tokens=1, num_words=300, **ends)
    assert (np.asarray(whole(PARAMS, *inputs, *options)) >= 300).any()
    for row, got in enumerate(np.asarray(cut(PARAMS, *inputs, *options))[:, 0]):
        padded = np.pad(tokens[row], (0, _LENGTH - 9))
        image = inputs[0][row, 0]
        logits = np.asarray(_next_logits(PARAMS, image, padded, np.zeros(_LENGTH, bool), 9))
        assert got == np.argmax(logits[:300])


@pytest.mark.usefixtures("optimized")
def test_top_k_draws_among_the_likeliest():
    ends = {"eos_id": VOCABULARY.eos_id, "pad_id": VOCABULARY.pad_id}
    count = 400
    tokens = np.tile(
        np.random.default_rng(3).integers(4, 4096, (1, 9)).astype(np.int32), (count, 1)
    )
    images = np.repeat(_images(1)[:, None], count, axis=0)
    inputs = images, tokens, np.ones((count, 9), bool)
    options = np.full(count, 5.0, np.float32), np.arange(count, dtype=np.int32)
    decode = make_decoder(CONFIG, "text", max_answer_tokens=1, top_k=3, **ends)
    drawn = set(np.asarray(decode(PARAMS, *inputs, *options))[:, 0].tolist())
    padded = np.pad(tokens[0], (0, _LENGTH - 9))
    logits = _next_logits(PARAMS, images[0, 0], padded, np.zeros(_LENGTH, bool), 9)
    assert drawn == set(np.argsort(np.asarray(logits))[-3:].tolist())


def _plan_decoder(plan_end, limit: int):
    return make_decoder(
        CONFIG,
        "plan",
        eos_id=VOCABULARY.eos_id,
        pad_id=VOCABULARY.pad_id,
        max_answer_tokens=limit,
        automaton=UniformTokenizer(SPEC, VOCABULARY.integer_ids).automaton,
        plan_end=plan_end,
    )


def test_a_plan_ends_where_the_model_ends_it_or_at_the_limit():
    """`plan_end` is what the model says anyway, as its second and third word, or never."""
    policy, [image] = _policy(), _images(1)
    prompt = "Q: so? A:"
    everything = np.arange(VOCABULARY.size)
    said = _greedy(policy, image, prompt, 5, lambda i: everything)
    first = min(n for n in range(2, 6) if said[n - 2 : n] == said[1:3])
    ids, legal = policy.action_tokenizer.automaton[:2]
    text = policy.builder.prompts([prompt])
    inputs = image[None, None], text["tokens"], text["valid"]
    options = np.zeros(1, np.float32), np.zeros(1, np.int32)
    assert not {3000, 3001} & {*said}
    cases = ((said[1:3], 12, said[:first]), ([3000, 3001], 3, [*said[:3], 3000, 3001]))
    for plan_end, limit, begun in cases:
        count = len(begun)
        # The rest the slow way: only legal tokens, whatever was said.
        allowed = [[word] for word in begun] + [ids[row] for row in legal]
        want = _greedy(policy, image, prompt, count + 8, lambda i, a=allowed: np.asarray(a[i]))
        got = np.asarray(_plan_decoder(plan_end, limit)(PARAMS, *inputs, *options))[0]
        assert got[: count + 8].tolist() == want
        assert (got[count + 8 :] == VOCABULARY.pad_id).all()


@pytest.mark.parametrize(
    ("words", "said", "acts_after"),
    [
        ([50, 60, 7, 8, 9], [50, 60, 7, 8, 9], 5),  # as it should be
        ([7, 50, 7, 8, 50, 60], [7, 50, 7, 8, 50, 7, 8, 9], 8),  # begun twice; then the limit
        ([7, 7, 8, 9], [7, 7, 8, 9], 4),
        ([50, 1, 60, 60], [50, 7, 8, 9], 4),  # EOS
        ([50, 7, 1, 60], [50, 7, 8, 9], 4),  # EOS within
    ],
)
def test_the_states_of_a_plan(words, said, acts_after):
    """Plans end with 7 8 9 after at most 5 words; 1 is EOS."""
    automaton = UniformTokenizer(SPEC, VOCABULARY.integer_ids).automaton
    pick = _Picker(Vla(CONFIG), "plan", 1, 5, automaton, 0, None, (7, 8, 9))
    state, got = jnp.asarray([pick.start]), []
    logits = jnp.zeros((1, 256))
    for step in range(acts_after):
        assert state[0] < 0
        word = jnp.asarray([words[step] if step < len(words) else 60])
        ended = (word == 1) | (step >= 5)
        token, state, complete = pick._plan(
            logits, step, state, jnp.zeros(1), jnp.zeros(1, int), word, ended
        )
        got.append(int(token[0]))
        assert not complete[0]
    assert got == said and state[0] == 0


def test_a_policy_that_plans_says_what_it_does():
    builder = SequenceBuilder(
        VOCABULARY,
        UniformTokenizer(SPEC, VOCABULARY.integer_ids),
        max_tokens=42,
        max_answer_tokens=20,
    )
    policy = Policy(PARAMS, CONFIG, builder, batch_size=2, robot_template=PLAN_TEMPLATE, plans=True)
    images = _images(2)
    result = policy.act(images, INSTRUCTIONS[:2])
    assert result.ids.shape == (2, 8) and len(result.plans) == 2
    room, end = 20 - 1 - 8 - len(builder.plan_end), builder.plan_end.tolist()
    ids, legal = policy.action_tokenizer.automaton[:2]
    everything = np.arange(VOCABULARY.size)
    for row in range(2):
        prompt = robot_prompt(INSTRUCTIONS[row], PLAN_TEMPLATE)
        plan = _greedy(policy, images[row], prompt, room, lambda i: everything)
        assert VOCABULARY.eos_id not in plan and end[0] not in plan, "choose another seed"
        assert result.plans[row] == VOCABULARY.decode(plan)
        begun = [*plan, *end]
        want = _greedy(
            policy,
            images[row],
            prompt,
            len(begun) + 8,
            lambda i, b=begun: np.asarray([b[i]]) if i < len(b) else ids[legal[i - len(b)]],
        )
        assert result.ids[row].tolist() == want[len(begun) :]
        np.testing.assert_array_equal(
            result.actions[row], policy.action_tokenizer.decode(result.ids[row])
        )
    short = SequenceBuilder(
        VOCABULARY, builder.action_tokenizer, max_tokens=42, max_answer_tokens=12
    )
    with pytest.raises(ValueError, match="12 leaves no room for a plan"):
        Policy(PARAMS, CONFIG, short, batch_size=2, plans=True)
    with pytest.raises(ValueError, match="plan_end"):
        _plan_decoder((), 3)


@pytest.mark.parametrize("token_ids", [None, VOCABULARY.integer_ids], ids=["vector", "tokens"])
def test_a_policy_acts_on_the_state(token_ids):
    """Its first token is the likeliest after images, state and prompt, in the training forward."""
    size = 2 if token_ids is None else 0
    config = dataclasses.replace(CONFIG, state_size=size)
    params = jax.jit(lambda: init_params(config, jax.random.key(3)))()
    builder = SequenceBuilder(
        VOCABULARY,
        UniformTokenizer(SPEC, VOCABULARY.integer_ids),
        max_tokens=60,
        max_answer_tokens=10,
        state=StateInput([-1, -1], [1, 1], token_ids),
    )
    policy = Policy(params, config, builder, batch_size=2)
    images, states = _images(3), np.asarray([[-1, 0.5], [1, -0.3], [0.2, 1]])
    got = policy.act(images, INSTRUCTIONS, states=states)
    action = np.zeros((1, 8), np.float32)
    rows = builder.build_rows(
        [
            Example((b"",), robot_prompt(i), action=action, state=s)
            for i, s in zip(INSTRUCTIONS, states)
        ]
    )
    state = State(rows["state"], rows["state_valid"]) if size else None
    columns = (rows[k] for k in ("tokens", "attend_causal", "valid"))
    before = np.argmax(rows["in_loss"], axis=1)[:, None] - 1
    model = Vla(config)

    @jax.jit
    def first_logits(params, *inputs):
        hidden, _ = model.apply({"params": params}, *inputs)
        return model.apply({"params": params}, hidden[:, 0], method="logits")

    logits = np.asarray(first_logits(params, images[:, None], *columns, None, before, state))
    flags = VOCABULARY.integer_ids[:2]
    assert got.ids[:, 0].tolist() == flags[np.argmax(logits[:, flags], axis=1)].tolist()
    assert (got.ids != policy.act(images, INSTRUCTIONS, states=-states).ids).any()
    with pytest.raises(ValueError, match="no states are given, and this policy was trained with"):
        policy.act(images, INSTRUCTIONS)
    with pytest.raises(ValueError, match="2 states for 3 prompts"):
        policy.act(images, INSTRUCTIONS, states=states[:2])
    with pytest.raises(ValueError, match="states are given, and this policy takes none"):
        _policy().act(images, INSTRUCTIONS, states=states)
