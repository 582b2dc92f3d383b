"""The demo: data, a short web stage, co-fine-tuning, evaluation in closed loop, a report.

    python tools/demo.py --out=demo_out

Every step is a command that a user could type; each is printed with the time it took. Run again to
go on after an interruption: finished data is kept and training resumes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

EPISODES, WEB_TRAIN, WEB_TEST = 2800, 14_000, 1000
LEAST_PX = 17
"""Side of the smallest pictures in the corpus: that of a block in the camera's view."""


class Step:
    """Runs commands, one after the other, and says how long each took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._number = 0

    def __call__(self, title: str, *words: str | Path) -> None:
        self._number += 1
        command = [str(w) for w in words]
        print(f"\n=== {self._number}. {title}\n    {' '.join(command)}", flush=True)
        begun = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        if code:
            sys.exit(f"demo: step {self._number} ({title}) ended with exit code {code}; see above")
        now = time.monotonic()
        print(f"    {now - begun:.0f} s (in all {now - self._begun:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    out = parser.parse_args().out
    data = out / "data"
    step = Step()
    if not (data / "robot").exists():
        step(
            "Expert episodes in the table-top world",
            *("vla_jax.envs.episodes", "--config=demo", f"--episodes={EPISODES}", "--workers=2"),
            f"--out={out / 'staged'}",
        )
        step(
            "Episodes as an RLDS data set",
            *(
                "vla_jax.data.write",
                "episodes",
                "--staged",
                out / "staged",
                "--out",
                data / "robot",
            ),
        )
        shutil.rmtree(out / "staged")
    if not (data / "web").exists():
        step(
            "Pictures, captions and questions as an image-text data set",
            *(
                "vla_jax.data.write",
                "image_text",
                "--train",
                str(WEB_TRAIN),
                "--test",
                str(WEB_TEST),
            ),
            *("--background_share", "0.05", "--least_px", str(LEAST_PX), "--out", data / "web"),
        )
    sources = f"--config.data.sources.web.path={data / 'web'}"
    step(
        "Web stage from scratch, a minute of it to see it work",
        *("vla_jax.train", "--config=configs/demo_web.py", sources),
        f"--workdir={out / 'web_stage'}",
    )
    step(
        "Co-fine-tuning on robot and web data",
        *("vla_jax.train", "--config=configs/demo_cotrain.py", sources),
        f"--config.data.sources.robot.path={data / 'robot'}",
        f"--workdir={out / 'cotrain'}",
    )
    step(
        "Evaluation: questions, actions, and 50 closed-loop episodes on new layouts",
        *("vla_jax.evaluate", f"--workdir={out / 'cotrain'}"),
    )
    step(
        "Report",
        *("vla_jax.evaluation.report", "--web", out / "web_stage", "--cotrain", out / "cotrain"),
        *("--out", out / "report.html"),
    )
    print(f"\nReport: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    main()
