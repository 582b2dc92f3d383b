"""What the log says of the steps since the last line: means, rates, shares of the mixture."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import numpy as np

from vla_jax.data.mixture import Mixture
from vla_jax.training.step import Metrics


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


def progress_line(
    step: int, steps: int, scalars: dict[str, float], names: Sequence[str], eta_s: float
) -> str:
    """The line that is printed, of `Window.scalars`."""
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
