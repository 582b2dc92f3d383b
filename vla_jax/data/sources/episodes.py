"""Robot episodes in RLDS form: one record an episode, its steps read one by one."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.sources import index_files
from vla_jax.data.sources.base import Track, chunk_steps, place
from vla_jax.data.sources.recent import RecentlyRead
from vla_jax.data.sources.records import RecordFiles, find_feature, require_image
from vla_jax.data.storage import FileFacts
from vla_jax.text.prompts import robot_prompt
from vla_jax.types import Example

SPEC_KEY = "action_spec"
"""Where a data set's metadata holds its ActionSpec, as JSON."""


@dataclasses.dataclass(frozen=True)
class EpisodeLayout:
    """Where an RLDS data set keeps what we need. Names are paths of features, joined by "/".

    Attributes:
      images: one per view, in the model's order.
      instruction: a text feature of the step, of its observation or of the episode, or a vector of
        integers that are its UTF-8 bytes, padded with 0. Several: the first that is not empty,
        step by step.
      actions: numeric step features.
      convert: {feature name: array [steps, ...]} -> actions [steps, A] in the spec's units. None:
        the features, flattened and joined in the given order.
      spec: what the actions mean. None: as the data set's own metadata says.
    """

    images: tuple[str, ...] = ("steps/observation/image",)
    instruction: str | tuple[str, ...] = "steps/language_instruction"
    actions: tuple[str, ...] = ("steps/action",)
    convert: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None
    spec: ActionSpec | None = None

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,) if isinstance(self.instruction, str) else self.instruction


@dataclasses.dataclass(frozen=True)
class _Episode:
    images: list[list[bytes]]  # [views][steps], encoded
    prompts: list[str]  # [steps], or one for all
    actions: np.ndarray  # float32 [steps, A]
    num_bytes: int


class EpisodeSource:
    """Every step of every episode is one record.

    Episodes are parsed whole, without decoding images; those read last are kept. A table of episode
    lengths is built at the first opening, see `index_files`.

    Args:
      name: for messages.
      path: the data set's directory.
      split: its split.
      layout: where things are.
      expected_spec: of the checkpoint or config; another one in the data set is refused.
      chunk: C, actions of a record: that of its step and those that follow.
      cache_mib: memory for parsed episodes.

    Raises:
      FileNotFoundError: no such data set.
      ValueError: a feature is missing or of the wrong kind, no ActionSpec or another one than
        expected, a damaged file.
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        split: str = "train",
        *,
        layout: EpisodeLayout = EpisodeLayout(),
        expected_spec: ActionSpec | None = None,
        chunk: int = 1,
        cache_mib: int = 256,
    ):
        self.name = name
        self._records = RecordFiles(name, path, split)
        self._layout, self._chunk = layout, chunk
        self._check_images()
        self._text_sizes = self._check_instructions()
        self._shapes = self._check_actions()
        self.action_spec = self._find_spec()
        if expected_spec is not None:
            expected_spec.require_same(
                self.action_spec, here="this run", there=f"data set {name!r} ({path})"
            )
        self._starts = [0, *np.cumsum(self._lengths()).tolist()]
        self._recent = RecentlyRead[_Episode](cache_mib, lambda episode: episode.num_bytes)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def files(self) -> list[FileFacts]:
        return self._records.files

    @property
    def views(self) -> tuple[str, ...]:
        """Names of an example's images."""
        return self._layout.images

    @property
    def num_episodes(self) -> int:
        return len(self._starts) - 1

    def locate(self, index: int) -> tuple[int, int]:
        """Record -> (episode, step)."""
        return place(self._starts, index, "step", self.name)

    def track(self, number: int) -> Track:
        """See `EpisodicSource`."""
        episode = self._episode(number)
        steps = len(episode.actions)
        texts = episode.prompts if len(episode.prompts) > 1 else episode.prompts * steps
        where = f"{self._records.where(number)} (episode {number})"
        return Track(where, self._starts[number], episode.actions, tuple(texts))

    def read(self, index: int) -> Example:
        """Step `index`; its action is [C, A].

        After the episode's last action that one is repeated, and `action_valid` is False.

        Raises ValueError naming data set, file, episode and step if it cannot be used.
        """
        number, step = self.locate(index)
        episode = self._episode(number)
        steps, valid = chunk_steps(step, self._chunk, *episode.actions.shape)
        return Example(
            images=tuple(view[step] for view in episode.images),
            prompt=episode.prompts[step if len(episode.prompts) > 1 else 0],
            action=episode.actions[steps],
            action_valid=valid,
        )

    def _episode(self, number: int) -> _Episode:
        return self._recent.get(number, lambda: self._parse(number))

    def _parse(self, number: int) -> _Episode:
        features = self._records.parse(number)
        where = f"{self._records.where(number)} (episode {number})"
        steps = self._starts[number + 1] - self._starts[number]
        images = [list(features[key].bytes_list.value) for key in self._layout.images]
        if any(len(view) != steps for view in images):
            raise ValueError(
                f"{where} has {[len(view) for view in images]} images for {steps} steps in "
                f"{self._layout.images}: write the episode again"
            )
        actions = self._actions(features, steps, where)
        prompts = self._prompts(features, steps, where)
        num_bytes = actions.nbytes + sum(len(image) for view in images for image in view)
        return _Episode(images, prompts, actions, num_bytes)

    def _actions(self, features: Mapping[str, Any], steps: int, where: str) -> np.ndarray:
        parts = {}
        for key in self._layout.actions:
            values = _numbers(features[key])
            if values.size != steps * int(np.prod(self._shapes[key])):
                raise ValueError(
                    f"{where}: {key} has {values.size} numbers for {steps} steps of shape "
                    f"{self._shapes[key]}: write the episode again"
                )
            parts[key] = values.reshape(steps, *self._shapes[key])
        if self._layout.convert is not None:
            actions = self._layout.convert(parts)
        else:
            actions = np.concatenate([p.reshape(steps, -1) for p in parts.values()], axis=1)
        bad = np.flatnonzero(~np.isfinite(actions).all(axis=1)) if actions.ndim == 2 else []
        if len(bad):
            where = f"{where} step {bad[0]} ({len(bad)} of {steps} steps; repair or drop them)"
            actions = actions[bad[0]]
        return self.action_spec.validate(actions, where=where)

    def _prompts(self, features: Mapping[str, Any], steps: int, where: str) -> list[str]:
        columns = [self._texts(features, key, where) for key in self._layout.instructions]
        if any(len(texts) not in (1, steps) for texts in columns):
            counts = ", ".join(str(len(texts)) for texts in columns)
            raise ValueError(f"{where} has {counts} instructions for {steps} steps")
        count = max(len(texts) for texts in columns)
        columns = [texts if len(texts) == count else texts * count for texts in columns]
        texts = [next((t for t in row if t.strip()), row[0]) for row in zip(*columns)]
        prompts: dict[bytes, str] = {}
        for step, text in enumerate(texts):
            if text in prompts:
                continue
            try:
                prompts[text] = robot_prompt(text.decode())
            except ValueError as e:
                raise ValueError(
                    f"{where} step {step}: {', '.join(self._layout.instructions)}: {e}; "
                    "label or drop the episode"
                ) from e
        return [prompts[text] for text in texts] if len(prompts) > 1 else [prompts[texts[0]]]

    def _texts(self, features: Mapping[str, Any], key: str, where: str) -> list[bytes]:
        size = self._text_sizes[key]
        if not size:
            return list(features[key].bytes_list.value)
        codes = np.asarray(features[key].int64_list.value, np.int64)
        if codes.size % size or (codes.size and not 0 <= codes.min() <= codes.max() < 256):
            raise ValueError(
                f"{where}: {key} is not UTF-8 bytes, {size} a step: write the episode again"
            )
        return [row[row != 0].astype(np.uint8).tobytes() for row in codes.reshape(-1, size)]

    def _lengths(self) -> np.ndarray:
        def build() -> np.ndarray:
            lengths = np.zeros(len(self._records), np.int64)
            key, start = self._layout.images[0], time.monotonic()
            for i in range(len(lengths)):
                lengths[i] = len(self._records.parse(i)[key].bytes_list.value)
                if time.monotonic() - start > 10 and i % 100 == 0:
                    print(f"{self.name}: indexed {i} of {len(lengths)} episodes", file=sys.stderr)
            return lengths

        what = f"steps of {self._layout.images[0]}"
        return index_files.load_or_build(self._records.files, what, build)

    def _find_spec(self) -> ActionSpec:
        stored = self._records.metadata.get(SPEC_KEY)
        where = f"data set {self.name!r} ({self._records.path})"
        if stored is None and self._layout.spec is None:
            raise ValueError(
                f"{where} does not say what its actions mean: give its EpisodeLayout an ActionSpec"
            )
        if stored is None:
            assert self._layout.spec is not None
            return self._layout.spec
        try:
            spec = ActionSpec.from_json(stored)
        except ValueError as e:
            raise ValueError(f"{where}, metadata.json: {e}") from e
        if self._layout.spec is not None:
            self._layout.spec.require_same(spec, here="its EpisodeLayout", there=where)
        return spec

    def _check_images(self) -> None:
        where = f"data set {self.name!r} ({self._records.path})"
        for key in self._layout.images:
            require_image(self._records.info.features, key, where=where)

    def _check_instructions(self) -> dict[str, int]:
        """Returns the bytes a step of each instruction that is stored as numbers; 0 for a text."""
        where, sizes = f"data set {self.name!r} ({self._records.path})", {}
        for key in self._layout.instructions:
            text = find_feature(self._records.info.features, key, where=where)
            is_text = text.shape == () and text.get_serialized_info().np_dtype == np.object_
            is_codes = (
                isinstance(text.shape, tuple)
                and len(text.shape) == 1
                and text.shape[0] is not None
                and np.issubdtype(text.np_dtype, np.integer)
            )
            if not (is_text or is_codes):
                raise ValueError(
                    f"{where}: feature {key} is not a text but {text}: name the text feature in "
                    "the EpisodeLayout"
                )
            sizes[key] = 0 if is_text else text.shape[0]
        return sizes

    def _check_actions(self) -> dict[str, tuple[int, ...]]:
        """Returns the per-step shape of each action feature."""
        where, shapes = f"data set {self.name!r} ({self._records.path})", {}
        for key in self._layout.actions:
            feature = find_feature(self._records.info.features, key, where=where)
            numeric = np.issubdtype(feature.np_dtype, np.number) or feature.np_dtype == np.bool_
            stored = feature.get_serialized_info().np_dtype
            if not numeric or stored == np.object_ or None in feature.shape:
                raise ValueError(
                    f"{where}: feature {key} is {feature}; actions are plain numbers of a fixed "
                    "shape: name the action features in the EpisodeLayout"
                )
            shapes[key] = tuple(feature.shape)
        return shapes


def _numbers(feature: Any) -> np.ndarray:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.asarray(feature.float_list.value, np.float32)
    if kind == "int64_list":
        return np.asarray(feature.int64_list.value, np.float32)
    return np.zeros(0, np.float32)
