"""The model against NumPy references and its own other forms."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vla_jax.decoding.sampler import make_decoder
from vla_jax.models.attention import attend, prefix_lm_mask, rope, rope_frequencies
from vla_jax.models.decoder import FeedForward, RMSNorm
from vla_jax.models.linear import Dense, LayerNorm
from vla_jax.models.presets import PRESETS, ModelConfig
from vla_jax.models.stack import unstack_layers
from vla_jax.models.vit import Convolution, PatchEmbedding
from vla_jax.models.vla import State, Vla, init_params

CONFIG = ModelConfig("tiny", image_size=28, compute_dtype="float32")
RNG = np.random.default_rng(0)


def _run(model: Vla, params, *inputs):
    """Text states of the training forward, compiled: one call instead of one per operation."""
    return jax.jit(lambda p, args: model.apply({"params": p}, *args)[0])(params, inputs)


def _inputs(batch: int = 3, length: int = 10):
    images = RNG.integers(0, 256, (batch, 1, 28, 28, 3), np.uint8)
    tokens = RNG.integers(4, 4000, (batch, length)).astype(np.int32)
    prompt = np.array([6, 4, 2])[:batch, None]
    position = np.arange(length)
    valid = position < prompt + 4
    return images, tokens, (position >= prompt) & valid, valid


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: init_params(CONFIG, jax.random.key(0)))()


def test_parameter_tree_is_paligemmas():
    golden = Path(__file__).parents[1] / "golden/paligemma_3b_tree.json"
    shapes = jax.eval_shape(lambda: init_params(ModelConfig("paligemma_3b"), jax.random.key(0)))
    flat = {"/".join(k): list(v.shape) for k, v in flatten_dict(shapes).items()}
    assert flat == json.loads(golden.read_text())


def test_attention_equals_loops():
    q = RNG.normal(size=(2, 3, 4, 8)).astype(np.float32)
    k, v = RNG.normal(size=(2, 2, 5, 2, 8)).astype(np.float32)
    mask = RNG.random((2, 3, 5)) < 0.6
    mask[..., 0] = True
    want = np.zeros_like(q)
    for b, t, n in np.ndindex(2, 3, 4):
        score = k[b, :, n // 2] @ q[b, t, n] / np.sqrt(8)
        p = np.where(mask[b, t], np.exp(score - score.max()), 0)
        want[b, t, n] = (p / p.sum()) @ v[b, :, n // 2]
    np.testing.assert_allclose(attend(q, k, v, mask), want, atol=1e-5)


def test_rope_rotates_pairs_as_complex_numbers():
    x = RNG.normal(size=(1, 7, 2, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 50, 51, 900]])
    turn = np.exp(1j * positions[..., None] * 10_000.0 ** (-np.arange(4) / 4))[:, :, None]
    z = (x[..., :4] + 1j * x[..., 4:]) * turn
    want = np.concatenate([z.real, z.imag], -1)
    np.testing.assert_allclose(rope(x, positions, rope_frequencies(8, 10_000.0)), want, atol=1e-4)


def test_mask_equals_its_definition():
    valid = np.array([[1, 1, 1, 1, 1, 0]], bool)
    causal = np.array([[0, 0, 1, 1, 0, 0]], bool)  # the fifth joins the block of the fourth
    want = [[1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 0, 0, 0]] + [[1, 1, 1, 1, 1, 0]] * 3
    assert np.array_equal(prefix_lm_mask(valid, causal)[0], np.array(want, bool))


def test_layers_equal_numpy(monkeypatch):
    decoder = dataclasses.replace(PRESETS["tiny"][1], width=6, mlp_dim=5)
    monkeypatch.setitem(PRESETS, "six", (PRESETS["tiny"][0], decoder))
    x = RNG.normal(size=(2, 3, 6)).astype(np.float32)

    def run(module, x=x):
        p = module.init(jax.random.key(1), x)["params"]
        p = jax.tree.map(lambda a: a + RNG.normal(size=a.shape).astype(np.float32), p)
        return np.asarray(module.apply({"params": p}, x)), p

    got, p = run(RMSNorm())
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + p["scale"])
    np.testing.assert_allclose(got, want, atol=1e-5)
    got, p = run(LayerNorm())
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, want * p["scale"] + p["bias"], atol=1e-5)
    got, p = run(Dense((2, 4)))
    np.testing.assert_allclose(got, np.tensordot(x, p["kernel"], 1) + p["bias"], atol=1e-5)
    got, p = run(FeedForward(ModelConfig("six", image_size=28)))
    gate, up = x @ p["gating_einsum"][0], x @ p["gating_einsum"][1]
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_allclose(got, (gelu * up) @ p["linear"], atol=1e-5)
    image = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    got, p = run(PatchEmbedding(5, 4), image)
    want = [
        np.tensordot(image[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4], p["kernel"], 3) + p["bias"]
        for b, i, j in np.ndindex(2, 2, 2)
    ]
    np.testing.assert_allclose(got, np.reshape(want, (2, 4, 5)), atol=1e-4)
    got, p = run(Convolution(5, 3, 2), image)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = [
        np.tensordot(padded[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], p["kernel"], 3) + p["bias"]
        for b, i, j in np.ndindex(2, 4, 4)
    ]
    np.testing.assert_allclose(got, np.reshape(want, (2, 4, 4, 5)), atol=1e-4)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("image_sees_text", [True, False])
def test_prefill_and_steps_equal_the_full_forward(params, image_sees_text, unroll):
    """Prompts of different lengths in one batch."""
    config = dataclasses.replace(CONFIG, image_sees_text=image_sees_text)
    images, tokens, causal, valid = _inputs()
    full = _run(Vla(config), params, images, tokens, causal, valid)
    config = dataclasses.replace(config, unroll_layers=unroll)
    model, params = Vla(config), unstack_layers(params, config)
    lengths = np.array([6, 4, 2])
    prompt = np.arange(6) < lengths[:, None]
    prefill = jax.jit(
        lambda p, *args: model.apply({"params": p}, *args, max_new_tokens=4, method="prefill")
    )
    hidden, cache, seen = prefill(params, images, tokens[:, :6], prompt)
    step = jax.jit(lambda p, *args: model.apply({"params": p}, *args, method="decode_step"))
    steps = [hidden]
    for i in range(4):
        token = tokens[np.arange(3), lengths + i]
        hidden, cache, seen = step(params, token, cache, seen, jnp.int32(4 + 6 + i))
        steps.append(hidden)
    steps = np.stack(steps, axis=1)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(steps[row], full[row, n - 1 : n + 4], atol=1e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_wanted_positions_are_those_of_the_full_forward(params, unroll):
    """Any rows in any order, the same one twice; unrolled, the last layer computes no other."""
    config = dataclasses.replace(CONFIG, unroll_layers=unroll)
    images, tokens, causal, valid = _inputs()
    full = _run(Vla(CONFIG), params, images, tokens, causal, valid)
    wanted = np.array([[3, 0, 5], [2, 2, 1], [4, 3, 0]], np.int32)
    run = jax.jit(lambda p, *args: Vla(config).apply({"params": p}, *args))
    inputs = (images, tokens, causal, valid, None, wanted)
    got, _ = run(params, *inputs)
    np.testing.assert_allclose(got, full[np.arange(3)[:, None], wanted], atol=1e-5)
    cost = [
        jax.jit(lambda p, *args: Vla(config).apply({"params": p}, *args)[0])
        .lower(params, *inputs[:-1], w)
        .cost_analysis()["flops"]
        for w in (wanted[:, :1], np.tile(np.arange(6, dtype=np.int32), (3, 1)))
    ]
    assert (cost[0] < 0.95 * cost[1]) is unroll


def test_layers_taken_apart_decode_the_same(params):
    config = dataclasses.replace(CONFIG, unroll_layers=True)
    apart = unstack_layers(params, config)
    assert isinstance(apart["llm"]["layers"], tuple)
    assert unstack_layers(params, CONFIG) is params
    images, tokens, _, _ = _inputs()
    prompt = np.arange(6) < np.array([6, 4, 2])[:, None]
    decode = make_decoder(config, "text", eos_id=1, pad_id=0, max_answer_tokens=5)
    options = np.zeros(3, np.float32), np.zeros(3, np.int32)
    scanned = make_decoder(CONFIG, "text", eos_id=1, pad_id=0, max_answer_tokens=5)
    want = scanned(params, images, tokens[:, :6], prompt, *options)
    for tree in (params, apart):
        got = decode(tree, images, tokens[:, :6], prompt, *options)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("image_sees_text", [True, False])
def test_a_state_is_one_position_or_none(image_sees_text):
    """Prefill equals the full forward; a row without a state is that of a model without one."""
    config = dataclasses.replace(CONFIG, image_sees_text=image_sees_text, state_size=3)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    assert params["state"]["kernel"].shape == (3, 32)
    images, tokens, causal, valid = _inputs()
    values = RNG.normal(size=(3, 3)).astype(np.float32)
    state = State(values, np.array([True, False, True]))
    model = Vla(config)
    run = jax.jit(
        lambda p, s: model.apply({"params": p}, images, tokens, causal, valid, state=s)[0]
    )
    full = run(params, state)
    prompt = np.arange(6) < np.array([6, 4, 2])[:, None]
    hidden, _, seen = jax.jit(
        lambda p, *args: model.apply({"params": p}, *args, max_new_tokens=1, method="prefill")
    )(params, images, tokens[:, :6], prompt, state)
    np.testing.assert_allclose(hidden, full[np.arange(3), [5, 3, 1]], atol=1e-5)
    assert np.asarray(seen)[:, 4].tolist() == [True, False, True]  # after 4 patches
    plain = dataclasses.replace(config, state_size=0)
    without = {k: params[k] for k in ("img", "llm")}
    want = _run(Vla(plain), without, images, tokens, causal, valid)
    np.testing.assert_allclose(full[1][valid[1]], want[1][valid[1]], atol=1e-5)
    other = run(params, state._replace(values=values + 1))
    assert np.abs(other - full)[[0, 2], 0].max() > 1e-3
    np.testing.assert_array_equal(other[1], full[1])
    with pytest.raises(ValueError, match="state_size is 3, and no state is given"):
        model.apply({"params": params}, images, tokens, causal, valid)
    with pytest.raises(ValueError, match="state_size is 0, and a state is given"):
        Vla(plain).apply({"params": without}, images, tokens, causal, valid, state=state)


def test_padding_changes_nothing(params):
    images, tokens, causal, valid = _inputs()
    model = Vla(CONFIG)
    full = _run(model, params, images, tokens, causal, valid)
    other = np.where(valid, tokens, 77)
    again = _run(model, params, images, other, causal, valid)
    np.testing.assert_array_equal(np.where(valid[..., None], full - again, 0), 0)


@pytest.mark.parametrize(
    "change", [{"unroll_layers": True}, {"remat": "full"}, {"remat": "dots"}], ids=str
)
def test_other_forms_of_the_layers_agree(params, change):
    images, tokens, causal, valid = _inputs()

    def loss(params, config):
        out, _ = Vla(config).apply({"params": params}, images, tokens, causal, valid)
        return jnp.sum(jnp.where(valid[..., None], out, 0) ** 2)

    compiled = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    want, want_grad = compiled(params, CONFIG)
    got, got_grad = compiled(params, dataclasses.replace(CONFIG, **change))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), got_grad, want_grad)


@pytest.mark.parametrize("sees", [True, False])
def test_images_see_the_question_if_asked(params, sees):
    """The image is the same whatever is asked, or not: seen by what the answer makes of it."""
    images, tokens, causal, valid = _inputs(1)
    model = Vla(dataclasses.replace(CONFIG, image_sees_text=sees))

    def first_image_token(p, tokens):  # of the last layer, by asking for position -P
        return model.apply({"params": p}, images, tokens, causal, valid, None, jnp.asarray([[-4]]))[
            0
        ]

    run = jax.jit(first_image_token)
    other = tokens.copy()
    other[0, 3] += 1
    difference = np.abs(run(params, tokens) - run(params, other)).max()
    assert difference > 1e-4 if sees else difference == 0


def test_bfloat16_keeps_float32_parameters_and_is_close(params):
    images, tokens, causal, valid = _inputs()
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    want = _run(Vla(CONFIG), params, images, tokens, causal, valid)
    got = _run(Vla(config), params, images, tokens, causal, valid)
    assert got.dtype == jnp.bfloat16
    assert np.abs(np.asarray(got, np.float32) - want).max() < 0.15


def test_wrong_image_size_and_preset_are_refused(params):
    images, tokens, causal, valid = _inputs()
    with pytest.raises(ValueError, match="28 x 28"):
        Vla(CONFIG).apply({"params": params}, images[:, :, :14], tokens, causal, valid)
    with pytest.raises(ValueError, match="did you mean 'paligemma_3b'"):
        ModelConfig("paligema_3b")
    with pytest.raises(ValueError, match="multiple of the patch size 14"):
        ModelConfig("tiny", image_size=30)
