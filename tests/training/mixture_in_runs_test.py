"""What a run does with its mixture: logs, checkpoints, and data that end."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from tests.training.training_test import make_config
from vla_jax.build import build_training
from vla_jax.build_data import make_mixture, open_sources
from vla_jax.checkpoints.manager import CheckpointMeta
from vla_jax.checkpoints.same_config import require_same_config
from vla_jax.config import Config, from_json, load_config, parse, to_json
from vla_jax.data.config import WeightChange
from vla_jax.data.mixture import Mixture
from vla_jax.schema import from_dict, to_plain
from vla_jax.training.window import Window

SIZES = {"a": 100, "w": 40, "b": 60}
OPTIONS = {
    "groups": {"robot": 1, "web": 1},
    "group_of": {"a": "robot", "w": "web", "b": "robot"},
    "changes": (WeightChange(160, groups={"web": 3}),),
}
BATCH = 16


def step_metrics(mixture: Mixture, step: int, tokens: np.ndarray) -> dict:
    """Of update `step` (from 0), with so many loss tokens a sample by source."""
    source, _ = mixture.locate(step * BATCH + np.arange(BATCH))
    samples = np.bincount(source, minlength=len(tokens))
    sums = {"samples": samples, "tokens": samples * tokens, "loss": samples, "correct": samples}
    sums |= {"truncated": 0 * samples, "left_out": 0 * samples, "used": np.ones(len(tokens))}
    return {"loss": 1.0, "grad_norm": 1.0, "by_source": sums}


def log(mixture: Mixture, start: int, stop: int, every: int) -> dict[int, dict[str, float]]:
    window, found = Window(mixture, BATCH), {}
    for step in range(start, stop):
        window.add(step_metrics(mixture, step, np.asarray([9, 2, 5])))
        if (step + 1) % every == 0:
            found[step + 1] = window.scalars(step + 1)
            window.reset()
    return found


def test_shares_are_logged_by_stage_source_and_group_and_exact_after_a_resume():
    mixture = Mixture({"a": 1, "w": 1, "b": 3}, SIZES, 0, **OPTIONS)
    logged = log(mixture, 0, 30, every=5)
    source, _ = mixture.locate(np.arange(30 * BATCH))
    for step, scalars in logged.items():
        first = 0 if step <= 10 else 160
        counts = np.bincount(source[first : step * BATCH], minlength=3)
        tokens = counts * [9, 2, 5]
        asked = np.asarray([1, 4, 3]) / 8 if step <= 10 else np.asarray([1, 12, 3]) / 16
        every = np.bincount(source[: step * BATCH], minlength=3)
        for k, name in enumerate("awb"):
            assert scalars[f"{name}/share_of_samples"] == counts[k] / counts.sum()
            assert scalars[f"{name}/share_of_tokens"] == tokens[k] / tokens.sum()
            assert scalars[f"{name}/share_configured"] == asked[k]
            assert scalars[f"{name}/epoch"] == every[k] / list(SIZES.values())[k]
        for key in ("share_of_samples", "share_of_tokens", "share_configured"):
            robot = scalars[f"a/{key}"] + scalars[f"b/{key}"]
            assert scalars[f"group/robot/{key}"] == pytest.approx(robot, abs=1e-12)
            assert scalars[f"group/web/{key}"] == scalars[f"w/{key}"]
    resumed = log(mixture, 20, 30, every=5)
    exact = [k for k in logged[30] if "/share_" in k or "epoch" in k]
    exact = [k for k in exact if not k.endswith("of_tokens")]
    assert len(exact) == 3 * 3 + 2 * 2
    for step in (25, 30):
        assert {k: resumed[step][k] for k in exact} == {k: logged[step][k] for k in exact}


def test_tokens_of_a_batch_in_which_weights_change_are_of_the_new_stage():
    options = OPTIONS | {"changes": (WeightChange(150, groups={"web": 3}),)}
    mixture = Mixture({"a": 1, "w": 1, "b": 3}, SIZES, 0, **options)
    scalars = log(mixture, 0, 15, every=15)[15]
    source, _ = mixture.locate(np.arange(15 * BATCH))
    tokens = np.bincount(source[144:], minlength=3) * [9, 2, 5]
    assert scalars["w/share_of_tokens"] == tokens[1] / tokens.sum()
    assert scalars["w/share_of_samples"] == np.mean(source[150:] == 1)


def with_data(config: Config, **changes) -> Config:
    sources = {
        name: dataclasses.replace(source, **changes.pop(name, {}))
        for name, source in config.data.sources.items()
    }
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, sources=sources, **changes)
    )


def test_a_run_longer_than_its_data_is_refused_before_it_starts(data_sets):
    """13 robot steps and 25 web records: 3 x 13 + 25 samples, 8 steps of 8."""
    finite = {"robot": {"epochs": 3}, "web": {"epochs": 1}}
    run = build_training(with_data(make_config(data_sets, train__steps=8), **finite))
    assert run.mixture.length == 64
    message = "need 72, and the data are used up after 64, in step 9: set train.steps to 8"
    with pytest.raises(ValueError, match=message):
        build_training(with_data(make_config(data_sets, train__steps=9), **finite))
    build_training(
        with_data(make_config(data_sets, train__steps=9), **finite | {"robot": {"epochs": 0}})
    )


def test_a_resumed_run_keeps_the_loss_tokens_that_were_measured(data_sets):
    """Robot: 8 action tokens and an end. Web: all 25 answers."""
    config = with_data(make_config(data_sets), weights_in="loss_tokens")
    run = build_training(config)
    sources = run.sources
    rows = run.builder.build_rows([sources["web"].read(i) for i in range(25)])
    web = round(rows["in_loss"].sum() / 25, 4)
    meta = CheckpointMeta.from_json(run.meta(2).to_json())
    assert meta.loss_tokens == {"robot": 9.0, "web": web}
    assert meta.records == {"robot": 13, "web": 25}
    share = 2 / 9 / (2 / 9 + 1 / web)
    assert float(run.mixture.stages[0].shares[0]) == pytest.approx(share, abs=1e-4)
    # Measured otherwise, say by other code, the order of a run that began does not change.
    other = dataclasses.replace(meta, loss_tokens={"robot": 3.0, "web": 1.0})
    kept = build_training(config, other)
    assert kept.mixture.stages[0].shares == (Fraction(2, 5), Fraction(3, 5))
    assert kept.meta(3).loss_tokens == other.loss_tokens
    with pytest.raises(ValueError, match=r"set data\.weights_in to samples"):
        make_mixture(config.data, sources)


def test_other_numbers_of_records_are_refused_at_resume(data_sets):
    run = build_training(make_config(data_sets))
    now = run.meta(2)
    require_same_config(now, now, where="here")
    grown = dataclasses.replace(now, records={"robot": 13, "web": 24})
    with pytest.raises(
        ValueError, match=r"data\.sources\.web: 24 records when the run began, 25 now"
    ):
        require_same_config(grown, now, where="here")
    require_same_config(dataclasses.replace(now, records={}), now, where="an older one")


CONFIG = """
from ml_collections import ConfigDict

def get_config():
    kind = "image_text"
    return ConfigDict({{
        "model": {{"preset": "tiny", "image_size": 28}},
        "data": {{
            "groups": {{"robot": 1.0, "web": 1}},
            "sources": {{
                "robot": {{"kind": "episodes", "path": "{robot}", "group": "robot"}},
                "web": {{"kind": kind, "path": "{web}", "group": "web", "epochs": 3}},
                "off": {{"kind": kind, "path": "/nowhere", "group": "web", "weight": 0.0}},
            }},
            "weight_changes": (
                {{"from_sample": 100, "groups": {{"web": 0.5}}}},
                {{"from_sample": 200, "sources": {{"robot": 2.0}}, "ramp_samples": 3000}},
            ),
        }},
        "optimizer": {{"learning_rate": 1e-3, "warmup_steps": 1}},
        "train": {{"steps": 1, "batch_size": 8}},
    }})
"""


def test_groups_and_changes_come_from_a_config_file_and_the_command_line(data_sets, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(CONFIG.format(robot=data_sets[0], web=data_sets[1]))
    config = parse(load_config(file, ["data.groups.web=3", "data.sources.web.epochs=0"]))
    assert config.data.groups == {"robot": 1.0, "web": 3.0}
    assert config.data.weight_changes == (
        WeightChange(100, groups={"web": 0.5}),
        WeightChange(200, sources={"robot": 2.0}, ramp_samples=3000),
    )
    assert from_json(to_json(config), where="config.json") == config
    assert from_dict(Config, to_plain(config)) == config
    sources = open_sources(config.data)
    assert list(sources) == ["robot", "web"]
    mixture = make_mixture(config.data, sources)
    assert [stage.start for stage in mixture.stages] == [0, 100, 200, 1200, 2200, 3200]
    assert mixture.stages[0].configured.tolist() == [0.25, 0.75]
    text = '[{"from_sample": 7, "groups": {"robot": 0}}]'
    config = parse(load_config(file, [f"data.weight_changes={text}"]))
    mixture = make_mixture(config.data, sources)
    assert [stage.start for stage in mixture.stages] == [0, 7]
    # The robot is off from sample 7 on, and the web has been seen 3 times after 75 of its samples.
    assert mixture.length == 75 + mixture.counts(7)[0]
