"""The line that is printed of a run, and the one about its start."""

from __future__ import annotations

from collections.abc import Mapping

from vla_jax.data.mixture import Mixture
from vla_jax.training.window import realised_share

COLUMNS = 160
# Ends of names of what an evaluation finds.
_HEADLINES = ("/loss", "/success", "/vqa_accuracy", "/cider_d", "/token_accuracy", "/exact_match")


def progress_line(
    step: int,
    steps: int,
    scalars: Mapping[str, float],
    mixture: Mixture,
    eta_s: float | None = None,
) -> str:
    """One line of at most `COLUMNS` letters, of what `Window.scalars` has.

    Of each source: its loss, the share of its tokens that are predicted right, and its realised
    and configured share, of samples or of loss tokens, as its weights are. Sources that do not fit
    are counted.

    Args:
      mixture: whose sources they are.
      eta_s: seconds still to go; None if not known.
    """
    head = f"step {step}/{steps}  loss {scalars['loss']:.3f}"
    tail = " | " + "  ".join(_speed(scalars, eta_s))
    share = realised_share(mixture)
    parts = [_source(scalars, name, share) for name in mixture.names if f"{name}/loss" in scalars]
    room = COLUMNS - len(head) - len(tail)
    shown = parts
    if sum(len(part) + 2 for part in parts) > room:
        room -= len("  +99 more")
        fit = [n for n in range(len(parts)) if sum(len(p) + 2 for p in parts[:n]) <= room]
        shown = [*parts[: fit[-1]], f"+{len(parts) - fit[-1]} more"]
    return "  ".join([head, *shown]) + tail


def evaluation_line(step: int, scalars: Mapping[str, float]) -> str:
    """One line of at most `COLUMNS` letters: `val 200  robot/loss 1.234  web/loss 0.871 ...`.

    What says most comes first; what does not fit is counted.
    """

    def rank(name: str) -> int:
        ends = [n for n, end in enumerate(_HEADLINES) if name.endswith(end)]
        return ends[0] if ends else len(_HEADLINES)

    names, line = sorted(scalars, key=rank), f"val {step}"
    for number, name in enumerate(names):
        part, rest = f"  {name} {scalars[name]:.4g}", len(names) - number
        more = f"  +{rest} more"
        if len(line) + len(part) + (len(more) if rest > 1 else 0) > COLUMNS:
            return line + more
        line += part
    return line


def start_up_line(seconds: Mapping[str, float]) -> str:
    """`start-up 31.2 s: imports 6.1, ...` of the seconds of each stage."""
    stages = ", ".join(f"{stage} {s:.1f}" for stage, s in seconds.items())
    return f"start-up {sum(seconds.values()):.1f} s: {stages}"


def duration(seconds: float) -> str:
    """`42 s`, `12m05s`, `3h12m` or `2d04h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"


def rate(value: float) -> str:
    """A few digits: `12.3`, `4,567`, `33.4k`, `1.2M`."""
    if value < 100:
        return f"{value:.3g}"
    if value < 1e4:
        return f"{value:,.0f}"
    return f"{value / 1e3:.1f}k" if value < 1e6 else f"{value / 1e6:.1f}M"


def _source(scalars: Mapping[str, float], name: str, share: str) -> str:
    realised, configured = (100 * scalars[f"{name}/{key}"] for key in (share, "share_configured"))
    return (
        f"{name} {scalars[f'{name}/loss']:.3f} acc {scalars[f'{name}/token_accuracy']:.2f} "
        f"{realised:.1f}/{configured:.1f}%"
    )


def _speed(scalars: Mapping[str, float], eta_s: float | None) -> list[str]:
    parts = [f"{rate(scalars['speed/samples_per_s'])} samples/s"]
    if "speed/tokens_per_s" in scalars:
        parts.append(f"{rate(scalars['speed/tokens_per_s'])} tok/s")
    if "speed/mfu" in scalars:
        parts.append(f"MFU {scalars['speed/mfu']:.1%}")
    elif "speed/model_flops_per_s" in scalars:
        parts.append(f"{scalars['speed/model_flops_per_s'] / 1e9:,.0f} GFLOP/s")
    parts.append(f"wait {scalars['speed/input_wait_share']:.0%}")
    if "memory/peak_gib" in scalars:
        parts.append(f"mem {scalars['memory/peak_gib']:.1f} GiB")
    if eta_s is not None:
        parts.append(f"ETA {duration(eta_s)}")
    return parts
