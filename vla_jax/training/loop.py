"""The one training loop, for every stage.

Order within a step, which resume relies on: take the batch of step s, update, log if due, save if
due. A checkpoint at step s therefore means "samples [0, s * samples_per_step) are used".
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Literal

import jax
from jax.sharding import Mesh

from vla_jax.data.mixture import Mixture
from vla_jax.sharding.mesh import to_global
from vla_jax.training.augment import AugmentConfig
from vla_jax.training.metrics import MetricWriter
from vla_jax.training.step import Metrics, TrainState
from vla_jax.training.window import Window, progress_line
from vla_jax.types import Batch

# Steps dispatched ahead of the one whose result is awaited: enough to hide the host's work.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One stage of training.

    Attributes:
      steps: updates in all.
      batch_size: rows per update, over all hosts.
      seed: of the fresh parameters.
      log_every, checkpoint_every: steps between.
      keep_checkpoints: newest ones kept.
      integer_smoothing: see `losses.answer_loss`; in bins, 0 for one-hot targets.
      label_smoothing, z_loss: see `losses.answer_loss`; 0 for none.
      micro_batches: parts that a batch is gone through in, one after the other, where it does not
        fit the memory at once; the update is the same.
      ema_decay: evaluation and policies use a running mean of the parameters, which keeps so much
        of itself in an update, e.g. 0.9999; 0: the parameters themselves.
      params_dtype: what parameters are kept in; see `training.step` for "bfloat16".
      source_gradient_norms: log the norm of each source's part of the gradient, too; costs a
        backward pass per source whenever it logs.
      augment: how images of robot samples are changed.
      init_from: parameter file (`.npz`) or run directory to start from; empty for fresh ones.
    """

    steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    integer_smoothing: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    micro_batches: int = 1
    ema_decay: float = 0.0
    params_dtype: Literal["float32", "bfloat16"] = "float32"
    source_gradient_norms: bool = False
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    init_from: str = ""

    def __post_init__(self):
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        for name in (*counts, "micro_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("integer_smoothing", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"train.batch_size {self.batch_size} does not divide into train.micro_batches "
                f"{self.micro_batches}"
            )


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]],
    batches: Iterator[Batch],
    config: TrainConfig,
    *,
    mesh: Mesh,
    writer: MetricWriter,
    mixture: Mixture,
    samples_per_step: int,
    save: Callable[[int, TrainState], None],
    print_line: Callable[[str], None] = print,
) -> TrainState:
    """Trains from the state's step to `config.steps` and saves at the end.

    Args:
      batches: host-local batches, the first one that of the state's step.
      mixture: that they are made from.
      samples_per_step: samples that an update uses.
      save: called with (step, state) every `checkpoint_every` steps and after the last one.
    """
    start = int(state["step"])
    window = Window(mixture, samples_per_step)
    in_flight: collections.deque[jax.Array] = collections.deque()
    begun = time.perf_counter()
    for step in range(start + 1, config.steps + 1):
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        state, metrics = train_step(state, to_global(batch, mesh, config.batch_size))  # pyright: ignore
        window.add(metrics, waited)
        in_flight.append(metrics["loss"])
        if len(in_flight) > _IN_FLIGHT:
            in_flight.popleft().block_until_ready()
        if step == start + 1:
            # The first step compiles; it would make every speed figure of this window wrong.
            metrics["loss"].block_until_ready()
            first = window.scalars(step)
            writer.write(step, {k: v for k, v in first.items() if not k.startswith("speed/")})
            print_line(f"step {step}: compiled in {time.perf_counter() - begun:.1f} s")
            window.reset()
            begun = time.perf_counter()
        elif step % config.log_every == 0 or step == config.steps:
            scalars = window.scalars(step)
            writer.write(step, scalars)
            eta = (config.steps - step) * (time.perf_counter() - begun) / (step - start - 1)
            print_line(progress_line(step, config.steps, scalars, mixture.names, eta))
            window.reset()
        if step % config.checkpoint_every == 0 or step == config.steps:
            save(step, state)
    return state
