"""The command line of `tools/rt2_experiment.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_jax.evaluation.base import write_result
from vla_jax.experiment.description import Experiment
from vla_jax.experiment.page import write_experiment_page
from vla_jax.experiment.presets import PRESETS
from vla_jax.experiment.results import collect
from vla_jax.experiment.run import StageFailedError, Stages
from vla_jax.experiment.stages import Stage, stages_of
from vla_jax.experiment.tables import all_tables, to_markdown
from vla_jax.training.progress import duration


def main(
    arguments: Sequence[str] | None = None, *, launcher: Sequence[str] = (sys.executable,)
) -> int:
    """Returns the exit code: 0 done; 1 a step failed or was stopped, start again to go on; 2 the
    command line, or what is in the directory, does not fit.

    Args:
      launcher: what runs the steps' commands.
    """
    options = _parser().parse_args(arguments)
    experiment, out = PRESETS[options.preset], options.out
    only = [name for name in options.only.split(",") if name]
    try:
        stages = stages_of(experiment, out, only)
        runner = Stages(out, stages, launcher=launcher)
        print(plan_text(experiment, runner, stages), flush=True)
        if not options.plan:

            def report(stage: Stage | None) -> None:
                if stage is None or stage.name.startswith("evaluate/"):
                    _write_all(experiment, out)

            runner.run(redo=options.redo, after=report)
            report(None)
            print(f"\n{out / 'tables.md'}\n{(out / 'experiment.html').resolve()}")
    except StageFailedError as e:
        print(f"error: {e}; run the same command again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tools/rt2_experiment.py",
        description="RT-2's ablation, or a comparison beyond it, by one command",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), required=True)
    parser.add_argument("--out", type=Path, default=Path("experiment_out"))
    parser.add_argument("--only", default="", help="names of cells, with commas between")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and end")
    parser.add_argument(
        "--redo", action="store_true", help="make again what was made with other settings"
    )
    return parser


def plan_text(experiment: Experiment, runner: Stages, stages: Sequence[Stage]) -> str:
    """The stages with what each should take, and their sum."""
    states = {stage.name: runner.stamp(stage.name).get("state", "") for stage in stages}
    wide = max(len(stage.name) for stage in stages)
    lines = [
        f"{experiment.name}: {len(experiment.cells)} cells. Times on {experiment.pace.machine}:"
    ]
    for stage in stages:
        state = states[stage.name]
        lines.append(
            f"  {stage.name:{wide}s} {duration(stage.seconds):>8s}  {state:5s} {stage.title}"
        )
    total = sum(stage.seconds for stage in stages)
    left = sum(stage.seconds for stage in stages if states[stage.name] != "done")
    lines.append(f"  {'in all':{wide}s} {duration(total):>8s}  of which {duration(left)} to go")
    return "\n".join(lines)


def _write_all(experiment: Experiment, out: Path) -> None:
    """Of all cells that are done, by this run or by others."""
    names = [cell.name for cell in experiment.cells if _startable(experiment, out, cell.name)]
    results = collect(experiment, out, Stages(out, stages_of(experiment, out, names)), names)
    write_result(out / "results.json", results)
    _write_tables(out / "tables.md", results)
    write_experiment_page(results, out, out / "experiment.html")


def _startable(experiment: Experiment, out: Path, name: str) -> bool:
    """Whether what a cell starts from is there; else it is not done either."""
    try:
        stages_of(experiment, out, [name])
    except FileNotFoundError:
        return False
    return True


def _write_tables(path: Path, results: dict) -> None:
    head = (
        f"# {results['title']}\n\nPreset {results['experiment']}, {results['date']}, code "
        f"{results['git']}.\n"
    )
    sentences = [f"* {entry['sentence']}" for entry in results["comparisons"]]
    parts = [
        head,
        "\n".join(sentences) + "\n",
        *(to_markdown(table) for table in all_tables(results)),
    ]
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(parts))
    partial.replace(path)
