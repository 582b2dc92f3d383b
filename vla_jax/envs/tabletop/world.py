"""Physics and pictures of the table-top: placing things, moving the gripper, rendering.

Only this file and the scene know MuJoCo. Import it in a process that has not loaded TensorFlow.
"""

# MuJoCo's compiled module has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math

import mujoco
import numpy as np

from vla_jax.corpus.pictures import COLORS, PictureBank
from vla_jax.envs.tabletop import scene
from vla_jax.envs.tabletop.config import TabletopConfig
from vla_jax.envs.tabletop.layout import PATTERNS, Block, Layout
from vla_jax.envs.tabletop.patterns import table_texture

_CAMERA_TARGET = np.array([0.0, 0.005, 0.0])
_CAMERA_DISTANCE_M = 0.78
_ELEVATION_RAD = math.radians(66)
_FOVY_DEG = 29.5
_LEAST_TABLE_M = 0.2  # a block can be pushed to 17 cm from the middle
_MOVING_SHARE = 0.7  # of a control step; the rest is for coming to rest


class World:
    """One simulated table. `close` frees the renderer."""

    def __init__(self, config: TabletopConfig):
        self.config = config
        self._model = mujoco.MjModel.from_xml_string(scene.scene_xml())
        self.data = mujoco.MjData(self._model)
        self._bank = PictureBank()
        self._renderers: dict[int, mujoco.Renderer] = {}
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._joint = {
            name: self._model.joint(name).qposadr[0]
            for name in ("x", "y", "z", "yaw", "pitch", "roll", "left", "right")
        }
        self._headlight = self._model.vis.headlight.diffuse.copy()
        self._block_bodies = [self._model.body(f"block{i}").id for i in range(scene.NUM_BLOCKS)]
        self._fingers = [self._model.body(side).id for side in ("left", "right")]
        self._laser = self._model.body("laser").mocapid[0]
        self._shadow = self._model.body("shadow").mocapid[0]
        self._turn, self._elevation = 0.0, _ELEVATION_RAD
        self.layout = Layout(())
        self.command = np.zeros(7)  # xyz, roll pitch yaw, closedness

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    # Reset

    def reset(self, layout: Layout) -> None:
        """Puts everything in its place, at rest. Raises ValueError for what it does not know."""
        self._require_known(layout)
        self.layout = layout
        model, data = self._model, self.data
        mujoco.mj_resetData(model, data)
        for i in range(scene.NUM_BLOCKS):
            address = model.joint(f"block{i}").qposadr[0]
            # Out of sight, weightless and touching nothing, so it costs no time.
            pose = [3 + 0.2 * i, 3, 1, 1, 0, 0, 0]
            model.body_gravcomp[self._block_bodies[i]] = i >= len(layout.blocks)
            if i < len(layout.blocks):
                block = layout.blocks[i]
                half = block.yaw / 2
                pose = [block.x, block.y, 0.02, math.cos(half), 0, 0, math.sin(half)]
                self._paint_block(i, block)
            data.qpos[address : address + 7] = pose
        for i in range(scene.NUM_MATS):
            mocap = model.body(f"mat{i}").mocapid[0]
            data.mocap_pos[mocap] = [3 + 0.2 * i, 4, 0.0006]
            if i < len(layout.mats):
                mat = layout.mats[i]
                data.mocap_pos[mocap] = [mat.x, mat.y, 0.0006]
                rgb = np.asarray(COLORS[mat.color]) / 255
                model.mat(f"mat{i}").rgba = [*rgb, 1]
        self._upload("table", table_texture(layout, self._bank, scene.TABLE_TEXTURE_PX))
        self._dress_room(layout)
        self._aim_camera(layout)
        self.command = np.array([*layout.gripper, 0, 0, 0, 0.0])
        for axis, value in zip("xyz", layout.gripper, strict=True):
            data.qpos[self._joint[axis]] = value
        for side in ("left", "right"):
            data.qpos[self._joint[side]] = scene.FINGER_TRAVEL_M
        data.ctrl[:] = self._servo_targets(self.command)
        mujoco.mj_step(model, data, 20)  # blocks settle
        self._place_light()

    def _dress_room(self, layout: Layout) -> None:
        """Light, floor, the table's size and what stands around."""
        model = self._model
        model.vis.headlight.diffuse = self._headlight * layout.light
        sun = np.asarray(layout.sun)
        model.light("sun").dir = sun / np.linalg.norm(sun)
        model.light("sun").diffuse = layout.sun_rgb
        model.mat("floor").rgba = [*layout.floor_rgb, 1]
        # Its bounds for finding contacts stay those of the compiled table: all pushes end inside.
        model.geom("table").size[:2] = layout.table_half_m
        for i in range(scene.NUM_CLUTTER):
            mocap = model.body(f"clutter{i}").mocapid[0]
            self.data.mocap_pos[mocap] = [3 + 0.2 * i, 5, 0.01]
            box, can = model.geom(f"box{i}"), model.geom(f"can{i}")
            box.rgba = can.rgba = [0, 0, 0, 0]
            if i < len(layout.clutter):
                thing = layout.clutter[i]
                self.data.mocap_pos[mocap] = [thing.x, thing.y, thing.half_m[2]]
                shown = can if thing.round else box
                shown.size[:] = thing.half_m
                if thing.round:
                    shown.size[1] = thing.half_m[2]
                shown.rgba = [*(np.asarray(thing.rgb) / 255), 1]

    def _require_known(self, layout: Layout) -> None:
        for block in layout.blocks:
            self._bank.concept(block.name)
        if layout.table not in PATTERNS:
            raise ValueError(f"no table {layout.table!r}; there are {', '.join(PATTERNS)}")
        if layout.table == "picture":
            self._bank.concept(layout.table_picture)
        colors = [b.tile for b in layout.blocks] + [m.color for m in layout.mats]
        if unknown := sorted(set(colors) - set(COLORS)):
            raise ValueError(f"no colour {unknown}; there are {', '.join(COLORS)}")
        most = (scene.NUM_BLOCKS, scene.NUM_MATS, scene.NUM_CLUTTER)
        there = (len(layout.blocks), len(layout.mats), len(layout.clutter))
        if any(n > m for n, m in zip(there, most, strict=True)):
            raise ValueError("at most {} blocks, {} mats and {} other things".format(*most))
        if layout.table_half_m < _LEAST_TABLE_M:
            raise ValueError(
                f"a table of half side {layout.table_half_m} m is too small to push on: "
                f"at least {_LEAST_TABLE_M}"
            )

    def _paint_block(self, i: int, block: Block) -> None:
        tile = COLORS[block.tile]
        if self._bank.category(block.name) == "block":
            tile = COLORS[self._bank.color(block.name)]
        self._model.mat(f"block{i}").rgba = [*(np.asarray(tile) / 255), 1]
        size = scene.TEXTURE_PX
        margin = 3
        picture = self._bank.picture(block.name, size - 2 * margin, block.style)
        picture = picture.astype(np.float32)
        rgb = np.broadcast_to(np.asarray(tile, np.float32), (size, size, 3)).copy()
        alpha = picture[..., 3:] / 255
        inside = rgb[margin:-margin, margin:-margin]
        inside[:] = inside * (1 - alpha) + picture[..., :3] * alpha
        self._upload(f"picture{i}", rgb)

    def _upload(self, name: str, rgb: np.ndarray) -> None:
        texture = self._model.texture(name)
        pixels = np.clip(rgb, 0, 255).astype(np.uint8).reshape(-1)
        start = texture.adr[0]
        self._model.tex_data[start : start + pixels.size] = pixels
        for renderer in self._renderers.values():
            self._to_gpu(renderer, texture.id)

    @staticmethod
    def _to_gpu(renderer: mujoco.Renderer, texture: int) -> None:
        gl, context = renderer._gl_context, renderer._mjr_context
        if gl:
            gl.make_current()
        mujoco.mjr_uploadTexture(renderer.model, context, texture)

    # Motion

    def move(self, action: np.ndarray) -> None:
        """Carries out one action [8] (without its terminate flag): 1 / control_hz seconds.

        Deltas add to the commanded pose, so small errors of the servos do not pile up; the command
        stays inside the workspace.
        """
        before = self.command.copy()
        after = before.copy()
        after[:6] += action[1:7]
        for axis, (low, high) in enumerate(scene.WORKSPACE_M):
            after[axis] = np.clip(after[axis], low, high)
        after[3:6] = np.clip(after[3:6], [-0.6, -0.6, -1.6], [0.6, 0.6, 1.6])
        after[6] = np.clip(action[7], 0, 1)
        self.command = after
        steps = round(1 / (self.config.control_hz * scene.TIMESTEP_S))
        # Gently there and gently to a stop, or a jerk would shake a block out of the fingers.
        part = np.linspace(0, 1, int(_MOVING_SHARE * steps) + 1)[1:, None]
        way = before + part**2 * (3 - 2 * part) * (after - before)
        way[:, 6] = after[6]
        for target in self._servo_targets(way[1::2]):
            self.data.ctrl[:] = target
            mujoco.mj_step(self._model, self.data, 2)
        self.data.ctrl[:] = self._servo_targets(after)
        mujoco.mj_step(self._model, self.data, steps - len(way) // 2 * 2)
        self._place_light()

    def shift_block(self, i: int, offset: np.ndarray) -> None:
        """Puts a block elsewhere on the table, at rest: `offset` is [2], metres."""
        joint = self._model.joint(f"block{i}")
        self.data.qpos[joint.qposadr[0] : joint.qposadr[0] + 2] += offset
        self.data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0
        self._place_light()

    def _servo_targets(self, poses: np.ndarray) -> np.ndarray:
        """What the actuators are told [..., 8], for commands [..., 7]."""
        opening = (1 - poses[..., 6:]) * scene.FINGER_TRAVEL_M
        return np.concatenate([poses[..., :3], poses[..., 5:2:-1], opening, opening], -1)

    def _place_light(self) -> None:
        x, y = self.tool_position[:2]
        top = 0.0
        for i in range(len(self.layout.blocks)):
            block = self.block_position(i)
            if np.abs(block[:2] - [x, y]).max() < scene.BLOCK_HALF_M[0]:
                top = max(top, block[2] + scene.BLOCK_HALF_M[2])
        self.data.mocap_pos[self._laser] = [x, y, top + 0.0015]
        self.data.mocap_pos[self._shadow] = [x, y, 0.0014]
        mujoco.mj_forward(self._model, self.data)

    # State

    @property
    def tool_position(self) -> np.ndarray:
        """Measured point between the fingertips, float64 [3], metres."""
        return np.array([self.data.qpos[self._joint[a]] for a in "xyz"])

    @property
    def tool_rotation(self) -> np.ndarray:
        """Measured roll, pitch, yaw, float64 [3], radians."""
        return np.array([self.data.qpos[self._joint[a]] for a in ("roll", "pitch", "yaw")])

    @property
    def closedness(self) -> float:
        """Measured: 0 open .. 1 closed."""
        opening = self.data.qpos[self._joint["left"]] + self.data.qpos[self._joint["right"]]
        return float(np.clip(1 - opening / (2 * scene.FINGER_TRAVEL_M), 0, 1))

    def block_position(self, i: int) -> np.ndarray:
        """Centre of a block, float64 [3], metres."""
        return self.data.xpos[self._block_bodies[i]].copy()

    def block_yaw(self, i: int) -> float:
        """Radians, in [-pi/4, pi/4): a square looks the same every quarter turn."""
        matrix = self.data.xmat[self._block_bodies[i]].reshape(3, 3)
        yaw = math.atan2(matrix[1, 0], matrix[0, 0])
        return (yaw + math.pi / 4) % (math.pi / 2) - math.pi / 4

    def is_held(self, i: int) -> bool:
        """Whether both fingers touch the block."""
        bodies = self._model.geom_bodyid[self.data.contact.geom]
        touching = bodies[(bodies == self._block_bodies[i]).any(axis=1)]
        return all((touching == finger).any() for finger in self._fingers)

    # Pictures

    def _aim_camera(self, layout: Layout) -> None:
        turn, up = layout.camera_turn_rad
        self._turn, self._elevation = turn, _ELEVATION_RAD + up
        self._camera.lookat[:] = _CAMERA_TARGET + np.asarray(layout.camera_shift_m)
        self._camera.distance = _CAMERA_DISTANCE_M * layout.camera_distance
        self._camera.azimuth = 90 + math.degrees(turn)
        self._camera.elevation = -math.degrees(self._elevation)

    def render(self, size: int, camera: str = "fixed") -> np.ndarray:
        """uint8 [size, size, 3] from "fixed" or "wrist"."""
        if size not in self._renderers:
            view = self._model.vis.global_
            view.fovy, view.offwidth, view.offheight = _FOVY_DEG, size, size
            renderer = mujoco.Renderer(self._model, size, size)
            for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False
            self._renderers[size] = renderer
        renderer = self._renderers[size]
        renderer.update_scene(self.data, camera="wrist" if camera == "wrist" else self._camera)
        return renderer.render().copy()

    def pixels(self, points: np.ndarray, size: int) -> np.ndarray:
        """Where points [..., 3] are in the fixed camera's picture: [..., 2], (y, x) in pixels."""
        cos, sin = math.cos(self._elevation), math.sin(self._elevation)
        left, ahead = math.sin(self._turn), math.cos(self._turn)
        forward = np.array([-left * cos, ahead * cos, -sin])
        down, right = np.array([left * sin, -ahead * sin, -cos]), np.array([ahead, left, 0.0])
        eye = np.asarray(self._camera.lookat) - self._camera.distance * forward
        rays = points - eye
        scale = size / 2 / math.tan(math.radians(_FOVY_DEG) / 2) / (rays @ forward)
        return size / 2 + np.stack([rays @ down, rays @ right], -1) * scale[..., None]
