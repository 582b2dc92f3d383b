"""Gemma 3 from a GGUF file (llama.cpp's format): its tensors under Hugging Face's names, and its
vocabulary as a SentencePiece model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as protos

from vla_jax.text.vocabulary import SPACE

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}


class GgufFile:
    """float32 tensors, dequantized; scales of norms without the 1 that GGUF adds to them.

    Raises:
      FileNotFoundError: no such file.
      ImportError: the package gguf is not installed.
      ValueError: not a whole GGUF file of a Gemma 3 model.
    """

    def __init__(self, path: str | Path):
        self._dequantize, reader = _open(Path(path))
        self._tensors = {_their_name(tensor.name): tensor for tensor in reader.tensors}
        # GGUF counts axes from the last.
        self.shapes = {
            name: tuple(int(n) for n in tensor.shape[::-1])
            for name, tensor in self._tensors.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        x = self._dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return x - 1.0 if tensor.name.endswith("norm.weight") else x


def read_vocabulary(path: str | Path) -> bytes:
    """The vocabulary in a GGUF file as a SentencePiece model file, for `data.vocabulary`.

    Ids and scores are those of the file, and the kinds of pieces those of Gemma's own model: of
    what llama.cpp calls control tokens PAD, EOS and BOS are, the others (`<unused0>`, `<mask>`) are
    pieces that a text may spell.

    Raises:
      FileNotFoundError, ImportError: as `GgufFile`.
      ValueError: not a whole GGUF file of a Gemma 3 model, or one without its vocabulary.
    """
    fields = _open(Path(path))[1].fields
    try:
        pieces, scores, kinds = (
            fields[f"tokenizer.ggml.{name}"].contents()
            for name in ("tokens", "scores", "token_type")
        )
        pad, eos, bos, unknown = (
            fields[f"tokenizer.ggml.{name}_token_id"].contents()
            for name in ("padding", "eos", "bos", "unknown")
        )
    except KeyError as e:
        raise ValueError(f"{path} has no {e}: not a file with Gemma's vocabulary") from e
    message: Any = protos.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
    kind, model = message.SentencePiece.Type, message()
    for i, (piece, score, number) in enumerate(zip(pieces, scores, kinds, strict=True)):
        if number == kind.CONTROL:
            number = kind.USER_DEFINED
        if i in (pad, eos, bos):
            number = kind.CONTROL
        elif i == unknown:
            number = kind.UNKNOWN
        if number == kind.USER_DEFINED:
            piece = piece.replace(" ", SPACE)
        if number not in (kind.NORMAL, kind.BYTE):
            score = 0.0
        model.pieces.add(piece=piece, score=score, type=number)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size = trainer.BPE, len(pieces)
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = pad, eos, bos, unknown
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece, trainer.unk_piece = (
        pieces[i] for i in (pad, eos, bos, unknown)
    )
    # What Gemma's own model was trained with; a GGUF file says of it the dummy prefix alone.
    trainer.byte_fallback = trainer.split_digits = trainer.allow_whitespace_only_pieces = True
    trainer.split_by_whitespace = False
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    return model.SerializeToString()


def _open(path: Path) -> tuple[Any, Any]:
    """gguf's `dequantize`, and the reader of a Gemma 3 file."""
    if not path.exists():
        raise FileNotFoundError(f"no GGUF file {path}")
    try:
        import gguf  # an optional extra
    except ImportError as e:
        raise ImportError(f"reading {path} needs the package gguf: pip install gguf") from e
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError) as e:
        raise ValueError(f"{path} is not a whole GGUF file: {e}") from e
    field = reader.fields.get("general.architecture")
    architecture = field.contents() if field else None
    if architecture != "gemma3":
        raise ValueError(f"{path} holds a model of kind {architecture!r}, not 'gemma3'")
    return gguf.dequantize, reader


def _their_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; others as they are."""
    if name.startswith("blk."):
        _, layer, rest = name.split(".", 2)
        return f"model.layers.{layer}.{_NAMES.get(rest, rest)}"
    return _NAMES.get(name, name)
