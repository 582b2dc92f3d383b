"""Config -> what a run reads: sources, mixture, sequences, batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vla_jax.actions import stored
from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.checkpoints.manager import CheckpointMeta
from vla_jax.config import Config
from vla_jax.data.config import DataConfig
from vla_jax.data.loader import Loader, queue_bytes
from vla_jax.data.loss_tokens import mean_loss_tokens
from vla_jax.data.mixture import Mixture
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.opening import open_source
from vla_jax.data.state import StateInput
from vla_jax.text.least_used import load_ids
from vla_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass
class RunData:
    """The data of a run; `rows` as for `Loader`."""

    config: Config
    sources: dict[str, Source]
    builder: SequenceBuilder
    mixture: Mixture
    rows: np.ndarray | None

    def loader(self, start_step: int) -> Loader:
        config = self.config
        loader = Loader(
            self.mixture,
            self.sources,
            self.builder,
            batch_size=config.train.batch_size,
            image_size=_image_size(config),
            start_step=start_step,
            rows=self.rows,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            readers=config.data.readers,
            max_bad_records=config.data.max_bad_records,
            packing=config.data.packing,
        )
        if loader.views != config.model.num_views:
            loader.close()
            raise ValueError(
                f"model.num_views is {config.model.num_views}, and a sample of these data has "
                f"{loader.views} images (cameras x data.frames): set model.num_views to that"
            )
        return loader


def build_data(
    config: Config, checkpoint: CheckpointMeta | None = None, rows: np.ndarray | None = None
) -> RunData:
    """Opens the data of a run.

    Args:
      checkpoint: that the run goes on from.
      rows: of each batch, those that this process reads; None: all.

    Raises ValueError or FileNotFoundError for what the config asks.
    """
    queue = queue_bytes(
        config.train.batch_size if rows is None else len(rows),
        config.model.num_views * config.data.examples_per_row,
        _image_size(config),
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    sources = open_sources(config.data, queue)
    vocabulary = make_vocabulary(config)
    tokenizers = make_action_tokenizers(config.data, vocabulary, action_specs_of(sources))
    builder = make_builder(config.data, vocabulary, tokenizers)
    mixture = make_mixture(config.data, sources, builder, checkpoint)
    return RunData(config, sources, builder, mixture, rows)


def make_vocabulary(config: Config) -> Vocabulary:
    """The config's vocabulary. Raises ValueError if it does not fit the model's table."""
    rows = config.model.decoder.vocab_size
    return Vocabulary(config.data.vocabulary or None, expected_size=rows)


def make_action_tokenizers(
    data: DataConfig, vocabulary: Vocabulary, specs: Sequence[ActionSpec]
) -> list[ActionTokenizer]:
    """The config's action tokenizer for each robot. They share their tokens."""
    if not specs:
        return []
    config = data.actions
    if config.tokenizer == "digits":
        ids = vocabulary.digit_ids
    else:
        ids = _integer_ids(data, vocabulary)
    return [stored.make_tokenizer(config, spec, ids) for spec in specs]


def make_builder(
    data: DataConfig, vocabulary: Vocabulary, tokenizers: Sequence[ActionTokenizer]
) -> SequenceBuilder:
    """The SequenceBuilder of a config."""
    state = None
    if data.state.kind != "none":
        ids = _integer_ids(data, vocabulary) if data.state.kind == "tokens" else None
        state = StateInput(data.state.low, data.state.high, ids)
    return SequenceBuilder(
        vocabulary,
        tokenizers,
        max_tokens=data.max_tokens,
        max_answer_tokens=data.max_answer_tokens,
        state=state,
    )


def _integer_ids(data: DataConfig, vocabulary: Vocabulary) -> np.ndarray:
    """The 256 tokens that stand for integers: those named for actions, or the vocabulary's own."""
    if data.actions.token_ids:
        return load_ids(data.actions.token_ids, vocabulary)
    return vocabulary.integer_ids


def open_sources(data: DataConfig, queue_bytes: int = 0) -> dict[str, Source]:
    """Opens every source that ever has a weight, by name.

    Args:
      queue_bytes: of `data.host_memory_gib`, what the loader needs. The sources share half of the
        rest; reading and an allocator's gaps take the other half.

    Raises ValueError if memory is too short.
    """
    sources: dict[str, Source] = {}
    wanted = {name: config for name, config in data.sources.items() if data.uses(name)}
    cache_bytes = int(data.host_memory_gib * 2**30) - queue_bytes
    if cache_bytes < 0:
        raise ValueError(
            f"data.host_memory_gib {data.host_memory_gib:g} is less than the batches of a process "
            f"need, {queue_bytes / 2**30:.2f} GiB: raise it, or lower data.prefetch, data.threads "
            "or train.batch_size"
        )
    for name, config in wanted.items():
        sources[name] = open_source(
            name,
            config,
            chunk=data.actions.chunk,
            frames=data.frames,
            max_bad_records=data.max_bad_records,
            cache_bytes=cache_bytes // 2 // len(wanted),
            robot_prompts=data.robot_prompts,
        )
    return sources


def make_mixture(
    data: DataConfig,
    sources: dict[str, Source],
    builder: SequenceBuilder | None = None,
    stored: CheckpointMeta | None = None,
) -> Mixture:
    """The order of samples over the opened sources.

    Args:
      builder: measures loss tokens, where weights are in those.
      stored: of the checkpoint that the run goes on from: its measure is kept.
    """
    tokens = None
    if data.weights_in == "loss_tokens":
        if stored is not None and stored.loss_tokens.keys() == sources.keys():
            tokens = stored.loss_tokens
        elif builder is not None:
            tokens = mean_loss_tokens(sources, builder, max_bad_records=data.max_bad_records)
        else:
            raise ValueError(
                "no SequenceBuilder to count loss tokens with: set data.weights_in to samples"
            )
    configs = {name: data.sources[name] for name in sources}
    return Mixture(
        {name: config.weight for name, config in configs.items()},
        {name: len(source) for name, source in sources.items()},
        data.seed,
        groups=data.groups,
        group_of={name: config.group for name, config in configs.items()},
        changes=data.weight_changes,
        epochs={name: config.epochs for name, config in configs.items()},
        loss_tokens=tokens,
    )


def action_specs_of(sources: dict[str, Source]) -> list[ActionSpec]:
    """The robots' ActionSpecs, each once.

    Raises ValueError if two that differ have one name: a robot goes by it.
    """
    specs: dict[str, tuple[str, ActionSpec]] = {}
    for name, source in sources.items():
        spec = source.action_spec
        if spec is None:
            continue
        first, known = specs.setdefault(spec.name, (name, spec))
        known.require_same(spec, here=f"source {first!r}", there=f"source {name!r}")
    return [spec for _, spec in specs.values()]


def _image_size(config: Config) -> int:
    """Of the loader's images."""
    return config.data.image_size or config.model.image_size
