"""Evaluates a run: `python -m vla_jax.evaluate --workdir=out/run`.

Takes the newest checkpoint in the workdir, or that of `--checkpoint=best` or `=STEP`, and the
evaluation section of its config; any key of that section can be overridden:
`--evaluation.rollout_episodes=100`. A count of 0 leaves a part out.
Results go to `evaluation/*.json` and `evaluation/media/` of the workdir, where
`python -m vla_jax.evaluation.report` finds them, or to `--out=DIR`. On several hosts, start
it on each, as training: they share the work, and process 0 writes.

The imports are inside the functions: the simulators' worker processes import the main module again,
and rendering in a process that has loaded TensorFlow ends in a segmentation fault.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_jax.config import Config
    from vla_jax.data.sequence import SequenceBuilder
    from vla_jax.evaluation.base import EvaluationConfig, Evaluator


def evaluate(
    workdir: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    checkpoint: str = "newest",
) -> Path:
    """Measures everything that the config asks for.

    Args:
      workdir: of a run that has a checkpoint.
      overrides: "key=value" of `EvaluationConfig`.
      out: directory of the results; None: `evaluation` in the workdir.
      checkpoint: "newest", "best" or a step.

    Returns:
      The directory of the results.

    Raises:
      FileNotFoundError: no run or checkpoint, or a data set that is gone.
      ValueError: a bad override, or a checkpoint of another vocabulary, robot or world.
    """
    import jax

    from vla_jax import config as config_lib
    from vla_jax import schema
    from vla_jax.build import load_policy
    from vla_jax.evaluation.base import EvaluationConfig, measure_together, write_result
    from vla_jax.evaluation.provenance import describe
    from vla_jax.evaluation.suites.evaluator import SuiteEvaluator, table

    begun = time.monotonic()
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"no run in {workdir} (there is no {file.name}): train one first")
    config = config_lib.from_json(file.read_text(), where=str(file))
    values = schema.to_plain(config.evaluation)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: expected --evaluation.key=value")
        schema.set_from_text(EvaluationConfig, values, key, text)
    settings = schema.from_dict(EvaluationConfig, values, "evaluation")
    policy, meta, config = load_policy(
        workdir, batch_size=settings.batch_size, checkpoint=checkpoint
    )

    out = Path(workdir) / "evaluation" if out is None else Path(out)
    first = jax.process_index() == 0
    media = out / "media" if first else None
    if media is not None:
        media.mkdir(parents=True, exist_ok=True)
    seconds, tables = {}, []
    for evaluator in make_evaluators(config, settings, policy.builder):
        started = time.monotonic()
        print(f"{evaluator.name} ...", flush=True)
        result = measure_together(evaluator, policy, media)
        seconds[evaluator.name] = time.monotonic() - started
        if first:
            write_result(out / f"{evaluator.name}.json", result)
            for name, value in result["scalars"].items():
                print(f"  {name:40s} {value:.4g}")
            if isinstance(evaluator, SuiteEvaluator):
                tables.append(table(result))
    run = {
        **describe(),
        "step": meta.step,
        "settings": schema.to_plain(settings),
        "seconds": seconds,
        "wall_s": time.monotonic() - begun,
    }
    if first:
        write_result(out / "run.json", run)
    for text in tables:
        print(text, flush=True)
    return out


def make_evaluators(
    config: Config, settings: EvaluationConfig, builder: SequenceBuilder
) -> list[Evaluator]:
    """What the settings ask for, on the test splits of the config's data sets.

    Data sets of weight 0 count too: they were left out of training, which is no reason not to ask.
    A model without robot data is not asked to act.
    """
    from vla_jax.data.sources.image_text import ImageTextSource
    from vla_jax.data.sources.opening import open_source
    from vla_jax.evaluation.actions import ActionEvaluator
    from vla_jax.evaluation.captions import CaptionEvaluator
    from vla_jax.evaluation.held_out import (
        action_batches,
        caption_batches,
        has_captions,
        vqa_batches,
    )
    from vla_jax.evaluation.metaworld import MetaworldEvaluator
    from vla_jax.evaluation.suites.evaluator import SuiteEvaluator
    from vla_jax.evaluation.tabletop import PointingEvaluator, RolloutEvaluator
    from vla_jax.evaluation.vqa import VqaEvaluator

    evaluators: list[Evaluator] = []
    shape = {"batch_size": settings.batch_size, "image_size": config.model.image_size}
    for name, source_config in config.data.sources.items():
        wanted = {"image_text": max(settings.vqa_examples, settings.caption_examples)}
        wanted |= dict.fromkeys(("episodes", "lerobot", "array_record"), settings.action_steps)
        limit = wanted.get(source_config.kind, 0)
        if not limit:
            if source_config.kind not in wanted:
                print(f"source {name!r}: {source_config.kind} has no splits; not evaluated on")
            continue
        try:
            source = open_source(
                name,
                source_config,
                split="test",
                chunk=config.data.actions.chunk,
                frames=config.data.frames,
                robot_prompts=config.data.robot_prompts,
            )
        except (ValueError, FileNotFoundError) as e:
            if source_config.kind in ("episodes", "image_text"):
                raise
            print(f"source {name!r} has no test split; not evaluated on ({e})")
            continue
        if isinstance(source, ImageTextSource):
            limit, captions = settings.vqa_examples, settings.caption_examples
            if limit:
                batches = vqa_batches(source, builder, limit=limit, **shape)
                evaluators.append(VqaEvaluator(batches, f"vqa_{name}"))
            if captions and has_captions(source, captions):
                batches = caption_batches(source, builder, limit=captions, **shape)
                evaluators.append(CaptionEvaluator(batches, f"captions_{name}"))
        elif source.action_spec is None:
            print(
                f"source {name!r}: {source_config.kind} has no kinds of question; not evaluated on"
            )
        elif builder.action_tokenizers:
            template, robot = config.data.robot_prompts[0], source.action_spec.name
            batches = action_batches(
                source, builder.for_robot(robot), limit=limit, template=template, **shape
            )
            evaluators.append(ActionEvaluator(batches, f"actions_{name}", robot))
    if settings.world == "metaworld":
        if settings.rollout_episodes and builder.action_tokenizers:
            evaluators.append(MetaworldEvaluator(settings, config.model.image_size))
        return evaluators
    if settings.pointing_views:
        evaluators.append(PointingEvaluator(settings))
    if settings.rollout_episodes and builder.action_tokenizers:
        evaluators.append(RolloutEvaluator(settings))
    if settings.suite_rollouts and builder.action_tokenizers:
        evaluators.append(SuiteEvaluator(settings))
    return evaluators


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vla_jax.evaluate", description="Evaluates a checkpoint of a run"
    )
    parser.add_argument("--workdir", required=True, help="of a run that has a checkpoint")
    parser.add_argument("--out", help="of the results; default: WORKDIR/evaluation")
    parser.add_argument("--checkpoint", default="newest", help="newest (default), best or a step")
    options, rest = parser.parse_known_args(arguments)
    prefix = "--evaluation."
    strange = [word for word in rest if not word.startswith(prefix)]
    if strange:
        parser.error(f"unknown argument {strange[0]!r}; override settings with {prefix}key=value")
    from vla_jax.sharding.distributed import join_processes

    try:
        join_processes()
        overrides = [word.removeprefix(prefix) for word in rest]
        out = evaluate(options.workdir, overrides, out=options.out, checkpoint=options.checkpoint)
    except (ValueError, OSError, RuntimeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
