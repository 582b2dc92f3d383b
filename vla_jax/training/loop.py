"""The one training loop, for every stage.

Order within a step, which resume relies on: take the batch of step s, update, log if due, save if
due. A checkpoint at step s therefore means "samples [0, s * samples_per_step) are used".
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from vla_jax.data.mixture import Mixture
from vla_jax.sharding.mesh import to_global
from vla_jax.training.augment import AugmentConfig
from vla_jax.training.metrics import MetricWriter
from vla_jax.training.step import Metrics, TrainState
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
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    init_from: str = ""

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.integer_smoothing < 0:
            raise ValueError(
                f"train.integer_smoothing must be at least 0, got {self.integer_smoothing}"
            )


class Window:
    """Sums over the steps since the last log line.

    Args:
      mixture: whose sources the metrics are sums by.
      samples_per_step: samples that an update uses.
    """

    def __init__(self, mixture: Mixture, samples_per_step: int):
        self._mixture, self._per_step = mixture, samples_per_step
        self._stage, self._stage_tokens = mixture.stages[0], np.zeros(len(mixture.names))
        self.reset()

    def reset(self) -> None:
        self._metrics: list[Metrics] = []
        self._input_wait = 0.0
        self._start = time.perf_counter()

    def add(self, metrics: Metrics, input_wait: float) -> None:
        self._metrics.append(metrics)
        self._input_wait += input_wait

    def scalars(self, step: int) -> dict[str, float]:
        """Means over the window, which ends with update number `step`, and the mixture's shares.

        Of each source, `truncated_share` of its samples had an answer that was cut, and
        `left_out_share` of what was packed did not fit its row (only where there are any). Of all
        positions that the model computed, images included, `padding_share` held nothing.

        Raises FloatingPointError if a loss is not finite.
        """
        metrics = jax.device_get(self._metrics)
        elapsed = time.perf_counter() - self._start
        loss = np.asarray([m["loss"] for m in metrics])
        if not np.isfinite(loss).all():
            raise FloatingPointError(
                "the loss is NaN or infinite: lower optimizer.learning_rate or clip_norm, or look "
                "for corrupt data; the last checkpoint is intact"
            )
        steps_per_s = len(metrics) / elapsed
        out = {
            "loss": float(loss.mean()),
            "grad_norm": float(np.mean([m["grad_norm"] for m in metrics])),
            "speed/steps_per_s": steps_per_s,
            "speed/input_wait_share": self._input_wait / elapsed,
        }
        sums = {
            key: np.sum([m["by_source"][key] for m in metrics], axis=0)
            for key in ("loss", "correct", "tokens", "samples", "truncated", "left_out", "used")
        }
        out["speed/samples_per_s"] = float(sums["samples"].sum() / elapsed)
        out["padding_share"] = float(1 - sums["used"].sum() / len(metrics))
        for s, name in enumerate(self._mixture.names):
            if sums["tokens"][s]:
                out[f"{name}/loss"] = float(sums["loss"][s] / sums["tokens"][s])
                out[f"{name}/token_accuracy"] = float(sums["correct"][s] / sums["tokens"][s])
            if sums["samples"][s]:
                out[f"{name}/truncated_share"] = float(sums["truncated"][s] / sums["samples"][s])
            if sums["left_out"][s]:
                seen = sums["samples"][s] + sums["left_out"][s]
                out[f"{name}/left_out_share"] = float(sums["left_out"][s] / seen)
        tokens = np.asarray([m["by_source"]["tokens"] for m in metrics], np.float64)
        return out | self._shares(step, tokens)

    def _shares(self, step: int, tokens: np.ndarray) -> dict[str, float]:
        """What part of the samples and loss tokens each source and group has had and should have.

        Since the mixture's shares last changed; tokens at most since this process started. And how
        often each source has been gone through since the start of the run.

        Args:
          tokens: float64 [steps of the window, sources].
        """
        end, mixture = step * self._per_step, self._mixture
        stage = mixture.stage(end - 1)
        if stage is not self._stage:
            self._stage, self._stage_tokens = stage, np.zeros(len(mixture.names))
        step_end = end - self._per_step * np.arange(len(tokens))[::-1]
        self._stage_tokens += tokens[step_end > stage.start].sum(0)
        counts = mixture.counts(end)
        shares = {
            "share_of_samples": (counts - stage.before) / (end - stage.start),
            "share_of_tokens": self._stage_tokens / max(1.0, self._stage_tokens.sum()),
            "share_configured": stage.configured,
        }
        out = {}
        for s, name in enumerate(mixture.names):
            out |= {f"{name}/{key}": float(share[s]) for key, share in shares.items()}
            out[f"{name}/epoch"] = float(counts[s] / max(1, mixture.sizes[s]))
        for group, members in mixture.members.items():
            for key, share in shares.items():
                out[f"group/{group}/{key}"] = float(share[members].sum())
        return out


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
        state, metrics = train_step(state, to_global(batch, mesh))  # pyright: ignore
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
            print_line(_progress(step, config.steps, scalars, mixture.names, eta))
            window.reset()
        if step % config.checkpoint_every == 0 or step == config.steps:
            save(step, state)
    return state


def _progress(
    step: int, steps: int, scalars: dict[str, float], names: Sequence[str], eta_s: float
) -> str:
    parts = [
        f"{name} loss {scalars[f'{name}/loss']:.3f} acc {scalars[f'{name}/token_accuracy']:.3f}"
        for name in names
        if f"{name}/loss" in scalars
    ]
    return (
        f"step {step}/{steps}  "
        + "  ".join(parts)
        + f"  | {scalars['speed/samples_per_s']:.0f} samples/s"
        + f"  input wait {scalars['speed/input_wait_share']:.0%}"
        + f"  padding {scalars['padding_share']:.0%}"
        + f"  ETA {int(eta_s // 60)}:{int(eta_s % 60):02d}"
    )
