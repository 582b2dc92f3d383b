"""Topologies, what a plan says and which candidates a search tries; no compiler is needed."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from tests.planning.dumped import load
from vla_jax.config import load_config, parse
from vla_jax.plan import _parse_mesh, _parse_options
from vla_jax.planning.compile import Buffer, Compiled
from vla_jax.planning.estimate import Plan, predict
from vla_jax.planning.plot import save_plot
from vla_jax.planning.published import PUBLISHED, language_flops
from vla_jax.planning.report import report
from vla_jax.planning.search import Found, changed, mesh_candidates, ranking, remedies
from vla_jax.sharding.mesh import MeshConfig
from vla_jax.sharding.topology import CHIPS, parse_topology


def test_topologies_are_read():
    pod = parse_topology("v5p:8x8x8")
    assert (pod.chips, pod.hosts, pod.torus) == (512, 128, (8, 8, 8))
    two = parse_topology("v5e:16x16*2")
    assert (two.chips, two.slices, two.name) == (512, 2, "v5e:16x16*2")
    assert parse_topology("v5e:1x1").hosts == 1


@pytest.mark.parametrize(
    ("text", "wrap"),
    [
        ("v5e:16x16", (True, True, False)),
        ("v6e:8x16", (False, True, False)),
        ("v5e:4x4", (False, False, False)),
        ("v5p:4x4x8", (True, True, True)),
        ("v4:2x4x4", (False, False, False)),
    ],
)
def test_rings_close_where_they_do(text, wrap):
    assert parse_topology(text).wrap == wrap


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "expected KIND:SHAPE"),
        ("v9:4x4", "no kind of TPU 'v9'; known: v4, v5e, v5p, v6e, tpu7x"),
        ("v5e:4x4x4", "slices of v5e have 2 dimensions, not 3"),
        ("v5e:32x16", "at most 16 chips"),
        ("v5e:0x4", "at least 1"),
        ("v5e:4x4*0", "at least 1"),
    ],
)
def test_wrong_topologies_are_refused(text, message):
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        parse_topology(text)


def test_flags_are_read():
    pod = parse_topology("v5e:16x16*2")
    assert _parse_mesh("8x16x2", pod) == MeshConfig(8, 16, 2, dcn_data=2)
    with pytest.raises(ValueError, match="expected data x fsdp x tensor"):
        _parse_mesh("8x16", pod)
    assert _parse_options("--xla_a=true,xla_b=3", pod) == {"xla_a": "true", "xla_b": "3"}
    assert _parse_options("none", pod) == _parse_options("chip", pod) == {}
    assert len(_parse_options("chip", parse_topology("v5p:4x4x4"))) == 5
    with pytest.raises(ValueError, match="'xla_a' has no value"):
        _parse_options("xla_a", pod)


GIB = 2**30


def plan_of(name: str = "v5e_replicas", **more) -> Plan:
    module, place = load(name)
    made = Compiled(
        module, place, 2 * GIB, {"parameters": GIB, "optimizer state": GIB // 2}, {},
        (Buffer(GIB, "f32[4]"),), False, 3.0,
    )  # fmt: skip
    options = {"model_flops": 16 * 1e12, "rows": 64, "tokens": 6400, "steps": 1000, **more}
    return predict(made, parse_topology("v5e:4x4"), data_gib=5.0, **options)


def test_what_a_plan_adds_up():
    plan = plan_of()
    assert plan.mesh == {"data": 4, "fsdp": 4, "tensor": 1}
    assert plan.hbm["temporaries"] == 0.5 and plan.fits
    soonest, latest = plan.seconds
    assert soonest < latest
    assert plan.mfu == pytest.approx((1 / latest / 197, 1 / soonest / 197))
    # Four chips of a host hold their parameters and moments when they are saved.
    assert plan.host.checkpoint == 4 * 1.5
    assert plan.host.total == 5.0 + 6.0 + plan.host.program
    predicted = json.loads(json.dumps(plan.to_json()))["predicted"]
    assert predicted["days"] == pytest.approx([1000 * soonest / 86_400, 1000 * latest / 86_400])
    assert predicted["chip_hours"][0] == pytest.approx(16 * 1000 * soonest / 3600)
    assert predicted["rows_per_second"][0] == pytest.approx(64 / latest)


def test_a_report_says_that_times_are_predicted(tmp_path):
    plan = dataclasses.replace(plan_of(), compiler_options={"xla_x": "true"})
    text = report(plan, "toy")
    assert "every time is predicted, not measured" in text
    assert "2.00 GiB of 15.75 GiB" in text
    assert re.search(r"all-gather +fsdp +12 +0\.094 ", text)  # GiB: both weights, 3 layers, twice
    assert "LIBTPU_INIT_ARGS='--xla_x=true'" in text
    save_plot(plan, "toy", tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    serving = report(plan_of(model_flops=None, steps=None), "toy")
    assert "MFU" not in serving and "steps" not in serving


CONFIG = parse(load_config("configs/rt2_palm_e_12b.py"))


def test_every_way_to_split_a_slice_is_a_candidate():
    meshes = mesh_candidates(parse_topology("v5e:4x4*2"))
    assert len(meshes) == len(set(meshes)) == 5 + 4 + 3
    assert all(m.data * m.fsdp * m.tensor == 16 and m.dcn_data == 2 for m in meshes)


def test_remedies_recompute_then_shard_then_shrink():
    config = changed(CONFIG, mesh=MeshConfig(16, 16, 1), remat="dots", batch=1024)
    found = list(remedies(config, parse_topology("v5e:16x16")))
    assert [words for words, _ in found] == [
        "model.remat=full",
        "mesh.data=1, mesh.fsdp=256",
        "train.batch_size=512",
        "train.batch_size=256",
    ]
    last = found[-1][1]
    assert (last.model.remat, last.mesh.fsdp, last.train.batch_size) == ("full", 256, 256)


def test_a_ranking_shows_what_does_not_fit_and_why():
    rows = ranking([Found(CONFIG, plan_of()), Found(CONFIG, None, "needs 99 GiB")])
    assert rows[1][0] == "1" and "remat full" in rows[1][1]
    assert rows[2][0] == "-" and rows[2][3] == "needs 99 GiB"


def test_published_models_have_their_published_sizes():
    billions = {
        name: (d.depth * (4 * d.width * 64 * 128 + 3 * d.width * d.mlp_dim)
               + d.width * d.vocab_size) / 1e9
        for name, d in ((row.name, row.decoder) for row in PUBLISHED.values())
    }  # fmt: skip
    assert billions == pytest.approx({"16B": 16, "32B": 32, "64B": 64}, rel=0.05)
    row = PUBLISHED["16B"]
    # Six FLOPs a parameter and token, and attention.
    tokens = row.batch * row.sequence
    assert language_flops(row) == pytest.approx(6 * billions["16B"] * 1e9 * tokens, rel=0.15)


def test_budgets_are_the_compilers():
    """What its refusals say there is, of each device."""
    found = {kind: chip.hbm_gib for kind, chip in CHIPS.items()}
    assert found == {"v4": 30.75, "v5e": 15.75, "v5p": 95.73, "v6e": 31.24, "tpu7x": 94.74}
