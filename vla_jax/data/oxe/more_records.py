"""The other data sets of the mixtures, and some more."""

from __future__ import annotations

from vla_jax.data.oxe.record import OxeRecord

_NATURAL = "steps/observation/natural_language_instruction"
_CATALOG = "tensorflow.org/datasets/catalog"
_SIGN = "Only Octo and OpenVLA say that 1 is open."
# robosuite's OSC_POSE: 1 is 0.05 m and 0.5 rad of axis-angle, whose roll or yaw may reach 0.63.
_LIBERO_LIMITS = (0.05, 0.63)


def _libero(suite: str) -> OxeRecord:
    return OxeRecord(
        f"libero_{suite}_no_noops",
        robot="Franka Panda, simulated",
        control_hz=20,
        source="huggingface.co/datasets/openvla/modified_libero_rlds; robosuite osc_pose.json",
        wrist="wrist_image",
        rotation_form="axis-angle",
        gripper="action[6]",
        gripper_form="-1 open .. 1 closed",
        frame="base",
        scale=(0.05, 0.5),
        units=("m", "rad"),
        limits=_LIBERO_LIMITS,
    )


def _rlds_builder(name: str, **facts) -> OxeRecord:
    """Data sets built from one template: action[0:6] moves, action[6] is the gripper."""
    defaults = {
        "source": f"{_CATALOG}/{name}",
        "wrist": "wrist_image",
        "gripper": "action[6]",
        "gripper_form": "-1 open .. 1 closed",
    }
    return OxeRecord(name, **{**defaults, **facts})


MORE_RECORDS = (
    # The others of the mixtures.
    OxeRecord(
        "bridge_orig",
        robot="WidowX 250",
        control_hz=5,
        source="rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds",
        image="image_0",
        reached="observation/state[0:6]",
        gripper="action[6]",
        gripper_form="0 closed .. 1 open, binarized",
        first_step_empty=True,
        frame="base",
        units=("m", "rad"),
        limits=(0.05, 0.25),
        note="Motion as reached, as Octo and OpenVLA have it. Bounds of RT-X. "
        "Some episodes have no instruction.",
    ),
    _rlds_builder(
        "stanford_hydra_dataset_converted_externally_to_rlds",
        robot="Franka Panda",
        control_hz=10,
        gripper_form="0 open .. 1 closed",
    ),
    _rlds_builder(
        "austin_buds_dataset_converted_externally_to_rlds", robot="Franka Panda", control_hz=20
    ),
    _rlds_builder(
        "austin_sailor_dataset_converted_externally_to_rlds", robot="Franka Panda", control_hz=20
    ),
    _rlds_builder(
        "austin_sirius_dataset_converted_externally_to_rlds", robot="Franka Panda", control_hz=20
    ),
    _rlds_builder("utaustin_mutex", robot="Franka Panda", control_hz=20),
    _rlds_builder(
        "nyu_franka_play_dataset_converted_externally_to_rlds",
        robot="Franka Panda",
        control_hz=3,
        wrist="",
        position="action[7:10]",
        rotation="action[10:13]",
        gripper="action[13]",
        gripper_form="-1 closed .. 1 open",
        terminate="action[14]",
        note=_SIGN,
    ),
    _rlds_builder(
        "furniture_bench_dataset_converted_externally_to_rlds",
        robot="Franka Panda",
        control_hz=10,
        source="clvrai.github.io/furniture-bench, and its TFDS builder",
        rotation="action[3:7]",
        rotation_form="quaternion xyzw",
        gripper="action[7]",
        motion="unknown",
        units=("unknown", "rad"),
        note="Its builder says velocities, Octo takes deltas. Order of the quaternion as in Octo.",
    ),
    _rlds_builder(
        "ucsd_kitchen_dataset_converted_externally_to_rlds",
        robot="xArm",
        control_hz=2,
        wrist="",
        gripper_form="0 closed .. 1 open",
        terminate="action[7]",
        motion="unknown",
        note=f"{_SIGN} The catalog says positions, Octo takes deltas.",
    ),
    OxeRecord(
        "bc_z",
        robot="Google Robot",
        control_hz=10,
        source=f"{_CATALOG}/bc_z",
        instruction=_NATURAL,
        position="action/future/xyz_residual[0:3]",
        rotation="action/future/axis_angle_residual[0:3]",
        rotation_form="axis-angle difference",
        rotation_start="observation/present/axis_angle",
        gripper="action/future/target_close[0]",
        gripper_form="0 open .. 1 closed",
        frame="base",
        units=("unknown", "rad"),
        note="The first of ten future actions. Octo and OpenVLA take the difference for a "
        "rotation. OpenVLA finds versions after 0.1.0 broken.",
    ),
    _rlds_builder(
        "dlr_edan_shared_control_converted_externally_to_rlds",
        robot="DLR EDAN",
        control_hz=5,
        wrist="",
        rotation_form="euler zxy",
        gripper_form="0 open .. 1 closed",
        motion="unknown",
        units=("unknown", "rad"),
        note="Only Octo and OpenVLA know the gripper. The catalog says positions, Octo takes "
        "deltas and leaves the angles in the order z, x, y.",
    ),
    _rlds_builder(
        "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
        robot="Franka Panda",
        control_hz=20,
        rotation="action[3:7]",
        rotation_form="quaternion xyzw",
        gripper="action[7]",
        gripper_form="0 closed .. 1 open",
        motion="absolute",
        units=("unknown", "rad"),
        note=f"{_SIGN} Order of the quaternion as in Octo.",
    ),
    _rlds_builder(
        "berkeley_fanuc_manipulation",
        robot="Fanuc Mate",
        control_hz=10,
        gripper="observation/state[6]",
        gripper_form="0 open .. 1 closed",
        note="No gripper command: its state. Octo and OpenVLA take 1 for closed, though the "
        "catalog calls it `open status`.",
    ),
    _rlds_builder(
        "cmu_stretch",
        robot="Hello Robot Stretch",
        control_hz=10,
        wrist="",
        gripper_form="0 closed .. 1 open",
        terminate="action[7]",
        motion="unknown",
        note=f"{_SIGN} The catalog says positions, Octo takes deltas.",
    ),
    _rlds_builder(
        "fmb",
        robot="Franka Panda",
        control_hz=10,
        image="image_side_1",
        wrist="image_wrist_1",
        gripper_form="0 closed .. 1 open",
        motion="velocity",
        note=_SIGN,
    ),
    _rlds_builder(
        "dobbe",
        robot="Hello Robot Stretch",
        control_hz=3.75,
        image="wrist_image",
        wrist="",
        gripper_form="0 closed .. 1 open",
        motion="unknown",
        note=f"{_SIGN} Its one camera is at the hand. Others give 30 Hz.",
    ),
    OxeRecord(
        "droid",
        robot="Franka Panda",
        control_hz=15,
        source="droid-dataset.github.io; github.com/droid-dataset/droid robot_ik_solver.py",
        image="exterior_image_1_left",
        wrist="wrist_image_left",
        instruction=(
            "steps/language_instruction",
            "steps/language_instruction_2",
            "steps/language_instruction_3",
        ),
        position="action_dict/cartesian_velocity[0:3]",
        rotation="action_dict/cartesian_velocity[3:6]",
        gripper="action_dict/gripper_position",
        gripper_form="0 open .. 1 closed",
        frame="base",
        scale=(0.075, 0.15),
        units=("m", "rad"),
        limits=(0.075, 0.15),
        note="1 is the most that the controller moves in a step. Octo and OpenVLA do not scale.",
    ),
    *(_libero(suite) for suite in ("spatial", "object", "goal", "10")),
    # Of no mixture here.
    _rlds_builder(
        "maniskill_dataset_converted_externally_to_rlds",
        robot="Franka Panda, simulated",
        control_hz=20,
        rotation_form="axis-angle",
        gripper_form="-1 closed .. 1 open",
        scale=(0.1, 0.1),
        units=("m", "rad"),
        limits=(0.1, 0.106),
        note="Roll or yaw of 0.1 rad of axis-angle about each axis may reach 0.106.",
    ),
    _rlds_builder(
        "nyu_rot_dataset_converted_externally_to_rlds",
        robot="xArm",
        control_hz=3,
        wrist="",
        gripper_form="0 open .. 1 closed",
        note="The catalog says that 1 is closed; Octo and OpenVLA take it for open.",
    ),
    _rlds_builder(
        "utokyo_xarm_pick_and_place_converted_externally_to_rlds",
        robot="xArm",
        control_hz=10,
        wrist="hand_image",
        rotation_form="yaw-pitch-roll",
        gripper_form="0 closed .. 1 open",
        motion="absolute",
        note=f"{_SIGN} Octo leaves the angles in the order yaw, pitch, roll.",
    ),
    _rlds_builder(
        "imperialcollege_sawyer_wrist_cam",
        robot="Sawyer",
        control_hz=10,
        rotation_form="yaw-pitch-roll",
        gripper_form="0 closed .. 1 open",
        terminate="action[7]",
        frame="tool",
        note=f"{_SIGN} Euler angles ZYX, which Octo leaves in that order.",
    ),
    _rlds_builder(
        "kaist_nonprehensile_converted_externally_to_rlds",
        robot="Franka Panda",
        control_hz=10,
        wrist="",
        rotation_form="axis-angle",
        gripper="",
        gripper_form="none",
        frame="base",
        units=("unknown", "rad"),
    ),
    *(
        _rlds_builder(
            f"berkeley_{project}_converted_externally_to_rlds",
            robot=robot,
            control_hz=control_hz,
            image="hand_image",
            wrist="",
            kind="joints",
            joints="action[0:7]",
            gripper="action[7]",
            gripper_form="0 open .. 1 closed",
            units=("rad", "rad"),
            note="Its one camera is at the hand. Radians: not said, as joint positions are.",
        )
        for project, robot, control_hz in (("mvp", "xArm", 5), ("rpt", "Franka Panda", 30))
    ),
)
