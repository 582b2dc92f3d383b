"""Off-screen OpenGL for MuJoCo without a screen."""

from __future__ import annotations

import ctypes
import os

_LIBRARIES = {"egl": ("libEGL.so.1", "libGL.so.1"), "osmesa": ("libOSMesa.so.8",)}

REMEDY = (
    "no OpenGL library for off-screen rendering: run\n"
    "  sudo apt-get install -y --no-install-recommends libegl1 libgl1\n"
    "(or libosmesa6, with MUJOCO_GL=osmesa)"
)


def choose_backend() -> str:
    """Sets MUJOCO_GL to a backend whose libraries load, unless it is set, and returns it.

    Call before `import mujoco`, which reads the variable once.

    Raises RuntimeError naming the packages to install.
    """
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted in _LIBRARIES else list(_LIBRARIES):
        try:
            for library in _LIBRARIES[backend]:
                ctypes.CDLL(library)
        except OSError:
            continue
        os.environ["MUJOCO_GL"] = backend
        return backend
    raise RuntimeError(REMEDY)
