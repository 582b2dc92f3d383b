"""A clock that walks through a compiled schedule and predicts how long a step takes.

Instructions run one after the other, each as long as its matrix products or its bytes of HBM need,
whichever is more. Copies into VMEM, transfers between chips and those between slices each have a
timeline of their own beside it; what waits for one is a stall. A loop is walked twice, and what the
second turn took stands for all later ones.
"""

from __future__ import annotations

import collections
import dataclasses
import re

from vla_jax.planning.cost import FREE, KERNEL, Cost, Costs
from vla_jax.planning.hlo import Computation, Instruction, Module, trip_count
from vla_jax.planning.network import (
    Placement,
    Transfer,
    find_collective,
    megascale_transfer,
    transfer,
)

# Shares of the published peaks that a large matrix product and a long copy reach.
_COMPUTE_SHARE = 0.95
_BANDWIDTH_SHARE = 0.85


@dataclasses.dataclass
class CollectiveTotal:
    """All executions of one kind along one axis, in one step."""

    kind: str
    axis: str
    count: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    stall_seconds: float = 0.0
    overlapped_bytes: float = 0.0


@dataclasses.dataclass
class StepTime:
    """Prediction for one chip and one step.

    Attributes:
      flops: executed, those of recomputation included, trip counts multiplied.
      bytes: to and from HBM.
      seconds: the whole step; `by_kind` says on what: "matrix", "memory", "collective" and "copy"
        stalls, and so on.
      estimated_share: of the compute time that comes from the compiler's own cycle estimates.
      unknown: what could not be read, in words; the prediction leaves it out.
    """

    flops: float
    bytes: float
    seconds: float
    by_kind: dict[str, float]
    collectives: list[CollectiveTotal]
    estimated_share: float
    unknown: list[str]


@dataclasses.dataclass
class _Clock:
    now: float = 0.0
    links: float = 0.0
    copies: float = 0.0
    network: float = 0.0

    def shift(self, seconds: float) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + seconds)


def simulate(
    module: Module,
    place: Placement,
    *,
    efficiency: float = _COMPUTE_SHARE,
    use_estimates: bool = False,
) -> StepTime:
    """Predicts one execution of a module.

    Args:
      efficiency: share of the peak that matrix products reach.
      use_estimates: take the compiler's cycle estimates where there are any (they are in what it
        dumps after code generation); they are pessimistic for what memory bounds.
    """
    walk = _Walk(module, place, efficiency, use_estimates)
    walk.computation(module.entry, 1.0)
    compute = walk.by_kind.get("matrix", 0.0) + walk.by_kind.get("memory", 0.0)
    return StepTime(
        flops=walk.total.flops,
        bytes=walk.total.bytes,
        seconds=walk.clock.now,
        by_kind=dict(walk.by_kind),
        collectives=sorted(walk.collectives.values(), key=lambda c: -c.bytes),
        estimated_share=walk.estimated / compute if compute else 0.0,
        unknown=sorted(walk.unknown),
    )


class _Walk:
    def __init__(self, module: Module, place: Placement, efficiency: float, use_estimates: bool):
        self.module, self.place, self.costs = module, place, Costs(module)
        self.peak = place.chip.peak_tflops * 1e12 * efficiency
        self.bandwidth = place.chip.hbm_gbyte_per_s * 1e9 * _BANDWIDTH_SHARE
        self.hertz = place.chip.clock_ghz * 1e9
        self.use_estimates = use_estimates
        self.clock, self.total = _Clock(), Cost()
        self.by_kind: dict[str, float] = collections.defaultdict(float)
        self.collectives: dict[tuple[str, str], CollectiveTotal] = {}
        self.estimated = 0.0
        self.unknown: set[str] = set()
        self._pending: dict[str, tuple[float, Transfer | None]] = {}
        self._transfers: dict[tuple[str, str], Transfer] = {}

    def computation(self, name: str, times: float) -> None:
        """Walks through a computation once; counts what it does `times` times."""
        inside = self.module[name]
        for instruction in inside.instructions:
            self._run(inside, instruction, times)

    def _run(self, inside: Computation, instruction: Instruction, times: float) -> None:
        opcode = instruction.opcode
        if opcode in FREE:
            return
        if opcode == "while":
            self._loop(inside, instruction, times)
        elif opcode == "conditional":
            longest = max(instruction.called, key=self._length)
            self.computation(longest, times)
        elif opcode == "call":
            self.computation(instruction.called[0], times)
        elif opcode in ("send", "recv", "send-done", "recv-done"):
            self._between_slices(inside, instruction, times)
        elif opcode in ("copy-start", "slice-start"):
            self._copy_start(instruction, times)
        elif opcode.endswith("-done"):
            self._wait(instruction, times)
        elif opcode.startswith("async-"):
            self._async(inside, instruction, times)
        elif found := find_collective(self.module, inside, instruction):
            self._collective(inside, instruction, found, times)
        else:
            self._compute(inside, instruction, times)

    def _length(self, name: str) -> int:
        return sum(1 for _ in self.module.inside(name))

    def _loop(self, inside: Computation, loop: Instruction, times: float) -> None:
        body = loop.attribute("body").lstrip("%")
        count = trip_count(self.module, inside, loop)
        if count is None:
            self.unknown.add(f"how often the loop {loop.name} runs: counted once")
            count = 1
        if count == 0:
            return
        self.computation(body, times)
        if count == 1:
            return
        begun = self.clock.now
        self.computation(body, times * (count - 1))
        # The second turn has counted for all later ones; the clock still has to.
        later = (self.clock.now - begun) * (count - 2)
        self.clock.shift(later)
        for key, (end, moved) in self._pending.items():
            if end > begun:
                self._pending[key] = (end + later, moved)

    def _compute(self, inside: Computation, instruction: Instruction, times: float) -> None:
        cost = self.costs.of(inside, instruction)
        self._count(cost, times)
        is_kernel = instruction.opcode == "custom-call" and KERNEL in instruction.attributes
        if is_kernel and not cost.flops:
            self.unknown.add(f"what the kernel {instruction.name} costs")
        matrix, memory = cost.tiled_flops / self.peak, cost.bytes / self.bandwidth
        seconds = max(matrix, memory)
        cycles = _estimated_cycles(instruction) if self.use_estimates else 0
        if cycles:
            seconds = cycles / self.hertz
            self.estimated += seconds * times
        self.clock.now += seconds
        self.by_kind["matrix" if matrix >= memory else "memory"] += seconds * times

    def _count(self, cost: Cost, times: float) -> None:
        self.total += Cost(cost.flops * times, cost.tiled_flops * times, cost.bytes * times)

    def _collective(
        self,
        inside: Computation,
        instruction: Instruction,
        found: tuple[Computation, Instruction],
        times: float,
    ) -> None:
        """A collective, or a fusion round one: waited for, begun, gone on with or ended."""
        moved = self._transfer(instruction, *found)
        channel = found[1].attribute("channel_id") or found[1].name
        if instruction.opcode == "fusion":
            stage = _async_stage(self.module, instruction)
            if stage == "wait":
                self._blocking(moved, times)
                return
            if stage == "start":
                self._begin(channel, moved, times)
            # The rest of the fusion runs beside the transfer.
            self._compute(inside, instruction, times)
            if stage == "done":
                self._end(channel, times)
        elif instruction.opcode.endswith("-start"):
            self._begin(instruction.name, moved, times)
        else:
            self._blocking(moved, times)

    def _transfer(
        self, instruction: Instruction, inner: Computation, collective: Instruction
    ) -> Transfer:
        key = (inner.name, collective.name)
        if key not in self._transfers:
            scattered = "all-reduce-scatter" in "".join(instruction.called)
            self._transfers[key] = transfer(collective, inner, self.place, scattered=scattered)
        return self._transfers[key]

    def _totals(self, moved: Transfer) -> CollectiveTotal:
        key = (moved.kind, moved.axis)
        return self.collectives.setdefault(key, CollectiveTotal(*key))

    def _add(self, moved: Transfer, times: float) -> CollectiveTotal:
        total = self._totals(moved)
        total.count += times
        total.bytes += moved.bytes * times
        total.seconds += moved.seconds * times
        return total

    def _blocking(self, moved: Transfer, times: float) -> None:
        end = max(self.clock.now, self.clock.links) + moved.seconds
        self._stall(end, "collective", self._add(moved, times), times)
        self.clock.links = end

    def _begin(self, key: str, moved: Transfer, times: float) -> None:
        self.clock.links = max(self.clock.now, self.clock.links) + moved.seconds
        self._add(moved, times)
        self._pending[key] = (self.clock.links, moved)

    def _end(self, key: str, times: float) -> None:
        """Waits for what `key` has begun."""
        end, moved = self._pending.get(key, (0.0, None))
        if moved is None:
            self._stall(end, "copy", None, times)
            return
        total = self._totals(moved)
        stall = self._stall(end, "slices" if moved.axis == "slices" else "collective", total, times)
        hidden = 1.0 - min(stall / moved.seconds, 1.0) if moved.seconds else 1.0
        total.overlapped_bytes += moved.bytes * hidden * times

    def _stall(self, end: float, kind: str, total: CollectiveTotal | None, times: float) -> float:
        stall = max(end - self.clock.now, 0.0)
        self.clock.now += stall
        self.by_kind[kind] += stall * times
        if total is not None:
            total.stall_seconds += stall * times
        return stall

    def _copy_start(self, instruction: Instruction, times: float) -> None:
        # (destination, source, flag): one of the two is in HBM.
        moved = max(instruction.shape[0].bytes if instruction.shape else 0, 0)
        self._count(Cost(bytes=moved), times)
        self.clock.copies = max(self.clock.now, self.clock.copies) + moved / self.bandwidth
        self._pending[instruction.name] = (self.clock.copies, None)

    def _wait(self, instruction: Instruction, times: float) -> None:
        self._end(instruction.operands[0], times)

    def _async(self, inside: Computation, instruction: Instruction, times: float) -> None:
        """`async-start`, `async-update`: the transfer begins where its operand is there."""
        begun = instruction.opcode == "async-start"
        if begun and not instruction.operands:
            return  # prepares a sparse core; the update brings the operand
        source = instruction
        while source.opcode == "async-update":
            source = inside.by_name[source.operands[0]]
        if not begun and source.operands:
            self._pending[instruction.name] = self._pending.get(source.name, (0.0, None))
            return
        found = find_collective(self.module, inside, source)
        if found is not None:
            self._begin(instruction.name, self._transfer(source, *found), times)
            return
        # Other work beside the main cores, such as a scatter: as long as its bytes need.
        moved = sum(array.bytes for array in source.shape if array.space == 0)
        self.clock.copies = max(self.clock.now, self.clock.copies) + moved / self.bandwidth
        self._pending[instruction.name] = (self.clock.copies, None)

    def _between_slices(self, inside: Computation, instruction: Instruction, times: float) -> None:
        if instruction.opcode == "send" and "megascale" in instruction.attributes:
            moved = megascale_transfer(instruction, self.place)
            self.clock.network = max(self.clock.now, self.clock.network) + moved.seconds
            self._add(moved, times)
            self._pending[_rendezvous(instruction)] = (self.clock.network, moved)
        elif instruction.opcode == "recv-done":
            received = self.module.origin(inside, instruction.operands[0])
            self._end(_rendezvous(received), times)


def _rendezvous(instruction: Instruction) -> str:
    """What a send and the receive that answers it have in common."""
    match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return match.group(1) if match else instruction.name


def _async_stage(module: Module, fusion: Instruction) -> str:
    """Which part of an asynchronous collective a fusion holds; "wait" if it is not one."""
    text = " ".join(
        inner.attributes
        for inner in module.inside(fusion.called[0])
        if "custom-call" in inner.opcode
    )
    if "AsyncCollectiveStart" in text:
        return "start"
    if "AsyncCollectiveDone" in text:
        return "done"
    return "between" if fusion.called[0].startswith("async_collective_fusion") else "wait"


def _estimated_cycles(instruction: Instruction) -> int:
    match = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(match.group(1)) if match else 0
