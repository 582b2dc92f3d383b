"""From a source's config to the source."""

from __future__ import annotations

import dataclasses

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.config import SourceConfig
from vla_jax.data.oxe.record import measure
from vla_jax.data.oxe.records import find_record
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.episodes import EpisodeLayout, EpisodeSource
from vla_jax.data.sources.image_text import PROMPT_AND_ANSWER, ImageTextSource
from vla_jax.data.sources.jsonl import PREFIX_AND_SUFFIX, JsonlSource
from vla_jax.data.sources.lerobot import LeRobotSource
from vla_jax.data.sources.texts import TextLayout
from vla_jax.data.sources.webdataset import CAPTIONS, WebDatasetSource
from vla_jax.text.prompts import ROBOT_TEMPLATE


def open_source(
    name: str,
    config: SourceConfig,
    *,
    split: str | None = None,
    expected_spec: ActionSpec | None = None,
    chunk: int = 1,
    robot_prompts: tuple[str, ...] = (ROBOT_TEMPLATE,),
) -> Source:
    """Opens a data set of the config, on another split if given. Raises as the sources do.

    Args:
      robot_prompts: templates of a robot's prompt.
    """
    split = split or config.split
    if config.kind == "image_text":
        texts = _texts(config, PROMPT_AND_ANSWER)
        return ImageTextSource(name, config.path, split, image=config.image or "image", texts=texts)
    if config.kind == "webdataset":
        return WebDatasetSource(name, config.path, texts=_texts(config, CAPTIONS))
    if config.kind == "jsonl":
        return JsonlSource(
            name,
            config.path,
            image_root=config.image_root or None,
            image=config.image or "image",
            texts=_texts(config, PREFIX_AND_SUFFIX),
        )
    robot = {
        "expected_spec": expected_spec,
        "chunk": chunk,
        "cache_bytes": config.cache_mib * 2**20,
        "templates": robot_prompts,
    }
    if config.kind == "lerobot":
        return LeRobotSource(name, config.path, split, cameras=config.cameras, **robot)
    return EpisodeSource(name, config.path, split, layout=_layout(config), **robot)


def _texts(config: SourceConfig, usual: TextLayout) -> TextLayout:
    return TextLayout(
        config.prompt or usual.prompt,
        config.answer or usual.answer,
        config.language or usual.language,
    )


def _layout(config: SourceConfig) -> EpisodeLayout:
    layout = EpisodeLayout()
    if config.record:
        record = find_record(config.record)
        # Bounds come from the training split, also for the held-out one.
        quantiles = measure(record, config.path) if record.needs_quantiles else None
        layout = record.layout(quantiles)
    given = {"images": config.cameras, "plan": config.plan}
    return dataclasses.replace(layout, **{name: value for name, value in given.items() if value})
