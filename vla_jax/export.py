"""Writes a run as a bundle to serve: `python -m vla_jax.export --workdir=RUN --out=DIR`.

One directory holds all that it takes to act, with a hash of every file, see `serving.bundle`; load
it with `vla_jax.serving.load(DIR)`. `--stablehlo`, `--saved_model` and `--hugging_face` add the
same for other programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from vla_jax import schema
from vla_jax.actions import stored
from vla_jax.actions.spec import ActionSpec
from vla_jax.build import acting_policy, load_run
from vla_jax.checkpoints.hugging_face import write_hugging_face
from vla_jax.checkpoints.manager import CheckpointMeta
from vla_jax.config import Config
from vla_jax.data.config import SourceConfig
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.opening import open_source
from vla_jax.decoding.policy import Policy
from vla_jax.evaluation.held_out import action_batches
from vla_jax.evaluation.provenance import describe
from vla_jax.serving import bundle, card, dtypes, parameters, saved_model, stablehlo
from vla_jax.text.prompts import PLAN_TEMPLATE
from vla_jax.training.metrics import read_metrics
from vla_jax.tree import unflatten
from vla_jax.types import Params

_DEFAULT_CAMERA = "steps/observation/image"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to write.

    Attributes:
      checkpoint: "newest", "best" or a step, see `Checkpoints.find`.
      dtype: of the parameters.
      robot: name of the ActionSpec to act by; "": the only one.
      cameras: names of the robot's images in the model's order; (): those of its data.
      stablehlo, saved_model, hugging_face: also for other programs.
      held_out_steps: of robot data, on which another dtype is compared with float32.
    """

    checkpoint: str = "newest"
    dtype: parameters.Dtype = "float32"
    robot: str = ""
    cameras: tuple[str, ...] = ()
    stablehlo: bool = False
    saved_model: bool = False
    hugging_face: bool = False
    held_out_steps: int = 200


def export(workdir: str | Path, out: str | Path, options: Options = Options()) -> str:
    """Writes a checkpoint of a run; returns the bundle's digest.

    It is written beside `out` and moved there when it is whole.

    Raises:
      FileNotFoundError: no run or checkpoint.
      FileExistsError: there is something at `out`.
      ValueError: several robots and none named, or a format that has no such model.
    """
    workdir, out = Path(workdir), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} is there already: remove it, or name another place")
    params, builder, meta, config = load_run(workdir, options.checkpoint)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lora_rank=0))
    if builder.action_tokenizers:
        robot = options.robot or _only(list(builder.action_tokenizers))
        builder = builder.for_robot(robot)
    elif options.robot:
        raise ValueError(f"{workdir} was trained without robots, and --robot={options.robot}")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, workdir, params, builder, meta, config, options)
        digest = bundle.write_manifest(partial)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return digest


def _write(
    at: Path,
    workdir: Path,
    params: Params,
    builder: SequenceBuilder,
    meta: CheckpointMeta,
    config: Config,
    options: Options,
) -> None:
    source = _source_of(config, builder)
    settings = _settings(config, builder, options, source)
    tensors = dtypes.stored(params, options.dtype)
    parameters.write(at, tensors)
    (at / bundle.POLICY).write_text(json.dumps(schema.to_plain(settings), indent=1) + "\n")
    shutil.copyfile(builder.vocabulary.path, at / bundle.VOCABULARY)
    if builder.action_tokenizer is not None:
        stored.save(builder.action_tokenizer, at / bundle.TOKENIZER)
    facts = {
        **_training_facts(workdir, meta, config),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "dtype": options.dtype,
        "dtype_change": _dtype_change(params, tensors, builder, config, options, source),
        "robot": None if (t := builder.action_tokenizer) is None else _robot_facts(t.spec, t.kind),
        "cameras": dict(zip(bundle.short_names(settings.cameras), settings.cameras)),
        "formats": [f for f in ("stablehlo", "saved_model", "hugging_face") if getattr(options, f)],
        "exported": describe(),
    }
    (at / bundle.CARD).write_text(json.dumps(facts, indent=1) + "\n")
    (at / "README.md").write_text(card.markdown(facts, settings))
    if options.hugging_face:
        kind = "float32" if options.dtype == "float32" else "bfloat16"
        write_hugging_face(at / "hugging_face", params, config.model, dtype=kind)
    if options.stablehlo or options.saved_model:
        found = bundle.read_unchecked(at, digest="")
        functions = stablehlo.exported(found, tensors)
        if options.stablehlo:
            stablehlo.write(at / "stablehlo", functions)
        if options.saved_model:
            saved_model.write(at / "saved_model", functions, tensors)


def _only(robots: Sequence[str]) -> str:
    if len(robots) > 1:
        raise ValueError(f"say for which robot with --robot: {', '.join(robots)}")
    return robots[0]


def _settings(
    config: Config,
    builder: SequenceBuilder,
    options: Options,
    source: tuple[SourceConfig, Source | None] | None,
) -> bundle.PolicySettings:
    data, evaluation, state = config.data, config.evaluation, builder.state
    cameras = options.cameras
    if not cameras and source is not None:
        views = getattr(source[1], "views", ())
        cameras = source[0].cameras or tuple(views) or (_DEFAULT_CAMERA,)
    features = () if source is None else source[0].state
    tokens = () if state is None or state.token_ids is None else state.token_ids.tolist()
    return bundle.PolicySettings(
        model=config.model,
        dtype=options.dtype,
        cameras=cameras,
        frames=data.frames,
        robot_template=PLAN_TEMPLATE if data.plans else data.robot_prompts[0],
        plans=data.plans,
        max_tokens=data.max_tokens,
        max_answer_tokens=data.max_answer_tokens,
        state=bundle.StateSettings(
            data.state.kind, features, data.state.low, data.state.high, tuple(tokens)
        ),
        temperature=evaluation.action_temperature,
        execute_steps=evaluation.execute_steps,
        ensemble_decay=evaluation.ensemble_decay,
    )


def _source_of(
    config: Config, builder: SequenceBuilder
) -> tuple[SourceConfig, Source | None] | None:
    """The robot's data set, opened if its data are still there; None for a model without robot.

    Raises ValueError if the data are gone and it could be one of several.
    """
    tokenizer = builder.action_tokenizer
    if tokenizer is None:
        return None
    maybe: list[SourceConfig] = []
    for name, source in config.data.sources.items():
        if source.kind not in ("episodes", "lerobot", "array_record", "python"):
            continue
        try:
            opened = _open(name, source, config, source.split)
        except (OSError, ValueError):
            maybe.append(source)
            continue
        if opened.action_spec == tokenizer.spec:
            return source, opened
    if len(maybe) != 1:
        raise ValueError(
            f"no data set of robot {tokenizer.spec.name!r} is there any more to say which cameras "
            "it has: put it back where the run's config.json has it"
        )
    return maybe[0], None


def _open(name: str, source: SourceConfig, config: Config, split: str) -> Source:
    return open_source(
        name,
        source,
        split=split,
        chunk=config.data.actions.chunk,
        frames=config.data.frames,
        robot_prompts=config.data.robot_prompts,
    )


def _robot_facts(spec: ActionSpec, kind: str) -> dict[str, Any]:
    return {
        "spec": json.loads(spec.to_json()),
        "spec_digest": spec.digest,
        "statistics": {
            "kind": "quantiles of the data" if kind == "quantile" else "bounds of the ActionSpec",
            "tokenizer": kind,
            "low": spec.low.tolist(),
            "high": spec.high.tolist(),
        },
    }


def _training_facts(workdir: Path, meta: CheckpointMeta, config: Config) -> dict[str, Any]:
    """Steps, mixture with realised shares, config and evaluation, as far as the run has them."""
    records = read_metrics(workdir) if (workdir / "metrics.jsonl").is_file() else []
    latest: dict[str, float] = {}
    for record in records:
        latest |= record
    keys = ("share_configured", "share_of_samples", "share_of_tokens", "epoch")
    mixture = {
        name: {
            "kind": source.kind,
            "path": source.path,
            "weight": source.weight,
            "group": source.group,
            "records": meta.records.get(name),
            **{key: latest.get(f"{name}/{key}") for key in keys},
        }
        for name, source in config.data.sources.items()
    }
    results = {}
    for file in sorted((workdir / "evaluation").glob("*.json")):
        found = json.loads(file.read_text())
        results[file.stem] = found.get("scalars", found)
    return {
        "model": config.model.preset,
        "steps": meta.step,
        "samples": meta.next_sample,
        "mixture": mixture,
        "evaluation": results,
        "config": meta.config,
    }


def _dtype_change(
    params: Params,
    tensors: dict[str, np.ndarray],
    builder: SequenceBuilder,
    config: Config,
    options: Options,
    source: tuple[SourceConfig, Source | None] | None,
) -> dict[str, Any] | str:
    """What another dtype than float32 changes on held-out steps, or why that is not known."""
    if options.dtype == "float32":
        return "none: float32 as trained"
    if source is None:
        return "not measured: no robot"
    try:
        held_out = _open("held out", source[0], config, "test")
    except (OSError, ValueError) as e:
        return f"not measured: the robot's test split is not there ({e})"
    usable = parameters.usable(tensors, config.model.compute_dtype)
    shardings = jax.tree.map(lambda x: x.sharding, params)
    changed = jax.device_put(unflatten(usable), shardings)
    before = acting_policy(params, config, builder, batch_size=16)
    after = acting_policy(changed, config, builder, batch_size=16)
    return compare(before, after, held_out, config, options.held_out_steps)


def compare(
    before: Policy, after: Policy, held_out: Source, config: Config, steps: int
) -> dict[str, Any]:
    """Two policies on held-out steps.

    Returns:
      steps; same_tokens, the share of tokens that are equal; and by dimension, in its unit, the
      mean error of both against what was done and the mean of how far apart they are.
    """
    same, rows = [], []
    batches = action_batches(
        held_out,
        before.builder,
        batch_size=16,
        image_size=config.model.image_size,
        limit=steps,
        template=config.data.robot_prompts[0],
    )
    for batch in batches():
        one, two = (
            p.act(batch.images, batch.instructions, states=batch.states) for p in (before, after)
        )
        same.append(one.ids == two.ids)
        errors = [
            one.actions - batch.actions,
            two.actions - batch.actions,
            one.actions - two.actions,
        ]
        rows.append(np.stack([np.abs(e)[batch.valid.all(axis=2)] for e in errors]))
    before_error, after_error, apart = np.concatenate(rows, axis=1).mean(axis=1).astype(float)
    return {
        "steps": sum(map(len, same)),
        "same_tokens": float(np.concatenate(same).mean()),
        "dimensions": [
            {"name": d.name, "unit": d.unit, "error_float32": b, "error": a, "apart": x}
            for d, b, a, x in zip(
                before.action_spec.dimensions,
                before_error.tolist(),
                after_error.tolist(),
                apart.tolist(),
            )
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vla_jax.export", description="Writes a checkpoint of a run as a bundle"
    )
    parser.add_argument("--workdir", required=True, help="of a run that has a checkpoint")
    parser.add_argument("--out", required=True, help="directory to write; must not exist")
    parser.add_argument("--checkpoint", default="newest", help="newest (default), best or a step")
    parser.add_argument("--dtype", choices=get_args(parameters.Dtype), default="float32")
    parser.add_argument("--robot", default="", help="name of the ActionSpec, if there are several")
    parser.add_argument("--cameras", default="", help="names with commas, if not those of the data")
    parser.add_argument("--held_out_steps", type=int, default=200, help="to compare dtypes on")
    parser.add_argument("--stablehlo", action="store_true", help="for CPU, CUDA and TPU")
    parser.add_argument("--saved_model", action="store_true", help="for TensorFlow")
    parser.add_argument("--hugging_face", action="store_true", help="PaliGemma of transformers")
    given = vars(parser.parse_args(arguments))
    workdir, out = given.pop("workdir"), given.pop("out")
    given["cameras"] = tuple(filter(None, given["cameras"].split(",")))
    try:
        digest = export(workdir, out, Options(**given))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{out}: bundle {digest[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
