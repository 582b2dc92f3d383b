"""Meta-World MT50 from its scripted experts' episodes.

    python -m vla_jax.train --config=configs/metaworld.py:cpu5 --workdir=runs/cpu5
    python -m vla_jax.evaluate --workdir=runs/cpu5

`mt50`: all fifty tasks, 50 episodes each, 0.35 B parameters from the web-trained Gemma 3 270M, for
a GPU of 80 GB. `cpu5`: five easy tasks for two cores, from the small VLM that ships with the code.
How the episodes are made:

    python -m vla_jax.envs.episodes --config=metaworld_noisy --episodes=2500 --image_size=224 \
        --out=/tmp/staged
    python -m vla_jax.data.write episodes --staged=/tmp/staged --out=/data/metaworld/mt50

for `cpu5` with `--episodes=250 --tasks=` and the five names below, and the default image size.
"""

from typing import Any

from ml_collections import ConfigDict

DATA = "/data"
CPU5 = (
    "button-press-topdown-v3",
    "coffee-button-v3",
    "drawer-close-v3",
    "handle-press-v3",
    "window-close-v3",
)
# Where Meta-World's hand can be, in metres, and its fingers, of 0.1 m.
STATE = {"low": (-0.525, 0.348, -0.0525, 0.0), "high": (0.525, 1.025, 0.7, 1.0)}


def get_config(size: str = "mt50") -> ConfigDict:
    if size == "cpu5":
        return ConfigDict(_cpu5())
    if size == "mt50":
        return ConfigDict(_mt50())
    raise ValueError(f"configs/metaworld.py:{size}: choose mt50 or cpu5")


def _episodes(path: str) -> dict[str, Any]:
    return {"kind": "episodes", "path": path, "state": ("steps/observation/state",)}


def _mt50() -> dict[str, Any]:
    return {
        "model": {"preset": "gemma3_270m_vla", "image_size": 224, "state_size": 4},
        "data": {
            "sources": {"metaworld": _episodes(f"{DATA}/metaworld/mt50")},
            "state": {"kind": "vector", **STATE},
            "max_tokens": 72,
            "max_answer_tokens": 33,
            "vocabulary": f"{DATA}/gemma3_270m/tokenizer.model",
            "actions": {"chunk": 8, "token_ids": f"{DATA}/gemma3_270m/least_used.json"},
            "threads": 12,
            "prefetch": 4,
            "host_memory_gib": 16.0,
        },
        "optimizer": {"learning_rate": 1e-4, "warmup_steps": 500, "weight_decay": 1e-4},
        "train": {
            "steps": 30_000,
            "batch_size": 256,
            "ema_decay": 0.999,
            "augment": {"crop": 0.95, "brightness": 0.1, "contrast": 0.1},
            "checkpoint_every": 2500,
            "init_from": f"{DATA}/gemma3_270m",
        },
        "evaluation": {
            "world": "metaworld",
            "execute_steps": 4,
            "rollout_envs": 64,
            "rollout_workers": 16,
            "batch_size": 64,
            "baselines": False,
        },
    }


def _cpu5() -> dict[str, Any]:
    return {
        "model": {
            "preset": "demo",
            "image_size": 112,
            "image_sees_text": False,
            "compute_dtype": "float32",
            "unroll_layers": True,
        },
        "data": {
            "sources": {"metaworld": _episodes("metaworld_out/cpu5")},
            "state": {"kind": "tokens", **STATE},
            "max_tokens": 64,
            "max_answer_tokens": 17,
            "actions": {"chunk": 4},
            "threads": 1,
        },
        "optimizer": {
            "learning_rate": 6e-4,
            "warmup_steps": 60,
            "weight_decay": 1e-4,
        },
        "train": {
            "steps": 1200,
            "batch_size": 32,
            "log_every": 20,
            "checkpoint_every": 300,
            "integer_smoothing": 2.0,
            "init_from": "vla_jax/assets/demo_vlm/vlm.npz",
        },
        "evaluation": {
            "world": "metaworld",
            "tasks": CPU5,
            "execute_steps": 4,
            "rollout_envs": 10,
            "batch_size": 10,
            "baselines": False,
        },
    }
