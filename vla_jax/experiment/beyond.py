"""Comparisons beyond RT-2's ablation, in laptop size: plans, chunks of actions, recovery."""

from __future__ import annotations

import dataclasses

from vla_jax.experiment.description import (
    Cell,
    Comparison,
    Episodes,
    Experiment,
    ModelSize,
    OwnTable,
    Pace,
    Pictures,
    Preparation,
)

_CONFIG, _VLM = "configs/demo_cotrain.py", "vla_jax/assets/demo_vlm/vlm.npz"
_HALF = {"robot": 0.5, "web": 0.5}
_SAVING = ("train.checkpoint_every=400", "train.keep_checkpoints=1")
_PACE = Pace(
    "2 quiet cores of a recent server; estimated from the paces of the ablation",
    start_s=22,
    episodes_per_s=25,
    pictures_per_s=150,
    answers_per_s=50,
)


def _evaluation(rollout_episodes: int, *more: str) -> tuple[str, ...]:
    """Rollouts in both pools of concepts."""
    return (
        *(f"rollout_episodes={rollout_episodes}", "vqa_examples=200", "action_steps=200"),
        *("pointing_views=0", "baselines=false", *more),
    )


def _room(answer_tokens: int) -> tuple[str, ...]:
    """For a prompt as usual and for longer answers."""
    return (f"data.max_tokens={30 + answer_tokens}", f"data.max_answer_tokens={answer_tokens}")


_PLANS_OFF = Cell("plans_off", "demo", "without plans", _HALF, overrides=_room(28))

PLANS = Experiment(
    name="plans",
    title="Does it help to say a plan before acting?",
    lead="Chain of thought, as RT-2 tried it: half of the episodes’ instructions take a "
    "step of thought, “pick the sum of one and two”. One policy was trained to say the plain words "
    "for it before it acts, “pick the number 3”, the other to act at once, on the same episodes.",
    config=_CONFIG,
    data={"robot": Episodes("demo", 2000, ("--plans=0.5",)), "web": Pictures(9000, 600)},
    sizes={"demo": ModelSize("2.2M", "demo", 80, 1.6, vlm=_VLM)},
    cells=(
        dataclasses.replace(
            _PLANS_OFF,
            name="plans_on",
            training="with plans",
            overrides=(*_PLANS_OFF.overrides, "data.sources.robot.plan=plan"),
            tables=("emergent",),
        ),
        dataclasses.replace(_PLANS_OFF, tables=("emergent",)),
    ),
    comparisons=(Comparison("plans_on", "plans_off"),),
    compared=("rollouts", "reasoning", "rollouts_robot", "rollouts_web_only", "emergent"),
    tables=(
        OwnTable(
            "Instructions that take a step of thought",
            (
                *("rollouts_robot", "rollouts_web_only", "rollouts", "reasoning"),
                *("plans_robot", "plans_web_only"),
            ),
            "Success in new layouts, where the instruction describes its target and only one block "
            "fits; and in the four cells of reasoning of the emergent suite, which the episodes’ "
            "instructions are not like. Plans right: the first plan of an episode, word for word.",
        ),
    ),
    main="plans_on",
    robot_rows=12,
    updates=1000,
    overrides=_SAVING,
    evaluation=_evaluation(100, "reasoning=true", "suite_rollouts=40", "suites=emergent"),
    pace=_PACE,
)

_NO_SMOOTHING = "train.integer_smoothing=0"
_BINS = Cell("bins_1", "demo", "bins, one step", _HALF, overrides=(_NO_SMOOTHING, *_room(40)))
_FAST = dataclasses.replace(
    _BINS,
    name="fast_all",
    training="FAST, all 4 steps",
    overrides=(
        *(*_BINS.overrides, "data.actions.tokenizer={tokens}/fast.json"),
        "data.actions.chunk=4",
    ),
    evaluation=("execute_steps=4",),
)
_FAST_AGAIN = dataclasses.replace(_FAST, trained_by="fast_all")

CHUNKS = Experiment(
    name="chunks",
    title="Chunks of actions: success and rate",
    lead="RT-2 says one action a look, each number a token of 256 bins. FAST (arXiv 2501.09747) "
    "says four actions at once in a third of the tokens; the robot does all of them before it "
    "looks again, or one, or averages what all looks said about a step (ACT, arXiv 2304.13705).",
    config=_CONFIG,
    data={"robot": Episodes("demo", 2000), "web": Pictures(9000, 600)},
    sizes={"demo": ModelSize("2.2M", "demo", 75, 1.2, vlm=_VLM)},
    preparations=(
        Preparation(
            "tokens",
            "FAST, fitted to chunks of 4 actions",
            (
                *("tools/tokenizer_report.py", "--data={robot}", "--chunk=4", "--vocabulary=256"),
                "--out={tokens}",
            ),
            makes="fast.json",
            seconds=30,
        ),
    ),
    cells=(
        _FAST,
        _BINS,
        dataclasses.replace(
            _FAST_AGAIN,
            name="fast_1",
            training="FAST, 1 step of 4",
            evaluation=("execute_steps=1",),
        ),
        dataclasses.replace(
            _FAST_AGAIN,
            name="fast_ensemble",
            training="FAST, average of looks",
            evaluation=("execute_steps=1", "ensemble_decay=0.1"),
        ),
        dataclasses.replace(
            _BINS,
            name="bins_1_smoothed",
            training="bins, one step, smoothed targets",
            overrides=_room(40),
        ),
    ),
    comparisons=tuple(
        Comparison(cell, baseline)
        for cell, baseline in (
            ("fast_all", "bins_1"),
            ("fast_1", "bins_1"),
            ("fast_ensemble", "bins_1"),
            ("fast_ensemble", "fast_1"),
            ("bins_1_smoothed", "bins_1"),
            ("fast_all", "bins_1_smoothed"),
        )
    ),
    compared=("rollouts", "rollouts_robot", "rollouts_web_only"),
    tables=(
        OwnTable(
            "Success and rate",
            (
                *("rollouts_robot", "rollouts_web_only", "rollouts"),
                *("robot_actions_per_s", "actions_per_s", "calls_per_action"),
            ),
            "The three rows of FAST are one training. Rates are of the model alone, without the "
            "simulators, in the rollouts of this table; all robots that run share a call. Smoothed "
            "targets give bins beside the right one a part of the probability, which needs tokens "
            "in order: FAST’s are in none.",
        ),
    ),
    main="fast_all",
    robot_rows=12,
    updates=800,
    overrides=_SAVING,
    evaluation=_evaluation(60),
    pace=_PACE,
)

_USUAL = Cell(
    *("usual", "demo", "usual episodes", _HALF),
    sources={"robot": "robot", "web": "web"},
    evaluation=("pushes=0",),
)
_RECOVERY = dataclasses.replace(
    _USUAL,
    name="recovery",
    training="with recoveries",
    shares={"recovery": 0.5, "web": 0.5},
    sources={"recovery": "robot", "web": "web"},
)


def _pushed(cell: Cell) -> Cell:
    """The same policy where something goes wrong in every episode."""
    return dataclasses.replace(
        cell,
        name=f"{cell.name}_pushed",
        training=f"{cell.training}, pushed",
        evaluation=("pushes=1",),
        trained_by=cell.name,
    )


RECOVERY = Experiment(
    name="recovery",
    title="Does a policy learn to recover from what it is shown?",
    lead="In three of ten episodes of the second data set something goes wrong once or twice, a "
    "block is nudged or falls, the gripper is pushed away, and the expert goes on from there. "
    "Policies of both data sets, as many episodes each, are run as they are and with a push in "
    "every episode.",
    config=_CONFIG,
    data={
        "robot": Episodes("demo", 2000),
        "recovery": Episodes("demo", 2000, ("--recovery=0.3",)),
        "web": Pictures(9000, 600),
    },
    sizes={"demo": ModelSize("2.2M", "demo", 94, 1.8, vlm=_VLM)},
    cells=(_RECOVERY, _pushed(_RECOVERY), _USUAL, _pushed(_USUAL)),
    comparisons=tuple(
        Comparison(cell, baseline)
        for cell, baseline in (
            ("recovery_pushed", "usual_pushed"),
            ("recovery", "usual"),
            ("usual_pushed", "usual"),
            ("recovery_pushed", "recovery"),
        )
    ),
    compared=("rollouts", "rollouts_robot", "rollouts_web_only"),
    tables=(
        OwnTable(
            "Success without and with pushes",
            ("rollouts_robot", "rollouts_web_only", "rollouts"),
            "Pushed: once in every episode, unless it ends before. Layouts are the same in all "
            "rows.",
        ),
    ),
    main="recovery_pushed",
    robot_rows=12,
    updates=900,
    overrides=_SAVING,
    evaluation=_evaluation(120),
    pace=_PACE,
)
