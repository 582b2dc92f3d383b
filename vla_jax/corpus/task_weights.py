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
    "count": 2,
    "count_all": 2,
    "numbers": 4,
    "present": 3,
}
"""Relative weights. One in five questions is about a robot's gripper: as in PaLM-E's mixture
(arXiv 2303.03378), some web data is about what a robot sees, and none is about what one did."""

PACKED_WEIGHTS: dict[str, float] = TASK_WEIGHTS | {
    "point": 4,
    "point_mat": 2,
    "detect": 2,
    "offset": 4,
    "gripper": 2,
    "reach": 6,
    "over": 7,
    "which": 8,
    "relation": 2,
    "name": 1,
    "caption": 3,
    "color": 5,
    "count": 6,
    "numbers": 10,
    "present": 2,
}
"""Likewise where one picture has several questions: flatter, and more of what takes long to learn
and few pictures allow to be asked."""

# Tasks that can ask about any scene, about a crowd, about one that shows a thing twice, and those
# that need two objects.
ABOUT_ANY = (
    *("point", "point_mat", "detect", "offset", "which", "relation", "name_at", "caption"),
    *("color", "present", "category", "count_all", "numbers", "gripper", "reach"),
    *("grip", "over"),
)
ABOUT_CROWD = (
    *("point", "point_mat", "detect", "offset", "name_at", "present", "gripper", "reach"),
    *("grip", "over"),
)
ABOUT_REPEATED = ("point_mat", "count", "count_all", "present", "gripper", "grip")
NEED_SEVERAL = (
    *("offset", "which", "relation", "name_at", "category", "count", "count_all", "numbers"),
)
ABOUT_SEVERAL = ("offset", "which", "relation", "name_at")
