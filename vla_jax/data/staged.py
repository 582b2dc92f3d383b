"""Episodes as a simulator's workers leave them, one file each, before they become a data set.

    DIR/metadata.json         {"action_spec": JSON text, ...}
    DIR/episode_000042.npz    image_bytes uint8 [*], image_ends int64 [n]: n encoded images, joined
                              (a second view: wrist_image_bytes, wrist_image_ends);
                              state float32 [n, S], action float32 [n, A], instruction, and
                              plan if there are plans;
                              every other scalar is metadata of the episode

Programs that render and programs that use TensorFlow meet only in such a directory.
"""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NotRequired, TypedDict

import numpy as np

from vla_jax.actions.spec import ActionSpec

_ARRAYS = ("state", "action", "instruction", "plan")


class EpisodeRow(TypedDict):
    """One episode of n steps. `action[t]` is what was done after seeing `images[...][t]`."""

    images: Mapping[str, Sequence[bytes | np.ndarray]]  # view name -> n encoded, or uint8 [h, w, 3]
    state: np.ndarray  # float32 [n, S]
    action: np.ndarray  # float32 [n, A], physical units
    instruction: str
    success: bool  # reward 1 at the last step, which is terminal
    metadata: Mapping[str, str | int | float | bool]  # same keys in every episode
    plan: NotRequired[str]  # what is said before each action; every episode has one, or none
    split: NotRequired[str]  # where the writer shall put it, instead of each so-manieth in "test"


class StagedEpisodes:
    """The episodes of a directory, in order of their number.

    Attributes:
      spec: of the actions.

    Raises:
      FileNotFoundError: no such directory, or no episodes in it.
      ValueError: `metadata.json` holds no ActionSpec.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        directory = pathlib.Path(directory)
        metadata = directory / "metadata.json"
        self._files = sorted(
            path for path in directory.glob("episode_*.npz") if path.stem[8:].isdigit()
        )
        if not metadata.is_file() or not self._files:
            raise FileNotFoundError(
                f"{directory} holds no staged episodes: make them with "
                "python -m vla_jax.envs.episodes"
            )
        try:
            self.spec = ActionSpec.from_json(json.loads(metadata.read_text())["action_spec"])
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{metadata}: no ActionSpec under 'action_spec': {e}") from e

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[EpisodeRow]:
        """Raises ValueError naming the file if one cannot be read."""
        for path in self._files:
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    episode = _episode({key: stored[key] for key in stored.files})
            except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
                raise ValueError(
                    f"{path} cannot be read ({e}): delete it and generate it again"
                ) from e
            yield episode


def _episode(stored: dict[str, np.ndarray]) -> EpisodeRow:
    views = [key.removesuffix("_ends") for key in stored if key.endswith("_ends")]
    packed = {f"{view}_{part}" for view in views for part in ("bytes", "ends")}
    metadata = {
        key: value.item()
        for key, value in stored.items()
        if value.ndim == 0 and key not in _ARRAYS and key not in packed
    }
    row = EpisodeRow(
        images={view: _split(stored[f"{view}_bytes"], stored[f"{view}_ends"]) for view in views},
        state=stored["state"],
        action=stored["action"],
        instruction=str(stored["instruction"]),
        success=bool(metadata.get("success", True)),  # the generator keeps no failures
        metadata=metadata,
    )
    if "plan" in stored:
        row["plan"] = str(stored["plan"])
    return row


def _split(data: np.ndarray, ends: np.ndarray) -> list[bytes]:
    text = data.tobytes()
    starts = [0, *ends[:-1].tolist()]
    return [text[a:b] for a, b in zip(starts, ends.tolist())]
