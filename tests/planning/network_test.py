"""Groups in each notation, links and times, against counting by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vla_jax.planning.hlo import parse_module
from vla_jax.planning.network import Placement, axis_name, replica_groups, transfer
from vla_jax.sharding.topology import parse_topology


def place_on(text: str, sizes: dict[str, int]) -> Placement:
    """Partitions numbered along x, then y, then z, as the mesh's rows."""
    topology = parse_topology(text)
    grid = np.stack(np.meshgrid(*(range(n) for n in topology.torus), indexing="ij"), -1)
    coordinates = np.tile(grid.reshape(-1, 3), (topology.slices, 1))
    slices = np.repeat(np.arange(topology.slices), len(coordinates) // topology.slices)
    return Placement(
        topology.chip, coordinates, slices, tuple(sizes), tuple(sizes.values()), topology.torus,
        topology.wrap,
    )  # fmt: skip


def test_notations_of_groups_agree():
    listed = replica_groups("{{0,2},{1,3},{4,6},{5,7}}", 8)
    assert listed.tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert replica_groups("[4,2]<=[2,2,2]T(0,2,1)", 8).tolist() == listed.tolist()
    assert replica_groups("mesh['a'=2,'b'=2,'c'=2] {'b'}", 8).tolist() == listed.tolist()
    assert replica_groups("[2,4]<=[8]", 8).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert replica_groups("", 3).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="in no known notation"):
        replica_groups("<hello>", 8)


def test_groups_are_named_by_the_axes_along_which_they_lie():
    place = place_on("v5e:4x4", {"data": 2, "fsdp_major": 2, "fsdp_minor": 2, "tensor": 2})
    assert axis_name(np.array([[0, 8], [1, 9]]), place) == "data"
    assert axis_name(np.array([[0, 2, 4, 6]]), place) == "fsdp"
    assert axis_name(np.array([[0, 2]]), place) == "fsdp"
    assert axis_name(np.array([[0, 1, 8, 9]]), place) == "data+tensor"
    assert axis_name(np.array([[0]]), place) == "none"


def seconds(place: Placement, opcode: str, groups: str, shape: str = "bf16[1048576]") -> float:
    text = f"""HloModule m

ENTRY %main (a: {shape}) -> {shape} {{
  %a = {shape} parameter(0)
  ROOT %c = {shape} {opcode}(%a), replica_groups={groups}
}}
"""
    module = parse_module(text)
    return transfer(module["main"].root, module["main"], place).seconds


def test_times_follow_links_and_rings():
    megabytes, link = 2 * 2**20, 45e9
    ring = place_on("v5e:16x16", {"data": 16, "fsdp": 16})
    # 16 in a ring: two links, and 8 hops for the first byte.
    one = megabytes * 15 / 16 / (2 * link) + 8e-6
    row = "[16,16]<=[256]"
    assert seconds(ring, "all-gather", row) == pytest.approx(one)
    assert seconds(ring, "all-reduce", row) == pytest.approx(2 * one)
    # Both dimensions at once.
    both = megabytes * 255 / 256 / (4 * link) + 16e-6
    assert seconds(ring, "all-gather", "[1,256]<=[256]") == pytest.approx(both)
    # Not a ring: one link.
    line = place_on("v5e:4x4", {"data": 4, "fsdp": 4})
    assert seconds(line, "all-gather", "[4,4]<=[16]") == pytest.approx(
        megabytes * 3 / 4 / link + 3e-6
    )
    # Every fourth of a ring shares its links with three other groups.
    apart = seconds(ring, "all-gather", "[64,4]<=[16,4,4]T(0,2,1)")
    assert apart == pytest.approx(megabytes * 3 / 4 / (2 * link / 4) + 8e-6)


def test_groups_across_slices_take_the_slow_network():
    place = place_on("v5e:4x4*2", {"data": 2, "fsdp": 16})
    slow = seconds(place, "all-gather", "[16,2]<=[2,16]T(1,0)")
    assert slow == pytest.approx(2 * 2**20 / 3.125e9)


def test_one_member_needs_no_time():
    place = dataclasses.replace(place_on("v5e:4x4", {"data": 16}))
    assert seconds(place, "all-reduce", "[16,1]<=[16]") == 0.0
