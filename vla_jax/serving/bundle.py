"""A bundle: one directory with all that it takes to act, and a hash of every file.

    manifest.json           schema version; size and SHA-256 of every other file; the digest
    policy.json             the model, its images, prompts, state and decoding (`PolicySettings`)
    parameters.safetensors  see `serving.parameters`; in several files if it is large
    vocabulary.model        SentencePiece
    action_tokenizer.json   what tokens mean in physical units, with the ActionSpec
    card.json, README.md    where it comes from and what was measured
    stablehlo/, saved_model/, hugging_face/    the same for other programs, if exported

Nothing is guessed and nothing is looked up elsewhere: a bundle that was changed, by a byte, is
refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from vla_jax import schema
from vla_jax.actions import stored
from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.state import StateInput
from vla_jax.decoding.chunks import ChunkExecutor
from vla_jax.models.presets import ModelConfig
from vla_jax.serving.parameters import Dtype
from vla_jax.serving.pixels import RESIZE
from vla_jax.text.prompts import QUESTION_TEMPLATE, require_instruction
from vla_jax.text.vocabulary import Vocabulary

SCHEMA = 1
MANIFEST, POLICY, CARD = "manifest.json", "policy.json", "card.json"
TOKENIZER, VOCABULARY = "action_tokenizer.json", "vocabulary.model"


@dataclasses.dataclass(frozen=True)
class StateSettings:
    """What the robot measures of itself, as the model gets it.

    Attributes:
      kind: "none"; "tokens" at the beginning of the prompt; a "vector" beside it.
      features: of the training data, joined in this order.
      low, high: bounds of each number, in its unit; values outside are clipped.
      token_ids: of "tokens": the vocabulary id of each of 256 bins.
    """

    kind: Literal["none", "tokens", "vector"] = "none"
    features: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        self.make()  # checks bounds and ids

    def make(self) -> StateInput | None:
        """Raises ValueError, see `StateInput`."""
        if self.kind == "none":
            return None
        ids = np.asarray(self.token_ids, np.int32) if self.kind == "tokens" else None
        return StateInput(self.low, self.high, ids)


@dataclasses.dataclass(frozen=True)
class PolicySettings:
    """What is in `policy.json`.

    Attributes:
      model: without adapters.
      dtype: of the parameters' files.
      cameras: features of the training data, one per view, in the model's order; () of a model
        without a robot.
      frames: steps whose images it sees, oldest first.
      resize: how images come to the model's size.
      robot_template: of the prompt, with {instruction}.
      question_template: likewise with {question}.
      plans: it says what it is going to do before it acts.
      max_tokens, max_answer_tokens: of a row, as in training.
      state: what the robot measures.
      temperature: of action tokens, if a request does not say.
      execute_steps, ensemble_decay: how chunks are meant to be carried out, see `ChunkExecutor`.
    """

    model: ModelConfig
    dtype: Dtype
    cameras: tuple[str, ...]
    frames: int
    robot_template: str
    plans: bool
    max_tokens: int
    max_answer_tokens: int
    state: StateSettings = dataclasses.field(default_factory=StateSettings)
    temperature: float = 0.0
    execute_steps: int = 1
    ensemble_decay: float | None = None
    resize: Literal["bilinear, antialiased, aspect ratio not kept, rounded"] = RESIZE
    question_template: Literal["Q: {question} A:"] = QUESTION_TEMPLATE

    def __post_init__(self):
        require_instruction(self.robot_template)
        if self.views > self.model.num_views:
            raise ValueError(
                f"{len(self.cameras)} cameras x {self.frames} frames are more than the model's "
                f"num_views {self.model.num_views}"
            )

    @property
    def views(self) -> int:
        """Images of one request."""
        return max(1, len(self.cameras)) * self.frames


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A checked bundle, without its parameters, which are read when they are placed.

    Attributes:
      tokenizer: None for a model without a robot.
    """

    path: Path
    digest: str
    settings: PolicySettings
    vocabulary: Vocabulary
    tokenizer: ActionTokenizer | None
    card: dict[str, Any]

    @property
    def builder(self) -> SequenceBuilder:
        s = self.settings
        return SequenceBuilder(
            self.vocabulary,
            self.tokenizer,
            max_tokens=s.max_tokens,
            max_answer_tokens=s.max_answer_tokens,
            state=s.state.make(),
        )

    @property
    def spec(self) -> ActionSpec:
        """Raises ValueError if there is none."""
        if self.tokenizer is None:
            raise ValueError(f"{self.path} has no ActionSpec: its model can answer, not act")
        return self.tokenizer.spec

    def make_executor(self) -> ChunkExecutor:
        """Carries out chunks of one episode as the bundle says."""
        spec, s = self.spec, self.settings
        assert self.tokenizer is not None
        return ChunkExecutor(
            spec,
            self.tokenizer.chunk,
            execute_steps=s.execute_steps,
            ensemble_decay=s.ensemble_decay,
        )


def short_names(features: tuple[str, ...]) -> tuple[str, ...]:
    """`steps/observation/wrist` -> `wrist`; whole names where two would be the same."""
    last = tuple(feature.replace(".", "/").rsplit("/", 1)[-1] for feature in features)
    return last if len(set(last)) == len(last) else features


def write_manifest(directory: Path) -> str:
    """Lists every file of a directory; returns the digest. Nothing may change after it."""
    files = {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _hash(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {"schema": SCHEMA, "digest": _digest(files), "files": files}
    (directory / MANIFEST).write_text(_dump(manifest))
    return manifest["digest"]


def read(path: str | Path) -> Bundle:
    """Checks every file and reads all but the parameters.

    Raises:
      FileNotFoundError: no bundle there.
      ValueError: another schema version, or a file that is missing or changed; names it.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(
            f"no bundle at {path} (there is no {MANIFEST}): write one with python -m vla_jax.export"
        )
    return read_unchecked(path, digest=check(path))


def read_unchecked(path: Path, *, digest: str) -> Bundle:
    """As `read`, of a directory that is still being written. Raises ValueError likewise."""
    try:
        raw = json.loads((path / POLICY).read_text())
        settings = schema.from_dict(PolicySettings, raw)
    except ValueError as e:
        raise ValueError(f"{path / POLICY}: {e}") from e
    rows = settings.model.decoder.vocab_size
    return Bundle(
        path=path,
        digest=digest,
        settings=settings,
        vocabulary=Vocabulary(path / VOCABULARY, expected_size=rows),
        tokenizer=stored.load(path / TOKENIZER) if (path / TOKENIZER).is_file() else None,
        card=json.loads((path / CARD).read_text()),
    )


def check(path: Path) -> str:
    """The digest, after the schema and the hash of every file are what they should be.

    Raises ValueError as `read`.
    """
    file = path / MANIFEST
    text = file.read_bytes()
    try:
        manifest = json.loads(text)
        version, files, digest = manifest["schema"], manifest["files"], manifest["digest"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{file} is damaged: {type(e).__name__} {e}") from e
    if version != SCHEMA:
        raise ValueError(
            f"{path} has bundle schema {version!r}, this program reads {SCHEMA}: export the run "
            "again with this version, or serve with the one that wrote it"
        )
    if text != _dump(manifest).encode() or _digest(files) != digest:
        raise ValueError(f"{file} was changed: its list of files does not have its own digest")
    wrong = list(_changed(path, files))
    if wrong:
        raise ValueError(f"{path} is not what was exported: {'; '.join(wrong)}. Copy it again")
    return digest


def _changed(path: Path, files: dict[str, Any]) -> Iterator[str]:
    for name, facts in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            yield f"{name} is outside of it"
        elif not (path / name).is_file():
            yield f"{name} is missing"
        elif (size := (path / name).stat().st_size) != facts["bytes"]:
            yield f"{name} has {size} bytes, not {facts['bytes']}"
        elif _hash(path / name) != facts["sha256"]:
            yield f"{name} has other contents"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(files: Any) -> str:
    """SHA-256 over the schema and the names, sizes and hashes of all files."""
    return hashlib.sha256(_dump({"schema": SCHEMA, "files": files}).encode()).hexdigest()


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
