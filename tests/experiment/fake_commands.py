"""Stands in for `python` in the experiment's commands: writes what they leave, in no time.

FAKE_TRACE: file to which each call adds a line, "train large_scratch".
FAKE_HANG: a run's name; its training waits until the file `release` is beside the trace.
FAKE_FAIL: such a line; that call fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

GROUPS = {
    "symbols": {
        "symbol": "Symbols 1: a symbol",
        "picture": "Symbols 2: a picture",
        "relation": "Symbols 3: a symbol and a relation",
    },
    "reasoning": {
        "math": "Math",
        "category": "Logos: categories and signs",
        "nutrition": "Nutrition",
        "languages": "Colours and five languages",
    },
    "people": {"professions": "People: professions", "faces": "People: faces"},
}
# Right of 20 in: seen, each unseen cell, each emergent cell, control; right of 100 questions.
RATES = {
    "web_50": (16, 14, 12, 4, 68),
    "web_25": (15, 13, 10, 4, 60),
    "web_66": (15, 14, 13, 4, 74),
    "web_75": (13, 12, 12, 3, 76),
    "robot_only": (15, 10, 6, 4, 32),
    "scratch": (3, 2, 1, 1, 2),
    "before": (0, 0, 0, 0, 80),
}
GIF = bytes.fromhex(
    "47494638396101000100800000ffffff00000021f90400000000002c00000000010001000002024401003b"
)
PAPER = {"RT-2-PaLI-X-55B": 60, "RT-1": 21}


def share(count: int, n: int) -> dict:
    # The interval is wrong on purpose: it must be made from the count.
    return {"count": count, "n": n, "share": count / n, "low": 0.0, "high": 0.0}


def suites(name: str) -> dict:
    """`suites.json` of a run of this name, in the form that the evaluation writes."""
    seen, unseen, emergent, control, _ = RATES[name.split("_", 1)[1]]
    rows = [("seen", "seen", "seen", "Seen tasks", seen)]
    for group in ("objects", "backgrounds", "environments"):
        for level in ("easy", "hard"):
            title = f"Unseen {group}, {level}"
            # The first column is better by 2, so that the columns are not all the same.
            more = 2 if (group, level) == ("objects", "easy") else 0
            rows.append(("unseen", group, f"{group}_{level}", title, unseen + more))
    for group, kinds in GROUPS.items():
        # People are harder by 1, so that the mean of the groups is not that of the cells.
        less = 1 if group == "people" else 0
        rows += [
            ("emergent", group, f"{group}_{kind}", title, emergent - less)
            for kind, title in kinds.items()
        ]
    rows.append(("control", "control", "control", "Control", control))
    cells = [
        {
            **{"suite": suite, "group": group, "cell": cell, "title": title, **share(count, 20)},
            **{"paper": {} if suite == "control" else PAPER, "instructions": {}, "seconds": 1.0},
            "videos": [
                {"path": f"media/{cell}_{k}.gif", "success": k == 0, "seed": k, "steps": 3}
                | {"instruction": f"pick <{cell}>"}
                for k in range(2)
            ],
        }
        for suite, group, cell, title, count in rows
    ]
    web = [c for c in cells if c["group"] in ("objects", *GROUPS)]
    total = share(sum(c["count"] for c in web), sum(c["n"] for c in web))
    return {"world": "demo", "seed": 9, "n": 20, "cells": cells, "averages": {"web_only": total}}


def train(words: list[str]) -> None:
    values = dict(w.removeprefix("--config.").split("=", 1) for w in words if "=" in w)
    workdir = Path(values["--workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    if os.environ.get("FAKE_HANG") == workdir.name:
        while not (Path(os.environ["FAKE_TRACE"]).parent / "release").exists():
            time.sleep(0.02)
    # As readers do, it keeps an index beside the data.
    Path(values["data.sources.robot.path"], ".index-1.npy").write_text(workdir.name)
    steps, batch = int(values["train.steps"]), int(values["train.batch_size"])
    config = {
        "train": {"steps": steps, "batch_size": batch, "seed": 0},
        "data": {"seed": 1},
        "model": {"preset": values["model.preset"]},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    records = [
        {"step": s, **{f"{n}/{k}": v for n in ("robot", "web") for k, v in scalars.items()}}
        for s in range(1, steps + 1)
        for scalars in [{"loss": 3 / s, "token_accuracy": 1 - 1 / s, "share_configured": 0.5}]
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def evaluate(words: list[str]) -> None:
    values = dict(w.split("=", 1) for w in words if "=" in w)
    run = Path(values["--workdir"])
    media = run / "evaluation" / "media"
    media.mkdir(parents=True, exist_ok=True)
    if int(values["--evaluation.suite_rollouts"]):
        result = suites(run.name)
        (run / "evaluation" / "suites.json").write_text(json.dumps(result))
        for cell in result["cells"]:
            for k in range(2):
                (media / f"{cell['cell']}_{k}.gif").write_bytes(GIF)
    right = RATES[run.name.split("_", 1)[1]][4]
    answers = {"questions": share(right, 100), "right": share(right, 200)}
    (run / "evaluation" / "vqa_web.json").write_text(json.dumps(answers))
    record = {"device": "1 x cpu (cpu)", "settings": {"seed": 9}}
    (run / "evaluation" / "run.json").write_text(json.dumps(record))


def main(words: list[str]) -> None:
    module, words = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    values = dict(w.split("=", 1) for w in words if "=" in w)
    place = Path(values.get("--workdir") or values["--out"])
    line = f"{module.split('.')[-1]} {place.name}"
    with Path(os.environ["FAKE_TRACE"]).open("a") as file:
        file.write(line + "\n")
    if os.environ.get("FAKE_FAIL") == line:
        sys.exit(3)
    if module == "vla_jax.train":
        train(words)
    elif module == "vla_jax.evaluate":
        evaluate(words)
    elif module in ("vla_jax.data.write", "vla_jax.envs.episodes"):
        place.mkdir(parents=True)
        (place / "data").write_text(module)
    else:
        raise ValueError(module)


if __name__ == "__main__":
    main(sys.argv[1:])
