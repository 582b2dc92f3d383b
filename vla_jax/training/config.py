"""The `train` section of a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from vla_jax.training.augment import AugmentConfig
from vla_jax.training.bad_batches import Policy
from vla_jax.training.monitor import WatchConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One stage of training.

    Attributes:
      steps: updates in all.
      batch_size: rows per update, over all hosts.
      micro_batches: parts that a batch is gone through in, one after the other, where it does not
        fit the memory at once; the update is the same.
      seed: of the fresh parameters.
      init_from: what to start from: published weights (see `checkpoints.pretrained`) or a run
        directory; empty for fresh parameters. Several files, an encoder and a decoder, stand with
        commas between them: "a.npz,b.gguf".
      params_dtype: what parameters are kept in; see `training.step` for "bfloat16".
      ema_decay: evaluation and policies use a running mean of the parameters, which keeps so much
        of itself in an update, e.g. 0.9999; 0: the parameters themselves.
      integer_smoothing: see `losses.answer_loss`; in bins, 0 for one-hot targets.
      label_smoothing, z_loss: see `losses.answer_loss`; 0 for none.
      augment: how images of robot samples are changed.
      log_every, checkpoint_every: steps between.
      evaluate_every: steps between evaluations, see `evaluation.in_training`; there is one after
        the last step, too. 0: none.
      keep_checkpoints: newest ones kept.
      keep_every: checkpoints at multiples of so many steps are kept for ever; 0 for none.
      keep_best: name of a scalar in the log, such as "robot/token_accuracy" or "val/robot/loss";
        the checkpoint with its best value, the last one logged before it, is kept too. Empty for
        none.
      keep_best_is: what the best value is.
      on_nan: what becomes of a batch whose loss or gradient is not finite, see
        `bad_batches.BadBatches`; its update is never applied.
      max_bad_batches: of a run; with one more it stops.
      stop_within_s: seconds that a run told to stop has to save before it ends all the same.
      source_gradient_norms: log the norm of each source's part of the gradient, too; costs a
        backward pass per source whenever it logs.
      watch: what is seen of the run, see `monitor.WatchConfig`.
      tpu_options: the TPU compiler's options for the train step, name -> value, such as
        "xla_tpu_scoped_vmem_limit_kib" -> "65536". Other devices have no use for them.
    """

    steps: int
    batch_size: int
    micro_batches: int = 1
    seed: int = 0
    init_from: str = ""
    params_dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float = 0.0
    integer_smoothing: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    log_every: int = 20
    checkpoint_every: int = 500
    evaluate_every: int = 0
    keep_checkpoints: int = 2
    keep_every: int = 0
    keep_best: str = ""
    keep_best_is: Literal["lowest", "highest"] = "lowest"
    on_nan: Policy = "stop"
    max_bad_batches: int = 10
    stop_within_s: float = 300.0
    source_gradient_norms: bool = False
    watch: WatchConfig = dataclasses.field(default_factory=WatchConfig)
    tpu_options: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        self._require("at least 1", lambda x: x >= 1, *counts, "micro_batches")
        zero_or_more = (
            "keep_every",
            "evaluate_every",
            "max_bad_batches",
            "stop_within_s",
            "integer_smoothing",
        )
        self._require("at least 0", lambda x: x >= 0, *zero_or_more, "z_loss")
        self._require("in [0, 1)", lambda x: 0 <= x < 1, "label_smoothing", "ema_decay")
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"train.keep_every {self.keep_every} must be a multiple of train.checkpoint_every "
                f"{self.checkpoint_every}: others are not saved"
            )
        if self.keep_best.startswith("val/") and not self.evaluate_every:
            raise ValueError(
                f"train.keep_best {self.keep_best!r} comes from evaluations, and there are "
                "none: set train.evaluate_every"
            )
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"train.batch_size {self.batch_size} does not divide into train.micro_batches "
                f"{self.micro_batches}"
            )

    def _require(self, what: str, holds: Callable[[float], bool], *names: str) -> None:
        for name in names:
            if not holds(getattr(self, name)):
                raise ValueError(f"train.{name} must be {what}, got {getattr(self, name)}")
