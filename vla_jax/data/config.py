"""The data section of a run's config."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vla_jax.actions.stored import ActionConfig
from vla_jax.data.packing import Packing
from vla_jax.data.state import StateInput
from vla_jax.text.prompts import ROBOT_TEMPLATE, require_instruction

SourceKind = Literal[
    "episodes", "lerobot", "image_text", "webdataset", "jsonl", "array_record", "python"
]  # fmt: skip

_TEXTS = {"prompt", "answer", "language"}
# The options of a source that each kind has a use for.
_OPTIONS: dict[SourceKind, set[str]] = {
    "episodes": {"record", "cameras", "state", "plan"},
    "lerobot": {"cameras", "state"},
    "image_text": {"image", *_TEXTS},
    "webdataset": _TEXTS,
    "jsonl": {"image", "image_root", *_TEXTS},
    "array_record": {"cameras", "plan"},
    "python": set(),
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set of the mixture. An option that is "" or () is as the kind usually has it.

    Attributes:
      kind: "episodes" (RLDS), "lerobot", "image_text" (TFDS), "webdataset", "jsonl",
        "array_record" (what `tools/convert.py` made of one of them) or "python" (your own).
      path: the data set's directory (of TFDS: the one with `dataset_info.json`), or the pattern of
        its files (`gs://bucket/{00000..00012}.tar`, `captions.jsonl`), or `my_file.py:MySource`.
      split: which split of it.
      weight: share, relative to the other sources, of its group if there are groups. 0 leaves the
        source out.
      group: one of `DataConfig.groups`.
      epochs: how often each record comes; the source is then used up and leaves its share to the
        others of its group, or to the other groups. 0: without end.
      record: name of an Open X-Embodiment data set, which says what its numbers mean.
      cameras: image features of a robot, one per view, in the model's order; views of converted
        data.
      state: numeric features of a step, joined: what a robot measures of itself.
      plan: text feature of a step: what a robot says before it acts (chain of thought). Of
        converted data, the same as at their conversion.
      prompt: template; names in braces are fields of the record. Several: other phrasings of the
        same, one of which each sample gets.
      answer: field of the answer. Of several answers each sample gets one.
      language: what `{language}` stands for in the template.
      image: field of the image, or of its path.
      image_root: what paths of images are relative to.

    Raises:
      ValueError: an option that the kind has no use for, or epochs below 0.
    """

    kind: SourceKind
    path: str
    split: str = "train"
    weight: float = 1.0
    group: str = ""
    epochs: int = 0
    record: str = ""
    cameras: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    plan: str = ""
    prompt: str | tuple[str, ...] = ""
    answer: str = ""
    language: str = ""
    image: str = ""
    image_root: str = ""

    def __post_init__(self):
        options = set().union(*_OPTIONS.values())
        useless = {name for name in options if getattr(self, name)} - _OPTIONS[self.kind]
        if useless:
            raise ValueError(
                f"a source of kind {self.kind!r} ({self.path}) has no use for "
                f"{', '.join(sorted(useless))}; its options are "
                f"{', '.join(sorted(_OPTIONS[self.kind]))}"
            )
        if self.epochs < 0:
            raise ValueError(f"epochs {self.epochs} of {self.path}: 0 is without end")


@dataclasses.dataclass(frozen=True)
class WeightChange:
    """Other weights from a sample on.

    Attributes:
      from_sample: the first one, >= 1. Update s (from 0) begins with sample s * train.batch_size *
        data.examples_per_row.
      sources, groups: name -> new weight; the others keep theirs.
      ramp_samples: over so many samples the weights go to the new ones in a straight line (in up to
        100 steps); 0: at once.

    Raises ValueError for numbers out of range.
    """

    from_sample: int
    sources: dict[str, float] = dataclasses.field(default_factory=dict)
    groups: dict[str, float] = dataclasses.field(default_factory=dict)
    ramp_samples: int = 0

    def __post_init__(self):
        if self.from_sample < 1:
            raise ValueError(
                f"from_sample {self.from_sample}: weights from the first sample on belong to the "
                "sources and groups themselves"
            )
        if self.ramp_samples < 0:
            raise ValueError(f"ramp_samples {self.ramp_samples} must be at least 0")


@dataclasses.dataclass(frozen=True)
class StateConfig:
    """What a robot measures of itself, as the model gets it.

    Attributes:
      kind: "none"; "tokens": 256 bins, written at the beginning of the prompt; or "vector": one
        position of its own, which needs `model.state_size`.
      low, high: bounds of each number, in its unit; values outside are clipped.
    """

    kind: Literal["none", "tokens", "vector"] = "none"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self):
        if self.kind == "none" and (self.low or self.high):
            raise ValueError("data.state has bounds but is of kind 'none'")
        if self.kind != "none":
            StateInput(self.low, self.high)  # checks the bounds

    @property
    def vector_size(self) -> int:
        """S of a vector, else 0: what `model.state_size` must be."""
        return len(self.low) if self.kind == "vector" else 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run trains on.

    Attributes:
      sources: by name; their order gives `Batch["source"]`.
      groups: name -> weight, e.g. robot and web 1 : 1, whatever sources each has; {}: none.
      weights_in: what weights are shares of. "loss_tokens": of the tokens that are learned, as
        measured on each source before the run.
      weight_changes: in order; none begins before the one before is done.
      seed: of the order of samples.
      max_tokens: T, tokens in a row: BOS, prompt, answer, EOS.
      max_answer_tokens: most answer tokens in a row, EOS included.
      examples_per_row: k; above 1, a row holds k samples, so that less of it is padding, and a step
        takes k * train.batch_size of them. What does not fit is left out.
      row_tokens: tokens in a row of several samples; at least max_tokens.
      row_answer_tokens: most answer tokens in such a row, for so many of which the loss computes
        logits; at least max_answer_tokens. 0: k * max_answer_tokens.
      state: how `Example.state` reaches the model.
      robot_prompts: templates of a robot's prompt, with {instruction}. Several: other phrasings of
        the same, one of which each sample gets; evaluation and serving use the first.
      actions: how robot actions become tokens.
      frames: steps whose images a robot sample has: its own and those before it, oldest first.
      vocabulary: a SentencePiece model file; "": the one that ships with the code.
      image_size: side in pixels at which images reach the accelerator, which resizes them to the
        model's. 0: the model's; images of that size are nowhere resized.
      threads: threads of the loader; small where they share cores with the training step.
      prefetch: batches ready ahead of the training step.
      readers: records read at a time; many where data are in a store, 1 for a local disk.
      host_memory_gib: for batches and for what the sources keep, beside the program itself.
      max_bad_records: damaged records that are named and replaced before the run ends with an
        error; of each process.

    Raises:
      ValueError: a number below 1; groups that sources do not name, and the other way round; weight
        changes that are out of order or name something else.
    """

    sources: dict[str, SourceConfig]
    groups: dict[str, float] = dataclasses.field(default_factory=dict)
    weights_in: Literal["samples", "loss_tokens"] = "samples"
    weight_changes: tuple[WeightChange, ...] = ()
    seed: int = 0
    max_tokens: int = 64
    max_answer_tokens: int = 16
    examples_per_row: int = 1
    row_tokens: int = 0
    row_answer_tokens: int = 0
    state: StateConfig = dataclasses.field(default_factory=StateConfig)
    robot_prompts: tuple[str, ...] = (ROBOT_TEMPLATE,)
    actions: ActionConfig = dataclasses.field(default_factory=ActionConfig)
    frames: int = 1
    vocabulary: str = ""
    image_size: int = 0
    threads: int = 2
    prefetch: int = 2
    readers: int = 1
    host_memory_gib: float = 2.0
    max_bad_records: int = 0

    def __post_init__(self):
        for name in ("frames", "threads", "prefetch", "readers"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        if not self.robot_prompts:
            raise ValueError("data.robot_prompts needs at least one template")
        for template in self.robot_prompts:
            require_instruction(template)
        if self.examples_per_row < 1:
            raise ValueError(
                f"data.examples_per_row must be at least 1, got {self.examples_per_row}"
            )
        if self.examples_per_row > 1 and self.row_tokens < self.max_tokens:
            raise ValueError(
                f"data.row_tokens {self.row_tokens} must hold at least one example of "
                f"data.max_tokens {self.max_tokens}"
            )
        if 0 < self.row_answer_tokens < self.max_answer_tokens:
            raise ValueError(
                f"data.row_answer_tokens {self.row_answer_tokens} must hold at least one answer of "
                f"data.max_answer_tokens {self.max_answer_tokens}"
            )
        for name in ("row_tokens", "row_answer_tokens"):
            if self.examples_per_row == 1 and getattr(self, name):
                raise ValueError(f"data.{name} is for data.examples_per_row above 1")
        for name, source in self.sources.items():
            if source.group not in (self.groups or {""}):
                known = ", ".join(self.groups) or "none"
                raise ValueError(
                    f"source {name!r} is of group {source.group!r}; data.groups has: {known}"
                )
        for group in self.groups:
            if all(source.group != group for source in self.sources.values()):
                raise ValueError(
                    f"data.groups has {group!r}, and no source names it: set the group of a source"
                )
        free_from = 1
        for change in self.weight_changes:
            unknown = [*change.sources.keys() - self.sources, *change.groups.keys() - self.groups]
            if unknown:
                raise ValueError(
                    f"the weight change from sample {change.from_sample} names {unknown[0]!r}, not "
                    f"one of the sources {', '.join(self.sources)} or "
                    f"groups {', '.join(self.groups) or '(none)'}"
                )
            if change.from_sample < free_from:
                raise ValueError(
                    f"the weight change from sample {change.from_sample} begins before the one "
                    f"before it is done, with sample {free_from}: put them in order"
                )
            free_from = change.from_sample + max(1, change.ramp_samples)

    @property
    def plans(self) -> bool:
        """Whether a source says plans, so that the policy plans before it acts."""
        return any(source.plan for source in self.sources.values())

    @property
    def packing(self) -> Packing | None:
        """None: each row is one example."""
        k = self.examples_per_row
        most = self.row_answer_tokens or k * self.max_answer_tokens
        return Packing(k, self.row_tokens, most) if k > 1 else None

    @property
    def row_lengths(self) -> tuple[int, int]:
        """Tokens of a row, and at most so many of them in the loss."""
        if self.packing is None:
            return self.max_tokens, self.max_answer_tokens
        return self.packing.length, min(self.packing.max_loss_tokens, self.packing.length)

    def uses(self, name: str) -> bool:
        """Whether a source, and its group, ever have a weight."""
        source = self.sources[name]
        own = source.weight or any(c.sources.get(name) for c in self.weight_changes)
        group = self.groups.get(source.group, 1.0) or any(
            c.groups.get(source.group) for c in self.weight_changes
        )
        return bool(own and group)
