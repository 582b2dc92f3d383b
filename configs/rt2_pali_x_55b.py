"""RT-2-PaLI-X-55B as the paper trains it (arXiv 2307.15818, appendix E): robot and web data 1 : 1.

    python -m vla_jax.plan --config=configs/rt2_pali_x_55b.py --topology=v5p:8x8x8
    python -m vla_jax.train --config=configs/rt2_pali_x_55b.py --workdir=...

Learning rate, share of robot data and samples in all are the paper's; batches are twice as large
and steps half as many, so that 512 chips have enough to do between two exchanges of parameters.
Mesh, recomputation and compiler options are those that `vla_jax.plan` found the fastest on
v5p:8x8x8. Data, weights and vocabulary are expected below `DATA`; any path can be overridden.
"""

from ml_collections import ConfigDict

from vla_jax.sharding.topology import SPARSE_CORE_OPTIONS

DATA = "/data"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {"preset": "rt2_pali_x_55b", "image_size": 224, "remat": "dots"},
            "data": {
                "sources": {
                    "robot": {
                        "kind": "episodes",
                        "path": f"{DATA}/fractal20220817_data/0.1.0",
                        "record": "fractal20220817_data",
                        "weight": 0.5,
                    },
                    "web": {"kind": "webdataset", "path": f"{DATA}/captions", "weight": 0.5},
                },
                "max_tokens": 64,
                "max_answer_tokens": 24,
                # PaLI's has a token for each integer up to 1,000.
                "vocabulary": f"{DATA}/pali/tokenizer.model",
                "threads": 32,
                "prefetch": 4,
                "readers": 32,
                "host_memory_gib": 32.0,
                "max_bad_records": 100,
            },
            "optimizer": {
                "kind": "adafactor",
                "learning_rate": 1e-3,
                "warmup_steps": 1000,
                "decay": "rsqrt",
                "b1": 0.0,
            },
            "train": {
                "steps": 40_000,
                "batch_size": 4096,
                "checkpoint_every": 500,
                "init_from": f"{DATA}/pali_x_55b.npz",
                "tpu_options": SPARSE_CORE_OPTIONS,
            },
            "mesh": {"data": 8, "fsdp": 64},
        }
    )
