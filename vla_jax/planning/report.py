"""A plan in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vla_jax.planning.compile import DoesNotFit
from vla_jax.planning.estimate import Plan

_GIB = 2**30


def report(plan: Plan, title: str) -> str:
    """All of a plan, in lines of text."""
    chip = plan.topology.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{title} on {plan.topology.name}: {plan.topology.chips} chips, mesh {mesh}",
        f"Compiled by the TPU compiler in {plan.compile_seconds:.0f} s, for chips that are not "
        "here. Memory and FLOPs are the compiler's; every time is predicted, not measured.",
        "",
        f"Memory of each chip: {plan.hbm_gib:.2f} GiB of {chip.hbm_gib:.2f} GiB",
        *table(
            [(name, f"{gib:.2f} GiB") for name, gib in plan.hbm.items()],
        ),
        "  largest buffers",
        *table(
            [(f"{b.bytes / _GIB:.2f} GiB", _short(b.arrays, 90)) for b in plan.buffers[:6]], "    "
        ),
        "",
        *_time(plan),
        "",
        *_collectives(plan),
        "",
        *_host(plan),
    ]
    if plan.compiler_options:
        options = " ".join(f"--{k}={v}" for k, v in plan.compiler_options.items())
        lines += ["", f"With these flags; to run with them: LIBTPU_INIT_ARGS='{options}'"]
    return "\n".join(lines)


def _time(plan: Plan) -> list[str]:
    step, (least, most) = plan.soonest, plan.seconds
    source = (
        "the compiler's estimates of cycles"
        if plan.estimated
        else f"matrix products at {plan.topology.chip.low_efficiency:.0%} of the peak"
    )
    flops = f"FLOPs of each chip: {step.flops / 1e12:.1f} T"
    if plan.model_flops is not None:
        devices = plan.topology.chips * plan.topology.chip.devices_per_chip
        own = plan.model_flops / devices
        flops += f", of them the model's {own / 1e12:.1f} T; recomputation does not count in MFU"
    rows = [
        ("step", _interval(least, most, "{:.3f}") + " s"),
        ("samples/s", _interval(plan.rows / most, plan.rows / least, "{:,.0f}")),
        ("tokens/s", _interval(plan.tokens / most, plan.tokens / least, "{:,.0f}")),
    ]
    if plan.mfu is not None:
        rows.insert(0, ("MFU", _interval(100 * plan.mfu[0], 100 * plan.mfu[1], "{:.1f}") + "%"))
    if plan.steps is not None:
        low, high = (plan.steps * s / 86_400 for s in (least, most))
        rows.append((f"{plan.steps:,} steps", _interval(low, high, "{:.1f}") + " days"))
        chips = 24 * plan.topology.chips
        rows.append(("", _interval(low * chips, high * chips, "{:,.0f}") + " chip-hours"))
    kinds = sorted(step.by_kind.items(), key=lambda kind: -kind[1])
    spent = ", ".join(f"{name} {seconds / step.seconds:.0%}" for name, seconds in kinds if seconds)
    return [
        flops,
        f"Predicted (soonest: matrix products at 95% of the peak; latest: {source})",
        *table(rows),
        f"  the step is {spent}",
        *(f"  not known, left out: {what}" for what in step.unknown),
    ]


def _collectives(plan: Plan) -> list[str]:
    rows = [("kind", "axis", "times", "GiB", "seconds", "waited for", "overlapped")]
    for c in plan.soonest.collectives:
        overlap = c.overlapped_bytes / c.bytes if c.bytes else 0.0
        rows.append(
            (
                c.kind,
                c.axis,
                f"{c.count:.0f}",
                f"{c.bytes / _GIB:.3f}",
                f"{c.seconds:.4f}",
                f"{c.stall_seconds:.4f}",
                f"{overlap:.0%}",
            )
        )
    if len(rows) == 1:
        return ["No transfers between chips"]
    return ["Transfers between chips, of each chip and step", *table(rows)]


def _host(plan: Plan) -> list[str]:
    host = plan.host
    verdict = "" if host.total <= host.available else "  TOO MUCH"
    return [
        f"Memory of each of {plan.topology.hosts} hosts: {host.total:.0f} GiB of "
        f"{host.available:.0f} GiB: data {host.data:.0f} (data.host_memory_gib), a checkpoint on "
        f"its way {host.checkpoint:.0f}, program about {host.program:.0f}{verdict}"
    ]


def refusal(found: DoesNotFit, title: str, budget: str) -> str:
    """What does not fit."""
    given = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in found.argument_bytes.items())
    return (
        f"{title} does not fit: its temporaries need {found.needed_gib:.2f} GiB of each chip, and "
        f"there are {found.budget_gib:.2f} ({budget}). What it is given, in GiB: {given}"
    )


def _interval(low: float, high: float, form: str) -> str:
    low, high = min(low, high), max(low, high)
    return f"{form.format(low)} .. {form.format(high)}"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 4] + " ..."


def table(rows: Iterable[Sequence[str]], indent: str = "  ") -> list[str]:
    """Columns padded to their widest cell."""
    rows = [list(row) for row in rows]
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip()
        for row in rows
    ]
