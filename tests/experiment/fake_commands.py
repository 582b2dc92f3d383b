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
    "on": (0, 0, 9, 0, 50),
    "off": (0, 0, 5, 0, 50),
}
# Right of 50 rollouts with concepts of the episodes and of 40 with others; first plans right of 50.
ROLLOUTS = {
    "plans_on": (30, 20, 45),
    "plans_off": (24, 12, 0),
    "fast_all": (25, 22, 0),
    "fast_1": (28, 24, 0),
    "fast_ensemble": (33, 25, 0),
    "bins_1": (31, 23, 0),
    "bins_1_smoothed": (35, 26, 0),
    "usual": (32, 24, 0),
    "usual_pushed": (15, 9, 0),
    "recovery": (31, 24, 0),
    "recovery_pushed": (27, 19, 0),
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


def rollouts(name: str, steps: int) -> dict:
    """`rollouts.json` likewise; `steps` are done a look, and a call of 4 robots took 50 ms."""
    right = ROLLOUTS[name]
    runs = []
    for pool, count, n in (("robot", right[0], 50), ("web_only", right[1], 40)):
        clips = [
            {"path": f"media/{pool}_{k}.gif", "success": k == 0, "seed": k, "steps": 3}
            | {"instruction": f"pick <{pool}>", "family": "pick"}
            for k in range(2)
        ]
        plans = share(right[2], 50) if right[2] else {"count": 0, "n": 0, "share": None}
        runs.append(
            {"pool": pool, "agent": "policy", "total": share(count, n), "plans_right": plans}
            | {"videos": clips}
        )
        # What another agent does must not be taken for the policy's.
        runs.append({**runs[-1], "agent": "expert", "total": share(n, n)})
    speed = {"actions_per_prediction": steps, "robot_actions_per_s": 20 * steps}
    return {"runs": runs, "speed": {**speed, "actions_per_s": 80 * steps}}


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
    if not Path(values["--workdir"], "config.json").is_file():
        sys.exit(f"no run in {values['--workdir']}")
    out = Path(values.get("--out") or Path(values["--workdir"], "evaluation"))
    name, media = out.parent.name, out / "media"
    media.mkdir(parents=True, exist_ok=True)
    if int(values.get("--evaluation.suite_rollouts", 0)):
        result = suites(name)
        asked = values.get("--evaluation.suites", "seen,unseen,emergent,control").split(",")
        result["cells"] = [c for c in result["cells"] if c["suite"] in asked]
        (out / "suites.json").write_text(json.dumps(result))
        for cell in result["cells"]:
            for k in range(2):
                (media / f"{cell['cell']}_{k}.gif").write_bytes(GIF)
    if int(values["--evaluation.rollout_episodes"]):
        result = rollouts(name, int(values.get("--evaluation.execute_steps", 1)))
        (out / "rollouts.json").write_text(json.dumps(result))
        for clip in (clip for run in result["runs"] for clip in run["videos"]):
            (out / clip["path"]).write_bytes(GIF)
    right = RATES.get(name.split("_", 1)[-1], (0, 0, 0, 0, 40))[4]
    answers = {"questions": share(right, 100), "right": share(right, 200)}
    (out / "vqa_web.json").write_text(json.dumps(answers))
    record = {"device": "1 x cpu (cpu)", "settings": {"seed": 9}}
    (out / "run.json").write_text(json.dumps(record))


def tool(values: dict[str, str], name: str) -> None:
    """Leaves the files of a tool; what it reads must be there."""
    reads = [v for k, v in values.items() if k == "--data" or k.startswith("--config.data.")]
    if missing := [path for path in reads if not Path(path).exists()]:
        sys.exit(f"{name}: nothing at {missing}")
    out = Path(values["--out"])
    files = {
        "tokenizer_report.py": [out / "fast.json"],
        "fetch_backbone.py": [out / "gemma3.model", out / "dinov2_s14.npz"],
        "least_used_tokens.py": [out],
    }[name]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


def main(words: list[str]) -> None:
    module, words = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    values = dict(w.split("=", 1) for w in words if "=" in w)
    place = Path(values.get("--out") or values["--workdir"])
    place = place.parent if module == "vla_jax.evaluate" and "--out" in values else place
    what = module.removeprefix("tools/").removesuffix(".py").split(".")[-1]
    line = f"{what} {place.name}"
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
    elif module.startswith("tools/"):
        tool(values, module.removeprefix("tools/"))
    else:
        raise ValueError(module)


if __name__ == "__main__":
    main(sys.argv[1:])
