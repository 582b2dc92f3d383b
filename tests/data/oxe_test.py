from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy.spatial.transform import Rotation

from tests.data.examples import encoded
from vla_jax.data import tfds_writer
from vla_jax.data.oxe import standardize
from vla_jax.data.oxe.mixtures import MIXTURES, find_mixture
from vla_jax.data.oxe.record import Quantiles, measure
from vla_jax.data.oxe.records import RECORDS, find_record, table
from vla_jax.data.shares import exact_shares
from vla_jax.data.sources.episodes import EpisodeSource
from vla_jax.text.prompts import robot_prompt

# An episode of three steps: what each column of a stored feature may hold.
POSITION = [[0.01, 0.02, -0.03], [0, 0, 0], [-0.02, 0.01, 0.03]]
TURNS = [[0.02, 0, 0], [0, -0.03, 0], [0.3, -0.2, 0.4]]
START = [[0.3, 0, 0], [0.5, -1.0, 0.7], [-0.4, 0.9, 1.1]]
COLUMNS = {
    "xyz": POSITION,
    "rpy": TURNS,
    "start": START,
    # Reached poses: they move by POSITION and TURNS, and the roll passes pi.
    "pose": [
        [0.20, -0.10, 0.30, 3.13, 0.10, 0.50],
        [0.21, -0.08, 0.27, 3.15 - 2 * np.pi, 0.10, 0.50],
        [0.21, -0.08, 0.27, 3.15 - 2 * np.pi, 0.07, 0.50],
    ],
    "joints": np.arange(21).reshape(3, 7) / 100,
    "end": [[0], [1], [0]],
    "end3": [[0, 1, 0], [1, 0, 0], [0, 1, 0]],
}
LAST = [0, 0, 1]
# What is stored, and the closedness it means.
CLOSED = ((1, 0.25, 0), (1, 0.25, 0))
OPEN = ((1, 0.25, 0), (0, 0.75, 1))
SIGNED_CLOSED = ((1, 0, -1), (1, 0, 0))
SIGNED_OPEN = ((1, 0, -1), (0, 1, 1))
RELATIVE = ((0, 1, 0), (0, 1, 1))  # nothing, close, nothing: it was open before
NO_GRIPPER = ((), (0, 0, 0))
NATURAL = "observation/natural_language_instruction"


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set as its builder declares it, and what its three steps should become.

    Features are "dtype columns": a number is that many columns that hold 7, "grip" the gripper. A
    dtype in brackets is of a scalar. `scale` is of one stored unit, in metres and radians.
    """

    features: dict[str, str]
    image: tuple[str, int, int]
    gripper: tuple[tuple[float, ...], tuple[float, ...]] = NO_GRIPPER
    scale: tuple[float, float] = (1, 1)
    text: str = "language_instruction"
    wrist: str = ""
    more_texts: tuple[str, ...] = ()


def _vector(columns: str, **facts) -> Case:
    return Case({"action": f"float32 {columns}"}, **{"image": ("image", 128, 128), **facts})


def _fields(closing: str, end: str, **facts) -> Case:
    """The RT-1 way: an action of named features."""
    features = {
        "action/world_vector": "float32 xyz",
        "action/rotation_delta": "float32 rpy",
        "action/terminate_episode": end,
    }
    if closing:
        features["action/gripper_closedness_action"] = closing
    return Case(features, **{"image": ("image", 480, 640), "text": NATURAL, **facts})


ONE_HOT, FLAG, VECTOR1, SCALAR = "int32 end3", "(float32) end", "float32 grip", "(float32) grip"
CONVERTED = "_converted_externally_to_rlds"
AUSTIN = _vector("xyz rpy grip", gripper=SIGNED_CLOSED, wrist="wrist_image")
LIBERO = _vector(
    "xyz axis-angle grip",
    gripper=SIGNED_CLOSED,
    scale=(0.05, 0.5),
    image=("image", 256, 256),
    wrist="wrist_image",
)


CASES = {
    "fractal20220817_data": _fields(VECTOR1, ONE_HOT, gripper=RELATIVE, image=("image", 256, 320)),
    "kuka": _fields(VECTOR1, ONE_HOT, gripper=RELATIVE, image=("image", 512, 640)),
    "bridge": Case(
        {
            "observation/state": "float32 pose 1",
            "action/open_gripper": "(bool) grip",
            "action/terminate_episode": FLAG,
        },
        image=("image", 480, 640),
        text=NATURAL,
        gripper=((0, 1, 0), (0, 0, 1)),  # the first is no command
    ),
    "bridge_orig": Case(
        {"observation/state": "float32 pose 1", "action": "float32 6 grip"},
        image=("image_0", 256, 256),
        gripper=((0, 0.97, 0.03), (0, 0, 1)),  # the first is no command
    ),
    "taco_play": Case(
        {"action/rel_actions_world": "float32 xyz rpy grip", "action/terminate_episode": FLAG},
        image=("rgb_static", 150, 200),
        wrist="rgb_gripper",
        text=NATURAL,
        gripper=SIGNED_OPEN,
        scale=(0.02, 0.05),
    ),
    "jaco_play": Case(
        {
            "action/world_vector": "float32 xyz",
            "action/gripper_closedness_action": VECTOR1,
            "action/terminate_episode": ONE_HOT,
        },
        image=("image", 224, 224),
        wrist="image_wrist",
        text=NATURAL,
        gripper=RELATIVE,
        scale=(1, 0),
    ),
    "berkeley_cable_routing": _fields("", FLAG, image=("image", 128, 128), wrist="wrist45_image"),
    "roboturk": _fields(VECTOR1, FLAG, gripper=SIGNED_CLOSED, image=("front_rgb", 480, 640)),
    "nyu_door_opening_surprising_effectiveness": _fields(
        VECTOR1, FLAG, gripper=RELATIVE, image=("image", 720, 960)
    ),
    "viola": _fields(
        SCALAR,
        FLAG,
        gripper=SIGNED_CLOSED,
        image=("agentview_rgb", 224, 224),
        wrist="eye_in_hand_rgb",
    ),
    "berkeley_autolab_ur5": _fields(SCALAR, FLAG, gripper=RELATIVE, wrist="hand_image"),
    "toto": Case(
        {
            "action/world_vector": "float32 xyz",
            "action/rotation_delta": "float32 rpy",
            "action/open_gripper": "(bool) grip",
            "action/terminate_episode": FLAG,
        },
        image=("image", 480, 640),
        text=NATURAL,
        gripper=((1, 0, 1), (0, 1, 0)),
    ),
    "language_table": Case(
        {"action": "float32 xy"}, image=("rgb", 360, 640), text="observation/instruction"
    ),
    "stanford_hydra_dataset" + CONVERTED: _vector(
        "xyz rpy grip", gripper=CLOSED, image=("image", 240, 320), wrist="wrist_image"
    ),
    "austin_buds_dataset" + CONVERTED: AUSTIN,
    "austin_sailor_dataset" + CONVERTED: AUSTIN,
    "austin_sirius_dataset" + CONVERTED: AUSTIN,
    "utaustin_mutex": AUSTIN,
    "nyu_franka_play_dataset" + CONVERTED: _vector("7 xyz rpy grip end", gripper=SIGNED_OPEN),
    "furniture_bench_dataset" + CONVERTED: _vector(
        "xyz quaternion grip", gripper=SIGNED_CLOSED, wrist="wrist_image"
    ),
    "ucsd_kitchen_dataset" + CONVERTED: _vector("xyz rpy grip end", gripper=OPEN),
    "bc_z": Case(
        {
            "action/future/xyz_residual": "float32 xyz 27",
            "action/future/axis_angle_residual": "float32 difference 27",
            "action/future/target_close": "int64 grip 9",
            "observation/present/axis_angle": "float32 start",
        },
        image=("image", 171, 213),
        text=NATURAL,
        gripper=((1, 0, 0), (1, 0, 0)),
    ),
    "dlr_edan_shared_control" + CONVERTED: _vector("xyz zxy grip", gripper=CLOSED),
    "iamlab_cmu_pickup_insert" + CONVERTED: _vector(
        "xyz quaternion grip", gripper=OPEN, wrist="wrist_image"
    ),
    "berkeley_fanuc_manipulation": Case(
        {"action": "float32 xyz rpy", "observation/state": "float32 6 grip 6"},
        image=("image", 224, 224),
        gripper=CLOSED,
        wrist="wrist_image",
    ),
    "cmu_stretch": _vector("xyz rpy grip end", gripper=OPEN),
    "fmb": _vector(
        "xyz rpy grip", gripper=OPEN, image=("image_side_1", 256, 256), wrist="image_wrist_1"
    ),
    "dobbe": _vector("xyz rpy grip", gripper=OPEN, image=("wrist_image", 256, 256)),
    "droid": Case(
        {
            "action": "float64 7",
            "action_dict/cartesian_velocity": "float64 xyz rpy",
            "action_dict/gripper_position": "float64 grip",
        },
        image=("exterior_image_1_left", 180, 320),
        wrist="wrist_image_left",
        gripper=CLOSED,
        scale=(0.075, 0.15),
        more_texts=("language_instruction_2", "language_instruction_3"),
    ),
    "libero_spatial_no_noops": LIBERO,
    "libero_object_no_noops": LIBERO,
    "libero_goal_no_noops": LIBERO,
    "libero_10_no_noops": LIBERO,
    "maniskill_dataset" + CONVERTED: _vector(
        "xyz axis-angle grip", gripper=SIGNED_OPEN, scale=(0.1, 0.1), wrist="wrist_image"
    ),
    "nyu_rot_dataset" + CONVERTED: _vector("xyz rpy grip", gripper=CLOSED),
    "utokyo_xarm_pick_and_place" + CONVERTED: _vector(
        "xyz ypr grip", gripper=OPEN, wrist="hand_image"
    ),
    "imperialcollege_sawyer_wrist_cam": _vector(
        "xyz ypr grip end", gripper=OPEN, wrist="wrist_image"
    ),
    "kaist_nonprehensile" + CONVERTED: _vector("xyz axis-angle 14"),
    "berkeley_mvp" + CONVERTED: _vector(
        "joints grip", gripper=CLOSED, image=("hand_image", 480, 640)
    ),
    "berkeley_rpt" + CONVERTED: _vector(
        "joints grip", gripper=CLOSED, image=("hand_image", 480, 640)
    ),
}


def _stored(case: Case) -> dict[str, np.ndarray]:
    """{feature of the step: array [3, ...]} of the declared dtype."""
    turns = Rotation.from_euler("xyz", np.array(TURNS) * case.scale[1])
    after = turns * Rotation.from_rotvec(START)
    columns = COLUMNS | {
        "xy": np.array(POSITION)[:, :2],
        "ypr": np.array(TURNS)[:, ::-1],
        "zxy": turns.as_euler("zxy"),
        "axis-angle": turns.as_rotvec() / (case.scale[1] or 1),
        "difference": after.as_rotvec() - START,
        "quaternion": turns.as_quat(),
        "grip": np.reshape(case.gripper[0], (-1, 1)),
    }
    result = {"is_last": np.array(LAST, bool)}
    for key, declared in case.features.items():
        kind, *names = declared.split()
        parts = [np.full((3, int(n)), 7) if n.isdigit() else columns[n] for n in names]
        values = np.concatenate(parts, axis=1).astype(kind.strip("()"))
        result[key] = values[:, 0] if kind.startswith("(") else values
    return result


def _expected(name: str, case: Case) -> np.ndarray:
    record = RECORDS[name]
    if record.kind == "planar":
        return np.array(POSITION)[:, :2]
    ends = any("end" in d for d in case.features.values())
    terminate = [0, 1, 0] if ends else LAST
    if record.kind == "joints":
        motion = COLUMNS["joints"]
    else:
        motion = np.hstack([np.array(POSITION) * case.scale[0], np.array(TURNS) * case.scale[1]])
        if record.reached:
            motion[-1] = 0  # nothing is reached after the last step
    return np.column_stack([terminate, motion, case.gripper[1]])


def _quantiles(name: str) -> Quantiles | None:
    size = {"joints": 9, "planar": 2}.get(RECORDS[name].kind, 8)
    return Quantiles(-np.ones(size), np.ones(size)) if RECORDS[name].needs_quantiles else None


def _nest(flat: dict) -> dict:
    """Paths to nested dicts; BC-Z's names hold a "/" themselves."""
    result: dict = {}
    for path, value in flat.items():
        group, _, name = path.partition("/")
        if name:
            result.setdefault(group, {})[name] = value
        else:
            result[group] = value
    return result


def _codes(text: str) -> np.ndarray:
    """Language-Table's: UTF-8 bytes, padded with 0."""
    data = text.encode()
    return np.array([*data, *[0] * (512 - len(data))], np.int32)


def _write(path, case: Case, texts: dict[str, list] | None = None, episodes: int = 1) -> None:
    """Equal episodes, with the declared features."""
    numbers = _stored(case)
    name, height, width = case.image
    declared = {
        key: tfds.features.Tensor(shape=v.shape[1:], dtype=v.dtype) for key, v in numbers.items()
    }
    values: dict = {key: list(v) for key, v in numbers.items()}
    for number, view in enumerate(filter(None, [name, case.wrist])):
        declared[f"observation/{view}"] = tfds.features.Image(shape=(height, width, 3))
        values[f"observation/{view}"] = [encoded(10 * number + t, size=4) for t in range(3)]
    if texts is None:
        as_codes = case is CASES["language_table"]
        texts = {case.text: [_codes("pick the dog") if as_codes else "pick the dog"] * 3}
    # Records of several instructions need them all.
    texts |= {k: [""] * 3 for k in case.more_texts if k not in texts}
    for key, column in texts.items():
        is_text = isinstance(column[0], str)
        declared[key] = (
            tfds.features.Text()
            if is_text
            else tfds.features.Tensor(shape=column[0].shape, dtype=np.int32)
        )
        values[key] = column
    tfds_writer._write(
        iter([("train", {"steps": _nest(values)})] * episodes),
        path,
        tfds.features.FeaturesDict({"steps": tfds.features.Dataset(_nest(declared))}),
        name="oxe",
        description="",
        metadata={},
        rows_per_shard=16,
        total=1,
        file_format="tfrecord",
        overwrite=False,
    )


def test_every_record_has_a_case():
    assert set(CASES) == set(RECORDS)
    assert len(RECORDS) >= 30


@pytest.mark.parametrize("name", RECORDS)
def test_known_actions_become_the_expected_numbers(tmp_path, name):
    """From a data set on disk with the declared features; the other views are not read."""
    case, record = CASES[name], find_record(name)
    _write(tmp_path / "d", case)
    layout = record.layout(_quantiles(name), with_wrist=bool(case.wrist))
    source = EpisodeSource(name, tmp_path / "d", layout=layout)
    assert len(source) == 3
    for step, expected in enumerate(_expected(name, case)):
        example = source.read(step)
        assert example.action is not None
        np.testing.assert_allclose(example.action, expected[None], atol=2e-6)
        assert example.prompt == robot_prompt("pick the dog")
        views = 2 if case.wrist else 1
        assert example.images == tuple(encoded(10 * v + step, size=4) for v in range(views))
    if record.kind == "end effector":
        assert source.action_spec.names == (
            "terminate",
            *("position_x", "position_y", "position_z"),
            *("rotation_x", "rotation_y", "rotation_z"),
            "gripper_closedness",
        )
    assert source.action_spec.control_hz == record.control_hz


def test_language_table_instructions_are_bytes(tmp_path):
    texts = ["push the blue cube", "push the blue cube", "zum Bär"]
    case = CASES["language_table"]
    _write(tmp_path / "d", case, {case.text: [_codes(t) for t in texts]})
    source = EpisodeSource("lt", tmp_path / "d", layout=find_record("language_table").layout())
    assert [source.read(i).prompt for i in range(3)] == [robot_prompt(t) for t in texts]
    np.testing.assert_allclose(source.read(0).action, [[0.01, 0.02]], atol=1e-7)
    _write(tmp_path / "bad", case, {case.text: [np.full(512, 300, np.int32)] * 3})
    with pytest.raises(ValueError, match=r"'lt'.*observation/instruction is not UTF-8 bytes"):
        EpisodeSource("lt", tmp_path / "bad", layout=find_record("language_table").layout()).read(0)


def test_droid_takes_the_first_instruction_there_is(tmp_path):
    texts = {
        "language_instruction": ["open it", "", " "],
        "language_instruction_2": ["two", "second", ""],
        "language_instruction_3": ["three", "3", "third"],
    }
    _write(tmp_path / "d", CASES["droid"], texts)
    source = EpisodeSource("droid", tmp_path / "d", layout=find_record("droid").layout())
    prompts = [source.read(i).prompt for i in range(3)]
    assert prompts == [robot_prompt(t) for t in ("open it", "second", "third")]
    np.testing.assert_allclose(
        source.read(0).action, [[0, 0.00075, 0.0015, -0.00225, 0.003, 0, 0, 1]], atol=1e-7
    )
    _write(tmp_path / "none", CASES["droid"], {key: [""] * 3 for key in texts})
    with pytest.raises(ValueError, match=r"language_instruction_3: empty instruction"):
        EpisodeSource("droid", tmp_path / "none", layout=find_record("droid").layout()).read(0)


def test_bounds_published_or_of_the_data(tmp_path):
    fractal = find_record("fractal20220817_data").spec()
    np.testing.assert_allclose(fractal.high, [1, 1, 1, 1, *[np.pi / 2] * 3, 1], rtol=1e-6)
    assert (fractal.frame, fractal.control_hz) == ("base, delta", 3)
    assert [d.unit for d in fractal.dimensions[1:5]] == ["m", "m", "m", "rad"]
    droid = find_record("droid").spec()
    np.testing.assert_allclose(droid.low, [0, *[-0.075] * 3, *[-0.15] * 3, 0], rtol=1e-6)
    kuka = find_record("kuka")
    with pytest.raises(ValueError, match=r"'kuka': no bounds are published for position_x, .*quan"):
        kuka.layout()
    with pytest.raises(ValueError, match=r"'kuka': quantiles of shapes \[\(7,\), \(7,\)\]"):
        kuka.spec(Quantiles(np.zeros(7), np.ones(7)))
    with pytest.raises(ValueError, match=r"'kuka' has no wrist camera"):
        kuka.layout(_quantiles("kuka"), with_wrist=True)
    assert kuka.spec(_quantiles("kuka")).dimensions[1].unit == "unknown"

    _write(tmp_path / "d", CASES["jaco_play"])
    jaco = find_record("jaco_play")
    quantiles = measure(jaco, tmp_path / "d")
    x = np.array(POSITION)[:, 0]
    np.testing.assert_allclose(quantiles.q01[1], np.quantile(x, 0.01), rtol=2e-3)
    spec = jaco.spec(quantiles)
    np.testing.assert_allclose(spec.high[1], np.quantile(x, 0.99), rtol=2e-3)
    # It never turns: small bounds around 0.
    np.testing.assert_allclose([spec.low[4], spec.high[4]], [-0.005, 0.005])
    still = jaco.spec(Quantiles(np.full(8, 0.2), np.full(8, 0.2)))
    np.testing.assert_allclose([still.low[1], still.high[1]], [0.195, 0.205], rtol=1e-6)


def test_published_bounds_hold_every_converted_action():
    """The corners of what LIBERO and ManiSkill may command."""
    corners = np.stack(np.meshgrid(*[[-1, 0, 1]] * 6), -1).reshape(-1, 6)
    for name in ("libero_goal_no_noops", "maniskill_dataset" + CONVERTED):
        action = np.hstack([corners, np.zeros((len(corners), 1))])
        spec = find_record(name).spec()
        actions = find_record(name).convert(
            {"steps/action": action, "steps/is_last": np.zeros(len(action))}
        )
        assert (actions <= spec.high + 1e-6).all()
        assert (actions >= spec.low - 1e-6).all()


def test_rotations_equal_scipys():
    rotations = Rotation.random(200, rng=np.random.default_rng(0))
    expected = rotations.as_euler("xyz")
    matrices = rotations.as_matrix()
    np.testing.assert_allclose(standardize.matrix_to_rpy(matrices), expected, atol=1e-9)
    quaternions = rotations.as_quat() * 3  # of any length
    np.testing.assert_allclose(standardize.quaternion_to_matrix(quaternions), matrices, atol=1e-9)
    vectors = np.concatenate([rotations.as_rotvec(), np.zeros((1, 3))])
    np.testing.assert_allclose(
        standardize.axis_angle_to_matrix(vectors), Rotation.from_rotvec(vectors).as_matrix(),
        atol=1e-9,
    )  # fmt: skip
    for axes in ("xyz", "zxy"):
        np.testing.assert_allclose(
            standardize.euler_to_matrix(vectors, axes),
            Rotation.from_euler(axes, vectors).as_matrix(),
            atol=1e-9,
        )
    start, change = vectors[:100], vectors[100:200] / 10
    turn = Rotation.from_rotvec(start + change) * Rotation.from_rotvec(start).inv()
    np.testing.assert_allclose(
        standardize.to_rpy(change, "axis-angle difference", start), turn.as_euler("xyz"), atol=1e-9
    )
    assert np.isnan(standardize.quaternion_to_matrix(np.zeros((1, 4)))).all()


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_straight_up_and_down_is_a_rotation_too(pitch):
    matrix = standardize.euler_to_matrix(np.array([[0.3, pitch, 0.2]]), "xyz")
    rpy = standardize.matrix_to_rpy(matrix)
    assert rpy[0, 2] == 0
    np.testing.assert_allclose(standardize.euler_to_matrix(rpy, "xyz"), matrix, atol=1e-7)


@pytest.mark.parametrize(
    ("closing", "closed"),
    [
        ([0, 0, 0], [0, 0, 0]),  # it stays open
        ([0, 1, 0, 0, -1, 0], [0, 1, 1, 1, 0, 0]),
        ([0, 0, -1, 0, 1], [1, 1, 0, 0, 1]),  # opened first: it was closed
        ([0.05, -0.1, 0.11, -0.09], [0, 0, 1, 1]),  # small numbers move nothing
        ([1], [1]),
    ],
)
def test_relative_grippers_are_integrated(closing, closed):
    np.testing.assert_array_equal(standardize.integrate_closing(np.array(closing, float)), closed)


@pytest.mark.parametrize(
    ("openness", "binary"),
    [
        ([1, 0.96, 0.7, 0.3, 0.04, 0], [1, 1, 0, 0, 0, 0]),
        ([0, 0.5, 0.97, 0.5, 0.6, 0.02], [0, 1, 1, 0, 0, 0]),
        ([1, 0.4, 0.6], [1, 0.6, 0.6]),  # nothing settles: the last number
        ([0.5], [0.5]),
    ],
)
def test_binarizing_takes_the_state_that_is_reached(openness, binary):
    np.testing.assert_array_equal(standardize.binarize_openness(np.array(openness, float)), binary)


def test_every_gripper_form_stays_in_range():
    stored = np.array([-1, -0.2, 0, 0.4, 1, 1.2])
    for convert in standardize.TO_CLOSEDNESS.values():
        closed = convert(stored)
        assert ((closed >= 0) & (closed <= 1)).all()


def test_mixture_of_rt_x():
    """Weights of the authors' training example, its two commented lines included."""
    assert find_mixture("rtx") == {
        "fractal20220817_data": 150, "kuka": 20, "bridge": 50, "taco_play": 5, "jaco_play": 20,
        "berkeley_cable_routing": 20, "roboturk": 10,
        "nyu_door_opening_surprising_effectiveness": 5, "viola": 3, "berkeley_autolab_ur5": 5,
        "language_table": 30, "toto": 5,
    }  # fmt: skip
    assert sum(MIXTURES["rtx"].values()) == 323
    octo = MIXTURES["rtx_octo"]
    assert len(octo) == 11
    assert octo["berkeley_cable_routing"] / octo["bridge_orig"] == 3
    assert octo["nyu_door_opening_surprising_effectiveness"] / octo["viola"] == 2.5


def test_mixture_magic_soup():
    weights = [
        0.54087122203, 0.8341046294, 1, 2, 1, 1, 2, 1, 2, 2, 1, 0.1, 2, 1, 3, 0.1, 2, 1, 1, 0.2, 1,
        1, 1, 2, 1,
    ]  # fmt: skip
    names = [
        "fractal20220817_data", "kuka", "bridge_orig", "taco_play", "jaco_play",
        "berkeley_cable_routing", "roboturk", "nyu_door_opening_surprising_effectiveness", "viola",
        "berkeley_autolab_ur5", "toto", "language_table", "stanford_hydra_dataset" + CONVERTED,
        "austin_buds_dataset" + CONVERTED, "nyu_franka_play_dataset" + CONVERTED,
        "furniture_bench_dataset" + CONVERTED, "ucsd_kitchen_dataset" + CONVERTED,
        "austin_sailor_dataset" + CONVERTED, "austin_sirius_dataset" + CONVERTED, "bc_z",
        "dlr_edan_shared_control" + CONVERTED, "iamlab_cmu_pickup_insert" + CONVERTED,
        "utaustin_mutex", "berkeley_fanuc_manipulation", "cmu_stretch",
    ]  # fmt: skip
    soup = dict(zip(names, weights, strict=True))
    assert MIXTURES["oxe_magic_soup"] == soup
    del soup["nyu_door_opening_surprising_effectiveness"]
    soup |= {"fmb": 1, "dobbe": 0.2, "droid": 0.06}
    assert MIXTURES["oxe_magic_soup_plus"] == soup
    del soup["language_table"], soup["droid"]
    soup["fractal20220817_data"] = 1
    assert MIXTURES["oxe_magic_soup_plus_minus"] == soup


def test_mixtures_name_records_and_can_be_sampled():
    for name, weights in MIXTURES.items():
        assert set(weights) <= set(RECORDS), name
        assert sum(exact_shares(weights)) == 1
    assert find_mixture("rt1") == {"fractal20220817_data": 1}
    assert find_mixture("bridge") == {"bridge_orig": 1}
    assert len(set(find_mixture("libero").values())) == 1


def test_unknown_names_give_the_closest():
    with pytest.raises(ValueError, match=r"'fractal20220818'; closest: fractal20220817_data"):
        find_record("fractal20220818")
    with pytest.raises(ValueError, match=r"'oxe_soup'; closest: oxe_magic_soup"):
        find_mixture("oxe_soup")
    assert find_record("bridge_dataset").name == "bridge_orig"
    assert find_record("fmb_dataset").name == "fmb"


def test_table_has_a_line_for_each_record():
    lines = table().splitlines()
    assert len(lines) == len(RECORDS) + 1
    assert any(line.startswith("taco_play ") and "-1 closed .. 1 open" in line for line in lines)
