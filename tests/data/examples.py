"""Small episodes and rows for the tests of the data layer."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vla_jax.data.generate import ImageTextRow
from vla_jax.data.staged import EpisodeRow

SIZE = 32
LENGTHS = (3, 5, 1, 4, 6)  # steps of episodes 0 .. 4; 4 is the test split


def encoded(number: int, image_format: str = "PNG", size: int = SIZE) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def rows_of(process: int, processes: int, batch_size: int) -> np.ndarray:
    """The rows of a batch that one of several processes reads."""
    return np.array_split(np.arange(batch_size), processes)[process]


def episode(number: int, steps: int) -> EpisodeRow:
    rng = np.random.default_rng([7, number])
    return EpisodeRow(
        images={"image": [encoded(100 * number + t) for t in range(steps)]},
        state=rng.normal(size=(steps, 8)).astype(np.float32),
        action=(rng.uniform(-1, 1, (steps, 8)) * [1, *[0.05] * 6, 1]).astype(np.float32).clip(-1),
        instruction=f"pick the {('dog', 'cat', 'Bär')[number % 3]}",
        success=number % 2 == 0,
        metadata={"seed": 1000 + number, "family": "pick", "success": number % 2 == 0},
    )


def episodes() -> Iterator[EpisodeRow]:
    return (episode(i, n) for i, n in enumerate(LENGTHS))


def rows(split: str, count: int) -> list[ImageTextRow]:
    return [
        ImageTextRow(
            image=encoded(5000 + i, "JPEG" if i % 2 else "PNG"),
            prompt=f"Q: what is number {i} of {split}? A:",
            answer=f"a dog at <{i:03d}><128>",
            task="point",
            language="en",
        )
        for i in range(count)
    ]
