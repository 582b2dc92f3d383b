"""`data.host_memory_gib` holds: a real process streams fifty times as much and is watched."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
from PIL import Image

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.tfds_writer import write_episodes, write_image_text

SIZE, STEPS, EPISODES, PICTURES = 224, 4, 100, 400
BUDGET = 64 * 2**20

PROGRAM = """
import json, resource, sys
from vla_jax.build_data import make_mixture, open_sources
from vla_jax.data.config import DataConfig, SourceConfig
from vla_jax.data.loader import Loader, queue_bytes
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.text.vocabulary import Vocabulary

folder, budget, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
vocabulary = Vocabulary()


def rss(field):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def stream(bytes_to_stream, gib, size):
    kinds = {"robot": "episodes", "web": "image_text"}
    data = DataConfig(
        {name: SourceConfig(kind, f"{folder}/{name}") for name, kind in kinds.items()},
        host_memory_gib=gib,
    )
    sources = open_sources(data, queue_bytes(16, 1, size, threads=2, prefetch=2))
    tokenizer = UniformTokenizer(sources["robot"].action_spec, vocabulary.integer_ids)
    builder = SequenceBuilder(vocabulary, tokenizer, max_tokens=48, max_answer_tokens=12)
    loader = Loader(
        make_mixture(data, sources), sources, builder, batch_size=16, image_size=size
    )
    streamed = 0
    while streamed < bytes_to_stream:
        streamed += next(loader)["images"].nbytes
    loader.close()
    return streamed


# The program itself: a run with next to no pixels whose sources may keep nothing.
stream(2**20, 1e-3, 16)
before = rss("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest value is counted from here
streamed = stream(50 * budget, budget / 2**30, size)
print(json.dumps({"streamed": streamed, "before": before, "peak": rss("VmHWM")}))
"""


def picture(number: int) -> bytes:
    """As large in the file as in memory, and quick to decode."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


def test_fifty_times_the_budget_goes_through_it(tmp_path, spec: ActionSpec):
    def episode(number: int):
        return {
            "images": {"image": [picture(number * STEPS + t) for t in range(STEPS)]},
            "state": np.zeros((STEPS, 2), np.float32),
            "action": np.zeros((STEPS, 8), np.float32),
            "instruction": f"go {number}",
            "success": True,
            "metadata": {"seed": number},
            "split": "train",
        }

    rows = (
        {"image": picture(9000 + i), "prompt": f"Q: {i}? A:", "answer": "a", "task": "t",
         "language": "en"}
        for i in range(PICTURES)
    )  # fmt: skip
    write_episodes(
        map(episode, range(EPISODES)), tmp_path / "robot", spec, name="robot", description=""
    )
    write_image_text(
        {"train": rows}, tmp_path / "web", name="web", description="", file_format="tfrecord"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(BUDGET), str(SIZE)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    grown = seen["peak"] - seen["before"]
    print({key: f"{value / 2**20:.0f} MiB" for key, value in {**seen, "grown": grown}.items()})
    assert seen["streamed"] >= 50 * BUDGET
    assert grown <= BUDGET
