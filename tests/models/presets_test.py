"""Presets have the published sizes; every field of a config changes something."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from vla_jax.models.presets import (
    DECODERS,
    PRESETS,
    VITS,
    DecoderConfig,
    ModelConfig,
    VitConfig,
)
from vla_jax.models.vla import Vla, init_params
from vla_jax.tree import flatten


def _count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _shapes(config: ModelConfig):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


# Millions of parameters as published, the source beside each, and how far ours may be off.
VIT_SIZES = {
    "B/16": (85.8, 0.01),  # arXiv 2010.11929, table 1: 86M
    "L/16": (303.3, 0.01),  # likewise: 307M with the classifier
    "So400m/14": (412.4, 0.005),  # PaliGemma's vision tower: 412.4M in its published checkpoint
    "g/14": (1011, 0.01),  # arXiv 2106.04560, table 2
    "G/14": (1843, 0.01),  # likewise
    "e/14": (3926 - 68, 0.02),  # arXiv 2209.06794: 3.9B, with a pooling head as big as a block
    "22B/14": (21_743, 0.005),  # arXiv 2302.05442, table 1
    # Its published checkpoint has 22.06M: with 1,370 positions, a mask token and LayerScale.
    "dinov2_S/14": (22.06 - (1370 - 256 + 12 * 2) * 384e-6, 0.001),
}
# (embedding, the rest).
DECODER_SIZES = {
    "gemma_2b": (524.6 + 2.4, 1981.9, 0.005),  # arXiv 2403.08295, table 2; 1,152 more tokens
    "gemma2_2b": (590.1, 2024.5, 0.005),  # arXiv 2408.00118, table 2
    "gemma2_9b": (918.0, 8324.2, 0.005),
    "gemma2_27b": (1180.0, 26_047.5, 0.005),
    "gemma3_270m": (170.0, 100.0, 0.02),  # its model card
    "gemma3_1b": (302.0, 698.0, 0.005),  # arXiv 2503.19786, table 1
    "gemma3_4b": (675.0, 3209.0, 0.01),
    "palm_8b": (1048.6, 8630.0 - 1048.6, 0.005),  # arXiv 2204.02311, table 1: 8.63B
    "ul2_32b": (1536.7, 32_000 - 1536.7, 0.02),  # arXiv 2305.18565: 32B
    "ul2_3b": (768.3, 3000 - 768.3, 0.2),  # arXiv 2307.15818: 3B; shapes are not published
}
WHOLE_SIZES = {
    "paligemma_3b": (2923.3, 0.001),  # its checkpoint
    "paligemma2_3b": (3032.2, 0.001),  # likewise
    "paligemma2_10b": (9660, 0.005),
    "paligemma2_28b": (27_650, 0.005),
    "gemma3_270m_vla": (268 + 86, 0.01),
    # The decoder's file holds 268,098,176; the encoder has 11 of 12 blocks; a projection 384 x 640.
    "gemma3_270m_dino_s": (268.098 + 21.622 - 1.774 + 0.246, 0.001),
    "rt2_pali_3b": (5000, 0.1),  # arXiv 2310.09199 on the same parts: 5B
    "rt2_pali_x_5b": (5000, 0.1),  # arXiv 2307.15818
    "rt2_palm_e_12b": (12_500, 0.02),  # arXiv 2303.03378: 8B + 4B
    "rt2_pali_x_55b": (54_000, 0.025),  # arXiv 2305.18565: 22B + 32B
}


@pytest.mark.parametrize("name", VITS)
def test_vit_size(name, monkeypatch):
    monkeypatch.setitem(PRESETS, "it", (VITS[name], PRESETS["tiny"][1]))
    config = ModelConfig("it", image_size=224)
    tree = dict(_shapes(config)["img"])
    tree.pop("head")
    millions, tolerance = VIT_SIZES[name]
    assert _count(tree) / 1e6 == pytest.approx(millions, rel=tolerance)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_size(name, monkeypatch):
    monkeypatch.setitem(PRESETS, "it", (PRESETS["tiny"][0], DECODERS[name]))
    tree = _shapes(ModelConfig("it", image_size=28))["llm"]
    embedding = _count(tree["embedder"]) / 1e6
    table, rest, tolerance = DECODER_SIZES[name]
    assert embedding == pytest.approx(table, rel=tolerance)
    assert _count(tree) / 1e6 - embedding == pytest.approx(rest, rel=tolerance)


@pytest.mark.parametrize("name", WHOLE_SIZES)
def test_size_of_the_whole(name):
    millions, tolerance = WHOLE_SIZES[name]
    assert _count(_shapes(ModelConfig(name))) / 1e6 == pytest.approx(millions, rel=tolerance)


def test_every_published_size_is_tested():
    own = {name for name in PRESETS if name.split("_")[0] in ("tiny", "demo")}
    assert set(WHOLE_SIZES) == set(PRESETS) - own
    assert set(VIT_SIZES) == set(VITS) and set(DECODER_SIZES) == set(DECODERS)


_BASE = (VitConfig(24, 2, 44, 3, 7), DecoderConfig(24, 4, 36, 4, 2, 8, 97))
_GEMMA2 = dataclasses.replace(_BASE[1], window=5, global_every=2)
PAIR = "base", "other"
# One other value for every field of a config, and what it is compared with.
CHANGES = {
    VitConfig: {
        "width": 36,
        "depth": 3,
        "mlp_dim": 40,
        "num_heads": 4,
        "patch_size": 3,
        "stem": ((8, 1),),
        "decoder_positions": True,
        "parallel_blocks": True,
        "qk_norm": True,
        "biases": False,
        "class_token": True,
        "exact_gelu": True,
    },
    DecoderConfig: {
        "width": 32,
        "depth": 3,
        "mlp_dim": 40,
        "num_heads": 2,
        "num_kv_heads": 4,
        "head_dim": 6,
        "vocab_size": 101,
        "activation": "silu",
        "parallel_blocks": True,
        "post_norms": True,
        "qk_norm": True,
        "query_scale": 5,
        "attention_softcap": 0.7,
        "logit_softcap": 0.7,
        "window": 3,
        "global_every": 4,
        "rope_base": 50.0,
        "local_rope_base": 50.0,
        "rope_scale": 4.0,
        "integer_rows": (10, 30),
        "query_key_similarity": 1.5,
    },
}


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, changes in CHANGES.items() for field in changes]
)
def test_every_field_changes_something(kind, field, monkeypatch):
    """Other parameters, other fresh values, or other logits from the same parameters."""
    vit, decoder = _BASE
    if field in ("window", "global_every", "local_rope_base"):
        decoder = _GEMMA2
    if field == "stem":
        vit = dataclasses.replace(vit, patch_size=8)
    changed = {VitConfig: vit, DecoderConfig: decoder}
    other = dataclasses.replace(changed[kind], **{field: CHANGES[kind][field]})
    monkeypatch.setitem(PRESETS, PAIR[0], (vit, decoder))
    monkeypatch.setitem(PRESETS, PAIR[1], (other, decoder) if kind is VitConfig else (vit, other))
    size = 24 if field == "stem" else 21
    base, other = (ModelConfig(n, image_size=size, compute_dtype="float32") for n in PAIR)
    shapes = [{k: v.shape for k, v in flatten(_shapes(config)).items()} for config in (base, other)]
    if shapes[0] != shapes[1]:
        return
    if field in ("integer_rows", "query_key_similarity"):  # of fresh parameters alone
        fresh = [
            jax.jit(lambda c=c: init_params(c, jax.random.key(0))["llm"])() for c in (base, other)
        ]
        assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, fresh)))
        return
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), _shapes(base))
    assert not np.array_equal(_logits(base, params), _logits(other, params))


def test_every_field_is_tried():
    for kind, changes in CHANGES.items():
        assert set(changes) == {f.name for f in dataclasses.fields(kind)}


def _logits(config: ModelConfig, params) -> np.ndarray:
    rng, size = np.random.default_rng(0), config.image_size
    images = rng.integers(0, 256, (1, 1, size, size, 3), np.uint8)
    tokens = rng.integers(0, 97, (1, 12)).astype(np.int32)
    causal = np.arange(12)[None] >= 4
    model = Vla(config)

    def logits(params):
        hidden, _ = model.apply({"params": params}, images, tokens, causal, np.ones((1, 12), bool))
        return model.apply({"params": params}, hidden, method="logits")

    return np.asarray(jax.jit(logits)(params))
