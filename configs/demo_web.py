"""The demo's short web stage: the small VLM from scratch on the picture/word corpus."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "preset": "demo",
                "image_size": 112,
                "image_sees_text": False,
                "compute_dtype": "float32",
                "unroll_layers": True,
            },
            "data": {
                "sources": {"web": {"kind": "image_text", "path": "demo_out/data/web"}},
                "max_tokens": 40,
                "max_answer_tokens": 10,
                "threads": 1,
            },
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 20, "weight_decay": 1e-4},
            "train": {"steps": 60, "batch_size": 32, "log_every": 10, "checkpoint_every": 60},
        }
    )
