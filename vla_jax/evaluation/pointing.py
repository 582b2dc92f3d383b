"""Pointing on rendered table-top views: does what the web taught reach the robot's camera?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vla_jax.evaluation.base import Result
from vla_jax.evaluation.media import Marked
from vla_jax.evaluation.rollout import Plan, Pool
from vla_jax.evaluation.statistics import Sums
from vla_jax.evaluation.vqa import POINT_TOLERANCE, integer_pieces

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

QUESTION = "point to the {}"
EXAMPLES = 8
_MAX_LOST = 3


def render_views(pool: Pool, plans: Sequence[Plan]) -> list[tuple[np.ndarray, list[dict]]]:
    """The first picture of each episode, uint8 [h, w, 3], and what `info["objects"]` says is in it.

    Raises RuntimeError if a view is lost with its worker again and again.
    """
    views: dict[int, tuple[np.ndarray, list[dict]]] = {}
    lost = 0
    while len(views) < len(plans):
        todo = [plan for plan in plans if plan.number not in views][: pool.num_envs]
        results = pool.reset({i: (p.seed, dict(p.options)) for i, p in enumerate(todo)})
        for i, plan in enumerate(todo):
            result = results[i]
            if result is not None:
                observation, info = result
                views[plan.number] = observation["image"], info["objects"]
        if any(result is None for result in results.values()):
            lost += 1
            if lost > _MAX_LOST:
                raise RuntimeError("table-top views were lost with their workers again and again")
    return [views[plan.number] for plan in plans]


def measure_pointing(
    policy: Policy,
    views: Sequence[tuple[np.ndarray, list[dict]]],
    *,
    label: str,
    media: Path | None = None,
) -> Result:
    """Asks for every block and mat of every view where it is.

    Args:
      views: from `render_views`.
      label: names the pictures' files.
      media: see `Evaluator`.

    Returns:
      "blocks" and "mats", each with "n", "inside" (share of points inside the object's box, as
      projected into the picture), "within" (share within 6% of the image's side of its centre),
      "median_px" and "malformed"; "examples".
    """
    images = [image for image, objects in views for _ in objects]
    asked = [o for _, objects in views for o in objects]
    if not asked:
        raise ValueError("no objects to point to: the views are empty")
    answers = policy.answer(np.stack(images), [QUESTION.format(o["name"]) for o in asked])
    side = images[0].shape[0]
    points = [_point(answer, side) for answer in answers]
    result: Result = {"image_size": side, "views": len(views), "tolerance": POINT_TOLERANCE}
    kinds = np.asarray(["mats" if o["name"].endswith(" mat") else "blocks" for o in asked])
    for kind in ("blocks", "mats"):
        rows = np.flatnonzero(kinds == kind)
        result[kind] = _score([asked[r] for r in rows], [points[r] for r in rows], side)
    result["examples"] = []
    if media is not None:
        start = 0
        for number, (image, objects) in enumerate(views[:EXAMPLES]):
            mine = points[start : start + len(objects)]
            start += len(objects)
            path = media / f"pointing_{label}_{number}.png"
            _draw(image, objects, mine).save(path)
            result["examples"].append(f"{media.name}/{path.name}")
    return result


def _point(answer: str, side: int) -> tuple[float, float] | None:
    """(y, x) in pixels, the centre of the bin; None for an answer that is no point."""
    pieces = integer_pieces(answer)
    if pieces is None or len(pieces) != 2:
        return None
    y, x = (float(v + 0.5) / 256 * side for v in pieces)
    return y, x


def _score(
    objects: Sequence[dict], points: Sequence[tuple[float, float] | None], side: int
) -> dict[str, Any]:
    sums, distances = Sums(), []
    for thing, point in zip(objects, points):
        inside = within = False
        if point is not None:
            y0, x0, y1, x1 = thing["box_yxyx"]
            inside = y0 <= point[0] <= y1 and x0 <= point[1] <= x1
            distance = float(np.hypot(*(p - c for p, c in zip(point, thing["center_yx"]))))
            distances.append(distance)
            within = distance <= POINT_TOLERANCE * side
        sums.add("inside", inside)
        sums.add("within", within)
        sums.add("malformed", point is None)
    return {
        "n": len(objects),
        "inside": sums.share("inside"),
        "within": sums.share("within"),
        "median_px": float(np.median(distances)) if distances else None,
        "malformed": round(sums.total("malformed")),
    }


_COLORS = ((230, 57, 70), (29, 130, 200), (20, 150, 90), (240, 150, 20), (130, 70, 190))


def _draw(
    image: np.ndarray, objects: Sequence[dict], points: Sequence[tuple[float, float] | None]
) -> Image.Image:
    """Each object's box, and a cross of the same colour where the model points."""
    marked = Marked(image)
    for number, (thing, point) in enumerate(zip(objects, points)):
        color = _COLORS[number % len(_COLORS)]
        marked.box(thing["box_yxyx"], color)
        if point is not None:
            marked.cross(point, color)
    return marked.picture
