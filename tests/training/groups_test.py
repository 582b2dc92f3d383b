"""Learning rates per part: frozen parts stay bit for bit, others move by their factor."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import init_params
from vla_jax.sharding.mesh import MeshConfig, make_mesh
from vla_jax.sharding.rules import param_shardings
from vla_jax.training.groups import factors, freeze
from vla_jax.training.optimizer import OptimizerConfig, make_optimizer
from vla_jax.training.step import make_init, state_shardings
from vla_jax.tree import flatten

MODEL = ModelConfig("tiny", image_size=28, compute_dtype="float32")
PARAMS = jax.tree.map(np.asarray, jax.jit(lambda: init_params(MODEL, jax.random.key(0)))())
GROUPS = ((r"img/pos_embedding", 1.0), (r"img/.*", 0.0), (r"llm/embedder/.*", 0.25))


def test_first_match_wins():
    found = flatten(factors(PARAMS, GROUPS))
    for name, factor in found.items():
        want = 0.0 if name.startswith("img/") else 0.25 if "embedder" in name else 1.0
        assert factor == (1.0 if name == "img/pos_embedding" else want), name


def test_frozen_parameters_have_no_gradient_and_no_moments():
    def loss(params):
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(freeze(params, GROUPS)))

    grads = flatten(jax.jit(jax.grad(loss))(PARAMS))
    for name, factor in flatten(factors(PARAMS, GROUPS)).items():
        want = np.cos(flatten(PARAMS)[name]) if factor else np.zeros_like(grads[name])
        np.testing.assert_allclose(grads[name], want, atol=1e-6, err_msg=name)
    optimizer = make_optimizer(OptimizerConfig(1e-2, warmup_steps=1, groups=GROUPS), 10)
    state = make_init(MODEL, optimizer, 0)()
    moments = [x for x in jax.tree.leaves(state["opt"]) if x.ndim]
    trained = [x for n, x in flatten(PARAMS).items() if flatten(factors(PARAMS, GROUPS))[n] > 0]
    assert sorted(m.shape for m in moments) == sorted(x.shape for x in 2 * trained)


def test_steps_are_scaled():
    config = OptimizerConfig(1e-2, warmup_steps=1, decay="constant", clip_norm=1e9)
    grads = jax.tree.map(jnp.ones_like, PARAMS)

    def moved(groups):
        optimizer = make_optimizer(OptimizerConfig(**vars(config) | {"groups": groups}), 10)

        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params, state = PARAMS, jax.jit(optimizer.init)(PARAMS)
        for _ in range(3):
            params, state = step(params, state)
        return {k: np.asarray(v) - flatten(PARAMS)[k] for k, v in flatten(params).items()}

    plain, grouped = moved(()), moved(GROUPS)
    for name, factor in flatten(factors(PARAMS, GROUPS)).items():
        np.testing.assert_allclose(grouped[name], factor * plain[name], rtol=1e-4, atol=1e-6)
        assert np.abs(plain[name]).max() > 1e-3


def test_moments_are_placed_like_their_parameters():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    for groups in ((), GROUPS):
        optimizer = make_optimizer(OptimizerConfig(1e-2, warmup_steps=1, groups=groups), 10)
        abstract = jax.eval_shape(make_init(MODEL, optimizer, 0))
        shardings = state_shardings(abstract, mesh)
        wanted = flatten(param_shardings(abstract["params"], mesh))
        placed = 0
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings["opt"]):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            for parameter, want in wanted.items():
                if name.endswith("/" + parameter):
                    assert sharding == want, name
                    placed += 1
        assert placed >= 2 * sum(f > 0 for f in flatten(factors(PARAMS, groups)).values())


def test_expressions_that_match_nothing_are_named():
    with pytest.raises(ValueError, match=r"'llm/layer/\.\*' matches no parameter .* 'llm/layers/"):
        factors(PARAMS, ((r"llm/layer/.*", 0.0),))
    with pytest.raises(ValueError, match="no regular expression"):
        factors(PARAMS, (("(", 0.0),))
