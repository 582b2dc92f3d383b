"""From a source's config to the source."""

from __future__ import annotations

import dataclasses

from vla_jax.data.config import SourceConfig
from vla_jax.data.oxe.record import measure
from vla_jax.data.oxe.records import find_record
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.converted import open_converted
from vla_jax.data.sources.custom import open_custom
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
    chunk: int = 1,
    frames: int = 1,
    max_bad_records: int = 0,
    cache_bytes: int = 256 * 2**20,
    robot_prompts: tuple[str, ...] = (ROBOT_TEMPLATE,),
) -> Source:
    """Opens a data set of the config, on another split if given.

    Arguments as for `EpisodeSource`; `robot_prompts` are its templates. Raises as the sources do.
    """
    split = split or config.split
    if config.kind == "python":
        return open_custom(name, config.path, split)
    if config.kind == "image_text":
        texts = _texts(config, PROMPT_AND_ANSWER)
        return ImageTextSource(
            name,
            config.path,
            split,
            image=config.image or "image",
            texts=texts,
            max_bad_records=max_bad_records,
        )
    if config.kind == "webdataset":
        return WebDatasetSource(
            name, config.path, texts=_texts(config, CAPTIONS), max_bad_records=max_bad_records
        )
    if config.kind == "jsonl":
        return JsonlSource(
            name,
            config.path,
            image_root=config.image_root or None,
            image=config.image or "image",
            texts=_texts(config, PREFIX_AND_SUFFIX),
        )
    robot = {
        "chunk": chunk,
        "frames": frames,
        "templates": robot_prompts,
    }
    if config.kind == "array_record":
        return open_converted(
            name, config.path, split, cameras=config.cameras, plan=config.plan, **robot
        )
    robot["cache_bytes"] = cache_bytes
    if config.kind == "lerobot":
        return LeRobotSource(
            name, config.path, split, cameras=config.cameras, state=config.state, **robot
        )
    layout = _layout(config, max_bad_records)
    return EpisodeSource(
        name, config.path, split, layout=layout, max_bad_records=max_bad_records, **robot
    )


def _texts(config: SourceConfig, usual: TextLayout) -> TextLayout:
    return TextLayout(
        config.prompt or usual.prompt,
        config.answer or usual.answer,
        config.language or usual.language,
    )


def _layout(config: SourceConfig, max_bad_records: int) -> EpisodeLayout:
    layout = EpisodeLayout()
    if config.record:
        record = find_record(config.record)
        # Bounds come from the training split, also for the held-out one.
        quantiles = None
        if record.needs_quantiles:
            quantiles = measure(record, config.path, max_bad_records=max_bad_records)
        layout = record.layout(quantiles)
    return dataclasses.replace(
        layout, images=config.cameras or layout.images, state=config.state, plan=config.plan
    )
