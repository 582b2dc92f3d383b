"""Starts a training run on a cluster: `python -m launch TARGET --job=launch/pod.toml [--run]`.

Without --run it prints what would be run, and nothing else happens. README.md beside this file is
the way from laptop to pod.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import docker, gke, slurm, tpu_vm
from launch.job import Job, load


@dataclasses.dataclass(frozen=True)
class Target:
    """One way to start a job.

    Attributes:
      render: the text that is printed, or given to `command` as a file.
      command: what runs the file.
      suffix: of the file.
      needs: programs that must be installed.
    """

    render: Callable[[Job], str]
    command: tuple[str, ...]
    suffix: str
    needs: tuple[str, ...]


TARGETS = {
    "tpu_vm": Target(tpu_vm.script, ("bash",), ".sh", ("bash", "gcloud")),
    "gke": Target(gke.manifest, ("kubectl", "create", "--filename"), ".yaml", ("kubectl",)),
    "xpk": Target(gke.xpk, ("bash",), ".sh", ("bash", "xpk")),
    "slurm": Target(slurm.script, ("sbatch",), ".sh", ("sbatch",)),
    "docker": Target(docker.script, ("bash",), ".sh", ("bash", "docker")),
}


def run(target: Target, text: str) -> int:
    """Runs a rendered job.

    Returns:
      The exit code of the program that starts it.

    Raises:
      FileNotFoundError: a program is not installed.
    """
    missing = [name for name in target.needs if shutil.which(name) is None]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)} not found: install it, or take the text without --run to a "
            "machine that has it"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"job{target.suffix}"
        file.write_text(text)
        return subprocess.run([*target.command, str(file)], check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Starts a training run on a cluster; any key of the job can be overridden: "
        "--accelerator=v5e:8x8 --google.spot=true",
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--job", required=True, help="TOML file; launch/*.toml are examples")
    parser.add_argument("--run", action="store_true", help="run it, not only print it")
    options, rest = parser.parse_known_args(arguments)
    strange = [word for word in rest if not word.startswith("--")]
    if strange:
        parser.error(f"unknown argument {strange[0]!r}; override keys of the job with --key=value")
    target = TARGETS[options.target]
    try:
        text = target.render(load(options.job, [word.removeprefix("--") for word in rest]))
        if options.run:
            return run(target, text)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
