"""The data section of a run's config."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vla_jax.actions.stored import ActionConfig

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
    "array_record": {"cameras"},
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
      weight: share of the samples, relative to the other weights. 0 leaves the source out.
      record: name of an Open X-Embodiment data set, which says what its numbers mean.
      cameras: image features of a robot, one per view, in the model's order; views of converted
        data.
      state: features of what a robot measures of itself, joined.
      plan: text feature of what a robot says before it acts.
      prompt: template; names in braces are fields of the record.
      answer: field of the answer. Of several answers one is taken.
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
    record: str = ""
    cameras: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    plan: str = ""
    prompt: str = ""
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
    """

    sources: dict[str, SourceConfig]
    seed: int = 0
    max_tokens: int = 64
    max_answer_tokens: int = 16
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
