"""Adafactor, AdamW and schedules against NumPy; where their moments lie."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vla_jax.models.presets import ModelConfig
from vla_jax.sharding.mesh import FSDP, abstract_mesh
from vla_jax.training.groups import factors
from vla_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from vla_jax.training.step import make_init, state_shardings
from vla_jax.tree import flatten, unflatten
from vla_jax.types import Params

# name -> shape, leading axes that stack matrices, and whether a matrix is factored.
TENSORS = {
    "llm/embedder/input_embedding": ((70, 40), 0, True),
    "llm/layers/mlp/linear": ((34, 48, 40), 1, True),
    "llm/layers/mlp/gating_einsum": ((34, 2, 40, 48), 2, True),
    "llm/layers/attn/kv_einsum/w": ((34, 2, 1, 40, 33), 2, True),
    "llm/layers/attn/q_einsum/w": ((34, 3, 40, 33), 1, True),
    "llm/layers/pre_ffw_norm/scale": ((34, 40), 1, False),
    "img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias": ((35, 48), 1, False),
    "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": ((35, 31, 48), 1, False),
    "img/head/bias": ((40,), 0, False),
}
ADAFACTOR = {"kind": "adafactor", "warmup_steps": 1, "decay": "constant"}


FEW = ("llm/embedder/input_embedding", "llm/layers/mlp/linear", "img/head/bias")


def random_tree(seed: int, deviation: float, names=FEW) -> Params:
    rng = np.random.default_rng(seed)
    return unflatten({k: rng.normal(0, deviation, TENSORS[k][0]).astype(np.float32) for k in names})


def run(config: OptimizerConfig, params: Params, grads: list[Params]) -> tuple[dict, dict, Params]:
    """(name -> how far each parameter went in all, its last update, last state)."""
    optimizer = make_optimizer(config, 9)

    @jax.jit
    def steps(params, grads):
        def step(carry, g):
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            return (optax.apply_updates(params, updates), state), updates

        (end, state), updates = jax.lax.scan(step, (params, optimizer.init(params)), grads)
        last = jax.tree.map(lambda x: x[-1], updates)
        return jax.tree.map(jnp.subtract, end, params), last, state

    moved, updates, state = steps(params, jax.tree.map(lambda *x: np.stack(x), *grads))
    return flatten(moved), flatten(updates), state


def adafactor_step(name, w, g, state, step, *, rate, b1, scaled):
    """Algorithms 4 and 5 of arXiv 1804.04235 on one matrix, float64; of step 1, 2, ..."""
    _, _, factored = TENSORS[name]
    decay, square = 1 - step**-0.8, g**2 + 1e-30
    if factored:
        rows, columns = (np.moveaxis(square, a, -1).mean(-1) for a in (-1, -2))
        # Of heads, each has its own.
        state["r"] = decay * state.get("r", 0) + (1 - decay) * rows
        state["c"] = decay * state.get("c", 0) + (1 - decay) * columns
        outer = state["r"][..., :, None] * state["c"][..., None, :]
        v = outer / state["r"].mean(-1)[..., None, None]
    else:
        v = state["v"] = decay * state.get("v", 0) + (1 - decay) * square
    update = g / np.sqrt(v)
    update /= max(1.0, np.sqrt((update**2).mean()))
    if b1:
        update = state["m"] = b1 * state.get("m", 0) + (1 - b1) * update
    size = max(1e-3, np.sqrt((w**2).mean())) if scaled and not name.endswith("scale") else 1.0
    return w - rate * size * update


@pytest.mark.parametrize(("b1", "scaled"), [(0.0, True), (0.9, False)])
def test_adafactor_equals_numpy(b1, scaled):
    """Matrices of a stack one by one, though there are more layers than the least to factor."""
    config = OptimizerConfig(1e-2, **ADAFACTOR, b1=b1, parameter_scaling=scaled, clip_norm=30.0)
    params = random_tree(0, 0.1, TENSORS)
    grads = [random_tree(step, 0.01 * 3**step, TENSORS) for step in (1, 2, 3)]
    moved, _, _ = run(config, params, grads)
    wanted = {k: v.astype(np.float64) for k, v in flatten(params).items()}
    kept: dict = {}
    for step, gradients in enumerate(map(flatten, grads), start=1):
        norm = np.sqrt(sum((g.astype("f8") ** 2).sum() for g in gradients.values()))
        assert (norm > 30) == (step > 1)
        for name, g in gradients.items():
            shape, stacked, _ = TENSORS[name]
            g = g.astype(np.float64) * min(1.0, 30 / norm)
            for index in np.ndindex(shape[:stacked]):
                wanted[name][index] = adafactor_step(
                    name, wanted[name][index], g[index], kept.setdefault((name, index), {}), step,
                    rate=0.0 if step == 1 else 1e-2, b1=b1, scaled=scaled,
                )  # fmt: skip
    for name, start in flatten(params).items():
        want = wanted[name] - start
        assert np.abs(want).max() > 1e-5
        np.testing.assert_allclose(moved[name], want, rtol=2e-3, atol=1e-7, err_msg=name)


def test_adafactor_keeps_a_few_numbers_for_a_matrix_and_they_are_split_as_it_is():
    config = OptimizerConfig(1e-3, 1, "adafactor", b1=0.0)
    init = make_init(ModelConfig("paligemma_3b"), make_optimizer(config, 10), 0)
    abstract = jax.eval_shape(init)
    shardings = state_shardings(abstract, abstract_mesh(1, 64, 4))
    size, factored, held, specs = 0, 0, 0, {}
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(abstract["opt"]),
        jax.tree.leaves(shardings["opt"]),
        strict=True,
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        specs[name[name.find("llm") :]] = leaf.shape, sharding.spec
        size += leaf.size
        if name.endswith(("v_row", "v_col")):
            factored += leaf.size
            held += np.prod(sharding.shard_shape(leaf.shape), initial=1)
    total = sum(x.size for x in jax.tree.leaves(abstract["params"]))
    assert size / total < 0.004
    assert factored > size / 2 and held < factored / 8
    assert specs["llm/embedder/input_embedding/0/v_row"] == ((2048,), P(FSDP))
    assert specs["llm/embedder/input_embedding/0/v_col"] == ((257_152,), P("tensor"))
    assert specs["llm/layers/mlp/linear/0/v_row"] == ((18, 2048), P(None, FSDP))
    assert specs["llm/layers/mlp/linear/0/v_col"] == ((18, 16_384), P(None, "tensor"))
    gating = "llm/layers/mlp/gating_einsum/0"
    assert specs[f"{gating}/v_row"] == ((18, 2, 2048), P(None, None, FSDP))
    assert specs["llm/layers/attn/q_einsum/w/0/v_row"] == ((18, 8, 256), P(None, "tensor", None))
    assert specs["llm/layers/attn/q_einsum/w/0/v_col"] == ((18, 8, 2048), P(None, "tensor", FSDP))


def test_rows_and_columns_of_a_square_matrix_are_told_apart():
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    params = {"img": {"head": {"kernel": shape}}}
    optimizer = make_optimizer(OptimizerConfig(1e-3, 1, "adafactor"), 10)
    abstract = {"params": params, "opt": jax.eval_shape(optimizer.init, params)}
    placed = state_shardings(abstract, abstract_mesh(1, 4, 1))["opt"]
    found = {
        path[-1].name: sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(placed)
        if isinstance(path[-1], jax.tree_util.GetAttrKey)
    }
    assert found["v_row"] == P(FSDP) and found["v_col"] == P(None)
    assert found["ema"] == P(FSDP, None)


def test_groups_hold_for_adafactor():
    groups = ((r"llm/layers/mlp/.*", 0.0), (r"llm/embedder/.*", 0.25))
    params, grads = random_tree(0, 0.1), [random_tree(1, 1.0)] * 2
    plain, _, whole = run(OptimizerConfig(1e-2, **ADAFACTOR), params, grads)
    grouped, _, less = run(OptimizerConfig(1e-2, **ADAFACTOR, groups=groups), params, grads)
    for name, factor in flatten(factors(params, groups)).items():
        np.testing.assert_allclose(grouped[name], factor * plain[name], rtol=1e-4, atol=1e-7)
        assert np.abs(plain[name]).max() > 1e-4
    momentum = np.prod(TENSORS["llm/layers/mlp/linear"][0])
    saved = sum(x.size for x in jax.tree.leaves(whole)) - sum(x.size for x in jax.tree.leaves(less))
    assert saved > momentum


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_momentum_in_bfloat16_is_the_same_to_its_precision(kind):
    params, grads = random_tree(0, 0.1), [random_tree(seed, 1.0) for seed in range(3)]
    config = OptimizerConfig(1e-2, 1, kind, "constant")
    exact, _, whole = run(config, params, grads)
    found, _, halved = run(dataclasses.replace(config, momentum_dtype="bfloat16"), params, grads)
    size = np.prod(TENSORS["llm/layers/mlp/linear"][0])
    before, after = (
        [(x.dtype.name, x.size) for x in jax.tree.leaves(state) if x.ndim]
        for state in (whole, halved)
    )
    assert ("bfloat16", size) in after and ("bfloat16", size) not in before
    assert any(dtype == "float32" for dtype, _ in after)  # second moments stay
    for name, value in exact.items():
        spread = 2**-7 * np.abs(value).max()
        np.testing.assert_allclose(found[name], value, atol=spread, err_msg=name)
        assert not np.array_equal(found[name], value)


def test_adafactor_decays_matrices_by_the_rate():
    config = OptimizerConfig(0.5, **ADAFACTOR, weight_decay=0.1)
    params = random_tree(0, 0.1)
    zero = jax.tree.map(np.zeros_like, params)
    _, updates, _ = run(config, params, [zero, zero])  # the first has learning rate 0
    for name, update in updates.items():
        spared = name.endswith(("bias", "scale", "input_embedding"))
        want = 0 if spared else -0.05 * flatten(params)[name]
        np.testing.assert_allclose(update, np.broadcast_to(want, update.shape), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        # PaLM: 1e-2 for 10,000 steps, then 1 / sqrt(step).
        (
            {"learning_rate": 1e-2, "warmup_steps": 1, "constant_steps": 10_000, "decay": "rsqrt"},
            {1: 1e-2, 10_000: 1e-2, 40_000: 40_000**-0.5, 90_000: 90_000**-0.5},
        ),
        # T5X's rsqrt_normalized_decay: min(step / 1000, 1) * sqrt(1000 / max(step, 1000)).
        (
            {"learning_rate": 1e-3, "warmup_steps": 1000, "decay": "rsqrt"},
            {0: 0, 250: 2.5e-4, 1000: 1e-3, 4000: 5e-4, 80_000: 1e-3 * 80**-0.5},
        ),
        # Warm-up, plateau, half a period of a cosine over what is left.
        (
            {"learning_rate": 2.0, "warmup_steps": 10_000, "constant_steps": 20_000},
            {5000: 1, 10_000: 2, 20_000: 2, 60_000: 1, 100_000: 0},
        ),
        (
            {"learning_rate": 2.0, "warmup_steps": 10, "constant_steps": 5, "decay": "constant"},
            {5: 1, 10: 2, 99_999: 2},
        ),
    ],
)
def test_schedules_with_a_constant_part(settings, want):
    schedule = make_schedule(OptimizerConfig(**settings), 100_000)
    for step, rate in want.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-9)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.constant_steps 10 must be between 0 and"):
        make_schedule(OptimizerConfig(1.0, 1, constant_steps=10), 10)
    with pytest.raises(ValueError, match=r"optimizer\.constant_steps -1"):
        make_schedule(OptimizerConfig(1.0, 1, constant_steps=-1), 10)
    with pytest.raises(ValueError, match=r"optimizer\.b1 must be in \[0, 1\), got 1\.0"):
        OptimizerConfig(1.0, 1, b1=1.0)
