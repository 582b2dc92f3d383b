"""The update: micro-batches, what the loss adds, means of parameters, bfloat16, memory."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from numpy.random import default_rng

from tests.training.training_test import make_config
from vla_jax.build import build_training, load_policy
from vla_jax.checkpoints.manager import Checkpoints
from vla_jax.models.presets import PRESETS, DecoderConfig, ModelConfig, VitConfig
from vla_jax.models.vla import Vla, init_params, run_model
from vla_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh, to_global
from vla_jax.training.config import TrainConfig
from vla_jax.training.losses import answer_logits, answer_loss, source_of_tokens
from vla_jax.training.optimizer import OptimizerConfig
from vla_jax.training.step import (
    _split,
    make_source_gradient_norms,
    make_train_step,
    new_state,
    round_at_random,
    state_shardings,
)
from vla_jax.tree import flatten

MODEL = ModelConfig("tiny", image_size=28, compute_dtype="float32")
ROWS, LENGTH, ANSWER, SOURCES = 32, 12, 5, 3


@pytest.fixture(scope="module")
def params():
    shapes, rng = jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0))), default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)


def make_batch(rows: int = ROWS, length: int = LENGTH, vocabulary: int = 4096):
    """Rows of 0 to 5 loss tokens, by turns of four: a quarter of the rows has none."""
    rng = default_rng(0)
    column, number = np.arange(length), np.arange(rows)
    answers = np.where(number % 4 == 3, 0, 1 + number % 5)[:, None]
    in_loss = (column >= length - answers) & (column > 0)
    return {
        "images": rng.integers(0, 256, (rows, 1, 28, 28, 3), np.uint8),
        "tokens": rng.integers(3, vocabulary, (rows, length)).astype(np.int32),
        "attend_causal": in_loss,
        "in_loss": in_loss,
        "valid": np.ones((rows, length), bool),
        "source": (number * 7 // 4 % SOURCES).astype(np.int32),
    }


def loss_of(model: ModelConfig, **options):
    return functools.partial(
        answer_loss, Vla(model), max_answer_tokens=ANSWER, num_sources=SOURCES, **options
    )


def placed(batch, mesh):
    return jax.device_put(batch, batch_sharding(mesh))


def make_step(params, optimizer, mesh, loss_fn, **options):
    """(step, state)."""
    ema = options.get("ema_decay", 0.0) > 0
    dtype = options.pop("params_dtype", "float32")
    state = new_state(jax.tree.map(jnp.array, params), optimizer, params_dtype=dtype, ema=ema)
    shardings = state_shardings(jax.eval_shape(lambda: state), mesh)
    step = make_train_step(optimizer, shardings, mesh, loss_fn, **options)
    # Copies, as the step takes its state's memory.
    copies = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), state, shardings)
    return step, copies


@pytest.fixture(scope="module")
def parts(params):
    """Of each source: its tokens' share of the mean loss, and that share's gradient."""
    batch = make_batch()

    @jax.jit
    @jax.value_and_grad
    def part(params, number):
        logits, _, target, in_loss, _ = answer_logits(Vla(MODEL), params, batch, ANSWER)
        own = in_loss & (batch["source"] == number)[:, None]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
        return -jnp.sum(chosen[..., 0] * own) / jnp.sum(in_loss)

    return [jax.device_get(part(params, number)) for number in range(SOURCES)]


def test_micro_batches_make_one_big_step(params, parts):
    """Also where parts have other numbers of loss tokens, or none, and on eight devices."""
    mesh = make_mesh(MeshConfig(2, 4))
    step, state = make_step(params, optax.sgd(1.0), mesh, loss_of(MODEL), micro_batches=4)
    batch = make_batch()
    tokens = batch["in_loss"].reshape(-1, 4, LENGTH).sum((0, 2))
    assert len(set(tokens.tolist())) == 4 and tokens.min() == 0
    compiled = step.lower(state, placed(batch, mesh)).compile()
    assert not collectives_of_images(compiled.as_text())
    new, metrics = compiled(state, placed(batch, mesh))
    grads = jax.tree.map(lambda *x: sum(x), *[grads for _, grads in parts])
    for name, grad in flatten(grads).items():
        found = flatten(params)[name] - np.asarray(flatten(new["params"])[name])
        scale = np.abs(grad).max()
        np.testing.assert_allclose(found, grad, atol=1e-6 * scale + 1e-7, err_msg=name)
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 0.05
    norm = np.sqrt(sum((g.astype("f8") ** 2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    losses, total = np.asarray([loss for loss, _ in parts]), batch["in_loss"].sum()
    np.testing.assert_allclose(metrics["loss"], losses.sum(), rtol=1e-6)
    sums = metrics["by_source"]
    np.testing.assert_allclose(sums["loss"], losses * total, rtol=1e-5)
    counts = np.bincount(batch["source"], batch["in_loss"].sum(1))
    np.testing.assert_array_equal(sums["tokens"], counts)
    np.testing.assert_array_equal(sums["samples"], np.bincount(batch["source"]))
    np.testing.assert_allclose(sums["used"], np.bincount(batch["source"]) / ROWS, rtol=1e-6)


def collectives_of_images(text: str) -> list[str]:
    """Lines of compiled HLO in which devices exchange pictures, or any bytes."""
    exchange = re.compile(r"(all-to-all|all-gather|all-reduce|reduce-scatter|permute)(-start)?\(")
    pictures = re.compile(r"u8\[|,28,28,3\]")
    assert pictures.search(text)
    return [x for x in text.splitlines() if exchange.search(x) and pictures.search(x)]


def test_images_stay_on_their_device():
    mesh = make_mesh(MeshConfig(4, 2))
    images = jax.ShapeDtypeStruct((32, 1, 28, 28, 3), jnp.uint8, sharding=batch_sharding(mesh))
    spread = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))

    def contiguous(x):
        return jax.lax.with_sharding_constraint(x.reshape(4, 8, *x.shape[1:]), spread)

    def text(split) -> str:
        return jax.jit(split, out_shardings=spread).lower(images).compile().as_text()

    assert collectives_of_images(text(contiguous))
    assert not collectives_of_images(text(lambda x: _split({"x": x}, mesh, 4)["x"]))
    x = np.arange(32)
    split = jax.jit(lambda x: _split({"x": x}, mesh, 4)["x"])(placed(x, mesh))
    assert sorted(np.asarray(split).ravel()) == x.tolist() and split.shape == (4, 8)
    for shard in split.addressable_shards:
        held = {s.device: s.data for s in placed(x, mesh).addressable_shards}[shard.device]
        assert sorted(np.asarray(shard.data).ravel()) == np.asarray(held).tolist()


def test_batches_that_do_not_divide_are_refused(params, data_sets):
    mesh = make_mesh(MeshConfig(8))
    step, state = make_step(params, optax.sgd(1.0), mesh, loss_of(MODEL), micro_batches=3)
    with pytest.raises(ValueError, match=r"batch_size 32 does not divide .* 3 times 8 devices"):
        step(state, placed(make_batch(), mesh))
    with pytest.raises(ValueError, match=r"batch_size 8 does not divide into train\.micro_b"):
        TrainConfig(1, 8, micro_batches=3)
    with pytest.raises(
        ValueError, match=r"over 8 devices \(mesh .*\) times train\.micro_batches 2"
    ):
        build_training(make_config(data_sets, train__micro_batches=2))
    for key, value in (("label_smoothing", 1.0), ("ema_decay", -0.1), ("z_loss", -1e-4)):
        with pytest.raises(ValueError, match=f"train.{key} must be"):
            TrainConfig(1, 8, **{key: value})


def largest_array(text: str) -> int:
    return max(
        math.prod(map(int, dims.split(","))) for dims in re.findall(r"[a-z]\d+\[([\d,]+)\]", text)
    )


def test_no_array_has_logits_of_every_position(monkeypatch):
    """B, T and V that occur nowhere else; K of T positions have logits."""
    vocabulary, rows, length = 4099, 7, 37
    decoder = DecoderConfig(32, 1, 64, 2, 1, 16, vocabulary)
    monkeypatch.setitem(PRESETS, "odd", (VitConfig(32, 1, 64, 2, 14), decoder))
    model = dataclasses.replace(MODEL, preset="odd")
    batch = make_batch(rows, length, vocabulary)
    mesh = make_mesh(MeshConfig(1), jax.devices()[:1])
    optimizer = optax.sgd(1.0)

    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    state = jax.eval_shape(lambda p: new_state(p, optimizer), params)
    loss_fn = loss_of(model, label_smoothing=0.1, z_loss=1e-4)
    step = make_train_step(optimizer, state_shardings(state, mesh), mesh, loss_fn)

    def of_all(params):
        hidden = jnp.ones((rows, length, 32))
        return jnp.mean(run_model(Vla(model), params, hidden, method="logits"))

    texts = [
        f.compile().as_text()
        for f in (step.lower(state, batch), jax.jit(jax.grad(of_all)).lower(params))
    ]
    # The logits of loss positions are the largest of all, and far smaller than [B, T, V].
    assert largest_array(texts[0]) == rows * ANSWER * vocabulary
    assert largest_array(texts[1]) == rows * length * vocabulary


def test_label_smoothing_and_z_loss_equal_numpy(params):
    """With one-hot targets, and with those that are soft over integers."""
    smoothing, z = 0.1, 1e-2
    batch = {**make_batch(8), "tokens": np.arange(96).reshape(8, 12).astype(np.int32) * 5 % 400}
    first, last = MODEL.decoder.integer_rows

    @jax.jit
    def losses(params):
        added = {"label_smoothing": smoothing, "z_loss": z}
        return answer_logits(Vla(MODEL), params, batch, ANSWER), [
            (
                loss_of(MODEL, integer_smoothing=integers)(params, batch),
                loss_of(MODEL, integer_smoothing=integers, **added)(params, batch),
            )
            for integers in (0.0, 2.0)
        ]

    found, both = jax.device_get(losses(params))
    logits = found.logits.astype(np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    for integers, ((plain, sums), (loss, same)) in zip((0.0, 2.0), both, strict=True):
        want = []
        for b, k in np.argwhere(found.in_loss):
            token, target = found.target[b, k], np.zeros(4096)
            if integers and first <= token < last:
                near = np.exp(-0.5 * ((np.arange(first, last) - token) / integers) ** 2)
                target[first:last] = near / near.sum()
            else:
                target[token] = 1
            target = (1 - smoothing) * target + smoothing / 4096
            want.append(log_z[b, k] - target @ logits[b, k] + z * log_z[b, k] ** 2)
        np.testing.assert_allclose(loss, np.mean(want), rtol=1e-5)
        assert abs(loss - plain) > 0.1
        for key in sums:
            np.testing.assert_array_equal(same[key], sums[key])


TOY = {"img": {"head": {"bias": np.arange(8, dtype=np.float32) / 8 + 1}}}
ONE = np.ones((8, 1), np.float32)


def toy_loss(params, batch):
    """Gradient 1 everywhere."""
    value = jnp.sum(params["img"]["head"]["bias"].astype(jnp.float32)) * jnp.mean(batch["x"])
    return value, {"tokens": jnp.sum(batch["x"])[None]}


def test_running_mean_of_parameters_in_closed_form():
    """Parameters fall by 0.5 a step: after n steps the mean is p0 - 0.5 (n - (d - d^(n+1)) / (1 -
    d))."""
    mesh, decay, steps = make_mesh(MeshConfig(8)), 0.75, 5
    step, state = make_step(TOY, optax.sgd(0.5), mesh, toy_loss, ema_decay=decay)
    assert state["ema"]["img"]["head"]["bias"].sharding.is_fully_replicated
    for _ in range(steps):
        state, _ = step(state, placed({"x": ONE}, mesh))
    start = TOY["img"]["head"]["bias"]
    np.testing.assert_allclose(state["params"]["img"]["head"]["bias"], start - 0.5 * steps)
    lag = (decay - decay ** (steps + 1)) / (1 - decay)
    want = start - 0.5 * (steps - lag)
    np.testing.assert_allclose(state["ema"]["img"]["head"]["bias"], want, rtol=1e-6)


def test_rounding_at_random_keeps_the_expectation():
    spacing, count = 2.0**-7, 40_000  # of bfloat16 from 1 to 2
    x = jnp.concatenate([jnp.full(count, 1 + 0.3 * spacing), jnp.full(count, -1 - 0.9 * spacing)])
    found = np.asarray(round_at_random(x, jax.random.key(0)), np.float64).reshape(2, count)
    assert set(found[0]) == {1, 1 + spacing} and set(found[1]) == {-1, -1 - spacing}
    # 4 standard deviations of a mean of coin flips.
    np.testing.assert_allclose(found.mean(1), np.asarray(x)[[0, -1]], atol=4 * 0.5 * spacing / 200)
    exact = np.asarray([0, -0.0, 1.5, -3e38, np.inf, -np.inf, np.nan], jnp.bfloat16)
    for seed in range(20):
        same = round_at_random(jnp.asarray(exact, jnp.float32), jax.random.key(seed))
        np.testing.assert_array_equal(np.asarray(same).view(np.uint16), exact.view(np.uint16))


def test_bfloat16_parameters_take_steps_smaller_than_their_spacing():
    """200 steps of a sixteenth of the spacing; to nearest, none would be taken."""
    mesh, spacing = make_mesh(MeshConfig(1), jax.devices()[:1]), 2.0**-7
    start = {"img": {"head": {"bias": np.full(4000, 1.5, np.float32)}}}
    options = {"params_dtype": "bfloat16", "ema_decay": 0.5}
    optimizer = optax.chain(optax.trace(0.0), optax.sgd(spacing / 16))
    step, state = make_step(start, optimizer, mesh, toy_loss, **options)
    for leaf in jax.tree.leaves((state["opt"], state["ema"])):
        assert leaf.dtype == jnp.float32
    for _ in range(40):
        state, _ = step(state, placed({"x": ONE}, mesh))
    found = state["params"]["img"]["head"]["bias"]
    assert found.dtype == jnp.bfloat16 and len(set(np.asarray(found, np.float32))) > 3
    want, deviation = 1.5 - 40 / 16 * spacing, spacing * (40 / 16 * 15 / 16) ** 0.5
    mean = np.asarray(found, np.float64).mean()
    assert abs(mean - want) < 4 * deviation / 4000**0.5
    assert abs(np.asarray(state["ema"]["img"]["head"]["bias"]).mean() - mean) < spacing / 8


def test_norms_of_the_gradient_s_parts():
    """Each is that of the source's own tokens; a source without any has 0."""
    mesh, batch = make_mesh(MeshConfig(2, 4)), make_batch()

    def loss_fn(params, batch):
        """A token's loss is its number times the bias: its gradient is that number."""
        sums = jnp.zeros(SOURCES + 1).at[batch["source"]].add(jnp.sum(batch["in_loss"], axis=1))
        size = jnp.sum(batch["tokens"] * batch["in_loss"]) / jnp.maximum(jnp.sum(sums), 1)
        return size * jnp.sum(params["img"]["head"]["bias"]), {"tokens": sums, "used": sums}

    optimizer = optax.sgd(1.0)
    shardings = state_shardings(jax.eval_shape(lambda: new_state(TOY, optimizer)), mesh)
    norms = make_source_gradient_norms(shardings, mesh, loss_fn, SOURCES + 1, micro_batches=4)
    found = norms(jax.device_put(TOY, shardings["params"]), placed(batch, mesh))
    of_rows = (batch["tokens"] * batch["in_loss"]).sum(1) / batch["in_loss"].sum()
    want = np.bincount(batch["source"], of_rows, minlength=SOURCES + 1) * 8**0.5
    assert len(set(want.tolist())) == SOURCES + 1 and want[-1] == 0
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_tokens_of_packed_rows_have_their_example_s_source():
    segment = np.asarray([[1, 1, 2, 2, 0], [1, 2, 2, 2, 2]])
    batch = {"tokens": segment, "segment": segment, "source": np.asarray([[2, 0], [1, 2]])}
    found = np.asarray(source_of_tokens(jax.tree.map(jnp.asarray, batch)))
    assert found[segment > 0].tolist() == [2, 2, 0, 0, 1, 2, 2, 2, 2]


def test_a_run_with_everything_on_resumes_bitwise_and_is_judged_by_its_mean(data_sets, tmp_path):
    config = make_config(
        data_sets,
        train__batch_size=16,
        train__micro_batches=2,
        train__ema_decay=0.5,
        train__label_smoothing=0.1,
        train__z_loss=1e-4,
    )
    optimizer = OptimizerConfig(1e-2, 1, "adafactor", "rsqrt", constant_steps=2)
    run = build_training(dataclasses.replace(config, optimizer=optimizer))
    step, state, loader = run.make_step(run.loss_fn), run.fresh_state(), run.loader(0)
    batches = [to_global(next(loader), run.mesh, 16) for _ in range(3)]
    loader.close()
    for batch in batches[:2]:
        state, _ = step(state, batch)
    with Checkpoints(tmp_path / "mean") as checkpoints:
        checkpoints.save(state, run.meta(2))
    mean, params = (jax.device_get(flatten(state[key])) for key in ("ema", "params"))
    assert max(np.abs(mean[k] - params[k]).max() for k in mean) > 1e-4
    whole, _ = step(state, batches[2])
    with Checkpoints(tmp_path / "mean") as checkpoints:
        restored = run.restored_state(checkpoints)
    resumed, _ = step(restored, batches[2])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    used = flatten(load_policy(tmp_path / "mean", batch_size=1)[0].params)
    for name, value in mean.items():
        np.testing.assert_array_equal(used[name], value)
    # Others start from the mean: one that keeps a mean, one with parameters in bfloat16.
    start = {"train__init_from": str(tmp_path / "mean")}
    began = build_training(make_config(data_sets, **start, train__ema_decay=0.9)).fresh_state()
    for name, value in mean.items():
        leaves = [flatten(began[key])[name] for key in ("params", "ema")]
        np.testing.assert_array_equal(leaves[0], value)
        np.testing.assert_array_equal(leaves[1], value)
        # Or a step could not take the memory of both.
        at = {x.addressable_shards[0].data.unsafe_buffer_pointer() for x in leaves}
        assert len(at) == 2
    half = build_training(make_config(data_sets, **start, train__params_dtype="bfloat16"))
    began = half.fresh_state()
    with Checkpoints(tmp_path / "half") as checkpoints:
        checkpoints.save(began, half.meta(0))
    used = flatten(load_policy(tmp_path / "half", batch_size=1)[0].params)
    for name, value in mean.items():
        rounded = value.astype(jnp.bfloat16)
        assert flatten(began["params"])[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(flatten(began["params"])[name], rounded)
        np.testing.assert_array_equal(used[name], rounded.astype(np.float32))
