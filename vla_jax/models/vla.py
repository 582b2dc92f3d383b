"""The vision-language-action model: image tokens, then text tokens, one prefix-LM decoder.

    sequence    [view 0 patches] .. [view n patches] [state] [BOS prompt] [answer EOS] [padding]
    attention    <------------------- both ways ------------------------>  causal

Actions are answers like any other: RT-2 (arXiv 2307.15818) adds no parameters for them. The state
is one position, if the model has it, and none otherwise.

A packed row holds several examples, first the images of all, then the states, then the texts. Each
position has the number of its example, its segment; the mask keeps segments apart and positions
count within them, so that each example gives what it gives alone. Segment 0 belongs to all: several
texts share one picture if the picture is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.models.attention import count_together, prefix_lm_mask
from vla_jax.models.decoder import Caches, Decoder, empty_caches
from vla_jax.models.linear import Dense
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vit import Vit, position_curves
from vla_jax.types import Params


class State(NamedTuple):
    """What robots measure of themselves, one for each example of a row."""

    values: jax.Array | np.ndarray  # float32 [B, S] or, in packed rows, [B, k, S]
    valid: jax.Array | np.ndarray  # bool [B] or [B, k]: there is one


class Segments(NamedTuple):
    """Which example of a packed row each image and each text position belongs to, from 1.

    Image 0 belongs to every text, and sees none of them. Text 0 is padding.
    """

    images: jax.Array  # int32 [B, views]
    text: jax.Array  # int32 [B, T]


class Vla(nn.Module):
    """The model. Use through `apply` with the plain parameter dict."""

    config: ModelConfig

    def setup(self):
        self.img = Vit(self.config)
        self.llm = Decoder(self.config)
        if self.config.state_size:
            self.state = Dense((self.config.decoder.width,), bias=False)

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        attend_causal: jax.Array,
        valid: jax.Array,
        segments: Segments | None = None,
        wanted: jax.Array | None = None,
        state: State | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The training forward.

        Args:
          images: uint8 [B, views, h, w, 3]; in packed rows, views of all examples one after the
            other.
          tokens: int32 [B, T]; attend_causal, valid: bool [B, T].
          segments: of packed rows.
          wanted: int32 [B, W], the text positions to return; None: all.
          state: needed by a model with a state, and by no other.

        Returns:
          Hidden states of the text positions [B, T or W, D], before the logits; and the image
          tokens [B, P, D].
        """
        image_tokens = self.image_tokens(images)
        x, seen = self._sequence(image_tokens, tokens, valid, state)
        offset = x.shape[1] - tokens.shape[1]
        together = None
        if segments is not None:
            of_images = jnp.repeat(segments.images, image_tokens.shape[1] // images.shape[1], 1)
            states = jnp.arange(1, offset - image_tokens.shape[1] + 1)
            of_states = jnp.broadcast_to(states, (x.shape[0], len(states)))
            segment = jnp.concatenate([of_images, of_states, segments.text], axis=1)
            padding = jnp.pad(segments.text == 0, ((0, 0), (offset, 0)))
            query, key = segment[:, :, None], segment[:, None]
            # Padding sees what comes before it, so that no row is empty; nobody sees padding.
            together = (query == key) | (key == 0) | padding[:, :, None]
        causal = jnp.pad(attend_causal, ((0, 0), (offset, 0)))
        mask = self._mask(seen, causal, image_tokens.shape[1], together)
        if wanted is None:
            wanted = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = self.llm(x, _positions(seen, together), mask, wanted=offset + wanted)
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
        self,
        images: jax.Array,
        tokens: jax.Array,
        valid: jax.Array,
        state: State | None = None,
        *,
        max_new_tokens: int,
    ) -> tuple[jax.Array, Caches, jax.Array]:
        """Runs images and prompts [B, T] once.

        Returns:
          hidden [B, D] of each row's last prompt token; the caches, with room for `max_new_tokens`;
          seen: bool [B, S], which cache positions hold something.
        """
        image_tokens = self.image_tokens(images)
        x, seen = self._sequence(image_tokens, tokens, valid, state)
        length = x.shape[1]
        caches = empty_caches(self.config, x.shape[0], length + max_new_tokens)
        positions = _positions(seen)
        last = length - 1 - jnp.argmax(seen[:, ::-1], axis=1)
        mask = self._mask(seen, jnp.zeros_like(seen), image_tokens.shape[1])
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

    def _mask(
        self,
        seen: jax.Array,
        causal: jax.Array,
        patches: int,
        together: jax.Array | None = None,
    ) -> jax.Array:
        """Who sees whom, bool [B, T, T]; the first `patches` positions are the images."""
        is_text = jnp.arange(seen.shape[1]) >= patches
        hidden_from_images = is_text & (not self.config.image_sees_text)
        return prefix_lm_mask(seen, causal, hidden_from_images, together)

    def _sequence(
        self, image_tokens: jax.Array, tokens: jax.Array, valid: jax.Array, state: State | None
    ) -> tuple[jax.Array, jax.Array]:
        """What the decoder reads, [B, P + T, D], and which of it is there."""
        b, patches, width = image_tokens.shape
        if self.config.vit.decoder_positions:
            curves = position_curves(self.config.num_patches, width, 10.0)
            curves = jnp.tile(curves, (1, patches // self.config.num_patches, 1))
            image_tokens = image_tokens + curves.astype(image_tokens.dtype)
        parts = [image_tokens, self.llm.embed(tokens)]
        seen = [jnp.ones((b, patches), bool), valid]
        size = self.config.state_size
        if (state is not None) != bool(size):
            raise ValueError(
                f"model.state_size is {size}, and {'a' if state is not None else 'no'} state is "
                "given: data.state and the model must agree"
            )
        if state is not None:
            values = jnp.reshape(state.values, (b, -1, size)).astype(image_tokens.dtype)
            parts.insert(1, self.state(values))
            seen.insert(1, jnp.reshape(state.valid, (b, -1)))
        return jnp.concatenate(parts, axis=1), jnp.concatenate(seen, axis=1)


def _positions(seen: jax.Array, together: jax.Array | None = None) -> jax.Array:
    """bool [B, T] -> int [B, T]: how many valid tokens of its example come before each."""
    return jnp.maximum(count_together(seen, together) - 1, 0)


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
    state = None
    if config.state_size:
        state = State(jnp.zeros((1, config.state_size)), jnp.ones(1, bool))
    return dict(Vla(config).init(rng, images, tokens, mask, mask, state=state)["params"])
