"""How often each task of `corpus.questions` is asked, and of which scenes it can be."""

TASK_WEIGHTS: dict[str, float] = {
    "point": 33,
    "point_mat": 6,
    "detect": 6,
    "offset": 9,
    "gripper": 3,
    "reach": 12,
    "grip": 3,
    "over": 6,
    "which": 5,
    "relation": 3,
    "name_at": 5,
    "name": 7,
    "caption": 9,
    "category": 6,
    "color": 4,
    "count": 4,
    "numbers": 4,
    "present": 3,
}
"""Relative weights. One in five questions is about a robot's gripper: as in PaLM-E's mixture
(arXiv 2303.03378), some web data is about what a robot sees, and none is about what one did."""

PACKED_WEIGHTS: dict[str, float] = TASK_WEIGHTS | {
    "point": 6,
    "point_mat": 2.5,
    "detect": 2.5,
    "offset": 3,
    "gripper": 2,
    "reach": 5.5,
    "grip": 2,
    "over": 4,
    "name_at": 3,
    "name": 1,
    "caption": 3,
    "numbers": 8,
    "present": 2,
}
"""Likewise where one picture has several questions: flatter, and more of what takes long to learn
and few pictures allow to be asked."""

# Tasks that can ask about any scene, about a crowd, about one that shows a thing twice, and those
# that need two objects.
ABOUT_ANY = (
    *("point", "point_mat", "detect", "offset", "which", "relation", "name_at", "caption"),
    *("color", "present", "category", "count", "numbers", "gripper", "reach"),
    *("grip", "over"),
)
ABOUT_CROWD = (
    *("point", "point_mat", "detect", "offset", "name_at", "present", "gripper", "reach"),
    *("grip", "over"),
)
ABOUT_REPEATED = ("point_mat", "count", "present", "gripper", "grip")
NEED_SEVERAL = ("offset", "which", "relation", "name_at", "category", "count", "numbers")
ABOUT_SEVERAL = ("offset", "which", "relation", "name_at")
