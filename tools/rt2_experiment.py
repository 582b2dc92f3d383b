"""RT-2's ablation by one command: does web knowledge reach the arm? And comparisons beyond it.

    python tools/rt2_experiment.py --preset=laptop --out=experiment_out

Trains from scratch, by fine-tuning on robot data and by co-fine-tuning with web data, in two sizes,
with the same robot samples; and along a curve of web shares. Presets:

    laptop      the ablation, an hour on 2 cores
    gpu         the ablation with larger models, the whole world and a VLM of its own
    gemma       the ablation with a backbone that others pretrained, on a GPU
    plans       said before acting, or not
    chunks      of actions as FAST tokens, done whole, in part or averaged, against bins
    recovery    episodes in which something goes wrong, or none; run without and with pushes
    smoke       minutes, to see every command work

Every step is a command that a user could type. Run again to go on after an interruption. Writes
`tables.md`, `results.json` and `experiment.html`, anew after each cell.

    --plan          prints the steps with the time that they should take, and ends
    --only=A,B      runs these cells (and the data)
    --redo          deletes and makes again what was made with other settings
"""

from __future__ import annotations

import sys

from vla_jax.experiment.command import main

if __name__ == "__main__":
    sys.exit(main())
