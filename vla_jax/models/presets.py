"""Model sizes by name. Plain dataclasses: no Flax, so configs can read them.

`VITS` and `DECODERS` are the parts, `PRESETS` what they are put together to. Sizes are those of the
papers; the source stands beside each.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Literal

RematPolicy = Literal["none", "full", "dots"]
AttentionBackend = Literal["xla", "cudnn", "splash"]


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Vision transformer: pre-norm blocks, learned position embedding.

    Attributes:
      stem: with one, the patch is embedded by convolutions instead of one linear map (arXiv
        2106.14881; the hybrid of arXiv 2010.11929). Each entry is (channels, residual blocks): the
        first begins with a 4 x 4 convolution of stride 4, the others and the last, to the width,
        with a 3 x 3 one of stride 2. What a convolution learns at one place holds at every other,
        which is what a model needs that sees 10^5 pictures and not 10^9.
      decoder_positions: fixed sines and cosines of row and column are added to the image tokens as
        they enter the decoder. Tokens trained to say which word belongs to a patch forget where the
        patch is.
      parallel_blocks: attention and MLP read the same normed input and are added together (ViT-22B,
        arXiv 2302.05442).
      qk_norm: LayerNorm on queries and keys, per head (ViT-22B).
      biases: in query, key and value projections and in norms; ViT-22B has none there.
      class_token: a learned token without a place comes before the patches. They see it, and it is
        dropped at the end (DINOv2, arXiv 2304.07193).
      exact_gelu: GELU by the error function, not by tanh (DINOv2).
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    stem: tuple[tuple[int, int], ...] = ()
    decoder_positions: bool = False
    parallel_blocks: bool = False
    qk_norm: bool = False
    biases: bool = True
    class_token: bool = False
    exact_gelu: bool = False

    def __post_init__(self):
        if self.stem and self.patch_size != 4 * 2 ** len(self.stem):
            raise ValueError(
                f"a stem of {len(self.stem)} stages makes patches of {4 * 2 ** len(self.stem)} "
                f"pixels, not {self.patch_size}"
            )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Decoder: RMSNorm, rotary positions, grouped queries, gated MLP, tied embedding.

    Attributes:
      activation: of the gate: "gelu" (tanh approximation; GeGLU) or "silu" (SwiGLU).
      parallel_blocks: attention and MLP read the same normed input (PaLM, arXiv 2204.02311).
      post_norms: RMSNorm on what attention and MLP add, too (Gemma 2, arXiv 2408.00118).
      qk_norm: RMSNorm on queries and keys, per head (Gemma 3, arXiv 2503.19786).
      query_scale: queries are divided by its square root; None: `head_dim`.
      attention_softcap, logit_softcap: x -> cap * tanh(x / cap) on attention and output logits
        (Gemma 2); None: none.
      window: local layers see so many positions, their own included, and all of the prefix that
        sees them; None: all layers are global.
      global_every: every so many layers one is global, the last of each group.
      rope_base: period base of rotary positions, in global layers; `local_rope_base` in local ones.
      rope_scale: positions are divided by it in global layers (Gemma 3 from 4B on).
      integer_rows: the embedding rows [first, last) that stand for the integers 0, 1, 2, ... They
        start as sines and cosines of 16 wavelengths, from 8 integers to twice their range, rather
        than as unrelated vectors: what is learnt about one coordinate or action bin holds near it
        from the first step, and a difference of two is a product of what gated MLPs multiply.
      query_key_similarity: fresh query weights hold so many times the key weights, so that
        attention starts as looking for what is alike (mimetic initialization, arXiv 2305.09828).
        They are rolled as image tokens are to their words (`training.alignment.alignment_loss`): by
        half the width in half of the heads, where the word "dog" then finds the patches that show
        one, and not itself; by a quarter and three quarters in the others, where a coordinate finds
        what is there.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    activation: Literal["gelu", "silu"] = "gelu"
    parallel_blocks: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    query_scale: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    window: int | None = None
    global_every: int = 1
    rope_base: float = 10_000.0
    local_rope_base: float = 10_000.0
    rope_scale: float = 1.0
    integer_rows: tuple[int, int] | None = None
    query_key_similarity: float = 0.0

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.window is None and self.global_every != 1:
            raise ValueError(f"global_every {self.global_every} needs a window for local layers")

    def is_global(self, layer: int) -> bool:
        """Whether a layer, counted from 0, sees everything."""
        return self.window is None or (layer + 1) % self.global_every == 0


VITS: dict[str, VitConfig] = {
    # ViT (arXiv 2010.11929) B and L; So400m (arXiv 2305.13035) as SigLIP (arXiv 2303.15343) has it.
    "B/16": VitConfig(768, 12, 3072, 12, 16),
    "L/16": VitConfig(1024, 24, 4096, 16, 16),
    "So400m/14": VitConfig(1152, 27, 4304, 16, 14),
    # Scaling Vision Transformers (arXiv 2106.04560), table 2.
    "g/14": VitConfig(1408, 40, 6144, 16, 14),
    "G/14": VitConfig(1664, 48, 8192, 16, 14),
    # PaLI (arXiv 2209.06794): "ViT-4B" of PaLM-E.
    "e/14": VitConfig(1792, 56, 15_360, 16, 14),
    # ViT-22B (arXiv 2302.05442).
    "22B/14": VitConfig(6144, 48, 24_576, 48, 14, parallel_blocks=True, qk_norm=True, biases=False),
    # DINOv2 (arXiv 2304.07193), its LayerScale folded into the projections before it.
    "dinov2_S/14": VitConfig(384, 12, 1536, 6, 14, class_token=True, exact_gelu=True),
}

_GEMMA2 = {"post_norms": True, "attention_softcap": 50.0, "window": 4096, "global_every": 2}
_GEMMA3 = {"post_norms": True, "qk_norm": True, "global_every": 6, "rope_base": 1_000_000.0}
_PALI_VOCABULARY = 250_112  # PaLI's: mT5's 250k SentencePiece pieces, padded to a multiple of 128

DECODERS: dict[str, DecoderConfig] = {
    # Gemma (arXiv 2403.08295), with PaliGemma's 1,024 + 128 location and segmentation tokens.
    "gemma_2b": DecoderConfig(2048, 18, 16_384, 8, 1, 256, 257_152),
    # Gemma 2 (arXiv 2408.00118), table 1. 27B scales queries by width / heads.
    "gemma2_2b": DecoderConfig(2304, 26, 9216, 8, 4, 256, 257_216, logit_softcap=30.0, **_GEMMA2),
    "gemma2_9b": DecoderConfig(
        3584, 42, 14_336, 16, 8, 256, 257_216, logit_softcap=30.0, **_GEMMA2
    ),
    "gemma2_27b": DecoderConfig(
        4608, 46, 36_864, 32, 16, 128, 257_216, query_scale=144, logit_softcap=30.0, **_GEMMA2
    ),
    # Gemma 3 (arXiv 2503.19786), tables 1 and 2; 270M: its model card.
    "gemma3_270m": DecoderConfig(640, 18, 2048, 4, 1, 256, 262_144, window=512, **_GEMMA3),
    "gemma3_1b": DecoderConfig(1152, 26, 6912, 4, 1, 256, 262_144, window=512, **_GEMMA3),
    "gemma3_4b": DecoderConfig(
        2560, 34, 10_240, 8, 4, 256, 262_208, window=1024, rope_scale=8.0, **_GEMMA3
    ),
    # PaLM 8B (arXiv 2204.02311, table 1): parallel blocks, one key/value head, SwiGLU.
    "palm_8b": DecoderConfig(
        4096, 32, 16_384, 16, 1, 256, 256_000, activation="silu", parallel_blocks=True
    ),
    # Stand-ins for the UL2 encoder-decoders of PaLI-X (arXiv 2305.18565) and of RT-2's PaLI-3B:
    # this code has one kind of decoder, and a prefix-LM reads its prefix both ways as an encoder
    # does. An encoder and a decoder layer of width w, MLP width 4 w and cross-attention hold
    # 3 x 4 w^2 attention and 2 x 12 w^2 MLP weights; one layer of width 1.5 w holds the same 36
    # w^2. So depth and parameters are kept (UL2-3B's narrower MLP: to 4%). What differs: prefix and
    # answer share weights, there is no cross-attention, positions are rotary, not relative biases.
    "ul2_32b": DecoderConfig(6144, 50, 24_576, 24, 24, 256, _PALI_VOCABULARY, activation="silu"),
    "ul2_3b": DecoderConfig(3072, 24, 7680, 24, 24, 128, _PALI_VOCABULARY, activation="silu"),
}

# Where the vocabulary that ships with the code keeps `<000>` .. `<255>`.
_INTEGERS = (4, 260)

PRESETS: dict[str, tuple[VitConfig, DecoderConfig]] = {
    # For tests: compiles and steps in a second or two.
    "tiny": (
        VitConfig(32, 2, 64, 2, 14),
        DecoderConfig(32, 2, 64, 2, 1, 16, 4096, integer_rows=_INTEGERS),
    ),
    # The laptop demo's model, and the shape of the small web-trained VLM that ships with the code.
    "demo": (
        VitConfig(128, 3, 384, 4, 16, stem=((48, 1), (96, 2)), decoder_positions=True),
        DecoderConfig(
            128, 4, 384, 4, 4, 32, 4096, integer_rows=_INTEGERS, query_key_similarity=2.0
        ),
    ),
    # Half of it: the smaller of the two sizes that the experiment compares on a laptop.
    "demo_small": (
        VitConfig(96, 2, 288, 4, 16, stem=((32, 1), (64, 1)), decoder_positions=True),
        DecoderConfig(96, 3, 288, 4, 4, 24, 4096, integer_rows=_INTEGERS, query_key_similarity=2.0),
    ),
    # The same shape for one GPU, the two sizes of the experiment's preset of that name.
    "demo_10m": (
        VitConfig(256, 4, 1024, 8, 16, stem=((64, 1), (128, 2)), decoder_positions=True),
        DecoderConfig(
            256, 6, 768, 8, 8, 32, 4096, integer_rows=_INTEGERS, query_key_similarity=2.0
        ),
    ),
    "demo_56m": (
        VitConfig(512, 6, 2048, 8, 16, stem=((64, 1), (128, 2)), decoder_positions=True),
        DecoderConfig(
            512, 10, 1536, 8, 8, 64, 4096, integer_rows=_INTEGERS, query_key_similarity=2.0
        ),
    ),
    # PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555).
    "paligemma_3b": (VITS["So400m/14"], DECODERS["gemma_2b"]),
    "paligemma2_3b": (VITS["So400m/14"], DECODERS["gemma2_2b"]),
    "paligemma2_10b": (VITS["So400m/14"], DECODERS["gemma2_9b"]),
    "paligemma2_28b": (VITS["So400m/14"], DECODERS["gemma2_27b"]),
    # The smallest with a pretrained language model.
    "gemma3_270m_vla": (VITS["B/16"], DECODERS["gemma3_270m"]),
    # Both parts pretrained, from PyPI (`tools/fetch_backbone.py`). The encoder there was tuned for
    # saliency, which bent its last block most: it is left out.
    "gemma3_270m_dino_s": (
        dataclasses.replace(VITS["dinov2_S/14"], depth=11),
        DECODERS["gemma3_270m"],
    ),
    # RT-2 (arXiv 2307.15818), appendix D. The paper does not say what PaLI-X 5B consists of; ViT-G
    # and a 3B UL2 are what PaLI-3 (arXiv 2310.09199) calls 5B.
    "rt2_pali_3b": (VITS["G/14"], DECODERS["ul2_3b"]),
    "rt2_pali_x_5b": (VITS["G/14"], DECODERS["ul2_3b"]),
    "rt2_palm_e_12b": (VITS["e/14"], DECODERS["palm_8b"]),
    "rt2_pali_x_55b": (VITS["22B/14"], DECODERS["ul2_32b"]),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which model, at which image size, in which precision.

    Attributes:
      preset: a name in `PRESETS`.
      image_size: height and width of each view in pixels; a multiple of the patch size.
      num_views: images per example.
      image_sees_text: image tokens attend to the prompt, as in PaliGemma. Without it they are the
        same whatever is asked, so several questions can share one picture (packed rows).
      state_size: S, numbers of the robot's state, which a linear map makes one more position; 0:
        none. `data.state` says where they come from.
      compute_dtype: dtype of activations and matrix products. Parameters, softmax, norms and the
        loss stay float32.
      lora_rank: low-rank adapters on every projection of the decoder, see `models.lora`; 0: none.
      lora_alpha: adapters count `lora_alpha / lora_rank` times.
      remat: what the backward pass recomputes: nothing, everything but block inputs ("full"), or
        everything but matrix products ("dots").
      attention: what computes it: plain XLA, cuDNN's flash attention (NVIDIA GPUs, bfloat16) or
        Pallas splash attention (TPUs). Results agree within rounding.
      unroll_layers: compile the layers one after the other instead of as a loop. Faster on CPU,
        slower to compile; parameters and results are the same.
    """

    preset: str
    image_size: int = 224
    num_views: int = 1
    image_sees_text: bool = True
    state_size: int = 0
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    remat: RematPolicy = "none"
    attention: AttentionBackend = "xla"
    unroll_layers: bool = False

    def __post_init__(self):
        if self.preset not in PRESETS:
            close = difflib.get_close_matches(self.preset, PRESETS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no model preset {self.preset!r}{hint} Known: {sorted(PRESETS)}")
        if self.image_size % self.vit.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the patch size "
                f"{self.vit.patch_size} of preset {self.preset!r}"
            )
        if self.state_size < 0:
            raise ValueError(f"model.state_size must be at least 0, got {self.state_size}")
        if self.attention == "cudnn" and self.compute_dtype != "bfloat16":
            raise ValueError("model.attention 'cudnn' needs model.compute_dtype 'bfloat16'")
        if self.attention == "cudnn" and self.decoder.attention_softcap is not None:
            raise ValueError(
                f"model.attention 'cudnn' cannot soft-cap as preset {self.preset!r} does: use 'xla'"
            )

    @property
    def vit(self) -> VitConfig:
        return PRESETS[self.preset][0]

    @property
    def decoder(self) -> DecoderConfig:
        return PRESETS[self.preset][1]

    @property
    def num_patches(self) -> int:
        """P: image tokens per view."""
        return (self.image_size // self.vit.patch_size) ** 2
