"""Which code, on which machine: what a result must say to be worth anything."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

_PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow",
    "tensorflow-cpu",
    "mujoco",
    "numpy",
)


def describe() -> dict[str, Any]:
    """Date, git commit, device, CPU cores and versions of packages."""
    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "git": git_commit(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})",
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "packages": {name: v for name in _PACKAGES if (v := _version(name))},
    }


def git_commit() -> str:
    """Short hash of this code, "+changes" if files differ from it, "unknown" outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            ).stdout.strip()
            for command in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no"),
            )
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + (" + changes" if changes else "")


def cpu_name() -> str:
    """Of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
