"""`python -m vla_jax.evaluation.report --workdir=out/run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_jax.evaluation.report.inputs import read_inputs
from vla_jax.evaluation.report.page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vla_jax.evaluation.report", description="Writes one HTML page about a run."
    )
    parser.add_argument(
        "--workdir", "--cotrain", type=Path, required=True, help="the run that was evaluated"
    )
    parser.add_argument("--web", type=Path, help="workdir of a web stage, for its curves")
    parser.add_argument("--title", default="vla_jax: web and robot data in one model")
    parser.add_argument("--out", type=Path, help="default: report.html in the workdir")
    options = parser.parse_args(arguments)
    before = [("Web stage", options.web)] if options.web else []
    try:
        inputs = read_inputs(options.workdir, before=before, title=options.title)
        out = write_report(inputs, options.out or options.workdir / "report.html")
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{out.resolve()} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
