"""The MuJoCo model: a table, four block slots, three mat slots, a free-flying gripper.

One compiled model serves every episode: a reset moves the slots and repaints their textures.

The gripper has no arm. Three slide and three hinge joints carry it, held by position servos; two
fingers close along x with real contact and friction. A laser in its palm paints a dot on whatever
is straight below, and a disc on the table stands in for the shadow that rendering leaves out: how
far gripper and disc are apart tells the height from a single picture, also with a block in hand.
"""

from __future__ import annotations

NUM_BLOCKS, NUM_MATS, NUM_CLUTTER = 4, 3, 8
BLOCK_HALF_M = (0.029, 0.029, 0.02)
MAT_HALF_M = 0.05
TEXTURE_PX, TABLE_TEXTURE_PX = 64, 128
TABLE_HALF_M = 0.27
WORKSPACE_M = ((-0.17, 0.17), (-0.16, 0.16), (0.012, 0.16))
"""Where the fingertips can go: x, y, z above the table."""
FINGER_TRAVEL_M = 0.048
SUN, SUN_RGB, FLOOR_RGB = (-0.2, 0.3, -1.0), (0.3, 0.3, 0.3), (0.25, 0.25, 0.27)
"""Where the sun's light goes to, its strength, the floor's colour."""
TIMESTEP_S = 1 / 300  # longer ones let a held block creep out of the fingers

_BLOCK = """
    <body name="block{i}" pos="{x} 3 0.02">
      <freejoint name="block{i}"/>
      <geom name="block{i}" type="box" size="0.029 0.029 0.02" mass="0.05" material="block{i}"
        condim="4" friction="1.2 0.02 0.001" solref="0.008 1"/>
      <geom name="picture{i}" type="box" size="0.0285 0.0285 0.0002" pos="0 0 0.0202"
        material="picture{i}" contype="0" conaffinity="0" mass="0"/>
    </body>"""

_MAT = """
    <body name="mat{i}" mocap="true" pos="{x} 4 0.0006">
      <geom name="mat{i}" type="box" size="0.05 0.05 0.0005" material="mat{i}" contype="0"
        conaffinity="0"/>
    </body>"""

# A box and a cylinder; a reset shows one of them, in its size and colour.
_CLUTTER = """
    <body name="clutter{i}" mocap="true" pos="{x} 5 0.01">
      <geom name="box{i}" type="box" size="0.01 0.01 0.01" rgba="0 0 0 0" contype="0"
        conaffinity="0"/>
      <geom name="can{i}" type="cylinder" size="0.01 0.01" rgba="0 0 0 0" contype="0"
        conaffinity="0"/>
    </body>"""

_FINGER = """
        <body name="{side}" pos="{x} 0 0">
          <joint name="{side}" type="slide" axis="{axis} 0 0" range="0 0.048" damping="4"/>
          <geom type="box" size="0.005 0.011 0.022" pos="0 0 0.02" mass="0.03" material="finger"
            condim="4" friction="2.0 0.05 0.001" solref="0.008 1"/>
          <geom type="box" size="0.007 0.013 0.004" pos="0 0 0.046" mass="0.01" material="palm"
            contype="0" conaffinity="0"/>
        </body>"""

_LIGHT = """
    <body name="shadow" mocap="true" pos="0 0 0.0012">
      <geom type="cylinder" size="0.034 0.0002" material="shadow" contype="0" conaffinity="0"/>
    </body>
    <body name="laser" mocap="true" pos="0 0 0.0015">
      <geom type="cylinder" size="0.0065 0.0008" material="laser" contype="0" conaffinity="0"/>
    </body>"""


def scene_xml() -> str:
    """The MJCF model."""
    blocks = "".join(_BLOCK.format(i=i, x=3 + 0.2 * i) for i in range(NUM_BLOCKS))
    mats = "".join(_MAT.format(i=i, x=3 + 0.2 * i) for i in range(NUM_MATS))
    clutter = "".join(_CLUTTER.format(i=i, x=3 + 0.2 * i) for i in range(NUM_CLUTTER))
    fingers = _FINGER.format(side="left", x=-0.005, axis=-1) + _FINGER.format(
        side="right", x=0.005, axis=1
    )
    textures = "".join(
        f'<texture name="picture{i}" type="2d" builtin="flat" width="{TEXTURE_PX}" '
        f'height="{TEXTURE_PX}"/><material name="picture{i}" texture="picture{i}" '
        'texuniform="false" specular="0" shininess="0"/>'
        f'<material name="block{i}" rgba="1 1 1 1" specular="0" shininess="0"/>'
        for i in range(NUM_BLOCKS)
    )
    textures += "".join(
        f'<material name="mat{i}" rgba="1 1 1 1" specular="0" shininess="0"/>'
        for i in range(NUM_MATS)
    )
    servos = "".join(
        f'<position joint="{axis}" kp="{kp}" kv="{kv}" ctrlrange="{low} {high}"/>'
        for axis, kp, kv, low, high in (
            ("x", 2500, 120, -1, 1),
            ("y", 2500, 120, -1, 1),
            ("z", 2500, 120, -1, 1),
            ("yaw", 30, 2, -3.2, 3.2),
            ("pitch", 30, 2, -1, 1),
            ("roll", 30, 2, -1, 1),
        )
    )
    servos += "".join(
        f'<position joint="{side}" kp="250" ctrlrange="0 {FINGER_TRAVEL_M}" forcerange="-8 8"/>'
        for side in ("left", "right")
    )
    return f"""
<mujoco>
  <option timestep="{TIMESTEP_S}" integrator="implicitfast" cone="elliptic" impratio="5"/>
  <size memory="4M"/>
  <statistic extent="1" center="0 0 0"/>
  <visual>
    <quality shadowsize="0" offsamples="0"/>
    <map znear="0.02" zfar="20"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.4 0.4 0.4" specular="0 0 0"/>
  </visual>
  <asset>
    <texture name="table" type="2d" builtin="flat" width="{TABLE_TEXTURE_PX}"
      height="{TABLE_TEXTURE_PX}"/>
    <material name="table" texture="table" texuniform="false" specular="0" shininess="0"/>
    <material name="floor" rgba="{_words(FLOOR_RGB)} 1" specular="0"/>
    <material name="palm" rgba="0.95 0.1 0.75 1" specular="0"/>
    <material name="finger" rgba="0.75 0.05 0.6 1" specular="0"/>
    <material name="shadow" rgba="0.06 0.06 0.08 0.75" specular="0"/>
    <material name="laser" rgba="0.1 1 0.95 1" emission="1" specular="0"/>
    {textures}
  </asset>
  <worldbody>
    <light name="sun" pos="0.3 -0.5 1.5" dir="{_words(SUN)}" directional="true"
      diffuse="{_words(SUN_RGB)}"/>
    <geom name="floor" type="plane" size="6 6 0.1" pos="0 0 -0.0005" material="floor"/>
    <geom name="table" type="box" size="{TABLE_HALF_M} {TABLE_HALF_M} 0.02" pos="0 0 -0.02"
      material="table" friction="0.6 0.02 0.001" condim="3"/>
    {blocks}{mats}{clutter}{_LIGHT}
    <body name="gripper" pos="0 0 0" gravcomp="1">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <joint name="z" type="slide" axis="0 0 1"/>
      <joint name="yaw" type="hinge" axis="0 0 1"/>
      <joint name="pitch" type="hinge" axis="0 1 0"/>
      <joint name="roll" type="hinge" axis="1 0 0"/>
      <geom type="box" size="0.016 0.012 0.006" pos="0 0 0.056" mass="0.4" material="palm"
        contype="0" conaffinity="0"/>
      <geom type="cylinder" size="0.006 0.02" pos="0 0 0.08" mass="0.05" material="palm"
        contype="0" conaffinity="0"/>
      <camera name="wrist" pos="0 -0.06 0.07" xyaxes="1 0 0 0 0.8 0.6" fovy="70"/>
      {fingers}
    </body>
  </worldbody>
  <actuator>{servos}</actuator>
</mujoco>"""


def _words(values: tuple[float, ...]) -> str:
    return " ".join(map(str, values))
