"""Finds the tokens that a mixture uses least, to stand for actions as in RT-2-PaLM-E.

    python tools/least_used_tokens.py --config=configs/demo_cotrain.py --out=out/token_ids.json

Reads prompts and answers of the config's data sets, each as often as its weight says, and counts
their tokens. Then train with `--config.data.actions.token_ids=out/token_ids.json`. Overrides
like `--config.data.vocabulary=...` are those of training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np

from vla_jax import config as config_lib
from vla_jax.build_data import make_mixture, make_vocabulary, open_sources
from vla_jax.text.least_used import count_tokens, least_used, save_ids
from vla_jax.types import chosen


def texts(config: config_lib.Config, samples: int) -> Iterator[str]:
    """Prompts and answers of the first `samples` samples of the mixture, with progress."""
    sources = open_sources(config.data)
    mixture = make_mixture(config.data, sources)
    which, records = mixture.locate(np.arange(samples))
    draws = mixture.draws(np.arange(samples)).tolist()
    ordered, begun, shown = list(sources.values()), time.monotonic(), 0.0
    for i, (k, record) in enumerate(zip(which.tolist(), records.tolist())):
        prompt, answer = chosen(ordered[k].read(record), draws[i])
        yield prompt
        if answer is not None:
            yield answer
        now = time.monotonic()
        if now - shown > 5:
            shown, rate = now, (i + 1) / (now - begun + 1e-9)
            left = (samples - i) / rate
            print(f"{i + 1}/{samples} samples, {rate:.0f}/s, ETA {left:.0f} s", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--number", type=int, default=256, help="ids; FAST may need 1024")
    parser.add_argument("--out", required=True)
    try:
        rest, overrides = config_lib.split_overrides(sys.argv[1:])
        args = parser.parse_args(rest)
        config = config_lib.parse(config_lib.load_config(args.config, overrides))
        vocabulary = make_vocabulary(config)
        counts = count_tokens(vocabulary, texts(config, args.samples))
        ids = least_used(vocabulary, counts, args.number)
        save_ids(args.out, vocabulary, ids, counts)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    share = counts[ids].sum() / max(1, counts.sum())
    examples = ", ".join(repr(vocabulary.piece(i)) for i in ids[:: max(1, len(ids) // 8)])
    print(f"{counts.sum()} tokens counted; {args.number} ids hold {share:.3%} of them: {examples}")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
