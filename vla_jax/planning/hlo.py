"""The text of a scheduled HLO module, as XLA dumps it, read into computations and instructions.

Only what costs are made of is understood; everything else is kept as text. The grammar is that of
`xla/hlo/parser`; what TPUs add is the memory space in a layout, `S(1)` for VMEM.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_FOOTER = re.compile(r"^\}(, execution_thread=\"(\w+)\")?\s*$")
_START = re.compile(r"^  (ROOT )?%([\w.\-]+) = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations|branch_computations|true_computation"
    r"|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_SPACE = re.compile(r"S\((\d+)\)")

HBM, VMEM = 0, 1

_COPIES = ("copy", "bitcast", "copy-done", "copy-start")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape. `space`: 0 is HBM, 1 VMEM; others are registers and flags."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return math.ceil(self.size * _bits(self.dtype) / 8)


@dataclasses.dataclass
class Instruction:
    """One line. `attributes` is all text after the operands."""

    name: str
    shape: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False
    argument: str = ""  # the text between the brackets, of parameters and constants

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it calls."""
        names = (m.group(1).strip("{}").split(",") for m in _CALLED.finditer(self.attributes))
        return tuple(name.strip().lstrip("%") for group in names for name in group if name.strip())

    def attribute(self, name: str) -> str:
        """The text of `name=...`, up to the comma that ends it; empty if it is not there."""
        match = re.search(rf"(?:^|[\s,]){name}=", self.attributes)
        return _balanced(self.attributes, match.end()) if match else ""

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.shape)


@dataclasses.dataclass
class Computation:
    """Instructions in the order in which they run."""

    name: str
    instructions: list[Instruction]
    thread: str = ""

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        roots = [i for i in self.instructions if i.is_root]
        return roots[-1] if roots else self.instructions[-1]

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.argument): i for i in self.instructions if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {i.name: [] for i in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found


@dataclasses.dataclass
class Module:
    name: str
    entry: str
    computations: dict[str, Computation]

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]

    @functools.cached_property
    def _loops(self) -> dict[str, tuple[Computation, Instruction]]:
        """Body of a loop -> where it is called."""
        return {
            instruction.attribute("body").lstrip("%"): (computation, instruction)
            for computation in self.computations.values()
            for instruction in computation.instructions
            if instruction.opcode == "while"
        }

    def origin(self, computation: Computation, name: str) -> Instruction:
        """What a value is a copy of, also where a loop hands it on from turn to turn."""
        instruction = computation.by_name[name]
        if instruction.opcode in _COPIES:
            return self.origin(computation, instruction.operands[0])
        if instruction.opcode == "get-tuple-element":
            index = int(instruction.attribute("index"))
            source = self.origin(computation, instruction.operands[0])
            if source.opcode == "while":
                source = self.origin(computation, source.operands[0])
            if source.opcode == "tuple":
                return self.origin(computation, source.operands[index])
            if source.opcode == "parameter" and computation.name in self._loops:
                outside, loop = self._loops[computation.name]
                start = outside.by_name[loop.operands[0]]
                if start.opcode == "tuple":
                    return self.origin(outside, start.operands[index])
        return instruction

    def inside(self, name: str) -> Iterator[Instruction]:
        """Instructions of a computation and of all that it calls."""
        for instruction in self.computations[name].instructions:
            yield instruction
            for called in instruction.called:
                yield from self.inside(called)


def parse_module(text: str) -> Module:
    """Reads a dump.

    Raises ValueError if it is not one, or is cut short.
    """
    if not text.startswith("HloModule "):
        raise ValueError(f"not the text of an HLO module: {text[:60]!r}")
    name = re.match(r"HloModule ([\w.\-]+)", text)
    computations: dict[str, Computation] = {}
    entry, current, pending = "", None, ""
    for line in text.splitlines()[1:]:
        if current is None:
            if header := _HEADER.match(line):
                current = Computation(header.group(2), [])
                entry = header.group(2) if header.group(1) else entry
            continue
        footer = _FOOTER.match(line)
        if (footer or _START.match(line)) and pending:
            current.instructions.append(_instruction(pending))
            pending = ""
        if footer:
            current.thread = footer.group(2) or ""
            computations[current.name] = current
            current = None
        else:
            # What a kernel says of itself may hold line breaks.
            pending = f"{pending}\n{line}" if pending else line
    if current is not None or not entry:
        raise ValueError("the text of the HLO module is cut short")
    return Module(name.group(1) if name else "", entry, computations)


def _instruction(text: str) -> Instruction:
    start = _START.match(text)
    if start is None:
        raise ValueError(f"not an HLO instruction: {text[:120]!r}")
    shape, opcode, inner, rest = _split(text[start.end() :])
    leaf = opcode in ("parameter", "constant")
    return Instruction(
        name=start.group(2),
        shape=parse_shape(shape),
        opcode=opcode,
        operands=() if leaf else _operands(inner),
        attributes=rest.lstrip(", "),
        is_root=bool(start.group(1)),
        argument=inner if leaf else "",
    )


def _split(text: str) -> tuple[str, str, str, str]:
    """`SHAPE opcode(inner), rest` -> its four parts."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    return text[:end], text[end:opening].strip(), text[opening + 1 : closing], text[closing + 1 :]


def _closing(text: str, opening: int) -> int:
    """Where the bracket at `opening` closes."""
    depth = 0
    for match in re.compile(r'[()]|"(?:[^"\\]|\\.)*"').finditer(text, opening):
        if match.group() == "(":
            depth += 1
        elif match.group() == ")":
            depth -= 1
            if depth == 0:
                return match.start()
    raise ValueError(f"a bracket does not close: {text[opening : opening + 120]!r}")


def _balanced(text: str, begin: int) -> str:
    depth = 0
    for i in range(begin, len(text)):
        if text[i] in "{([":
            depth += 1
        elif text[i] in "})]":
            depth -= 1
        elif text[i] == "," and depth == 0:
            return text[begin:i]
    return text[begin:]


def _operands(inner: str) -> tuple[str, ...]:
    return tuple(re.findall(r"%([\w.\-]+)", inner))


def _bits(dtype: str) -> int:
    """16 for bf16, 8 for f8e4m3fn."""
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.search(r"\d+", dtype)
    if number is None:
        raise ValueError(f"no known size of HLO type {dtype!r}")
    return int(number.group())


@functools.cache
def parse_shape(text: str) -> tuple[Array, ...]:
    """The arrays of a shape, those of a tuple one after the other, nested ones flattened."""
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout or "")
        sizes = tuple(int(d.strip("<=")) for d in dims.split(",") if d.strip("<="))
        arrays.append(Array(dtype, sizes, int(space.group(1)) if space else HBM))
    return tuple(arrays)


def trip_count(module: Module, inside: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs, at most; None if that cannot be read.

    TPU dumps carry no count. The loop's condition compares a counter with a constant, which is
    there or is what the loop starts with; the body adds a constant to the counter.
    """
    condition = module[loop.attribute("condition").lstrip("%")]
    start = module.origin(inside, loop.operands[0])
    for computation, compare in _with_opcode(module, condition, "compare"):
        if compare.attribute("direction") not in ("LT", "GT"):
            continue
        sides = [_side(condition, computation, operand) for operand in compare.operands]
        if compare.attribute("direction") == "GT":
            sides.reverse()
        counter, limit = sides
        most = _whole_number(limit)
        if most is None and isinstance(limit, int) and start.opcode == "tuple":
            most = _whole_number(module.origin(inside, start.operands[limit]))
        if most is None or not isinstance(counter, int):
            continue
        first = None
        if start.opcode == "tuple":
            first = _whole_number(module.origin(inside, start.operands[counter]))
        each = _increment(module, module[loop.attribute("body").lstrip("%")], counter)
        return max(math.ceil((most - (first or 0)) / each), 0)
    return None


def _with_opcode(
    module: Module, computation: Computation, opcode: str
) -> Iterator[tuple[Computation, Instruction]]:
    for instruction in computation.instructions:
        if instruction.opcode == opcode:
            yield computation, instruction
        for called in instruction.called:
            yield from _with_opcode(module, module[called], opcode)


def _side(condition: Computation, computation: Computation, name: str) -> Instruction | int:
    """One side of a comparison: which element of the loop's tuple it is, or what else."""
    instruction = computation.by_name[name]
    if instruction.opcode in _COPIES:
        return _side(condition, computation, instruction.operands[0])
    if instruction.opcode == "parameter" and computation is not condition:
        caller = next(i for i in condition.instructions if computation.name in i.called)
        return _side(condition, condition, caller.operands[int(instruction.argument)])
    if instruction.opcode == "get-tuple-element":
        return int(instruction.attribute("index"))
    return instruction


def _increment(module: Module, body: Computation, counter: int) -> int:
    """What a loop's body adds to an element of its tuple; 1 if that cannot be read."""
    if body.root.opcode != "tuple":
        return 1
    made = body.by_name[body.root.operands[counter]]
    while made.opcode in _COPIES:
        made = body.by_name[made.operands[0]]
    if made.opcode != "add":
        return 1
    added = [_whole_number(module.origin(body, operand)) for operand in made.operands]
    return next((number for number in added[::-1] if number), 1)


def _whole_number(value: Instruction | int | None) -> int | None:
    """Of a constant; None for anything else."""
    if not isinstance(value, Instruction) or value.opcode != "constant":
        return None
    return int(value.argument) if re.fullmatch(r"-?\d+", value.argument) else None
