"""RT-2's ablation by one command: does web knowledge reach the arm?

    python tools/rt2_experiment.py --preset=laptop --out=experiment_out

Trains from scratch, by fine-tuning on robot data and by co-fine-tuning with web data, in two sizes,
with the same robot samples; and along a curve of web shares. Every step is a command that a user
could type. Run again to go on after an interruption. Writes `tables.md`, `results.json` and
`experiment.html`, anew after each cell.

    --plan          prints the steps with the time that they should take, and ends
    --only=A,B      runs these cells (and the data)
    --redo          deletes and makes again what was made with other settings
"""

from __future__ import annotations

import sys

from vla_jax.experiment.command import main

if __name__ == "__main__":
    sys.exit(main())
