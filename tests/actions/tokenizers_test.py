"""All action tokenizers: round trips in units, legal sequences, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.actions import stored
from vla_jax.actions.bins import NUM_BINS, BinTokenizer
from vla_jax.actions.digits import DigitTokenizer
from vla_jax.actions.fast import FastTokenizer, chunks_of
from vla_jax.actions.quantile import QuantileTokenizer
from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.stored import ActionConfig
from vla_jax.actions.tokenizer import accepts
from vla_jax.actions.uniform import UniformTokenizer

SPEC = end_effector_spec("test", max_position_m=0.1, max_rotation_rad=0.5, control_hz=10)
CHUNK = 5
IDS = np.arange(3000, 4000)[::-1]


def _episodes(count: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth actions [40, 8] with a gripper that closes once and a flag at the end."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, 40)
    episodes = []
    for _ in range(count):
        phase, speed = rng.uniform(0, 6, 6), rng.uniform(0.5, 4, 6)
        wave = np.sin(phase + speed * 6 * time[:, None]) * rng.uniform(0, 1, 6) ** 2
        closed = time > rng.uniform(0.2, 0.8)
        flag = np.arange(40) == 39
        unit = np.concatenate([flag[:, None], (wave + 1) / 2, closed[:, None]], axis=1)
        episodes.append((SPEC.low + unit * (SPEC.high - SPEC.low)).astype(np.float32))
    return episodes


EPISODES = _episodes(60)
TOKENIZERS = {
    "uniform": UniformTokenizer(SPEC, IDS[:256], CHUNK),
    "quantile": QuantileTokenizer.fit(SPEC, EPISODES, token_ids=IDS[:256], chunk=CHUNK),
    "digits": DigitTokenizer(SPEC, IDS[:10], int(IDS[10]), CHUNK),
    "fast": FastTokenizer.fit(
        SPEC, (c for e in EPISODES for c in chunks_of(e, CHUNK)), token_ids=IDS, vocabulary=400
    ),
}
BINS = [name for name, t in TOKENIZERS.items() if isinstance(t, BinTokenizer)]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def _held_out() -> list[np.ndarray]:
    return [c for e in _episodes(8, seed=1) for c in list(chunks_of(e, CHUNK))[::7]]


def _random_walk(automaton, rng) -> list[int]:
    """A legal sequence, each token drawn among the legal ones."""
    state, ids = 0, []
    while state < len(automaton.legal):
        n = rng.choice(np.flatnonzero(automaton.legal[state]))
        ids.append(int(automaton.token_ids[n]))
        state = automaton.next_state[state, n]
    return ids


def test_round_trip_stays_within_the_stated_error(tokenizer):
    """Bins and digits: half a bin. FAST drops what rounds to zero: half a step per coefficient."""
    half_bin = (SPEC.high - SPEC.low) / 512
    if isinstance(tokenizer, FastTokenizer):
        # An orthonormal transform keeps the root of summed squares: sqrt(C) / 2 steps of 2 / scale.
        half_bin = (SPEC.high - SPEC.low) / 2 * (0.5 / tokenizer.scale) * CHUNK**0.5
    for chunk in _held_out():
        ids = tokenizer.encode(chunk)
        assert len(ids) <= tokenizer.max_tokens
        assert accepts(tokenizer.automaton, ids) == len(ids)
        again = tokenizer.decode(ids)
        assert again.shape == chunk.shape and again.dtype == np.float32
        error = np.abs(again - chunk)
        assert np.all(error[:, 0] == 0)  # the flag
        if not isinstance(tokenizer, QuantileTokenizer):
            assert np.all(error <= half_bin * (1 + 1e-3) + 1e-6)


def test_every_legal_sequence_is_a_fixed_point(tokenizer):
    """Whatever the automaton allows decodes within bounds; bins and digits encode back to it."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        ids = _random_walk(tokenizer.automaton, rng)
        padded = [*ids, 0, 0]
        action = tokenizer.decode(np.asarray(padded))
        assert np.all((action >= SPEC.low - 1e-6) & (action <= SPEC.high + 1e-6))
        if not isinstance(tokenizer, FastTokenizer):
            assert tokenizer.encode(action).tolist() == ids


def test_what_is_not_legal_is_refused(tokenizer):
    ids = tokenizer.encode(_held_out()[0])
    for stray in (0, 2999, 10**6, -1):
        wrong = ids.copy()
        wrong[3] = stray
        with pytest.raises(ValueError, match="not an action token at position 3"):
            tokenizer.decode(wrong)
    with pytest.raises(ValueError, match=f"ends after {len(ids) - 1} tokens"):
        tokenizer.decode(ids[:-1])
    nan = np.zeros((CHUNK, 8))
    nan[2, 3] = np.nan
    with pytest.raises(ValueError, match="position_z"):
        tokenizer.encode(nan)
    with pytest.raises(ValueError, match=r"\(5, 8\)"):
        tokenizer.encode(np.zeros((4, 8)))


@pytest.mark.parametrize("name", BINS)
def test_all_256_values_differ_and_are_fixed_points(name):
    tokenizer = TOKENIZERS[name]
    bins = np.tile(np.arange(NUM_BINS)[:, None], 8)
    bins[:, 0] %= 2
    values = tokenizer.values(bins)
    assert all(len(np.unique(values[:, a])) == NUM_BINS for a in range(1, 8))
    assert np.array_equal(tokenizer.bins(values), bins)


def test_terminate_above_one_is_refused():
    tokenizer = TOKENIZERS["uniform"]
    ids = tokenizer.encode(np.zeros((CHUNK, 8)))
    ids[8] = tokenizer.token_ids[2]
    with pytest.raises(ValueError, match="position 8"):
        tokenizer.decode(ids)


def test_quantile_bins_hold_equal_mass():
    """On what they were fitted to; where a value repeats, it keeps its own narrow bin."""
    tokenizer, actions = TOKENIZERS["quantile"], np.concatenate(EPISODES)
    for a in range(1, 7):
        counts = np.bincount(tokenizer.bins(actions)[:, a], minlength=NUM_BINS)
        assert counts.max() <= 3 * len(actions) / NUM_BINS
    uniform = TOKENIZERS["uniform"]
    error = {
        name: np.median(np.abs(t.values(t.bins(actions)) - actions)[:, 1:7])
        for name, t in (("uniform", uniform), ("quantile", tokenizer))
    }
    assert error["quantile"] < error["uniform"]
    grip = tokenizer.values(tokenizer.bins(actions))[:, 7]
    np.testing.assert_allclose(grip, actions[:, 7], atol=1e-3)
    with pytest.raises(ValueError, match="edges must rise"):
        QuantileTokenizer(SPEC, IDS[:256], tokenizer.edges[:, ::-1])
    with pytest.raises(ValueError, match="need actions"):
        QuantileTokenizer.fit(SPEC, [], token_ids=IDS[:256])


def test_fast_is_dct_rounding_and_bpe():
    """Coefficients against the definition of the orthonormal DCT-II; fewer tokens than bins."""
    tokenizer = TOKENIZERS["fast"]
    chunk = EPISODES[0][:CHUNK]
    unit = (chunk - SPEC.low) / (SPEC.high - SPEC.low) * 2 - 1
    n = np.arange(CHUNK)
    basis = np.cos(np.pi * (n[None] + 0.5) * n[:, None] / CHUNK) * np.sqrt(2 / CHUNK)
    basis[0] /= np.sqrt(2)
    want = np.rint(basis @ unit * tokenizer.scale).astype(int).reshape(-1)
    text = tokenizer.text(tokenizer.encode(chunk))
    assert [int(c) for c in text.replace(",", " ").split()] == want.tolist()
    lengths = [len(tokenizer.encode(c)) for c in _held_out()]
    assert np.mean(lengths) < 0.6 * CHUNK * 8


def test_it_is_saved_and_loaded(tokenizer, tmp_path):
    """The same tokens for the same actions; with other ids, the same tokens by their number."""
    path = tmp_path / "tokenizer.json"
    stored.save(tokenizer, path)
    again, moved = stored.load(path), stored.load(path, token_ids=IDS - 1000)
    assert again.spec == SPEC and again.chunk == CHUNK and again.kind == tokenizer.kind
    for chunk in _held_out():
        ids = tokenizer.encode(chunk)
        assert np.array_equal(again.encode(chunk), ids)
        assert np.array_equal(again.decode(ids), tokenizer.decode(ids))
        assert np.array_equal(moved.encode(chunk), ids - 1000)


def test_a_fitted_tokenizer_is_refused_where_it_does_not_fit(tmp_path):
    path = tmp_path / "fast.json"
    stored.save(TOKENIZERS["fast"], path)
    config = ActionConfig(str(path), CHUNK)
    made = stored.make_tokenizer(config, SPEC, IDS)
    assert np.array_equal(made.token_ids, TOKENIZERS["fast"].token_ids)
    with pytest.raises(ValueError, match=r"chunks of 5 actions, the config asks for 4: set data"):
        stored.make_tokenizer(ActionConfig(str(path), 4), SPEC, IDS)
    with pytest.raises(ValueError, match="different token ids"):
        stored.make_tokenizer(config, SPEC, IDS[:256])
    other = end_effector_spec("test", max_position_m=0.2, max_rotation_rad=0.5, control_hz=10)
    with pytest.raises(ValueError, match="position_x"):
        stored.make_tokenizer(config, other, IDS)
    with pytest.raises(FileNotFoundError, match=r"none\.json: fit one with"):
        stored.make_tokenizer(ActionConfig("none.json"), SPEC, IDS)
    for text in ('{"chunk": 3}', "[]", "{", '{"kind": "slow", "spec": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"fast\.json: "):
            stored.load(path)
    with pytest.raises(ValueError, match="unknown tokenizer 'fsat'"):
        ActionConfig("fsat")
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        ActionConfig(chunk=0)


def test_tokens_of_padded_numbers_are_known(tokenizer):
    """The last two steps are padding; bins and digits also know padded dimensions."""
    chunk = _held_out()[0]
    ids = tokenizer.encode(chunk)
    steps = np.repeat((np.arange(CHUNK) < 3)[:, None], 8, axis=1)
    valid = tokenizer.tokens_valid(ids, steps)
    assert valid.shape == ids.shape
    if isinstance(tokenizer, FastTokenizer):
        assert valid.all()
        with pytest.raises(ValueError, match="cannot leave out a dimension"):
            tokenizer.tokens_valid(ids, np.arange(8) < np.full((CHUNK, 1), 7))
        return
    assert tokenizer.text(ids[valid]).split() == tokenizer.text(ids).split()[:24]
    last = np.broadcast_to(np.arange(8) == 7, (CHUNK, 8))
    said = tokenizer.text(ids[tokenizer.tokens_valid(ids, last)]).split()
    assert said == tokenizer.text(ids).split()[7::8]


def test_fast_refuses_what_it_cannot_be_fitted_to():
    with pytest.raises(ValueError, match="at least one chunk"):
        FastTokenizer.fit(SPEC, [], token_ids=IDS)
    with pytest.raises(ValueError, match="lower the scale"):
        FastTokenizer.fit(SPEC, EPISODES, token_ids=IDS, vocabulary=10)
    with pytest.raises(ValueError, match="different token ids"):
        FastTokenizer.fit(SPEC, EPISODES, token_ids=IDS[:20], vocabulary=200)


def test_digits_write_numbers():
    tokenizer = DigitTokenizer(SPEC, IDS[:10], int(IDS[10]))
    action = np.array([[0, 0.1, -0.1, 0.0, 0.5, -0.5, 0.25, 1.0]], np.float32)
    assert tokenizer.text(tokenizer.encode(action)) == "0 255 0 128 255 0 192 255"
    with pytest.raises(ValueError, match="10 different ids"):
        DigitTokenizer(SPEC, IDS[:10], int(IDS[3]))
