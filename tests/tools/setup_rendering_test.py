"""The rendering set-up, with stand-ins for Python (draws once apt has run) and for apt-get."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "setup_rendering.sh"

PYTHON = """#!/usr/bin/env bash
[[ $2 == "import mujoco" ]] || [[ -e "$STATE/installed" ]]
"""

APT_GET = """#!/usr/bin/env bash
[[ $1 != install ]] || touch "$STATE/installed"
"""

BROKEN_APT_GET = """#!/usr/bin/env bash
echo "E: no network" >&2
exit 100
"""


def _run(folder: Path, *, apt_get: str | None, root: bool, installed: bool = False):
    programs = {"python": PYTHON, "id": f"#!/usr/bin/env bash\necho {0 if root else 1000}\n"}
    if apt_get:
        programs["apt-get"] = apt_get
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name in ("bash", "sh", "env", "timeout", "mktemp", "tail", "rm", "touch"):
        (folder / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name} here"))
    if installed:
        (folder / "installed").touch()
    return subprocess.run(
        ["bash", SCRIPT, folder / "python"],
        env={"PATH": str(folder), "STATE": str(folder), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_does_nothing_where_rendering_works(tmp_path):
    done = _run(tmp_path, apt_get=BROKEN_APT_GET, root=True, installed=True)
    assert done.returncode == 0
    assert done.stdout == "rendering without a screen works (MUJOCO_GL=egl)\n"


def test_installs_as_root(tmp_path):
    done = _run(tmp_path, apt_get=APT_GET, root=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "rendering without a screen works (MUJOCO_GL=egl)"


@pytest.mark.parametrize(("apt_get", "root"), [(APT_GET, False), (None, True)])
def test_says_the_line_to_run_where_it_may_not_install(tmp_path, apt_get, root):
    done = _run(tmp_path, apt_get=apt_get, root=root)
    assert done.returncode == 1
    assert "error: MuJoCo cannot draw here" in done.stderr
    line = (
        "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends libegl1 libgl1'"
    )
    assert line in done.stderr
    assert not (tmp_path / "installed").exists()


def test_a_failed_install_shows_why(tmp_path):
    done = _run(tmp_path, apt_get=BROKEN_APT_GET, root=True)
    assert done.returncode == 1
    assert "E: no network" in done.stderr
    assert "could not install libegl1 libgl1" in done.stderr
