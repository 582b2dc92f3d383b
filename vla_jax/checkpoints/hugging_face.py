"""Parameters as Hugging Face stores them (safetensors): SigLIP, Gemma 1 to 3, PaliGemma 1 and 2.

One table says which of their tensors is which part of ours, and is read in both directions. Their
layers are separate and their matrices are [out, in]; ours are stacked and [in, out], with heads
apart. Values are moved, never computed with: export and import again gives the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vla_jax.checkpoints.surgery import Stored
from vla_jax.models.presets import DecoderConfig, ModelConfig, VitConfig
from vla_jax.tree import flatten
from vla_jax.types import Params

MAX_SHARD_BYTES = 5_000_000_000

# Where each part of a model can begin in their names: PaliGemma's releases, what transformers
# writes today, and the parts alone.
_PREFIXES = {
    "llm": ("language_model.model.", "model.language_model.", "language_model.", "model."),
    "img": (
        *("vision_tower.vision_model.", "model.vision_tower.vision_model.", "vision_tower."),
        *("model.vision_tower.", "vision_model.", ""),
    ),
    "img/head": ("multi_modal_projector.linear.", "model.multi_modal_projector.linear."),
}
_LANDMARKS = {
    "llm": "embed_tokens.weight",
    "img": "embeddings.patch_embedding.weight",
    "img/head": "weight",
}
_EXPORT_PREFIXES = {
    "llm": "language_model.model.",
    "img": "vision_tower.vision_model.",
    "img/head": "multi_modal_projector.linear.",
}

# (ours, index into one layer of it, theirs, layout). "{}" is the layer.
_BLOCK = "Transformer/encoderblock"
_HEADS = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_TABLE: dict[str, tuple[tuple[str, tuple[int, ...], str, str], ...]] = {
    "llm": (
        ("embedder/input_embedding", (), "embed_tokens.weight", "same"),
        ("final_norm/scale", (), "norm.weight", "same"),
        ("layers/attn/q_einsum/w", (), "layers.{}.self_attn.q_proj.weight", "heads first"),
        ("layers/attn/kv_einsum/w", (0,), "layers.{}.self_attn.k_proj.weight", "heads first"),
        ("layers/attn/kv_einsum/w", (1,), "layers.{}.self_attn.v_proj.weight", "heads first"),
        ("layers/attn/attn_vec_einsum/w", (), "layers.{}.self_attn.o_proj.weight", "from heads"),
        ("layers/attn/_query_norm/scale", (), "layers.{}.self_attn.q_norm.weight", "same"),
        ("layers/attn/_key_norm/scale", (), "layers.{}.self_attn.k_norm.weight", "same"),
        ("layers/mlp/gating_einsum", (0,), "layers.{}.mlp.gate_proj.weight", "linear"),
        ("layers/mlp/gating_einsum", (1,), "layers.{}.mlp.up_proj.weight", "linear"),
        ("layers/mlp/linear", (), "layers.{}.mlp.down_proj.weight", "linear"),
        ("layers/pre_attention_norm/scale", (), "layers.{}.input_layernorm.weight", "same"),
        *(
            (f"layers/{ours}/scale", (), f"layers.{{}}.{theirs}.weight", "same")
            for ours, theirs in (
                ("post_attention_norm", "post_attention_layernorm"),
                ("pre_ffw_norm", "pre_feedforward_layernorm"),
                ("post_ffw_norm", "post_feedforward_layernorm"),
            )
        ),
    ),
    "img": (
        ("embedding/kernel", (), "embeddings.patch_embedding.weight", "patches"),
        ("embedding/bias", (), "embeddings.patch_embedding.bias", "same"),
        ("pos_embedding", (0,), "embeddings.position_embedding.weight", "same"),
        ("Transformer/encoder_norm/scale", (), "post_layernorm.weight", "same"),
        ("Transformer/encoder_norm/bias", (), "post_layernorm.bias", "same"),
        *(
            (f"{_BLOCK}/{ours}", (), f"encoder.layers.{{}}.{theirs}", layout)
            for ours, theirs, layout in (
                ("LayerNorm_0/scale", "layer_norm1.weight", "same"),
                ("LayerNorm_0/bias", "layer_norm1.bias", "same"),
                ("LayerNorm_1/scale", "layer_norm2.weight", "same"),
                ("LayerNorm_1/bias", "layer_norm2.bias", "same"),
                ("MlpBlock_0/Dense_0/kernel", "mlp.fc1.weight", "linear"),
                ("MlpBlock_0/Dense_0/bias", "mlp.fc1.bias", "same"),
                ("MlpBlock_0/Dense_1/kernel", "mlp.fc2.weight", "linear"),
                ("MlpBlock_0/Dense_1/bias", "mlp.fc2.bias", "same"),
            )
        ),
        *(
            (f"{_HEADS}/{ours}/{kind}", (), f"encoder.layers.{{}}.self_attn.{theirs}", layout)
            for ours, theirs, kind, layout in (
                ("query", "q_proj.weight", "kernel", "linear"),
                ("query", "q_proj.bias", "bias", "flat"),
                ("key", "k_proj.weight", "kernel", "linear"),
                ("key", "k_proj.bias", "bias", "flat"),
                ("value", "v_proj.weight", "kernel", "linear"),
                ("value", "v_proj.bias", "bias", "flat"),
                ("out", "out_proj.weight", "kernel", "from heads"),
                ("out", "out_proj.bias", "bias", "same"),
            )
        ),
    ),
    "img/head": (("kernel", (), "weight", "linear"), ("bias", (), "bias", "same")),
}
_STACKED = ("layers/", f"{_BLOCK}/")


class _Piece(NamedTuple):
    """One tensor of theirs as a part of one of ours."""

    ours: str  # e.g. "llm/layers/attn/kv_einsum/w"
    index: tuple[int, ...]  # into ours, layer first
    theirs: str  # without the part's prefix
    layout: str


def _pieces(part: str, names: Mapping[str, tuple[int, ...]]) -> Iterator[_Piece]:
    """Every tensor of a part, for the parameters (name -> shape) that our model has."""
    post_norms = "llm/layers/post_attention_norm/scale" in names
    for ours, index, theirs, layout in _TABLE[part]:
        path = f"{part}/{ours}"
        if path not in names:
            continue
        if ours == "layers/pre_ffw_norm/scale" and not post_norms:
            theirs = theirs.replace("pre_feedforward_layernorm", "post_attention_layernorm")
        if ours.startswith(_STACKED):
            for layer in range(names[path][0]):
                yield _Piece(path, (layer, *index), theirs.format(layer), layout)
        else:
            yield _Piece(path, index, theirs, layout)


def _to_theirs(x: np.ndarray, layout: str) -> np.ndarray:
    if layout == "patches":  # p p 3 D -> D 3 p p
        return x.transpose(3, 2, 0, 1)
    if layout == "heads first":  # N D H -> (N H) D
        return x.transpose(0, 2, 1).reshape(-1, x.shape[1])
    if layout == "from heads":  # N H D -> D (N H)
        return x.reshape(-1, x.shape[-1]).T
    if layout == "linear":  # in, out or heads -> out, in
        return x.reshape(x.shape[0], -1).T
    if layout == "flat":  # N H -> (N H)
        return x.reshape(-1)
    return x


def _to_ours(x: np.ndarray, layout: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse, to `shape`; only called where the sizes fit."""
    if layout == "patches":
        return x.transpose(2, 3, 1, 0)
    if layout == "heads first":
        n, d, h = shape
        return x.reshape(n, h, d).transpose(0, 2, 1)
    if layout in ("from heads", "linear"):
        return x.T.reshape(shape)
    if layout == "flat":
        return x.reshape(shape)
    return x


def their_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """What a tensor of ours has as its shape in their layout."""
    return _to_theirs(np.broadcast_to(np.int8(0), shape), layout).shape


class Tensors(Protocol):
    """Tensors of a file by name; read when asked."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def __getitem__(self, name: str) -> np.ndarray: ...


class TheirFile:
    """One or several safetensors files, by tensor name; read when asked.

    Raises:
      FileNotFoundError, ValueError: nothing there, or a truncated file, by name.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"no .safetensors file in {path}")
        self._files = {}
        for file in files:
            try:
                opened = safe_open(file, framework="numpy")
            except (OSError, SafetensorError) as e:
                raise ValueError(f"{file} is not a whole safetensors file: {e}") from e
            self._files |= dict.fromkeys(opened.keys(), opened)
        self.shapes = {k: tuple(f.get_slice(k).get_shape()) for k, f in self._files.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name)


def read_hugging_face(file: Tensors, like: Params) -> tuple[dict[str, Stored], list[str]]:
    """Their tensors as ours. Reads shapes only, and an output matrix that may not be a tied one.

    Args:
      like: our parameters or their shapes; says what the model has.

    Returns:
      Our parameters by name, "llm/final_norm/scale", of the parts that the file has, in its own
      sizes where only the vocabulary or the number of patches differs; and what of the file was
      left out because this model has no place for it.

    Raises:
      ValueError: missing, unexplained or wrong-shaped tensors; each is listed.
    """
    theirs = file.shapes
    names = {k: tuple(v.shape) for k, v in flatten(like).items()}
    problems, explained = [], set()
    pieces: dict[str, list[tuple[_Piece, str]]] = {}
    prefixes = _find_parts(theirs)
    for part, prefix in prefixes.items():
        for piece in _pieces(part, names):
            name, shape = prefix + piece.theirs, names[piece.ours]
            explained.add(name)
            want = their_shape(shape[len(piece.index) :], piece.layout)
            if name not in theirs:
                problems.append(f"missing: {name} {want} (our {piece.ours})")
                continue
            free = _free_axes(piece)
            if not _fits(theirs[name], want, free):
                problems.append(f"wrong shape: {name} is {theirs[name]}, the model has {want}")
                continue
            pieces.setdefault(piece.ours, []).append((piece, name))
    left_out = _left_out(file, theirs, prefixes, explained)
    problems += [
        f"unexplained: {name} {shape}"
        for name, shape in theirs.items()
        if name not in explained and name not in left_out
    ]
    if not prefixes:
        problems = ["no part of SigLIP, Gemma or PaliGemma is in it"]
    if problems:
        raise ValueError("the file does not fit the model:\n  " + "\n  ".join(problems))
    return {k: _assembled(file, parts, names[k]) for k, parts in pieces.items()}, left_out


def _assembled(file: Tensors, parts: list[tuple[_Piece, str]], shape: tuple[int, ...]) -> Stored:
    """One parameter of ours from its pieces; a free axis has the file's length."""
    first, name = parts[0]
    free = _free_axes(first)
    if free:
        axis = len(first.index) + free[0]
        shape = (*shape[:axis], file.shapes[name][free[0]], *shape[axis + 1 :])
    inner = shape[len(first.index) :]

    def read() -> np.ndarray:
        whole = None
        for piece, theirs in parts:
            ours = _to_ours(file[theirs], piece.layout, inner)
            if whole is None:
                whole = np.empty(shape, ours.dtype)
            whole[piece.index] = ours
        assert whole is not None
        return whole

    return Stored(shape, read)


def _free_axes(piece: _Piece) -> tuple[int, ...]:
    """Axes whose length the file may choose: they are resized afterwards."""
    return (0,) if piece.ours in ("llm/embedder/input_embedding", "img/pos_embedding") else ()


def _fits(shape: tuple[int, ...], want: tuple[int, ...], free: tuple[int, ...]) -> bool:
    return len(shape) == len(want) and all(
        a == b or i in free for i, (a, b) in enumerate(zip(shape, want))
    )


def _find_parts(theirs: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Part -> the prefix of its names, for the parts that the file has."""
    found = {}
    for part, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            if prefix + _LANDMARKS[part] in theirs:
                found[part] = prefix
                break
    return found


def _left_out(file, theirs, prefixes: Mapping[str, str], explained: set[str]) -> list[str]:
    """Tensors that a VLA has no place for: SigLIP's pooling head and text tower, a tied output."""
    vision = prefixes.get("img", "\0")
    dropped = (f"{vision}head.", "text_model.", "logit_scale", "logit_bias")
    found = [n for n in theirs if n not in explained and n.startswith(dropped)]
    table = prefixes.get("llm", "\0") + _LANDMARKS["llm"]
    for name in ("lm_head.weight", "language_model.lm_head.weight"):
        if name in theirs and table in theirs:
            if not np.array_equal(file[name], file[table]):
                raise ValueError(f"{name} differs from {table}: this model ties the two")
            found.append(name)
    return found


def write_hugging_face(
    path: str | Path, params: Params, config: ModelConfig, *, dtype: str = "float32"
) -> None:
    """Writes a directory that `transformers` loads as PaliGemma: safetensors and config.json.

    Raises:
      ValueError: transformers has no such model, e.g. one with a convolutional stem.
    """
    path = Path(path)
    theirs_config = paligemma_config(config)
    path.mkdir(parents=True, exist_ok=True)
    flat = flatten(params)
    names = {k: tuple(v.shape) for k, v in flat.items()}
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    tensors = {}
    for part, prefix in _EXPORT_PREFIXES.items():
        for piece in _pieces(part, names):
            x = _to_theirs(np.asarray(flat[piece.ours])[piece.index], piece.layout)
            tensors[prefix + piece.theirs] = np.ascontiguousarray(x).astype(kind)
    _write_shards(path, tensors)
    (path / "config.json").write_text(json.dumps(theirs_config, indent=2) + "\n")


def in_shards(tensors: Mapping[str, np.ndarray], most_bytes: int) -> list[dict[str, np.ndarray]]:
    """In their order, up to so many bytes each, or one tensor."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, x in tensors.items():
        if size + x.nbytes > most_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = x
        size += x.nbytes
    return shards


def _write_shards(path: Path, tensors: dict[str, np.ndarray]) -> None:
    shards = in_shards(tensors, MAX_SHARD_BYTES)
    if len(shards) == 1:
        save_file(shards[0], path / "model.safetensors", metadata={"format": "pt"})
        return
    index = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    total = sum(x.nbytes for x in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (path / "model.safetensors.index.json").write_text(text + "\n")


def paligemma_config(config: ModelConfig) -> dict:
    """config.json of the same model in transformers. Raises ValueError where it has none."""
    vit, decoder = config.vit, config.decoder
    plain = VitConfig(vit.width, vit.depth, vit.mlp_dim, vit.num_heads, vit.patch_size)
    if vit != plain:
        raise ValueError(f"transformers' SigLIP has no encoder like that of {config.preset!r}")
    if decoder.parallel_blocks or decoder.activation != "gelu":
        raise ValueError(f"transformers' Gemma has no decoder like that of {config.preset!r}")
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": decoder.vocab_size,
        "projection_dim": decoder.width,
        "hidden_size": decoder.width,
        "vocab_size": decoder.vocab_size,
        "vision_config": _siglip_config(vit, config),
        "text_config": gemma_config(decoder) | {"num_image_tokens": config.num_patches},
    }


def _siglip_config(vit: VitConfig, config: ModelConfig) -> dict:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": vit.width,
        "intermediate_size": vit.mlp_dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "image_size": config.image_size,
        "patch_size": vit.patch_size,
        "projection_dim": config.decoder.width,
        "vision_use_head": False,
    }


def gemma_config(d: DecoderConfig) -> dict:
    """transformers' configuration of a Gemma 1, 2 or 3 decoder."""
    kind = "gemma3_text" if d.qk_norm else "gemma2" if d.post_norms else "gemma"
    common = {
        "model_type": kind,
        "vocab_size": d.vocab_size,
        "hidden_size": d.width,
        "intermediate_size": d.mlp_dim,
        "num_hidden_layers": d.depth,
        "num_attention_heads": d.num_heads,
        "num_key_value_heads": d.num_kv_heads,
        "head_dim": d.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    }
    plain = {"rope_type": "default", "rope_theta": d.rope_base}
    if kind == "gemma":
        return common | {"rope_parameters": plain}
    layers = range(d.depth)
    common |= {
        "query_pre_attn_scalar": d.query_scale or d.head_dim,
        "attn_logit_softcapping": d.attention_softcap,
        "final_logit_softcapping": d.logit_softcap,
        "sliding_window": d.window or 4096,
        "layer_types": [
            "full_attention" if d.is_global(i) else "sliding_attention" for i in layers
        ],
    }
    if kind == "gemma2":
        return common | {"rope_parameters": plain}
    scaled = plain if d.rope_scale == 1 else plain | {"rope_type": "linear", "factor": d.rope_scale}
    local = {"rope_type": "default", "rope_theta": d.local_rope_base}
    rope = {"full_attention": scaled, "sliding_attention": local}
    return common | {"rope_parameters": rope}
