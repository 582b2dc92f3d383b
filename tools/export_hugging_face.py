"""Writes a trained model as a directory that `transformers` loads as PaliGemma.

    python tools/export_hugging_face.py --workdir runs/first --out exported
    python -c "from transformers import PaliGemmaForConditionalGeneration as P; \
               P.from_pretrained('exported')"

For models of SigLIP's and Gemma's kinds: `paligemma_3b`, `paligemma2_*`, `gemma3_270m_vla`, ...
Low-rank adapters are merged into the weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_jax import config as config_lib
from vla_jax.build import load_initial_params
from vla_jax.checkpoints.hugging_face import write_hugging_face
from vla_jax.models.lora import merge_lora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of the run; its newest step")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    args = parser.parse_args()
    file = args.workdir / "config.json"
    config = config_lib.from_json(file.read_text(), where=str(file))
    params = load_initial_params(str(args.workdir), config.model, config.train.seed)
    write_hugging_face(args.out, merge_lora(params, config.model), config.model, dtype=args.dtype)
    print(f"{args.out}: {', '.join(sorted(p.name for p in args.out.iterdir()))}")


if __name__ == "__main__":
    main()
