"""Questions about a robot's gripper: where it is, what it holds, and the way to a thing."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from vla_jax.corpus.coordinates import point_pieces, reach_pieces
from vla_jax.corpus.phrases import ERRAND_PHRASES, POINT_PHRASES, REACH_PHRASES
from vla_jax.corpus.scenes import Scene

if TYPE_CHECKING:
    from vla_jax.corpus.questions import QuestionMaker, Sample


def ask_gripper(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    scene = maker.scene(rng, 1, 4, table=True, gripper=True)
    if scene.gripper is None:
        return None
    asked = rng.choice(POINT_PHRASES).format("the gripper")
    return maker.sample(scene, "gripper", asked, point_pieces(scene.gripper.dot, maker.size))


def ask_reach(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    """How a gripper reaches a thing; with an errand, the block, or its goal once it holds it."""
    scene = maker.scene(rng, 1, 4, table=True, gripper=True)
    if scene.gripper is None:
        return None
    places = {maker.bank.name(o.key): o.center for o in scene.objects}
    goals = places | {f"{m.color} mat": m.center for m in scene.mats if m.under is None}
    held = maker.bank.name(scene.gripper.holds) if scene.gripper.holds else ""
    target = rng.choice(tuple(goals))
    question = rng.choice(REACH_PHRASES).format(target)
    if len(goals) > 1 and rng.random() < 0.4:
        name = held if held and rng.random() < 0.7 else rng.choice(tuple(places))
        goal = rng.choice([other for other in goals if other != name])
        question = rng.choice(ERRAND_PHRASES).format(name, goal)
        target = goal if name == held else name
    answer = reach_pieces(scene.gripper, goals[target], maker.size)
    return maker.sample(scene, "reach", question, answer)


def ask_grip(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    scene = maker.scene(rng, 1, 4, table=True, gripper=True)
    if scene.gripper is None:
        return None
    asked = rng.choice(("is the gripper open?", "are the fingers open?"))
    return maker.sample(scene, "grip", asked, "yes" if scene.gripper.open else "no")


def ask_over(maker: QuestionMaker, rng: random.Random) -> Sample | None:
    """`is the gripper over the dog?`, or what it is over: where its dot is; or what it holds."""
    scene = maker.scene(rng, 1, 4, table=True, gripper=True)
    if scene.gripper is None:
        return None
    if scene.gripper.holds:
        return _holds(maker, scene, rng)
    dot = scene.gripper.dot
    y, x = dot
    things = [(maker.bank.name(o.key), o.box) for o in scene.objects]
    below = [n for n, (y0, x0, y1, x1) in things if y0 < y < y1 and x0 < x < x1]
    if rng.random() < 0.5:
        answer = below[0] if len(below) == 1 else "nothing"
        return maker.sample(scene, "over", "what is the gripper over?", answer)
    near = min(scene.objects, key=lambda o: math.dist(o.center, dot))
    asked = near if rng.random() < 0.7 else rng.choice(scene.objects)
    name = maker.bank.name(asked.key)
    question = f"is the gripper over the {name}?"
    return maker.sample(scene, "over", question, "yes" if name in below else "no")


def _holds(maker: QuestionMaker, scene: Scene, rng: random.Random) -> Sample:
    assert scene.gripper is not None
    held = scene.gripper.holds
    if rng.random() < 0.5:
        name = maker.bank.name(held)
        return maker.sample(scene, "holds", "what is the gripper holding?", name)
    asked = held if rng.random() < 0.5 else rng.choice(scene.objects).key
    question = f"is the gripper holding the {maker.bank.name(asked)}?"
    return maker.sample(scene, "holds", question, "yes" if asked == held else "no")
