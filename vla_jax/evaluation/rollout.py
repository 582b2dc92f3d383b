"""Closed loop: episodes run in parallel simulators, one model call for all that are running."""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.decoding.chunks import ChunkExecutor
from vla_jax.decoding.frames import FrameHistory
from vla_jax.envs.pool import Transition
from vla_jax.evaluation.base import EvaluationConfig, Result
from vla_jax.evaluation.media import Frame
from vla_jax.evaluation.speed import Speed
from vla_jax.evaluation.statistics import share_of
from vla_jax.text.prompts import plan_sentence

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

MAX_ATTEMPTS = 4
"""A lost episode is run again; one that is lost every time means a broken simulator."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One episode to run; everything that happens in it follows from these and the agent.

    Attributes:
      number: counts from 0.
      seed, options: of the world's `reset`.
    """

    number: int
    seed: int
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class View:
    """What an agent gets to see of one running episode."""

    plan: Plan
    step: int  # actions done so far
    observation: Mapping[str, np.ndarray]
    info: Mapping[str, Any]


class Moves(NamedTuple):
    """What an agent does in n running episodes."""

    actions: list[np.ndarray | None]  # float32 [A] each; None: the scripted expert's
    tokens: list[str]  # action strings, for videos
    plans: Sequence[str] = ()  # what each said that it would do, of a policy that plans


Agent = Callable[[Sequence[View]], Moves]


class Pool(Protocol):
    """The part of `envs.pool.EnvPool` that is used here. Keys are numbers of environments.

    A result is None where its worker was lost. An action of None is the scripted expert's.
    """

    @property
    def num_envs(self) -> int: ...

    def reset(
        self, requests: Mapping[int, tuple[int, dict[str, Any] | None]]
    ) -> Mapping[int, tuple[dict[str, np.ndarray], dict[str, Any]] | None]: ...

    def step(self, actions: Mapping[int, np.ndarray | None]) -> Mapping[int, Transition | None]: ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished episode.

    Attributes:
      family: kind of task; in Meta-World the task's name.
      ended: "terminate" (the agent said so), "goal held" or "time limit".
      attempts: 1 + how often it was lost with its worker and run again.
      pushes: mishaps that the simulator made happen.
      plan: what the policy said first that it would do; "" if it does not plan.
      wanted_plan: the plain words for the task, from the simulator.
    """

    number: int
    seed: int
    family: str
    instruction: str
    success: bool
    steps: int
    ended: str
    attempts: int
    pushes: int = 0
    plan: str = ""
    wanted_plan: str = ""


class _Running:
    """An episode in progress in one environment."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.step = 0
        self.observation: Mapping[str, np.ndarray] = {}
        self.info: Mapping[str, Any] = {}
        self.frames: list[Frame] = []
        self.said = ""  # the first plan

    @property
    def view(self) -> View:
        return View(self.plan, self.step, self.observation, self.info)


def policy_agent(
    policy: Policy,
    temperature: float = 0.0,
    execute_steps: int = 1,
    *,
    ensemble_decay: float | None = None,
    speed: Speed | None = None,
) -> Agent:
    """The policy sees the picture, those of the steps before if it was trained with them, the
    instruction and, likewise, the state.

    What it samples depends on the episode and the step, not on what else is running.

    Args:
      execute_steps, ensemble_decay: of `ChunkExecutor`.
      speed: counts and times what it does.

    Raises:
      ValueError: as `ChunkExecutor`.
    """
    tokenizer, tally = policy.action_tokenizer, speed or Speed()

    def begun() -> _Acting:
        executor = ChunkExecutor(
            tokenizer.spec,
            tokenizer.chunk,
            execute_steps=execute_steps,
            ensemble_decay=ensemble_decay,
        )
        return _Acting(executor, FrameHistory(policy.frames))

    begun()  # refuses now what it would refuse in the first episode
    acting: dict[int, _Acting] = {}  # by number of the episode

    def act(views: Sequence[View]) -> Moves:
        for number in acting.keys() - {view.plan.number for view in views}:  # it has ended
            del acting[number]
        mine = []
        for view in views:
            if view.step == 0:
                acting[view.plan.number] = begun()
            mine.append(acting[view.plan.number])
            mine[-1].seen.add({"image": view.observation["image"]})
        due = [(v, a) for v, a in zip(views, mine) if a.executor.due]
        if due:
            images = np.stack([a.seen.views()["image"] for _, a in due])
            instructions = [v.info["instruction"] for v, _ in due]
            seeds = [(v.plan.seed * 1009 + v.step) % 2**31 for v, _ in due]
            states = None
            if policy.needs_state:
                states = np.stack([v.observation["state"] for v, _ in due])
            started = time.perf_counter()
            result = policy.act(
                images, instructions, temperature=temperature, seeds=seeds, states=states
            )
            tally.add_call(len(due), time.perf_counter() - started)
            plans = result.plans or ("",) * len(due)
            for (_, a), actions, ids, plan in zip(due, result.actions, result.ids, plans):
                a.executor.add(actions)
                a.tokens, a.plan = tokenizer.text(ids), plan
        tally.actions += len(views)
        return Moves(
            [a.executor.next() for a in mine], [a.tokens for a in mine], [a.plan for a in mine]
        )

    return act


@dataclasses.dataclass
class _Acting:
    """A policy in one episode."""

    executor: ChunkExecutor
    seen: FrameHistory
    tokens: str = ""  # of the newest chunk
    plan: str = ""


def random_agent(spec: ActionSpec) -> Agent:
    """Uniform within the bounds, and never ends the episode itself.

    What it does depends on the episode and the step, not on what else is running.
    """

    def act(views: Sequence[View]) -> Moves:
        actions = []
        for view in views:
            rng = np.random.default_rng((view.plan.seed, view.step))
            action = rng.uniform(spec.low, spec.high).astype(np.float32)
            action[[d.unit == "flag" for d in spec.dimensions]] = 0.0
            actions.append(action)
        return Moves(actions, [""] * len(actions))

    return act


def expert_agent(views: Sequence[View]) -> Moves:
    """The scripted expert, which acts inside the worker because it sees the simulator's state."""
    return Moves([None] * len(views), [""] * len(views))


def make_agents(
    config: EvaluationConfig, policy: Policy, spec: ActionSpec, speed: Speed | None = None
) -> dict[str, Agent]:
    """Name -> who acts in the config's world: "policy", with baselines also "random" and "expert".

    Args:
      spec: the world's.
      speed: counts and times what the policy does.

    Raises ValueError if the policy's ActionSpec is not the world's.
    """
    if len(policy.robots) > 1:
        policy = policy.for_robot(spec.name)
    policy.action_spec.require_same(spec, here="the policy", there=f"world {config.world!r}")
    acts = policy_agent(
        policy,
        config.action_temperature,
        config.execute_steps,
        ensemble_decay=config.ensemble_decay,
        speed=speed,
    )
    agents: dict[str, Agent] = {"policy": acts}
    if config.baselines:
        agents |= {"random": random_agent(spec), "expert": expert_agent}
    return agents


def make_plans(
    count: int, seed: int, families: Sequence[str], concepts: Sequence[str], **options: Any
) -> list[Plan]:
    """Episodes that go round the families, with seeds `seed`, `seed` + 1, ...

    Args:
      options: more of `TabletopEnv.reset`, the same for all.
    """
    shared = {"concepts": tuple(concepts), **options}
    return [
        Plan(i, seed + i, {"family": families[i % len(families)], **shared}) for i in range(count)
    ]


def run_episodes(
    pool: Pool,
    plans: Sequence[Plan],
    agent: Agent,
    *,
    label: str,
    finished: Callable[[Outcome, list[Frame]], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Runs every plan once to its end; episodes that are lost with a worker are run again.

    Args:
      pool: simulators; each runs one episode at a time, and the next one when that ends.
      agent: decides for all running episodes together.
      label: for progress lines.
      finished: called with each outcome and its frames. Without it no frames are kept.
      progress: prints a line; None: stderr.

    Returns:
      In the order of `plans`.

    Raises:
      RuntimeError: an episode was lost `MAX_ATTEMPTS` times.
    """
    waiting = collections.deque(plans)
    attempts = collections.Counter(plan.number for plan in plans)
    running: dict[int, _Running] = {}
    done: dict[int, Outcome] = {}
    meter = _Meter(label, len(plans), progress)

    def lose(index: int) -> None:
        plan = running.pop(index).plan
        if attempts[plan.number] >= MAX_ATTEMPTS:
            raise RuntimeError(
                f"{label}: episode {plan.number} (seed {plan.seed}) was lost with its worker "
                f"{MAX_ATTEMPTS} times: its simulator crashes or hangs; run it alone to see why"
            )
        attempts[plan.number] += 1
        waiting.appendleft(plan)

    while waiting or running:
        free = [i for i in range(pool.num_envs) if i not in running]
        started = {i: _Running(waiting.popleft()) for i in free[: len(waiting)]}
        running.update(started)
        if started:
            requests = {i: (r.plan.seed, dict(r.plan.options)) for i, r in started.items()}
            for i, result in pool.reset(requests).items():
                if result is None:
                    lose(i)
                else:
                    running[i].observation, running[i].info = result
        if not running:
            continue
        indices = list(running)
        moves = agent([running[i].view for i in indices])
        for i, tokens, plan in zip(indices, moves.tokens, moves.plans or [""] * len(indices)):
            running[i].said = running[i].said or plan
            if finished is not None:
                running[i].frames.append(Frame(running[i].observation["image"], tokens, plan))
        results = pool.step(dict(zip(indices, moves.actions)))
        for i in indices:
            transition = results[i]
            if transition is None:
                lose(i)
                continue
            outcome = _advance(running[i], transition, attempts)
            if outcome is not None:
                done[outcome.number] = outcome
                frames = running.pop(i).frames
                if finished is not None:
                    finished(outcome, frames)
        meter.show(done.values())
    meter.show(done.values(), last=True)
    return [done[plan.number] for plan in plans]


def _advance(
    episode: _Running, transition: Transition, attempts: collections.Counter[int]
) -> Outcome | None:
    """Takes in one step; returns the outcome if the episode has ended."""
    episode.observation, episode.info = transition.observation, transition.info
    episode.step += 1
    if not (transition.terminated or transition.truncated):
        return None
    if episode.frames:
        episode.frames.append(Frame(episode.observation["image"], ""))
    plan, info = episode.plan, episode.info
    ended = "time limit"
    if transition.terminated:
        # Terminate comes first where an action has it; else comes a position, of few centimetres.
        ended = "terminate" if transition.action[0] > 0.5 else "goal held"
    return Outcome(
        number=plan.number,
        seed=plan.seed,
        family=info["family"],
        instruction=info["instruction"],
        success=bool(info["success"]),
        steps=episode.step,
        ended=ended,
        attempts=attempts[plan.number],
        pushes=info.get("pushes", 0),
        plan=episode.said,
        wanted_plan=info.get("plan", ""),
    )


class _Meter:
    """A line every few seconds."""

    def __init__(self, label: str, total: int, progress: Callable[[str], None] | None):
        self._label, self._total = label, total
        self._print = progress or (lambda line: print(line, file=sys.stderr, flush=True))
        self._start = self._shown = time.monotonic()

    def show(self, done, *, last: bool = False) -> None:
        now, count = time.monotonic(), len(done)
        if not last and (now - self._shown < 5 or not count):
            return
        self._shown = now
        wins = sum(o.success for o in done)
        spent = now - self._start
        left = spent / count * (self._total - count) if count else 0
        when = f"{spent:.0f} s" if last else f"ETA {int(left // 60)}:{int(left % 60):02d}"
        share = f"{wins / count:.0%}" if count else "-"
        self._print(f"{self._label}: {count}/{self._total} episodes, success {share}, {when}")


def summarize(outcomes: Sequence[Outcome]) -> Result:
    """Success per family and in all, with 95% Wilson intervals.

    Families come in the order in which they first appear. `plans_right` is of the first plans that
    the policy said, word for word.
    """
    families = list(dict.fromkeys(o.family for o in outcomes))
    rows = []
    for family in families:
        mine = [o for o in outcomes if o.family == family]
        wins = [o for o in mine if o.success]
        rows.append(
            {
                "family": family,
                **share_of(len(wins), len(mine)),
                "mean_steps": float(np.mean([o.steps for o in mine])),
            }
        )
    planned = [o for o in outcomes if o.plan]
    right = sum(plan_sentence(o.plan) == plan_sentence(o.wanted_plan) for o in planned)
    return {
        "total": share_of(sum(o.success for o in outcomes), len(outcomes)),
        "plans_right": share_of(right, len(planned)),
        "pushes": sum(o.pushes for o in outcomes),
        "families": rows,
        "mean_steps": float(np.mean([o.steps for o in outcomes])) if outcomes else None,
        "ended": dict(collections.Counter(o.ended for o in outcomes)),
        "lost_and_rerun": sum(o.attempts - 1 for o in outcomes),
        "episodes": [dataclasses.asdict(o) for o in outcomes],
    }
