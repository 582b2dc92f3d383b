"""Measures this project side by side with what else does the job, in turns, on this machine.

    python tools/speed.py data  --repeats 7           the loader beside bare JPEG decoding
    python tools/speed.py serve --repeats 5           the server, asked by 1 to 32 robots at once
    pip install torch transformers
    python tools/speed.py model --repeats 11          the model beside transformers' PaliGemma

See `speed_data.py`, `speed_model.py` and `speed_serve.py` for what is timed. Machines are shared
and noisy: look at the medians of the ratios.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("data", "model", "serve"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-unroll", dest="unroll", action="store_false", help="scan the layers")
    parser.add_argument("--data", type=Path, help="keep the data set of `data` here")
    parser.add_argument("--threads", type=int, default=2, help="of the loader")
    parser.add_argument("--bundle", type=Path, default=Path("demo_out/bundle"), help="for `serve`")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run of `serve`")
    parser.add_argument("--out", type=Path, help="JSON of all timings")
    args = parser.parse_args()
    # Each loads what the other must not: TensorFlow or torch.
    if args.what == "model":
        import speed_model

        result = speed_model.measure(args.repeats, unroll=args.unroll)
    elif args.what == "serve":
        import speed_serve

        result = speed_serve.measure(args.bundle, args.seconds, args.repeats)
    else:
        import speed_data

        result = speed_data.measure(args.repeats, folder=args.data, threads=args.threads)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
