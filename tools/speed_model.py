"""`tools/speed.py model`: our model beside `transformers`' PaliGemma, same weights, same work.

A model of 16,085,056 parameters (ViT 4 x 192, Gemma 6 x 256, 32,768 tokens), batch 8, 224 px,
float32, 256 image + 32 prompt + 16 answer tokens. Each has a process of its own, as in life, and
the two run one after the other in every round, so that what else happens on the machine meets both.
Printed are medians, their ratio, and how long our matrix products alone would take at the rate of a
large `jnp.dot` measured in the same rounds.

  train    forward, backward and Adam; transformers with logits of the answer's positions alone
  actions  8 tokens for 8 pictures, image and prefill included; ours constrained to 256 action
           tokens, transformers greedy with a static cache
  step     one decoding step of a batch of 8: (8 tokens - 1 token) / 7
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.checkpoints.hugging_face import write_hugging_face
from vla_jax.decoding.sampler import make_decoder
from vla_jax.models.presets import PRESETS, DecoderConfig, ModelConfig, VitConfig
from vla_jax.models.stack import unstack_layers
from vla_jax.models.vla import Vla, init_params
from vla_jax.sharding.mesh import MeshConfig, make_mesh
from vla_jax.training.losses import answer_loss
from vla_jax.training.step import make_train_step, state_shardings

BATCH, PROMPT, ANSWER, NEW_TOKENS = 8, 32, 16, 8
SQUARE = 2048  # rows and columns of the matrices that give the machine's rate
PRESETS["speed_16m"] = (
    VitConfig(192, 4, 768, 4, 14),
    DecoderConfig(256, 6, 1024, 4, 1, 64, 32_768),
)


def speed_config(unroll: bool) -> ModelConfig:
    return ModelConfig("speed_16m", image_size=224, compute_dtype="float32", unroll_layers=unroll)


def make_batch(config: ModelConfig) -> dict[str, np.ndarray]:
    """Random pictures and tokens; no padding."""
    rng = np.random.default_rng(0)
    length = PROMPT + ANSWER
    size = config.image_size
    causal = np.broadcast_to(np.arange(length) >= PROMPT, (BATCH, length)).copy()
    return {
        "images": rng.integers(0, 256, (BATCH, 1, size, size, 3), np.uint8),
        "tokens": rng.integers(3, config.decoder.vocab_size, (BATCH, length)).astype(np.int32),
        "attend_causal": causal,
        "in_loss": causal.copy(),
        "valid": np.ones((BATCH, length), bool),
        "source": np.zeros(BATCH, np.int32),
    }


class Ours:
    """What is timed of this project. Writes its weights to `folder`, for the other."""

    def __init__(self, folder: str, unroll: bool):
        config = speed_config(unroll)
        params = jax.device_get(jax.jit(lambda: init_params(config, jax.random.key(0)))())
        write_hugging_face(folder, params, config)
        batch = make_batch(config)
        self.parameters = sum(x.size for x in jax.tree.leaves(params))
        optimizer = optax.adam(1e-4)
        mesh = make_mesh(MeshConfig())

        def init() -> dict[str, Any]:
            return {"step": np.int32(0), "params": params, "opt": optimizer.init(params)}

        state = init()
        shardings = state_shardings(jax.eval_shape(init), mesh)
        self._state = jax.device_put(state, shardings)
        model = Vla(config)
        self._step = make_train_step(
            optimizer,
            shardings,
            mesh,
            lambda p, b: answer_loss(model, p, b, max_answer_tokens=ANSWER, num_sources=1),
        )
        self._params = unstack_layers(jax.device_put(params), config)  # as `Policy` does
        self._batch = jax.device_put(batch)
        spec = end_effector_spec("speed", max_position_m=1, max_rotation_rad=1, control_hz=1)
        tokenizer = UniformTokenizer(spec, np.arange(1000, 1256))
        ends = {"eos_id": 1, "pad_id": 0}
        self._decoders = {
            NEW_TOKENS: make_decoder(config, "action", automaton=tokenizer.automaton, **ends),
            1: make_decoder(config, "text", max_answer_tokens=1, **ends),
        }
        self._cold = np.zeros(BATCH, np.float32), np.zeros(BATCH, np.int32)
        self._square = jnp.ones((SQUARE, SQUARE))

    def flops(self) -> dict[str, float]:
        """Floating-point operations of a step, and of images and prompts up to the first token."""
        step = self._step.lower(self._state, self._batch)
        first = self._decoders[1].lower(
            self._params, self._batch["images"], *self._prompt(), *self._cold
        )
        return {
            k: v.cost_analysis()["flops"] for k, v in {"train": step, "one token": first}.items()
        }

    def dot(self) -> None:
        """A large matrix product: what the machine can do."""
        jax.block_until_ready(self._square @ self._square)

    def train(self) -> float:
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(self._state["params"])
        return float(metrics["loss"])

    def decode(self, tokens: int) -> np.ndarray:
        images = self._batch["images"]
        return np.asarray(
            self._decoders[tokens](self._params, images, *self._prompt(), *self._cold)
        )

    def _prompt(self) -> tuple[jax.Array, jax.Array]:
        return self._batch["tokens"][:, :PROMPT], self._batch["valid"][:, :PROMPT]


class Theirs:
    """What is timed of transformers, with the weights in `folder`."""

    def __init__(self, folder: str, unroll: bool):
        import torch
        import transformers

        config = speed_config(unroll)
        batch = make_batch(config)
        self._model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
            folder, attn_implementation="sdpa"
        )
        self._torch = torch
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=1e-4)
        images = np.full((BATCH, config.num_patches), config.decoder.vocab_size)
        self._ids = torch.tensor(np.concatenate([images, batch["tokens"]], axis=1)).long()
        pixels = batch["images"][:, 0].astype(np.float32) / 127.5 - 1
        self._pixels = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()
        kinds = np.concatenate([np.zeros_like(images), batch["attend_causal"]], axis=1)
        self._types = torch.tensor(kinds.astype(int))

    def train(self) -> float:
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        logits = self._model(
            input_ids=self._ids,
            pixel_values=self._pixels,
            token_type_ids=self._types,
            attention_mask=self._torch.ones_like(self._ids),
            logits_to_keep=ANSWER + 1,
        ).logits[:, :-1]
        target = self._ids[:, -ANSWER:]
        loss = self._torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        loss.backward()
        self._optimizer.step()
        return float(loss)

    def decode(self, tokens: int) -> np.ndarray:
        self._model.eval()
        prompt = self._ids[:, :-ANSWER]
        with self._torch.inference_mode():
            ids = self._model.generate(
                input_ids=prompt,
                pixel_values=self._pixels,
                token_type_ids=self._types[:, :-ANSWER],
                attention_mask=self._torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                cache_implementation="static",
            )
        return ids[:, prompt.shape[1] :].numpy()


def serve(kind: type[Ours] | type[Theirs], pipe: Connection, folder: str, unroll: bool) -> None:
    """A process that does what it is told, (method, arguments), and says how long it took."""
    worker = kind(folder, unroll)
    pipe.send((0.0, getattr(worker, "parameters", None)))
    while (order := pipe.recv()) is not None:
        method, arguments = order
        begun = time.perf_counter()
        result = getattr(worker, method)(*arguments)
        pipe.send((time.perf_counter() - begun, result))


class Worker:
    """One implementation in a process of its own."""

    def __init__(self, kind: type[Ours] | type[Theirs], folder: str, unroll: bool):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=serve, args=(kind, theirs, folder, unroll), daemon=True)
        process.start()
        theirs.close()  # so that its end is noticed
        self.parameters = self._answer(kind.__name__)[1]

    def __call__(self, method: str, *arguments: Any) -> tuple[float, Any]:
        """Seconds, and what the method returned."""
        self._pipe.send((method, arguments))
        return self._answer(method)

    def _answer(self, to: str) -> tuple[float, Any]:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"the process that runs {to!r} died; its error is above") from None

    def close(self) -> None:
        self._pipe.send(None)


WORK = {"train": ("train",), "actions": ("decode", NEW_TOKENS), "one token": ("decode", 1)}


def measure(repeats: int, *, unroll: bool) -> dict[str, Any]:
    """Everything of the module's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Worker(Ours, folder, unroll)
        theirs = Worker(Theirs, folder, unroll)
    first = ours("train")[1], theirs("train")[1]
    print(
        f"{ours.parameters:,} parameters; first loss ours {first[0]:.5f}, "
        f"transformers {first[1]:.5f}"
    )
    if abs(first[0] - first[1]) > 1e-3:
        raise SystemExit("the two do not compute the same: nothing to compare")
    flops, dot = ours("flops")[1], []
    sides = {"ours": ours, "transformers": theirs}
    seconds = {name: {who: [] for who in sides} for name in WORK}
    for number in range(repeats + 2):
        for name, order in WORK.items():
            # What counts is the second run of a turn: the first one finds the other's caches.
            took = {who: (run(*order), run(*order)[0])[1] for who, run in sides.items()}
            if number >= 2:  # compiled and warm
                for who, s in took.items():
                    seconds[name][who].append(s)
        dot.append(ours("dot")[0])
    for side in sides.values():
        side.close()
    seconds["step"] = {
        who: [
            (many - one) / (NEW_TOKENS - 1)
            for many, one in zip(seconds["actions"][who], seconds["one token"][who])
        ]
        for who in sides
    }
    for name, by_side in seconds.items():
        print(row(name, by_side))
    rate = 2 * SQUARE**3 / statistics.median(dot)
    for name, count in flops.items():
        print(
            f"{name:10} {count / 1e9:.1f} GFLOP: {count / rate:.3f} s at the "
            f"{rate / 1e9:.0f} GFLOP/s of jnp.dot"
        )
    return {"seconds": seconds, "flops": flops, "dot_flops_per_s": rate}


def row(name: str, seconds: dict[str, list[float]]) -> str:
    """`train  ours 912.0 ms [870.1 to 1004.3], transformers ...: 1.20 x`."""
    shown = {
        who: f"{who} {1e3 * statistics.median(s):.1f} ms [{1e3 * min(s):.1f} to {1e3 * max(s):.1f}]"
        for who, s in seconds.items()
    }
    ratio = statistics.median(seconds["transformers"]) / statistics.median(seconds["ours"])
    return f"{name:10} {', '.join(shown.values())}: {ratio:.2f} x"
