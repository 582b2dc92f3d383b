"""A plan as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vla_jax.page.plots import PALETTE
from vla_jax.planning.estimate import Plan

_GIB = 2**30


def save_plot(plan: Plan, title: str, path: Path) -> None:
    """Writes a PNG: memory of each chip, what the step's time is spent on, transfers."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    memory, time, transfers = figure.subplots(1, 3)
    figure.suptitle(f"{title} on {plan.topology.name} (predicted)")
    _stack(memory, plan.hbm, "GiB of each chip")
    memory.axvline(plan.topology.chip.hbm_gib, color="#b03a2e", linestyle="--")
    memory.set_title(f"memory: {plan.hbm_gib:.1f} of {plan.topology.chip.hbm_gib:.1f} GiB")
    _stack(time, plan.soonest.by_kind, "seconds of a step, at the soonest")
    least, most = plan.seconds
    mfu = "" if plan.mfu is None else f", MFU {plan.mfu[0]:.0%} .. {plan.mfu[1]:.0%}"
    time.set_title(f"step: {least:.2f} .. {most:.2f} s{mfu}")
    _transfers(transfers, plan)
    figure.savefig(path, dpi=110)


def _stack(axes: Axes, parts: dict[str, float], label: str) -> None:
    """One bar of parts side by side, the largest first."""
    left = 0.0
    for i, (name, value) in enumerate(sorted(parts.items(), key=lambda part: -part[1])):
        axes.barh([0], [value], left=left, color=PALETTE[i % len(PALETTE)], label=name)
        left += value
    axes.set_yticks([])
    axes.set_ylim(-0.5, 1.6)
    axes.set_xlabel(label)
    axes.legend(loc="upper left", ncols=2, fontsize="small", frameon=False)


def _transfers(axes: Axes, plan: Plan) -> None:
    """GiB of each kind and axis; what overlaps with compute is lighter."""
    found = [c for c in plan.soonest.collectives if c.bytes][:8][::-1]
    names = [f"{c.kind}\n{c.axis}" for c in found]
    hidden = [c.overlapped_bytes / _GIB for c in found]
    exposed = [c.bytes / _GIB - h for c, h in zip(found, hidden)]
    axes.barh(names, exposed, color=PALETTE[1], label="waited for")
    axes.barh(names, hidden, left=exposed, color=PALETTE[0], alpha=0.5, label="beside compute")
    axes.set_xlabel("GiB of each chip and step")
    axes.set_title("transfers between chips")
    axes.tick_params(axis="y", labelsize="small")
    axes.legend(loc="lower right", fontsize="small", frameon=False)
