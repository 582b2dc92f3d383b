"""A run with each kind of action tokens: trained, saved, restored; refused where they misfit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.training.conftest import save_fresh
from tests.training.training_test import make_config
from vla_jax.actions import stored
from vla_jax.actions.fast import FastTokenizer, chunks_of
from vla_jax.actions.quantile import QuantileTokenizer
from vla_jax.actions.stored import ActionConfig
from vla_jax.build import build_training, load_policy
from vla_jax.checkpoints.params_file import save_params
from vla_jax.config import Config
from vla_jax.data.sources.episodes import EpisodeSource
from vla_jax.models.vla import init_params
from vla_jax.text.least_used import count_tokens, least_used, save_ids
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.train import train

CHUNK, FAST_IDS = 3, 300
IMAGES = np.zeros((2, 28, 28, 3), np.uint8)


@pytest.fixture(scope="module")
def files(data_sets, tmp_path_factory):
    """Fitted tokenizers and token ids, as the tools write them."""
    folder = tmp_path_factory.mktemp("tokens")
    source = EpisodeSource("robot", data_sets[0])
    numbers = [source.locate(i)[0] for i in range(len(source))]
    actions = np.concatenate([source.read(i).action for i in range(len(source))])
    episodes = [actions[np.equal(numbers, n)] for n in range(source.num_episodes)]
    ids, spec = np.arange(FAST_IDS), source.action_spec
    stored.save(
        QuantileTokenizer.fit(spec, episodes, token_ids=ids[:256], chunk=CHUNK),
        folder / "quantile.json",
    )
    chunks = [c for e in episodes for c in chunks_of(e, CHUNK)]
    stored.save(
        FastTokenizer.fit(spec, chunks, token_ids=ids, vocabulary=FAST_IDS), folder / "fast.json"
    )
    vocabulary = Vocabulary()
    counts = count_tokens(vocabulary, ["Q: what is this? A:", "a dog"])
    save_ids(folder / "ids.json", vocabulary, least_used(vocabulary, counts, FAST_IDS), counts)
    return folder


def _config(data_sets, actions: ActionConfig, **changes) -> Config:
    answers = {"digits": 4 * 8 * CHUNK}.get(actions.tokenizer, 8 * CHUNK) + 1
    config = make_config(data_sets, train__steps=2, **changes)
    data = dataclasses.replace(
        config.data, actions=actions, max_tokens=30 + answers, max_answer_tokens=answers
    )
    return dataclasses.replace(config, data=data)


@pytest.mark.parametrize("name", ["uniform", "digits", "quantile.json", "fast.json"])
def test_a_checkpoint_knows_what_its_tokens_mean(name, data_sets, files, tmp_path):
    """Trained and loaded again from the checkpoint alone: the fitted files may be gone."""
    fitted = name.endswith(".json")
    path = tmp_path / name
    if fitted:
        path.write_text((files / name).read_text())
    ids = str(files / "ids.json") if fitted else ""
    config = _config(data_sets, ActionConfig(str(path) if fitted else name, CHUNK, ids))
    train(config, str(tmp_path / "run"))
    path.unlink(missing_ok=True)
    policy, meta, _ = load_policy(tmp_path / "run", batch_size=2)
    tokenizer = policy.action_tokenizer
    assert [stored.to_json(t) for t in meta.action_tokenizers] == [stored.to_json(tokenizer)]
    assert (tokenizer.kind, tokenizer.chunk) == (name.removesuffix(".json"), CHUNK)
    if fitted:
        assert not np.isin(tokenizer.token_ids, Vocabulary().integer_ids).any()
        original = stored.load(files / name, token_ids=tokenizer.token_ids)
        assert stored.to_json(original) == stored.to_json(tokenizer)
    result = policy.act(IMAGES, ["pick the dog", "pick the cat"])
    low, high = tokenizer.spec.low, tokenizer.spec.high
    assert result.actions.shape == (2, CHUNK, 8)
    assert np.all((result.actions >= low - 1e-6) & (result.actions <= high + 1e-6))


def test_the_loss_leaves_padded_steps_out(data_sets):
    """Chunks of 3 in episodes of 3, 5, 1 and 4 steps: 8 tokens a real step, and EOS."""
    run = build_training(_config(data_sets, ActionConfig("uniform", CHUNK)))
    source = run.sources["robot"]
    real = 0
    for i in range(len(source)):
        valid = source.read(i).action_valid
        row = run.builder.build(source.read(i))
        count = CHUNK if valid is None else int(valid[:, 0].sum())
        assert row["in_loss"].sum() == 8 * count + 1
        real += count
    assert real == sum(min(CHUNK, n - t) for n in (3, 5, 1, 4) for t in range(n))


def test_other_action_tokens_are_refused(data_sets, files, tmp_path):
    uniform = _config(data_sets, ActionConfig("uniform", CHUNK))
    save_fresh(uniform, tmp_path / "run")
    longer = dataclasses.replace(uniform.train, steps=4)
    ids = ActionConfig("uniform", CHUNK, str(files / "ids.json"))
    with pytest.raises(ValueError, match=r"data\.actions\.token_ids: the checkpoint has ''"):
        train(dataclasses.replace(_config(data_sets, ids), train=longer), str(tmp_path / "run"))

    # The same path, but another file since.
    file = tmp_path / "quantile.json"
    file.write_text((files / "quantile.json").read_text())
    config = _config(data_sets, ActionConfig(str(file), CHUNK))
    save_fresh(config, tmp_path / "fitted")
    spec = build_training(uniform).builder.action_tokenizer.spec
    rng = np.random.default_rng(0)
    other = QuantileTokenizer.fit(
        spec,
        [rng.uniform(spec.low, spec.high, (500, 8))],
        token_ids=np.arange(256),
        chunk=CHUNK,
    )
    stored.save(other, file)
    with pytest.raises(ValueError, match="another one than the checkpoint's: fitted differ"):
        train(dataclasses.replace(config, train=longer), str(tmp_path / "fitted"))


def test_fast_on_integers_and_smoothing_do_not_go_together(data_sets, files, tmp_path):
    """A vocabulary whose ids include integers, and targets that blur integers."""
    vocabulary = Vocabulary()
    ids = np.arange(4, 4 + FAST_IDS)
    save_ids(tmp_path / "ids.json", vocabulary, ids, np.zeros(4096, np.int64))
    actions = ActionConfig(str(files / "fast.json"), CHUNK, str(tmp_path / "ids.json"))
    with pytest.raises(ValueError, match="FAST's tokens on integer ids are in no order"):
        build_training(_config(data_sets, actions, train__integer_smoothing=2.0))
    build_training(_config(data_sets, actions))


def test_least_used_rows_start_anew_and_no_others(data_sets, files, tmp_path):
    """From published weights the rows of action tokens are new; from a run's, they are kept."""
    actions = ActionConfig("uniform", CHUNK, str(files / "ids.json"))
    config = _config(data_sets, actions, train__init_from=str(tmp_path / "vlm.npz"))
    params = jax.jit(lambda: init_params(config.model, jax.random.key(5)))()
    save_params(tmp_path / "vlm.npz", params, "float32")
    run = build_training(config)
    got, want = (
        np.asarray(p["llm"]["embedder"]["input_embedding"])
        for p in (run.fresh_state()["params"], params)
    )
    changed = np.flatnonzero((got != want).any(axis=1))
    assert changed.tolist() == run.builder.action_tokenizer.token_ids.tolist()
    # Neighbouring bins are alike, as `reassign_rows` makes them.
    unit = got[changed] / np.linalg.norm(got[changed], axis=1, keepdims=True)
    assert (unit[1:] * unit[:-1]).sum(axis=1).min() > 0.9

    train(config, str(tmp_path / "run"))
    again = _config(data_sets, actions, train__init_from=str(tmp_path / "run"))
    kept = build_training(again).fresh_state()["params"]
    trained = load_policy(tmp_path / "run", batch_size=1)[0].params
    for name in ("llm", "img"):
        assert jax.tree.all(jax.tree.map(np.array_equal, kept[name], trained[name]))
