"""Plans a run: `python -m vla_jax.plan --config=configs/rt2_pali_x_55b.py --topology=v5p:8x8x8`.

The real TPU compiler compiles the run's own train step for a slice that is not there, on a CPU. It
tells whether the step fits the chips' memory, what crosses the network, and how long a step and the
run should take. `--search` ranks meshes, recomputation and batches; `--serving` plans decoding.
Needs libtpu: `pip install -e '.[plan]'`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

from vla_jax import config as config_lib
from vla_jax import schema
from vla_jax.config import Config
from vla_jax.planning.compile import DoesNotFit, Request, compile_program
from vla_jax.planning.estimate import Plan, plan_serving, plan_training
from vla_jax.planning.plot import save_plot
from vla_jax.planning.report import refusal, report, table
from vla_jax.planning.search import attempt, compile_training, ranking, remedies, search
from vla_jax.sharding.mesh import MeshConfig
from vla_jax.sharding.topology import Topology, parse_topology

SERVING = "vla_jax.planning.program:serving_program"


def plan(
    config: Config,
    topology: str,
    *,
    mesh: str = "",
    search: bool = False,
    serving: bool = False,
    full: bool = False,
    compiler_options: str = "chip",
    rows: int = 0,
    jobs: int = 1,
    out: str = "",
) -> int:
    """Prints a plan; returns the exit code: 1 if the program does not fit.

    Args: see the flags in `main`.

    Raises:
      ValueError, ModuleNotFoundError: what is asked for does not exist; no TPU compiler.
    """
    target = parse_topology(topology)
    if mesh:
        config = dataclasses.replace(config, mesh=_parse_mesh(mesh, target))
    options = _parse_options(compiler_options, target)
    if search:
        return _search(config, target, options, jobs, out)
    title = f"{config.model.preset}, {'serving' if serving else 'training'}"
    if serving:
        settings = {"config": schema.to_plain(config), "rows": rows}
        made = compile_program(Request(target, SERVING, settings, options, quick=not full))
    else:
        made = compile_training(config, target, options, quick=not full)
    if isinstance(made, DoesNotFit):
        print(refusal(made, title, f"{target.chip.kind}'s HBM"), flush=True)
        if not serving:
            _print_remedy(config, target, options)
        return 1
    if serving:
        shards = math.prod(made.placement.mesh_sizes[:-1])  # all but tensor
        found = plan_serving(made, config, target, options, rows or shards)
    else:
        found = plan_training(made, config, target, options)
    print(report(found, title))
    if out:
        _write(found, title, Path(out))
    return 0


def _search(
    config: Config, topology: Topology, options: dict[str, str], jobs: int, out: str
) -> int:
    def note(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = search(config, topology, options, jobs=jobs, note=note)
    print(f"{config.model.preset} on {topology.name}; batches differ in more than speed")
    print("\n".join(table(ranking(found))))
    best = found[0].plan
    if out:
        directory = Path(out)
        directory.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "mesh": dataclasses.asdict(one.config.mesh),
                "remat": one.config.model.remat,
                "batch_size": one.config.train.batch_size,
                "reason": one.reason,
                "plan": one.plan.to_json() if one.plan else None,
            }
            for one in found
        ]
        (directory / "search.json").write_text(json.dumps(rows, indent=2) + "\n")
    if best is None:
        print("nothing fits: more chips, fewer views or a smaller model are needed")
        return 1
    if out:
        _write(best, f"{config.model.preset}, training", Path(out))
    return 0


def _print_remedy(config: Config, topology: Topology, options: dict[str, str]) -> None:
    """Compiles one change after the other until one fits."""
    for words, other in remedies(config, topology):
        found = attempt(other, topology, options)
        if found.plan is not None:
            print(f"with {words} it fits: {found.label}: {found.plan.hbm_gib:.2f} GiB", flush=True)
            return
        print(f"with {words} neither: {found.reason}", flush=True)
    print("no smaller batch divides over the mesh: more chips are needed")


def _write(found: Plan, title: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_text(json.dumps(found.to_json(), indent=2) + "\n")
    (directory / "plan.txt").write_text(report(found, title) + "\n")
    save_plot(found, title, directory / "plan.png")
    print(f"\nplan.txt, plan.json and plan.png are in {directory}")


def _parse_mesh(text: str, topology: Topology) -> MeshConfig:
    """`8x64x1`: data, fsdp and tensor inside a slice; slices hold copies."""
    if not re.fullmatch(r"\d+x\d+x\d+", text):
        raise ValueError(f"--mesh={text}: expected data x fsdp x tensor, e.g. 8x64x1")
    data, fsdp, tensor = (int(size) for size in text.split("x"))
    return MeshConfig(data, fsdp, tensor, dcn_data=topology.slices)


def _parse_options(text: str, topology: Topology) -> dict[str, str]:
    if text == "chip":
        return topology.chip.compiler_options
    if text in ("", "none"):
        return {}
    options = {}
    for part in re.split(r"[,\s]+", text.strip()):
        name, _, value = part.lstrip("-").partition("=")
        if not value:
            raise ValueError(f"--compiler_options: {name!r} has no value: {name}=true")
        options[name] = value
    return options


def _main(config: Config, **flags: object) -> None:
    try:
        code = plan(config, **flags)  # pyright: ignore[reportArgumentType]
    except (ValueError, ModuleNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        code = 2
    raise SystemExit(code)


def main() -> None:
    """Parses the command line and plans."""
    config_lib.run_main(
        _main,
        optional={
            "mesh": ("", "data x fsdp x tensor of a slice, e.g. 8x64x1, in place of config.mesh"),
            "search": (False, "rank meshes, recomputation and batches"),
            "serving": (False, "plan prefill and decoding in place of training"),
            "full": (False, "generate code, too: minutes, and the latest time is the compiler's"),
            "compiler_options": ("chip", "XLA flags a=b,c=d; chip: this chip's usual; none"),
            "rows": (0, "of --serving: prompts at a time; 0: one on each part of the mesh"),
            "jobs": (1, "of --search: compilations at a time, each a core and 2 GB"),
            "out": ("", "directory for plan.json, plan.txt and plan.png"),
        },
        topology="slice to plan for, e.g. v5e:16x16, v5p:8x8x8, v5e:16x16*2 for two slices",
    )


if __name__ == "__main__":
    main()
