"""The list of files that every checkpoint carries, to tell a half-deleted one before it is read."""

from __future__ import annotations

import json
from pathlib import Path

FILE_LIST = "files.json"


def write_file_list(directory: Path, *, under: tuple[str, ...]) -> None:
    """Writes name and size in bytes of every file of `directory`'s folders `under`."""
    files = [p for name in under for p in sorted((directory / name).rglob("*")) if p.is_file()]
    sizes = {p.relative_to(directory).as_posix(): p.stat().st_size for p in files}
    (directory / FILE_LIST).write_text(json.dumps(sizes, indent=0) + "\n")


def damage(directory: Path) -> list[str]:
    """What of a checkpoint's files is missing or shorter than it was; nothing if all is there.

    A directory without a list, or with a damaged one, is not judged: reading it will tell.
    """
    try:
        sizes = json.loads((directory / FILE_LIST).read_text())
    except (OSError, ValueError):
        return []
    problems = []
    for name, size in sizes.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes, not {size}")
    return problems
