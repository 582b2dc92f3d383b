"""The clock, on schedules written by hand and on real ones whose work is known."""

from __future__ import annotations

import pytest

from tests.planning.dumped import INNER, KNOWN, ROWS, load
from tests.planning.network_test import place_on
from tests.planning.toy import LAYERS, LENGTH
from vla_jax.planning.hlo import parse_module
from vla_jax.planning.schedule import simulate
from vla_jax.sharding.topology import parse_topology

PRODUCT = """%b = bf16[4096,4096]{1,0:T(8,128)S(1)} convolution(%a, %a), dim_labels=bf_io->bf"""
PRODUCT_SECONDS = 2 * 4096**3 / (0.95 * 197e12)


def run(lines: str, more: str = ""):
    module = parse_module(
        f"HloModule m\n{more}\nENTRY %main (a: bf16[4096,4096]) -> bf16[4096,4096] {{\n"
        f"  %a = bf16[4096,4096]{{1,0:T(8,128)S(1)}} parameter(0)\n{lines}}}\n"
    )
    return simulate(module, place_on("v5e:16x16", {"data": 16, "fsdp": 16}))


def test_a_product_takes_its_flops():
    found = run(f"  ROOT {PRODUCT}\n")
    assert found.seconds == pytest.approx(PRODUCT_SECONDS)
    assert found.flops == 2 * 4096**3
    assert found.by_kind == {"matrix": pytest.approx(PRODUCT_SECONDS)}


def test_what_is_bound_by_memory_takes_its_bytes():
    found = run("  ROOT %c = bf16[4096,4096]{1,0} negate(%a)\n")
    assert found.seconds == pytest.approx(2 * 4096**2 / (0.85 * 819e9))


@pytest.mark.parametrize("between", [0, 1, 10])
def test_transfers_that_are_begun_overlap_with_compute(between):
    lines = (
        "  %s = (bf16[4096,4096]{1,0:S(1)}, bf16[4096,4096]{1,0:S(1)}) all-reduce-start(%a),"
        " replica_groups=[16,16]<=[256]\n"
        + "".join(f"  {PRODUCT.replace('%b', f'%b{i}')}\n" for i in range(between))
        + "  ROOT %d = bf16[4096,4096]{1,0:S(1)} all-reduce-done(%s)\n"
    )
    transfer = 2 * (2 * 4096**2 * 15 / 16 / 90e9 + 8e-6)
    found = run(lines)
    compute = between * PRODUCT_SECONDS
    assert found.seconds == pytest.approx(max(transfer, compute))
    (total,) = found.collectives
    stall = max(transfer - compute, 0.0)
    assert total.stall_seconds == pytest.approx(stall)
    assert total.overlapped_bytes == pytest.approx(2 * 4096**2 * (1 - stall / transfer))


def test_transfers_that_are_waited_for_stand_in_the_way():
    found = run(f"  {PRODUCT}\n  ROOT %c = bf16[4096,4096]{{1,0:S(1)}} all-gather(%b)\n")
    (total,) = found.collectives
    assert total.axis == "data+fsdp"
    assert found.seconds == pytest.approx(PRODUCT_SECONDS + total.seconds)
    assert total.overlapped_bytes == 0.0


def test_loops_count_every_turn():
    loop = """
%cond (p: (s32[], bf16[4096,4096])) -> pred[] {
  %p = (s32[], bf16[4096,4096]{1,0:S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(30)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p.1: (s32[], bf16[4096,4096])) -> (s32[], bf16[4096,4096]) {
  %p.1 = (s32[], bf16[4096,4096]{1,0:S(1)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %one = s32[] constant(1)
  %add = s32[]{:S(6)} add(%i.1, %one)
  %a = bf16[4096,4096]{1,0:S(1)} get-tuple-element(%p.1), index=1
  PRODUCT
  ROOT %t = (s32[], bf16[4096,4096]{1,0:S(1)}) tuple(%add, %b)
}
""".replace("PRODUCT", PRODUCT)
    found = run(
        "  %zero = s32[] constant(0)\n"
        "  %s = (s32[], bf16[4096,4096]{1,0:S(1)}) tuple(%zero, %a)\n"
        "  ROOT %w = (s32[], bf16[4096,4096]{1,0:S(1)}) while(%s), condition=%cond, body=%body\n",
        loop,
    )
    assert found.flops == 30 * 2 * 4096**3
    assert found.by_kind["matrix"] == pytest.approx(30 * PRODUCT_SECONDS)
    assert found.seconds == pytest.approx(sum(found.by_kind.values()))


@pytest.mark.parametrize("name", KNOWN)
def test_real_schedules_hold_the_products_of_the_program(name):
    topology, width = KNOWN[name]
    module, place = load(name)
    found = simulate(module, place)
    tokens = ROWS * LENGTH / parse_topology(topology).chips
    assert found.flops == 7 * LAYERS * 2 * tokens * width * INNER
    assert found.unknown == []
    assert sum(found.by_kind.values()) == pytest.approx(found.seconds, rel=1e-6)


def by_kind(name: str) -> dict[tuple[str, str], float]:
    return {(c.kind, c.axis): c.bytes for c in simulate(*load(name)).collectives}


def test_real_transfers_are_those_of_the_program():
    weights = 2 * 1024 * INNER  # bytes of one in bfloat16
    replicas = by_kind("v5e_replicas")
    # Both weights, forward and backward, of every layer; then their gradients.
    assert replicas["all-gather", "fsdp"] == LAYERS * 4 * weights
    assert replicas["reduce-scatter", "fsdp"] == pytest.approx(LAYERS * 2 * weights, rel=0.03)
    # What is left of them is summed over the replicas.
    assert replicas["all-reduce", "data"] == LAYERS * 2 * weights / 4
    sparse = by_kind("v5p_sparse")
    assert sparse["all-gather", "fsdp"] == LAYERS * 4 * 2 * weights
    assert sparse["reduce-scatter", "fsdp"] == LAYERS * 2 * 2 * weights
    # A window's products hand the weights round, none is gathered whole.
    windowed = by_kind("v5e_windowed")
    assert windowed["collective-permute", "fsdp"] > 10 * weights


def test_between_slices_go_the_gradients_alone():
    found = by_kind("v5e_slices")
    gradients = LAYERS * 2 * 2 * 1024 * INNER / 16
    assert found["all-reduce", "slices"] == pytest.approx(gradients, rel=0.01)


def test_asynchronous_gathers_overlap_on_sparse_cores():
    gathered = {c.kind: c for c in simulate(*load("v5p_sparse")).collectives}["all-gather"]
    assert 0 < gathered.overlapped_bytes < gathered.bytes


def test_the_compilers_estimates_are_used_where_there_are_any():
    module, place = load("v5e_windowed")
    plain = simulate(module, place)
    estimated = simulate(module, place, use_estimates=True)
    assert plain.estimated_share == 0.0
    assert estimated.estimated_share > 0.9
    assert estimated.seconds > plain.seconds
    slower = simulate(module, place, efficiency=0.475)
    assert slower.by_kind["matrix"] == pytest.approx(2 * plain.by_kind["matrix"], rel=0.05)
