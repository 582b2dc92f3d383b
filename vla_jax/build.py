"""Config -> what trains and acts. The only place that knows every package."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from vla_jax import schema
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.build_data import RunData, build_data, make_builder, make_vocabulary
from vla_jax.build_step import Update, build_update, state_options
from vla_jax.checkpoints.manager import CheckpointMeta, Checkpoints
from vla_jax.checkpoints.pretrained import (
    FORMATS,
    change_table,
    is_pretrained,
    load_pretrained,
)
from vla_jax.checkpoints.run_params import load_run_params
from vla_jax.checkpoints.same_config import require_same_config
from vla_jax.config import Config
from vla_jax.data.mixture import Mixture
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.decoding.policy import Policy
from vla_jax.models.lora import merge_lora
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import init_params
from vla_jax.sharding.mesh import MeshConfig, local_rows, make_mesh
from vla_jax.sharding.rules import param_shardings
from vla_jax.text.prompts import PLAN_TEMPLATE
from vla_jax.training.step import (
    LossFn,
    TrainState,
    make_init,
    make_source_gradient_norms,
    new_state,
)
from vla_jax.types import Params


@dataclasses.dataclass
class TrainingRun(RunData, Update):
    """What `train` needs, built from a config."""

    @property
    def loss_fn(self) -> LossFn:
        robots = [source.action_spec is not None for source in self.sources.values()]
        return self.make_loss(robots, self._levels)

    def make_measure(self) -> Callable[[TrainState, dict[str, jax.Array]], dict[str, jax.Array]]:
        """(state, batch) -> the norm of each source's part of the gradient."""
        norms = make_source_gradient_norms(
            self.shardings,
            self.mesh,
            self.loss_fn,
            len(self.sources),
            micro_batches=self.config.train.micro_batches,
        )

        def measure(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            values = norms(state["params"], batch)
            return {f"{name}/grad_norm": values[i] for i, name in enumerate(self.sources)}

        return measure

    @property
    def _levels(self) -> int:
        """Most levels of a discrete action dimension."""
        specs = [tokenizer.spec for tokenizer in self.builder.action_tokenizers.values()]
        return max((d.levels or 0 for spec in specs for d in spec.dimensions), default=0)

    def meta(self, step: int) -> CheckpointMeta:
        return CheckpointMeta(
            step=step,
            next_sample=step * self.config.samples_per_step,
            config=schema.to_plain(self.config),
            action_tokenizers=tuple(self.builder.action_tokenizers.values()),
            vocabulary=self.builder.vocabulary.digest,
            records={name: len(source) for name, source in self.sources.items()},
            loss_tokens=dict(self.mixture.loss_tokens or {}),
        )

    def fresh_state(self) -> TrainState:
        """New parameters, or those of `train.init_from`, with a new optimizer state."""
        config = self.config
        options = state_options(config)
        init = make_init(config.model, self.optimizer, config.train.seed, **options)
        if not config.train.init_from:
            return jax.jit(init, out_shardings=self.shardings)()
        tokenizers = self.builder.action_tokenizers.values()
        rows = sorted({row for tokenizer in tokenizers for row in tokenizer.token_ids.tolist()})
        params = load_initial_params(
            config.train.init_from,
            config.model,
            config.train.seed,
            self.shardings["params"],
            rows if config.data.actions.token_ids else (),
        )

        def start(params: Params) -> TrainState:
            return new_state(params, self.optimizer, **options)

        # Their memory is taken over by what the state keeps in float32.
        kept = options["ema"] or options["params_dtype"] == "float32"
        donated = (0,) if kept else ()
        return jax.jit(start, out_shardings=self.shardings, donate_argnums=donated)(params)

    def restored_state(self, checkpoints: Checkpoints) -> TrainState:
        """The newest checkpoint's state. Raises ValueError if it is of another config."""
        meta = with_defaults(checkpoints.meta())
        require_same_config(meta, self.meta(meta.step), where=str(checkpoints.directory))
        return checkpoints.restore(self.abstract, self.shardings)


def with_defaults(meta: CheckpointMeta) -> CheckpointMeta:
    """Keys that its program did not know yet get their defaults, which is what it did."""
    try:
        config = schema.to_plain(schema.from_dict(Config, meta.config))
    except ValueError:  # has a key that this program does not know: named where they are compared
        return meta
    return dataclasses.replace(meta, config=config)


def build_training(config: Config, stored: CheckpointMeta | None = None) -> TrainingRun:
    """Everything but the state.

    Args:
      stored: of the checkpoint that the run goes on from.

    Raises ValueError or FileNotFoundError for what the config asks.
    """
    update = build_update(config)
    rows = local_rows(update.mesh, config.train.batch_size)
    data = build_data(config, stored, rows)
    _require_ordered_tokens(config, data.builder.action_tokenizers.values())
    _require_samples(data.mixture, config)
    return TrainingRun(**{**vars(data), **vars(update)})


def load_initial_params(
    path: str,
    model: ModelConfig,
    seed: int,
    shardings: Params,
    action_rows: Sequence[int] = (),
) -> Params:
    """Parameters from published weights, or from the newest checkpoint of a run directory.

    Prints what became of those that are not simply loaded.

    Args:
      path: `train.init_from`; commas between several files.
      seed: for what published weights lack.
      shardings: where each parameter goes.
      action_rows: tokens of published weights that get a new meaning; those of a run have theirs.
    """

    def init() -> Params:
        return init_params(model, jax.random.key(seed))

    paths = [path] if Path(path).exists() else path.split(",")
    if len(paths) > 1 or is_pretrained(path):
        params, changes = load_pretrained(paths, init, shardings, action_rows=action_rows)
        title = f"{path}: " if len(paths) == 1 else ""  # of several the table names each
        print(title + change_table(changes), flush=True)
        return params
    if not (Path(path) / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"train.init_from {path!r} is neither {FORMATS}, nor a run directory with checkpoints/"
        )
    params, changes = load_run_params(path, init, shardings)
    if any(change.status != "loaded" for change in changes):
        print(f"{path}: {change_table(changes)}", flush=True)
    return params


def _require_ordered_tokens(config: Config, tokenizers: Iterable[ActionTokenizer]) -> None:
    """Raises ValueError where integer smoothing would blur tokens that are not in an order."""
    rows = config.model.decoder.integer_rows
    if not config.train.integer_smoothing or rows is None:
        return
    fast = [tokenizer.token_ids for tokenizer in tokenizers if tokenizer.kind == "fast"]
    if any(((ids >= rows[0]) & (ids < rows[1])).any() for ids in fast):
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


def _mesh_here(config: MeshConfig) -> Mesh:
    try:
        return make_mesh(config)
    except ValueError:  # of other devices
        return make_mesh(MeshConfig())


def load_run(
    workdir: str | Path, checkpoint: str = "newest"
) -> tuple[Params, SequenceBuilder, CheckpointMeta, Config]:
    """A run's checkpoint: parameters, placed as in the run if these devices allow it, else whole on
    each of them, low-rank adapters merged; and what they were trained with.

    Args:
      checkpoint: "newest", "best" or a step, see `Checkpoints.find`.

    Raises:
      FileNotFoundError: no checkpoint there.
      ValueError: the vocabulary is not the one it was trained with, or as `Checkpoints.find`.
    """
    with Checkpoints(workdir) as checkpoints:
        meta = checkpoints.meta(checkpoints.find(checkpoint))
    config = schema.from_dict(Config, meta.config)
    vocabulary = make_vocabulary(config)
    if vocabulary.digest != meta.vocabulary:
        raise ValueError(
            f"{workdir} was trained with vocabulary {meta.vocabulary}, this program has "
            f"{vocabulary.digest}: use the version of the code that it was trained with"
        )
    builder = make_builder(config.data, vocabulary, meta.action_tokenizers)
    mesh = _mesh_here(config.mesh)

    def init() -> Params:
        return init_params(config.model, jax.random.key(0))

    shardings = param_shardings(jax.eval_shape(init), mesh)
    params = load_run_params(workdir, init, shardings, meta.step)[0]
    if config.model.lora_rank:
        merge = functools.partial(merge_lora, config=config.model)
        placed = param_shardings(jax.eval_shape(merge, params), mesh)
        params = jax.jit(merge, out_shardings=placed)(params)
    return params, builder, meta, config


def load_policy(
    workdir: str | Path, *, batch_size: int, checkpoint: str = "newest"
) -> tuple[Policy, CheckpointMeta, Config]:
    """The policy of a run's checkpoint; see `load_run`."""
    params, builder, meta, config = load_run(workdir, checkpoint)
    model = dataclasses.replace(config.model, lora_rank=0)
    merged = dataclasses.replace(config, model=model)
    return acting_policy(params, merged, builder, batch_size=batch_size), meta, config


def acting_policy(
    params: Params, config: Config, builder: SequenceBuilder, *, batch_size: int
) -> Policy:
    """The policy of a config with these parameters."""
    return Policy(
        params,
        config.model,
        builder,
        batch_size=batch_size,
        robot_template=PLAN_TEMPLATE if config.data.plans else config.data.robot_prompts[0],
        plans=config.data.plans,
        frames=config.data.frames,
    )
