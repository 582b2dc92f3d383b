"""BundlePolicy: what cameras see and what was said in, actions in physical units out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.decoding.chunks import ChunkExecutor
from vla_jax.decoding.policy import Policy
from vla_jax.decoding.sampler import BROKEN
from vla_jax.models.vla import init_params
from vla_jax.serving import parameters
from vla_jax.serving.bundle import Bundle, StateSettings, read, short_names
from vla_jax.serving.contract import Action, Observation
from vla_jax.serving.pixels import resized
from vla_jax.sharding.mesh import MeshConfig, make_mesh
from vla_jax.sharding.rules import param_shardings
from vla_jax.text.prompts import question_prompt, robot_prompt

_MAX_SEED = 2**31


class _Row(NamedTuple):
    """A request that can be asked."""

    images: np.ndarray  # uint8 [views, size, size, 3]
    instruction: str
    state: np.ndarray | None
    temperature: float
    seed: int


class BundlePolicy:
    """Acts and answers as a bundle says. See `load`.

    Calls are padded to the next of `batch_sizes`, so a single request does not pay for sixteen. One
    request that is wrong, or whose logits are NaN, is refused by itself: the others of its batch
    get their actions.

    Args:
      bundle: checked.
      mesh: how the model is split over devices, by the rules of training; None: one device.
      max_batch_size: rows of the largest call.

    Raises:
      ValueError: parameters that are not the model's, or a mesh that does not fit the devices.
    """

    def __init__(self, bundle: Bundle, *, mesh: MeshConfig | None = None, max_batch_size: int = 16):
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, got {max_batch_size}")
        settings = bundle.settings
        model = settings.model
        self._bundle, self._builder = bundle, bundle.builder
        devices = (
            make_mesh(MeshConfig(), jax.local_devices()[:1]) if mesh is None else make_mesh(mesh)
        )
        shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            param_shardings(shapes, devices),
        )
        tensors = parameters.read(bundle.path)
        policy = Policy(
            parameters.placed(tensors, like, model.compute_dtype),
            model,
            self._builder,
            batch_size=1,
            robot_template=settings.robot_template,
            plans=settings.plans,
            flag_broken=True,
        )
        sizes = [2**i for i in range(math.ceil(math.log2(max_batch_size)) + 1)]
        self._policies = {p.batch_size: p for p in map(policy.with_batch_size, sizes)}
        self.card: dict[str, Any] = bundle.card
        self.digest: str = bundle.digest
        self.cameras: tuple[str, ...] = short_names(settings.cameras) or ("image",)
        self.frames: int = settings.frames
        self.state_names: tuple[str, ...] = _number_names(settings.state)
        self.image_size: int = model.image_size
        self.batch_sizes: tuple[int, ...] = tuple(self._policies)

    @property
    def spec(self) -> ActionSpec:
        """Raises ValueError for a model without a robot."""
        return self._bundle.spec

    @property
    def chunk(self) -> int:
        """C, actions of one answer; raises as `spec`."""
        assert self.spec and self._bundle.tokenizer is not None
        return self._bundle.tokenizer.chunk

    def make_executor(self) -> ChunkExecutor:
        """Carries out the chunks of one episode as the bundle says; raises as `spec`."""
        return self._bundle.make_executor()

    def __call__(
        self,
        images: Mapping[str, np.ndarray] | np.ndarray,
        instruction: str,
        state: np.ndarray | None = None,
        *,
        temperature: float | None = None,
        seed: int = 0,
    ) -> Action:
        """The action for one robot.

        Args:
          images: see `Observation`; of a single camera also its image alone.
          temperature: None: the bundle's.

        Raises:
          ValueError: one image, and the policy sees several cameras; or no robot.
        """
        if not isinstance(images, Mapping):
            if len(self.cameras) > 1:
                raise ValueError(f"name the cameras: {{{', '.join(self.cameras)}}}")
            images = dict.fromkeys(self.cameras, images)
        if temperature is None:
            temperature = self._bundle.settings.temperature
        return self.act([Observation(images, instruction, state, temperature, seed)])[0]

    def act(self, observations: Sequence[Observation]) -> list[Action]:
        """One action for each, in their order; what is wrong with one is in its `why`.

        Raises ValueError for a model without a robot.
        """
        begun = time.perf_counter()
        rows: dict[int, _Row] = {}
        reasons: dict[int, str] = {}
        self.spec.digest  # noqa: B018  a model without a robot is refused whole
        for number, observation in enumerate(observations):
            try:
                rows[number] = self._row(observation)
            except (ValueError, TypeError, AttributeError) as e:
                reasons[number] = str(e)
        ids, plans = self._ask(list(rows.values()))
        took = time.perf_counter() - begun
        found = {n: self._action(i, plan, took) for n, i, plan in zip(rows, ids, plans)}
        nothing = np.zeros(0, np.int32)
        found |= {n: self._refused(nothing, "", why, took) for n, why in reasons.items()}
        return [found[number] for number in range(len(observations))]

    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        """Answers in words, from the full vocabulary; "" where the logits are not finite.

        Args:
          images: of each question one picture uint8 [h, w, 3], of whatever camera; it is the
            model's only view, as in training's questions.

        Raises ValueError, naming the row, for an image or a question that cannot be asked.
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images for {len(questions)} questions")
        views = []
        for number, (image, question) in enumerate(zip(images, questions)):
            try:
                views.append(resized(_picture(image, "the question"), self.image_size))
                self._builder.prompts([question_prompt(question)])
            except (ValueError, TypeError, AttributeError) as e:
                raise ValueError(f"question {number}: {e}") from e
        found: list[str] = []
        for start, policy in self._calls(len(views)):
            end = start + policy.batch_size
            found += policy.answer(np.stack(views[start:end]), list(questions[start:end]))
        return found

    def warm_up(self) -> None:
        """Compiles actions and answers for all batch sizes, so that no request waits for it."""
        blank = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        images = dict.fromkeys(self.cameras, blank)
        state = self._bundle.settings.state
        values = None if state.kind == "none" else np.asarray(state.low, np.float32)
        for size in self.batch_sizes:
            if self._bundle.tokenizer is not None:
                self.act([Observation(images, "stop", values)] * size)
            self.answer([blank] * size, ["what is this?"] * size)

    def _calls(self, count: int) -> list[tuple[int, Policy]]:
        """First row and policy of each call that so many rows take."""
        largest, calls = self.batch_sizes[-1], []
        for start in range(0, count, largest):
            left = count - start
            size = next((size for size in self.batch_sizes if size >= left), largest)
            calls.append((start, self._policies[size]))
        return calls

    def _ask(self, rows: list[_Row]) -> tuple[list[np.ndarray], list[str]]:
        """Action tokens and plan of each."""
        ids: list[np.ndarray] = []
        plans: list[str] = []
        for start, policy in self._calls(len(rows)):
            mine = rows[start : start + policy.batch_size]
            states = [row.state for row in mine if row.state is not None]
            found, said = policy.action_tokens(
                np.stack([row.images for row in mine]),
                [row.instruction for row in mine],
                temperatures=np.asarray([row.temperature for row in mine], np.float32),
                seeds=np.asarray([row.seed for row in mine], np.int32),
                states=np.stack(states) if states else None,
            )
            ids += list(found)
            plans += said or ("",) * len(mine)
        return ids, plans

    def _action(self, ids: np.ndarray, plan: str, took: float) -> Action:
        tokenizer = self._bundle.tokenizer
        assert tokenizer is not None
        if BROKEN in ids:
            return self._refused(ids, plan, "the model's logits are NaN or infinite", took)
        try:
            actions = self.spec.validate(tokenizer.decode(ids), where="the model")
        except ValueError as e:
            return self._refused(ids, plan, str(e), took)
        return Action(actions, ids, tokenizer.text(ids), plan, took, True, "")

    def _refused(self, ids: np.ndarray, plan: str, why: str, took: float) -> Action:
        nowhere = np.full((self.chunk, len(self.spec.dimensions)), np.nan, np.float32)
        return Action(nowhere, ids, "", plan, took, False, why)

    def _row(self, observation: Observation) -> _Row:
        """Raises ValueError with the reason if it cannot be asked."""
        images = self._views(observation.images)
        instruction, temperature = observation.instruction, float(observation.temperature)
        prompt = robot_prompt(instruction, self._bundle.settings.robot_template)
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature {temperature}: it must be at least 0")
        if not 0 <= observation.seed < _MAX_SEED:
            raise ValueError(f"seed {observation.seed}: it must be in [0, 2**31)")
        state, wanted = observation.state, self._builder.state
        if wanted is None and state is not None:
            raise ValueError("a state is given, and this policy was trained without")
        if wanted is not None:
            if state is None:
                names = ", ".join(self.state_names)
                raise ValueError(f"state missing: {wanted.size} numbers ({names})")
            state = np.asarray(state, np.float32)
        self._builder.prompts([prompt], None if state is None else [state])  # raises
        return _Row(images, instruction, state, temperature, int(observation.seed))

    def _views(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        """uint8 [views, size, size, 3] in the model's order: all cameras of the oldest frame first.

        Raises ValueError with the reason.
        """
        missing = [name for name in self.cameras if name not in images]
        if missing:
            raise ValueError(
                f"camera missing: {', '.join(missing)}; given: {', '.join(map(str, images))}"
            )
        unknown = [str(name) for name in images if name not in self.cameras]
        if unknown:
            raise ValueError(
                f"camera {', '.join(unknown)} is not one of this policy: {', '.join(self.cameras)}"
            )
        views = [self._frames_of(name, images[name]) for name in self.cameras]
        return np.stack(views, axis=1).reshape(-1, self.image_size, self.image_size, 3)

    def _frames_of(self, camera: str, image: np.ndarray) -> np.ndarray:
        """uint8 [frames, size, size, 3]."""
        image = np.asarray(image)
        if image.ndim != 4:
            frames = [_picture(image, f"camera {camera}")] * self.frames
        elif len(image) == self.frames > 1:
            frames = [_picture(frame, f"camera {camera}") for frame in image]
        else:
            raise ValueError(
                f"image of camera {camera}: {list(image.shape)}, and this policy sees "
                f"{self.frames} at a time"
            )
        return np.stack([resized(frame, self.image_size) for frame in frames])


def _picture(image: np.ndarray, what: str) -> np.ndarray:
    """As it is, if it is one. Raises ValueError."""
    image = np.asarray(image)
    wrong = image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3
    if wrong or 0 in image.shape:
        raise ValueError(f"image of {what}: {image.dtype} {list(image.shape)}, not uint8 [h, w, 3]")
    return image


def _number_names(state: StateSettings) -> tuple[str, ...]:
    """One for each number: of a feature "pose" of several, "pose_0", "pose_1" and so on."""
    names = short_names(state.features)
    if len(names) == len(state.low):
        return names
    # Which numbers are of which feature, only the training data tells.
    name = names[0] if len(names) == 1 else "state"
    return tuple(f"{name}_{i}" for i in range(len(state.low)))


def load(
    path: str | Path, *, mesh: MeshConfig | None = None, max_batch_size: int = 16
) -> BundlePolicy:
    """The policy of a bundle, after every file has been checked.

    Args:
      path: of the directory that `python -m vla_jax.export` wrote.
      mesh, max_batch_size: see `BundlePolicy`.

    Raises:
      FileNotFoundError: no bundle there.
      ValueError: a changed file, another schema version, or a mesh that does not fit.
    """
    return BundlePolicy(read(path), mesh=mesh, max_batch_size=max_batch_size)
