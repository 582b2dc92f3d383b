"""The demo's main job: co-fine-tuning on robot episodes and the picture/word corpus together.

Starts, as RT-2 does, from a web-trained VLM: the small one that ships with the code
(`tools/train_vlm.py` made it). `--config.train.init_from=` starts from nothing.

Words after a colon change it, `configs/demo_cotrain.py:plans` or `:plans,chunk`:

    plans   robot episodes say a plan before the action; made with `envs.episodes --plans=0.5`
    chunk   four actions at once, as FAST tokens that were fitted to the episodes:
            `tools/tokenizer_report.py --data=demo_out/data/robot --chunk=4 --vocabulary=256
            --out=demo_out/tokens`
"""

from ml_collections import ConfigDict

CHUNK, NUMBERS = 4, 8
PLAN_TOKENS = 12
"""Room for `push the yellow block to the right. Action:` and longer prompts."""


def get_config(words: str = "") -> ConfigDict:
    chosen = set(filter(None, words.split(",")))
    if unknown := chosen - {"plans", "chunk"}:
        raise ValueError(f"demo_cotrain.py:{words}: {unknown} is not one of plans, chunk")
    config = base_config()
    data = config.data
    if "plans" in chosen:
        data.sources.robot.plan = "plan"
        data.max_tokens += PLAN_TOKENS
        data.max_answer_tokens += PLAN_TOKENS
    if "chunk" in chosen:
        data.actions = {"tokenizer": "demo_out/tokens/fast.json", "chunk": CHUNK}
        # A FAST chunk may take a token for each of its numbers, and its tokens are in no order.
        data.max_tokens += (CHUNK - 1) * NUMBERS
        data.max_answer_tokens += (CHUNK - 1) * NUMBERS
        config.train.integer_smoothing = 0.0
    return config


def base_config() -> ConfigDict:
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
