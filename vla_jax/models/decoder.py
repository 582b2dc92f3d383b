"""Decoder language model with big_vision's parameter names (`llm/...`).

One module is Gemma 1, 2 and 3, PaLM and the stand-in for UL2: `presets.DecoderConfig` says what
differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.models.attention import attend, rope, rope_frequencies
from vla_jax.models.linear import project
from vla_jax.models.lora import adapt
from vla_jax.models.presets import ModelConfig
from vla_jax.models.stack import run_layers
from vla_jax.sharding.activations import split_rows
from vla_jax.sharding.mesh import batch_shards
from vla_jax.sharding.vocabulary import look_up, multiply, vocabulary_axes


class KVCache(NamedTuple):
    """Keys and values, [B, S, K, H] each; of all layers, [L, B, S, K, H]."""

    k: jax.Array
    v: jax.Array


Caches = KVCache | tuple[KVCache, ...]
"""Of all layers: stacked or, where layers are unrolled, one by one."""


def empty_caches(config: ModelConfig, batch: int, length: int) -> Caches:
    """Zero caches for `length` positions; what is not yet written must be masked."""
    d = config.decoder
    shape = (batch, length, d.num_kv_heads, d.head_dim)

    def zeros(*layers: int) -> KVCache:
        return KVCache(*(jnp.zeros((*layers, *shape), config.compute_dtype) for _ in range(2)))

    return tuple(zeros() for _ in range(d.depth)) if config.unroll_layers else zeros(d.depth)


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
    def __call__(self, start: Callable[[], jax.Array] | None = None) -> jax.Array:
        """What `start` makes is added to fresh weights; with given ones it is never called."""
        normal = nn.initializers.normal(self.fan_in**-0.5)

        def fresh(rng: jax.Array) -> jax.Array:
            w = normal(rng, self.shape)
            return w if start is None else w + start()

        return self.param("w", fresh)


class Context(NamedTuple):
    """What every layer needs to know of the sequence.

    Attributes:
      positions: int [B, T], rotary positions.
      mask: bool [B, T, S], who sees whom in global layers.
      local_mask: likewise in local layers; the same where there are none.
      start: int [], where in the cache this call writes.
      wanted: int [B, W], the positions whose output is asked for; None: all.
    """

    positions: jax.Array
    mask: jax.Array
    local_mask: jax.Array
    start: jax.Array | int
    wanted: jax.Array | None = None

    def of_wanted(self, x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [B, W, ...]: the rows that are asked for."""
        if self.wanted is None:
            return x
        return jnp.take_along_axis(
            x, self.wanted.reshape(*self.wanted.shape, *[1] * (x.ndim - 2)), 1
        )


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and an explicit cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: KVCache | None, is_global: jax.Array, context: Context
    ) -> tuple[jax.Array, KVCache | None]:
        d = self.config.decoder
        n, k, h = d.num_heads, d.num_kv_heads, d.head_dim
        w_kv = Weight((2, k, d.width, h), d.width, name="kv_einsum")()

        def alike() -> jax.Array:
            """Half of the heads look for names, the others for places."""
            quarters = (2, 2, 1, 3)
            rolled = [
                jnp.roll(w_kv[0, i * k // n], quarters[i % 4] * d.width // 4, axis=0)
                for i in range(n)
            ]
            return d.query_key_similarity * jnp.stack(rolled)

        w_q = Weight((n, d.width, h), d.width, name="q_einsum")(
            alike if d.query_key_similarity else None
        )
        w_out = Weight((n, h, d.width), n * h, name="attn_vec_einsum")()
        asking = context.of_wanted(x)
        q, keys, values = (
            adapt(self.config, name, inputs, project(inputs, w.transpose(1, 0, 2)))
            for name, inputs, w in (("q", asking, w_q), ("k", x, w_kv[0]), ("v", x, w_kv[1]))
        )
        if d.qk_norm:
            q, keys = RMSNorm(name="_query_norm")(q), RMSNorm(name="_key_norm")(keys)
        frequencies, mask = rope_frequencies(h, d.rope_base) / d.rope_scale, context.mask
        if d.window is not None:
            local = rope_frequencies(h, d.local_rope_base)
            frequencies = jnp.where(is_global, frequencies, local)
            mask = jnp.where(is_global, mask, context.local_mask)
        q = rope(q, context.of_wanted(context.positions), frequencies)
        keys = rope(keys, context.positions, frequencies)
        if cache is not None:
            keys = jax.lax.dynamic_update_slice_in_dim(cache.k, keys, context.start, axis=1)
            values = jax.lax.dynamic_update_slice_in_dim(cache.v, values, context.start, axis=1)
            cache = KVCache(keys, values)
        out = attend(
            q,
            keys,
            values,
            context.of_wanted(mask),
            scale=(d.query_scale or h) ** -0.5,
            softcap=d.attention_softcap,
            backend=self.config.attention,
        )
        return adapt(self.config, "out", out, project(out, w_out, num_in=2), num_in=2), cache


class FeedForward(nn.Module):
    """GeGLU with the tanh approximation, or SwiGLU (arXiv 2002.05202), without biases."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, d = self.config, self.config.decoder
        init = nn.initializers.normal
        gating = self.param("gating_einsum", init(d.width**-0.5), (2, d.width, d.mlp_dim))
        linear = self.param("linear", init(d.mlp_dim**-0.5), (d.mlp_dim, d.width))
        gate = adapt(config, "gate", x, project(x, gating[0]))
        up = adapt(config, "up", x, project(x, gating[1]))
        y = _gated(d.activation)(gate, up)
        return adapt(config, "down", y, project(y, linear))


def _gated(activation: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """activation(gate) * up; the backward pass starts from gate and up and keeps nothing else."""
    function = {"gelu": nn.gelu, "silu": nn.silu}[activation]
    return jax.checkpoint(lambda gate, up: function(gate) * up)


class DecoderBlock(nn.Module):
    """One layer: [B, T, D] -> [B, W, D], of the positions that the context asks for."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: KVCache | None, is_global: jax.Array, context: Context
    ) -> tuple[jax.Array, KVCache | None]:
        d, x = self.config.decoder, split_rows(x)
        attention, mlp = Attention(self.config, name="attn"), FeedForward(self.config, name="mlp")
        y = RMSNorm(name="pre_attention_norm")(x)
        attended, cache = attention(y, cache, is_global, context)
        x = context.of_wanted(x)
        if d.parallel_blocks:
            return x + attended + mlp(context.of_wanted(y)), cache
        if d.post_norms:
            attended = RMSNorm(name="post_attention_norm")(attended)
        x = x + attended
        y = mlp(RMSNorm(name="pre_ffw_norm")(x))
        if d.post_norms:
            y = RMSNorm(name="post_ffw_norm")(y)
        return x + y, cache


_TABLE = "llm/embedder/input_embedding"


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
        waves = min(16, self.width // 2)
        wavelengths = jnp.geomspace(8.0, 2.0 * (last - first), waves)
        angle = 2 * jnp.pi * jnp.arange(last - first)[:, None] / wavelengths
        curve = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1) / waves**0.5
        basis = nn.initializers.orthogonal()(jax.random.fold_in(rng, 1), (2 * waves, self.width))
        return table.at[first:last].set(curve @ basis)

    def encode(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """int [B, T] -> [B, T, D]."""
        table = self.input_embedding
        axes = vocabulary_axes(_TABLE, table.shape, tokens.size)
        if axes and tokens.shape[0] % batch_shards(jax.sharding.get_abstract_mesh()) == 0:
            rows = look_up(table, tokens, axes, dtype)
        else:
            rows = jnp.take(table, tokens, axis=0).astype(dtype)
        return rows * jnp.sqrt(jnp.asarray(self.width, dtype))

    def logits(self, x: jax.Array, rows: jax.Array | None) -> jax.Array:
        """[..., D] -> float32 [..., V], or [..., R] for R embedding rows."""
        table = self.input_embedding if rows is None else self.input_embedding[rows]
        flat = x.reshape(-1, x.shape[-1])
        axes = () if rows is not None else vocabulary_axes(_TABLE, table.shape, flat.shape[0])
        if axes:
            y = multiply(flat, table, axes)
        else:
            table = table.astype(x.dtype)
            y = jnp.einsum("RD,VD->RV", flat, table, preferred_element_type=jnp.float32)
        return y.reshape(*x.shape[:-1], -1)


def _within(window: int, mask: jax.Array, positions: jax.Array, keys: jax.Array) -> jax.Array:
    """Narrows mask [B, T, S] to the last `window` positions [B, T] of keys [B, S].

    Positions that see each other, a prefix, are not limited: as transformers' PaliGemma 2 has it.
    """
    near = positions[:, :, None] - keys[:, None, :] < window
    if mask.shape[1] == 1:  # one more token sees, and is not seen
        return mask & near
    first = mask[:, :, : mask.shape[1]]
    mutual = jnp.pad(
        first & first.swapaxes(1, 2), ((0, 0), (0, 0), (0, near.shape[2] - first.shape[2]))
    )
    return mask & (near | mutual)


class Decoder(nn.Module):
    """Embeddings in, final-normed hidden states out; logits on request."""

    config: ModelConfig

    def setup(self):
        d = self.config.decoder
        self.embedder = Embedder(d.vocab_size, d.width, d.integer_rows)
        self.final_norm = RMSNorm()

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [B, T] -> [B, T, D] in the compute dtype."""
        return self.embedder.encode(tokens, jnp.dtype(self.config.compute_dtype))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        wanted: jax.Array | None = None,
        key_positions: jax.Array | None = None,
        caches: Caches | None = None,
        start: jax.Array | int = 0,
    ) -> tuple[jax.Array, Caches | None]:
        """Runs the layers.

        Args:
          x: [B, T, D].
          positions: int [B, T], rotary position of each row.
          mask: bool [B, T, S]; S = T without a cache, the cache's length with one.
          wanted: int [B, W], rows to return; None: all. An unrolled last layer computes these only.
          key_positions: int [B, S], of what is looked at; None: `positions`.
          caches: keys and values so far; this call writes its own at `start`, which is 0 unless T
            is 1.

        Returns:
          hidden states after the final norm [B, T or W, D], and the new caches.
        """
        d = self.config.decoder
        keys = positions if key_positions is None else key_positions
        local_mask = mask if d.window is None else _within(d.window, mask, positions, keys)
        is_global = np.array([d.is_global(layer) for layer in range(d.depth)])
        context = Context(positions, mask, local_mask, start)
        last = context._replace(wanted=wanted)
        x, new_caches = run_layers(
            self,
            DecoderBlock,
            "layers",
            d.depth,
            x,
            per_layer=(caches, is_global),
            shared=(context,),
            last_shared=(last,),
        )
        if not self.config.unroll_layers:
            x = last.of_wanted(x)
        return self.final_norm(x), None if caches is None else new_caches

    def logits(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        """Hidden states [..., D] -> float32 logits [..., V or len(rows)], soft-capped."""
        logits = self.embedder.logits(x, rows)
        cap = self.config.decoder.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
