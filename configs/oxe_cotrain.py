"""RT-2's recipe on published data: PaliGemma 3B, Open X-Embodiment and web captions, 1 : 1.

    python -m vla_jax.train --config=configs/oxe_cotrain.py:rtx --workdir=...

The word after the colon is a mixture of `vla_jax/data/oxe/mixtures.py`. Data, weights and
vocabulary are expected below `DATA`; any path can be overridden. Batch, mesh and recomputation are
those that `vla_jax.plan` found the fastest on 256 chips, v5e:16x16; on eight GPUs of 80 GB
`--config.train.batch_size=256 --config.train.steps=320000 --config.mesh.fsdp=8`.
"""

from ml_collections import ConfigDict

from vla_jax.data.oxe.mixtures import find_mixture

DATA = "/data"


def get_config(mixture: str = "rtx") -> ConfigDict:
    robots = {
        name: {
            "kind": "episodes",
            "path": f"{DATA}/oxe/{name}",
            "record": name,
            "group": "robot",
            "weight": weight,
        }
        for name, weight in find_mixture(mixture).items()
    }
    web = {"captions": {"kind": "webdataset", "path": f"{DATA}/captions", "group": "web"}}
    return ConfigDict(
        {
            "model": {"preset": "paligemma_3b", "image_size": 224, "remat": "dots"},
            "data": {
                "sources": {**robots, **web},
                "groups": {"robot": 1.0, "web": 1.0},
                "max_tokens": 64,
                "max_answer_tokens": 24,
                "vocabulary": f"{DATA}/paligemma/tokenizer.model",
                # Gemma's vocabulary has no integers: `tools/least_used_tokens.py` finds a place.
                "actions": {"token_ids": f"{DATA}/paligemma/least_used.json"},
                "threads": 16,
                "prefetch": 4,
                "host_memory_gib": 16.0,
                "max_bad_records": 100,
            },
            "optimizer": {"learning_rate": 2e-5, "warmup_steps": 1000},
            "train": {
                "steps": 20_000,
                "batch_size": 4096,
                "augment": {"crop": 0.9, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
                "init_from": f"{DATA}/paligemma",
            },
            "mesh": {"fsdp": 32},
        }
    )
