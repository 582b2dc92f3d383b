"""The demo's main job: co-fine-tuning on robot episodes and the picture/word corpus together.

Starts, as RT-2 does, from a web-trained VLM: the small one that ships with the code
(`tools/train_vlm.py` made it). `--config.train.init_from=` starts from nothing.
"""

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
                "sources": {
                    # RT-2's robot shares: about 50% for PaLI-X, as here, and 66% for PaLM-E.
                    "robot": {"kind": "episodes", "path": "demo_out/data/robot", "weight": 1.0},
                    "web": {"kind": "image_text", "path": "demo_out/data/web", "weight": 1.0},
                },
                "max_tokens": 46,
                "max_answer_tokens": 16,
                "threads": 1,
            },
            "optimizer": {
                "learning_rate": 6e-4,
                "warmup_steps": 60,
                "weight_decay": 1e-4,
                # What the encoder learned to name, robot episodes would make it forget.
                "groups": ((r"img/.*", 0.5),),
            },
            "train": {
                "steps": 1400,
                "batch_size": 32,
                "log_every": 20,
                "checkpoint_every": 700,
                "integer_smoothing": 2.0,
                "init_from": "vla_jax/assets/demo_vlm/vlm.npz",
            },
        }
    )
