"""Mesh and sharding rules."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vla_jax.models.presets import PRESETS, ModelConfig
from vla_jax.models.vla import init_params
from vla_jax.sharding.mesh import MeshConfig, make_mesh, to_global
from vla_jax.sharding.rules import param_shardings, param_spec


def test_mesh_fills_one_axis():
    assert dict(make_mesh(MeshConfig(-1, 2, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(ValueError, match="8"):
        make_mesh(MeshConfig(3, 1, 1))
    with pytest.raises(ValueError, match="at most one"):
        make_mesh(MeshConfig(-1, -1, 1))


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("llm/embedder/input_embedding", (4096, 128), P("tensor", "fsdp")),
        ("llm/layers/mlp/gating_einsum", (4, 2, 128, 512), P(None, None, "fsdp", "tensor")),
        ("llm/layers/attn/q_einsum/w", (4, 4, 128, 32), P(None, "tensor", "fsdp", None)),
        ("img/stem_0/kernel", (4, 4, 3, 48), P(None, None, None, "fsdp")),
        ("img/Transformer/encoder_norm/scale", (128,), P()),
        ("state/kernel", (7, 128), P(None, "fsdp")),
    ],
)
def test_specs(name, shape, spec):
    assert param_spec(name, shape, make_mesh(MeshConfig(2, 2, 2))) == spec


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_of_every_preset_has_a_rule(preset):
    config = ModelConfig(preset, image_size=PRESETS[preset][0].patch_size * 4)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    mesh = make_mesh(MeshConfig(2, 2, 2))
    shardings = param_shardings(shapes, mesh)
    split = [
        s.num_devices
        // max(1, len({tuple(map(str, i)) for i in s.devices_indices_map(a.shape).values()}))
        for a, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    ]
    assert max(split) == 8 and min(split) == 2  # biases whole; matrices over fsdp and tensor


def test_errors_name_the_parameter():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    with pytest.raises(ValueError, match="no sharding rule for parameter 'llm/layers/new'"):
        param_spec("llm/layers/new", (4,), mesh)
    with pytest.raises(ValueError, match=r"'llm/layers/mlp/linear'.*30 does not divide"):
        param_spec("llm/layers/mlp/linear", (4, 64, 30), mesh)
    with pytest.raises(ValueError, match=r"has shape \(64, 30\)"):
        param_spec("llm/layers/mlp/linear", (64, 30), mesh)


def test_batches_are_split_over_data_and_fsdp():
    rows = np.arange(16).reshape(8, 2)
    array = to_global({"x": rows}, make_mesh(MeshConfig(2, 2, 2)))["x"]
    assert array.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(array, rows)
