"""Robots of different ActionSpecs and cameras in one run, with pictures of one view beside them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.data.examples import LENGTHS, encoded, episode, pixels, rows
from tests.training.conftest import save_fresh
from vla_jax.actions.spec import ActionDimension, ActionSpec, end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.build import build_training, load_policy
from vla_jax.config import Config
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.models.vla import Segments, Vla, init_params, run_model
from vla_jax.schema import from_dict

ARM = end_effector_spec("arm", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)
HAND = ActionSpec(
    "hand",
    tuple(ActionDimension(f"joint_{i}", "rad", -1.0 - i, 0.5 + i) for i in range(3)),
    frame="none", rotation="none", gripper="none", control_hz=20,
)  # fmt: skip


def hand_episode(number: int):
    one = episode(number, LENGTHS[number])
    actions = np.random.default_rng(number).uniform(HAND.low, HAND.high, (LENGTHS[number], 3))
    wrist = [encoded(900 + 10 * number + t) for t in range(LENGTHS[number])]
    images = {**one["images"], "wrist": wrist}
    return {**one, "images": images, "action": actions.astype(np.float32)}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    at = tmp_path_factory.mktemp("robots")
    arm = (episode(i, n) for i, n in enumerate(LENGTHS))
    write_episodes(arm, at / "arm", ARM, name="arm", description="")
    write_episodes(map(hand_episode, range(5)), at / "hand", HAND, name="hand", description="")
    write_image_text({"train": rows("train", 12)}, at / "web", name="web", description="")
    cameras = ("steps/observation/image", "steps/observation/wrist")
    return from_dict(Config, {
        "model": {
            "preset": "tiny", "image_size": 28, "compute_dtype": "float32", "num_views": 2,
        },
        "data": {
            "sources": {
                "arm": {"kind": "episodes", "path": str(at / "arm")},
                "hand": {"kind": "episodes", "path": str(at / "hand"), "cameras": cameras},
                "web": {"kind": "image_text", "path": str(at / "web")},
            },
            "max_tokens": 40, "max_answer_tokens": 10,
        },
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "train": {"steps": 2, "batch_size": 24, "log_every": 1, "checkpoint_every": 2},
    })  # fmt: skip


def test_each_robot_speaks_its_own_tokens(config):
    run = build_training(dataclasses.replace(config))
    loader = run.loader(0)
    batch = next(loader)
    loader.close()
    ids = run.builder.vocabulary.integer_ids
    tokenizers = {"arm": UniformTokenizer(ARM, ids), "hand": UniformTokenizer(HAND, ids)}
    source, record = run.mixture.locate(np.arange(24))
    assert sorted(np.bincount(source).tolist()) == [8, 8, 8]
    for row, (k, i) in enumerate(zip(source.tolist(), record.tolist())):
        name = run.mixture.names[k]
        answer = batch["tokens"][row][batch["in_loss"][row]]
        if name in tokenizers:
            action = run.sources[name].read(i).action
            np.testing.assert_array_equal(answer[:-1], tokenizers[name].encode(action))
        views = [pixels(image) for image in run.sources[name].read(i).images]
        assert batch["image_segment"][row].tolist() == [1, 1 if len(views) == 2 else -1]
        assert (batch["images"][row, len(views) :] == 0).all()


def test_a_view_that_is_not_there_changes_nothing(config):
    """Rows of one view beside rows of two = the same rows by themselves."""
    run = build_training(config)
    loader = run.loader(0)
    batch = next(loader)
    loader.close()
    model = Vla(config.model)
    params = jax.jit(init_params, static_argnums=0)(config.model, jax.random.key(0))
    columns = [batch[key] for key in ("tokens", "attend_causal", "valid")]
    segments = Segments(batch["image_segment"], batch["segment"])
    # Whatever fills up the place.
    images = batch["images"].copy()
    absent = batch["image_segment"] == -1
    images[absent] = np.random.default_rng(0).integers(0, 256, images[absent].shape)
    run_jitted = jax.jit(functools.partial(run_model, model))
    hidden, _ = run_jitted(params, images, *columns, segments)
    for views, chosen in ((1, absent[:, 1]), (2, ~absent[:, 1])):
        assert chosen.any()
        alone, _ = run_jitted(params, images[chosen, :views], *(c[chosen] for c in columns))
        valid = batch["valid"][chosen]
        np.testing.assert_allclose(
            np.asarray(hidden)[chosen][valid], np.asarray(alone)[valid], atol=1e-5
        )


def test_a_policy_acts_for_the_robot_that_is_named(config, tmp_path):
    save_fresh(config, tmp_path)
    policy, meta, _ = load_policy(tmp_path, batch_size=2)
    assert meta.action_specs == (ARM, HAND)
    images = np.zeros((1, 2, 28, 28, 3), np.uint8)
    assert isinstance(policy.answer(images, ["what is it?"])[0], str)
    with pytest.raises(ValueError, match="say for which robot: arm, hand"):
        policy.act(images, ["wave"])
    for name, wanted in (("arm", ARM), ("hand", HAND)):
        actor = policy.for_robot(name)
        assert actor.action_spec == wanted
        [[action]] = actor.act(images, ["wave"]).actions
        assert action.shape == wanted.low.shape
        assert (wanted.low <= action).all() and (action <= wanted.high).all()
    with pytest.raises(ValueError, match="no action tokens for robot 'leg', only for: arm, hand"):
        policy.for_robot("leg")


def test_what_does_not_fit_together_is_refused(config, tmp_path):
    one_view = dataclasses.replace(config, model=dataclasses.replace(config.model, num_views=1))
    with pytest.raises(ValueError, match="num_views is 1, and a sample of these data has 2 images"):
        build_training(one_view).loader(0)
    dimensions = tuple(dataclasses.replace(d, high=d.high + 1) for d in HAND.dimensions)
    other = dataclasses.replace(HAND, dimensions=dimensions, name=ARM.name)
    write_episodes(map(hand_episode, range(2)), tmp_path / "d", other, name="d", description="")
    hand = dataclasses.replace(config.data.sources["hand"], path=str(tmp_path / "d"))
    sources = {**config.data.sources, "hand": hand}
    same = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with pytest.raises(ValueError, match=r"the ActionSpec of source 'arm' .* source 'hand'"):
        build_training(same)
