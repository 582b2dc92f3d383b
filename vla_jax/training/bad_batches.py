"""What becomes of batches whose loss or gradient is NaN or infinite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vla_jax.data.mixture import Mixture

Policy = Literal["stop", "skip", "roll_back"]
FILE = "bad_batches.jsonl"


class BadBatches:
    """Counts them, writes down what was in them, and says what to do.

    `guard.guarded` never applies such an update. So with "skip" training goes on as if the batch
    had not been there. With "roll_back" it goes on behind the batch with the state of the newest
    checkpoint, so that updates since then, which led there, are forgotten and their samples are not
    seen again: what was done by hand for PaLM (arXiv 2204.02311, section 5.1). Both are the same
    again when a killed run comes to that batch a second time.

    Each is a line of `bad_batches.jsonl` in the run directory: "step", "loss", "grad_norm",
    "policy", "loss_by_source" (nats per token), and of its samples, over all hosts, "samples"
    (their numbers in the mixture, as in the batch's "sample"), and by source "records".

    Args:
      workdir: existing run directory.
      mixture, samples_per_step: which samples a step has.
      policy: what to do.
      limit: bad batches of a run, beyond which it stops whatever the policy.
      known: steps counted before this process started.
      active: False for all but one process of a job: it writes nothing.
    """

    def __init__(
        self,
        workdir: Path,
        mixture: Mixture,
        samples_per_step: int,
        policy: Policy = "stop",
        limit: int = 10,
        known: Sequence[int] = (),
        *,
        active: bool = True,
    ):
        self._path = workdir / FILE
        self._mixture, self._per_step = mixture, samples_per_step
        self._policy, self._limit, self._active = policy, limit, active
        self.steps = list(known)

    def report(self, step: int, metrics: dict[str, Any]) -> bool:
        """Writes the batch of update number `step` down.

        Returns:
          Whether to go back to the newest checkpoint.

        Raises FloatingPointError if training is to stop.
        """
        if step not in self.steps:
            self.steps.append(step)
        found = jax.device_get(metrics)
        loss, norm = float(found["loss"]), float(found["grad_norm"])
        if self._active:
            self._write(step, loss, norm, found["by_source"])
        what = f"step {step}: the loss is {loss} and the gradient norm {norm}"
        if self._policy == "stop" or len(self.steps) > self._limit:
            why = ""
            if self._policy != "stop":
                why = f", one more than train.max_bad_batches {self._limit}"
            raise FloatingPointError(
                f"{what}{why}. Its samples are in {self._path}: look for corrupt data there, or "
                "lower optimizer.learning_rate or clip_norm, or set train.on_nan to 'skip' or "
                "'roll_back'; the last checkpoint is intact"
            )
        return self._policy == "roll_back"

    def _write(self, step: int, loss: float, norm: float, by_source: dict[str, Any]) -> None:
        samples = np.arange((step - 1) * self._per_step, step * self._per_step)
        source, record = self._mixture.locate(samples)
        sums = {name: np.asarray(by_source[name], np.float64) for name in ("loss", "tokens")}
        names = [(s, name) for s, name in enumerate(self._mixture.names) if (source == s).any()]
        line = {
            "step": step,
            "loss": str(loss),  # JSON has no NaN
            "grad_norm": str(norm),
            "policy": self._policy,
            "loss_by_source": {
                name: str(float(sums["loss"][s] / sums["tokens"][s]))
                for s, name in names
                if sums["tokens"][s]
            },
            "samples": samples.tolist(),
            "records": {name: record[source == s].tolist() for s, name in names},
        }
        # Once each: a run that was killed may come to the same batch again.
        before = self._path.read_text() if self._path.exists() else ""
        if not any(_step_of(text) == step for text in before.splitlines()):
            with self._path.open("a") as file:
                cut_off = before and not before.endswith("\n")
                file.write("\n" * bool(cut_off) + json.dumps(line) + "\n")


def _step_of(line: str) -> int | None:
    """None for a line cut off by a crash."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return None
