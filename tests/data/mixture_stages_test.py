"""Groups, weights over time, sources that are used up, and weights in loss tokens."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vla_jax.data.config import DataConfig, SourceConfig, WeightChange
from vla_jax.data.loss_tokens import mean_loss_tokens
from vla_jax.data.mixture import Mixture
from vla_jax.data.schedule import BLOCK
from vla_jax.data.shares import starting_shares
from vla_jax.types import Example

GROUP_OF = {"a": "robot", "w": "web", "b": "robot", "v": "web", "c": "robot"}
NESTED = {"a": 1, "w": 0.7, "b": 2, "v": 0.3, "c": 4}


def nested(sizes=10**6, **options) -> Mixture:
    given = {"groups": {"robot": 1, "web": 1}, "group_of": GROUP_OF} | options
    sizes = sizes if isinstance(sizes, dict) else dict.fromkeys(NESTED, sizes)
    return Mixture(NESTED, sizes, 0, **given)


def running(source: np.ndarray, sources: int) -> np.ndarray:
    """[n + 1, sources]: samples of each source before each of n samples and at the end."""
    one_hot = source[:, None] == np.arange(sources)
    return np.concatenate([np.zeros((1, sources), int), np.cumsum(one_hot, 0)])


def worst_window(source: np.ndarray, shares) -> np.ndarray:
    """[sources]: how far from its share a source is in the worst window of 1,000."""
    before = running(source, len(shares))
    ideal = BLOCK * np.asarray([float(s) for s in shares])
    return np.abs(before[BLOCK:] - before[:-BLOCK] - ideal).max(0)


def test_shares_inside_of_groups_are_exact():
    [stage] = nested().stages
    robot = [Fraction(k, 14) for k in (1, 2, 4)]
    assert stage.shares == (robot[0], Fraction(7, 20), robot[1], Fraction(3, 20), robot[2])
    np.testing.assert_allclose(stage.configured, [float(s) for s in stage.shares])
    assert nested().counts(70_000).tolist() == [5000, 24_500, 10_000, 10_500, 20_000]
    # Rounding to 1/10,000 does not take from one group for another.
    [stage] = nested(groups={"robot": 3, "web": 1}, loss_tokens=dict.fromkeys(NESTED, 2)).stages
    assert sum(stage.shares[k] for k in (0, 2, 4)) == Fraction(3, 4)
    weights = {"a": 2**0.5, "w": 1, "b": 3**0.5, "v": 1, "c": np.pi}
    mixture = Mixture(weights, dict.fromkeys(weights, 9), 0, groups={"robot": 3, "web": 1},
                      group_of=GROUP_OF)  # fmt: skip
    assert sum(mixture.stages[0].shares[k] for k in (0, 2, 4)) == Fraction(3, 4)


MANY = {f"{'rw'[k % 2]}{k}": float(w) for k, w in enumerate(np.random.default_rng(2).random(14))}


@pytest.mark.parametrize("start", [0, 10**12 + 321])
@pytest.mark.parametrize(
    ("weights", "groups"),
    [
        (NESTED, {"robot": 1, "web": 1}),
        (NESTED, {"robot": 2, "web": 1}),
        (NESTED, {"robot": 0.66, "web": 0.34}),
        (MANY, {"r": 1, "w": 1}),
        (MANY, {"r": 0.317, "w": 0.683}),
    ],
)
def test_every_window_holds_each_source_within_one_and_each_group_within_two(
    weights, groups, start
):
    group_of = GROUP_OF if weights is NESTED else {name: name[0] for name in weights}
    mixture = Mixture(weights, dict.fromkeys(weights, 10), 0, groups=groups, group_of=group_of)
    source, _ = mixture.locate(np.arange(start, start + 51_000))
    shares = mixture.stages[0].shares
    assert (worst_window(source, shares) < 1).all()
    for group, members in mixture.members.items():
        share = sum(shares[k] for k in members)
        wanted = groups[group] / sum(groups.values())
        assert abs(share - wanted) < 1e-4
        inside = np.isin(source, members).astype(int)
        assert worst_window(inside, [1 - share, share]).max() < 2


def test_weights_change_at_their_sample_and_in_both_levels():
    changes = (
        WeightChange(3500, groups={"web": 3}),
        WeightChange(60_000, sources={"c": 0, "a": 1.5}, groups={"web": 1}),
    )
    mixture = nested(changes=changes)
    assert [stage.start for stage in mixture.stages] == [0, 3500, 60_000]
    assert mixture.stages[1].shares[1] == Fraction(3, 4) * Fraction(7, 10)
    assert mixture.stages[2].shares[0] == Fraction(1, 2) * Fraction(15, 35)
    assert mixture.stages[2].shares[4] == 0
    source, _ = mixture.locate(np.arange(100_000))
    for stage, stop in zip(mixture.stages, [3500, 60_000, 100_000]):
        assert (worst_window(source[stage.start : stop], stage.shares) < 1).all()
        assert mixture.stage(stage.start) is mixture.stage(stop - 1) is stage
    before = running(source, 5)
    for index in (0, 3499, 3500, 3501, 59_999, 60_000, 77_777, 100_000):
        np.testing.assert_array_equal(mixture.counts(index), before[index])


def test_no_record_is_skipped_or_repeated_where_weights_change_or_a_source_ends():
    sizes = {"a": 211, "w": 37, "b": 1009, "v": 401, "c": 64}
    changes = (
        WeightChange(1234, groups={"web": 0.4}, ramp_samples=7777),
        WeightChange(12_000, sources={"b": 1}),
    )
    mixture = nested(sizes, changes=changes, epochs={"v": 3, "a": 2, "w": 9})
    source, record = mixture.locate(np.arange(40_000))
    for k, size in enumerate(sizes.values()):
        mine = record[source == k]
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        wanted = np.tile(np.arange(size), (len(epochs), 1))
        np.testing.assert_array_equal(np.sort(epochs, 1), wanted)
        assert len(np.unique(epochs, axis=0)) == len(epochs) >= 2
        rest = mine[len(epochs) * size :]
        assert len(np.unique(rest)) == len(rest)
    assert [int((source == k).sum()) for k in (0, 1, 3)] == [2 * 211, 9 * 37, 3 * 401]


def test_a_ramp_is_a_straight_line_in_steps():
    change = WeightChange(10_000, sources={"web": 0.25}, ramp_samples=50_000)
    mixture = Mixture({"robot": 1, "web": 1}, {"robot": 9, "web": 9}, 0, changes=(change,))
    starts = [stage.start for stage in mixture.stages]
    assert starts == [0, *range(10_000, 61_000, 1000)]
    for stage in mixture.stages[1:-1]:
        weight = 1 - 0.75 * (stage.start + 500 - 10_000) / 50_000
        assert abs(stage.configured[1] - weight / (1 + weight)) < 1e-12
        assert abs(stage.shares[1] - weight / (1 + weight)) <= 0.5001e-4
    assert mixture.stages[-1].shares == (Fraction(4, 5), Fraction(1, 5))
    # A long ramp has 100 steps, a short one is one step.
    long = WeightChange(1, sources={"web": 0}, ramp_samples=10**10)
    short = WeightChange(10**11, sources={"web": 1}, ramp_samples=700)
    mixture = Mixture({"r": 1, "web": 1}, {"r": 9, "web": 9}, 0, changes=(long, short))
    starts = [stage.start for stage in mixture.stages]
    assert len(starts) == 1 + 100 + 1 + 2
    assert starts[1:3] == [1, 1 + 10**8] and starts[-2:] == [10**11, 10**11 + 700]
    assert mixture.stages[-2].shares[1] == Fraction(1, 3)


def test_a_source_that_is_used_up_leaves_its_share_to_its_group_then_to_the_others():
    sizes = {"a": 100, "w": 1000, "b": 300, "v": 10**6, "c": 10_000}
    mixture = nested(sizes, epochs={"a": 5, "w": 2, "b": 3, "c": 1})
    source, _ = mixture.locate(np.arange(40_000))
    # Stages end where brute force sees the last sample of a source.
    last = {k: int(np.flatnonzero(source == k)[-1]) for k in (1, 2, 0, 4)}
    assert [stage.start for stage in mixture.stages] == [0, *(i + 1 for i in last.values())]
    assert np.bincount(source)[[0, 1, 2, 4]].tolist() == [500, 2000, 900, 10_000]
    shares = [[str(s) for s in stage.shares] for stage in mixture.stages]
    assert shares == [
        ["1/14", "7/20", "1/7", "3/20", "2/7"],
        ["1/14", "0", "1/7", "1/2", "2/7"],
        ["1/10", "0", "0", "1/2", "2/5"],
        ["0", "0", "0", "1/2", "1/2"],
        ["0", "0", "0", "1", "0"],
    ]
    assert mixture.length is None
    for stage, stop in zip(mixture.stages, [*(s.start for s in mixture.stages[1:]), 40_000]):
        if stop - stage.start > BLOCK:
            assert (worst_window(source[stage.start : stop], stage.shares) < 1).all()


def test_without_groups_the_share_goes_to_all_others_in_proportion():
    sizes = {"a": 50, "b": 10, "c": 10}
    mixture = Mixture({"a": 6, "b": 1, "c": 2}, sizes, 0, epochs={"a": 2})
    assert [[str(s) for s in stage.shares] for stage in mixture.stages] == [
        ["2/3", "1/9", "2/9"],
        ["0", "1/3", "2/3"],
    ]


def test_all_finite_sources_come_to_an_end():
    sizes = {"a": 7, "w": 30, "b": 5, "v": 11, "c": 2}
    epochs = {"a": 3, "w": 1, "b": 2, "v": 4, "c": 10}
    mixture = nested(sizes, epochs=epochs)
    total = sum(sizes[name] * epochs[name] for name in sizes)
    assert mixture.length == total
    source, record = mixture.locate(np.arange(total))
    for k, name in enumerate(sizes):
        counted = np.bincount(record[source == k], minlength=sizes[name])
        assert counted.tolist() == [epochs[name]] * sizes[name]
    assert mixture.counts(total).tolist() == [sizes[name] * epochs[name] for name in sizes]
    with pytest.raises(ValueError, match=f"sample {total} .* used up after {total}"):
        mixture.locate(np.asarray([0, total]))
    # What is left has weight 0 at that time.
    change = WeightChange(100, groups={"robot": 0})
    ends = nested(sizes, epochs={"w": 1, "v": 1}, changes=(change,))
    web = ends.counts(100)[[1, 3]].sum()
    assert ends.length == 100 + 41 - web
    with pytest.raises(ValueError, match="are all 0"):
        Mixture({"a": 1}, {"a": 1}, 0, changes=(WeightChange(5, sources={"a": 0}),))


def test_what_comes_later_does_not_depend_on_where_one_starts():
    changes = (
        WeightChange(5000, groups={"web": 0.3}, ramp_samples=10**12),
        WeightChange(10**12 + 5000, sources={"a": 3}),
    )
    mixture = nested(10**10, changes=changes, epochs={"w": 2})
    start = 10**12 + 4000
    source, record = mixture.locate(np.arange(start, start + 2000))
    again = nested(10**10, changes=changes, epochs={"w": 2})
    for i in (0, 999, 1000, 1001, 1999):
        one = again.locate(np.asarray([start + i]))
        assert (one[0][0], one[1][0]) == (source[i], record[i])
    assert mixture.counts(start + 1500).sum() == start + 1500
    step = mixture.counts(start + 1500) - mixture.counts(start)
    np.testing.assert_array_equal(step, np.bincount(source[:1500], minlength=5))


class Texts:
    """Records with answers of 1 to 4 words in an order that is not their own."""

    def __init__(self, name: str, size: int, most: int):
        self.name, self.size, self.most, self.action_spec = name, size, most, None
        self.read_records: list[int] = []

    def __len__(self):
        return self.size

    def read(self, index):
        self.read_records.append(index)
        words = 1 + index * 7919 % self.most
        return Example((b"",), f"Q: number {index}? A:", answer=" ".join(["dog"] * words))


def test_loss_tokens_are_counted_on_records_all_over_the_source(builder):
    source = Texts("web", 5000, 4)
    means = mean_loss_tokens({"web": source}, builder)
    chosen = sorted(source.read_records)
    assert len(set(chosen)) == 1000 and np.diff([0, *chosen, 5000]).max() < 50
    rows = builder.build_rows([source.read(i) for i in chosen])
    assert means == {"web": round(rows["in_loss"].sum() / 1000, 4)}
    assert mean_loss_tokens({"web": source}, builder) == means
    few = Texts("few", 7, 3)
    exact = builder.build_rows([few.read(i) for i in range(7)])["in_loss"].sum() / 7
    assert mean_loss_tokens({"few": few}, builder) == {"few": round(exact, 4)}
    few.most = 99  # answers up to 99 words are cut, as in training
    assert mean_loss_tokens({"few": few}, builder)["few"] <= builder.max_answer_tokens
    with pytest.raises(ValueError, match="'none': 0 records have no token"):
        mean_loss_tokens({"none": Texts("none", 0, 1)}, builder)


def test_bad_records_do_not_count_if_they_are_allowed(builder):
    class Damaged(Texts):
        def read(self, index):
            if index == 3:
                raise ValueError("record 3 is damaged")
            return super().read(index)

    source = Damaged("web", 9, 4)
    good = builder.build_rows([source.read(i) for i in range(9) if i != 3])["in_loss"].sum()
    found = mean_loss_tokens({"web": source}, builder, max_bad_records=1)
    assert found == {"web": round(good / 8, 4)}
    with pytest.raises(ValueError, match="record 3 is damaged"):
        mean_loss_tokens({"web": source}, builder)


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1, "c": 2}, {"a": 0.03, "b": 0.9, "c": 0.07}])
def test_the_realised_share_of_loss_tokens_is_the_configured_one(builder, weights):
    """Within 3%, two standard errors of the mean over 1,000 records; "c" has no more of them."""
    sources = {"a": Texts("a", 20_030, 4), "b": Texts("b", 1511, 1), "c": Texts("c", 999, 8)}
    sizes = {name: len(source) for name, source in sources.items()}
    tokens = [
        builder.build_rows([source.read(i) for i in range(len(source))])["in_loss"].sum(1)
        for source in sources.values()
    ]
    mixture = Mixture(weights, sizes, 0, loss_tokens=mean_loss_tokens(sources, builder))
    wanted = np.asarray(list(weights.values())) / sum(weights.values())
    np.testing.assert_allclose(mixture.stages[0].configured, wanted)
    source, record = mixture.locate(np.arange(200_000))
    learned = np.asarray([tokens[k][record[source == k]].sum() for k in range(3)])
    np.testing.assert_allclose(learned / learned.sum(), wanted, rtol=0.03)
    in_samples = np.bincount(source) / len(source)
    assert np.abs(in_samples / wanted - 1).max() > 0.2  # another ratio than that of samples


def test_groups_in_loss_tokens():
    """A group's tokens are its share, whatever its sources' samples are worth."""
    loss_tokens = {"a": 9.0, "w": 2.5, "b": 18.0, "v": 40.0, "c": 9.0}
    [stage] = nested(loss_tokens=loss_tokens).stages
    learned = np.asarray([float(s) * loss_tokens[n] for s, n in zip(stage.shares, NESTED)])
    learned /= learned.sum()
    np.testing.assert_allclose(learned, nested().stages[0].configured, rtol=0.01)
    np.testing.assert_allclose(stage.configured, nested().stages[0].configured)


def config(sources: dict | None = None, **options) -> DataConfig:
    given = {"a": {"group": "robot"}, "w": {"group": "web"}} if sources is None else sources
    made = {name: SourceConfig("image_text", f"/{name}", **s) for name, s in given.items()}
    return DataConfig(made, **{"groups": {"robot": 1.0, "web": 1.0}} | options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config({"a": {}}), "source 'a' is of group ''; data.groups has: robot, web"),
        (lambda: config(groups={}), "source 'a' is of group 'robot'; data.groups has: none"),
        (lambda: config({"a": {"group": "robot"}}), "has 'web', and no source names it"),
        (lambda: config({"a": {"epochs": -1}}), "epochs -1 of /a"),
        (lambda: WeightChange(0), "from_sample 0"),
        (lambda: WeightChange(1, ramp_samples=-1), "ramp_samples -1"),
        (
            lambda: config(weight_changes=(WeightChange(5, sources={"web": 1}),)),
            "from sample 5 names 'web', not one of the sources a, w or groups robot, web",
        ),
        (
            lambda: config(weight_changes=(WeightChange(5, ramp_samples=9), WeightChange(13))),
            "from sample 13 begins before .* with sample 14",
        ),
        (lambda: config(weight_changes=(WeightChange(5), WeightChange(5))), "sample 6"),
        (lambda: nested(groups={"robot": -1, "web": 1}), "group 'robot' has weight -1"),
        (lambda: nested(groups={"robot": 0, "web": 0}), "are all 0"),
        (
            lambda: nested(changes=(WeightChange(5, sources={"a": float("nan")}),)),
            "source 'a' has weight nan",
        ),
        (lambda: nested(groups={"robot": 1e-5, "web": 1}), "less than 1/10000"),
        (lambda: nested(dict.fromkeys(NESTED, 9) | {"b": 0}), "'b' has weight 2 and no records"),
    ],
)
def test_bad_set_ups_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_what_ever_has_a_weight_is_used():
    sources = {
        "a": {"group": "robot"},
        "b": {"group": "robot", "weight": 0.0},
        "c": {"group": "robot", "weight": 0.0},
        "w": {"group": "web"},
    }
    data = config(
        sources,
        groups={"robot": 1.0, "web": 0.0},
        weight_changes=(WeightChange(5, sources={"c": 2.0}),),
    )
    assert [name for name in sources if data.uses(name)] == ["a", "c"]
    assert starting_shares(data) == {"a": 1, "b": 0, "c": 0, "w": 0}
    assert starting_shares(config(sources)) == {
        "a": Fraction(1, 2), "b": 0, "c": 0, "w": Fraction(1, 2)
    }  # fmt: skip
    later = config(sources, weight_changes=(WeightChange(5, groups={"web": 1.0}),))
    assert later.uses("w") and not later.uses("b")
