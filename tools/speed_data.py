"""`tools/speed.py data`: the loader beside bare JPEG decoding, and where its time goes.

100 robot episodes of 50 steps with two cameras and 2,000 captioned pictures, 224 x 224 JPEG of
quality 95 (about 17 KB), are written once. Then, in turns:

  raw      tf.data decodes the same JPEGs from memory, one by one, and batches them
  loader   `vla_jax.data.loader.Loader`: episodes and captions 1 : 1, shuffled over the whole set,
           read from disk (page cache), decoded, tokenized, batched; uint8 out

Printed are samples a second (medians of windows of `WINDOW_S` seconds), processor milliseconds a
sample, their ratio, the processor time of each stage alone, how long a run waits for its first
batch when it resumes at step 10 and at step 1,000,000, and how long statistics of the steps take.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf
from PIL import Image

from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.config import SourceConfig
from vla_jax.data.generate import ImageTextRow
from vla_jax.data.loader import Loader
from vla_jax.data.mixture import Mixture
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import EpisodicSource, Source
from vla_jax.data.sources.opening import open_source
from vla_jax.data.staged import EpisodeRow
from vla_jax.data.statistics import measure_episodes
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.text.vocabulary import Vocabulary

SIZE, BATCH = 224, 32
EPISODES, STEPS, CAPTIONS, PICTURES = 100, 50, 2000, 400
WINDOW_S = 3.0
RESUMES = (10, 1_000_000)
SPEC = end_effector_spec("speed", max_position_m=0.05, max_rotation_rad=0.1, control_hz=10)
WORDS = [
    "pick",
    "place",
    "the",
    "red",
    "green",
    "blue",
    "bowl",
    "cup",
    "plate",
    "drawer",
    "on",
    "under",
    "next",
    "to",
    "left",
    "right",
    "of",
]


def picture(rng: np.random.Generator) -> bytes:
    """A gradient, some rectangles, some noise: a JPEG of about 17 KB."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    slopes = rng.uniform(-120, 120, (3, 2))
    image = 128 + slopes[:, 0] * x[..., None] + slopes[:, 1] * y[..., None]
    for _ in range(12):
        top, left = rng.integers(0, SIZE - 20, 2)
        height, width = rng.integers(10, 90, 2)
        image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    image += rng.normal(0, 3.6, image.shape)
    buffer = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_data(folder: Path) -> None:
    """Both data sets, unless they are there."""
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(PICTURES)]

    def any_pictures(count: int) -> list[bytes]:
        return [pictures[i] for i in rng.integers(0, PICTURES, count)]

    def sentence(words: int) -> str:
        return " ".join(rng.choice(WORDS, words))

    def episodes() -> Iterator[EpisodeRow]:
        for _ in range(EPISODES):
            action = rng.uniform(SPEC.low, SPEC.high, (STEPS, 8)).astype(np.float32)
            action[:, 0] = 0
            yield EpisodeRow(
                images={"image": any_pictures(STEPS), "wrist_image": any_pictures(STEPS)},
                state=rng.normal(size=(STEPS, 8)).astype(np.float32),
                action=action,
                instruction=sentence(int(rng.integers(5, 10))),
                success=True,
                metadata={"seed": 0},
                split="train",
            )

    def captions() -> Iterator[ImageTextRow]:
        for image in any_pictures(CAPTIONS):
            yield ImageTextRow(
                image=image,
                prompt="Q: caption in english A:",
                answer=sentence(int(rng.integers(6, 14))),
                task="caption",
                language="english",
            )

    if not (folder / "robot").exists():
        write_episodes(
            episodes(), folder / "robot", SPEC, name="robot", description="", file_format="tfrecord"
        )
    if not (folder / "web").exists():
        write_image_text(
            {"train": captions()}, folder / "web", name="web", description="",
            file_format="tfrecord",
        )  # fmt: skip


def raw_batches(pictures: list[bytes], threads: int) -> Iterator[Any]:
    """Plain tf.data: JPEGs in memory, decoded and batched."""
    dataset = tf.data.Dataset.from_tensor_slices(pictures).repeat()
    dataset = dataset.map(
        lambda encoded: tf.ensure_shape(tf.io.decode_jpeg(encoded, channels=3), (SIZE, SIZE, 3)),
        num_parallel_calls=threads,
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return dataset.batch(BATCH).prefetch(2).with_options(options).as_numpy_iterator()


def window(batches: Iterator[Any], seconds: float = WINDOW_S) -> tuple[float, float]:
    """-> samples a second, processor milliseconds a sample."""
    for _ in range(4):  # what was made while the other side ran
        next(batches)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        count += BATCH
    return count / elapsed, 1e3 * (time.process_time() - cpu) / count


def stage_ms(work: Callable[[int], object], samples: int, repeats: int) -> float:
    """Processor milliseconds a sample of one stage alone; `work` does `samples` of them."""
    took = []
    for number in range(repeats):
        start = time.process_time()
        work(number)
        took.append(1e3 * (time.process_time() - start) / samples)
    return statistics.median(took)


def stages(
    mixture: Mixture, sources: dict[str, Source], builder: SequenceBuilder, repeats: int
) -> dict[str, float]:
    """Processor milliseconds a sample, by stage."""
    opened, count = list(sources.values()), 64 * BATCH

    def located(number: int) -> list[tuple[int, int]]:
        source, record = mixture.locate(number * count + np.arange(count))
        return list(zip(source.tolist(), record.tolist()))

    def read(number: int) -> list[Any]:
        return [opened[k].read(i) for k, i in located(number)]

    examples = read(0)
    batches = [examples[i : i + BATCH] for i in range(0, count, BATCH)]
    return {
        "locate": stage_ms(located, count, repeats),
        "locate and read": stage_ms(read, count, repeats),
        "tokenize": stage_ms(
            lambda _: [builder.build_rows(batch) for batch in batches], count, repeats
        ),
        "decode": stage_ms(
            lambda _: [tf.io.decode_jpeg(example.images[0]) for example in examples], count, repeats
        ),
    }


def resume_seconds(open_loader: Callable[[int], Loader], repeats: int) -> dict[int, list[float]]:
    """Step -> seconds from opening a loader there to its first batch, in turns."""
    seconds: dict[int, list[float]] = {step: [] for step in RESUMES}
    for number in range(repeats + 1):
        for step, found in seconds.items():
            begun = time.perf_counter()
            loader = open_loader(step + number)  # another batch each time
            next(loader)
            took = time.perf_counter() - begun
            loader.close()
            if number:  # the first turn warms up
                found.append(took)
    return seconds


def statistics_seconds(source: Source, repeats: int) -> list[float]:
    """Of all steps of a robot's episodes, read from disk, no image decoded."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        measure_episodes(cast(EpisodicSource, source))
        seconds.append(time.perf_counter() - begun)
    return seconds


def measure(repeats: int, *, folder: Path | None, threads: int) -> dict[str, Any]:
    """Everything of the module's docstring."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary)
        write_data(folder)
        kinds = {"robot": "episodes", "web": "image_text"}
        sources = {
            name: open_source(name, SourceConfig(kind, str(folder / name)))
            for name, kind in kinds.items()
        }
        vocabulary = Vocabulary()
        tokenizer = UniformTokenizer(SPEC, vocabulary.integer_ids)
        builder = SequenceBuilder(vocabulary, tokenizer, max_tokens=64, max_answer_tokens=24)
        sizes = {name: len(source) for name, source in sources.items()}
        mixture = Mixture(dict.fromkeys(sources, 1.0), sizes, seed=0)
        pictures = [sources[name].read(i).images[0] for name in sources for i in range(0, 2000, 10)]

        def open_loader(step: int) -> Loader:
            return Loader(
                mixture, sources, builder, batch_size=BATCH, image_size=SIZE, threads=threads,
                start_step=step,
            )  # fmt: skip

        loader = open_loader(0)
        sides: dict[str, Iterator[Any]] = {"raw": raw_batches(pictures, threads), "loader": loader}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, batches in sides.items():
                seconds[name].append(window(batches))
        loader.close()
        by_stage = stages(mixture, sources, builder, repeats=5)
        resumed = resume_seconds(open_loader, 2 * repeats)
        measured = statistics_seconds(sources["robot"], repeats)
    for name, windows in seconds.items():
        rates, cpu = zip(*windows)
        print(
            f"{name:7} {statistics.median(rates):6.0f} samples/s [{min(rates):.0f} to "
            f"{max(rates):.0f}], {statistics.median(cpu):.3f} processor ms a sample"
        )
    ratios = [ours / raw for (raw, _), (ours, _) in zip(seconds["raw"], seconds["loader"])]
    cpu = [raw / ours for (_, raw), (_, ours) in zip(seconds["raw"], seconds["loader"])]
    print(
        f"loader / raw: {statistics.median(ratios):.2f} of its samples/s, "
        f"{statistics.median(cpu):.2f} of its samples per processor second"
    )
    for name, ms in by_stage.items():
        print(f"{name:16} {ms:.3f} processor ms a sample")
    for step, found in resumed.items():
        low, middle, high = (1e3 * f(found) for f in (min, statistics.median, max))
        print(f"first batch at step {step:>9,}: {middle:.1f} ms [{low:.1f} to {high:.1f}]")
    steps, took = EPISODES * STEPS, statistics.median(measured)
    print(f"statistics of {steps:,} steps: {took:.2f} s, so {1e5 * took / steps:.1f} s for 100,000")
    return {
        "windows": seconds, "ratios": ratios, "stages": by_stage, "resumed": resumed,
        "statistics": measured,
    }  # fmt: skip
