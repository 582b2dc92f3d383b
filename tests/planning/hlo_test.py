"""The parser, on text written by hand and on real dumps."""

from __future__ import annotations

import pytest

from tests.planning.dumped import KNOWN, load
from vla_jax.planning.hlo import Array, parse_module, parse_shape, trip_count

# A loop from 2 below 10 by 3, whose limit is handed on in its tuple, and a kernel that says
# something of itself in two lines.
TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%cond (p: (s32[], f32[4], s32[])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} get-tuple-element(%p), index=2
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (p.1: (s32[], f32[4], s32[])) -> (s32[], f32[4], s32[]) {
  %p.1 = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %three = s32[]{:T(128)} constant(3)
  %add = s32[]{:T(128)} add(%i.1, %three)
  %x = f32[4]{0:T(128)S(1)} get-tuple-element(%p.1), index=1
  %n.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=2
  ROOT %t = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}, s32[]{:T(128)}) tuple(%add, %x, %n.1)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0:T(128)} parameter(0), metadata={op_name="x (y"}
  %ten = s32[]{:T(128)} constant(10)
  %two = s32[]{:T(128)} constant(2)
  %k = f32[4]{0:T(128)S(1)} custom-call(%a), custom_call_target="tpu_custom_call", kernel={
}), metadata={op_name="a/b"}
  %start = (s32[]{:T(128)}, f32[4]{0:T(128)S(1)}, s32[]{:T(128)}) tuple(%two, %k, %ten)
  %while.1 = (s32[], f32[4]{0:T(128)S(1)}, s32[]) while(%start), condition=%cond, body=%body
  ROOT %out = f32[4]{0:T(128)} get-tuple-element(%while.1), index=1
}
"""


def test_computations_instructions_and_shapes_are_read():
    module = parse_module(TEXT)
    assert (module.name, module.entry) == ("jit_step", "main")
    assert set(module.computations) == {"cond", "body", "main"}
    kernel = module["main"].by_name["k"]
    assert kernel.operands == ("a",)
    assert kernel.op_name == "a/b"
    assert kernel.shape == (Array("f32", (4,), 1),)
    loop = module["main"].by_name["while.1"]
    assert loop.called == ("cond", "body")
    assert module["main"].root.name == "out"


def test_trip_count_reads_start_limit_and_step():
    module = parse_module(TEXT)
    loop = module["main"].by_name["while.1"]
    assert trip_count(module, module["main"], loop) == 3  # 2, 5, 8
    unknown = parse_module(TEXT.replace("direction=LT", "direction=NE"))
    assert trip_count(unknown, unknown["main"], loop) is None


def test_a_value_is_followed_through_loops():
    module = parse_module(TEXT)
    assert module.origin(module["body"], "n.1").name == "ten"
    assert module.origin(module["main"], "out").name == "k"


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("f32[4,8]{1,0:T(8,128)}", 128),
        ("(bf16[2]{0}, pred[3]{0:T(128)S(1)}, u32[]{:S(2)})", 4 + 3 + 4),
        ("s4[7]{0}", 4),
        ("f8e4m3fn[10]", 10),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(text, total):
    assert sum(array.bytes for array in parse_shape(text)) == total


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="not the text of an HLO module"):
        parse_module("hello")
    with pytest.raises(ValueError, match="cut short"):
        parse_module(TEXT[: TEXT.index("ROOT %out")])


@pytest.mark.parametrize("name", KNOWN)
def test_real_loops_run_once_for_each_layer(name):
    module, _ = load(name)
    loops = [
        (computation, instruction)
        for computation in module.computations.values()
        for instruction in computation.instructions
        if instruction.opcode == "while" and computation.name == module.entry
    ]
    counts = [trip_count(module, computation, loop) for computation, loop in loops]
    # A first layer may be taken out of its loop.
    assert len(counts) == 2 and set(counts) <= {2, 3}, counts
