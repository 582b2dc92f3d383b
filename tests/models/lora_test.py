"""Adapters: nothing at first, only they learn, merged they are the same model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.models.lora import merge_lora
from vla_jax.models.presets import PRESETS, ModelConfig
from vla_jax.models.vla import Vla, init_params
from vla_jax.training.groups import freeze
from vla_jax.tree import flatten

PLAIN = ModelConfig("tiny", image_size=28, compute_dtype="float32")
CONFIG = dataclasses.replace(PLAIN, lora_rank=3, lora_alpha=6.0)
ONLY_ADAPTERS = ((r".*_lora/[ab]", 1.0), (r".*", 0.0))
RNG = np.random.default_rng(0)
INPUTS = (
    RNG.integers(0, 256, (2, 1, 28, 28, 3), np.uint8),
    RNG.integers(4, 4000, (2, 7)).astype(np.int32),
    np.arange(7) >= np.array([[3], [5]]),
    np.ones((2, 7), bool),
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: init_params(CONFIG, jax.random.key(0)))()


def _run(config, params):
    return jax.jit(lambda p: Vla(config).apply({"params": p}, *INPUTS)[0])(params)


def _trained(params):
    """As if after training: B is not 0."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            RNG.normal(0, 0.3, x.shape).astype(np.float32) if path[-1].key == "b" else x
        ),
        params,
    )


def test_fresh_adapters_change_nothing(params):
    base = {k: v for k, v in flatten(params).items() if "_lora/" not in k}
    plain = jax.jit(lambda: init_params(PLAIN, jax.random.key(0)))()
    assert base.keys() == flatten(plain).keys()
    adapters = {k: v.shape for k, v in flatten(params).items() if k not in base}
    decoder = PRESETS["tiny"][1]
    assert adapters["llm/layers/mlp/down_lora/a"] == (decoder.depth, decoder.mlp_dim, 3)
    assert len(adapters) == 2 * 7
    merged = merge_lora(params, CONFIG)
    np.testing.assert_array_equal(_run(CONFIG, params), _run(PLAIN, merged))


def test_merged_equals_adapted(params):
    trained = _trained(params)
    adapted = _run(CONFIG, trained)
    assert np.abs(adapted - _run(CONFIG, params)).max() > 0.1
    merged = merge_lora(trained, CONFIG)
    assert flatten(merged).keys() == {k for k in flatten(params) if "_lora/" not in k}
    np.testing.assert_allclose(_run(PLAIN, merged), adapted, atol=1e-4)


def test_only_adapters_get_a_gradient(params):
    def loss(params):
        return jnp.sum(
            Vla(CONFIG).apply({"params": freeze(params, ONLY_ADAPTERS)}, *INPUTS)[0] ** 2
        )

    grads = flatten(jax.jit(jax.grad(loss))(_trained(params)))
    for name, grad in grads.items():
        assert bool(np.any(np.asarray(grad))) == ("_lora/" in name), name
