"""Files of JSON lines that a process may be killed while writing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none if there is no file; lines cut by a crash are left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line, after ending one that a crash has cut."""
    with path.open("ab+") as file:
        cut = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut = b"" if file.read() == b"\n" else b"\n"
        # In one write: a kill leaves all or nothing of it, nearly always.
        file.write(cut + json.dumps(record).encode() + b"\n")
