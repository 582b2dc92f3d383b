"""The data section of a run's config."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vla_jax.actions.stored import ActionConfig
from vla_jax.text.prompts import ROBOT_TEMPLATE, require_instruction

SourceKind = Literal["episodes", "lerobot", "image_text", "webdataset", "jsonl"]

_TEXTS = {"prompt", "answer", "language"}
# The options of a source that each kind has a use for.
_OPTIONS: dict[SourceKind, set[str]] = {
    "episodes": {"record", "cameras", "plan"},
    "lerobot": {"cameras"},
    "image_text": {"image", *_TEXTS},
    "webdataset": _TEXTS,
    "jsonl": {"image", "image_root", *_TEXTS},
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set of the mixture. An option that is "" or () is as the kind usually has it.

    Attributes:
      kind: "episodes" (RLDS), "lerobot", "image_text" (TFDS), "webdataset" or "jsonl".
      path: the data set's directory (of TFDS: the one with `dataset_info.json`), or the pattern of
        its files (`gs://bucket/{00000..00012}.tar`, `captions.jsonl`).
      split: which split of it.
      weight: share of the samples, relative to the other weights. 0 leaves the source out.
      cache_mib: memory for recently read episodes.
      record: name of an Open X-Embodiment data set, which says what its numbers mean.
      cameras: image features of a robot, one per view, in the model's order.
      plan: text feature of a step with what the robot says before it acts (chain of thought).
      prompt: template; names in braces are fields of the record. Several: other phrasings of the
        same, one of which each sample gets.
      answer: field of the answer. Of several answers each sample gets one.
      language: what `{language}` stands for in the template.
      image: field of the image, or of its path.
      image_root: what paths of images are relative to.

    Raises:
      ValueError: an option that the kind has no use for.
    """

    kind: SourceKind
    path: str
    split: str = "train"
    weight: float = 1.0
    cache_mib: int = 256
    record: str = ""
    cameras: tuple[str, ...] = ()
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


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run trains on.

    Attributes:
      sources: by name; their order gives `Batch["source"]`.
      seed: of the order of samples.
      max_tokens: T, tokens in a row: BOS, prompt, answer, EOS.
      max_answer_tokens: most answer tokens in a row, EOS included.
      robot_prompts: templates of a robot's prompt, with {instruction}: phrasings of the same, one of
        which each sample gets. Evaluation and serving use the first.
      actions: how robot actions become tokens.
      vocabulary: a SentencePiece model file; "": the one that ships with the code.
      threads: threads of the loader; small where they share cores with the training step.
      prefetch: batches ready ahead of the training step.
    """

    sources: dict[str, SourceConfig]
    seed: int = 0
    max_tokens: int = 64
    max_answer_tokens: int = 16
    robot_prompts: tuple[str, ...] = (ROBOT_TEMPLATE,)
    actions: ActionConfig = dataclasses.field(default_factory=ActionConfig)
    vocabulary: str = ""
    threads: int = 2
    prefetch: int = 2

    def __post_init__(self):
        if not self.robot_prompts:
            raise ValueError("data.robot_prompts needs at least one template")
        for template in self.robot_prompts:
            require_instruction(template)

    @property
    def plans(self) -> bool:
        """Whether a source says plans, so that the policy plans before it acts."""
        return any(source.plan for source in self.sources.values())
