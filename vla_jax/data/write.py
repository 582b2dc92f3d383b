"""Writes data sets: `python -m vla_jax.data.write image_text --out DIR --train N --test M`,
`python -m vla_jax.data.write episodes --staged DIR --out DIR`.

TensorFlow is imported where it is used: workers that paint pictures are spawned and import this
module again, and they should not load it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vla_jax.corpus.pictures import ART_STYLES
from vla_jax.corpus.scenes import LEAST_PX
from vla_jax.data.generate import corpus_rows
from vla_jax.data.staged import StagedEpisodes


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, RuntimeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vla_jax.data.write")
    commands = parser.add_subparsers(required=True)

    image_text = commands.add_parser("image_text", help="pictures with questions and answers")
    image_text.add_argument("--train", type=int, required=True, help="samples")
    image_text.add_argument("--test", type=int, required=True, help="samples")
    image_text.add_argument("--image_size", type=int, default=112, help="pixels")
    image_text.add_argument("--image_format", choices=("png", "jpeg"), default="jpeg")
    image_text.add_argument("--seed", type=int, default=0)
    image_text.add_argument(
        "--background_share", type=float, default=0.3, help="of pictures from the long tail"
    )
    image_text.add_argument(
        "--least_px",
        type=float,
        default=LEAST_PX,
        help="side of the smallest pictures where an image has 112 pixels",
    )
    image_text.add_argument(
        "--styles",
        type=int,
        default=1,
        choices=range(1, len(ART_STYLES) + 1),
        help="draw pictures in one of so many: " + ", ".join(ART_STYLES),
    )
    image_text.add_argument("--workers", type=int, default=2, help="processes")
    image_text.set_defaults(run=_image_text)

    episodes = commands.add_parser("episodes", help="robot episodes as RLDS")
    episodes.add_argument("--staged", required=True, help="output of vla_jax.envs.episodes")
    episodes.add_argument("--test_every", type=int, default=20, help="each so-manieth is held out")
    episodes.set_defaults(run=_episodes)

    for command in (image_text, episodes):
        command.add_argument("--out", required=True, help="the data set's directory; made")
        command.add_argument(
            "--file_format", choices=("array_record", "tfrecord"), default="array_record"
        )
        command.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser


def _image_text(options: argparse.Namespace) -> None:
    from vla_jax.data.tfds_writer import write_image_text

    splits = {
        split: corpus_rows(
            split,
            count,
            image_size=options.image_size,
            seed=options.seed,
            workers=options.workers,
            image_format=options.image_format,
            background_share=options.background_share,
            least_px=options.least_px,
            styles=options.styles,
        )
        for split, count in (("train", options.train), ("test", options.test))
    }
    write_image_text(
        splits,
        options.out,
        name="picture_corpus",
        description="Pictures of several things, with captions, questions and places to point to.",
        total=options.train + options.test,
        file_format=options.file_format,
        overwrite=options.overwrite,
    )


def _episodes(options: argparse.Namespace) -> None:
    from vla_jax.data.tfds_writer import write_episodes

    staged = StagedEpisodes(options.staged)
    write_episodes(
        staged,
        options.out,
        staged.spec,
        name="robot_episodes",
        description="Episodes of a scripted expert, one instruction each.",
        test_every=options.test_every,
        total=len(staged),
        file_format=options.file_format,
        overwrite=options.overwrite,
    )


if __name__ == "__main__":
    sys.exit(main())
