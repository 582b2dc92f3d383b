"""Who talks to whom in a collective, over which links, and how long that takes."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from vla_jax.planning.cost import is_collective
from vla_jax.planning.hlo import Computation, Instruction, Module
from vla_jax.sharding.topology import Chip

# A message's time to the next chip, before its first byte is there.
_HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a program, in the order in which its partitions are numbered.

    Attributes:
      chip: their kind.
      coordinates: int [n, 3], of each device in its slice's torus.
      slices: int [n], the slice of each.
      mesh_axes, mesh_sizes: of the mesh whose devices these are, row by row.
      torus: size of each dimension of the slice.
      wrap: which of them close to a ring.
    """

    chip: Chip
    coordinates: np.ndarray
    slices: np.ndarray
    mesh_axes: tuple[str, ...]
    mesh_sizes: tuple[int, ...]
    torus: tuple[int, int, int]
    wrap: tuple[bool, bool, bool]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One execution of a collective.

    Attributes:
      kind: of HLO.
      axis: the mesh axes along which its groups lie, e.g. "fsdp" or "data+fsdp"; "slices" for what
        goes over the data centre's network.
      bytes: of the whole array on each chip: what an all-gather gives, a reduction takes.
      seconds: on free links.
    """

    kind: str
    axis: str
    bytes: int
    seconds: float


def find_collective(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[Computation, Instruction] | None:
    """The collective that an instruction is or wraps."""
    if is_collective(instruction.opcode):
        return computation, instruction
    for name in instruction.called:
        for inner in module[name].instructions:
            if found := find_collective(module, module[name], inner):
                return found
    return None


def transfer(
    instruction: Instruction, computation: Computation, place: Placement, *, scattered: bool = False
) -> Transfer:
    """What a collective moves.

    Args:
      scattered: of an all-reduce each chip keeps its part only: it is a reduce-scatter.
    """
    kind = instruction.opcode.removesuffix("-start")
    kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
    operands = [computation.by_name[name] for name in instruction.operands]
    taken = sum(operand.bytes for operand in operands)
    made = instruction.bytes
    if instruction.opcode.endswith("-start"):
        made -= taken  # operands stand in the result, too
    moved = made if kind == "all-gather" else taken
    if kind == "collective-permute":
        pairs = _pairs(instruction)
        return Transfer(kind, axis_name(pairs, place), moved, _permute_seconds(pairs, moved, place))
    groups = replica_groups(instruction.attribute("replica_groups"), len(place.slices))
    return Transfer(kind, axis_name(groups, place), moved, _seconds(kind, groups, moved, place))


def megascale_transfer(instruction: Instruction, place: Placement) -> Transfer:
    """What a `send` between slices moves: TPU programs have no collective for it."""
    moved = instruction.shape[0].bytes
    match = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    kind = match.group(1).lower().replace("_", "-") if match else "send"
    slices = len(np.unique(place.slices))
    there_and_back = 2 * (slices - 1) / slices if kind == "all-reduce" else 1.0
    seconds = there_and_back * moved / (place.chip.dcn_gbyte_per_s * 1e9)
    return Transfer(kind, "slices", moved, seconds)


@functools.cache
def replica_groups(text: str, devices: int) -> np.ndarray:
    """int [groups, members] from any of HLO's notations.

    `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)` and `mesh['a'=2,'b'=4] {'b'}`; nothing is one group of
    all.

    Raises ValueError for a notation that is not known.
    """
    if text in ("", "{}", "{{}}"):
        return np.arange(devices)[None]
    if text.startswith("{{"):
        rows = re.findall(r"\{([\d,]+)\}", text)
        return np.array([[int(i) for i in row.split(",")] for row in rows])
    if iota := re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source, order = (_ints(group) for group in iota.groups())
        grid = np.arange(math.prod(source)).reshape(source)
        return (grid.transpose(order) if order else grid).reshape(shape)
    if mesh := re.match(r"mesh\[([^\]]*)\](<=\[[\d,]+\](?:T\([\d,]+\))?)? *\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh.group(1))}
        inside = re.findall(r"'([^']*)'", mesh.group(3))
        flat = np.arange(math.prod(sizes.values()))
        if mesh.group(2):
            flat = replica_groups(f"[{flat.size}]{mesh.group(2)}", devices)
        axes = list(sizes)
        if ":" in mesh.group(3) or any(name not in sizes for name in inside):
            raise ValueError(f"replica groups {text!r}: parts of axes are not understood")
        grid = flat.reshape(tuple(sizes.values()))
        order = [axes.index(a) for a in axes if a not in inside] + [axes.index(a) for a in inside]
        members = math.prod(sizes[a] for a in inside)
        return grid.transpose(order).reshape(-1, members)
    raise ValueError(f"replica groups {text[:80]!r} are in no known notation")


def _ints(text: str | None) -> tuple[int, ...]:
    return tuple(int(i) for i in text.split(",")) if text else ()


def _pairs(instruction: Instruction) -> np.ndarray:
    pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attribute("source_target_pairs"))
    moving = [(int(a), int(b)) for a, b in pairs if a != b]
    return np.array(moving or [(0, 0)])


def axis_name(groups: np.ndarray, place: Placement) -> str:
    """The mesh axes that vary inside the groups; both halves of fsdp are called fsdp."""
    where = np.unravel_index(groups, place.mesh_sizes)
    varying = [
        axis.split("_")[0]
        for axis, index in zip(place.mesh_axes, where)
        if np.any(index != index[:, :1])
    ]
    return "+".join(dict.fromkeys(varying)) or "none"


def _seconds(kind: str, groups: np.ndarray, moved: int, place: Placement) -> float:
    """Rings over every torus dimension at once, each in both directions."""
    members = groups.shape[1]
    if members == 1:
        return 0.0
    if np.any(place.slices[groups] != place.slices[groups[:, :1]]):
        return moved / (place.chip.dcn_gbyte_per_s * 1e9)
    bandwidth, hops = _links(groups[0], place)
    latency = hops * _HOP_SECONDS
    times = {"all-gather": 1.0, "reduce-scatter": 1.0, "all-reduce": 2.0}
    if kind in times:
        share = (members - 1) / members
        return times[kind] * (moved * share / bandwidth + latency)
    # All to all: each byte goes a quarter of the way round, on the longest dimension.
    longest = max(len(np.unique(place.coordinates[groups[0], d])) for d in range(3))
    return moved * max(longest / 4, 1.0) / bandwidth + latency


def _links(group: np.ndarray, place: Placement) -> tuple[float, float]:
    """(bytes a second into each chip, hops of the slowest message) of a group's rings.

    A dimension gives two links if it closes to a ring and all of it is in the group, else one. A
    group with gaps shares its links with those in between.
    """
    links, hops = 0.0, 0.0
    for dimension, (size, closed) in enumerate(zip(place.torus, place.wrap)):
        positions = np.unique(place.coordinates[group, dimension])
        count = len(positions)
        if count == 1:
            continue
        span = int(positions[-1] - positions[0]) + 1
        ring = closed and (count == size or span > size / 2)
        stride = (size if ring else span) / count if count < span else 1.0
        links += (2.0 if ring else 1.0) / stride
        hops += (size / 2) if ring else span - 1
    # Two cores of one chip are no step in the torus; they share its memory.
    bandwidth = (links or 2.0) * place.chip.link_gbyte_per_s * 1e9
    return bandwidth, hops or 1.0


def _permute_seconds(pairs: np.ndarray, moved: int, place: Placement) -> float:
    """One message each, over one link for every step of the way."""
    if np.any(place.slices[pairs[:, 0]] != place.slices[pairs[:, 1]]):
        return moved / (place.chip.dcn_gbyte_per_s * 1e9)
    apart = np.abs(place.coordinates[pairs[:, 0]] - place.coordinates[pairs[:, 1]])
    size = np.array(place.torus)
    apart = np.where(place.wrap, np.minimum(apart, size - apart), apart)
    steps = max(float(apart.sum(axis=1).mean()), 1.0)
    return moved * steps / (place.chip.link_gbyte_per_s * 1e9) + steps * _HOP_SECONDS
