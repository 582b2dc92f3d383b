"""Loss and token accuracy of held-out data, source by source, with the run's own parameters."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vla_jax.data.loader import EvaluationBatch, evaluation_batches
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.decoding.processes import FailedElsewhereError, gather
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import Vla
from vla_jax.sharding.mesh import batch_sharding, batch_shards, local_rows, replicated, to_global
from vla_jax.training.losses import answer_logits
from vla_jax.types import Params

# Their tokens are numbers, one for each dimension of each action in turn.
_TOKEN_IS_NUMBER = ("uniform", "quantile")
_COLUMNS = ("images", "tokens", "attend_causal", "in_loss", "valid", "state", "state_valid")


def row_sums(
    model: Vla,
    params: Params,
    batch: dict[str, jax.Array],
    *,
    max_answer_tokens: int,
    action_tokens: int = 0,
) -> dict[str, jax.Array]:
    """Sums over the answer tokens of each row.

    Args:
      action_tokens: n; each answer ends with so many tokens of an action, and EOS.

    Returns:
      float32 [B] "loss" (nats, against one-hot targets), "correct" (the likeliest token), "tokens";
      with `action_tokens` also [B, n] "correct_each" and "tokens_each", by place in the action.
    """
    said = answer_logits(model, params, batch, max_answer_tokens)
    target = jnp.take_along_axis(said.logits, said.target[..., None], axis=-1)[..., 0]
    weight = said.in_loss.astype(jnp.float32)
    nats = (jax.nn.logsumexp(said.logits, axis=-1) - target) * weight
    correct = (target >= jnp.max(said.logits, axis=-1)) * weight
    sums = {"loss": nats.sum(1), "correct": correct.sum(1), "tokens": weight.sum(1)}
    if action_tokens:
        first = jnp.sum(batch["valid"], axis=1) - 1 - action_tokens
        place = jax.nn.one_hot(said.position - first[:, None], action_tokens)  # 0 for text and EOS
        sums["correct_each"] = jnp.einsum("BK,BKn->Bn", correct, place, precision="highest")
        sums["tokens_each"] = jnp.einsum("BK,BKn->Bn", weight, place, precision="highest")
    return sums


class HeldOutLoss:
    """Measures sources one after the other, over all processes together.

    Sums of rows come out whole everywhere and are added up in float64 in the order of the samples,
    and divided once: how many processes there are, and how large batches, changes nothing but
    rounding inside a row.

    Args:
      sources: held-out data, by name.
      builder: as in training.
      config: the model.
      mesh, shardings: of the parameters, as in training.
      batch_size: rows of a batch; raised to the next number that divides over the mesh.
      limit: most samples of a source, spread evenly over it.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        builder: SequenceBuilder,
        config: ModelConfig,
        mesh: Mesh,
        shardings: Params,
        *,
        batch_size: int,
        limit: int,
    ):
        self._sources, self._builder, self._limit = sources, builder, limit
        self._image_size, self._mesh = config.image_size, mesh
        shards = batch_shards(mesh)
        self._batch_size = -(-batch_size // shards) * shards
        sums = functools.partial(row_sums, Vla(config), max_answer_tokens=builder.max_answer_tokens)

        def on_mesh(params: Params, batch: dict[str, jax.Array], action_tokens: int):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return sums(params, batch, action_tokens=action_tokens)

        self._sums = jax.jit(
            on_mesh,
            static_argnums=2,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, params: Params) -> dict[str, float]:
        """ "SOURCE/loss", nats a token, and "SOURCE/token_accuracy"; of robots whose tokens are
        numbers also "SOURCE/token_accuracy/DIMENSION". The true tokens come before each."""
        scalars = {}
        for name, source in self._sources.items():
            names = self._dimensions(source)
            sums = self._of_source(params, source, len(names))
            scalars[f"{name}/loss"] = float(sums["loss"] / sums["tokens"])
            scalars[f"{name}/token_accuracy"] = float(sums["correct"] / sums["tokens"])
            for dimension in dict.fromkeys(names):
                mine = np.asarray([own == dimension for own in names])
                count = sums["tokens_each"][mine].sum()
                if count:
                    right = sums["correct_each"][mine].sum()
                    scalars[f"{name}/token_accuracy/{dimension}"] = float(right / count)
        return scalars

    def _dimensions(self, source: Source) -> list[str]:
        """Of each token of an action, what it says a number of; of texts nothing."""
        spec = source.action_spec
        if spec is None:
            return []
        tokenizer = self._builder.tokenizer_of(spec.name)
        if tokenizer.kind not in _TOKEN_IS_NUMBER:
            return []
        return [dimension.name for dimension in spec.dimensions] * tokenizer.chunk

    def _of_source(self, params: Params, source: Source, action_tokens: int):
        """Name of a sum -> float64, over all samples."""
        found: dict[str, list[np.ndarray]] = {}
        batches = evaluation_batches(
            source,
            self._builder,
            batch_size=self._batch_size,
            image_size=self._image_size,
            limit=self._limit,
            rows=local_rows(self._mesh, self._batch_size),
        )
        for batch in _together(batches):
            columns: dict[str, np.ndarray] = {k: v for k, v in batch.items() if k in _COLUMNS}  # pyright: ignore
            columns["in_loss"] = batch["in_loss"] & batch["row_valid"][:, None]
            arrays = to_global(columns, self._mesh, self._batch_size)
            for key, rows in self._sums(params, arrays, action_tokens).items():
                found.setdefault(key, []).append(np.asarray(rows, np.float64))
        sums = {key: np.concatenate(rows).sum(axis=0) for key, rows in found.items()}
        if not sums["tokens"]:
            raise ValueError(f"source {source.name!r}: its held-out samples have no answer tokens")
        return sums


def _together(batches: Iterator[EvaluationBatch]) -> Iterator[EvaluationBatch]:
    """The batches; if one process cannot read its rows, the others do not wait for it for ever.

    Raises what reading them does, or FailedElsewhereError.
    """
    while True:
        batch, error = None, None
        try:
            batch = next(batches, None)
        except Exception as e:
            error = e
        everybody = gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = [f"process {n} failed: {text}" for n, text in enumerate(everybody) if text]
        if failed:
            raise FailedElsewhereError(failed[0])
        if batch is None:
            return
        yield batch
