"""Our models and files against those of transformers, which `tools/transformers_parity.py` ran.

tests/golden/transformers holds, for small models with random weights and odd sizes, the file that
transformers saved, inputs, and what it computed from them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vla_jax.checkpoints.hugging_face import TheirFile, read_hugging_face, write_hugging_face
from vla_jax.decoding.sampler import make_decoder
from vla_jax.models.attention import prefix_lm_mask
from vla_jax.models.presets import PRESETS, ModelConfig
from vla_jax.models.vla import Vla, init_params
from vla_jax.tree import flatten, unflatten

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/transformers"
_SPEC = importlib.util.spec_from_file_location("parity", ROOT / "tools/transformers_parity.py")
parity = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parity)
NAMES = tuple(parity.TINY)


@pytest.fixture(params=NAMES)
def model(request, monkeypatch):
    """(our config, parameters read from their file, what they computed)."""
    monkeypatch.setitem(PRESETS, request.param, parity.TINY[request.param])
    config = ModelConfig(request.param, image_size=21, compute_dtype="float32")
    found, left_out = read_hugging_face(TheirFile(GOLDEN / request.param), _shapes(config))
    assert not left_out and set(found) == set(flatten(_shapes(config)))
    params = unflatten({k: v.read() for k, v in found.items()})
    return config, params, dict(np.load(GOLDEN / request.param / "expected.npz"))


def _shapes(config: ModelConfig):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def test_inputs_are_those_of_the_tool(model):
    config, _, expected = model
    for key, value in parity.make_inputs(config).items():
        assert np.array_equal(expected[key], value), key


def test_siglip(model):
    config, params, expected = model

    def encode(params, images):
        def features(module, images):
            return module.img(images / 127.5 - 1.0)

        return Vla(config).apply({"params": params}, images.astype(jnp.float32), method=features)

    got = jax.jit(encode)(params, expected["images"])
    kernel, bias = params["img"]["head"]["kernel"], params["img"]["head"]["bias"]
    np.testing.assert_allclose(got, expected["siglip"] @ kernel + bias, atol=1e-4)


def test_gemma(model):
    """The decoder alone, causal, with padding."""
    config, params, expected = model

    def logits(module, tokens, valid):
        positions = jnp.cumsum(valid, axis=1) - 1
        mask = prefix_lm_mask(valid, jnp.ones_like(valid))
        hidden, _ = module.llm(module.llm.embed(tokens), positions, mask)
        return module.llm.logits(hidden)

    inputs = expected["tokens"], expected["valid"]
    got = jax.jit(lambda p, *a: Vla(config).apply({"params": p}, *a, method=logits))(
        params, *inputs
    )
    valid = expected["valid"]
    np.testing.assert_allclose(got[valid], expected["gemma_logits"][valid], atol=1e-4)


def test_paligemma(model):
    """Image, bidirectional prompt, causal answer, padding: rows of different lengths."""
    config, params, expected = model

    def logits(params, images, *text):
        hidden, _ = Vla(config).apply({"params": params}, images[:, None], *text)
        return Vla(config).apply({"params": params}, hidden, method="logits")

    text = (expected[k] for k in ("tokens", "attend_causal", "valid"))
    got = jax.jit(logits)(params, expected["images"], *text)
    valid = expected["valid"]
    assert np.abs(expected["logits"][valid]).max() > 0.9
    np.testing.assert_allclose(got[valid], expected["logits"][valid], atol=1e-4)


def test_greedy_generation(model):
    """Prefill and cached steps over a batch of different prompts; theirs one by one."""
    config, params, expected = model
    count = expected["greedy"].shape[1]
    decode = make_decoder(config, "text", max_answer_tokens=count, eos_id=-1, pad_id=0)
    valid = np.arange(expected["tokens"].shape[1]) < expected["prompt"][:, None]
    cold = np.zeros(3, np.float32), np.zeros(3, np.int32)
    got = decode(params, expected["images"][:, None], expected["tokens"], valid, *cold)
    assert np.array_equal(got, expected["greedy"])


def test_export_is_their_file(model, tmp_path):
    """Name by name, shape by shape, bit by bit: what they save, they load."""
    config, params, _ = model
    write_hugging_face(tmp_path, params, config)
    ours, theirs = (load_file(d / "model.safetensors") for d in (tmp_path, GOLDEN / config.preset))
    strip = lambda name: name.replace("vision_model.", "").replace("model.", "")  # noqa: E731
    ours, theirs = ({strip(k): v for k, v in d.items()} for d in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert x.dtype == ours[name].dtype and np.array_equal(x, ours[name]), name
    again, _ = read_hugging_face(TheirFile(tmp_path), _shapes(config))
    assert all(np.array_equal(again[k].read(), v) for k, v in flatten(params).items())


def test_bfloat16_and_shards(model, tmp_path, monkeypatch):
    config, params, _ = model
    monkeypatch.setattr("vla_jax.checkpoints.hugging_face.MAX_SHARD_BYTES", 9000)
    write_hugging_face(tmp_path, params, config, dtype="bfloat16")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    again, _ = read_hugging_face(TheirFile(tmp_path), _shapes(config))
    for name, x in flatten(params).items():
        assert np.array_equal(np.asarray(again[name].read(), np.float32), _bfloat16(x)), name


def _bfloat16(x: np.ndarray) -> np.ndarray:
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))


def test_misfits_are_listed_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "gemma", parity.TINY["gemma"])
    config = ModelConfig("gemma", image_size=21, compute_dtype="float32")
    tensors = load_file(GOLDEN / "gemma/model.safetensors")
    gone = next(k for k in tensors if k.endswith("layers.1.mlp.up_proj.weight"))
    wrong = next(k for k in tensors if k.endswith("layers.2.self_attn.q_proj.weight"))
    del tensors[gone]
    tensors[wrong] = tensors[wrong][:-1]
    tensors["language_model.model.layers.0.mlp.extra.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        read_hugging_face(TheirFile(tmp_path), _shapes(config))
    assert f"missing: {gone} (36, 20)" in str(error.value)
    assert f"wrong shape: {wrong} is (23, 20), the model has (24, 20)" in str(error.value)
    assert "unexplained: language_model.model.layers.0.mlp.extra.weight (3,)" in str(error.value)
    whole = (GOLDEN / "gemma/model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a whole safetensors file"):
        TheirFile(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file"):
        TheirFile(ROOT / "tests")
    save_file({"a": np.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no part of SigLIP, Gemma or PaliGemma"):
        read_hugging_face(TheirFile(tmp_path / "model.safetensors"), _shapes(config))
    with pytest.raises(ValueError, match=r"no encoder like that of 'demo'"):
        write_hugging_face(tmp_path, {}, ModelConfig("demo", image_size=112))
