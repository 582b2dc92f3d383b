"""Optimizer and learning-rate schedule from the config."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from vla_jax.training.groups import factors
from vla_jax.types import Params

# Parameters that stack matrices on leading axes, and how many such axes there are: of layers, and
# of gate and up, or key and value.
_STACKS = (
    (r"llm/layers/(mlp/gating_einsum|attn/kv_einsum/w)", 2),
    (r"(llm/layers|img/Transformer/encoderblock)/.*", 1),
)
# Below 64, a common head size, and above the number of heads.
_MIN_FACTORED = 32


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Adafactor, with a warm-up.

    RT-2 (arXiv 2307.15818, appendix E) names no optimizer: it takes what PaLI-X and PaLM-E were
    trained with, which is Adafactor, at a rate of 1e-3 and 4e-4. Such rates are shares of a
    matrix's size, so they go with `parameter_scaling`:

        {"kind": "adafactor", "learning_rate": 1e-3, "warmup_steps": 1000, "decay": "rsqrt",
         "b1": 0.0}

    and PaLM's schedule is `warmup_steps` 1, `constant_steps` 10_000, `decay` "rsqrt".

    Attributes:
      learning_rate: the peak.
      warmup_steps: linear from 0.
      kind: "adamw" (arXiv 1711.05101) or "adafactor" (arXiv 1804.04235), whose second moments of a
        matrix are one value a row and one a column. See `make_optimizer`.
      decay: after warm-up: "cosine" to 0 at the last step, "rsqrt" (1 / sqrt(step), as T5, PaLI and
        PaLM), or "constant".
      constant_steps: the rate stays at its peak up to this step, warm-up included, and decays from
        there; 0: it decays as soon as the warm-up ends. PaLM (arXiv 2204.02311, section 5): 10,000.
      b1: of the running mean of gradients (AdamW) or updates (Adafactor); 0 keeps none in
        Adafactor, which halves what the optimizer keeps.
      b2: of AdamW's second moments. Adafactor's is 1 - step^-0.8.
      weight_decay: of matrices, times the learning rate; norms, biases and embeddings have none.
      clip_norm: global gradient norm above which the gradient is scaled down.
      groups: other learning rates for parts of the model, see `training.groups`: the rate times a
        factor, 0 to freeze (no moments are kept). E.g. (("img/.*", 0.1), ("llm/embedder/.*", 0.0)).
      momentum_dtype: of the mean that `b1` makes.
      parameter_scaling: Adafactor's steps are relative to the root mean square of the matrix
        (algorithm 4 there; PaLI, PaLM), and at least to 1e-3. Without it they are absolute, as in
        big_vision, with rates as for AdamW.
    """

    learning_rate: float
    warmup_steps: int
    kind: Literal["adamw", "adafactor"] = "adamw"
    decay: Literal["cosine", "rsqrt", "constant"] = "cosine"
    constant_steps: int = 0
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    groups: tuple[tuple[str, float], ...] = ()
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    parameter_scaling: bool = True

    def __post_init__(self):
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must be in [0, 1), got {getattr(self, name)}")


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Step, counted from 0 -> learning rate.

    With s the step where decay starts, the end of the warm-up or `constant_steps`, "rsqrt" is
    peak * sqrt(s / step): T5X's `rsqrt_normalized_decay`, and PaLM's 1 / sqrt(step).

    Raises:
      ValueError: warm-up or the constant part is not shorter than training.
    """
    for name, least in (("warmup_steps", 1), ("constant_steps", 0)):
        if not least <= getattr(config, name) < total_steps:
            raise ValueError(
                f"optimizer.{name} {getattr(config, name)} must be between {least} and train.steps "
                f"{total_steps} - 1"
            )
    peak, warmup = config.learning_rate, config.warmup_steps
    start = max(warmup, config.constant_steps)
    rise = optax.linear_schedule(0.0, peak, warmup)
    stay = optax.constant_schedule(peak)
    if config.decay == "cosine":
        fall = optax.cosine_decay_schedule(peak, total_steps - start)
    elif config.decay == "rsqrt":
        fall = lambda step: peak * (start / jnp.maximum(step + start, 1)) ** 0.5  # noqa: E731
    else:
        fall = stay
    return optax.join_schedules([rise, stay, fall], [warmup, start])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """What `config.kind` says, clipped by global norm before; all in the parameters' dtype.

    Adafactor's settings are T5X's defaults, with which PaLI and PaLM were trained: decay 0.8,
    epsilon 1e-30, updates clipped to a root mean square of 1 per matrix. Each matrix of a stack,
    such as a layer's, is treated by itself. Factored are the two largest of its axes, width and
    head or MLP size, unless one is shorter than 32; a projection [N, D, H] has N pairs of rows and
    columns, one for each head. Vectors, such as norms and biases, keep all second moments.
    """
    make = _adamw if config.kind == "adamw" else _adafactor
    update = make(config, make_schedule(config, total_steps))
    clip = optax.clip_by_global_norm(config.clip_norm)
    if not config.groups:
        return optax.chain(clip, update)

    def labels(params: Params) -> Params:
        return jax.tree.map(str, factors(params, config.groups))

    kinds = {str(factor): factor for factor in (1.0, *(f for _, f in config.groups))}
    parts: dict[Hashable, optax.GradientTransformation] = {
        label: optax.chain(update, optax.scale(factor)) if factor else optax.set_to_zero()
        for label, factor in kinds.items()
    }
    return optax.chain(clip, optax.partition(parts, labels))


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        mu_dtype=config.momentum_dtype,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )


def _adafactor(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    def of_matrix(name: str) -> optax.GradientTransformation:
        parts = [
            optax.scale_by_factored_rms(min_dim_size_to_factor=_MIN_FACTORED),
            optax.clip_by_block_rms(1.0),
        ]
        if config.b1:
            parts.append(optax.ema(config.b1, False, jnp.dtype(config.momentum_dtype)))
        # What a norm multiplies by is about 1, though RMSNorm keeps it less 1.
        if config.parameter_scaling and not name.endswith("/scale"):
            parts.append(optax.scale_by_param_block_rms(1e-3))
        return optax.chain(*parts)

    return optax.chain(
        _by_matrix(of_matrix),
        optax.add_decayed_weights(config.weight_decay, _decayed),
        optax.scale_by_learning_rate(schedule),
    )


def _by_matrix(
    make: Callable[[str], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """`make(name)` for each parameter by itself, and for each matrix of a stack by itself.

    The state has the parameters' tree, with a transformation's state for each.
    """

    def functions(path) -> tuple[Callable[..., Any], Callable[..., Any]]:
        name = "/".join(str(k.key) for k in path)
        init, update = make(name)
        depth = next((n for stack, n in _STACKS if re.fullmatch(stack, name)), 0)
        for _ in range(depth):
            init, update = jax.vmap(init), jax.vmap(update)
        return init, update

    def init(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, x: functions(path)[0](x), params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, tree = jax.tree_util.tree_flatten_with_path(updates)
        states, own = tree.flatten_up_to(state), tree.flatten_up_to(params)
        done = [functions(path)[1](g, s, p) for (path, g), s, p in zip(leaves, states, own)]
        return tree.unflatten([u for u, _ in done]), tree.unflatten([s for _, s in done])

    return optax.GradientTransformation(init, update)


def _decayed(params):
    """True for matrices in blocks; by name, as stacked layers make even a bias a matrix."""

    def one(path, _):
        return path[-1].key not in ("bias", "scale", "cls", "pos_embedding", "input_embedding")

    return jax.tree_util.tree_map_with_path(one, params)
