"""Mesh and sharding rules."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vla_jax.models.presets import PRESETS, ModelConfig
from vla_jax.models.vla import init_params
from vla_jax.sharding.mesh import (
    FSDP,
    MeshConfig,
    abstract_mesh,
    batch_sharding,
    local_rows,
    make_mesh,
    to_global,
)
from vla_jax.sharding.rules import param_shardings, param_spec
from vla_jax.tree import flatten

GOLDEN = Path(__file__).parents[1] / "golden/shardings.json"
# (data, fsdp, tensor), and the pod it is for.
MESHES = {
    "v5e:16x16": (1, 256, 1),
    "v5p:8x8x8": (8, 64, 1),
    "2 slices of v5e:16x16, tensor 4": (2, 64, 4),
}
MODELS = ("paligemma_3b", "rt2_palm_e_12b", "rt2_pali_x_55b")


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    slice_index: int
    platform: str = "fake"


@functools.cache
def shapes_of(preset: str):
    config = ModelConfig(preset, image_size=PRESETS[preset][0].patch_size * 16)
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def sizes(mesh) -> tuple[int, ...]:
    return tuple(mesh.shape.values())


def test_mesh_fills_one_axis():
    mesh = make_mesh(MeshConfig(-1, 2, 2))
    assert mesh.axis_names == ("data", *FSDP, "tensor") and sizes(mesh) == (2, 2, 1, 2)
    assert sizes(make_mesh(MeshConfig(1, -1))) == (1, 4, 2, 1)
    with pytest.raises(ValueError, match="but there are 8"):
        make_mesh(MeshConfig(3, 1, 1))
    with pytest.raises(ValueError, match="at most one"):
        make_mesh(MeshConfig(-1, -1, 1))
    with pytest.raises(ValueError, match="at least 1"):
        MeshConfig(dcn_data=0)


def test_slices_are_the_outer_part_of_an_axis():
    devices = [Device(i, i // 4) for i in range(8)]
    ids = np.vectorize(lambda d: d.id)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, dcn_data=2), devices)
    np.testing.assert_array_equal(ids(mesh.devices)[:, :, 0], [[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, dcn_fsdp=2), devices)
    assert sizes(mesh) == (2, 2, 2, 1)
    # data inside a slice; of fsdp's four parts, two in each slice.
    np.testing.assert_array_equal(ids(mesh.devices)[..., 0], [[[0, 1], [4, 5]], [[2, 3], [6, 7]]])
    with pytest.raises(ValueError, match="in 2 slices"):
        make_mesh(MeshConfig(data=8), devices)


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("llm/embedder/input_embedding", (4096, 128), P(("tensor", *FSDP), None)),
        ("llm/layers/mlp/gating_einsum", (4, 2, 128, 512), P(None, None, FSDP, "tensor")),
        ("llm/layers/attn/q_einsum/w", (4, 4, 128, 32), P(None, "tensor", FSDP, None)),
        ("img/stem_0/kernel", (4, 4, 3, 48), P(None, None, None, FSDP)),
        ("img/Transformer/encoder_norm/scale", (128,), P()),
        ("state/kernel", (7, 128), P(None, FSDP)),
        # Where the width does not divide: the largest that does; two; none of a small one.
        ("llm/embedder/input_embedding", (4096, 30), P(("tensor", *FSDP), None)),
        ("llm/layers/mlp/linear", (4, 4, 6), P(None, ("tensor", "fsdp_minor"), "fsdp_major")),
        ("img/head/kernel", (6, 9), P(None, None)),
        ("img/pos_embedding", (1, 16, 6), P(None, None, None)),
    ],
)
def test_specs(name, shape, spec):
    assert param_spec(name, shape, abstract_mesh(2, 4, 2)) == spec


def test_what_no_dimension_of_divides_by_the_pod_is_split_along_two():
    """SigLIP So400m: width 1,152 = 16 x 72, MLP 4,304 = 16 x 269, 16 heads."""
    mesh = abstract_mesh(1, 256, 1)
    block = "img/Transformer/encoderblock"
    specs = {
        f"{block}/MlpBlock_0/Dense_0/kernel": P(None, "fsdp_major", "fsdp_minor"),
        f"{block}/MultiHeadDotProductAttention_0/query/kernel": P(
            None, "fsdp_major", "fsdp_minor", None
        ),
    }
    shapes = flatten(shapes_of("paligemma_3b"))
    for name, spec in specs.items():
        assert param_spec(name, shapes[name].shape, mesh) == spec


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_of_every_preset_has_a_rule(preset):
    shapes = shapes_of(preset)
    shardings = param_shardings(shapes, make_mesh(MeshConfig(2, 2, 2)))
    split = [
        s.num_devices
        // max(1, len({tuple(map(str, i)) for i in s.devices_indices_map(a.shape).values()}))
        for a, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    ]
    assert max(split) == 8 and min(split) == 2  # biases whole; matrices over fsdp and tensor


def spec_strings(preset: str, mesh) -> dict[str, str]:
    shardings = flatten(param_shardings(shapes_of(preset), mesh))
    return {name: str(sharding.spec) for name, sharding in shardings.items()}


@pytest.mark.parametrize("pod", MESHES)
@pytest.mark.parametrize("preset", MODELS)
def test_golden_shardings(preset, pod):
    mesh = abstract_mesh(*MESHES[pod])
    assert spec_strings(preset, mesh) == json.loads(GOLDEN.read_text())[preset][pod]


@pytest.mark.parametrize("pod", MESHES)
@pytest.mark.parametrize("preset", MODELS)
def test_a_device_holds_its_part_of_the_parameters(preset, pod):
    """What is whole everywhere, norms and biases, is small beside the rest."""
    data, fsdp, tensor = MESHES[pod]
    mesh, shapes = abstract_mesh(data, fsdp, tensor), shapes_of(preset)
    held = sum(
        np.prod(s.shard_shape(a.shape))
        for a, s in zip(
            jax.tree.leaves(shapes), jax.tree.leaves(param_shardings(shapes, mesh)), strict=True
        )
    )
    total = sum(a.size for a in jax.tree.leaves(shapes))
    assert 1 <= held / (total / (fsdp * tensor)) < 1.5


def test_errors_name_the_parameter():
    mesh = abstract_mesh(1, 8, 2)
    with pytest.raises(ValueError, match="no sharding rule for parameter 'llm/layers/new'"):
        param_spec("llm/layers/new", (4,), mesh)
    with pytest.raises(ValueError, match=r"'llm/layers/mlp/linear'.*size 8 \(as 4 x 2\)"):
        param_spec("llm/layers/mlp/linear", (4, 1002, 999), mesh)
    with pytest.raises(ValueError, match=r"'llm/layers/mlp/linear'.*999 does not.*'tensor'"):
        param_spec("llm/layers/mlp/linear", (4, 999, 1002), mesh)
    with pytest.raises(ValueError, match=r"has shape \(64, 30\)"):
        param_spec("llm/layers/mlp/linear", (64, 30), mesh)


def test_batches_are_split_over_data_and_fsdp():
    rows = np.arange(16).reshape(8, 2)
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert local_rows(mesh, 8).tolist() == list(range(8))
    array = to_global({"x": rows}, mesh, 8)["x"]
    assert array.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(array, rows)
    with pytest.raises(ValueError, match="batch_size 6 does not divide over 4"):
        local_rows(mesh, 6)


def test_a_process_reads_the_rows_that_its_devices_hold(monkeypatch):
    """Also where they do not stand side by side, and where two processes hold the same ones."""
    rows = np.arange(8) * 10
    mesh = make_mesh(MeshConfig(4, 1, 2))

    def on_devices(*own: int) -> list[int]:
        held = batch_sharding(mesh).devices_indices_map((8,))
        monkeypatch.setattr(
            jax.sharding.NamedSharding,
            "addressable_devices_indices_map",
            lambda self, shape: {d: i for d, i in held.items() if d.id in own},
        )
        return rows[local_rows(mesh, 8)].tolist()

    assert on_devices(0, 1, 4, 5) == [0, 10, 40, 50]
    assert on_devices(2, 4) == [20, 30, 40, 50] and on_devices(3, 5) == [20, 30, 40, 50]
