"""Loss, optimizer, step and loop: numbers, identities, and what happens when things go wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.conftest import save_fresh
from vla_jax.build import build_training, load_policy, with_defaults
from vla_jax.build_step import abstract_batch, abstract_state
from vla_jax.checkpoints.manager import Checkpoints
from vla_jax.checkpoints.same_config import require_same_config
from vla_jax.config import Config, to_json
from vla_jax.data.mixture import Mixture
from vla_jax.models.vla import Vla, init_params
from vla_jax.schema import from_dict
from vla_jax.sharding.mesh import MeshConfig, make_mesh, to_global
from vla_jax.train import train
from vla_jax.training.alignment import alignment_loss
from vla_jax.training.augment import AugmentConfig
from vla_jax.training.losses import (
    _smoothed_target_logit,
    answer_loss,
    patch_label_loss,
)
from vla_jax.training.metrics import MetricWriter, read_metrics
from vla_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from vla_jax.training.step import make_train_step, state_shardings
from vla_jax.training.window import Window

AUGMENT = AugmentConfig(crop=0.7, brightness=0.2, contrast=0.2, saturation=0.2)
GOLDEN = Path(__file__).parents[1] / "golden/loss_curve.json"


def _minimal(robot="", web="") -> dict:
    return {
        "model": {"preset": "tiny", "image_size": 28, "compute_dtype": "float32"},
        "data": {
            "sources": {
                "robot": {"kind": "episodes", "path": str(robot), "weight": 2},
                "web": {"kind": "image_text", "path": str(web), "weight": 1},
            },
            "max_tokens": 40,
            "max_answer_tokens": 10,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1, "decay": "constant"},
        "train": {"steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 2},
    }


def make_config(data_sets, **changes) -> Config:
    config = from_dict(Config, _minimal(*data_sets))
    for path, value in changes.items():
        section, key = path.split("__")
        part = dataclasses.replace(getattr(config, section), **{key: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def _params(workdir) -> dict:
    return load_policy(workdir, batch_size=1)[0].params


def _same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_loss_equals_numpy(data_sets):
    run = build_training(make_config(data_sets))
    state = run.fresh_state()
    batch = next(run.loader(0))
    batch["truncated"] = np.arange(8) % 3 == 0
    model = Vla(run.config.model)
    loss, sums = jax.jit(
        lambda p, b: answer_loss(model, p, b, max_answer_tokens=10, num_sources=2)
    )(state["params"], batch)
    hidden, _ = jax.jit(model.apply)(
        {"params": state["params"]},
        *(batch[k] for k in ("images", "tokens", "attend_causal", "valid")),
    )
    logits = (
        np.asarray(hidden, np.float64)
        @ np.asarray(state["params"]["llm"]["embedder"]["input_embedding"], np.float64).T
    )
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats, count = np.zeros(2), np.zeros(2)
    for b, t in np.argwhere(batch["in_loss"]):
        nats[batch["source"][b]] -= log_p[b, t - 1, batch["tokens"][b, t]]
        count[batch["source"][b]] += 1
    np.testing.assert_allclose(sums["loss"], nats, rtol=1e-5)
    np.testing.assert_array_equal(sums["tokens"], count)
    np.testing.assert_array_equal(sums["samples"], np.bincount(batch["source"], minlength=2))
    cut = np.bincount(batch["source"], batch["truncated"], minlength=2)
    np.testing.assert_array_equal(sums["truncated"], cut)
    np.testing.assert_allclose(loss, nats.sum() / count.sum(), rtol=1e-5)
    # Robot rows: 8 action tokens and EOS.
    assert count[0] == 9 * (batch["source"] == 0).sum()


def test_soft_integer_targets_equal_numpy():
    """The loss of an integer is the cross-entropy against a Gaussian over its neighbours."""
    model = Vla(from_dict(Config, _minimal()).model)
    first, last = model.config.decoder.integer_rows
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 4096)), jnp.float32)
    target = jnp.array([[first + 10, 3000]])
    exact = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    got = _smoothed_target_logit(model, logits, target, exact, 2.0, 2)
    weight = np.exp(-0.5 * ((np.arange(last - first) - 10) / 2.0) ** 2)
    want = np.asarray(logits[0, 0, first:last]) @ (weight / weight.sum())
    np.testing.assert_allclose(got[0], [want, logits[0, 1, 3000]], rtol=1e-5)
    target = target * 0 + first + 1  # a level of 2
    exact = logits[..., first + 1]
    level = _smoothed_target_logit(model, logits, target, exact, 2.0, 2)
    np.testing.assert_allclose(level[0], logits[0, :, first + 1], rtol=1e-6)


def test_alignment_equals_numpy():
    """Things and background are averaged apart; -1 marks words and patches that do not count."""
    config = from_dict(Config, _minimal()).model
    model, rng = Vla(config), np.random.default_rng(0)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    table = np.asarray(params["llm"]["embedder"]["input_embedding"], np.float64)
    tokens = rng.normal(size=(2, 3, 32)).astype(np.float32)
    words = np.array(
        [[[500, 600, -1], [0, -1, -1], [700, -1, -1]], [[-1, -1, -1], [0, -1, -1], [0, -1, -1]]]
    )
    places = np.array([[[20, 40], [-1, -1], [200, 3]], [[-1, -1], [-1, -1], [-1, -1]]])
    ids = np.array([0, 500, 600, 700, 800])

    def log_p(rows: np.ndarray, roll: int) -> np.ndarray:
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (tokens.astype("f8"), rows))
        logits = 20 * a @ np.roll(b, roll, axis=1).T
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    names = log_p(table[ids], 16)
    things = [(names[0, 0, 1] + names[0, 0, 2]) / 2, names[0, 2, 3]]
    nothing = [names[0, 1, 0], names[1, 1, 0], names[1, 2, 0]]
    where = []
    for patch in (0, 2):
        for axis, roll in enumerate((8, 24)):
            target = np.exp(-0.5 * ((np.arange(256) - places[0, patch, axis]) / 3) ** 2)
            integers = log_p(table[slice(*config.decoder.integer_rows)], roll)[0, patch]
            where.append(integers @ (target / target.sum()))
    batch = {"patch_tokens": jnp.asarray(words), "patch_places": jnp.asarray(places)}
    found = alignment_loss(model, params, tokens, batch, ids)
    want = -np.mean(things) - np.mean(nothing) - np.mean(where)
    np.testing.assert_allclose(found.loss, want, rtol=1e-5)
    assert found.thing.tolist() == [[1, 0, 1], [0, 0, 0]]
    np.testing.assert_allclose(found.word_nats[0, [0, 2]], -np.array(things), rtol=1e-5)
    best = names.argmax(-1)
    words[0, 2, 0] = ids[best[0, 2]]
    batch["patch_tokens"] = jnp.asarray(words)
    found = alignment_loss(model, params, tokens, batch, ids)
    assert found.correct[0].tolist() == [best[0, 0] in (1, 2), best[0, 1] == 0, 1]


def test_loss_of_patches_alone_is_the_alignment_loss(data_sets):
    """`answer_loss` with names adds exactly what `patch_label_loss` minimises."""
    run = build_training(make_config(data_sets))
    params = run.fresh_state()["params"]
    batch = dict(next(run.loader(0)))
    plain, _ = run.loss_fn(params, batch)
    rng, ids = np.random.default_rng(0), np.arange(260, 4096)
    batch["patch_tokens"] = rng.integers(260, 4096, (8, 4, 1))
    batch["patch_tokens"][0] = -1
    batch["patch_places"] = rng.integers(0, 256, (8, 4, 2))
    extra, sums = patch_label_loss(
        Vla(run.config.model), params, batch, num_sources=2, name_ids=ids
    )
    both, _ = functools.partial(run.loss_fn, name_ids=ids)(params, batch)
    assert np.isfinite(extra)
    np.testing.assert_allclose(both, plain + extra, rtol=1e-5)
    assert sums["samples"].tolist() == np.bincount(batch["source"], minlength=2).tolist()
    # The first id is the background.
    assert sums["tokens"].sum() == (batch["patch_tokens"] > 260).sum()


@pytest.mark.parametrize(
    ("decay", "want"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("cosine", [0.0, 0.5, 1.0, 0.5, 0.0]),
        ("rsqrt", [0.0, 0.5, 1.0, 0.5**0.5, (1 / 3) ** 0.5]),
    ],
)
def test_schedules(decay, want):
    schedule = make_schedule(OptimizerConfig(2.0, warmup_steps=10, decay=decay), 30)
    got = [float(schedule(s)) / 2 for s in (0, 5, 10, 20, 30)]
    np.testing.assert_allclose(got, want, atol=1e-6)
    with pytest.raises(ValueError, match="warmup_steps 10"):
        make_schedule(OptimizerConfig(2.0, warmup_steps=10), 10)


def test_weight_decay_spares_norms_biases_and_embeddings():
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2), "input_embedding": jnp.ones(2)}}
    optimizer = make_optimizer(OptimizerConfig(1.0, 1, decay="constant", weight_decay=0.1), 9)
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the first update has learning rate 0
        updates, state = optimizer.update(zero, state, params)
    new = optax.apply_updates(params, updates)
    assert new["a"]["kernel"].tolist() == pytest.approx([0.9, 0.9])
    assert new["a"]["bias"].tolist() == new["a"]["input_embedding"].tolist() == [1, 1]


def test_resumed_run_equals_uninterrupted_bitwise(data_sets, tmp_path):
    config = make_config(data_sets, train__augment=AUGMENT, data__image_size=40)
    train(config, str(tmp_path / "whole"))
    two = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train(two, str(tmp_path / "parts"))
    train(config, str(tmp_path / "parts"))
    assert _same(_params(tmp_path / "whole"), _params(tmp_path / "parts"))
    whole, parts = (read_metrics(tmp_path / d) for d in ("whole", "parts"))
    assert [r["loss"] for r in whole] == [r["loss"] for r in parts]
    with Checkpoints(tmp_path / "parts") as checkpoints:
        meta = checkpoints.meta()
    assert (meta.step, meta.next_sample) == (4, 32)
    assert [spec.name for spec in meta.action_specs] == ["test"]


def _losses(config: Config, mesh: MeshConfig, devices, steps: int) -> list[float]:
    run = build_training(dataclasses.replace(config, mesh=MeshConfig(-1)))
    run.mesh = make_mesh(mesh, devices)
    run.shardings = state_shardings(run.abstract, run.mesh)
    state = run.fresh_state()
    step = make_train_step(run.optimizer, run.shardings, run.mesh, run.loss_fn)
    loader, losses = run.loader(0), []
    for _ in range(steps):
        state, metrics = step(state, to_global(next(loader), run.mesh, 8))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1, "the step was compiled again"
    return losses


def test_one_device_equals_eight(data_sets):
    config = make_config(data_sets, train__augment=AUGMENT, data__image_size=40)
    one = _losses(config, MeshConfig(1), jax.devices()[:1], 4)
    assert abs(one[0] - json.loads(GOLDEN.read_text())[0]) > 1e-4  # the images were changed
    for mesh in (MeshConfig(2, 4), MeshConfig(2, 2, 2)):
        np.testing.assert_allclose(_losses(config, mesh, jax.devices(), 4), one, rtol=1e-5)


def test_golden_loss_curve(data_sets):
    """20 steps; a change here changes what every run learns."""
    got = _losses(make_config(data_sets), MeshConfig(1), jax.devices()[:1], 20)
    np.testing.assert_allclose(got, json.loads(GOLDEN.read_text()), rtol=1e-3)
    assert got[-1] < got[0] - 1


def test_nan_loss_stops_the_run_and_keeps_the_checkpoint(data_sets, tmp_path):
    config = make_config(data_sets, optimizer__learning_rate=1e30, optimizer__clip_norm=1e30)
    with pytest.raises(FloatingPointError, match="last checkpoint is intact"):
        train(
            dataclasses.replace(config, train=dataclasses.replace(config.train, steps=9)),
            str(tmp_path),
        )


def test_checkpoint_of_another_config_is_refused(data_sets, tmp_path):
    save_fresh(make_config(data_sets), tmp_path)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: the checkpoint has 0\.003"):
        train(make_config(data_sets, optimizer__learning_rate=1e-3), str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.seed: the checkpoint has 0, this run has 5"):
        train(make_config(data_sets, data__seed=5), str(tmp_path))
    kept = _params(tmp_path)
    assert _same(kept, _params(tmp_path))


def test_start_from_parameters_of_a_run(data_sets, tmp_path):
    train(make_config(data_sets, train__steps=2), str(tmp_path / "a"))
    run = build_training(make_config(data_sets, train__init_from=str(tmp_path / "a")))
    state = run.fresh_state()
    assert _same(state["params"], _params(tmp_path / "a")) and int(state["step"]) == 0
    missing = make_config(data_sets, train__init_from=str(tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match="nor a run directory"):
        build_training(missing).fresh_state()


def test_bad_setups_name_the_thing(data_sets, tmp_path):
    with pytest.raises(ValueError, match="batch_size 9 does not divide over 8 devices"):
        build_training(make_config(data_sets, train__batch_size=9))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_training(make_config((data_sets[0], tmp_path / "nowhere")))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(PermissionError, match="cannot write to --workdir"):
        train(make_config(data_sets), str(blocked / "run"))


def test_subprocess_what_does_not_fit_is_one_line_and_exit_code_2(data_sets, tmp_path):
    config = make_config(data_sets, optimizer__warmup_steps=60)
    program = (
        "import sys; from vla_jax import train; from vla_jax.config import from_json;"
        "config = from_json(open(sys.argv[1]).read(), where='here');"
        "train._train_with_exit_code(config, sys.argv[2], None)"
    )
    (tmp_path / "config.json").write_text(to_json(config))
    command = [sys.executable, "-c", program, str(tmp_path / "config.json"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: optimizer.warmup_steps 60 must be between")
    assert "Traceback" not in done.stderr


def test_metrics_after_resume_hold_each_step_once(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut off by a crash
    with MetricWriter(tmp_path, 2) as writer:
        writer.write(3, {"loss": 30.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_window_tells_the_share_of_cut_answers():
    window = Window(Mixture({"robot": 1, "web": 1}, {"robot": 9, "web": 9}, seed=0), 8)
    for truncated in ([0.0, 3.0], [0.0, 1.0]):
        sums = {"truncated": np.asarray(truncated), "samples": np.asarray([4.0, 4.0])}
        sums |= {key: np.ones(2) for key in ("loss", "correct", "tokens")}
        sums |= {"left_out": np.asarray([0.0, 1.0]), "used": np.asarray([0.5, 0.25])}
        window.add({"loss": 1.0, "grad_norm": 1.0, "by_source": sums})
    scalars = window.scalars(2)
    assert scalars["robot/truncated_share"] == 0 and scalars["web/truncated_share"] == 0.5
    assert scalars["web/left_out_share"] == 0.2 and "robot/left_out_share" not in scalars
    assert scalars["padding_share"] == 0.25


def test_a_run_of_packed_rows_has_the_loss_of_its_samples(data_sets):
    """Rows of 2 as the config asks for them: the batches, the augmentation and the loss."""
    augment = AugmentConfig(crop=0.5, brightness=0.4)
    packed = make_config(data_sets, train__augment=augment)
    data = dataclasses.replace(packed.data, examples_per_row=2, row_tokens=60)
    packed = dataclasses.replace(packed, data=data)
    single = make_config(data_sets, train__batch_size=16, train__augment=augment)
    runs = [build_training(config) for config in (packed, single)]
    batches = [next(run.loader(3)) for run in runs]
    assert batches[0]["tokens"].shape == (8, 60) and batches[1]["tokens"].shape == (16, 40)
    assert batches[0]["images"].shape[:2] == (8, 2) and not batches[0]["left_out"].any()
    params = jax.jit(lambda: init_params(packed.model, jax.random.key(0)))()
    losses = [jax.jit(run.loss_fn)(params, batch) for run, batch in zip(runs, batches)]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    for key in ("loss", "correct", "tokens", "samples"):
        np.testing.assert_allclose(losses[0][1][key], losses[1][1][key], rtol=1e-5)
    assert runs[0].meta(3).next_sample == runs[1].meta(3).next_sample == 48


def test_a_checkpoint_from_before_a_key_has_its_default(data_sets):
    now = build_training(make_config(data_sets)).meta(2)
    train = {k: v for k, v in now.config["train"].items() if k not in ("z_loss", "watch")}
    before = dataclasses.replace(now, config=now.config | {"train": train})
    with pytest.raises(ValueError, match=r"train\.z_loss: the checkpoint has None"):
        require_same_config(before, now, where="there")
    require_same_config(with_defaults(before), now, where="there")
    unknown = dataclasses.replace(now, config=now.config | {"gone": 1})
    with pytest.raises(ValueError, match="gone: the checkpoint has 1"):
        require_same_config(with_defaults(unknown), now, where="there")


def test_a_bucket_is_no_workdir(data_sets):
    with pytest.raises(PermissionError, match="gs://bucket/run: mount the bucket"):
        train(make_config(data_sets), "gs://bucket/run")


def test_what_is_compiled_without_data_is_what_the_loader_gives(data_sets):
    """`abstract_batch` and `abstract_state` have the shapes and dtypes of a real run."""
    config = make_config(data_sets)
    for changes in ({}, {"image_size": 40}, {"examples_per_row": 2, "row_tokens": 70}):
        data = dataclasses.replace(config.data, **changes)
        run = build_training(dataclasses.replace(config, data=data))
        wanted = abstract_batch(run.config, run.mesh)
        batch = next(run.loader(0))
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in wanted.items()
        }
        assert to_global(batch, run.mesh, 8)["images"].sharding == wanted["images"].sharding
    state, wanted = run.fresh_state(), abstract_state(run)
    for real, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert (real.shape, real.dtype) == (abstract.shape, abstract.dtype)
        assert real.sharding == abstract.sharding
