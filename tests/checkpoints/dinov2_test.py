"""DINOv2 from ONNX: our encoder against the ONNX graph itself, run by the onnx package in NumPy."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from vla_jax.checkpoints.dinov2 import read_dinov2
from vla_jax.models.presets import PRESETS, ModelConfig, VitConfig
from vla_jax.models.vit import Vit
from vla_jax.tree import unflatten

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")

WIDTH, BLOCKS, HEADS, PATCH, GRID = 8, 3, 2, 4, 5
RNG = np.random.default_rng(0)


class Graph:
    """An ONNX graph in the making, with the names that `torch.onnx` gives."""

    def __init__(self):
        self.nodes, self.constants, self._count = [], [], 0

    def constant(self, value, name: str = "") -> str:
        self._count += 1
        name = name or f"onnx::Constant_{self._count}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.constant(RNG.normal(0, 0.5, shape).astype(np.float32), name)

    def __call__(self, kind: str, *inputs: str, name: str = "", **attributes) -> str:
        self._count += 1
        output = f"value_{self._count}"
        node = onnx.helper.make_node(kind, inputs, [output], name or f"{kind}_{self._count}")
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return output

    def shape(self, x: str, *shape: int) -> str:
        return self("Reshape", x, self.constant(np.array(shape, np.int64)))

    def norm(self, x: str, name: str) -> str:
        weights = (self.weight(f"{name}.{part}", WIDTH) for part in ("weight", "bias"))
        return self("LayerNormalization", x, *weights, axis=-1, epsilon=1e-6)

    def linear(self, x: str, layer: str, name: str, width: tuple[int, int]) -> str:
        matrix = self.weight("", *width)
        node = f"/backbone/{layer}/{name}/MatMul".replace(".attention", "/attention")
        node = node.replace("encoder.layer", "encoder/layer").replace("mlp.", "mlp/")
        y = self("MatMul", x, matrix, name=node.replace("output.dense", "output/dense"))
        return self("Add", self.weight(f"backbone.{layer}.{name}.bias", width[1]), y)

    def scaled(self, x: str, layer: str, name: str) -> str:
        return self("Mul", x, self.weight(f"backbone.{layer}.{name}.lambda1", WIDTH))


def _dinov2(image_size: int) -> tuple[object, list[str]]:
    """The model, and the values after each block and after the last norm."""
    g, side = Graph(), image_size // PATCH
    tokens = side * side + 1
    embeddings = "backbone.embeddings"
    patches = f"{embeddings}.patch_embeddings.projection"
    x = g(
        "Conv",
        "image",
        g.weight(f"{patches}.weight", WIDTH, 3, PATCH, PATCH),
        g.weight(f"{patches}.bias", WIDTH),
        strides=[PATCH, PATCH],
    )
    x = g("Transpose", g.shape(x, 1, WIDTH, -1), perm=[0, 2, 1])
    x = g("Concat", g.weight(f"{embeddings}.cls_token", 1, 1, WIDTH), x, axis=1)
    grid = g.shape(g.weight("", 1, GRID * GRID, WIDTH), 1, GRID, GRID, WIDTH)
    grid = g(
        "Resize",
        g("Transpose", grid, perm=[0, 3, 1, 2]),
        "",
        "",
        g.constant(np.array([1, WIDTH, side, side], np.int64)),
        mode="cubic",
        cubic_coeff_a=-0.75,
        coordinate_transformation_mode="half_pixel",
    )
    positions = g.shape(g("Transpose", grid, perm=[0, 2, 3, 1]), 1, -1, WIDTH)
    x = g("Add", x, g("Concat", g.weight("", 1, 1, WIDTH), positions, axis=1))
    after = []
    for i in range(BLOCKS):
        layer = f"encoder.layer.{i}"
        y, heads = g.norm(x, f"backbone.{layer}.norm1"), []
        for name in ("query", "key", "value"):
            y1 = g.linear(y, layer, f"attention.attention.{name}", (WIDTH, WIDTH))
            perm = [0, 2, 3, 1] if name == "key" else [0, 2, 1, 3]
            y1 = g.shape(y1, 1, tokens, HEADS, WIDTH // HEADS)
            heads.append(g("Transpose", y1, perm=perm))
        q, k, v = heads
        scale = g.constant(np.float32((WIDTH // HEADS) ** -0.5))
        weights = g("Softmax", g("Mul", g("MatMul", q, k), scale), axis=-1)
        y = g.shape(g("Transpose", g("MatMul", weights, v), perm=[0, 2, 1, 3]), 1, tokens, WIDTH)
        y = g.linear(y, layer, "attention.output.dense", (WIDTH, WIDTH))
        x = g("Add", g.scaled(y, layer, "layer_scale1"), x)
        y = g.linear(g.norm(x, f"backbone.{layer}.norm2"), layer, "mlp.fc1", (WIDTH, 3 * WIDTH))
        y = g.linear(g("Gelu", y, approximate="none"), layer, "mlp.fc2", (3 * WIDTH, WIDTH))
        x = g("Add", g.scaled(y, layer, "layer_scale2"), x)
        after.append(x)
    after.append(g.norm(x, "backbone.layernorm"))
    g("Conv", "image", g.weight("decoder.final_conv.weight", 1, 3, 1, 1))  # a head, left out
    kind = onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        g.nodes,
        "dinov2",
        [value("image", kind, [1, 3, image_size, image_size])],
        [value(name, kind, None) for name in after],
        g.constants,
    )
    opset = onnx.helper.make_opsetid("", 20)
    return onnx.helper.make_model(graph, opset_imports=[opset]), after


@pytest.mark.parametrize(("blocks", "image_size"), [(BLOCKS, 12), (2, 28)])
def test_encoder_equals_the_graph(blocks, image_size, tmp_path, monkeypatch):
    """With positions fewer and more than stored, and without the last block."""
    model, after = _dinov2(image_size)
    onnx.save(model, tmp_path / "a.onnx")
    pixels = RNG.integers(0, 256, (image_size, image_size, 3))
    seen = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    feed = {"image": seen.astype(np.float32).transpose(2, 0, 1)[None]}
    values = dict(zip(after, reference.ReferenceEvaluator(model).run(None, feed)))
    x = values[after[blocks - 1]]
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weight, bias = (stored[f"backbone.layernorm.{part}"] for part in ("weight", "bias"))
    want = (x - mean) / np.sqrt(variance + 1e-6) * weight + bias
    if blocks == BLOCKS:
        np.testing.assert_allclose(want, values[after[-1]], atol=1e-4)

    params = read_dinov2(tmp_path / "a.onnx", num_heads=HEADS, blocks=blocks, image_size=image_size)
    vit = VitConfig(WIDTH, blocks, 3 * WIDTH, HEADS, PATCH, class_token=True, exact_gelu=True)
    decoder = PRESETS["tiny"][1]
    monkeypatch.setitem(PRESETS, "it", (vit, decoder))
    config = ModelConfig("it", image_size=image_size, compute_dtype="float32")
    # A head that shows the encoder's values as they are.
    params["params/img/head/kernel"] = np.eye(WIDTH, decoder.width, dtype=np.float32)
    params["params/img/head/bias"] = np.zeros(decoder.width, np.float32)
    tree = unflatten({name.removeprefix("params/img/"): x for name, x in params.items()})
    image = pixels[None].astype(np.float32) / 127.5 - 1
    got = jax.jit(lambda tree, image: Vit(config).apply({"params": tree}, image))(tree, image)
    np.testing.assert_allclose(got[..., :WIDTH], want[:, 1:], atol=2e-5)


def test_what_is_no_dinov2_is_named(tmp_path):
    options = {"num_heads": HEADS, "image_size": 12}
    onnx.save(_dinov2(12)[0], tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"a\.onnx has no 'encoder\.layer\.3\.norm1\.weight'"):
        read_dinov2(tmp_path / "a.onnx", blocks=4, **options)
    whole = (tmp_path / "a.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"cut\.onnx is not a whole ONNX file"):
        read_dinov2(tmp_path / "cut.onnx", blocks=3, **options)
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        read_dinov2(tmp_path / "none.onnx", blocks=3, **options)
