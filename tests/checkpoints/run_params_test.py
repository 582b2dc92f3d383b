"""Starting from another run: what has the same shape stays bit for bit, the rest as is told."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.checkpoints.manager import CheckpointMeta, Checkpoints, Retention
from vla_jax.checkpoints.run_params import load_run_params
from vla_jax.checkpoints.surgery import (
    POSITIONS,
    TABLE,
    Change,
    extend_vocabulary,
    resize_positions,
)
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import init_params
from vla_jax.sharding.mesh import MeshConfig, make_mesh
from vla_jax.sharding.rules import param_shardings
from vla_jax.tree import flatten, unflatten

TINY = ModelConfig("tiny", image_size=28, compute_dtype="float32")
LORA = dataclasses.replace(TINY, lora_rank=2)


def _init(config: ModelConfig, seed: int, **replaced):
    def init():
        params = flatten(init_params(config, jax.random.key(seed)))
        return unflatten({k: replaced.get(k, x) for k, x in params.items()})

    return init


def _save(workdir, params) -> dict[str, np.ndarray]:
    with Checkpoints(workdir, Retention()) as checkpoints:
        state = {"step": jnp.int32(3), "params": params, "opt": {"m": jnp.ones(3)}}
        checkpoints.save(state, CheckpointMeta(3, 24, {}, (), "digest"))
    return {name: np.asarray(x) for name, x in flatten(params).items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run directory of a model without LoRA, its parameters by name)."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, _save(workdir, jax.jit(_init(TINY, 0))())


def _load(workdir, init, mesh=None):
    mesh = mesh or make_mesh(MeshConfig(1), jax.devices()[:1])
    shardings = param_shardings(jax.eval_shape(init), mesh)
    params, changes = load_run_params(workdir, init, shardings)
    found = flatten(params)
    assert {k: x.sharding for k, x in found.items()} == flatten(shardings)
    changed = {c.name: c for c in changes if c.status != "loaded"}
    assert len({c.name for c in changes}) == len(changes) >= len(found)
    return found, changed


def test_the_same_model_is_loaded_bit_for_bit(run):
    found, changed = _load(run[0], _init(TINY, 1), make_mesh(MeshConfig(1, 4, 2)))
    assert not changed and all(np.array_equal(found[k], x) for k, x in run[1].items())


def test_other_image_size_and_a_larger_vocabulary(run):
    workdir, old = run
    rows, width = old[TABLE].shape
    larger = jax.ShapeDtypeStruct((rows + 128, width), jnp.float32)
    init = _init(dataclasses.replace(TINY, image_size=56), 1, **{TABLE: jnp.zeros(larger.shape)})
    found, changed = _load(workdir, init, make_mesh(MeshConfig(1, 8)))
    assert np.array_equal(found[TABLE], extend_vocabulary(old[TABLE], rows + 128))
    assert np.array_equal(found[POSITIONS], resize_positions(old[POSITIONS], 16))
    same = old.keys() - {TABLE, POSITIONS}
    assert all(np.array_equal(found[k], old[k]) for k in same) and len(same) > 20
    note = f"({rows}, {width}) -> ({rows + 128}, {width})"
    assert changed.keys() == {TABLE, POSITIONS} and changed[TABLE] == Change(TABLE, "resized", note)


def test_lora_is_added_but_never_dropped(run, tmp_path):
    found, changed = _load(run[0], _init(LORA, 1))
    assert all(np.array_equal(found[k], x) for k, x in run[1].items())
    fresh = flatten(jax.jit(_init(LORA, 1))())
    adapters = {k for k in fresh if "_lora/" in k}
    assert adapters == changed.keys() == found.keys() - run[1].keys()
    assert all(changed[k].status == "fresh" for k in adapters)
    assert all(np.array_equal(found[k], fresh[k]) for k in adapters)
    _save(tmp_path, unflatten(found))
    with pytest.raises(ValueError, match=r"trained LoRA matrices.*set model.lora_rank"):
        _load(tmp_path, _init(TINY, 1))


def test_another_dtype_is_told(run):
    """float32 into bfloat16 parameters."""
    init = _init(TINY, 1)

    def rounded():
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), init())

    found, changed = _load(run[0], rounded)
    assert all(np.array_equal(found[k], x.astype(jnp.bfloat16)) for k, x in run[1].items())
    assert {(c.status, c.note) for c in changed.values()} == {("cast", "float32 -> bfloat16")}
    assert changed.keys() == run[1].keys()


def test_another_model_is_refused(run):
    with pytest.raises(ValueError, match=r"is \(.* in the file, the model has"):
        _load(run[0], _init(TINY, 1, **{"img/Transformer/encoder_norm/bias": jnp.zeros(5)}))
    init = _init(TINY, 1)
    with pytest.raises(ValueError, match="of another model:\n  missing llm/more"):
        load_run_params(run[0], lambda: {**init(), "llm": {**init()["llm"], "more": 1}}, {})
