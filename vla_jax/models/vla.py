"""The vision-language-action model: image tokens, then text tokens, one prefix-LM decoder.

    sequence    [view 0 patches] .. [view n patches] [BOS prompt] [answer EOS] [padding]
    attention    <------------- both ways ---------------------->  causal

Actions are answers like any other: RT-2 (arXiv 2307.15818) adds no parameters for them.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax.models.attention import prefix_lm_mask
from vla_jax.models.decoder import Caches, Decoder, empty_caches
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vit import Vit, position_curves
from vla_jax.types import Params


class Vla(nn.Module):
    """The model. Use through `apply` with the plain parameter dict."""

    config: ModelConfig

    def setup(self):
        self.img = Vit(self.config)
        self.llm = Decoder(self.config)

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        attend_causal: jax.Array,
        valid: jax.Array,
        segment: jax.Array | None = None,
        wanted: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The training forward.

        Args:
          images: uint8 [B, views, h, w, 3].
          tokens: int32 [B, T]; attend_causal, valid: bool [B, T].
          segment: int32 [B, T], for rows that pack several texts about the same images: 1, 2, ...
            in order. Each text sees the images and itself, as if it stood alone.
          wanted: int32 [B, W], the text positions to return; None: all.

        Returns:
          Hidden states of the text positions [B, T or W, D], before the logits; and the image
          tokens [B, P, D].
        """
        image_tokens = self.image_tokens(images)
        offset = image_tokens.shape[1]
        x, seen = self._sequence(image_tokens, tokens, valid)
        positions = _positions(seen)
        starts = jnp.arange(x.shape[1]) == offset
        if segment is not None:
            if self.config.image_sees_text:
                raise ValueError("packed rows need a model with image_sees_text=False")
            first = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)))
            starts = starts | jnp.pad(first, ((0, 0), (offset, 0)))
            begun = jax.lax.cummax(jnp.where(starts, positions, 0), axis=1)
            positions = jnp.where(begun > 0, positions - begun + offset, positions)
        mask = self._mask(seen, jnp.pad(attend_causal, ((0, 0), (offset, 0))), starts)
        if segment is not None:
            segment = jnp.pad(segment, ((0, 0), (offset, 0)))  # 0: the images
            mask &= (segment[:, None] == segment[:, :, None]) | (segment[:, None] == 0)
        if wanted is None:
            wanted = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = self.llm(x, positions, mask, wanted=offset + wanted)
        return hidden, image_tokens

    def image_tokens(self, images: jax.Array) -> jax.Array:
        """uint8 [B, views, h, w, 3] -> [B, P, D], in the space of the word embeddings."""
        b, views, h, w, c = images.shape
        if (h, w, c) != (self.config.image_size, self.config.image_size, 3):
            raise ValueError(
                f"the model takes images of {self.config.image_size} x {self.config.image_size} x 3"
                f", got {h} x {w} x {c}"
            )
        pixels = images.reshape(b * views, h, w, c).astype(jnp.float32) / 127.5 - 1.0
        x = self.img(pixels)
        return x.reshape(b, views * x.shape[1], x.shape[2])

    def logits(self, hidden: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """Hidden states [..., D] -> float32 logits over the vocabulary, or over `rows` of it."""
        return self.llm.logits(hidden, rows)

    def prefill(
        self, images: jax.Array, tokens: jax.Array, valid: jax.Array, *, max_new_tokens: int
    ) -> tuple[jax.Array, Caches, jax.Array]:
        """Runs images and prompts [B, T] once.

        Returns:
          hidden [B, D] of each row's last prompt token; the caches, with room for `max_new_tokens`;
          seen: bool [B, S], which cache positions hold something.
        """
        x, seen = self._sequence(self.image_tokens(images), tokens, valid)
        length = x.shape[1]
        caches = empty_caches(self.config, x.shape[0], length + max_new_tokens)
        positions = _positions(seen)
        last = length - 1 - jnp.argmax(seen[:, ::-1], axis=1)
        starts = jnp.arange(length) == length - tokens.shape[1]
        mask = self._mask(seen, jnp.zeros_like(seen), starts)
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, max_new_tokens)))
        seen = jnp.pad(seen, ((0, 0), (0, max_new_tokens)))
        key_positions = jnp.pad(positions, ((0, 0), (0, max_new_tokens)))
        hidden, new_caches = self.llm(
            x, positions, mask, wanted=last[:, None], key_positions=key_positions, caches=caches
        )
        assert new_caches is not None
        return hidden[:, 0], new_caches, seen

    def decode_step(
        self, tokens: jax.Array, caches: Caches, seen: jax.Array, start: jax.Array
    ) -> tuple[jax.Array, Caches, jax.Array]:
        """One more token per row, int32 [B], written at cache position `start`.

        Returns hidden [B, D], the caches and `seen` as `prefill` does.
        """
        seen = seen.at[:, start].set(True)
        positions = _positions(seen)
        hidden, new_caches = self.llm(
            self.llm.embed(tokens[:, None]),
            positions[:, -1:],
            seen[:, None],
            key_positions=positions,
            caches=caches,
            start=start,
        )
        assert new_caches is not None
        return hidden[:, 0], new_caches, seen

    def _mask(self, seen: jax.Array, causal: jax.Array, starts: jax.Array) -> jax.Array:
        """Who sees whom, bool [B, T, T]; `starts` marks the first position of each text."""
        if not self.config.image_sees_text:
            causal = causal | starts
        return prefix_lm_mask(seen, causal)

    def _sequence(
        self, image_tokens: jax.Array, tokens: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What the decoder reads, [B, P + T, D], and which of it is there."""
        b, patches, width = image_tokens.shape
        if self.config.vit.decoder_positions:
            curves = position_curves(self.config.num_patches, width, 10.0)
            curves = jnp.tile(curves, (1, self.config.num_views, 1))
            image_tokens = image_tokens + curves.astype(image_tokens.dtype)
        x = jnp.concatenate([image_tokens, self.llm.embed(tokens)], axis=1)
        return x, jnp.concatenate([jnp.ones((b, patches), bool), valid], axis=1)


def _positions(seen: jax.Array) -> jax.Array:
    """bool [B, T] -> int [B, T]: how many valid tokens come before each."""
    return jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)


def run_model(
    model: Vla, params: Params, *inputs: Any, method: str = "__call__", **options: Any
) -> Any:
    """`model.apply` with the plain parameter dict, typed by the method that is called."""
    return model.apply({"params": params}, *inputs, method=method, **options)


def init_params(config: ModelConfig, rng: jax.Array) -> Params:
    """Fresh float32 parameters. Trace it under `jax.eval_shape` for shapes without memory."""
    size = config.image_size
    images = jnp.zeros((1, config.num_views, size, size, 3), jnp.uint8)
    tokens = jnp.zeros((1, 2), jnp.int32)
    mask = jnp.ones((1, 2), bool)
    return dict(Vla(config).init(rng, images, tokens, mask, mask)["params"])
