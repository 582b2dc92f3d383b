"""Policy: pictures and words in, answers or actions in physical units out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.decoding.sampler import make_decoder
from vla_jax.models.presets import ModelConfig
from vla_jax.models.stack import unstack_layers
from vla_jax.models.vla import State
from vla_jax.text.prompts import ROBOT_TEMPLATE, question_prompt, robot_prompt
from vla_jax.types import Params


class ActResult(NamedTuple):
    actions: np.ndarray  # float32 [B, C, A], physical units
    ids: np.ndarray  # int32 [B, K], the action tokens, padded
    plans: tuple[str, ...] = ()  # what was said before each action, if the policy plans


class Policy:
    """A model with everything it needs to answer and to act.

    Args:
      params: the model's parameters.
      config: the model.
      builder: tokenization, as in training.
      batch_size: rows per device call; more are split, fewer are padded, so it compiles once.
      robot_template: of the prompt that instructions are put in, as in training.
      plans: it says what it is going to do before it acts, as in training; the template is then
        usually `prompts.PLAN_TEMPLATE`.

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
    ):
        self.params = unstack_layers(params, config)
        self.config = config
        self.batch_size = batch_size
        self.builder = builder
        self._template, self._plans = robot_template, plans
        self._make = functools.partial(
            make_decoder,
            config,
            eos_id=builder.vocabulary.eos_id,
            pad_id=builder.vocabulary.pad_id,
            num_words=builder.vocabulary.size,
        )
        self._decode_text = self._make("text", max_answer_tokens=builder.max_answer_tokens)
        one_robot = len(builder.action_tokenizers) == 1
        self._decode_action = self._action_decoder() if one_robot else None

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
        policy._decode_action = policy._action_decoder()
        return policy

    def _action_decoder(self):
        tokenizer, builder = self.action_tokenizer, self.builder
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
        prompts = [question_prompt(q) for q in questions]
        options = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), np.int32)
        ids = self._run(self._decode_text, images, prompts, *options)
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
        tokenizer, count = self.action_tokenizer, len(instructions)
        if (states is not None) != (self.builder.state is not None):
            wanted = "takes none" if self.builder.state is None else "was trained with them"
            raise ValueError(
                f"{'no ' if states is None else ''}states are given, and this policy {wanted}"
            )
        prompts = [robot_prompt(i, self._template) for i in instructions]
        options = (
            np.full(count, temperature, np.float32),
            np.asarray(seeds if temperature else np.zeros(count), np.int32),
        )
        ids = self._run(self._decode_action, images, prompts, *options, states=states)
        plans: tuple[str, ...] = ()
        if self._plans:
            plans, ids = self._split(ids)
        return ActResult(np.stack([tokenizer.decode(row) for row in ids]), ids, plans)

    def _split(self, ids: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        """What a decoder of plans says -> the plans, and the action tokens [B, K]."""
        end, length = self.builder.plan_end, self.action_tokenizer.max_tokens
        windows = np.lib.stride_tricks.sliding_window_view(ids, len(end), axis=1)
        starts = np.argmax((windows == end).all(axis=2), axis=1)
        plans = tuple(
            self.builder.vocabulary.decode(row[:start]) for row, start in zip(ids, starts.tolist())
        )
        places = starts[:, None] + len(end) + np.arange(length)
        return plans, np.take_along_axis(ids, places, axis=1)

    def _text(self, ids: np.ndarray) -> str:
        end = np.flatnonzero(ids == self.builder.vocabulary.eos_id)
        return self.builder.vocabulary.decode(ids[: end[0] if len(end) else len(ids)].tolist())

    def _run(
        self,
        decode,
        images: np.ndarray,
        prompts: list[str],
        *options: np.ndarray,
        states: np.ndarray | None = None,
    ) -> np.ndarray:
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
        state = State(text["state"], text["state_valid"]) if "state" in text else None
        rows = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            columns = [c[part] for c in (images, text["tokens"], text["valid"], *options)]
            count = len(columns[0])
            repeat = np.minimum(np.arange(self.batch_size), count - 1)
            of_part = None if state is None else State(*(c[part][repeat] for c in state))
            ids = decode(self.params, *(c[repeat] for c in columns), state=of_part)
            rows.append(np.asarray(ids)[:count])
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.int32)
