#!/usr/bin/env bash
# Makes MuJoCo able to draw without a screen: does nothing where it can already, installs Mesa's
# software OpenGL with apt where it may, else says what to run.
#
#   tools/setup_rendering.sh [python]      default: .venv/bin/python
set -euo pipefail

python=${1:-.venv/bin/python}
packages=(libegl1 libgl1)

can_render() {
    local backend
    for backend in egl osmesa; do
        if MUJOCO_GL=$backend timeout 120 "$python" -c '
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos=\"0 0 2\"/><geom size=\".5\"/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    if renderer.render().max() == 0:
        raise SystemExit("black picture")
' >/dev/null 2>&1; then
            echo "rendering without a screen works (MUJOCO_GL=$backend)"
            return 0
        fi
    done
    return 1
}

if can_render; then
    exit 0
fi
if ! "$python" -c 'import mujoco' >/dev/null 2>&1; then
    echo "error: $python cannot import mujoco: run 'make setup'" >&2
    exit 1
fi

install="apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "error: MuJoCo cannot draw here: no software OpenGL (EGL) library was found. Run" >&2
    echo "    sudo sh -c '$install'" >&2
    echo "(Debian, Ubuntu; elsewhere install Mesa's EGL and GL libraries), then make again." >&2
    exit 1
fi

echo "installing ${packages[*]} (software OpenGL) ..."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! DEBIAN_FRONTEND=noninteractive sh -c "$install" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "error: could not install ${packages[*]}; the lines above say why" >&2
    exit 1
fi
if ! can_render; then
    echo "error: ${packages[*]} are installed, but MuJoCo still cannot draw. See why with" >&2
    echo "    MUJOCO_GL=egl $python -c 'import mujoco; mujoco.GLContext(8, 8)'" >&2
    exit 1
fi
