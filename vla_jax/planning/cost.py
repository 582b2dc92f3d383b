"""FLOPs and bytes to and from HBM of HLO instructions."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from vla_jax.planning.hlo import HBM, Array, Computation, Instruction, Module

# A matrix unit works on tiles of so many columns; what is narrower costs a whole tile.
_TILE = 128

# What only names or moves a pointer.
FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "partition-id", "replica-id", "opt-barrier", "add-dependency", "iota",
    }
)  # fmt: skip

KERNEL = "tpu_custom_call"

# Custom calls that name memory, and do nothing with it.
_NAMES = re.compile(
    r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGatherIndicesInBound'
    r'|GatherScatterIndicesBitpacked|AsyncCollective\w+)"'
)

# Kernels reach 45% of the peak where plain products reach 95%.
_KERNEL_SLOWNESS = 0.95 / 0.45


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one execution.

    Attributes:
      flops: of matrix products and convolutions, 2 per multiply-add.
      tiled_flops: the same with narrow sides filled up to the matrix unit's tile: what takes time.
      bytes: to and from HBM.
    """

    flops: float = 0.0
    tiled_flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.tiled_flops + other.tiled_flops,
            self.bytes + other.bytes,
        )


class Costs:
    """Costs of a module's instructions. Those that call computations hold what they call."""

    def __init__(self, module: Module):
        self.module = module
        self._flops: dict[str, tuple[float, float]] = {}

    def of(self, computation: Computation, instruction: Instruction) -> Cost:
        if instruction.opcode in FREE or _only_names(instruction):
            return Cost()
        flops, tiled = self._instruction_flops(computation, instruction)
        return Cost(flops, tiled, float(self._traffic(computation, instruction)))

    def _instruction_flops(
        self, computation: Computation, instruction: Instruction
    ) -> tuple[float, float]:
        if instruction.opcode == "convolution":
            return convolution_flops(instruction, _shapes(computation, instruction))
        if instruction.opcode == "dot":
            return dot_flops(instruction, _shapes(computation, instruction))
        if instruction.opcode == "custom-call" and KERNEL in instruction.attributes:
            flops = _stated_cost(instruction, "flops") or attention_flops(
                self.module, computation, instruction
            )
            return flops, flops * _KERNEL_SLOWNESS
        if instruction.opcode in ("fusion", "call"):
            return self._inner_flops(instruction.called[0])
        return 0.0, 0.0

    def _inner_flops(self, name: str) -> tuple[float, float]:
        if name not in self._flops:
            inner = self.module[name]
            found = [self._instruction_flops(inner, i) for i in inner.instructions]
            self._flops[name] = (sum(f for f, _ in found), sum(t for _, t in found))
        return self._flops[name]

    def _traffic(self, computation: Computation, instruction: Instruction) -> int:
        """Bytes of operands read and results written that lie in HBM."""
        operands = [computation.by_name[name] for name in instruction.operands]
        if instruction.opcode == "dynamic-slice" or instruction.opcode == "gather":
            read = instruction.bytes if _in_hbm(operands[0]) else 0
            return read + _hbm_bytes(instruction.shape)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * operands[1].bytes if _in_hbm(instruction) else 0
        if instruction.opcode in ("fusion", "call"):
            return self._fusion_traffic(computation, instruction)
        return sum(_hbm_bytes(o.shape) for o in operands) + _hbm_bytes(instruction.shape)

    def _fusion_traffic(self, computation: Computation, fusion: Instruction) -> int:
        inner = self.module[fusion.called[0]]
        total = 0
        for index, name in enumerate(fusion.operands):
            operand, parameter = computation.by_name[name], inner.parameters.get(index)
            if parameter is not None and _in_hbm(operand):
                total += self._read(inner, parameter, _hbm_bytes(operand.shape))
        root = inner.root
        results = root.operands if root.opcode == "tuple" else (root.name,)
        single = len(results) == len(fusion.shape)
        for place, name in enumerate(results):
            array = fusion.shape[place] if single else None
            if array is not None and array.space == HBM:
                total += self._written(inner, inner.by_name[name], array)
        return total

    def _read(self, inner: Computation, value: Instruction, whole: int) -> int:
        """Bytes of a parameter that are read: slices of it where only slices are used."""
        total = 0
        for user in inner.users[value.name]:
            first = user.operands[0] == value.name
            if user.opcode in ("dynamic-slice", "slice") or (user.opcode == "gather" and first):
                total += user.bytes
            elif user.opcode == "dynamic-update-slice" and first:
                continue  # in place
            elif user.is_root and user.opcode == "tuple":
                continue  # handed on
            elif is_collective(user.opcode) or user.opcode == "custom-call":
                continue  # over the network, and not this fusion's work
            elif user.opcode in ("bitcast", "get-tuple-element"):
                total += self._read(inner, user, whole)
            elif user.opcode == "fusion":
                called = self.module[user.called[0]]
                for index, operand in enumerate(user.operands):
                    if operand == value.name and index in called.parameters:
                        total += self._read(called, called.parameters[index], whole)
            else:
                return whole
        return min(total, whole)

    def _written(self, inner: Computation, result: Instruction, array: Array) -> int:
        """Bytes of a result that are written: updates alone where it is changed in place."""
        if result.opcode == "dynamic-update-slice":
            return inner.by_name[result.operands[1]].bytes
        if result.opcode in ("bitcast", "copy") and result.operands:
            return self._written(inner, inner.by_name[result.operands[0]], array)
        if result.opcode == "fusion":
            called = self.module[result.called[0]]
            if called.root.opcode != "tuple":
                return self._written(called, called.root, array)
        if result.opcode == "parameter" or is_collective(result.opcode) or _only_names(result):
            return 0
        return array.bytes


_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
                "ragged-all-to-all", "collective-broadcast")  # fmt: skip


def is_collective(opcode: str) -> bool:
    """Whether it begins a transfer between chips, waiting for it or not."""
    return opcode.removesuffix("-start") in _COLLECTIVES


def convolution_flops(
    instruction: Instruction, operands: tuple[Array, Array]
) -> tuple[float, float]:
    """FLOPs, and those on whole tiles. On TPUs a matrix product is a convolution, too.

    Batch axes of a product become spatial ones with padding and dilation, so only the pairs of
    positions that meet a number count.
    """
    labels = re.match(r"([\w?]+)_([\w?]+)->([\w?]+)", instruction.attribute("dim_labels"))
    if labels is None:
        raise ValueError(f"convolution {instruction.name} has no dim_labels")
    left, right, out = labels.groups()
    image, kernel = operands
    result = instruction.shape[0]
    window = _window(instruction.attribute("window"), sum(c.isdigit() for c in out))
    pairs = 1.0
    for axis, options in enumerate(window):
        place = str(axis)
        pairs *= _valid_pairs(
            image.dims[left.index(place)],
            kernel.dims[right.index(place)],
            result.dims[out.index(place)],
            *options,
        )
    inputs = kernel.dims[right.index("i")]
    features = result.dims[out.index("f")]
    rows = result.dims[out.index("b")]
    flops = 2.0 * rows * features * inputs * pairs
    return flops, flops * _filling(inputs) * _filling(features)


def _filling(size: int) -> float:
    """How much larger a side becomes on whole tiles. Vectors do not use the matrix unit."""
    return math.ceil(size / _TILE) * _TILE / size if size > 8 else 1.0


def dot_flops(instruction: Instruction, operands: tuple[Array, Array]) -> tuple[float, float]:
    contracted = [
        int(d) for d in instruction.attribute("lhs_contracting_dims").strip("{}").split(",") if d
    ]
    inner = math.prod(operands[0].dims[d] for d in contracted)
    flops = 2.0 * instruction.shape[0].size * inner
    return flops, flops * _filling(inner)


def _window(text: str, rank: int) -> list[tuple[int, int, int, int]]:
    """(stride, low padding, dilation of the image, of the kernel) of each spatial axis."""
    fields = dict(part.split("=", 1) for part in text.strip("{}").split() if "=" in part)

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * rank

    columns = (values("stride", "1"), values("pad", "0_0"), values("lhs_dilate", "1"),
               values("rhs_dilate", "1"))  # fmt: skip
    return [(int(s), int(p.split("_")[0]), int(a), int(b)) for s, p, a, b in zip(*columns)]


@functools.cache
def _valid_pairs(
    image: int, kernel: int, out: int, stride: int, pad: int, dilate: int, kernel_dilate: int
) -> int:
    """Pairs (output, kernel position) of one axis that fall on a number of the image."""
    taps = np.arange(kernel) * kernel_dilate - pad
    total, extent = 0, (image - 1) * dilate + 1
    # Block by block: a kernel may be as long as a sequence.
    for begin in range(0, out, 1024):
        at = np.arange(begin, min(begin + 1024, out))[:, None] * stride + taps
        total += int(np.count_nonzero((at >= 0) & (at < extent) & (at % dilate == 0)))
    return total


def _stated_cost(instruction: Instruction, name: str) -> float:
    """What a Pallas kernel's author says it costs; 0 if nothing is said."""
    match = re.search(rf'"{name}":"?(\d+)', instruction.attributes)
    return float(match.group(1)) if match else 0.0


# Products of one pass of an attention kernel, by its name: of queries and keys, of weights and
# values, and their derivatives.
_ATTENTION_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}


def attention_flops(module: Module, computation: Computation, kernel: Instruction) -> float:
    """FLOPs of one of Pallas' splash attention kernels, which do not state them; else 0.

    Blocks that a mask hides are skipped; those of a mask that is made as the program runs count.
    """
    name = re.match(r"splash_m[hq]a_(fwd|dkv|dq)", kernel.name)
    if name is None:
        return 0.0
    arrays = [computation.by_name[operand].shape[0] for operand in kernel.operands]
    query, key = [a for a in arrays if len(a.dims) >= 3 and a.dtype[0] in "bf"][:2]
    whole = 2.0 * query.size * key.dims[-2] * _ATTENTION_PRODUCTS[name.group(1)]
    return whole * _blocks_done(module, computation, kernel)


def _blocks_done(module: Module, computation: Computation, kernel: Instruction) -> float:
    """Share of a kernel's blocks that are not hidden, from its second operand: 0 is hidden."""
    mask = module.origin(computation, kernel.operands[1])
    kinds = re.findall(r"\d+", mask.argument) if mask.opcode == "constant" else []
    return sum(kind != "0" for kind in kinds) / len(kinds) if kinds else 1.0


def _shapes(computation: Computation, instruction: Instruction) -> tuple[Array, Array]:
    first, second = (computation.by_name[name].shape[0] for name in instruction.operands[:2])
    return first, second


def _only_names(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and bool(_NAMES.search(instruction.attributes))


def _in_hbm(instruction: Instruction) -> bool:
    return any(array.space == HBM for array in instruction.shape)


def _hbm_bytes(shape: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in shape if array.space == HBM)
