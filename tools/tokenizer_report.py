"""Compares action tokenizers on the actions of a robot data set, before anything is trained.

    python tools/tokenizer_report.py --data demo_out/data/robot --chunk 8 --out out/tokenizers

Uniform bins, equal-mass bins, digits and FAST side by side: round-trip error per dimension in its
unit, tokens per chunk, how many ids are used, entropy. What is fitted (equal-mass bins, FAST) is
fitted on four fifths of the episodes; all are measured on the rest. Writes report.json,
report.png and the fitted tokenizers, quantile.json and fast.json: train with one of them by
`--config.data.actions.tokenizer=.../fast.json --config.data.actions.chunk=8`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from vla_jax.actions import stored
from vla_jax.actions.digits import DigitTokenizer
from vla_jax.actions.fast import FastTokenizer, chunks_of
from vla_jax.actions.quantile import QuantileTokenizer
from vla_jax.actions.report import measure
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.sources.episodes import EpisodeSource

_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")


def read_actions(source: EpisodeSource, most: int) -> list[np.ndarray]:
    """Actions [steps, A] of up to `most` episodes, with progress."""
    episodes, shown = [], time.monotonic()
    for number in range(min(most, source.num_episodes)):
        episodes.append(source.track(number).actions)
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            print(f"{len(episodes)} episodes, {sum(map(len, episodes))} steps", flush=True)
    return episodes


def plot(results: dict[str, dict], path: Path) -> None:
    """Error per dimension as a share of the first tokenizer's, and tokens against entropy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(2.2, 1))
    names = [d["name"] for d in next(iter(results.values()))["dimensions"]]
    width = 0.8 / len(results)
    for i, (name, result) in enumerate(results.items()):
        errors = [max(d["mean_error"], 1e-7) for d in result["dimensions"]]
        left.bar(np.arange(len(names)) + i * width, errors, width, label=name, color=_COLORS[i])
        right.scatter(
            result["tokens"]["mean"], result["bits_per_chunk"], s=60, color=_COLORS[i], label=name
        )
    left.set_yscale("log")
    left.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=25, ha="right")
    left.set_ylabel("mean round-trip error (m, rad, 0..1)")
    left.legend(frameon=False, ncols=2, fontsize=8)
    right.set_xlabel("tokens per chunk")
    right.set_ylabel("bits per chunk")
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(results: dict[str, dict], chunk: int) -> str:
    """The figures as text."""
    lines = [
        f"{'':10}{'tokens':>8}{'(most)':>8}{'bits':>8}{'ids used':>12}  (chunk of {chunk})",
    ]
    for name, r in results.items():
        ids = f"{r['ids_used']}/{r['ids_total']}"
        lines.append(
            f"{name:10}{r['tokens']['mean']:8.1f}{r['tokens']['most']:8}"
            f"{r['bits_per_chunk']:8.1f}{ids:>12}"
        )
    lines.append("\nround-trip error, mean / largest, in the dimension's unit")
    first = next(iter(results.values()))
    lines.append(f"{'':22}" + "".join(f"{name:>20}" for name in results))
    for a, dim in enumerate(first["dimensions"]):
        cells = [r["dimensions"][a] for r in results.values()]
        shown = "".join(f"{c['mean_error']:>10.5f}/{c['max_error']:<9.5f}" for c in cells)
        lines.append(f"{dim['name'] + ' (' + dim['unit'] + ')':22}" + shown)
    clipped = {d["name"]: d["clipped"] for d in first["dimensions"] if d["clipped"]}
    if clipped:
        lines.append(f"outside the bounds, and clipped: {clipped}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="RLDS data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--chunk", type=int, default=8, help="actions that are tokenized together")
    parser.add_argument("--episodes", type=int, default=500, help="read at most so many")
    parser.add_argument("--vocabulary", type=int, default=1024, help="of FAST")
    parser.add_argument("--scale", type=float, default=10.0, help="of FAST")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    source = EpisodeSource("robot", args.data, args.split)
    spec = source.action_spec
    episodes = [e for e in read_actions(source, args.episodes) if len(e) >= args.chunk]
    if len(episodes) < 5:
        sys.exit(f"{args.data}: only {len(episodes)} episodes of {args.chunk} steps or more")
    fitted = [e for i, e in enumerate(episodes) if i % 5]
    held_out = [c for e in episodes[::5] for c in list(chunks_of(e, args.chunk))[:: args.chunk]]
    ids = np.arange(args.vocabulary)
    chunks = (c for e in fitted for c in chunks_of(e, args.chunk))
    tokenizers = {
        "uniform": UniformTokenizer(spec, ids[:256], args.chunk),
        "quantile": QuantileTokenizer.fit(spec, fitted, token_ids=ids[:256], chunk=args.chunk),
        "digits": DigitTokenizer(spec, ids[:10], 10, args.chunk),
        "fast": FastTokenizer.fit(
            spec, chunks, token_ids=ids, vocabulary=args.vocabulary, scale=args.scale
        ),
    }
    results = {name: measure(tokenizer, held_out) for name, tokenizer in tokenizers.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("quantile", "fast"):
        stored.save(tokenizers[name], args.out / f"{name}.json")
    (args.out / "report.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(results, args.out / "report.png")
    print(table(results, args.chunk))
    print(f"\n{args.out / 'report.json'}, report.png, quantile.json, fast.json")


if __name__ == "__main__":
    main()
