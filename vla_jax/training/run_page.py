"""`run.html`: a run at a glance, rewritten while it trains."""

from __future__ import annotations

import collections
import datetime
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal

from vla_jax.data.mixture import Mixture
from vla_jax.page.document import write_page
from vla_jax.page.markup import Markup, paragraph, percent, section, table
from vla_jax.page.plots import Line, curve_color, line_plot
from vla_jax.training.curves import Curve
from vla_jax.training.goodput import PRODUCTIVE
from vla_jax.training.metrics import Event
from vla_jax.training.progress import duration, rate
from vla_jax.training.window import realised_share

RunState = Literal["running", "done", "stopped", "preempted", "failed"]

_STYLE = Path(__file__).parent / "run_page.css"
_REFRESH_S, _SILENT_S = 30, 30 * 60
_EVENTS = 200
_NAVIGATION = (
    ("learning", "Learning"),
    ("validation", "Validation"),
    ("mixture", "Mixture"),
    ("optimizer", "Optimizer"),
    ("speed", "Speed"),
    ("time", "Time"),
    ("events", "Events"),
)
# Says so when the page is no longer written, as after a kill.
_SILENCE = """<script>
const seconds = Math.round(Date.now() / 1000 - %d);
if (seconds > %d) document.getElementById("silence").textContent =
  "No news for " + (seconds < 7200 ? Math.round(seconds / 60) + " minutes" :
  Math.round(seconds / 3600) + " hours") + ": the run may have been killed.";
</script>"""


class RunPage:
    """Keeps what the page shows, in bounded memory, and writes it.

    Args:
      out: the file.
      title: of the run.
      facts: name -> what the page's head says of the run.
      mixture: whose sources the metrics are of.
    """

    def __init__(self, out: Path, title: str, facts: Mapping[str, str], mixture: Mixture):
        self._out, self._title, self._facts, self._mixture = out, title, dict(facts), mixture
        self._curves = collections.defaultdict[str, Curve](Curve)
        self._last: dict[str, float] = {}
        self._events = collections.deque[Event](maxlen=_EVENTS)
        self._saved: Event | None = None

    def add(self, record: Mapping[str, float]) -> None:
        """A record of `metrics.jsonl`."""
        self._last.update(record)
        for key, value in record.items():
            self._curves[key].add(record["step"], value)

    def add_event(self, event: Event) -> None:
        if event.kind == "checkpoint":  # the newest will do: the others would crowd out the rest
            self._saved = event
        else:
            self._events.append(event)

    def write(
        self,
        *,
        state: RunState,
        step: int,
        steps: int,
        eta_s: float | None,
        seconds: Mapping[str, float],
        now: float,
    ) -> None:
        """Writes the page, whole or not at all.

        Args:
          step, steps: updates finished, and in all.
          eta_s: seconds still to go; None if not known.
          seconds: reason -> wall time, see `goodput`.
          now: seconds since the epoch.
        """
        head = f"<style>{_STYLE.read_text()}</style>"
        script = ""
        if state == "running":
            head += f'<meta http-equiv="refresh" content="{_REFRESH_S}">'
            script = _SILENCE % (now, _SILENT_S)
        body = [
            self._header(state, step, steps, eta_s, seconds, now),
            self._learning(),
            self._validation(),
            self._shares(),
            self._optimizer(),
            self._speed(),
            _time(seconds),
            self._event_table(),
            script,
        ]
        write_page(self._out, f"{step}/{steps} {self._title}", _NAVIGATION, body, head=head)

    def _header(
        self,
        state: RunState,
        step: int,
        steps: int,
        eta_s: float | None,
        seconds: Mapping[str, float],
        now: float,
    ) -> Markup:
        last, total = self._last, sum(seconds.values())
        tiles = [("update", f"{step:,}", f"of {steps:,}, {step / max(1, steps):.0%}")]
        if state == "running" and eta_s is not None:
            tiles.append(("to go", duration(eta_s), f"done about {_when(now + eta_s)}"))
        if "loss" in last:
            tiles.append(("loss", f"{last['loss']:.3f}", "mean since the last line"))
        if "speed/samples_per_s" in last:
            tokens = last.get("speed/tokens_per_s")
            detail = "" if tokens is None else f"{rate(tokens)} tokens/s"
            tiles.append(("samples/s", rate(last["speed/samples_per_s"]), detail))
            tiles.append(_compute_tile(last))
            tiles.append(("input wait", percent(last["speed/input_wait_share"], 1), "of the time"))
        goodput = seconds.get(PRODUCTIVE, 0.0) / max(total, 1e-9)
        tiles.append(("goodput", percent(goodput, 1), f"of {duration(total)} since the start"))
        shown = "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span>'
            f"<small>{escape(detail)}</small></div>"
            for name, value, detail in tiles
            if value
        )
        facts = dict(self._facts)
        if self._saved is not None:
            when = _when(self._saved.time, with_day=True)
            facts["Newest checkpoint"] = f"update {self._saved.step:,}, {when}"
        facts["Written"] = _when(now, with_day=True)
        listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
        return Markup(
            f'<header><h1>{escape(self._title)}<span class="badge {state}">{state}</span></h1>'
            f'<p id="silence" class="bad"></p><div class="tiles">{shown}</div>'
            f'<dl class="facts">{listed}</dl></header>'
        )

    def _plot(
        self,
        y_label: str,
        curves: Sequence[tuple[str, str]],
        *,
        y_range: tuple[float, float] | None = None,
        from_zero: bool = False,
        scale: float = 1.0,
    ) -> str:
        """Of (label, key); see `Line` for an empty label. Keys without values are left out."""
        lines = []
        for label, key in curves:
            if key in self._curves:
                x, y = self._curves[key].points()
                lines.append(Line(label, x, [scale * value for value in y]))
        return line_plot(
            lines, x_label="update", y_label=y_label, y_range=y_range, from_zero=from_zero
        )

    def _by_source(self, key: str) -> list[tuple[str, str]]:
        return [(name, f"{name}/{key}") for name in self._mixture.names]

    def _learning(self) -> Markup:
        return _plots(
            "learning",
            "Learning",
            self._plot("loss, as minimised", [("", "loss")], from_zero=True),
            self._plot("loss, nats a token", self._by_source("loss"), from_zero=True),
            self._plot("tokens right", self._by_source("token_accuracy"), y_range=(0.0, 1.0)),
        )

    def _validation(self) -> Markup:
        """What evaluations while it trains found; see `vla_jax.in_training`."""

        def ends(*parts: str) -> list[tuple[str, str]]:
            """(label, key) of the curves whose name ends so; the label is what comes before."""
            found = []
            for end in parts:
                keys = [k for k in self._curves if k.startswith("val/") and k.endswith(end)]
                found += [(k.removeprefix("val/").removesuffix(end), k) for k in keys]
            return found

        def errors(unit: str, kind: str, scale: float) -> str:
            keys = [k for k in self._curves if k.startswith("val/") and f"/error/{kind}_" in k]
            curves = [(k.removeprefix("val/actions_").replace("/error", ""), k) for k in keys]
            return self._plot(f"action error, {unit}", curves, from_zero=True, scale=scale)

        share = (0.0, 1.0)
        return _plots(
            "validation",
            "Validation",
            self._plot("loss, nats a token", ends("/loss"), from_zero=True),
            self._plot("tokens right", ends("/token_accuracy"), y_range=share),
            errors("mm", "position", 1000.0),
            errors("rad", "rotation", 1.0),
            self._plot("gripper right", ends("/accuracy/gripper_closedness"), y_range=share),
            self._plot("answers right", ends("/vqa_accuracy", "/exact_match"), y_range=share),
            self._plot("CIDEr-D", ends("/cider_d"), from_zero=True),
            self._plot("episodes won", ends("/policy/success"), y_range=share),
            note="On held-out data; loss and tokens with the true tokens before each.",
        )

    def _shares(self) -> Markup:
        plots = []
        for key, label in (("share_of_samples", "samples"), ("share_of_tokens", "loss tokens")):
            curves = self._by_source(key)
            if key == realised_share(self._mixture):
                asked = self._by_source("share_configured")
                curves = [c for real, (_, key) in zip(curves, asked) for c in (real, ("", key))]
            plots.append(self._plot(f"share of {label}", curves, from_zero=True))
        note = "Realised since the weights last changed; broken lines: configured."
        return _plots("mixture", "Mixture", *plots, note=note)

    def _optimizer(self) -> Markup:
        return _plots(
            "optimizer",
            "Optimizer",
            self._plot("learning rate", [("", "learning_rate")], from_zero=True),
            self._plot("gradient norm", [("", "grad_norm")], from_zero=True),
            self._plot("gradient norm by source", self._by_source("grad_norm"), from_zero=True),
        )

    def _speed(self) -> Markup:
        if "speed/mfu" in self._curves:
            compute = self._plot("MFU", [("", "speed/mfu")], from_zero=True)
        else:
            flops = [("", "speed/model_flops_per_s")]
            compute = self._plot("model GFLOP/s", flops, from_zero=True, scale=1e-9)
        memory = [("peak", "memory/peak_gib"), ("there is", "memory/limit_gib")]
        return _plots(
            "speed",
            "Speed",
            self._plot("samples/s", [("", "speed/samples_per_s")], from_zero=True),
            compute,
            self._plot("input wait", [("", "speed/input_wait_share")], from_zero=True),
            self._plot("memory of a device, GiB", memory, from_zero=True),
        )

    def _event_table(self) -> Markup:
        rows = [
            [_when(event.time, with_day=True), event.kind, event.text, f"{event.step:,}"]
            for event in reversed(self._events)
        ]
        return section("events", "Events", table(["time", "event", "", "update"], rows, left=3))


def _compute_tile(last: Mapping[str, float]) -> tuple[str, str, str]:
    flops = last.get("speed/model_flops_per_s")
    if flops is None:
        return ("model FLOP/s", "", "")
    if "speed/mfu" in last:
        return ("MFU", percent(last["speed/mfu"], 1), f"{flops / 1e12:,.0f} TFLOP/s")
    return ("model GFLOP/s", f"{flops / 1e9:,.0f}", "the device's peak is not known")


def _plots(anchor: str, title: str, *plots: str, note: str = "") -> Markup:
    inside = "".join(f"<div>{plot}</div>" for plot in plots if plot)
    if not inside:
        return section(anchor, title, paragraph("Nothing logged yet."))
    parts = [f'<div class="plots">{inside}</div>', *([paragraph(note)] if note else [])]
    return section(anchor, title, *parts)


def _time(seconds: Mapping[str, float]) -> Markup:
    """The bar of reasons, updates that count first and the others by size."""
    total = max(sum(seconds.values()), 1e-9)
    others = sorted((r for r in seconds if r != PRODUCTIVE), key=lambda r: -seconds[r])
    parts, rows = [], []
    for number, reason in enumerate([PRODUCTIVE, *others]):
        spent = seconds.get(reason, 0.0)
        # More reasons than colours: the small ones share the bar's own.
        color = curve_color(number) if number < 6 else "var(--bar)"
        name = "updates that count" if reason == PRODUCTIVE else reason.replace("/", ": ")
        parts.append(
            f'<span style="width:{100 * spent / total:.3f}%;background:{color}" '
            f'title="{escape(name, quote=True)} {percent(spent / total, 1)}"></span>'
        )
        dot = Markup(f'<span class="dot" style="background:{color}"></span>{escape(name)}')
        rows.append([dot, duration(spent), percent(spent / total, 1)])
    return section(
        "time",
        "Where the time went",
        f'<div class="bar">{"".join(parts)}</div>',
        table(["", "time", "share"], rows),
    )


def _when(seconds: float, with_day: bool = False) -> str:
    local = datetime.datetime.fromtimestamp(seconds).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S %Z" if with_day else "%a %H:%M")
