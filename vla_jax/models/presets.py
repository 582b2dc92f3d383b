"""Model sizes by name. Plain dataclasses: no Flax, so configs can read them."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Literal

RematPolicy = Literal["none", "full", "dots"]


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Vision transformer: pre-norm blocks, learned position embedding, no class token.

    With a `stem` the patch is embedded by convolutions instead of one linear map (arXiv 2106.14881;
    the hybrid of arXiv 2010.11929). Each entry is (channels, residual blocks): the first begins
    with a 4 x 4 convolution of stride 4, the others and the last, to the width, with a 3 x 3 one of
    stride 2. What a convolution learns at one place holds at every other, which is what a model
    needs that sees 10^5 pictures and not 10^9.

    With `decoder_positions` fixed sines and cosines of row and column are added to the image tokens
    as they enter the decoder. Tokens trained to say which word belongs to a patch forget where the
    patch is.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    stem: tuple[tuple[int, int], ...] = ()
    decoder_positions: bool = False

    def __post_init__(self):
        if self.stem and self.patch_size != 4 * 2 ** len(self.stem):
            raise ValueError(
                f"a stem of {len(self.stem)} stages makes patches of {4 * 2 ** len(self.stem)} "
                f"pixels, not {self.patch_size}"
            )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Gemma-style decoder: RMSNorm, rotary positions, grouped queries, GeGLU, tied embedding.

    `integer_rows` are the embedding rows [first, last) that stand for the integers 0, 1, 2, ...
    They start as a smooth curve rather than as unrelated vectors, so what is learnt about one
    coordinate or action bin holds near it from the first step.

    Fresh query weights hold `query_key_similarity` times the key weights, so that attention starts
    as looking for what is alike (mimetic initialization, arXiv 2305.09828). They are rolled by half
    the width, as image tokens are to their words (`training.alignment.alignment_loss`): the word
    "dog" then finds the patches that show one, and not itself.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rope_base: float = 10_000.0
    integer_rows: tuple[int, int] | None = None
    query_key_similarity: float = 0.0


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
    # PaliGemma 3B (arXiv 2407.07726): SigLIP So400m/14 and Gemma 2B.
    "paligemma_3b": (
        VitConfig(1152, 27, 4304, 16, 14),
        DecoderConfig(2048, 18, 16_384, 8, 1, 256, 257_152),
    ),
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
      compute_dtype: dtype of activations and matrix products. Parameters, softmax, norms and the
        loss stay float32.
      remat: what the backward pass recomputes: nothing, everything but block inputs ("full"), or
        everything but matrix products ("dots").
      unroll_layers: compile the layers one after the other instead of as a loop. Faster on CPU,
        slower to compile; parameters and results are the same.
    """

    preset: str
    image_size: int = 224
    num_views: int = 1
    image_sees_text: bool = True
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: RematPolicy = "none"
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
