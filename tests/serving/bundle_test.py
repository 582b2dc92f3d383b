"""What a bundle is made of, that nothing in it can change unseen, and what other programs get."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file

from tests.data.examples import pixels
from tests.serving.conftest import SPEC, noise
from vla_jax.build import load_initial_params, load_policy
from vla_jax.config import Config
from vla_jax.data.sources.opening import open_source
from vla_jax.export import Options, export, main
from vla_jax.schema import from_dict
from vla_jax.serving import bundle, dtypes, parameters
from vla_jax.serving.pixels import resized
from vla_jax.text.prompts import robot_prompt
from vla_jax.tree import flatten

INSTRUCTIONS = ["pick the dog", "pick the cat", "push it"]


def test_every_changed_byte_is_refused_by_name(plain_bundle, tmp_path):
    files = [p.relative_to(plain_bundle) for p in sorted(plain_bundle.rglob("*")) if p.is_file()]
    assert len(files) > 8
    copy = shutil.copytree(plain_bundle, tmp_path / "copy")
    digest = bundle.check(copy)
    rng = np.random.default_rng(0)
    for name in files:
        whole = (copy / name).read_bytes()
        for place in (0, len(whole) - 1, int(rng.integers(len(whole)))):
            changed = bytearray(whole)
            changed[place] ^= 1
            (copy / name).write_bytes(changed)
            with pytest.raises(ValueError, match=name.as_posix()):
                bundle.check(copy)
        (copy / name).write_bytes(whole + b"\n")
        with pytest.raises(ValueError, match=name.as_posix()):
            bundle.check(copy)
        (copy / name).write_bytes(whole)
    assert (
        bundle.check(copy) == digest == json.loads((copy / "manifest.json").read_text())["digest"]
    )
    (copy / "policy.json").unlink()
    with pytest.raises(ValueError, match=r"policy.json is missing"):
        bundle.read(copy)
    with pytest.raises(FileNotFoundError, match=r"vla_jax\.export"):
        bundle.read(tmp_path)


def test_another_schema_and_files_outside_are_refused(plain_bundle, tmp_path):
    copy = shutil.copytree(plain_bundle, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(bundle._dump({**manifest, "schema": 2}))
    with pytest.raises(ValueError, match="has bundle schema 2, this program reads 1"):
        bundle.read(copy)
    files = {**manifest["files"], "../outside": {"bytes": 0, "sha256": ""}}
    changed = {"schema": 1, "digest": bundle._digest(files), "files": files}
    (copy / "manifest.json").write_text(bundle._dump(changed))
    with pytest.raises(ValueError, match=r"\.\./outside is outside of it"):
        bundle.read(copy)


def test_it_holds_the_run(plain_run, plain_bundle, tmp_path, capsys):
    policy, meta, config = load_policy(plain_run, batch_size=1)
    found = bundle.read(plain_bundle)
    tensors = load_file(plain_bundle / "parameters.safetensors")
    wanted = flatten(policy.params)
    assert tensors.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(tensors[name], x)
    assert (found.spec, found.settings.model) == (SPEC, config.model)
    card = found.card
    assert (card["steps"], card["samples"], card["config"]) == (3, 24, meta.config)
    assert card["mixture"]["robot"]["share_configured"] == pytest.approx(2 / 3)
    assert card["mixture"]["robot"]["share_of_samples"] == pytest.approx(16 / 24, abs=1 / 24)
    assert card["robot"]["spec_digest"] == SPEC.digest
    text = (plain_bundle / "README.md").read_text()
    assert "| position_x | m | -0.05 | 0.05 |" in text and "The run was not evaluated." in text
    with pytest.raises(FileExistsError, match="remove it"):
        export(plain_run, plain_bundle)
    assert main(["--workdir", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    gone = ["--workdir", str(plain_run), "--out", str(tmp_path / "new"), "--checkpoint=99"]
    assert main(gone) == 2 and "no checkpoint 99" in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.partial").exists()


def test_smaller_dtypes_are_as_near_as_they_can_be(rich_run, rich_bundle):
    policy = load_policy(rich_run, batch_size=1)[0]
    exact = {name: np.asarray(x) for name, x in flatten(policy.params).items()}
    in_bfloat16 = parameters.usable(dtypes.stored(policy.params, "bfloat16"), "float32")
    in_int8 = parameters.usable(parameters.read(rich_bundle), "float32")
    assert in_bfloat16.keys() == in_int8.keys() == exact.keys()
    for name, x in exact.items():
        assert (np.abs(in_bfloat16[name].astype("f4") - x) <= np.abs(x) * 2.0**-8).all(), name
        assert (np.abs(in_int8[name] - x) <= np.abs(x).max() / 127 / 2 * 1.001).all(), name
    assert max(np.abs(in_int8[name] - x).max() for name, x in exact.items()) > 0


def test_the_card_says_what_int8_changes(rich_run, rich_bundle):
    card = bundle.read(rich_bundle).card
    change = card["dtype_change"]
    assert change["steps"] == 6  # of episode 4, the test split
    run = load_policy(rich_run, batch_size=8)[0]
    source = open_source(
        "robot",
        from_dict(Config, card["config"]).data.sources["robot"],
        split="test",
        chunk=2,
        frames=2,
    )
    examples = [source.read(i) for i in range(6)]
    images = np.stack([[pixels(view) for view in e.images] for e in examples])
    small = np.stack([[resized(view, 28) for view in views] for views in images])
    said = run.act(small, ["pick the cat"] * 6, states=np.stack([e.state for e in examples]))
    done = np.stack([e.action for e in examples])
    valid = np.ones((6, 2), bool)
    valid[5, 1] = False  # past the end
    error = np.abs(said.actions - done)[valid].mean(axis=0)
    got = [d["error_float32"] for d in change["dimensions"]]
    np.testing.assert_allclose(got, error, rtol=1e-5)
    for d in change["dimensions"]:
        assert abs(d["error"] - d["error_float32"]) <= d["apart"] + 1e-6
    assert (change["same_tokens"] == 1) == all(d["apart"] == 0 for d in change["dimensions"])
    assert "On 6 held-out steps" in (rich_bundle / "README.md").read_text()


def test_int8_has_a_scale_for_each_output_and_of_every_matrix():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 16, 4, 5)) * 10.0 ** rng.integers(-3, 3, (3, 1, 4, 5))).astype("f4")
    x[1, :, 2, 2] = 0
    ints, scale = dtypes.quantize(x, (1,))
    assert (ints.dtype, scale.shape) == (np.int8, (3, 1, 4, 5))
    largest = np.abs(x).max(axis=1, keepdims=True)
    # All of -128 .. 127 is used: the largest number is 127.5 scales.
    np.testing.assert_allclose(scale, np.where(largest > 0, largest / 127.5, 1), rtol=1e-6)
    assert (np.abs(ints * scale - x) <= largest / 127.5 / 2 * 1.0001).all()
    used, positive = np.abs(ints.astype(int)).max(axis=1), x.max(axis=1) == largest[:, 0]
    zeros = largest[:, 0] == 0
    assert zeros.sum() == 1 and (used[zeros] == 0).all()
    assert (used[positive & ~zeros] == 127).all() and np.isin(used[~positive], (127, 128)).all()
    with open("tests/golden/paligemma_3b_tree.json") as file:
        tree = json.load(file)
    known = [n for n in tree if any(re.fullmatch(p, n) for p, _ in dtypes._SUMMED)]
    whole = sum(np.prod(tree[n]) for n in tree)
    assert sum(np.prod(tree[n]) for n in known) > 0.999 * whole


FRESH = """
import os, sys
import numpy as np
if sys.argv[3] == "jax":
    import glob
    import jax
    import safetensors.numpy
    parameters = {}
    for file in glob.glob(sys.argv[1] + "/parameters*.safetensors"):
        parameters |= safetensors.numpy.load_file(file)
    name = sys.argv[1] + "/stablehlo/%s.stablehlo"
    load = lambda n: jax.jit(jax.export.deserialize(bytearray(open(name % n, "rb").read())).call)
    run = lambda n, inputs: load(n)(parameters, *inputs.values())
else:
    import tensorflow as tf
    model = tf.saved_model.load(sys.argv[1] + "/saved_model")
    run = lambda n, inputs: model.signatures[n](**inputs)["ids"].numpy()
with np.load(sys.argv[2]) as file:
    inputs = {key: tf.constant(file[key]) if sys.argv[3] == "tf" else file[key] for key in file}
np.savez(sys.argv[4], act=run("act", inputs), answer=run("answer", inputs))
loaded = [m for m in sys.modules if m.split(".")[0] in ("vla_jax", "flax", "orbax")]
assert not loaded, loaded
"""


@pytest.fixture(scope="module")
def asked(plain_run, tmp_path_factory):
    """A file of inputs, and what the run's own policy says to them."""
    policy = load_policy(plain_run, batch_size=3)[0]
    images = noise(0, 3, 1, 28, 28, 3)
    text = policy.builder.prompts([robot_prompt(i) for i in INSTRUCTIONS])
    inputs = {"images": images, "tokens": text["tokens"], "valid": text["valid"]}
    inputs |= {"temperature": np.zeros(3, np.float32), "seeds": np.zeros(3, np.int32)}
    path = tmp_path_factory.mktemp("asked") / "inputs.npz"
    np.savez(path, **inputs)
    acts = policy.act(images, INSTRUCTIONS).ids
    prompts = [robot_prompt(i) for i in INSTRUCTIONS]
    return path, acts, policy._run("", images, prompts, *(inputs[k] for k in list(inputs)[3:]))


@pytest.mark.parametrize("program", ["jax", "tf"])
def test_subprocess_without_this_project_says_the_same(plain_bundle, asked, program, tmp_path):
    path, acts, answers = asked
    out = tmp_path / "ids.npz"
    command = [sys.executable, "-c", FRESH, str(plain_bundle), str(path), program, str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as ids:
        np.testing.assert_array_equal(ids["act"], acts)
        np.testing.assert_array_equal(ids["answer"], answers)


def test_programs_are_lowered_for_every_platform(plain_bundle, rich_bundle):
    assert {d.platform for d in jax.devices()} == {"cpu"}
    for path in (plain_bundle, rich_bundle):
        for name in ("act", "answer"):
            raw = (path / f"stablehlo/{name}.stablehlo").read_bytes()
            function = jax_export.deserialize(bytearray(raw))
            assert function.platforms == ("cpu", "cuda", "tpu")
            assert str(function.in_avals[-1].shape[0]) == "batch"
    # What comes in is what the files hold.
    tensors = parameters.read(rich_bundle)
    function_in = jax.tree.unflatten(function.in_tree, function.in_avals)[0][0]
    assert {n: (x.shape, x.dtype) for n, x in function_in.items()} == {
        n: (x.shape, x.dtype) for n, x in tensors.items()
    }
    assert sum(x.dtype == np.int8 for x in tensors.values()) >= 12


def test_hugging_face_files_hold_the_run(tmp_path, plain_run):
    export(plain_run, tmp_path / "out", Options(hugging_face=True))
    policy, _, config = load_policy(plain_run, batch_size=1)
    places = jax.tree.map(lambda x: x.sharding, policy.params)
    read = load_initial_params(str(tmp_path / "out/hugging_face"), config.model, 0, places)
    jax.tree.map(np.testing.assert_array_equal, read, policy.params)
