"""Statistics against NumPy on the whole array, in any split, and from disk."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.examples import episode
from tests.data.lerobot_test import CAMERAS, FPS, LENGTHS, _actions, _state, _write_v2
from tests.data.oxe_test import CASES
from tests.data.oxe_test import _write as write_oxe
from vla_jax.actions.spec import end_effector_spec
from vla_jax.data.oxe.record import measure
from vla_jax.data.oxe.records import find_record
from vla_jax.data.sources.base import Track
from vla_jax.data.sources.episodes import EpisodeSource
from vla_jax.data.sources.lerobot import LeRobotSource
from vla_jax.data.statistics import (
    RELATIVE_ACCURACY,
    Statistics,
    load_or_measure,
    measure_episodes,
    require_ranges,
)
from vla_jax.data.tfds_writer import write_episodes

NAMES = ("normal", "offset", "flag", "still", "zero", "wide", "tiny")
SHARES = (0.0, 0.01, 0.1, 0.5, 0.77, 0.99, 1.0)


def _values(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    columns = [
        rng.normal(size=count),
        3 + 0.1 * rng.normal(size=count),
        rng.uniform(size=count) < 0.05,
        np.full(count, 0.3),
        np.zeros(count),
        rng.normal(size=count) * 10.0 ** rng.uniform(-6, 6, count),
        0.5 + 1e-6 * rng.normal(size=count),
    ]
    return np.stack(columns, axis=1)


def _of(*parts: np.ndarray) -> Statistics:
    result = Statistics(NAMES)
    for part in parts:
        result.add(part)
    return result


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101, 20_000])
def test_equals_numpy_on_the_whole_array(count):
    values = _values(count)
    got = _of(values)
    assert got.count.tolist() == [count] * len(NAMES)
    np.testing.assert_allclose(got.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.std, values.std(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(got.low, values.min(0))
    np.testing.assert_array_equal(got.high, values.max(0))
    spread = np.quantile(values, 0.99, axis=0) - np.quantile(values, 0.01, axis=0)
    assert (got.spread() >= spread * (1 - 1e-9)).all()
    for share in SHARES:
        # The bound holds for each of the two values between which NumPy interpolates.
        ends = [np.quantile(values, share, axis=0, method=m) for m in ("lower", "higher")]
        bound = RELATIVE_ACCURACY * np.abs(ends).max(0) * 1.000001
        error = np.abs(got.quantile(share) - np.quantile(values, share, axis=0))
        assert (error <= bound).all(), (share, dict(zip(NAMES, error / bound)))
    assert got.quantile(0.01)[3] == got.quantile(0.99)[3] == 0.3, "a constant stays exact"


def test_merged_parts_equal_the_whole():
    values, rng = _values(3001), np.random.default_rng(1)
    whole = _of(values)
    for parts in (1, 2, 7, 400):
        pieces = np.split(values, np.sort(rng.integers(0, len(values), parts - 1)))
        rng.shuffle(pieces)
        merged = Statistics(NAMES)
        for piece in pieces:
            # As another process would send it.
            merged.merge(Statistics.from_json(_of(piece).to_json()))
        np.testing.assert_array_equal(merged.count, whole.count)
        scale = np.abs(values).max(0) + 1e-300
        np.testing.assert_allclose(merged.mean / scale, whole.mean / scale, rtol=0, atol=1e-12)
        np.testing.assert_allclose(merged.std / scale, whole.std / scale, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(merged.low, whole.low)
        np.testing.assert_array_equal(merged.high, whole.high)
        for share in SHARES:
            np.testing.assert_array_equal(merged.quantile(share), whole.quantile(share))
    assert whole.mean[1] == pytest.approx(values[:, 1].mean(), rel=1e-12)


def test_moments_merge_to_rounding_far_from_zero():
    """Where sums of squares lose all digits."""
    values = 1e6 + np.random.default_rng(0).normal(size=(5000, 1))
    merged = Statistics(["x"])
    for piece in np.array_split(values, 50):
        part = Statistics(["x"])
        part.add(piece)
        merged.merge(part)
    np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.std, values.std(0), rtol=1e-9)


def test_what_is_not_finite_is_counted_and_left_out():
    values = _values(50)
    values[3, 0] = values[7, 0] = np.nan
    values[8, 1], values[9, 1] = np.inf, -np.inf
    values[:, 2] = np.nan
    got = _of(values[:20], values[20:])
    assert got.nan.tolist() == [2, 0, 50, 0, 0, 0, 0]
    assert got.infinite.tolist() == [0, 2, 0, 0, 0, 0, 0]
    assert got.count.tolist() == [48, 48, 0, 50, 50, 50, 50]
    kept = values[np.isfinite(values[:, 1]), 1]
    np.testing.assert_allclose([got.mean[1], got.std[1]], [kept.mean(), kept.std()], rtol=1e-12)
    assert (got.low[1], got.high[1]) == (kept.min(), kept.max())
    shown = got.summary()
    assert shown["flag"] == {
        "count": 0, "nan": 50, "infinite": 0,
        **dict.fromkeys(("mean", "std", "min", "q01", "median", "q99", "max")),
    }  # fmt: skip
    assert shown["normal"]["nan"] == 2 and shown["normal"]["min"] == np.nanmin(values[:, 0])
    json.dumps(shown, allow_nan=False)
    with pytest.raises(ValueError, match=r"normal has 2 values that are NaN .*; offset has 2"):
        require_ranges(got, ["normal", "offset", "wide"], where="set 'x'", remedy="repair it")


def test_other_columns_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\), need \[n, 7\]"):
        Statistics(NAMES).add(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="do not merge"):
        Statistics(["a"]).merge(Statistics(["b"]))
    for text in ("{}", "[1]", "nonsense", '{"accuracy": 0.001, "names": ["a"]}'):
        with pytest.raises(ValueError, match="not statistics"):
            Statistics.from_json(text)
    changed = json.dumps(json.loads(_of(_values(3)).to_json()) | {"accuracy": 0.5})
    with pytest.raises(ValueError, match="another accuracy"):
        Statistics.from_json(changed)


def test_a_tiny_range_is_refused_by_name():
    got = _of(_values(5000))
    require_ranges(got, ["normal", "offset", "wide"], where="x", remedy="y")
    with pytest.raises(ValueError) as refused:
        require_ranges(got, where="data set 'arm'", remedy="drop or rescale them")
    message = str(refused.value)
    assert message.startswith("data set 'arm': no bounds can be taken from still has a range of 0 ")
    assert message.endswith("to 0.500004): drop or rescale them")
    assert [n for n in NAMES if f"{n} has" in message] == ["still", "zero", "tiny"]
    # A number that is not used may be the same everywhere; one that hardly moves may not.
    with pytest.raises(ValueError, match="from tiny has"):
        require_ranges(got, where="x", remedy="y", constant=True)
    require_ranges(got, ["tiny"], where="x", remedy="y", floor=1e-6)
    with pytest.raises(
        ValueError, match=r"from offset has a range of 0.4\d+ .* less than 0.9 .*: y"
    ):
        require_ranges(got, ["normal", "offset"], where="x", remedy="y", floor=[0.9, 0.9])


@pytest.fixture
def spec():
    return end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)


def _write(path, spec, first: int) -> list[np.ndarray]:
    rows = [episode(first + i, 5 + i) for i in range(4)]
    write_episodes(rows, path, spec, name="robot", description="", test_every=99, overwrite=True)
    return [row["action"] for row in rows]


def test_episodes_of_a_data_set_and_of_its_parts(tmp_path, spec):
    actions = np.concatenate(_write(tmp_path / "d", spec, 0))
    source = EpisodeSource("d", tmp_path / "d")
    episodes, got, state = measure_episodes(source)
    assert episodes == 4 and state is None and got.names == spec.names
    np.testing.assert_allclose(got.mean, actions.mean(0, dtype=np.float64), rtol=1e-12, atol=1e-12)
    parts = [measure_episodes(source, range(p, 4, 2)) for p in range(2)]
    assert [part.episodes for part in parts] == [2, 2]
    merged = parts[0].actions
    merged.merge(parts[1].actions)
    np.testing.assert_array_equal(merged.quantile(0.99), got.quantile(0.99))


def test_state_is_measured_where_it_is_read(spec):
    state = np.arange(12, dtype=np.float32).reshape(6, 2)

    class Source:
        name, action_spec, num_episodes = "s", spec, 2

        def track(self, number):
            rows = slice(3 * number, 3 * number + 3)
            return Track("", 3 * number, np.zeros((3, 8), np.float32), ("",) * 3, state[rows])

    got = measure_episodes(Source()).state  # pyright: ignore[reportArgumentType]
    assert got is not None and got.names == ("state_0", "state_1")
    np.testing.assert_allclose(got.mean, state.mean(0), rtol=1e-12)


def test_statistics_come_from_disk_until_a_file_changes(tmp_path, spec, monkeypatch):
    first = np.concatenate(_write(tmp_path / "d", spec, 0))
    fresh = load_or_measure(EpisodeSource("d", tmp_path / "d"), "as stored").actions
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeSource, "track", None)
        kept = load_or_measure(EpisodeSource("d", tmp_path / "d"), "as stored").actions
        assert kept.to_json() == fresh.to_json()
        with pytest.raises(TypeError):  # other numbers of the same files
            load_or_measure(EpisodeSource("d", tmp_path / "d"), "converted")
    second = np.concatenate(_write(tmp_path / "d", spec, 10))
    changed = load_or_measure(EpisodeSource("d", tmp_path / "d"), "as stored").actions
    np.testing.assert_array_equal(fresh.high, first.max(0))
    np.testing.assert_array_equal(changed.high, second.max(0))
    assert (first.max(0) != second.max(0)).any()


def test_statistics_of_a_lerobot_data_set_come_from_disk(tmp_path, monkeypatch):
    spec = end_effector_spec("arm", max_position_m=0.05, max_rotation_rad=0.1, control_hz=FPS)
    path = _write_v2(tmp_path / "arm", spec, "image")

    def measured(split):
        state = ("observation.state",)
        source = LeRobotSource("arm", path, split, cameras=CAMERAS, state=state)
        return source, load_or_measure(source, split)

    source, fresh = measured("train")
    data = [str(path / f"data/chunk-000/episode_{e:06d}.parquet") for e in range(3)]
    assert [file.path for file in source.files] == [*data, str(path / "meta/episodes.jsonl")]
    actions = np.concatenate([_actions(e) for e in range(3)]).astype(np.float64)
    state = np.array([_state(e, t) for e in range(3) for t in range(LENGTHS[e])])
    assert fresh.episodes == 3 and fresh.state is not None
    for got, expected in ((fresh.actions, actions), (fresh.state, state)):
        np.testing.assert_allclose(got.mean, expected.mean(0), rtol=1e-12)
        np.testing.assert_array_equal(got.high, expected.max(0))
    with monkeypatch.context() as patch:
        patch.setattr(LeRobotSource, "track", None)
        assert measured("train")[1].actions.to_json() == fresh.actions.to_json()
        with pytest.raises(TypeError):  # other episodes
            measured("all")
    file = source.files[0].path
    table = pq.read_table(file)
    moved = pa.array([[r[0] - 1, *r[1:]] for r in table.column("action").to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("action"), "action", moved), file)
    assert measured("train")[1].actions.low[0] == actions[0, 0] - 1


def test_bounds_of_an_open_x_record_refuse_a_tiny_range(tmp_path):
    write_oxe(tmp_path / "d", CASES["jaco_play"])
    jaco = find_record("jaco_play")
    assert (measure(jaco, tmp_path / "d").q99[1:4] > 0).all()
    wrong = dataclasses.replace(jaco, scale=(1e-4, 1.0))
    with pytest.raises(ValueError, match=r"'jaco_play' .*position_x has a range of .*`scale`"):
        measure(wrong, tmp_path / "d")
    measure(dataclasses.replace(jaco, scale=(0.0, 1.0)), tmp_path / "d")  # not used at all
