"""What RT-2 reports (arXiv 2307.15818), to be printed beside: other robots, tasks and models."""

from __future__ import annotations

UNSEEN = {
    "objects_easy": "objects, easy",
    "objects_hard": "objects, hard",
    "backgrounds_easy": "backgrounds, easy",
    "backgrounds_hard": "backgrounds, hard",
    "environments_easy": "environments, easy",
    "environments_hard": "environments, hard",
}
"""Columns of table 6, by the suites' names of the cells."""

TABLE_6: tuple[tuple[str, str, tuple[int, ...], int], ...] = (
    ("5B", "from scratch", (0, 10, 46, 0, 0, 0), 9),
    ("5B", "fine-tuning", (24, 38, 79, 50, 36, 23), 42),
    ("5B", "co-fine-tuning", (60, 38, 67, 29, 44, 24), 44),
    ("55B", "fine-tuning", (60, 62, 75, 38, 57, 19), 52),
    ("55B", "co-fine-tuning", (70, 62, 96, 48, 63, 35), 63),
)
"""(size, training, success in percent of the columns, average)."""

GROUPS = {
    "symbols": "symbols",
    "reasoning": "reasoning",
    "people": "people",
}
"""Groups of table 5."""
