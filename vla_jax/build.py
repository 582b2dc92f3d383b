"""Config -> objects. The only place that knows every package."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vla_jax import schema
from vla_jax.actions import stored
from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.checkpoints.manager import CheckpointMeta, Checkpoints
from vla_jax.checkpoints.pretrained import (
    FORMATS,
    change_table,
    is_pretrained,
    load_pretrained,
)
from vla_jax.checkpoints.same_config import require_same_config
from vla_jax.config import Config
from vla_jax.data.config import DataConfig
from vla_jax.data.loader import Loader, queue_bytes
from vla_jax.data.loss_tokens import mean_loss_tokens
from vla_jax.data.mixture import Mixture
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.opening import open_source
from vla_jax.data.state import StateInput
from vla_jax.decoding.policy import Policy
from vla_jax.models.lora import merge_lora
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import Vla, init_params
from vla_jax.sharding.mesh import MeshConfig, make_mesh, replicated
from vla_jax.text.least_used import load_ids
from vla_jax.text.prompts import PLAN_TEMPLATE
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.training.augment import apply_changes, draw_changes
from vla_jax.training.groups import freeze
from vla_jax.training.losses import answer_loss
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.step import LossFn, TrainState, make_init, state_shardings
from vla_jax.types import Params


def make_vocabulary(config: Config) -> Vocabulary:
    """The config's vocabulary. Raises ValueError if it does not fit the model's table."""
    rows = config.model.decoder.vocab_size
    return Vocabulary(config.data.vocabulary or None, expected_size=rows)


def make_action_tokenizer(
    data: DataConfig, vocabulary: Vocabulary, spec: ActionSpec | None
) -> ActionTokenizer | None:
    """The config's action tokenizer; None if there is no robot data."""
    if spec is None:
        return None
    config = data.actions
    if config.tokenizer == "digits":
        ids = vocabulary.digit_ids
    else:
        ids = _integer_ids(data, vocabulary)
    return stored.make_tokenizer(config, spec, ids)


def make_builder(
    data: DataConfig, vocabulary: Vocabulary, tokenizer: ActionTokenizer | None
) -> SequenceBuilder:
    """The SequenceBuilder of a config."""
    state = None
    if data.state.kind != "none":
        ids = _integer_ids(data, vocabulary) if data.state.kind == "tokens" else None
        state = StateInput(data.state.low, data.state.high, ids)
    return SequenceBuilder(
        vocabulary,
        tokenizer,
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

    Raises ValueError if two robot data sets have different ActionSpecs, or memory is too short.
    """
    sources: dict[str, Source] = {}
    spec: ActionSpec | None = None
    wanted = {name: config for name, config in data.sources.items() if data.uses(name)}
    cache_bytes = int(data.host_memory_gib * 2**30) - queue_bytes
    if cache_bytes < 0:
        raise ValueError(
            f"data.host_memory_gib {data.host_memory_gib:g} is less than the batches of a process "
            f"need, {queue_bytes / 2**30:.2f} GiB: raise it, or lower data.prefetch, data.threads "
            "or train.batch_size"
        )
    for name, config in wanted.items():
        source = open_source(
            name,
            config,
            expected_spec=spec,
            chunk=data.actions.chunk,
            frames=data.frames,
            max_bad_records=data.max_bad_records,
            cache_bytes=cache_bytes // 2 // len(wanted),
            robot_prompts=data.robot_prompts,
        )
        sources[name] = source
        spec = spec or source.action_spec
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


def action_spec_of(sources: dict[str, Source]) -> ActionSpec | None:
    return next((s.action_spec for s in sources.values() if s.action_spec is not None), None)


@dataclasses.dataclass
class TrainingRun:
    """What `train` needs, built from a config."""

    config: Config
    mesh: Mesh
    mixture: Mixture
    sources: dict[str, Source]
    builder: SequenceBuilder
    optimizer: optax.GradientTransformation
    abstract: TrainState
    shardings: TrainState

    def loader(self, start_step: int) -> Loader:
        config = self.config
        return Loader(
            self.mixture,
            self.sources,
            self.builder,
            batch_size=config.train.batch_size,
            image_size=_image_size(config),
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            readers=config.data.readers,
            max_bad_records=config.data.max_bad_records,
            packing=config.data.packing,
        )

    @property
    def loss_fn(self) -> LossFn:
        loss = functools.partial(
            answer_loss,
            Vla(self.config.model),
            max_answer_tokens=self.config.data.row_lengths[1],
            num_sources=len(self.sources),
            integer_smoothing=self.config.train.integer_smoothing,
            exact_integers=self._levels,
        )
        groups = self.config.optimizer.groups
        change = self._change_images

        def of_changed(params: Params, batch: dict[str, jax.Array], **more: Any):
            return loss(freeze(params, groups), {**batch, "images": change(batch)}, **more)

        return of_changed

    def _change_images(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The batch's images [B, views, h, w, 3], augmented and of the model's size."""
        config = self.config.train.augment
        robots = [source.action_spec is not None for source in self.sources.values()]
        source, images, size = batch["source"], batch["images"], self.config.model.image_size
        is_robot = jnp.asarray(robots)[source.reshape(-1)]
        sample = batch["sample"].reshape(-1)
        changes = draw_changes(config, sample, is_robot, self.config.data.seed)
        # A packed row holds the views of several samples.
        of_samples = images.reshape(len(sample), -1, *images.shape[2:])
        changed = apply_changes(of_samples, changes, config, size)
        return changed.reshape(*images.shape[:2], size, size, 3)

    @property
    def _levels(self) -> int:
        """Most levels of a discrete action dimension; integers 0 .. levels - 1 stand for them."""
        tokenizer = self.builder.action_tokenizer
        if tokenizer is None:
            return 0
        return max((d.levels or 0 for d in tokenizer.spec.dimensions), default=0)

    def meta(self, step: int) -> CheckpointMeta:
        return CheckpointMeta(
            step=step,
            next_sample=step * self.config.samples_per_step,
            config=schema.to_plain(self.config),
            action_tokenizer=self.builder.action_tokenizer,
            vocabulary=self.builder.vocabulary.digest,
            records={name: len(source) for name, source in self.sources.items()},
            loss_tokens=dict(self.mixture.loss_tokens or {}),
        )

    def fresh_state(self) -> TrainState:
        """New parameters, or those of `train.init_from`, with a new optimizer state."""
        config = self.config
        init = make_init(config.model, self.optimizer, config.train.seed)
        if not config.train.init_from:
            return jax.jit(init, out_shardings=self.shardings)()
        tokenizer = self.builder.action_tokenizer
        rows = () if tokenizer is None else tokenizer.token_ids.tolist()
        params = load_initial_params(
            config.train.init_from,
            config.model,
            config.train.seed,
            self.shardings["params"],
            rows if config.data.actions.token_ids else (),
        )

        def start(params: Params) -> TrainState:
            return {**init(), "params": params, "opt": self.optimizer.init(params)}

        return jax.jit(start, out_shardings=self.shardings, donate_argnums=0)(params)

    def restored_state(self, checkpoints: Checkpoints) -> TrainState:
        """The newest checkpoint's state. Raises ValueError if it is of another config."""
        meta = checkpoints.meta()
        require_same_config(meta, self.meta(meta.step), where=str(checkpoints.directory))
        return checkpoints.restore(self.abstract, self.shardings)


def build_training(config: Config, stored: CheckpointMeta | None = None) -> TrainingRun:
    """Everything but the state.

    Args:
      stored: of the checkpoint that the run goes on from.

    Raises ValueError or FileNotFoundError for what the config asks.
    """
    mesh = make_mesh(config.mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.train.batch_size % rows:
        raise ValueError(
            f"train.batch_size {config.train.batch_size} does not divide over {rows} devices "
            "(mesh data x fsdp)"
        )
    queue = queue_bytes(
        config.train.batch_size // jax.process_count(),
        config.model.num_views * config.data.examples_per_row,
        _image_size(config),
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    sources = open_sources(config.data, queue)
    vocabulary = make_vocabulary(config)
    tokenizer = make_action_tokenizer(config.data, vocabulary, action_spec_of(sources))
    _require_ordered_tokens(config, tokenizer)
    builder = make_builder(config.data, vocabulary, tokenizer)
    mixture = make_mixture(config.data, sources, builder, stored)
    _require_samples(mixture, config)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    init = make_init(config.model, optimizer, config.train.seed)
    abstract = jax.eval_shape(init)
    return TrainingRun(
        config=config,
        mesh=mesh,
        mixture=mixture,
        sources=sources,
        builder=builder,
        optimizer=optimizer,
        abstract=abstract,
        shardings=state_shardings(abstract, mesh),
    )


def _image_size(config: Config) -> int:
    """Of the loader's images."""
    return config.data.image_size or config.model.image_size


def load_initial_params(
    path: str,
    model: ModelConfig,
    seed: int,
    shardings: Params,
    action_rows: Sequence[int] = (),
) -> Params:
    """Parameters from published weights, or from the newest checkpoint of a run directory.

    Prints what became of published ones.

    Args:
      seed: for what published weights lack.
      shardings: where each parameter goes.
      action_rows: tokens of published weights that get a new meaning; those of a run have theirs.
    """

    def init() -> Params:
        return init_params(model, jax.random.key(seed))

    if is_pretrained(path):
        params, changes = load_pretrained(path, init, shardings, action_rows=action_rows)
        print(f"{path}: {change_table(changes)}", flush=True)
        return params
    if not (Path(path) / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"train.init_from {path!r} is neither {FORMATS}, nor a run directory with checkpoints/"
        )
    return _restore_params(path, jax.eval_shape(init), shardings)


def _restore_params(workdir: str, like: Params, shardings: Params) -> Params:
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore({"params": like}, {"params": shardings})["params"]


def _require_ordered_tokens(config: Config, tokenizer: ActionTokenizer | None) -> None:
    """Raises ValueError where integer smoothing would blur tokens that are not in an order."""
    rows = config.model.decoder.integer_rows
    if not config.train.integer_smoothing or tokenizer is None or rows is None:
        return
    inside = (tokenizer.token_ids >= rows[0]) & (tokenizer.token_ids < rows[1])
    if tokenizer.kind == "fast" and inside.any():
        raise ValueError(
            "train.integer_smoothing makes neighbouring integers alike, and FAST's tokens on "
            "integer ids are in no order: set it to 0 or give data.actions.token_ids"
        )


def _require_samples(mixture: Mixture, config: Config) -> None:
    """Raises ValueError if the mixture is used up before the last step."""
    per_step, steps = config.samples_per_step, config.train.steps
    if mixture.length is not None and mixture.length < steps * per_step:
        last = mixture.length // per_step
        raise ValueError(
            f"train.steps {steps} of {per_step} samples need {steps * per_step}, and the data are "
            f"used up after {mixture.length}, in step {last + 1}: set train.steps to {last}, or "
            "data.sources.*.epochs of one source higher, or to 0 for no end"
        )


def load_policy(workdir: str | Path, *, batch_size: int) -> tuple[Policy, CheckpointMeta, Config]:
    """The policy of a run's newest checkpoint.

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: the vocabulary is not the one it was trained with.
    """
    with Checkpoints(workdir) as checkpoints:
        meta = checkpoints.meta()
    config = schema.from_dict(Config, meta.config)
    vocabulary = make_vocabulary(config)
    if vocabulary.digest != meta.vocabulary:
        raise ValueError(
            f"{workdir} was trained with vocabulary {meta.vocabulary}, this program has "
            f"{vocabulary.digest}: use the version of the code that it was trained with"
        )
    like = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    builder = make_builder(config.data, vocabulary, meta.action_tokenizer)
    whole = replicated(make_mesh(MeshConfig()))
    params = _restore_params(str(workdir), like, jax.tree.map(lambda _: whole, like))
    params = merge_lora(params, config.model)
    model = dataclasses.replace(config.model, lora_rank=0)
    policy = Policy(
        params,
        model,
        builder,
        batch_size=batch_size,
        robot_template=PLAN_TEMPLATE if config.data.plans else config.data.robot_prompts[0],
        plans=config.data.plans,
    )
    return policy, meta, config
