"""RT-2-PaLM-E-12B as the paper trains it (arXiv 2307.15818, appendix E): two thirds robot data.

    python -m vla_jax.plan --config=configs/rt2_palm_e_12b.py --topology=v5e:16x16
    python -m vla_jax.train --config=configs/rt2_palm_e_12b.py --workdir=...

Learning rate, share of robot data and samples in all are the paper's; batches are eight times as
large and steps an eighth, so that 256 chips have enough to do between two exchanges of parameters.
Mesh and recomputation are those that `vla_jax.plan` found the fastest on v5e:16x16.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

_OTHER = runpy.run_path(str(Path(__file__).with_name("rt2_pali_x_55b.py")))
DATA = _OTHER["DATA"]


def get_config() -> ConfigDict:
    config = _OTHER["get_config"]()
    config.model.preset = "rt2_palm_e_12b"
    config.model.remat = "full"
    config.data.sources.robot.weight = 0.66
    config.data.sources.web.weight = 0.34
    config.data.vocabulary = f"{DATA}/palm/tokenizer.model"
    # PaLM's has no integers: actions take the place of the tokens that the mixture uses least.
    config.data.actions = {"token_ids": f"{DATA}/palm/least_used.json"}
    config.optimizer.learning_rate = 4e-4
    config.optimizer.update(warmup_steps=1, constant_steps=10_000)  # PaLM's schedule
    config.train.update(steps=125_000, batch_size=4096, init_from=f"{DATA}/palm_e_12b.npz")
    config.train.tpu_options = {}
    config.mesh = {"data": 8, "fsdp": 32}
    return config
