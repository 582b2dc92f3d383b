"""Decoder language model with big_vision's parameter names (`llm/...`)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax.models.attention import attend, rope
from vla_jax.models.linear import project
from vla_jax.models.presets import ModelConfig
from vla_jax.models.stack import layer_stack


class KVCache(NamedTuple):
    """Keys and values of every layer, [L, B, S, K, H] each."""

    k: jax.Array
    v: jax.Array


def empty_cache(config: ModelConfig, batch: int, length: int) -> KVCache:
    """A zero cache for `length` positions; what is not yet written must be masked."""
    d = config.decoder
    shape = (d.depth, batch, length, d.num_kv_heads, d.head_dim)
    return KVCache(*(jnp.zeros(shape, config.compute_dtype) for _ in range(2)))


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + scale), in float32 (epsilon 1e-6, as Gemma)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + 1e-6)
        return (y * (1.0 + scale)).astype(x.dtype)


class Weight(nn.Module):
    """One tensor named `w`, so that the tree has big_vision's names."""

    shape: tuple[int, ...]
    fan_in: int

    @nn.compact
    def __call__(self, start: jax.Array | float = 0.0) -> jax.Array:
        """`start` is added to fresh weights."""
        normal = nn.initializers.normal(self.fan_in**-0.5)
        return self.param("w", lambda rng: normal(rng, self.shape) + start)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and an explicit cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: KVCache | None, positions: jax.Array, mask: jax.Array, start
    ) -> tuple[jax.Array, KVCache | None]:
        d = self.config.decoder
        n, k, h = d.num_heads, d.num_kv_heads, d.head_dim
        w_kv = Weight((2, k, d.width, h), d.width, name="kv_einsum")()
        alike = jnp.roll(jnp.repeat(w_kv[0], n // k, axis=0), d.width // 2, axis=1)
        w_q = Weight((n, d.width, h), d.width, name="q_einsum")(d.query_key_similarity * alike)
        w_out = Weight((n, h, d.width), n * h, name="attn_vec_einsum")()
        q = rope(project(x, w_q.transpose(1, 0, 2)), positions, d.rope_base)
        keys, values = (project(x, w.transpose(1, 0, 2)) for w in w_kv)
        keys = rope(keys, positions, d.rope_base)
        if cache is not None:
            keys = jax.lax.dynamic_update_slice_in_dim(cache.k, keys, start, axis=1)
            values = jax.lax.dynamic_update_slice_in_dim(cache.v, values, start, axis=1)
            cache = KVCache(keys, values)
        out = attend(q, keys, values, mask)
        return project(out, w_out, num_in=2), cache


class FeedForward(nn.Module):
    """GeGLU (arXiv 2002.05202) with the tanh approximation, without biases."""

    mlp_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        init = nn.initializers.normal
        gating = self.param("gating_einsum", init(width**-0.5), (2, width, self.mlp_dim))
        linear = self.param("linear", init(self.mlp_dim**-0.5), (self.mlp_dim, width))
        y = nn.gelu(project(x, gating[0])) * project(x, gating[1])
        return project(y, linear)


class DecoderBlock(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x, cache, positions, mask, start):
        y = RMSNorm(name="pre_attention_norm")(x)
        y, cache = Attention(self.config, name="attn")(y, cache, positions, mask, start)
        x = x + y
        y = RMSNorm(name="pre_ffw_norm")(x)
        return x + FeedForward(self.config.decoder.mlp_dim, name="mlp")(y), cache


class Embedder(nn.Module):
    """The vocabulary's embedding, shared between input and output."""

    vocab_size: int
    width: int
    integer_rows: tuple[int, int] | None = None

    def setup(self):
        shape = (self.vocab_size, self.width)
        self.input_embedding = self.param("input_embedding", self._init, shape)

    def _init(self, rng: jax.Array, shape: tuple[int, int]) -> jax.Array:
        # Rows of length ~1: times sqrt(D) on input they match the residual stream, and logits of a
        # normed hidden state start with unit variance.
        table = nn.initializers.normal(self.width**-0.5)(rng, shape)
        if self.integer_rows is None:
            return table
        first, last = self.integer_rows
        count = last - first
        # Neighbours mixed by a Gaussian of a sixteenth of the range make a smooth curve.
        apart = jnp.arange(count)[:, None] - jnp.arange(count)
        weights = jnp.exp(-0.5 * (apart / (count / 16)) ** 2)
        weights /= jnp.sqrt(jnp.sum(weights**2, axis=1, keepdims=True))
        return table.at[first:last].set(weights @ table[first:last])

    def encode(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """int [B, T] -> [B, T, D]."""
        rows = jnp.take(self.input_embedding, tokens, axis=0).astype(dtype)
        return rows * jnp.sqrt(jnp.asarray(self.width, dtype))

    def logits(self, x: jax.Array, rows: jax.Array | None) -> jax.Array:
        """[..., D] -> float32 [..., V], or [..., R] for R embedding rows."""
        table = self.input_embedding if rows is None else self.input_embedding[rows]
        flat = x.reshape(-1, x.shape[-1])
        y = jnp.einsum("RD,VD->RV", flat, table.astype(x.dtype), preferred_element_type=jnp.float32)
        return y.reshape(*x.shape[:-1], -1)


class Decoder(nn.Module):
    """Embeddings in, final-normed hidden states out; logits on request."""

    config: ModelConfig

    def setup(self):
        d = self.config.decoder
        self.embedder = Embedder(d.vocab_size, d.width, d.integer_rows)
        b = nn.broadcast
        stack = layer_stack(DecoderBlock, self.config, length=d.depth, in_axes=(0, b, b, b))
        self.layers = stack(self.config)
        self.final_norm = RMSNorm()

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [B, T] -> [B, T, D] in the compute dtype."""
        return self.embedder.encode(tokens, jnp.dtype(self.config.compute_dtype))

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: KVCache | None = None,
        start: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the layers.

        Args:
          x: [B, T, D].
          positions: int [B, T], rotary position of each row.
          mask: bool [B, T, S]; S = T without a cache, the cache's length with one.
          cache: keys and values so far; this call writes its own at `start`.

        Returns:
          hidden states after the final norm [B, T, D], and the new cache.
        """
        x, cache = self.layers(x, cache, positions, mask, start)
        return self.final_norm(x), cache

    def logits(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """Hidden states [..., D] -> float32 logits [..., V or len(rows)]."""
        return self.embedder.logits(x, rows)
