"""Gemma 3 from a GGUF file (llama.cpp's format): its tensors under Hugging Face's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
        path = Path(path)
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
        self._dequantize = gguf.dequantize
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


def _their_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; others as they are."""
    if name.startswith("blk."):
        _, layer, rest = name.split(".", 2)
        return f"model.layers.{layer}.{_NAMES.get(rest, rest)}"
    return _NAMES.get(name, name)
