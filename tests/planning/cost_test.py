"""FLOPs and bytes, against counting by hand and against JAX."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.planning.cost import Cost, Costs, convolution_flops
from vla_jax.planning.hlo import parse_module, parse_shape


def one(text: str, more: str = "") -> Cost:
    """Cost of the root of an entry computation with these lines."""
    module = parse_module(f"HloModule m\n{more}\nENTRY %main (a: f32[]) -> f32[] {{\n{text}\n}}\n")
    return Costs(module).of(module["main"], module["main"].root)


def brute_force(image, kernel, out, stride, pad, dilate, kernel_dilate) -> int:
    """Products of a one-dimensional convolution that meet a number."""
    dilated = np.zeros((image - 1) * dilate + 1, int)
    dilated[::dilate] = 1
    count = 0
    for o in range(out):
        for k in range(kernel):
            at = o * stride + k * kernel_dilate - pad
            count += 0 <= at < len(dilated) and bool(dilated[at])
    return count


@pytest.mark.parametrize(
    ("image", "kernel", "out", "stride", "pad", "dilate", "kernel_dilate"),
    [(9, 3, 9, 1, 1, 1, 1), (14, 14, 1, 14, 0, 1, 1), (5, 5, 5, 4, 0, 5, 4), (7, 3, 5, 2, 2, 2, 2)],
)
def test_convolutions_count_what_meets_a_number(
    image, kernel, out, stride, pad, dilate, kernel_dilate
):
    text = f"""HloModule m

ENTRY %main (a: bf16[2], b: bf16[2]) -> bf16[2] {{
  %a = bf16[2,{image},16] parameter(0)
  %b = bf16[{kernel},16,32] parameter(1)
  ROOT %c = bf16[2,{out},32] convolution(%a, %b), window={{size={kernel} stride={stride} \
pad={pad}_0 lhs_dilate={dilate} rhs_dilate={kernel_dilate}}}, dim_labels=b0f_0io->b0f
}}
"""
    module = parse_module(text)
    shapes = parse_shape(f"bf16[2,{image},16]")[0], parse_shape(f"bf16[{kernel},16,32]")[0]
    flops, tiled = convolution_flops(module["main"].root, shapes)
    pairs = brute_force(image, kernel, out, stride, pad, dilate, kernel_dilate)
    assert flops == 2 * 2 * 32 * 16 * pairs
    assert tiled == flops * (128 / 16) * (128 / 32)


def test_a_product_is_a_convolution():
    cost = one(
        "  %a = bf16[512,1024]{1,0} parameter(0)\n"
        "  %b = bf16[1024,256]{1,0:T(8,128)S(1)} parameter(1)\n"
        "  ROOT %c = bf16[512,256]{1,0} convolution(%a, %b), dim_labels=bf_io->bf"
    )
    assert cost.flops == cost.tiled_flops == 2 * 512 * 1024 * 256
    assert cost.bytes == 2 * (512 * 1024 + 512 * 256)  # b is in VMEM


def test_slices_cost_what_they_hold():
    inner = """
%slice (p: f32[100,1000], i: s32[]) -> f32[1,1000] {
  %p = f32[100,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %s = f32[1,1000]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,1000}
}

%update (p.1: f32[100,1000], u: f32[1,1000], i.1: s32[]) -> f32[100,1000] {
  %p.1 = f32[100,1000]{1,0} parameter(0)
  %u = f32[1,1000]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %z.1 = s32[] constant(0)
  ROOT %s.1 = f32[100,1000]{1,0} dynamic-update-slice(%p.1, %u, %i.1, %z.1)
}
"""
    whole = "  %p = f32[100,1000]{1,0} parameter(0)\n  %i = s32[]{:S(6)} parameter(1)\n"
    read = one(
        whole + "  ROOT %f = f32[1,1000]{1,0} fusion(%p, %i), kind=kLoop, calls=%slice", inner
    )
    assert read.bytes == 2 * 4000
    written = one(
        whole + "  %u = f32[1,1000]{1,0} parameter(2)\n"
        "  ROOT %f = f32[100,1000]{1,0} fusion(%p, %u, %i), kind=kLoop, calls=%update",
        inner,
    )
    assert written.bytes == 2 * 4000


def test_attention_kernels_are_counted_without_hidden_blocks():
    shape = "bf16[2,4,256,64]{3,2,1,0}"
    kernel = (
        "  %d = s8[1,2,2]{2,1,0} constant({ { { 0, 0 }, { 0, 1 } } })\n"
        "  %m = s8[1,2,2]{2,1,0} constant({ { { 1, 0 }, { 2, 1 } } })\n"
        f"  %q = {shape} parameter(0)\n  %k = {shape} parameter(1)\n  %v = {shape} parameter(2)\n"
        f"  ROOT %splash_mha_fwd.1 = {shape} custom-call(%d, %m, %q, %k, %v),"
        ' custom_call_target="tpu_custom_call"'
    )
    cost = one(kernel)
    assert cost.flops == 2 * 2 * (2 * 4 * 256 * 256 * 64) * 3 / 4
    assert cost.tiled_flops == pytest.approx(cost.flops * 0.95 / 0.45)


def test_naming_memory_costs_nothing():
    big = "f32[1000,1000]{1,0}"
    named = one(f'  ROOT %c = {big} custom-call(), custom_call_target="AllocateBuffer"')
    assert named == Cost()
    done = (
        f"%done (p: {big}, q: {big}) -> {big} {{\n  %p = {big} parameter(0)\n"
        f"  %q = {big} parameter(1)\n  ROOT %r = {big} custom-call(%p, %q),"
        ' custom_call_target="AsyncCollectiveDone"\n}\n'
    )
    ended = one(
        f"  %a = {big} parameter(0)\n  %b = {big} parameter(1)\n"
        f"  ROOT %f = {big} fusion(%a, %b), kind=kCustom, calls=%done",
        done,
    )
    assert ended == Cost()
