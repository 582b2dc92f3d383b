"""Fused attention against plain XLA: values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.models.attention import attend, prefix_lm_mask
from vla_jax.models.presets import ModelConfig
from vla_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh

RNG = np.random.default_rng(0)
Q = RNG.normal(size=(2, 150, 4, 64)).astype(np.float32)
K, V = RNG.normal(size=(2, 2, 150, 2, 64)).astype(np.float32)
POSITION = np.arange(150)
VALID = np.array([[150], [97]]) > POSITION
CAUSAL = np.array([[90], [40]]) <= POSITION


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_splash_equals_xla(softcap):
    """Interpreted here, compiled on a TPU. Rows of padding are not compared."""
    mask = prefix_lm_mask(jnp.asarray(VALID), jnp.asarray(CAUSAL))

    def total(backend):
        def loss(q, k, v):
            y = attend(q, k, v, mask, scale=0.2, softcap=softcap, backend=backend)
            return jnp.sum(jnp.where(VALID[..., None, None], jnp.sin(y), 0.0)), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(Q, K, V)

    (_, want), want_grads = total("xla")
    (_, got), got_grads = total("splash")
    np.testing.assert_allclose(got[VALID], want[VALID], atol=2e-5)
    for a, b in zip(got_grads, want_grads):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_splash_on_several_devices_keeps_rows_apart():
    """Each device has its rows; nothing is gathered."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rows = batch_sharding(mesh)
    arrays = [np.tile(x[:, :40], (2, 1, 1, 1)) for x in (Q, K, V)]

    def attended(q, k, v):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attend(q, k, v, None, backend="splash")

    step = jax.jit(attended, in_shardings=rows, out_shardings=rows)
    np.testing.assert_allclose(step(*arrays), attend(*arrays, None), atol=2e-5)
    assert "all-gather" not in step.lower(*arrays).compile().as_text()


def test_what_cudnn_cannot_do_is_said():
    with pytest.raises(ValueError, match=r"'cudnn' needs model\.compute_dtype 'bfloat16'"):
        ModelConfig("tiny", image_size=28, compute_dtype="float32", attention="cudnn")
    with pytest.raises(ValueError, match="'cudnn' cannot soft-cap as preset 'paligemma2_3b'"):
        ModelConfig("paligemma2_3b", attention="cudnn")
