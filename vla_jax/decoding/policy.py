"""Policy: pictures and words in, answers or actions in physical units out."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.decoding.processes import FailedElsewhereError, agree, gather, join_rows
from vla_jax.decoding.sampler import BROKEN, DecodeFn, make_decoder
from vla_jax.models.presets import ModelConfig
from vla_jax.models.stack import unstack_layers
from vla_jax.models.vla import State
from vla_jax.sharding.mesh import MeshConfig, batch_sharding, batch_shards, make_mesh
from vla_jax.text.prompts import ROBOT_TEMPLATE, question_prompt, robot_prompt
from vla_jax.types import Params

T = TypeVar("T")
_TEXT = ""  # among the names of robots: the decoder of texts


class ActResult(NamedTuple):
    actions: np.ndarray  # float32 [B, C, A], physical units
    ids: np.ndarray  # int32 [B, K], the action tokens, padded
    plans: tuple[str, ...] = ()  # what was said before each action, if the policy plans


class Policy:
    """A model with everything it needs to answer and to act.

    It works on the devices that hold its parameters, whole or in parts, and splits rows over them.
    On several processes each asks for its own rows, as many and as often as it has, and gets their
    answers; when it has no more it calls `gather`, for until all have, every one is needed.

    Args:
      params: the model's parameters.
      config: the model.
      builder: tokenization, as in training.
      batch_size: rows per device call, over all processes; more are split, fewer are padded, so it
        compiles once. Raised to the next number that divides over devices and processes.
      robot_template: of the prompt that instructions are put in, as in training.
      plans: it says what it is going to do before it acts, as in training; the template is then
        usually `prompts.PLAN_TEMPLATE`.
      frames: steps whose images it sees at a time, as in training: views, oldest first. For those
        who show it episodes.
      flag_broken: rows whose logits are not finite say so, see `sampler.BROKEN`, and their action
        is refused. Without, an action is legal whatever the logits.

    Raises:
      ValueError: no room for a plan in the builder's max_answer_tokens.
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        builder: SequenceBuilder,
        *,
        batch_size: int,
        robot_template: str = ROBOT_TEMPLATE,
        plans: bool = False,
        frames: int = 1,
        flag_broken: bool = False,
    ):
        self.config, self.frames = config, frames
        self.builder = builder
        self._template, self._plans = robot_template, plans
        self._mesh = _mesh_of(params)
        self.batch_size = self._whole_batch(batch_size)
        self.params = _unstacked(params, config)
        self._make = functools.partial(
            make_decoder,
            config,
            eos_id=builder.vocabulary.eos_id,
            pad_id=builder.vocabulary.pad_id,
            num_words=builder.vocabulary.size,
            flag_broken=flag_broken,
            mesh=self._mesh,
        )
        # Of all robots, for this policy and those that `for_robot` makes of it.
        self._tokenizers = dict(builder.action_tokenizers)
        self._decoders: dict[str, DecodeFn] = {}
        self._compiled: set[tuple[str, int]] = set()  # with how many rows
        if len(self._tokenizers) == 1:
            self.decoder(next(iter(self._tokenizers)))

    def with_params(self, params: Params) -> Policy:
        """The same policy with other parameters, of the same shapes and placed alike: nothing is
        compiled again."""
        policy = copy.copy(self)
        policy.params = _unstacked(params, self.config)
        return policy

    def with_batch_size(self, batch_size: int) -> Policy:
        """The same policy with calls of another size. They share what is compiled for each."""
        policy = copy.copy(self)
        policy.batch_size = self._whole_batch(batch_size)
        return policy

    def _whole_batch(self, batch_size: int) -> int:
        """The next number that divides over devices and processes."""
        parts = math.lcm(batch_shards(self._mesh), jax.process_count())
        return -(-batch_size // parts) * parts

    @property
    def robots(self) -> tuple[str, ...]:
        """Names of the ActionSpecs that it can act by."""
        return tuple(self.builder.action_tokenizers)

    def for_robot(self, name: str) -> Policy:
        """The same policy, acting for one of its robots, by the name of its ActionSpec.

        Raises ValueError, naming those it knows, for another.
        """
        policy = copy.copy(self)
        policy.builder = self.builder.for_robot(name)
        policy.decoder(name)
        return policy

    def decoder(self, robot: str) -> DecodeFn:
        """Of texts, or of a robot's actions."""
        if robot not in self._decoders:
            self._decoders[robot] = self._action_decoder(robot) if robot else self._text_decoder()
        return self._decoders[robot]

    def _text_decoder(self) -> DecodeFn:
        return self._make("text", max_answer_tokens=self.builder.max_answer_tokens)

    def _action_decoder(self, robot: str) -> DecodeFn:
        tokenizer, builder = self._tokenizers[robot], self.builder
        if self._plans:
            room = builder.max_answer_tokens - 1 - tokenizer.max_tokens - len(builder.plan_end)
            if room < 1:
                raise ValueError(
                    f"max_answer_tokens {builder.max_answer_tokens} leaves no room for a plan "
                    f"before an action of up to {tokenizer.max_tokens} tokens"
                )
            return self._make(
                "plan",
                automaton=tokenizer.automaton,
                max_answer_tokens=room,
                plan_end=builder.plan_end.tolist(),
            )
        return self._make("action", automaton=tokenizer.automaton)

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        """Raises ValueError if the model was built without robot data, or for several robots."""
        tokenizer = self.builder.action_tokenizer
        if tokenizer is None:
            raise ValueError("this policy has no ActionSpec: it can answer, not act")
        return tokenizer

    @property
    def action_spec(self) -> ActionSpec:
        return self.action_tokenizer.spec

    @property
    def needs_state(self) -> bool:
        """Whether it was trained with what the robot measures, so that `act` needs `states`."""
        return self.builder.state is not None

    def answer(self, images: np.ndarray, questions: list[str]) -> list[str]:
        """Answers from the full vocabulary.

        Args:
          images: uint8 [B, h, w, 3], or [B, views, h, w, 3].
          questions: B texts, without the template.
        """
        return self.complete(images, [question_prompt(q) for q in questions])

    def complete(self, images: np.ndarray, prompts: list[str]) -> list[str]:
        """As `answer`, for whole prompts, in whatever template the model was trained with.

        With `flag_broken` the answer of a row whose logits are not finite is "".
        """
        options = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), np.int32)
        ids = self._run(_TEXT, images, prompts, *options)
        return [self._text(row) for row in ids]

    def act(
        self,
        images: np.ndarray,
        instructions: list[str],
        *,
        temperature: float = 0.0,
        seeds: Sequence[int] = (),
        states: np.ndarray | None = None,
    ) -> ActResult:
        """One chunk of actions per row; only legal action tokens can come out.

        Args:
          temperature: 0 for the likeliest token; 1 for a sample of the model's distribution. Plans
            are the likeliest.
          seeds: one per row, in [0, 2**31), needed to sample.
          states: float [B, S], what the robots measure of themselves; needed by a model that was
            trained with it, and by no other.

        Raises:
          ValueError: wrong images, an empty or too long instruction, a negative temperature, a
            temperature without a seed for each row, or states missing or not asked for.
        """
        if temperature < 0 or (temperature and len(seeds) != len(instructions)):
            raise ValueError(
                f"temperature {temperature} with {len(seeds)} seeds for {len(instructions)} rows: "
                "it is at least 0, and sampling needs a seed for each row"
            )
        count = len(instructions)
        ids, plans = self.action_tokens(
            images,
            instructions,
            temperatures=np.full(count, temperature, np.float32),
            seeds=np.asarray(seeds if temperature else np.zeros(count), np.int32),
            states=states,
        )
        actions = np.stack([self.action_tokenizer.decode(row) for row in ids])
        return ActResult(actions, ids, plans)

    def action_tokens(
        self,
        images: np.ndarray,
        instructions: list[str],
        *,
        temperatures: np.ndarray,
        seeds: np.ndarray,
        states: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """What `act` decodes, with a temperature for each row.

        Args:
          temperatures: float32 [B], at least 0.
          seeds: int32 [B], at least 0.

        Returns:
          Ids int32 [B, K], padded, and the plans, () of a policy that says none. With `flag_broken`
          the ids of a row whose logits were not finite have a `sampler.BROKEN` among them.

        Raises:
          ValueError: as `act`.
        """
        if (states is not None) != (self.builder.state is not None):
            wanted = "takes none" if self.builder.state is None else "was trained with them"
            raise ValueError(
                f"{'no ' if states is None else ''}states are given, and this policy {wanted}"
            )
        prompts = [robot_prompt(i, self._template) for i in instructions]
        robot = self.action_spec.name
        ids = self._run(robot, images, prompts, temperatures, seeds, states=states)
        plans: tuple[str, ...] = ()
        if self._plans:
            plans, ids = self._split(ids)
        return ids, plans

    def _split(self, ids: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        """What a decoder of plans says -> the plans, and the action tokens [B, K]."""
        end, length = self.builder.plan_end, self.action_tokenizer.max_tokens
        broken = (ids == BROKEN).any(axis=1, keepdims=True)
        windows = np.lib.stride_tricks.sliding_window_view(ids, len(end), axis=1)
        starts = np.argmax((windows == end).all(axis=2), axis=1)
        plans = tuple(
            self.builder.vocabulary.decode(row[:start]) for row, start in zip(ids, starts.tolist())
        )
        places = starts[:, None] + len(end) + np.arange(length)
        return plans, np.where(broken, BROKEN, np.take_along_axis(ids, places, axis=1))

    def _text(self, ids: np.ndarray) -> str:
        if BROKEN in ids:
            return ""
        end = np.flatnonzero(ids == self.builder.vocabulary.eos_id)
        return self.builder.vocabulary.decode(ids[: end[0] if len(end) else len(ids)].tolist())

    def gather(self, found: Sequence[T] = (), error: BaseException | None = None) -> list[T]:
        """What all processes have found, process 0's first.

        Each calls it when it has nothing more to ask, and then takes part in what others ask until
        they call it, too. A single process gets back what it gave.

        Args:
          found: by this process; can be pickled.
          error: what this process has failed with, to tell the others.

        Raises:
          FailedElsewhereError: another process has failed, and this one has not.
        """
        while self._call(None, []) is not None:
            pass
        failure = None if error is None else f"{type(error).__name__}: {error}"
        everybody = gather((failure, list(found)))
        failed = [(n, text) for n, (text, _) in enumerate(everybody) if text is not None]
        if failed and error is None:
            raise FailedElsewhereError(f"process {failed[0][0]} failed: {failed[0][1]}")
        return [item for _, mine in everybody for item in mine]

    def _run(
        self,
        robot: str,
        images: np.ndarray,
        prompts: list[str],
        *options: np.ndarray,
        states: np.ndarray | None = None,
    ) -> np.ndarray:
        """Ids int32 [B, K] of this process's rows, by the decoder of a robot or of texts."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim not in (4, 5) or images.shape[-1] != 3:
            raise ValueError(
                "images must be uint8 [B, h, w, 3] or [B, views, h, w, 3], got "
                f"{images.dtype} {list(images.shape)}"
            )
        if images.ndim == 4:
            images = images[:, None]
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
        if states is not None and len(states) != len(prompts):
            raise ValueError(f"{len(states)} states for {len(prompts)} prompts")
        text = self.builder.prompts(prompts, states)
        columns = [images, text["tokens"], text["valid"], *options]
        columns += [text[key] for key in ("state", "state_valid") if key in text]
        share, rows = self.batch_size // jax.process_count(), []
        for start in range(0, len(prompts), share):
            ids = self._call(robot, [c[start : start + share] for c in columns])
            assert ids is not None
            rows.append(ids)
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.int32)

    def _call(self, robot: str | None, columns: list[np.ndarray]) -> np.ndarray | None:
        """One call of a decoder, which all processes make.

        Args:
          robot: see `_run`; None: this process is finished and brings nothing.
          columns: its rows, up to its share.

        Returns:
          Their ids; None if all processes are finished.
        """
        names, count = (_TEXT, *self._tokenizers), len(columns[0]) if columns else 0
        number, counts = agree(None if robot is None else names.index(robot), count)
        if number is None:
            return None
        share = self.batch_size // len(counts)
        columns = columns or self._nothing()
        padded = [np.pad(c, [(0, share - count), *[(0, 0)] * (c.ndim - 1)]) for c in columns]
        # Rows that nobody brought repeat one that somebody did: text decoding ends with the last.
        real = np.arange(self.batch_size) % share < np.repeat(counts, share)
        row = np.where(real, np.arange(self.batch_size), np.flatnonzero(real)[-1])
        ids = self._decode(names[number], [c[row] for c in join_rows(padded)])
        first = share * jax.process_index()
        return ids[first : first + count]

    def _decode(self, robot: str, columns: list[np.ndarray]) -> np.ndarray:
        """Ids of all rows; on a CPU by several programs at a time.

        XLA's CPU programs share out single products and convolutions over the cores, and many are
        too small for that: two programs of 8 rows take 2/3 of the time of one of 16 on two cores.
        """
        count = _programs_at_a_time(self._mesh, self.batch_size)
        if count == 1:
            return self._decode_part(robot, columns)
        parts = [list(part) for part in zip(*(np.split(c, count) for c in columns))]
        key, decode = (robot, len(parts[0][0])), functools.partial(self._decode_part, robot)
        threads, found = _threads(count), []
        if key not in self._compiled:  # by one thread: others would do the same again
            found.append(threads.submit(decode, parts[0]).result())
            self._compiled.add(key)
        found += threads.map(decode, parts[len(found) :])
        return np.concatenate(found)

    def _decode_part(self, robot: str, columns: list[np.ndarray]) -> np.ndarray:
        rows = batch_sharding(self._mesh)
        arrays = [jax.make_array_from_callback(c.shape, rows, c.__getitem__) for c in columns]
        inputs, state = arrays[:5], State(*arrays[5:]) if arrays[5:] else None
        return np.asarray(self.decoder(robot)(self.params, *inputs, state=state))

    def _nothing(self) -> list[np.ndarray]:
        """The columns of `_call` without rows."""
        model, builder = self.config, self.builder
        length = builder.max_tokens - builder.max_answer_tokens
        side = model.image_size
        columns = [
            np.zeros((0, model.num_views, side, side, 3), np.uint8),
            np.zeros((0, length), np.int32),
            np.zeros((0, length), bool),
            np.zeros(0, np.float32),
            np.zeros(0, np.int32),
        ]
        if model.state_size:
            columns += [np.zeros((0, model.state_size), np.float32), np.zeros(0, bool)]
        return columns


def _programs_at_a_time(mesh: Mesh, rows: int) -> int:
    """That rows are split over: on one CPU device up to one for each core, of as many rows each."""
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return 1
    return max(n for n in range(1, (os.cpu_count() or 1) + 1) if rows % n == 0)


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "decode")


def _mesh_of(params: Params) -> Mesh:
    """That the parameters lie on; of one device if they lie on one, or nowhere yet."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    devices = jax.local_devices()[:1] if sharding is None else list(sharding.device_set)
    return make_mesh(MeshConfig(), devices)


def _unstacked(params: Params, config: ModelConfig) -> Params:
    """See `unstack_layers`; each layer lies where the stack does."""
    if not config.unroll_layers:
        return params
    return jax.jit(functools.partial(unstack_layers, config=config))(params)
