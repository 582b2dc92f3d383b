"""How long a run waits for its first batch after a resume, early and late in the run.

    python tools/speed_resume.py --data demo_out/data

In turns, a loader is opened at step 10 and at step 1,000,000 over the robot and web data sets of
the demo, 1 : 1, and gives one batch. Opening the data sets is not counted; files are in the page
cache. Printed are medians and the ratio of far to near.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.build import action_spec_of, make_mixture, open_sources
from vla_jax.data.config import DataConfig, SourceConfig
from vla_jax.data.loader import Loader
from vla_jax.data.mixture import Mixture
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.text.vocabulary import Vocabulary

STEPS = (10, 1_000_000)


def first_batch_seconds(
    mixture: Mixture,
    sources: Mapping[str, Source],
    builder: SequenceBuilder,
    *,
    batch_size: int,
    image_size: int,
    repeats: int,
) -> dict[int, list[float]]:
    """Step -> seconds from making a loader to its first batch, `repeats` times each, in turns."""
    seconds: dict[int, list[float]] = {step: [] for step in STEPS}
    for number in range(repeats + 1):
        # Neighbouring steps, so that no batch is found in a cache.
        for step, found in seconds.items():
            begun = time.perf_counter()
            loader = Loader(
                mixture,
                sources,
                builder,
                batch_size=batch_size,
                image_size=image_size,
                start_step=step + number,
            )
            next(loader)
            took = time.perf_counter() - begun
            loader.close()
            if number:  # the first turn warms up
                found.append(took)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="has robot/ and web/")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=112)
    args = parser.parse_args()
    data = DataConfig(
        {
            "robot": SourceConfig("episodes", str(args.data / "robot")),
            "web": SourceConfig("image_text", str(args.data / "web")),
        }
    )
    sources = open_sources(data)
    vocabulary, spec = Vocabulary(), action_spec_of(sources)
    assert spec is not None
    tokenizer = UniformTokenizer(spec, vocabulary.integer_ids)
    builder = SequenceBuilder(vocabulary, tokenizer, max_tokens=64, max_answer_tokens=16)
    seconds = first_batch_seconds(
        make_mixture(data, sources),
        sources,
        builder,
        batch_size=args.batch_size,
        image_size=args.image_size,
        repeats=args.repeats,
    )
    near, far = (statistics.median(seconds[step]) for step in STEPS)
    for step, found in seconds.items():
        low, middle, high = (1e3 * f(found) for f in (min, statistics.median, max))
        print(f"first batch at step {step:>9,}: {middle:.1f} ms [{low:.1f} to {high:.1f}]")
    print(f"far / near: {far / near:.2f} x, {args.repeats} each, in turns")


if __name__ == "__main__":
    main()
