from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from tests.evaluation.fakes import SPEC, FakePolicy, FakePool
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.decoding import policy as policy_module
from vla_jax.decoding.chunks import ChunkExecutor
from vla_jax.decoding.policy import Policy
from vla_jax.decoding.processes import FailedElsewhereError
from vla_jax.evaluation.base import EvaluationConfig, run
from vla_jax.evaluation.media import Frame, save_rollout
from vla_jax.evaluation.pointing import measure_pointing, render_views
from vla_jax.evaluation.rollout import (
    MAX_ATTEMPTS,
    Moves,
    Outcome,
    expert_agent,
    make_plans,
    policy_agent,
    random_agent,
    run_episodes,
    summarize,
)
from vla_jax.evaluation.speed import Speed
from vla_jax.evaluation.tabletop import PointingEvaluator, RolloutEvaluator
from vla_jax.evaluation.videos import Videos
from vla_jax.models.presets import ModelConfig
from vla_jax.text.vocabulary import Vocabulary

FAMILIES = ("pick", "near", "put", "push")


def plans(count: int):
    return make_plans(count, 100, FAMILIES, ("dog", "cat"))


def go_right(views):
    return Moves([np.eye(8)[1] * 0.05 for _ in views], ["" for _ in views])


def quiet(line: str) -> None:
    pass


def test_plans_go_round_the_families_with_fixed_seeds():
    made = plans(6)
    assert [p.seed for p in made] == [100, 101, 102, 103, 104, 105]
    assert [p.options["family"] for p in made] == ["pick", "near", "put", "push", "pick", "near"]
    assert made[0].options["concepts"] == ("dog", "cat")


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_every_episode_runs_once_whatever_the_number_of_environments(num_envs):
    pool = FakePool(num_envs, length=lambda seed: 1 + seed % 5)
    outcomes = run_episodes(pool, plans(7), go_right, label="t", progress=quiet)
    assert [o.seed for o in outcomes] == list(range(100, 107))
    assert [o.steps for o in outcomes] == [1 + s % 5 for s in range(100, 107)]
    assert all(o.success and o.ended == "goal held" and o.attempts == 1 for o in outcomes)
    assert sorted(pool.started) == list(range(100, 107))


def test_all_running_episodes_share_one_model_call():
    policy = FakePolicy()
    run_episodes(FakePool(4), plans(8), policy_agent(policy), label="t", progress=quiet)
    # 8 episodes of 3 steps in 4 environments.
    assert policy.calls == [4] * 6


def test_a_chunk_is_done_before_the_policy_looks_again():
    """Steps 0 and 1 of a chunk of 3, whatever else runs; then the next chunk."""
    ramp = np.arange(3)[:, None] * np.eye(8)[1] * 0.03
    done: dict[tuple[int, int], float] = {}
    policy = FakePolicy(act=lambda instruction: ramp, chunk=3)
    agent = policy_agent(policy, execute_steps=2)  # pyright: ignore[reportArgumentType]

    def act(views):
        moves = agent(views)
        for view, action in zip(views, moves.actions):
            done[view.plan.number, view.step] = float(action[1])
        return moves

    pool = FakePool(2, length=lambda seed: 3 + seed % 3)
    run_episodes(pool, plans(5), act, label="t", progress=quiet)
    steps = {(i, t) for i in range(5) for t in range(3 + (100 + i) % 3)}
    assert done.keys() == steps
    for (_, step), x in done.items():
        assert x == pytest.approx(0.03 * (step % 2), abs=4e-4)
    assert sum(policy.calls) == sum(-(-(3 + (100 + i) % 3) // 2) for i in range(5))
    with pytest.raises(ValueError, match="execute_steps 4 is more than the policy's chunk of 3"):
        policy_agent(policy, execute_steps=4)  # pyright: ignore[reportArgumentType]


def test_a_policy_of_several_frames_sees_the_steps_before():
    """Also those in which it was not asked; the first step stands for those before it."""
    policy = FakePolicy(frames=3, act=lambda instruction: np.zeros((2, 8)), chunk=2)
    agent = policy_agent(policy, execute_steps=2)  # pyright: ignore[reportArgumentType]
    pool = FakePool(2, length=lambda seed: 4 + seed % 3, lose=frozenset({(3, 1)}))
    outcomes = run_episodes(pool, plans(5), agent, label="t", progress=quiet)
    assert sum(o.attempts for o in outcomes) == 6
    shown = np.concatenate(policy.seen)  # [N, frames, h, w, 3]
    assert shown.shape[1:] == (3, 16, 16, 3)
    seeds, steps = shown[:, :, 0, 0, 0], shown[:, :, 0, 0, 1] // 40
    assert (seeds == seeds[:, :1]).all()
    newest = steps[:, -1].astype(int)
    assert set(newest.tolist()) == {0, 2, 4}
    np.testing.assert_array_equal(steps, np.maximum(newest[:, None] + [-2, -1, 0], 0))


def test_each_episode_has_an_ensemble_of_its_own():
    """Episodes of different lengths, some run again: each as if it ran alone."""
    rng = np.random.default_rng(0)
    said: dict[tuple[int, int], np.ndarray] = {}

    def chunk(instruction: str) -> np.ndarray:
        return rng.uniform(SPEC.low, SPEC.high, (3, 8)) * (SPEC.high > 0.9)

    policy = FakePolicy(act=chunk, chunk=3)
    inner = policy.act
    shown: list = []

    def watched(images, instructions, **options):
        result = inner(images, instructions, **options)
        for view, actions in zip(shown, result.actions, strict=True):
            said[view.plan.number, view.step] = actions
        return result

    policy.act = watched
    agent = policy_agent(policy, ensemble_decay=0.5)  # pyright: ignore[reportArgumentType]
    done: dict[tuple[int, int], np.ndarray] = {}

    def act(views):
        shown[:] = views
        moves = agent(views)
        for view, action in zip(views, moves.actions):
            assert action is not None
            done[view.plan.number, view.step] = action
        return moves

    pool = FakePool(2, length=lambda seed: 4 + seed % 3, lose=frozenset({(3, 1)}))
    outcomes = run_episodes(pool, plans(5), act, label="t", progress=quiet)
    assert sum(o.attempts for o in outcomes) == 6
    for outcome in outcomes:
        alone = ChunkExecutor(SPEC, 3, ensemble_decay=0.5)
        for step in range(outcome.steps):
            alone.add(said[outcome.number, step])
            np.testing.assert_array_equal(done[outcome.number, step], alone.next())
    with pytest.raises(ValueError, match="chunks of 3 actions never overlap"):
        policy_agent(policy, execute_steps=3, ensemble_decay=0.5)  # pyright: ignore[reportArgumentType]


def test_speed_counts_actions_and_leaves_the_first_call_out():
    speed = Speed()
    policy = FakePolicy(act=lambda instruction: np.zeros((3, 8)), chunk=3)
    agent = policy_agent(policy, execute_steps=3, speed=speed)  # pyright: ignore[reportArgumentType]
    run_episodes(FakePool(2, length=lambda _: 6), plans(4), agent, label="t", progress=quiet)
    assert (speed.actions, speed.asked, speed.calls) == (24, 8, 4)
    assert (speed.timed_asked, speed.timed_calls) == (6, 3) and speed.timed_s > 0
    speed.timed_s = 1.5
    measured = speed.measured()
    assert measured["actions_per_prediction"] == 3.0
    assert measured["call_s"] == 0.5
    assert measured["actions_per_s"] == 3 * 6 / 1.5
    assert measured["robot_actions_per_s"] == 3 / 0.5
    once = Speed()
    once.add_call(4, 1.0)
    assert once.measured()["actions_per_s"] is None


def test_plans_are_kept_for_videos_and_counted(tmp_path):
    """Three episodes of four say the plain words for what was asked."""

    class Planned(FakePool):
        def _info(self, env, success):
            info = super()._info(env, success)
            return info | {"plan": info["instruction"].replace("the thing", "it"), "pushes": 2}

    policy = FakePolicy(
        plan=lambda text: (text.replace("the thing", "it") if "p" in text[:1] else "?") + "."
    )
    videos = Videos(tmp_path, "t", 1)
    frames: dict[int, list[Frame]] = {}

    def finished(outcome, seen):
        frames[outcome.number] = seen
        videos.offer(outcome, seen)

    agent = policy_agent(policy)  # pyright: ignore[reportArgumentType]
    outcomes = run_episodes(
        Planned(4), plans(4), agent, label="t", finished=finished, progress=quiet
    )
    assert [o.plan for o in outcomes] == ["pick it 100.", "?.", "put it 102.", "push it 103."]
    assert [f.plan for f in frames[0]] == ["pick it 100."] * 3 + [""]
    summary = summarize(outcomes)
    assert (summary["plans_right"]["count"], summary["plans_right"]["n"]) == (3, 4)
    assert summary["pushes"] == 8
    with Image.open(tmp_path / videos.saved[0]["path"].split("/")[1]) as gif:
        assert gif.height == 280 + 19 + 17 + 46  # a line for the plan, also in the last frame


def test_options_of_the_world_go_to_every_episode():
    config = EvaluationConfig(rollout_episodes=4, pools=("robot",), pushes=2, reasoning=True)
    pools = []

    class Watched(FakePool):
        def reset(self, requests):
            pools.extend(options for _, options in requests.values())
            return super().reset(requests)

    result = RolloutEvaluator(config, lambda: Watched(4)).measure(FakePolicy())
    assert len(pools) == 12 and all(o["pushes"] == 2 and o["reasoning"] for o in pools)
    assert result["speed"]["predictions"] == 12
    assert result["scalars"]["policy/actions_per_prediction"] == 1.0
    assert not any("plans_right" in name for name in result["scalars"])
    for bad in ({"pushes": -1}, {"ensemble_decay": -0.5}, {"ensemble_decay": float("inf")}):
        with pytest.raises(ValueError, match=f"evaluation.{next(iter(bad))} must be at least 0"):
            EvaluationConfig(**bad)


def test_how_an_episode_ended():
    def stop_second(views):
        actions = [np.eye(8)[0] if v.plan.number == 1 else np.zeros(8) for v in views]
        return Moves(list(actions), [""] * len(views))

    outcomes = run_episodes(FakePool(2), plans(2), stop_second, label="t", progress=quiet)
    assert [(o.ended, o.success, o.steps) for o in outcomes] == [
        ("time limit", False, 3),
        ("terminate", False, 1),
    ]


def test_lost_episodes_are_run_again_and_counted():
    # Environment 1 is lost in its first step, environment 0 at its second reset.
    lose = frozenset({(1, 1), (5, 0)})
    pool = FakePool(2, lose=lose)
    outcomes = run_episodes(pool, plans(4), go_right, label="t", progress=quiet)
    assert [o.number for o in outcomes] == [0, 1, 2, 3]
    assert all(o.success and o.steps == 3 for o in outcomes)
    assert summarize(outcomes)["lost_and_rerun"] == 2
    assert outcomes[1].attempts == 2
    assert pool.started.count(101) == 2


def test_an_episode_that_is_always_lost_ends_the_run():
    pool = FakePool(1, lose=frozenset((call, 0) for call in range(100)))
    with pytest.raises(RuntimeError, match=rf"seed 100\) was lost .* {MAX_ATTEMPTS} times"):
        run_episodes(pool, plans(2), go_right, label="t", progress=quiet)
    assert len(pool.started) == MAX_ATTEMPTS


def test_random_agent_does_not_depend_on_what_else_runs():
    agent = random_agent(SPEC)
    seen = []
    for num_envs in (1, 3):
        actions: dict[tuple[int, int], np.ndarray] = {}

        def act(views, actions=actions):
            moves = agent(views)
            for view, action in zip(views, moves.actions):
                actions[view.plan.number, view.step] = action
            return moves

        run_episodes(FakePool(num_envs), plans(4), act, label="t", progress=quiet)
        seen.append(actions)
    assert seen[0].keys() == seen[1].keys()
    for key, action in seen[0].items():
        np.testing.assert_array_equal(action, seen[1][key])
        assert action[0] == 0
        assert np.all((action >= SPEC.low) & (action <= SPEC.high))


def test_summary_has_a_wilson_interval_per_family():
    outcomes = [
        Outcome(i, i, ("pick", "push")[i % 2], "", i < 6, 4 + i % 2, "goal held", 1)
        for i in range(10)
    ]
    summary = summarize(outcomes)
    assert summary["total"]["count"] == 6
    assert (summary["total"]["low"], summary["total"]["high"]) == pytest.approx(
        (0.3127, 0.8318), abs=1e-4
    )
    rows = {
        row["family"]: (row["count"], row["n"], row["mean_steps"]) for row in summary["families"]
    }
    assert rows == {"pick": (3, 5, 4.0), "push": (3, 5, 5.0)}


def test_evaluator_runs_pools_and_baselines(tmp_path):
    config = EvaluationConfig(rollout_episodes=8, rollout_envs=4, seed=7, world="full")
    policy = FakePolicy(act=lambda text: np.eye(8)[1] * (0.05 if "pick" in text else -0.05))
    pools = []

    def start():
        pools.append(FakePool(4))
        return pools[-1]

    evaluator = RolloutEvaluator(config, start)
    result = evaluator.measure(policy, tmp_path)
    runs = {(r["pool"], r["agent"]): r for r in result["runs"]}
    assert set(runs) == {
        (p, a) for p in ("robot", "web_only") for a in ("policy", "random", "expert")
    }
    assert runs["robot", "policy"]["total"]["count"] == 2  # the picks
    assert runs["robot", "expert"]["total"]["share"] == 1.0
    assert [f["count"] for f in runs["web_only", "policy"]["families"]] == [2, 0, 0, 0]
    # One success of pick and one failure of each other family, per pool.
    assert len(runs["robot", "policy"]["videos"]) == 4
    assert len(list(tmp_path.glob("*.gif"))) == 8
    assert pools[0].closed
    assert result["scalars"]["robot/policy/success"] == 0.25
    assert dict(run(evaluator, policy))["rollouts/robot/policy/pick"] == 1.0


def test_processes_divide_the_episodes_and_add_up_to_one(monkeypatch):
    config = EvaluationConfig(rollout_episodes=5, pools=("robot",), baselines=False)

    def measure(policy) -> dict:
        (result,) = RolloutEvaluator(config, lambda: FakePool(2)).measure(policy)["runs"]
        return {k: v for k, v in result.items() if k != "seconds"}

    def picks() -> FakePolicy:
        return FakePolicy(act=lambda text: np.eye(8)[1] * (0.05 if "pick" in text else -0.05))

    alone, found = measure(picks()), []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        policy = picks()
        policy.gather = lambda mine, found=found: [*found, *mine]
        together = measure(policy)
        found = [Outcome(**episode) for episode in together["episodes"]]
    assert together == alone and len(found) == 5


def test_a_process_that_fails_fails_in_all(monkeypatch):
    """What the others are told, and that they are told."""
    params = {"x": np.zeros(1)}
    builder = SequenceBuilder(Vocabulary(), None, max_tokens=8, max_answer_tokens=2)
    config = ModelConfig("tiny", image_size=28, unroll_layers=False)
    policy = Policy(params, config, builder, batch_size=1)
    told = []

    class Broken:
        name = "broken"

        def measure(self, policy, media=None):
            raise RuntimeError("the simulator died")

    monkeypatch.setattr(policy_module, "gather", lambda item: told.append(item) or [item])
    with pytest.raises(RuntimeError, match="the simulator died"):
        dict(run(Broken(), policy))
    assert told == [("RuntimeError: the simulator died", [])]
    monkeypatch.setattr(policy_module, "gather", lambda item: [(None, []), *told])
    with pytest.raises(FailedElsewhereError, match="process 1 failed: RuntimeError: the simulator"):
        policy.gather([1])


def test_what_a_policy_samples_depends_on_episode_and_step_alone():
    def sampled(num_envs: int) -> set[tuple[float, int]]:
        config = EvaluationConfig(
            rollout_episodes=4, pools=("robot",), baselines=False, action_temperature=0.3
        )
        policy = FakePolicy()
        RolloutEvaluator(config, lambda: FakePool(num_envs)).measure(policy)
        return {(t, seed) for t, seeds in policy.sampled for seed in seeds}

    seeds = sampled(4)
    assert len(seeds) == 12 and {t for t, _ in seeds} == {0.3}  # 4 episodes of 3 steps
    assert sampled(1) == seeds
    with pytest.raises(ValueError, match="action_temperature must be at least 0"):
        EvaluationConfig(action_temperature=-1.0)


def test_evaluator_refuses_a_policy_of_another_robot():
    policy = FakePolicy()
    policy.action_spec = type(SPEC)(**{**vars(SPEC), "gripper": "0 closed, 1 open"})
    with pytest.raises(ValueError, match="gripper"):
        RolloutEvaluator(EvaluationConfig(), lambda: FakePool(1)).measure(policy)


def test_video_has_a_frame_per_step_and_says_how_it_ended(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (112, 112, 3), np.uint8)
    frames = [Frame(image, "0 128 128 128 128 128 128 0")] * 5 + [Frame(image, "")]
    path = tmp_path / "a.gif"
    text = "move the strawberry next to the very long name of a thing"
    save_rollout(path, frames, instruction=text, outcome="success after 5 steps", success=True)
    with Image.open(path) as gif:
        assert gif.n_frames == 6  # frames with the same picture are not merged
        assert gif.info["loop"] == 0
        assert gif.width == 280
        assert gif.height > 280 + 2 * 19  # the instruction takes two lines
        durations = []
        for number in range(6):
            gif.seek(number)
            durations.append(gif.info["duration"])
        assert durations == [400] * 5 + [1600]


def test_video_without_frames_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        save_rollout(tmp_path / "a.gif", [], instruction="x", outcome="y", success=True)


def test_pointing_counts_points_inside_boxes(tmp_path):
    # 16-pixel views: the dog's centre (4, 8) is bin (64, 128); its box is 2..6, 6..10.
    answers = {"point to the dog": "<080><128>", "point to the red mat": "dog"}
    views = render_views(FakePool(2), plans(3))
    result = measure_pointing(
        FakePolicy(answer=answers.__getitem__), views, label="t", media=tmp_path
    )
    blocks, mats = result["blocks"], result["mats"]
    assert (blocks["n"], blocks["inside"]["count"]) == (3, 3)
    # (80.5 / 16, 128.5 / 16) is 1.03 pixels from (4, 8): more than 6% of 16.
    assert blocks["median_px"] == pytest.approx(np.hypot(80.5 / 16 - 4, 128.5 / 16 - 8))
    assert blocks["within"]["count"] == 0
    assert (mats["inside"]["count"], mats["malformed"], mats["median_px"]) == (0, 3, None)
    assert len(result["examples"]) == 3


def test_pointing_views_that_are_lost_are_rendered_again():
    pool = FakePool(2, lose=frozenset({(0, 1)}))
    views = render_views(pool, plans(4))
    assert len(views) == 4
    assert [v[0][0, 0, 0] for v in views] == [100, 101, 102, 103]
    with pytest.raises(RuntimeError, match="again and again"):
        render_views(FakePool(1, lose=frozenset((c, 0) for c in range(9))), plans(1))


def test_pointing_evaluator_names_its_pools():
    config = EvaluationConfig(pointing_views=2)
    result = PointingEvaluator(config, lambda: FakePool(2)).measure(FakePolicy())
    assert set(result["pools"]) == {"robot", "web_only"}
    assert result["scalars"]["robot/blocks_inside"] == 0.0


@pytest.mark.parametrize(
    "bad", [{"rollout_episodes": -1}, {"rollout_envs": 0}, {"batch_size": 0}, {"vqa_examples": -5}]
)
def test_config_refuses(bad):
    with pytest.raises(ValueError, match=rf"evaluation.{next(iter(bad))}"):
        EvaluationConfig(**bad)


def test_expert_agent_leaves_the_action_to_the_worker():
    assert expert_agent([None, None]).actions == [None, None]  # type: ignore[list-item]
