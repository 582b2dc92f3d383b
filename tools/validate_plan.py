"""Holds `vla_jax.plan`'s predictions against published speeds on TPUs.

    python tools/validate_plan.py

Compiles MaxText's models of 16, 32 and 64 billion parameters, built of this project's decoder and
train step, for v5e-256, and prints predicted and published MFU. A minute each; needs libtpu.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vla_jax.planning.compile import DoesNotFit, Request, compile_program
from vla_jax.planning.estimate import Plan, predict
from vla_jax.planning.published import PUBLISHED, Published, language_flops
from vla_jax.planning.report import report, table
from vla_jax.sharding.topology import parse_topology

PROGRAM = "vla_jax.planning.published:language_program"


def plan_row(row: Published, *, attention: str = "splash", quick: bool = True) -> Plan | DoesNotFit:
    """The plan of one published model."""
    topology = parse_topology(row.topology)
    settings = {"name": row.name, "attention": attention}
    made = compile_program(
        Request(topology, PROGRAM, settings, topology.chip.compiler_options, quick=quick)
    )
    if isinstance(made, DoesNotFit):
        return made
    rows = row.batch * topology.chips
    return predict(
        made,
        topology,
        model_flops=language_flops(row) * topology.chips,
        rows=rows,
        tokens=rows * row.sequence,
        compiler_options=topology.chip.compiler_options,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="*", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--attention", default="splash", choices=("xla", "splash"))
    parser.add_argument("--full", action="store_true", help="generate code, too: minutes")
    parser.add_argument("--out", type=Path, help="write the plans there, as JSON")
    args = parser.parse_args()
    lines = [("model", "chips", "published", "predicted", "off by", "GiB")]
    plans = {}
    for name in args.rows:
        row = PUBLISHED[name]
        plan = plan_row(row, attention=args.attention, quick=not args.full)
        if isinstance(plan, DoesNotFit):
            lines.append((name, row.topology, f"{row.mfu}%", str(plan), "", ""))
            continue
        print(report(plan, name), flush=True)
        assert plan.mfu is not None
        low, high = (100 * share for share in plan.mfu)
        plans[name] = plan.to_json()
        lines.append(
            (
                name,
                row.topology,
                f"{row.mfu:.1f}%",
                f"{low:.1f} .. {high:.1f}%",
                f"{low - row.mfu:+.1f} .. {high - row.mfu:+.1f}",
                f"{plan.hbm_gib:.2f}",
            )
        )
    print("\n".join(table(lines)))
    if args.out:
        args.out.write_text(json.dumps(plans, indent=2) + "\n")


if __name__ == "__main__":
    main()
