"""An embedding split by rows gives what a whole one does, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vla_jax.models.decoder import Embedder
from vla_jax.sharding.mesh import BATCH_AXES, MeshConfig, batch_sharding, make_mesh
from vla_jax.sharding.vocabulary import look_up, vocabulary_axes

V, D, B, T = 128, 16, 16, 6
NAME = "llm/embedder/input_embedding"


def results(params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
    """Rows, logits, and the gradient of a function of both."""
    embedder = Embedder(V, D)

    def both(params: dict) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        rows = embedder.apply({"params": params}, tokens, jnp.dtype("float32"), method="encode")
        logits = embedder.apply({"params": params}, rows, None, method="logits")
        loss = jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 3]) + jnp.mean(rows**2)
        return loss, (rows, logits)

    gradient, (rows, logits) = jax.grad(both, has_aux=True)(params)
    return rows, logits, gradient


@pytest.mark.parametrize(
    "mesh", [MeshConfig(2, 4, 1), MeshConfig(1, 8, 1), MeshConfig(2, 2, 2), MeshConfig(1, 2, 4)]
)
def test_split_rows_give_the_same_as_a_whole_table(mesh):
    mesh = make_mesh(mesh)
    rng = np.random.default_rng(0)
    params = {"input_embedding": jnp.asarray(rng.normal(size=(V, D)), jnp.float32)}
    tokens = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    expected = jax.jit(results)(params, tokens)

    def split(params: dict, tokens: jax.Array):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            axes = vocabulary_axes(NAME, (V, D), B * T)
            assert axes
            return results(params, tokens)

    table = NamedSharding(mesh, PartitionSpec(("tensor", *BATCH_AXES[1:])))
    found = jax.jit(split, in_shardings=({"input_embedding": table}, batch_sharding(mesh)))(
        jax.device_put(params, table), tokens
    )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_rows_are_handed_over_without_rounding():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    table = jnp.asarray(np.random.default_rng(1).normal(size=(V, D)), jnp.float32)
    tokens = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T) % V

    def split(table: jax.Array, tokens: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return look_up(
                table, tokens, vocabulary_axes(NAME, (V, D), B * T), jnp.dtype("bfloat16")
            )

    found = jax.jit(split)(table, jax.device_put(tokens, batch_sharding(mesh)))
    np.testing.assert_array_equal(found, table[tokens].astype("bfloat16"))


def test_without_a_mesh_or_with_another_split_nothing_changes():
    assert vocabulary_axes(NAME, (V, D), B * T) == ()
    with jax.sharding.use_abstract_mesh(make_mesh(MeshConfig(8, 1, 1)).abstract_mesh):
        assert vocabulary_axes(NAME, (V, D), B * T) == ()
    # 257,152 rows do not divide over 8 x 32.
    mesh = jax.sharding.AbstractMesh((1, 16, 16, 1), ("data", *BATCH_AXES[1:], "tensor"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert vocabulary_axes(NAME, (257_152, 2048), 100) == ()
        assert vocabulary_axes(NAME, (256_000, 4096), 100) == BATCH_AXES[1:]
        # With more positions than words the table is smaller.
        assert vocabulary_axes(NAME, (256_000, 4096), 256_001) == ()
