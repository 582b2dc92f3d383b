"""Shows a batch exactly as it reaches the accelerator: pictures, tokens, masks, actions in units.

    python tools/inspect_batch.py --config=configs/demo_cotrain.py --step=10 --out=out/batch

Prints each example, and with --out writes `batch.html`, one page without anything outside it. Any
config key can be overridden: `--config.data.examples_per_row=4 --config.data.row_tokens=96`. Needs
neither the run's devices nor its parameters. Pictures are shown before `train.augment`.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from vla_jax import config as config_lib
from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.build_data import build_data
from vla_jax.config import Config
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import robot_of
from vla_jax.types import Batch

KINDS = {
    "prompt": "prompt: seen both ways",
    "causal": "answer, not in the loss",
    "loss": "answer, in the loss",
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em;
  color: #1c1c1e; background: #fff; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; border-top: 1px solid #d0d0d5; padding-top: 1em; }
.row { display: flex; flex-wrap: wrap; gap: .5em; }
.row img { width: 168px; image-rendering: pixelated; border-bottom: 5px solid; }
.about, .pad { color: #5c5c66; } .warn { color: #a3300f; font-weight: 600; }
.tokens { font: 13px/2 ui-monospace, monospace; margin: .3em 0 .6em; overflow-wrap: anywhere; }
.tokens span { padding: 2px 3px; margin-right: 2px; border-radius: 3px; border-bottom: 3px solid;
  white-space: pre-wrap; }
.prompt { background: #dfeafc; } .causal { background: #ececf0; } .loss { background: #ffe2b8; }
.tokens .pad { border: 0; }
table { border-collapse: collapse; font-size: 13px; margin-bottom: .6em; }
td, th { padding: 1px 10px 1px 0; text-align: right; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: #5c5c66; }
td.padded { color: #9a9aa3; text-decoration: line-through; }
"""
_SEGMENTS = ("#2f6fd0", "#b8460e", "#23845b", "#8a4fbf", "#8d7300", "#b3306b", "#2b8a99", "#6b6b73")


@dataclasses.dataclass(frozen=True)
class Token:
    """One position: its id, its piece, and its kind, a key of `KINDS`."""

    position: int
    id: int
    piece: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example of a row, made readable.

    Attributes:
      segment: its number in the row, from 1.
      left_out: it did not fit: no tokens.
      action: float32 [C, A], what its action tokens stand for; None for a text.
      trained: bool [C, A] or None: numbers of the action whose tokens are in the loss, where each
        number has one.
    """

    segment: int
    source: str
    sample: int
    truncated: bool
    left_out: bool
    tokens: list[Token]
    prompt: str
    answer: str
    state: np.ndarray | None
    spec: ActionSpec | None
    action: np.ndarray | None
    trained: np.ndarray | None

    @property
    def about(self) -> str:
        said = sum(token.kind != "prompt" for token in self.tokens)
        trained = sum(token.kind == "loss" for token in self.tokens)
        return (
            f"segment {self.segment}, source {self.source}, sample {self.sample}: "
            f"{len(self.tokens)} tokens, {said} of them answer, {trained} in the loss"
        )


def examples(
    batch: Batch, row: int, builder: SequenceBuilder, sources: list[tuple[str, str]]
) -> Iterator[Shown]:
    """What is in a row.

    Args:
      sources: name of each, and of its ActionSpec, or "".
    """

    def each(column: str, default: int | np.ndarray = 0) -> np.ndarray:
        return np.atleast_1d(np.asarray(batch.get(column, default))[row])

    source = each("source")
    nowhere = np.zeros((len(batch["tokens"]), len(source)), bool)
    segments = batch["segment"][row] if "segment" in batch else batch["valid"][row].astype(int)
    states = np.asarray(batch["state"])[row].reshape(len(source), -1) if "state" in batch else None
    for n, number in enumerate(source.tolist()):
        places = np.flatnonzero((segments == n + 1) & batch["valid"][row])
        ids = batch["tokens"][row, places]
        causal, in_loss = batch["attend_causal"][row, places], batch["in_loss"][row, places]
        kinds = np.where(in_loss, "loss", np.where(causal, "causal", "prompt")).tolist()
        name, robot = sources[number]
        spec = action = trained = None
        if robot and len(ids):
            tokenizer = builder.action_tokenizers[robot]
            begin = _action_begins(ids, causal, builder.plan_end)
            spec, action = tokenizer.spec, tokenizer.decode(ids[begin:-1])
            trained = _trained(in_loss[begin:-1], action, tokenizer)
        has_state = states is not None and each("state_valid")[n]
        yield Shown(
            segment=n + 1,
            source=name,
            sample=int(each("sample", nowhere)[n]),
            truncated=bool(each("truncated", nowhere)[n]),
            left_out=bool(each("left_out", nowhere)[n]),
            tokens=[
                Token(p, int(i), builder.vocabulary.piece(i), kind)
                for p, i, kind in zip(places.tolist(), ids.tolist(), kinds)
            ],
            prompt=builder.vocabulary.decode(ids[~causal]),
            answer=builder.vocabulary.decode(ids[causal]),
            state=states[n] if has_state and states is not None else None,
            spec=spec,
            action=action,
            trained=trained,
        )


def _action_begins(ids: np.ndarray, causal: np.ndarray, plan_end: np.ndarray) -> int:
    """Where the action's tokens begin: with the answer, or after the end of its plan."""
    first = int(np.argmax(causal))
    for at in range(first, len(ids) - len(plan_end)):
        if np.array_equal(ids[at : at + len(plan_end)], plan_end):
            return at + len(plan_end)
    return first


def _trained(
    in_loss: np.ndarray, action: np.ndarray, tokenizer: ActionTokenizer
) -> np.ndarray | None:
    """bool [C, A] of tokenizers with a token for each number, else None."""
    bins = tokenizer.kind in ("uniform", "quantile")
    return in_loss.reshape(action.shape) if bins else None


def as_text(shown: Shown) -> str:
    """A few lines for the terminal; what a terminal would obey is written out."""
    lines = [shown.about]
    if shown.left_out:
        return f"{lines[0]}\n  LEFT OUT: it does not fit into its row"
    lines.append(f"  prompt  {shown.prompt!r}")
    cut = "  CUT: longer than data.max_answer_tokens" if shown.truncated else ""
    lines.append(f"  answer  {shown.answer!r}{cut}")
    if shown.state is not None:
        lines.append(f"  state   {np.round(shown.state, 3).tolist()} (scaled to -1 .. 1)")
    if shown.action is not None and shown.spec is not None:
        for c, step in enumerate(shown.action):
            numbers = (
                f"{d.name} {value:.4g} {d.unit}{_mark(shown.trained, c, a)}"
                for a, (d, value) in enumerate(zip(shown.spec.dimensions, step.tolist()))
            )
            lines.append(f"  action  {', '.join(numbers)}")
    return "\n".join(lines)


def _mark(trained: np.ndarray | None, step: int, dimension: int) -> str:
    return "" if trained is None or trained[step, dimension] else " (padded)"


def as_html(batch: Batch, row: int, shown: list[Shown]) -> str:
    """A row of the batch: its pictures, and its examples' tokens."""
    images = np.asarray(batch["images"][row])
    of = batch["image_segment"][row] if "image_segment" in batch else np.ones(len(images), int)
    pictures = "".join(
        f'<img style="border-color: {_color(int(n))}" alt="image of segment {int(n)}" '
        f'title="segment {int(n)}" src="data:image/png;base64,{_png(image)}">'
        for image, n in zip(images, of)
    )
    unused = int((~batch["valid"][row]).sum())
    return (
        f'<h2>row {row}</h2><div class="row">{pictures}</div>'
        + "".join(map(_example_html, shown))
        + f'<p class="pad">{unused} of {batch["tokens"].shape[1]} positions are padding</p>'
    )


def _example_html(shown: Shown) -> str:
    parts = [f'<div class="about">{escape(shown.about)}</div>']
    if shown.left_out:
        parts.append('<div class="warn">left out: it does not fit into its row</div>')
    if shown.truncated:
        parts.append('<div class="warn">cut: longer than data.max_answer_tokens</div>')
    spans = (
        f'<span class="{t.kind}" style="border-color: {_color(shown.segment)}" '
        f'title="position {t.position}, id {t.id}: {KINDS[t.kind]}">{escape(t.piece)}</span>'
        for t in shown.tokens
    )
    parts.append(f'<div class="tokens">{"".join(spans)}</div>')
    if shown.state is not None:
        state = escape(str(np.round(shown.state, 3).tolist()))
        parts.append(f'<div class="about">state, scaled to -1 .. 1: {state}</div>')
    if shown.action is not None and shown.spec is not None:
        parts.append(_action_html(shown.spec, shown.action, shown.trained))
    return "".join(parts)


def _action_html(spec: ActionSpec, action: np.ndarray, trained: np.ndarray | None) -> str:
    head = "".join(f"<th>{escape(d.name)} [{escape(d.unit)}]</th>" for d in spec.dimensions)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=padded' if _mark(trained, c, a) else ''}>{value:.4g}</td>"
            for a, value in enumerate(step.tolist())
        )
        + "</tr>"
        for c, step in enumerate(action)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _color(segment: int) -> str:
    return _SEGMENTS[(segment - 1) % len(_SEGMENTS)]


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def page(title: str, rows: list[str]) -> str:
    """The whole page."""
    legend = "".join(
        f'<span class="{kind}" style="border-color: transparent">{escape(what)}</span>'
        for kind, what in KINDS.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f'<div class="tokens">{legend} <span class="about" style="border-color: transparent">'
        "the line below says which example of its row</span></div>"
        f"{''.join(rows)}</html>\n"
    )


def inspect(config: Config, step: int, rows: int, out: Path | None, title: str) -> None:
    """Prints the first rows of a step's batch and, if `out` is given, writes `batch.html` there."""
    data = build_data(config)
    loader = data.loader(step)
    try:
        batch = next(loader)
    finally:
        loader.close()
    robots = [(name, robot_of(source)) for name, source in data.sources.items()]
    parts = []
    for row in range(min(rows, len(batch["tokens"]))):
        shown = list(examples(batch, row, data.builder, robots))
        print(f"row {row}: " + "\n  ".join("\n".join(map(as_text, shown)).split("\n")))
        parts.append(as_html(batch, row, shown))
    patches = batch["images"].shape[1] * config.model.num_patches
    unused = 1 - batch["valid"].mean()
    print(
        f"{len(batch['tokens'])} rows of {patches} image tokens and {batch['tokens'].shape[1]} "
        f"text tokens, {unused:.0%} of which are padding"
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "batch.html").write_text(page(title, parts))
        print(f"wrote {out / 'batch.html'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="as for vla_jax.train")
    parser.add_argument("--step", type=int, default=0, help="whose batch")
    parser.add_argument("--rows", type=int, default=32, help="most rows to show")
    parser.add_argument("--out", type=Path, help="directory for batch.html")
    try:
        rest, overrides = config_lib.split_overrides(sys.argv[1:])
        args = parser.parse_args(rest)
        if args.step < 0 or args.rows < 1:
            raise ValueError(
                f"--step {args.step} must be at least 0, and --rows {args.rows} at least 1"
            )
        config = config_lib.parse(config_lib.load_config(args.config, overrides))
        inspect(config, args.step, args.rows, args.out, f"{args.config}, step {args.step}")
    except (ValueError, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
