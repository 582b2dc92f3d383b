"""Actions against the ones in held-out robot episodes, per dimension and in its own unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.evaluation.base import Result, finite
from vla_jax.evaluation.media import save_png
from vla_jax.evaluation.statistics import Sums, share_of

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

EXAMPLES = 12
_TERMINATE, _GRIPPER = "flag", ("closedness", "effort")


@dataclasses.dataclass(frozen=True)
class ActionBatch:
    """A few held-out robot steps.

    Attributes:
      images: uint8 [n, h, w, 3] or [n, views, h, w, 3].
      instructions: without the prompt template.
      actions: float32 [n, C, A], physical units: what was done.
      valid: bool [n, C, A], False for padded dimensions and steps.
      states: float32 [n, S], for a policy that takes them.
      numbers: int [n], of the steps in the pass; None: they come one after the other.
    """

    images: np.ndarray
    instructions: list[str]
    actions: np.ndarray
    valid: np.ndarray
    states: np.ndarray | None = None
    numbers: np.ndarray | None = None


class ActionEvaluator:
    """Token accuracy and error of decoded actions.

    Actions are decoded as the robot would get them: each token follows the policy's own earlier
    tokens, not the true ones.

    Args:
      batches: starts one pass over the samples.
      name: of the result.
      robot: whose actions they are, by the name of their ActionSpec; "": of the only one.
    """

    def __init__(
        self,
        batches: Callable[[], Iterator[ActionBatch]],
        name: str = "actions",
        robot: str = "",
    ):
        self._batches, self._robot = batches, robot
        self.name = name

    def measure(self, policy: Policy, media: Path | None = None) -> Result:
        """See `Evaluator`. Errors are absolute, in the dimension's unit."""
        policy = policy.for_robot(self._robot) if self._robot else policy
        tokenizer, spec = policy.action_tokenizer, policy.action_spec
        found: list[tuple[int, np.ndarray]] = []  # number, and [4, C, A]
        examples: list[dict[str, Any]] = []
        for batch in self._batches():
            result = policy.act(batch.images, batch.instructions, states=batch.states)
            wanted = [tokenizer.encode(chunk) for chunk in batch.actions]
            # What the true tokens decode to: with bins, equal numbers are equal tokens.
            same = result.actions == np.stack([tokenizer.decode(ids) for ids in wanted])
            numbers = range(len(found), len(found) + len(wanted))
            numbers = numbers if batch.numbers is None else batch.numbers.tolist()
            columns = [result.actions, batch.actions, batch.valid, same]
            found += zip(numbers, np.stack(columns, axis=1).astype(np.float32))
            if media is not None:
                _offer(examples, batch, result.ids, wanted, tokenizer.text, media, self.name)
        # In the order of the pass, however it was divided.
        found = sorted(policy.gather(found), key=lambda sample: sample[0])
        if not found:
            raise ValueError(f"evaluator {self.name!r} was given no samples")
        rows = np.stack([columns for _, columns in found], axis=1)  # [4, n, C, A]
        said, truth, valid, same = rows.reshape(4, -1, len(spec.dimensions))
        result = score(spec, said, truth, valid > 0, same > 0)
        return {**result, "examples": examples}


def score(
    spec: ActionSpec,
    said: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray,
    same: np.ndarray,
) -> Result:
    """Compares actions.

    Beside each error stands that of the best constant action, the median of the truth: a policy
    that has learned nothing about the picture reaches it.

    Args:
      said, truth: float32 [n, A].
      valid: bool [n, A].
      same: bool [n, A], whether the same numbers were said, as tokens.
    """
    sums = Sums()
    sums.add("token_accuracy", same, valid)
    sums.add("all_tokens", np.all(same | ~valid, axis=1))
    rows = []
    for a, dim in enumerate(spec.dimensions):
        mine = valid[:, a]
        error = np.abs(said[mine, a] - truth[mine, a])
        constant = np.abs(np.median(truth[mine, a]) - truth[mine, a]) if mine.any() else error
        sums.add(f"token_accuracy/{dim.name}", same[:, a], mine)
        sums.add(f"error/{dim.name}", error)
        rows.append(
            {
                "name": dim.name,
                "unit": dim.unit,
                "token_accuracy": sums.share(f"token_accuracy/{dim.name}"),
                "mean_error": sums.mean(f"error/{dim.name}"),
                "median_error": float(np.median(error)) if len(error) else None,
                "p90_error": float(np.quantile(error, 0.9)) if len(error) else None,
                "constant_error": float(constant.mean()) if len(constant) else None,
                "half_bin": 0.0 if dim.levels else (dim.high - dim.low) / 512,
            }
        )
    flags = {
        dim.name: _flag(said[:, a], truth[:, a], valid[:, a], (dim.low + dim.high) / 2)
        for a, dim in enumerate(spec.dimensions)
        if dim.unit in (_TERMINATE, *_GRIPPER)
    }
    scalars = dict(sums.means())
    for name, flag in flags.items():
        scalars[f"accuracy/{name}"] = flag["accuracy"]["share"]
    return {
        "n": len(truth),
        "spec": spec.name,
        "token_accuracy": sums.share("token_accuracy"),
        "all_tokens": sums.share("all_tokens"),
        "dimensions": rows,
        "flags": flags,
        "scalars": finite(scalars),
    }


def _flag(said: np.ndarray, truth: np.ndarray, valid: np.ndarray, middle: float) -> dict[str, Any]:
    """A two-way decision: above or below the middle of the range."""
    said, truth = said[valid] > middle, truth[valid] > middle
    return {
        "accuracy": share_of((said == truth).sum(), len(truth)),
        "found": share_of((said & truth).sum(), truth.sum()),  # of the ones, how many were said
        "false_alarms": share_of((said & ~truth).sum(), (~truth).sum()),
    }


def _offer(
    examples: list[dict[str, Any]],
    batch: ActionBatch,
    ids: np.ndarray,
    wanted: Sequence[np.ndarray],
    text: Callable[[np.ndarray], str],
    media: Path,
    name: str,
) -> None:
    """Keeps the first row of each batch, so that examples come from different episodes."""
    if len(examples) >= EXAMPLES:
        return
    image = batch.images[0]
    path = media / f"{name}_{len(examples):03d}.png"
    save_png(path, image[0] if image.ndim == 4 else image)
    examples.append(
        {
            "image": f"{media.name}/{path.name}",
            "instruction": batch.instructions[0],
            "said": text(ids[0]),
            "truth": text(wanted[0]),
        }
    )
