"""Converts a data set of a config to files that are read step by step, on this machine or by Beam.

    python tools/convert.py --config=configs/demo_cotrain.py --source=robot --out=out/robot \\
        --image_size=224 --jpeg_quality=95 --workers=8

Any kind of source becomes ArrayRecord files of single steps or samples, with the images as they are
stored or, once and for all, in the size that the model sees. Train on them with

    "robot": {"kind": "array_record", "path": "out/robot"}

A run that was stopped goes on where it was, on the same command. Give each split a run of its own.
With `--beam` the shards are written by Apache Beam (`pip install 'vla_jax[beam]'`); what this
program does not know are options of Beam, here for data that outgrow a machine:

    python tools/convert.py --config=... --source=robot --out=gs://bucket/robot --shards=2048 \\
        --beam --runner=DataflowRunner --project=... --region=... --temp_location=gs://bucket/tmp \\
        --sdk_container_image=IMAGE   # one with vla_jax and its packages

Overrides like `--config.data.sources.robot.path=...` are those of training; with
`--config.data.max_bad_records=3` so many damaged episodes are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from vla_jax import config as config_lib
from vla_jax.data import convert, convert_beam
from vla_jax.data.config import SourceConfig
from vla_jax.data.images import hide_accelerators


def find_source(config: config_lib.Config, name: str, split: str) -> SourceConfig:
    """The named source of a config, on another split if given; ValueError if there is none."""
    sources = config.data.sources
    if name not in sources:
        raise ValueError(f"the config has no source {name!r}; it has {', '.join(sources)}")
    return dataclasses.replace(sources[name], split=split or sources[name].split)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Others, with --beam: options of Beam.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--source", required=True, help="its name in the config")
    parser.add_argument("--split", default="", help="another one than the config's")
    parser.add_argument("--out", required=True, help="directory of the data set; made")
    parser.add_argument("--shards", type=int, default=0, help="files; 0: of about 4096 records")
    parser.add_argument("--image_size", type=int, default=0, help="pixels; 0: as they are")
    parser.add_argument(
        "--jpeg_quality", type=int, default=0, help="of frames and resized images; 0: PNG"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--beam", action="store_true", help="run by Apache Beam")
    try:
        rest, overrides = config_lib.split_overrides(sys.argv[1:])
        args, others = parser.parse_known_args(rest)
        if others and not args.beam:
            parser.error(f"unknown: {' '.join(others)}")
        config = config_lib.parse(config_lib.load_config(args.config, overrides))
        source = find_source(config, args.source, args.split)
        options = {
            "shards": args.shards,
            "image_size": args.image_size,
            "jpeg_quality": args.jpeg_quality,
            "max_bad_records": config.data.max_bad_records,
        }
        hide_accelerators()
        if args.beam:
            convert_beam.convert(args.source, source, args.out, others, **options)
        else:
            convert.convert(args.source, source, args.out, workers=args.workers, **options)
    except (ValueError, OSError, RuntimeError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
