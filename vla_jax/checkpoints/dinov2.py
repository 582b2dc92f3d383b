"""DINOv2 (arXiv 2304.07193) from an ONNX file, as an encoder of big_vision's names.

What DINOv2 has and our ViT has not is folded into what it has; the values that come out are the
same, to rounding:

    LayerScale           times the projection before it
    mean and deviation   of ImageNet's pixels, into the patch embedding, which then takes [-1, 1]
    class position       added to the class token
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

# Of ImageNet's pixels, divided by 255.
_MEAN = np.array([0.485, 0.456, 0.406])
_DEVIATION = np.array([0.229, 0.224, 0.225])
_CUBIC = -0.75  # PyTorch's coefficient, with which DINOv2 resizes positions

_LAYER = re.compile(r".*encoder/layer\.(\d+)/(.+)/MatMul")
_ATTENTION = "MultiHeadDotProductAttention_0"
# (ours, theirs): matrices by the node that multiplies with them, the others by their names.
_VECTORS = (
    ("LayerNorm_0/scale", "norm1.weight"),
    ("LayerNorm_0/bias", "norm1.bias"),
    ("LayerNorm_1/scale", "norm2.weight"),
    ("LayerNorm_1/bias", "norm2.bias"),
)
_LINEAR = (
    (f"{_ATTENTION}/query", "attention.attention.query", None),
    (f"{_ATTENTION}/key", "attention.attention.key", None),
    (f"{_ATTENTION}/value", "attention.attention.value", None),
    (f"{_ATTENTION}/out", "attention.output.dense", "layer_scale1"),
    ("MlpBlock_0/Dense_0", "mlp.fc1", None),
    ("MlpBlock_0/Dense_1", "mlp.fc2", "layer_scale2"),
)


def read_dinov2(
    path: str | Path, *, num_heads: int, blocks: int, image_size: int
) -> dict[str, np.ndarray]:
    """Parameters by name ("params/img/..."), float32, for `numpy.savez`.

    The file is what `torch.onnx` writes of a Hugging Face `Dinov2Model`, alone or with a head on
    top, which is left out.

    Args:
      num_heads: the file does not say it.
      blocks: the first so many are taken. The norm after the last one of all follows.
      image_size: positions are resized to its grid of patches, bicubic as DINOv2 does it.

    Raises:
      FileNotFoundError: no such file.
      ImportError: the package onnx is not installed.
      ValueError: not a whole ONNX file of a DINOv2 encoder, or one with fewer blocks.
    """
    tensors = _tensors(Path(path))
    try:
        return _converted(tensors, num_heads, blocks, image_size)
    except KeyError as e:
        raise ValueError(f"{path} has no {e}: not a DINOv2 encoder of {blocks} blocks") from e


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """Hugging Face's names -> values, the backbone's alone.

    The exporter keeps names of parameters, but makes new constants of transposed matrices and of
    sliced positions.
    """
    try:
        import onnx  # an optional extra
    except ImportError as e:
        raise ImportError(f"reading {path} needs the package onnx: pip install onnx") from e
    if not path.exists():
        raise FileNotFoundError(f"no ONNX file {path}")
    try:
        graph: Any = onnx.load(path).graph
    except Exception as e:  # protobuf's DecodeError, which onnx does not name
        raise ValueError(f"{path} is not a whole ONNX file: {e}") from e
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    tensors = {name.removeprefix("backbone."): x for name, x in found.items()}
    for node in graph.node:
        if match := _LAYER.fullmatch(node.name):
            name = f"encoder.layer.{match[1]}.{match[2].replace('/', '.')}.weight"
            for matrix in found.keys() & set(node.input):
                tensors[name] = found[matrix]
    for name, x in found.items():
        if x.ndim == 3 and not name.endswith("cls_token"):
            tensors["class_position" if x.shape[1] == 1 else "positions"] = x
    return tensors


def _converted(
    tensors: dict[str, np.ndarray], num_heads: int, blocks: int, image_size: int
) -> dict[str, np.ndarray]:
    kernel = tensors["embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0)
    kernel = kernel.astype(np.float64)  # p p 3 D
    bias = tensors["embeddings.patch_embeddings.projection.bias"]
    # (pixel / 255 - mean) / deviation, of pixel / 127.5 - 1.
    offset = (0.5 - _MEAN) / _DEVIATION
    params = {
        "embedding/kernel": kernel * (0.5 / _DEVIATION)[:, None],
        "embedding/bias": bias + np.einsum("pqcd,c->d", kernel, offset),
        "cls": tensors["embeddings.cls_token"] + tensors["class_position"],
        "pos_embedding": _resized(tensors["positions"], image_size // kernel.shape[0]),
        "Transformer/encoder_norm/scale": tensors["layernorm.weight"],
        "Transformer/encoder_norm/bias": tensors["layernorm.bias"],
    }
    layers = [_block(tensors, f"encoder.layer.{i}.", num_heads) for i in range(blocks)]
    for name in layers[0]:
        stacked = np.stack([layer[name] for layer in layers])
        params[f"Transformer/encoderblock/{name}"] = stacked
    return {f"params/img/{name}": x.astype(np.float32) for name, x in params.items()}


def _block(tensors: dict[str, np.ndarray], prefix: str, num_heads: int) -> dict[str, np.ndarray]:
    block = {ours: tensors[prefix + theirs] for ours, theirs in _VECTORS}
    for ours, theirs, scale in _LINEAR:
        # The exporter has turned them to [in, out] already.
        kernel, bias = (tensors[f"{prefix}{theirs}.{part}"] for part in ("weight", "bias"))
        if scale is not None:
            factor = tensors[f"{prefix}{scale}.lambda1"]
            kernel, bias = kernel * factor, bias * factor
        if ours == f"{_ATTENTION}/out":
            kernel = kernel.reshape(num_heads, -1, kernel.shape[1])
        elif ours.startswith(_ATTENTION):
            kernel = kernel.reshape(len(kernel), num_heads, -1)
            bias = bias.reshape(num_heads, -1)
        block[f"{ours}/kernel"], block[f"{ours}/bias"] = kernel, bias
    return block


def _resized(positions: np.ndarray, side: int) -> np.ndarray:
    """[1, P, D] of a square grid -> [1, side * side, D]."""
    old = math.isqrt(positions.shape[1])
    grid = positions.reshape(old, old, -1).astype(np.float64)
    weights = _cubic_weights(old, side)
    return np.einsum("yi,xj,ijd->yxd", weights, weights, grid).reshape(1, side * side, -1)


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old]: bicubic resampling without antialiasing; the border repeats its last value."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(place).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        x, a = np.abs(place - (first + tap)), _CUBIC
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        index = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), index), np.where(x <= 1, near, far))
    return weights
