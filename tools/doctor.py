"""Looks for what is wrong with data before a run is spent on it.

    python tools/doctor.py configs/demo_cotrain.py
    python tools/doctor.py demo_out/data/robot --state steps/observation/state
    python tools/doctor.py /data/aloha --kind lerobot --cameras observation.images.top

Reads the numbers of every episode and a sample of the pictures, of all data sets of a config
(`--config.data.sources.robot.path=...` overrides its keys) or of one. Prints what it finds and
writes doctor.html and doctor.json. Exit code: 0 no errors were found (warnings may be), 1 errors, 2
it could not start.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

from vla_jax.config import load_config, parse, split_overrides
from vla_jax.data.config import DataConfig, SourceConfig, SourceKind
from vla_jax.data.doctor.examine import Options, examine
from vla_jax.data.doctor.motion import GripperState
from vla_jax.data.doctor.page import write_report


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    try:
        rest, overrides = split_overrides(arguments)
        options = _parser().parse_args(rest)
        data = _data(options, overrides)
        looked = Options(
            episodes=options.episodes,
            pictures=options.pictures,
            gripper_state=_gripper_state(options.gripper_state),
        )
        report = examine(data, looked)
        options.out.mkdir(parents=True, exist_ok=True)
        plain = json.dumps(report.to_plain(), indent=2, ensure_ascii=False, allow_nan=False)
        (options.out / "doctor.json").write_text(plain + "\n", encoding="utf-8")
        page = write_report(report, options.out / "doctor.html", title=f"Data of {options.data}")
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    for finding in report.findings:
        print(finding)
    counts = report.to_plain()["counts"]
    print(f"{', '.join(f'{n} {kind}s' for kind, n in counts.items())}: {page}, doctor.json")
    return 1 if counts["error"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a config file, or a data set's directory")
    parser.add_argument("--kind", choices=get_args(SourceKind), default="episodes")
    parser.add_argument("--split", default="train")
    parser.add_argument("--record", default="", help="name of an Open X-Embodiment data set")
    parser.add_argument("--cameras", default="", help="image features, with commas between")
    parser.add_argument("--state", default="", help="features that the robot measures, likewise")
    parser.add_argument("--episodes", type=int, default=0, help="look at so many; 0: all")
    parser.add_argument("--pictures", type=int, default=120, help="look at so many of a data set")
    parser.add_argument(
        "--gripper_state", default="", help="the gripper's number of the state: 7:closedness"
    )
    parser.add_argument("--out", type=Path, default=Path("out/doctor"))
    return parser


def _data(options: argparse.Namespace, overrides: list[str]) -> DataConfig:
    if options.data.partition(":")[0].endswith(".py"):
        return parse(load_config(options.data, overrides)).data
    if overrides:
        raise ValueError(f"--config.{overrides[0]}: overrides are of a config file")
    cameras, state = (
        tuple(filter(None, names.split(","))) for names in (options.cameras, options.state)
    )
    source = SourceConfig(
        options.kind,
        options.data,
        options.split,
        record=options.record,
        cameras=cameras,
        state=state,
    )
    return DataConfig({Path(options.data).name or "data": source})


def _gripper_state(text: str) -> GripperState | None:
    if not text:
        return None
    index, _, means = text.partition(":")
    if not index.isdigit() or means not in ("closedness", "opening"):
        raise ValueError(f"--gripper_state={text}: expected e.g. 7:closedness or 7:opening")
    return GripperState(int(index), means)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
