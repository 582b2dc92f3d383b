"""Robot episodes in RLDS form: one record an episode, its steps read one by one."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.recent import RecentlyRead
from vla_jax.data.sources import step_index
from vla_jax.data.sources.base import Track, chunk_steps, frame_records, place
from vla_jax.data.sources.records import RecordFiles, find_feature, require_image
from vla_jax.data.storage import FileFacts
from vla_jax.text.prompts import PLAN_TEMPLATE, ROBOT_TEMPLATE, robot_prompts
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
      state: numeric step features of what the robot measures, flattened and joined; (): not read.
      plan: a text feature like `instruction`, said before the action; "": none.
    """

    images: tuple[str, ...] = ("steps/observation/image",)
    instruction: str | tuple[str, ...] = "steps/language_instruction"
    actions: tuple[str, ...] = ("steps/action",)
    convert: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None
    spec: ActionSpec | None = None
    state: tuple[str, ...] = ()
    plan: str = ""

    @functools.cached_property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,) if isinstance(self.instruction, str) else self.instruction


class EpisodeSource:
    """Every step of every episode is one record.

    Episodes are read once, at the first opening, to build a table of all steps, see `step_index`.
    After that a step of a TFRecord file costs one read of its images; of an ArrayRecord file, which
    is compressed, the whole episode is read, and those read last are kept.

    Args:
      name: for messages.
      path: the data set's directory.
      split: its split.
      layout: where things are.
      chunk: C, actions of a record: that of its step and those that follow.
      frames: images of this many steps, the last one the record's own; oldest first, each with all
        its views. Before the episode's first step that one is repeated.
      max_bad_records: damaged episodes that are left out, each with a line on stderr.
      cache_bytes: memory for what was read or converted last.
      templates: of the prompt, with {instruction}; several phrasings of the same. A step with a
        plan has the plan's prompt instead.

    Raises:
      FileNotFoundError: no such data set.
      ValueError: a feature is missing or of the wrong kind, no ActionSpec or another one than the
        layout's, more damaged episodes than allowed.
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        split: str = "train",
        *,
        layout: EpisodeLayout = EpisodeLayout(),
        chunk: int = 1,
        frames: int = 1,
        max_bad_records: int = 0,
        cache_bytes: int = 256 * 2**20,
        templates: tuple[str, ...] = (ROBOT_TEMPLATE,),
    ):
        self.name = name
        self._templates = templates
        self._records = RecordFiles(name, path, split, max_bad_records=max_bad_records)
        self._layout, self._chunk, self._frames = layout, chunk, frames
        self._where = f"data set {name!r} ({self._records.path})"
        for key in layout.images:
            require_image(self._records.info.features, key, where=self._where)
        texts = {
            key: self._text_size(key)
            for key in (*layout.instructions, *([layout.plan] if layout.plan else []))
        }
        numbers = {key: self._shape(key) for key in (*layout.actions, *layout.state)}
        self.action_spec = self._find_spec()
        features = step_index.StepFeatures(layout.images, numbers, texts)
        self._index = step_index.load_or_build(self._records, features)
        self._require_few_bad(max_bad_records)
        self._starts = self._index.starts.tolist()
        self._columns, self._shapes = _columns(numbers), numbers
        self._state = [c for key in layout.state for c in self._columns[key]]
        self._recent = RecentlyRead[Any](cache_bytes, _num_bytes)
        self._prompts: dict[tuple[int, ...], str | tuple[str, ...]] = {}

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
        steps = slice(self._starts[number], self._starts[number + 1])
        strings, texts = self._index.strings, self._index.texts[steps].tolist()
        count = len(self._layout.instructions)
        return Track(
            where=f"{self._records.where(number)} (episode {number})",
            first=self._starts[number],
            actions=self._convert(number),
            instructions=tuple(_first_text(strings, row[:count]) for row in texts),
            state=self._index.numbers[steps][:, self._state] if self._state else None,
        )

    def read(self, index: int) -> Example:
        """Step `index`; its action is [C, A].

        After the episode's last action that one is repeated, and `action_valid` is False.

        Raises ValueError naming data set, file, episode and step if it cannot be used.
        """
        number, step = self.locate(index)
        actions = self._recent.get(("actions", number), lambda: self._convert(number))
        steps, valid = chunk_steps(step, self._chunk, *actions.shape)
        action = actions[steps]
        if not np.isfinite(action).all():
            bad = int(steps[np.flatnonzero(~np.isfinite(action).all(axis=1))[0]])
            self.action_spec.validate(
                actions[bad], where=f"{self._at(number, bad)} (repair or drop the episode)"
            )
        texts = self._index.texts[index].tolist()
        plan = self._index.strings[texts[-1]].strip() if self._layout.plan else ""
        return Example(
            images=self._images(number, step),
            prompt=self._prompt(texts, number, step, planned=bool(plan)),
            action=action,
            action_valid=valid,
            plan=plan,
            state=self._measured(number, step) if self._state else None,
        )

    def _images(self, number: int, step: int) -> tuple[bytes, ...]:
        rows = frame_records(self._starts[number] + step, step, self._frames)
        spans = [span for row in rows for span in self._index.images[row].tolist()]
        if not all(length for _, length in spans):
            raise ValueError(f"{self._at(number, step)} has an image of 0 bytes: drop the episode")
        if self._records.reads_parts:
            return tuple(self._records.read_part(number, *span) for span in spans)
        record = self._recent.get(("record", number), lambda: self._records.read(number))
        return tuple(record[offset : offset + length] for offset, length in spans)

    def _measured(self, number: int, step: int) -> np.ndarray:
        state = self._index.numbers[self._starts[number] + step, self._state]
        if not np.isfinite(state).all():
            raise ValueError(
                f"{self._at(number, step)}: {', '.join(self._layout.state)} is NaN or infinite: "
                "repair or drop the episode"
            )
        return state

    def _convert(self, number: int) -> np.ndarray:
        """float32 [steps, A], not checked for NaN."""
        stored = self._index.numbers[self._starts[number] : self._starts[number + 1]]
        keys = self._layout.actions
        if not len(stored):  # a damaged episode, which no conversion has to know of
            return np.zeros((0, len(self.action_spec.dimensions)), np.float32)
        if self._layout.convert is None:
            return stored[:, [c for key in keys for c in self._columns[key]]]
        parts = {key: stored[:, self._columns[key]].reshape(-1, *self._shapes[key]) for key in keys}
        actions = np.asarray(self._layout.convert(parts), np.float32)
        if actions.shape != (len(stored), len(self.action_spec.dimensions)):
            raise ValueError(
                f"{self._where}: the EpisodeLayout's `convert` gives actions of shape "
                f"{actions.shape} for {len(stored)} steps, ActionSpec {self.action_spec.name!r} "
                f"has {len(self.action_spec.dimensions)} dimensions {self.action_spec.names}"
            )
        return actions

    def _prompt(
        self, texts: list[int], number: int, step: int, *, planned: bool
    ) -> str | tuple[str, ...]:
        ids = tuple(texts[: len(self._layout.instructions)])
        known = (*ids, planned)
        if known not in self._prompts:
            templates = (PLAN_TEMPLATE,) if planned else self._templates
            try:
                text = _first_text(self._index.strings, ids)
                self._prompts[known] = robot_prompts(text, templates)
            except ValueError as e:
                names = ", ".join(self._layout.instructions)
                raise ValueError(
                    f"{self._at(number, step)}: {names}: {e}; label or drop the episode"
                ) from e
        return self._prompts[known]

    def _at(self, number: int, step: int) -> str:
        return f"{self._records.where(number)} (episode {number}) step {step}"

    def _require_few_bad(self, allowed: int) -> None:
        bad = self._index.bad
        if len(bad) > allowed:
            raise ValueError(
                f"{next(iter(bad.values()))} ({len(bad)} of {len(self._records)} episodes of "
                f"data set {self.name!r} are damaged, {allowed} are allowed: "
                "data.max_bad_records)"
            )
        for why in bad.values():
            print(f"left out: {why}", file=sys.stderr)

    def _find_spec(self) -> ActionSpec:
        stored = self._records.metadata.get(SPEC_KEY)
        where = self._where
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

    def _text_size(self, key: str) -> int:
        """0 for a text; for one that is stored as numbers, its bytes a step."""
        text = find_feature(self._records.info.features, key, where=self._where)
        if text.shape == () and text.get_serialized_info().np_dtype == np.object_:
            return 0
        if (
            isinstance(text.shape, tuple)
            and len(text.shape) == 1
            and text.shape[0] is not None
            and np.issubdtype(text.np_dtype, np.integer)
        ):
            return text.shape[0]
        raise ValueError(
            f"{self._where}: feature {key} is not a text but {text}: name the text feature in the "
            "EpisodeLayout"
        )

    def _shape(self, key: str) -> tuple[int, ...]:
        """Of a numeric feature at one step."""
        feature = find_feature(self._records.info.features, key, where=self._where)
        numeric = np.issubdtype(feature.np_dtype, np.number) or feature.np_dtype == np.bool_
        stored = feature.get_serialized_info().np_dtype
        if not numeric or stored == np.object_ or None in feature.shape:
            raise ValueError(
                f"{self._where}: feature {key} is {feature}; actions and states are plain numbers "
                "of a fixed shape: name such features in the EpisodeLayout"
            )
        return tuple(feature.shape)


def _columns(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[int]]:
    """Where each feature stands in a row of `StepIndex.numbers`."""
    columns, start = {}, 0
    for key, shape in shapes.items():
        size = int(np.prod(shape))
        columns[key] = list(range(start, start + size))
        start += size
    return columns


def _first_text(strings: Sequence[str], ids: Sequence[int]) -> str:
    """The first text that is not empty."""
    return next((strings[i] for i in ids if strings[i].strip()), "")


def _num_bytes(kept: bytes | np.ndarray) -> int:
    return len(kept) if isinstance(kept, bytes) else kept.nbytes
