"""From the weights of a config to each source's exact share of the samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

from vla_jax.data.config import DataConfig, WeightChange
from vla_jax.data.schedule import BLOCK

MAX_DENOMINATOR = 10_000
RAMP_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Weights:
    """What is asked for at one time.

    Attributes:
      sources: name -> weight, relative to the others of its group.
      groups: name -> weight, relative to the other groups.
    """

    sources: Mapping[str, Fraction]
    groups: Mapping[str, Fraction]


def exact_weights(weights: Mapping[str, float | Fraction], what: str) -> dict[str, Fraction]:
    """A weight means what its decimal says: 0.1 is 1/10.

    Args:
      what: is weighted, for the message.

    Raises ValueError for a weight that is negative or not finite.
    """
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{what} {name!r} has weight {weight}: it must be finite and >= 0")
    return {name: Fraction(str(weight)) for name, weight in weights.items()}


def exact_shares(
    weights: Mapping[str, float | Fraction], group_of: Mapping[str, str] | None = None
) -> tuple[Fraction, ...]:
    """Weights as fractions that sum to 1.

    Shares without a common denominator up to 10,000 are rounded to 1/10,000 by largest remainder,
    first those of the groups, then inside of each.

    Args:
      weights: source name -> weight.
      group_of: source name -> group; they are not weighted here, only kept together in rounding.

    Raises:
      ValueError: no source, a negative or non-finite weight, all weights 0, or a source with less
        than 1/10,000 of the samples.
    """
    if not weights:
        raise ValueError("a mixture needs at least one source")
    exact = exact_weights(weights, "source")
    total = sum(exact.values())
    if total == 0:
        raise ValueError(
            f"the weights of {', '.join(weights)} are all 0: give one of them a weight"
        )
    shares = {name: weight / total for name, weight in exact.items()}
    if math.lcm(*(share.denominator for share in shares.values())) <= MAX_DENOMINATOR:
        return tuple(shares.values())
    members: dict[str, dict[str, Fraction]] = {}
    for name, share in shares.items():
        members.setdefault((group_of or {}).get(name, ""), {})[name] = share
    groups = {group: sum(inside.values(), Fraction(0)) for group, inside in members.items()}
    units: dict[str, int] = {}
    for group, count in _apportion(groups, MAX_DENOMINATOR).items():
        units |= _apportion(members[group], count)
    for name, share in shares.items():
        if share and not units[name]:
            raise ValueError(
                f"source {name!r} has {float(share):.2g} of all samples, less than "
                f"1/{MAX_DENOMINATOR}: raise its weight or set it to 0"
            )
    return tuple(Fraction(units[name], MAX_DENOMINATOR) for name in shares)


def nested_shares(
    weights: Weights, group_of: Mapping[str, str], out: Collection[str] = ()
) -> dict[str, Fraction]:
    """Share of each source: that of its group, times that inside of the group.

    What a source that is `out` would have goes to the others of its group; a group without sources
    leaves its share to the other groups. All shares are 0 if nothing is left.
    """
    inside = {n: Fraction(0) if n in out else weight for n, weight in weights.sources.items()}
    if not weights.groups:
        return _normalised(inside)
    sums = dict.fromkeys(weights.groups, Fraction(0))
    for name, weight in inside.items():
        sums[group_of[name]] += weight
    groups = _normalised(
        {g: weight if sums[g] else weight * 0 for g, weight in weights.groups.items()}
    )
    return {
        name: groups[group_of[name]] * weight / sums[group_of[name]] if weight else weight
        for name, weight in inside.items()
    }


def starting_shares(data: DataConfig) -> dict[str, Fraction]:
    """Each source's share when a run starts, in the unit of `data.weights_in`.

    Raises ValueError as `exact_shares` does.
    """
    group_of = {name: source.group for name, source in data.sources.items()}
    sources = {name: source.weight for name, source in data.sources.items()}
    start = Weights(exact_weights(sources, "source"), exact_weights(data.groups, "group"))
    shares = exact_shares(nested_shares(start, group_of), group_of)
    return dict(zip(data.sources, shares))


def weights_over_time(start: Weights, changes: Sequence[WeightChange]) -> list[tuple[int, Weights]]:
    """(first sample, weights from there on), in order; names that `start` lacks are passed over.

    A ramp is up to 100 equal steps, of 1,000 samples or more if it is that long. Each has the
    weights that the straight line has in its middle.
    """
    found, now = {0: start}, start
    for change in changes:
        sources = exact_weights(change.sources, "source")
        groups = exact_weights(change.groups, "group")
        target = Weights(
            {name: sources.get(name, weight) for name, weight in now.sources.items()},
            {name: groups.get(name, weight) for name, weight in now.groups.items()},
        )
        steps = min(RAMP_STEPS, max(1, change.ramp_samples // BLOCK)) if change.ramp_samples else 0
        for step in range(steps):
            first = change.from_sample + change.ramp_samples * step // steps
            found[first] = _between(now, target, Fraction(2 * step + 1, 2 * steps))
        found[change.from_sample + change.ramp_samples] = target
        now = target
    return list(found.items())


def _between(a: Weights, b: Weights, part: Fraction) -> Weights:
    def mix(x: Mapping[str, Fraction], y: Mapping[str, Fraction]) -> dict[str, Fraction]:
        return {name: x[name] + (y[name] - x[name]) * part for name in x}

    return Weights(mix(a.sources, b.sources), mix(a.groups, b.groups))


def _normalised(weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
    total = sum(weights.values())
    return {name: weight / total if total else weight for name, weight in weights.items()}


def _apportion(shares: Mapping[str, Fraction], units: int) -> dict[str, int]:
    """`units` whole units in proportion to shares, by largest remainder."""
    total = sum(shares.values())
    exact = {name: share * units / total if total else share for name, share in shares.items()}
    rounded = {name: math.floor(amount) for name, amount in exact.items()}
    by_remainder = sorted(exact, key=lambda name: rounded[name] - exact[name])
    for name in by_remainder[: units - sum(rounded.values())]:
        rounded[name] += 1
    return rounded
