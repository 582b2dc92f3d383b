"""A bundle's policy against the run's own, and one bad request among good ones."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.data.examples import encoded
from tests.serving.conftest import SPEC, noise
from vla_jax import serving
from vla_jax.build import load_policy
from vla_jax.data import images as training_images
from vla_jax.decoding.sampler import BROKEN
from vla_jax.serving import bundle, parameters, pixels
from vla_jax.sharding.mesh import MeshConfig
from vla_jax.text.prompts import robot_prompt

INSTRUCTIONS = ["pick the dog", "pick the cat", "push it"]


@pytest.fixture(scope="module")
def plain(plain_bundle):
    return serving.load(plain_bundle, max_batch_size=2)


@pytest.fixture(scope="module")
def rich(rich_bundle):
    return serving.load(rich_bundle, max_batch_size=2)


def _ask(images, **changes) -> list[serving.Observation]:
    return [
        serving.Observation({"image": image}, text, **changes)
        for image, text in zip(images, INSTRUCTIONS)
    ]


def test_it_acts_as_the_run_does(plain, plain_run):
    run = load_policy(plain_run, batch_size=3)[0]
    images = noise(0, 3, 28, 28, 3)
    assert (plain.spec, plain.chunk, plain.cameras) == (SPEC, 1, ("image",))
    assert plain.batch_sizes == (1, 2) and plain.image_size == 28 and plain.state_names == ()
    for temperature in (0.0, 0.8):
        seeds = [5, 6, 7]
        want = run.act(images, INSTRUCTIONS, temperature=temperature, seeds=seeds)
        asked = [o._replace(temperature=temperature, seed=s) for o, s in zip(_ask(images), seeds)]
        got = plain.act(asked)
        for row, action in enumerate(got):
            assert action.valid and not action.why and not action.plan and action.latency_s > 0
            np.testing.assert_array_equal(action.actions, want.actions[row])
            np.testing.assert_array_equal(action.tokens, want.ids[row])
            assert action.text == run.action_tokenizer.text(want.ids[row])
        # Alone, in whatever batch size that is.
        one = plain(images[0], INSTRUCTIONS[0], temperature=temperature, seed=5)
        np.testing.assert_array_equal(one.actions, want.actions[0])
    questions = ["what is number 1?", "why?"]
    assert plain.answer(list(images[:2]), questions) == run.answer(images[:2], questions)
    five = plain.act([*_ask(images), *_ask(images)][:5])  # more than the largest batch
    want = run.act(images, INSTRUCTIONS).ids
    np.testing.assert_array_equal([a.tokens for a in five], want[[0, 1, 2, 0, 1]])
    assert plain.act([]) == [] and plain.answer([], []) == []


@pytest.mark.parametrize(
    ("shape", "size"), [((32, 32), 28), ((20, 45), 28), ((480, 640), 224), ((7, 300), 56)]
)
def test_images_are_resized_as_in_training(shape, size):
    image = noise(3, *shape, 3)
    encoded_image = training_images.to_bytes(image, where="here")
    want = np.asarray(training_images.decode(encoded_image, size)).astype(int)
    got = pixels.resized(image, size).astype(int)
    # Processors that multiply and add in one step round a few halves the other way.
    assert np.abs(got - want).max() <= 1 and (got == want).mean() > 0.9999


def test_one_bad_request_does_not_spoil_the_others(plain):
    images = noise(1, 3, 28, 28, 3)
    good = plain.act(_ask(images))
    first = _ask(images)[0]
    bad = {
        "camera missing: image; given: wrist": first._replace(images={"wrist": images[0]}),
        "camera wrist is not one of": first._replace(images={**first.images, "wrist": images[0]}),
        "float32 [28, 28, 3], not uint8": first._replace(
            images={"image": images[0] / np.float32(2)}
        ),
        "uint8 [0, 28, 3], not uint8": first._replace(images={"image": images[0][:0]}),
        "[3, 28, 28, 3], and this policy sees 1 at a time": first._replace(
            images={"image": images}
        ),
        "empty instruction": first._replace(instruction=" ."),
        "longer than the 30": first._replace(instruction="pick the dog " * 30),
        "a state is given": first._replace(state=np.zeros(8)),
        "temperature nan": first._replace(temperature=float("nan")),
        "temperature -1": first._replace(temperature=-1.0),
        "seed -3": first._replace(seed=-3),
        "has no attribute": first._replace(instruction=None),  # type: ignore[arg-type]
    }
    mixed = [*_ask(images)[:1], *bad.values(), *_ask(images)[1:]]
    got = plain.act(mixed)
    assert [action.valid for action in got] == [True, *[False] * len(bad), True, True]
    for action, want in zip([got[0], *got[-2:]], good):
        np.testing.assert_array_equal(action.actions, want.actions)
    for action, why in zip(got[1:], bad):
        assert why in action.why
        assert action.actions.shape == (1, 8) and np.isnan(action.actions).all()
        assert action.tokens.size == 0
    with pytest.raises(ValueError, match="question 1: empty question"):
        plain.answer([images[0]] * 2, ["what?", " "])


def test_logits_that_are_not_finite_refuse_their_row_alone(plain_bundle, tmp_path, plain):
    """A parameter that is NaN for one word breaks those who use the word."""
    copy = shutil.copytree(plain_bundle, tmp_path / "copy")
    file = copy / "parameters.safetensors"
    tensors = load_file(file)
    [*_, dog] = bundle.read(plain_bundle).vocabulary.encode("pick the dog")
    tensors["llm/embedder/input_embedding"][dog] = np.nan
    save_file(tensors, file)
    bundle.write_manifest(copy)
    broken = serving.load(copy, max_batch_size=2)
    images = noise(0, 3, 28, 28, 3)
    got = broken.act(_ask(images))
    assert [action.valid for action in got] == [False, True, True]
    assert "NaN or infinite" in got[0].why and BROKEN in got[0].tokens
    assert np.isnan(got[0].actions).all()
    for action, want in zip(got[1:], plain.act(_ask(images))[1:]):
        np.testing.assert_array_equal(action.actions, want.actions)


def test_plans_states_chunks_cameras_and_frames_come_through(rich, rich_bundle, rich_run):
    found = bundle.read(rich_bundle)
    assert rich.cameras == ("image", "wrist") and rich.frames == 2 and rich.chunk == 2
    assert rich.state_names == tuple(f"state_{i}" for i in range(8)) and found.settings.plans
    assert found.card["cameras"]["wrist"] == "steps/observation/wrist"
    run = load_policy(rich_run, batch_size=2)[0]
    # The bundle is int8: its parameters in the run's policy.
    places = jax.tree.map(lambda x: x.sharding, run.params)
    run = run.with_params(jax.device_put(rich._policies[1].params, places))
    old, new = noise(0, 2, 2, 28, 28, 3), noise(1, 2, 2, 28, 28, 3)  # [camera, robot, ...]
    states = np.random.default_rng(2).normal(size=(2, 8)).astype(np.float32)
    views = np.stack([old[0], old[1], new[0], new[1]], axis=1)
    want = run.act(views, INSTRUCTIONS[:2], states=states)
    got = rich.act(
        [
            serving.Observation(
                {
                    name: np.stack([old[camera, robot], new[camera, robot]])
                    for camera, name in enumerate(rich.cameras)
                },
                INSTRUCTIONS[robot],
                states[robot],
            )
            for robot in range(2)
        ]
    )
    for row, action in enumerate(got):
        assert action.valid, action.why
        assert action.plan == want.plans[row]
        np.testing.assert_array_equal(action.actions, want.actions[row])
    # So does its StableHLO, which takes int8 as the files have it.
    text = run.builder.prompts(
        [robot_prompt(i, found.settings.robot_template) for i in INSTRUCTIONS[:2]], states
    )
    raw = (rich_bundle / "stablehlo/act.stablehlo").read_bytes()
    ids = jax.jit(jax.export.deserialize(bytearray(raw)).call)(
        parameters.read(rich_bundle),
        views,
        text["tokens"],
        text["valid"],
        np.zeros(2, np.float32),
        np.zeros(2, np.int32),
        text["state"],
        text["state_valid"],
    )
    np.testing.assert_array_equal(run._split(np.asarray(ids))[1], want.ids)
    # One frame is the first of an episode.
    first = run.act(views[:1, [2, 3, 2, 3]], INSTRUCTIONS[:1], states=states[:1])
    alone = rich({"image": new[0, 0], "wrist": new[1, 0]}, INSTRUCTIONS[0], states[0])
    np.testing.assert_array_equal(alone.actions, first.actions[0])
    executor = rich.make_executor()
    executor.add(alone.actions)
    np.testing.assert_array_equal(executor.next(), alone.actions[0])

    images = {"image": new[0, 0], "wrist": new[1, 0]}
    assert "state missing: 8 numbers (state_0, state_1" in rich(images, "pick").why
    assert "state of shape (3,)" in rich(images, "pick", np.zeros(3)).why
    assert "NaN or infinite" in rich(images, "pick", np.full(8, np.nan)).why
    with pytest.raises(ValueError, match=r"name the cameras: \{image, wrist\}"):
        rich(new[0, 0], "pick")


def test_a_model_split_over_devices_says_the_same(plain, plain_bundle):
    images = noise(0, 3, 28, 28, 3)
    want = [action.tokens for action in plain.act(_ask(images))]
    mesh = MeshConfig(data=1, fsdp=4, tensor=2)
    split = serving.load(plain_bundle, mesh=mesh, max_batch_size=4)
    assert split.batch_sizes == (4,)  # rows divide over the devices
    table = split._policies[4].params["llm"]["embedder"]["input_embedding"]
    assert len({str(shard.index) for shard in table.addressable_shards}) == 8
    np.testing.assert_array_equal([a.tokens for a in split.act(_ask(images))], want)


def test_after_a_warm_up_nothing_is_compiled(plain, monkeypatch):
    policy = plain
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    policy.warm_up()
    decoders = policy._policies[1]._decoders
    sizes = {name: decode._cache_size() for name, decode in decoders.items()}
    assert sizes == {"test": 2, "": 2}
    images = [np.frombuffer(encoded(0), np.uint8)[:3].reshape(1, 1, 3)] * 3
    for cores in (1, 2):  # on two, two rows are two programs of one
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        policy.act([serving.Observation({"image": image}, "pick the dog") for image in images])
        policy.answer(images, ["a?", "b?", "c?"])
        assert {name: decode._cache_size() for name, decode in decoders.items()} == sizes
