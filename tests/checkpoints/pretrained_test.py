"""Published weights in every form that `train.init_from` takes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from vla_jax.build import load_initial_params
from vla_jax.checkpoints.params_file import load_params, save_params
from vla_jax.checkpoints.pretrained import change_table, is_pretrained, load_pretrained
from vla_jax.models.presets import PRESETS, DecoderConfig, ModelConfig, VitConfig
from vla_jax.models.vla import init_params
from vla_jax.sharding.mesh import MeshConfig, make_mesh, replicated
from vla_jax.sharding.rules import param_shardings
from vla_jax.tree import flatten, unflatten

GEMMA3 = DecoderConfig(
    32, 6, 64, 4, 1, 8, 99, post_norms=True, qk_norm=True, window=5, global_every=6, rope_base=1e6
)


@pytest.fixture
def config(monkeypatch) -> ModelConfig:
    monkeypatch.setitem(PRESETS, "small", (VitConfig(24, 2, 44, 3, 7), GEMMA3))
    return ModelConfig("small", image_size=21, compute_dtype="float32")


def _init_fn(config: ModelConfig, seed: int = 0):
    return lambda: init_params(config, jax.random.key(seed))


@functools.cache
def _fresh(config: ModelConfig, seed: int = 0):
    return jax.jit(_init_fn(config, seed))()


def _init(config: ModelConfig, seed: int = 0):
    params = _fresh(config, seed)
    # Norms too: fresh ones are all 0 or 1, and would hide a mix-up.
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + noise.normal(0, 0.1, x.shape).astype(np.float32), params)


def _load(path, config: ModelConfig):
    paths = path if isinstance(path, list) else [path]
    init, whole = _init_fn(config), replicated(make_mesh(MeshConfig()))
    shardings = jax.tree.map(lambda _: whole, jax.eval_shape(init))
    return load_pretrained(paths, init, shardings)


def _same(a, b) -> bool:
    a, b = flatten(a), flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_npz_round_trip(config, tmp_path):
    params = _init(config)
    save_params(tmp_path / "a.npz", params)
    again, changes = _load(tmp_path / "a.npz", config)
    assert _same(again, params) and {c.status for c in changes} == {"loaded"}
    assert change_table(changes) == f"{len(flatten(params))} loaded"
    save_params(tmp_path / "half.npz", params, "float16")
    half, _ = _load(tmp_path / "half.npz", config)
    for name, x in flatten(half).items():
        assert x.dtype == np.float32, name
        want = np.asarray(flatten(params)[name]).astype(np.float16)
        assert np.array_equal(x.astype(np.float16), want), name
    assert is_pretrained(tmp_path / "a.npz") and not is_pretrained(tmp_path)


def test_a_state_that_a_file_does_not_know_starts_fresh(config, tmp_path):
    params, with_state = _init(config), dataclasses.replace(config, state_size=3)
    save_params(tmp_path / "a.npz", params)
    found, changes = _load(tmp_path / "a.npz", with_state)
    assert [c.name for c in changes if c.status == "fresh"] == ["state/kernel"]
    assert _same({k: found[k] for k in ("img", "llm")}, params)
    np.testing.assert_array_equal(found["state"]["kernel"], _fresh(with_state)["state"]["kernel"])
    save_params(tmp_path / "b.npz", _init(with_state, 1))
    again, changes = _load(tmp_path / "b.npz", with_state)
    assert _same(again, _init(with_state, 1)) and {c.status for c in changes} == {"loaded"}


def test_every_device_gets_its_shards(config, tmp_path, monkeypatch):
    """Eight devices: the same values, laid out as asked; bfloat16 becomes float32 on the way."""
    params = _init(config)
    whole = {k: np.asarray(v) for k, v in flatten(params).items()}
    del whole["img/head/kernel"], whole["img/head/bias"]
    parts = {k: v for k, v in whole.items() if not k.startswith("llm/")}
    save_params(tmp_path / "img.npz", unflatten(parts), "float16")
    init = _init_fn(config)
    shardings = param_shardings(jax.eval_shape(init), make_mesh(MeshConfig(2, 4)))
    assert len(jax.devices()) == 8
    again, _ = load_pretrained([tmp_path / "img.npz"], init, shardings)
    split = 0
    for name, x in flatten(again).items():
        sharding = flatten(shardings)[name]
        assert x.sharding.is_equivalent_to(sharding, x.ndim), name
        assert x.addressable_shards[0].data.shape == sharding.shard_shape(x.shape), name
        split += x.addressable_shards[0].data.shape != x.shape
        want = np.asarray(parts[name]).astype(np.float16) if name in parts else None
        want = np.asarray(flatten(_fresh(config))[name]) if want is None else want
        assert x.dtype == np.float32 and np.array_equal(np.asarray(x), want), name
    assert split > 5


def test_a_misfit_is_found_before_anything_is_read(config, tmp_path, monkeypatch):
    save_params(tmp_path / "a.npz", _init(config))
    deeper = (VitConfig(24, 3, 44, 3, 7), GEMMA3)
    monkeypatch.setitem(PRESETS, "small", deeper)
    monkeypatch.setattr(np, "load", lambda *_: pytest.fail("read an array"))
    with pytest.raises(ValueError, match=r"params/img/.* is \(2, 24\), the model has \(3, 24\)"):
        _load(tmp_path / "a.npz", config)


def test_encoder_alone_with_single_layers(config, tmp_path):
    """big_vision's SigLIP: layers apart, a pooling head, a text tower; another image size."""
    params = _init(config)
    stored = {}
    for name, x in flatten(params["img"]).items():
        if "encoderblock/" in name:
            for i, layer in enumerate(np.asarray(x)):
                stored[f"params/img/{name.replace('block/', f'block_{i}/')}"] = layer
        elif not name.startswith("head/"):
            stored[f"params/img/{name}"] = np.asarray(x)
    stored["params/img/MAPHead_0/probe"] = stored["params/txt/head/bias"] = np.zeros(3)
    np.savez(tmp_path / "siglip.npz", **stored)
    larger = ModelConfig("small", image_size=28, compute_dtype="float32")
    again, changes = _load(tmp_path / "siglip.npz", larger)
    by_status = {s: [c.name for c in changes if c.status == s] for s in ("resized", "left out")}
    assert by_status["resized"] == ["img/pos_embedding"]
    assert sorted(by_status["left out"]) == ["img/MAPHead_0/probe", "txt/head/bias"]
    for name, x in flatten(again["img"]).items():
        if not name.startswith(("head/", "pos_")):
            assert np.array_equal(x, flatten(params["img"])[name]), name
    fresh = flatten(_fresh(larger))
    named = [c.name for c in changes if c.status == "fresh"]
    assert named == [k for k in fresh if k.startswith(("img/head/", "llm/"))]
    assert all(np.array_equal(flatten(again)[k], fresh[k]) for k in named)
    assert "  fresh    img/head/kernel  (24, 32)" in change_table(changes)


def _parts(config: ModelConfig, folder):
    """(encoder's file, decoder's file, parameters): the encoder's lacks the head, as SigLIP's."""
    params = _init(config)
    flat = {k: np.asarray(v) for k, v in flatten(params).items()}
    img = {k: v for k, v in flat.items() if k.startswith("img/") and "head" not in k}
    llm = {k: v for k, v in flat.items() if k.startswith("llm/")}
    save_params(folder / "img.npz", unflatten(img))
    save_params(folder / "llm.npz", unflatten(llm))
    return folder / "img.npz", folder / "llm.npz", params


def test_encoder_and_decoder_of_two_files(config, tmp_path, capsys):
    img, llm, params = _parts(config, tmp_path)
    whole = replicated(make_mesh(MeshConfig()))
    shardings = jax.tree.map(lambda _: whole, jax.eval_shape(_init_fn(config)))
    again = load_initial_params(f"{img},{llm}", config, 0, shardings)
    fresh = flatten(_fresh(config))
    for name, x in flatten(again).items():
        want = fresh[name] if "head" in name else flatten(params)[name]
        np.testing.assert_array_equal(x, want, err_msg=name)
    count = {part: sum(k.startswith(part) for k in fresh) for part in ("img/", "llm/")}
    assert capsys.readouterr().out.splitlines() == [
        f"{img}: {count['img/'] - 2} loaded",
        f"{llm}: {count['llm/']} loaded",
        "in none of them: 2 fresh",
        "  fresh    img/head/bias  (32,)",
        "  fresh    img/head/kernel  (24, 32)",
    ]


def test_several_files_that_do_not_make_one_model(config, tmp_path):
    img, llm, params = _parts(config, tmp_path)
    save_params(tmp_path / "all.npz", params)
    with pytest.raises(ValueError, match=r"llm\.npz has llm/.*, and so has .*all\.npz"):
        _load([tmp_path / "all.npz", llm], config)
    with pytest.raises(FileNotFoundError, match=r"none\.npz: check train\.init_from"):
        _load([img, tmp_path / "none.npz"], config)
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file in .*run"):
        _load([img, tmp_path / "run"], config)


def test_a_class_token_is_loaded_left_out_or_missed(config, tmp_path, monkeypatch):
    vit, decoder = PRESETS["small"]
    monkeypatch.setitem(PRESETS, "token", (dataclasses.replace(vit, class_token=True), decoder))
    with_token = dataclasses.replace(config, preset="token")
    params = _init(with_token)
    save_params(tmp_path / "a.npz", params)
    again, changes = _load(tmp_path / "a.npz", with_token)
    assert _same(again, params) and {c.status for c in changes} == {"loaded"}
    again, changes = _load(tmp_path / "a.npz", config)
    assert [c.name for c in changes if c.status == "left out"] == ["img/cls"]
    save_params(tmp_path / "b.npz", again)
    with pytest.raises(ValueError, match=r"missing: params/img/cls \(1, 1, 24\)"):
        _load(tmp_path / "b.npz", with_token)


def test_gguf_of_gemma_3(config, tmp_path):
    """A file written by gguf's own writer; its norms hold the 1 that ours leave out."""
    gguf = pytest.importorskip("gguf")
    params = _init(config)["llm"]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma3")
    llm = {k: np.asarray(v) for k, v in flatten(params).items()}
    writer.add_tensor("token_embd.weight", llm["embedder/input_embedding"])
    writer.add_tensor("output_norm.weight", llm["final_norm/scale"] + 1)
    for i in range(GEMMA3.depth):
        layer = {k.removeprefix("layers/"): v[i] for k, v in llm.items() if k.startswith("layers/")}
        rows = lambda w: w.transpose(0, 2, 1).reshape(-1, GEMMA3.width)  # noqa: E731
        q, (k, v) = layer["attn/q_einsum/w"], layer["attn/kv_einsum/w"]
        tensors = {
            "attn_q": rows(q),
            "attn_k": rows(k),
            "attn_v": rows(v),
            "attn_output": layer["attn/attn_vec_einsum/w"].reshape(-1, GEMMA3.width).T,
            "ffn_gate": layer["mlp/gating_einsum"][0].T,
            "ffn_up": layer["mlp/gating_einsum"][1].T,
            "ffn_down": layer["mlp/linear"].T,
            "attn_norm": layer["pre_attention_norm/scale"] + 1,
            "post_attention_norm": layer["post_attention_norm/scale"] + 1,
            "ffn_norm": layer["pre_ffw_norm/scale"] + 1,
            "post_ffw_norm": layer["post_ffw_norm/scale"] + 1,
            "attn_q_norm": layer["attn/_query_norm/scale"] + 1,
            "attn_k_norm": layer["attn/_key_norm/scale"] + 1,
        }
        for name, x in tensors.items():
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again, changes = _load(tmp_path / "model.gguf", config)
    for name, x in flatten(params).items():
        np.testing.assert_allclose(flatten(again["llm"])[name], x, atol=1e-6, err_msg=name)
    assert {c.name.split("/")[0] for c in changes if c.status == "fresh"} == {"img"}
    whole = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.gguf"):
        _load(tmp_path / "cut.gguf", config)


def test_what_does_not_fit_is_named(config, tmp_path):
    params = {k: np.asarray(v) for k, v in flatten(_init(config)).items()}
    del params["img/head/bias"]
    params["llm/extra"] = np.zeros(2, np.float32)
    params["llm/final_norm/scale"] = np.zeros(7, np.float32)
    save_params(tmp_path / "a.npz", unflatten(params))
    for load in (_load, lambda p, c: load_params(p, _init(c))):
        with pytest.raises(ValueError) as error:
            load(tmp_path / "a.npz", config)
        assert r"missing: params/img/head/bias (32,)" in str(error.value)
        assert r"unexplained: params/llm/extra (2,)" in str(error.value)
        assert r"params/llm/final_norm/scale is (7,), the model has (32,)" in str(error.value)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:3000])
    with pytest.raises(ValueError, match=r"cut\.npz is not a readable npz"):
        _load(tmp_path / "cut.npz", config)
    with pytest.raises(FileNotFoundError, match=r"none\.npz: check train\.init_from"):
        _load(tmp_path / "none.npz", config)
    (tmp_path / "a.bin").write_text("")
    with pytest.raises(ValueError, match=r"a\.bin: it is not a big_vision \.npz"):
        _load(tmp_path / "a.bin", config)
