"""What the log says of the steps since the last line: means, rates, shares of the mixture."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

import jax
import numpy as np

from vla_jax.data.mixture import Mixture
from vla_jax.training.flops import StepWork
from vla_jax.training.step import Metrics

# Windows that the time still to go is told from.
_RECENT = 5


class Window:
    """Sums over the steps since the last log line.

    Args:
      mixture: whose sources the metrics are sums by.
      samples_per_step: samples that an update uses.
      work: what an update takes; without it, tokens/s and FLOP/s are not told.
      clock: seconds.

    Attributes:
      waited_s, transfer_s: seconds of the window waited for batches, and taken to give them to the
        devices; the loop adds to them.
    """

    def __init__(
        self,
        mixture: Mixture,
        samples_per_step: int,
        work: StepWork | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._mixture, self._per_step, self._work = mixture, samples_per_step, work
        self._stage, self._stage_tokens = mixture.stages[0], np.zeros(len(mixture.names))
        self._clock, self._start = clock, clock()
        # (steps, seconds) of the last ones.
        self._recent = collections.deque[tuple[int, float]](maxlen=_RECENT)
        self._clear()

    def _clear(self) -> None:
        self._metrics: list[Metrics] = []
        self.waited_s = self.transfer_s = self._paused_s = 0.0

    def forget(self) -> None:
        """Begins a new window; this one, say with a compilation in it, tells nothing of speed."""
        self._clear()
        self._start = self._clock()

    def reset(self) -> None:
        """Begins a new window."""
        self._recent.append((len(self._metrics), self.elapsed_s + self._paused_s))
        self.forget()

    def pause(self, seconds: float) -> None:
        """The last `seconds` went into something else than updates: they count in no rate, but in
        the time still to go."""
        self._paused_s += seconds

    @property
    def elapsed_s(self) -> float:
        """Since the window began, without pauses."""
        return self._clock() - self._start - self._paused_s

    def add(self, metrics: Metrics) -> None:
        """An update's metrics, in order."""
        self._metrics.append(metrics)

    def eta_s(self, steps_left: int) -> float | None:
        """Seconds still to go at the pace of the last windows, this one included, with all that
        came between updates; None before there is one."""
        spans = [*self._recent, (len(self._metrics), self.elapsed_s + self._paused_s)][-_RECENT:]
        steps = sum(n for n, _ in spans)
        return steps_left * sum(seconds for _, seconds in spans) / steps if steps else None

    def scalars(self, step: int) -> dict[str, float]:
        """Means over the window, which ends with update number `step`, and the mixture's shares.

        Of each source, `truncated_share` of its samples had an answer that was cut, and
        `left_out_share` of what was packed did not fit its row (only where there are any). Of all
        positions that the model computed, images included, `padding_share` held nothing; the others
        are what tokens/s counts. `speed/mfu`, where the devices' peak is known, is the share of it
        that the model's own FLOPs are (arXiv 2204.02311, B).

        Raises FloatingPointError if a loss is not finite.
        """
        metrics = jax.device_get(self._metrics)
        elapsed = self.elapsed_s
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
            "speed/input_wait_share": self.waited_s / elapsed,
            "speed/transfer_share": self.transfer_s / elapsed,
        }
        sums = {
            key: np.sum([m["by_source"][key] for m in metrics], axis=0)
            for key in ("loss", "correct", "tokens", "samples", "truncated", "left_out", "used")
        }
        out["speed/samples_per_s"] = float(sums["samples"].sum() / elapsed)
        used = float(sums["used"].sum() / len(metrics))
        out["padding_share"] = 1 - used
        if self._work is not None:
            flops = self._work.flops * steps_per_s
            out["speed/tokens_per_s"] = used * self._work.positions * steps_per_s
            out["speed/model_flops_per_s"] = flops
            if self._work.peak_flops_per_s is not None:
                out["speed/mfu"] = flops / self._work.peak_flops_per_s
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


def realised_share(mixture: Mixture) -> str:
    """Which of a source's shares its configured one is to be compared with."""
    return "share_of_samples" if mixture.loss_tokens is None else "share_of_tokens"
