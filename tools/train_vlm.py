"""Trains the small web-trained VLM that ships with the code, from the picture/word corpus.

    python tools/train_vlm.py --stage=patches --out=out/patches --learning_rate=2e-3
    python tools/train_vlm.py --stage=answers --init_from=out/patches/vlm.npz --out=out/vlm

First the image encoder alone learns what each patch shows and where that is; then the whole model
learns to answer, several questions to a picture. Two short plateaus where all at once is a long
one.

Needs no TensorFlow: worker processes paint the corpus on the fly and hand batches over in shared
memory, and every sample is new. Run again with the same --out to resume. Writes `vlm.npz` (float16,
big_vision's names), `vlm.json` (how it was made, figures on held-out pictures) and `metrics.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import pickle
import queue
import time
from collections.abc import Iterator, Sequence
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np

from vla_jax.corpus.concepts import SPLITS
from vla_jax.corpus.dataset import Corpus
from vla_jax.corpus.patches import GRIPPER, OPEN
from vla_jax.corpus.pictures import COLORS, PictureBank
from vla_jax.data.mixture import Mixture
from vla_jax.data.packing import Packing
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.text.vocabulary import SPACE, Vocabulary
from vla_jax.types import Batch, Example

MAX_TOKENS, MAX_ANSWER_TOKENS = 80, 48
# Texts per picture, tokens of the row that holds them, answer tokens in it.
ROWS = {"patches": (1, 64, 48), "answers": (9, 128, 60)}
PATCH = 16
NAME_TOKENS, WORDS = 3, 5  # of a name, and with what else a patch is labelled
SLOTS_PER_WORKER = 2


def _layout(args) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    batch_size, image_size = args.batch_size, args.image_size
    rows = (batch_size, ROWS[args.stage][1])
    return {
        "images": ((batch_size, 1, image_size, image_size, 3), np.dtype(np.uint8)),
        "tokens": (rows, np.dtype(np.int32)),
        "attend_causal": (rows, np.dtype(bool)),
        "in_loss": (rows, np.dtype(bool)),
        "valid": (rows, np.dtype(bool)),
        "segment": (rows, np.dtype(np.int32)),
        "image_segment": ((batch_size, 1), np.dtype(np.int32)),
        "source": ((batch_size,), np.dtype(np.int32)),
        "patch_tokens": ((batch_size, (image_size // PATCH) ** 2, WORDS), np.dtype(np.int32)),
        "patch_places": ((batch_size, (image_size // PATCH) ** 2, 2), np.dtype(np.int32)),
    }


def _views(buffer: memoryview, args) -> dict[str, np.ndarray]:
    views, offset = {}, 0
    for key, (shape, dtype) in _layout(args).items():
        views[key] = np.ndarray(shape, dtype, buffer=buffer, offset=offset)
        offset += int(np.prod(shape)) * dtype.itemsize
    return views


def _label_tokens(vocabulary: Vocabulary, labels: Sequence[tuple[str, ...]]) -> np.ndarray:
    """int32 [P, W]: the first tokens of each patch's words, PAD alone for background."""
    rows = np.full((len(labels), WORDS), -1, np.int32)
    rows[:, 0] = vocabulary.pad_id
    for row, words in zip(rows, labels):
        ids = [i for word in words for i in _word_tokens(vocabulary, word)]
        ids = list(dict.fromkeys(ids))[:WORDS]
        row[: len(ids)] = ids
    return rows


def _word_tokens(vocabulary: Vocabulary, word: str) -> list[int]:
    """The first `NAME_TOKENS` tokens, without the lone space that begins "7": it names nothing."""
    ids = vocabulary.encode(word)[:NAME_TOKENS]
    return [i for i in ids if vocabulary.piece(i) != SPACE]


def _label_ids(vocabulary: Vocabulary) -> np.ndarray:
    """int32 [K]: PAD and every id that a patch's label can have."""
    bank = PictureBank()
    shown = (split for split in SPLITS if split != "nowhere")
    words = [bank.name(key) for split in shown for key in bank.concepts(split)]
    words += [GRIPPER, OPEN, "mat", *COLORS, *"0123456789"]
    ids = {i for word in words for i in _word_tokens(vocabulary, word)}
    return np.array([vocabulary.pad_id, *sorted(ids)], np.int32)


def _paint(worker: int, workers: int, start: int, args, names, free, ready) -> None:
    """Worker process: makes batches start + worker, + workers, ... into its own slots."""
    # One picture, then two, then several: where things are comes before which is which.
    corpora = [
        Corpus(
            args.image_size,
            seed=args.seed,
            split="train",
            background_share=args.background_share,
            max_pictures=most,
            crowded_share=args.crowded_share if most == 5 else 0.0,
        )
        for most in (1, 2, 5)
    ]
    builder = SequenceBuilder(
        Vocabulary(), None, max_tokens=MAX_TOKENS, max_answer_tokens=MAX_ANSWER_TOKENS
    )
    questions, length, loss_tokens = ROWS[args.stage]
    slots = [shared_memory.SharedMemory(name) for name in names]
    views = [_views(slot.buf, args) for slot in slots]
    for number in range(start + worker, args.steps, workers):
        slot = free.get()
        corpus = corpora[sum(number >= step for step in args.curriculum)]
        for row in range(args.batch_size):
            image, texts, patches = corpus.questions(
                number * args.batch_size + row, questions, PATCH
            )
            rows = builder.build_rows([Example((image,), *text) for text in texts])
            packed = Packing(len(texts), length, loss_tokens).pack(rows)
            views[slot]["images"][row, 0] = image
            views[slot]["source"][row] = views[slot]["image_segment"][row] = 0
            views[slot]["patch_tokens"][row] = views[slot]["patch_places"][row] = -1
            if patches is not None:
                tokens = _label_tokens(builder.vocabulary, patches.words)
                views[slot]["patch_tokens"][row] = tokens
                views[slot]["patch_places"][row] = patches.places
            for key in ("tokens", "attend_causal", "in_loss", "valid", "segment"):
                views[slot][key][row] = packed[key][0]
        ready.put(slot)


class PaintedBatches:
    """Iterator of corpus batches from `workers` spawned processes, in order."""

    def __init__(self, args, start: int):
        context = multiprocessing.get_context("spawn")
        size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in _layout(args).values())
        self._args, self._next = args, start
        self._start = start
        self._workers = []
        for worker in range(args.workers):
            slots = [
                shared_memory.SharedMemory(create=True, size=size) for _ in range(SLOTS_PER_WORKER)
            ]
            free, ready = context.Queue(), context.Queue()
            for slot in range(SLOTS_PER_WORKER):
                free.put(slot)
            names = [slot.name for slot in slots]
            process = context.Process(
                target=_paint,
                args=(worker, args.workers, start, args, names, free, ready),
                daemon=True,
            )
            process.start()
            self._workers.append((process, slots, free, ready))

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        process, slots, free, ready = self._workers[(self._next - self._start) % len(self._workers)]
        while True:
            try:
                slot = ready.get(timeout=5)
                break
            except queue.Empty:
                if not process.is_alive():
                    raise RuntimeError(
                        f"a painting process died with exit code {process.exitcode}"
                    ) from None
        views = _views(slots[slot].buf, self._args)
        batch = {key: view.copy() for key, view in views.items()}
        free.put(slot)
        self._next += 1
        return batch  # pyright: ignore[reportReturnType]

    def close(self) -> None:
        for process, slots, _, _ in self._workers:
            process.terminate()
            process.join()
            for slot in slots:
                slot.close()
                slot.unlink()


def measure(params, model_config, builder: SequenceBuilder, args) -> dict[str, float]:
    """Answers on held-out pictures, and pointing on rendered table-top views."""
    from vla_jax.decoding.policy import Policy
    from vla_jax.evaluation.base import EvaluationConfig
    from vla_jax.evaluation.tabletop import PointingEvaluator
    from vla_jax.evaluation.vqa import VqaBatch, VqaEvaluator

    corpus = Corpus(
        args.image_size, seed=args.seed, split="test", background_share=args.background_share
    )

    def batches(size: int = 250) -> Iterator[VqaBatch]:
        for start in range(0, args.test_examples, size):
            samples = [corpus.example(i) for i in range(start, start + size)]
            yield VqaBatch(
                np.stack([s["image"] for s in samples]),
                [s["prompt"].removeprefix("Q: ").removesuffix(" A:") for s in samples],
                *([s[key] for s in samples] for key in ("answer", "task", "language")),
            )

    policy = Policy(params, model_config, builder, batch_size=64)
    pictures = VqaEvaluator(batches).measure(policy)["scalars"]
    views = PointingEvaluator(EvaluationConfig(pointing_views=100)).measure(policy)["scalars"]
    return {f"pictures/{k}": v for k, v in pictures.items()} | {
        f"table-top views/{k}": v for k, v in views.items()
    }


def main() -> None:
    import jax

    from vla_jax.checkpoints.params_file import load_params, save_params
    from vla_jax.models.presets import ModelConfig
    from vla_jax.models.vla import Vla
    from vla_jax.sharding.mesh import MeshConfig, make_mesh
    from vla_jax.training.bad_batches import BadBatches
    from vla_jax.training.config import TrainConfig
    from vla_jax.training.loop import fit
    from vla_jax.training.losses import answer_loss, patch_label_loss
    from vla_jax.training.monitor import Monitor
    from vla_jax.training.optimizer import OptimizerConfig, make_optimizer
    from vla_jax.training.step import make_init, make_train_step, state_shardings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=tuple(ROWS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init_from", type=Path, help="parameters to start from")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--stop_at", type=int, default=0, help="stop early, to resume later")
    parser.add_argument("--stop_after_s", type=float, default=1e9, help="likewise, by the clock")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--compute_dtype", default="float32")
    parser.add_argument(
        "--curriculum",
        type=int,
        nargs=2,
        default=(0, 0),
        help="steps from which a scene has up to two pictures, and more",
    )
    parser.add_argument(
        "--crowded_share", type=float, default=0.5, help="pictures with about ten things"
    )
    parser.add_argument("--integer_smoothing", type=float, default=3.0, help="in bins")
    parser.add_argument("--background_share", type=float, default=0.05)
    parser.add_argument("--warmup_steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test_examples", type=int, default=2000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    begun = time.time()
    model_config = ModelConfig(
        args.preset,
        image_size=args.image_size,
        compute_dtype=args.compute_dtype,
        image_sees_text=False,
        unroll_layers=True,
    )
    optimizer_config = OptimizerConfig(
        args.learning_rate, warmup_steps=args.warmup_steps, weight_decay=1e-4
    )
    optimizer = make_optimizer(optimizer_config, args.steps)
    mesh = make_mesh(MeshConfig())
    init = make_init(model_config, optimizer, args.seed)
    shardings = state_shardings(jax.eval_shape(init), mesh)
    saved = args.out / "state.pickle"
    if saved.exists():
        state = jax.device_put(pickle.loads(saved.read_bytes()), shardings)
    else:
        state = jax.jit(init, out_shardings=shardings)()
        if args.init_from:
            params = load_params(args.init_from, jax.eval_shape(init)["params"])
            state["params"] = jax.device_put(params, shardings["params"])
    start = int(state["step"])

    def save(step: int, state, _scalars) -> None:
        partial = saved.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(jax.device_get(state)))
        partial.replace(saved)
        if time.time() - begun > args.stop_after_s:
            raise _TimeUp

    model = Vla(model_config)
    name_ids = _label_ids(Vocabulary())
    if args.stage == "patches":
        loss_fn = functools.partial(patch_label_loss, model, num_sources=1, name_ids=name_ids)
    else:
        loss_fn = functools.partial(
            answer_loss,
            model,
            max_answer_tokens=ROWS[args.stage][2],
            num_sources=1,
            integer_smoothing=args.integer_smoothing,
            name_ids=name_ids,
        )
    train_step = make_train_step(optimizer, shardings, mesh, loss_fn)
    stop = min(args.stop_at or args.steps, args.steps)
    train_config = TrainConfig(
        steps=stop, batch_size=args.batch_size, log_every=100, checkpoint_every=200
    )
    builder = SequenceBuilder(
        Vocabulary(), None, max_tokens=MAX_TOKENS, max_answer_tokens=MAX_ANSWER_TOKENS
    )
    batches = PaintedBatches(args, start)
    mixture = Mixture({"web": 1}, {"web": args.steps * args.batch_size}, seed=0)
    try:
        with Monitor(
            args.out,
            train_config.watch,
            mixture,
            samples_per_step=args.batch_size,
            start=start,
            steps=stop,
            train_step=train_step,
            print_line=lambda line: print(line, flush=True),
        ) as monitor:
            try:
                fit(
                    state,
                    train_step,
                    batches,
                    train_config,
                    mesh=mesh,
                    monitor=monitor,
                    save=save,
                    bad_batches=BadBatches(args.out, mixture, args.batch_size),
                )
            except _TimeUp:
                print("time is up; run again to go on", flush=True)
    finally:
        batches.close()
    state = pickle.loads(saved.read_bytes())
    save_params(args.out / "vlm.npz", state["params"], "float16")
    figures = {}
    if args.stage == "answers" and args.test_examples:
        figures = measure(state["params"], model_config, builder, args)
    settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    card = {
        "made_by": "tools/train_vlm.py",
        "step": int(state["step"]),
        "samples": int(state["step"]) * args.batch_size,
        "device": jax.devices()[0].device_kind,
        "settings": settings,
        "optimizer": dataclasses.asdict(optimizer_config),
        "vocabulary": builder.vocabulary.digest,
        "held_out": figures,
        "started_from": _card_beside(args.init_from),
    }
    (args.out / "vlm.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(figures, indent=1))


def _card_beside(parameters: Path | None) -> dict | None:
    """What is known of the file that a stage started from."""
    card = parameters.with_suffix(".json") if parameters else None
    return json.loads(card.read_text()) if card and card.exists() else None


class _TimeUp(Exception):
    pass


if __name__ == "__main__":
    main()
