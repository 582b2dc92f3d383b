"""The page of a run: the curves' numbers, bounded size, what it says in each state."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from vla_jax.data.mixture import Mixture
from vla_jax.page.plots import Line, line_plot
from vla_jax.training.curves import Curve
from vla_jax.training.metrics import Event
from vla_jax.training.run_page import RunPage

SECONDS = {"steps": 750.0, "start-up/compile": 200.0, "input wait": 50.0}


def make_page(path, names=("robot", "web"), records=3, **facts) -> RunPage:
    mixture = Mixture(dict.fromkeys(names, 1.0), dict.fromkeys(names, 9), seed=0)
    page = RunPage(path / "run.html", "runs/<first>", facts, mixture)
    for step in range(1, records + 1):
        record = {"step": step, "loss": 10 / step, "grad_norm": 1.0, "learning_rate": 1e-3}
        record |= {"speed/samples_per_s": 96.0, "speed/input_wait_share": 0.125, "speed/mfu": 0.5}
        record["speed/model_flops_per_s"] = 4e14
        for name in names:
            record |= {f"{name}/loss": step / 3, f"{name}/token_accuracy": 0.5}
            record |= {f"{name}/share_of_samples": 0.51, f"{name}/share_of_tokens": 0.7}
            record[f"{name}/share_configured"] = 0.5
        page.add(record)
    return page


def write(page: RunPage, path, state="running", eta_s=90.0) -> str:
    page.write(state=state, step=3, steps=12, eta_s=eta_s, seconds=SECONDS, now=1.7e9)
    return (path / "run.html").read_text()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1003])
def test_a_curve_is_the_mean_of_neighbours(count):
    """Against NumPy: equal groups of 1, 2, 4, ... values, the last one what is left."""
    rng = np.random.default_rng(count)
    x, y = np.cumsum(rng.integers(1, 5, count)), rng.normal(size=count)
    curve = Curve(points=4)
    for one in zip(x.tolist(), y.tolist()):
        curve.add(*one)
        curve.add(one[0], float("nan"))
    each = 1
    while count // each >= 8:
        each *= 2
    cuts = range(0, count, each)
    found = curve.points()
    assert len(found[0]) <= 8
    np.testing.assert_allclose(found[0], [x[i : i + each].mean() for i in cuts])
    np.testing.assert_allclose(found[1], [y[i : i + each].mean() for i in cuts])


def test_page_of_a_running_run(tmp_path):
    page = make_page(tmp_path, Model="tiny & new")
    page.add_event(Event(1.7e9, 2, "slow input", "reading is <slow>"))
    for step in range(500):
        page.add_event(Event(1.7e9, step, "checkpoint", "0.1 s"))
    text = write(page, tmp_path)
    assert '<meta http-equiv="refresh"' in text and '<span class="badge running">' in text
    assert "runs/&lt;first&gt;" in text and "tiny &amp; new" in text
    assert "reading is &lt;slow&gt;" in text and "update 499" in text
    for figure in ("25%", "1m30s", "50.0%", "12.5%", "75.0%", "16m40s"):
        assert f"<b>{figure}</b>" in text or figure in text
    # The bar's parts are the shares of the time, updates first.
    widths = re.findall(r'<span style="width:([\d.]+)%', text)
    assert widths == ["75.000", "20.000", "5.000"]
    labels = re.findall(r'aria-label="([^"]*) over update"', text)
    assert labels == [
        "loss, as minimised", "loss, nats a token", "tokens right", "share of samples",
        "share of loss tokens", "learning rate", "gradient norm", "samples/s", "MFU", "input wait",
    ]  # fmt: skip
    # Realised shares of samples stand beside configured ones, broken.
    assert text.count('stroke-dasharray="5 4"') == 2
    assert not re.search(r'(src|href)="(?!#)', text)  # nothing from elsewhere
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("state", ["done", "failed", "preempted", "stopped"])
def test_page_of_a_run_that_has_ended_stays_as_it_is(tmp_path, state):
    text = write(make_page(tmp_path), tmp_path, state, eta_s=None)
    assert "http-equiv" not in text and "<script>" not in text
    assert f'<span class="badge {state}">{state}</span>' in text


def test_a_long_run_of_many_sources_has_a_page_of_bounded_size(tmp_path):
    names = tuple(f"data_set_{n}" for n in range(14))
    long = write(make_page(tmp_path, names, records=4000), tmp_path)
    short = write(make_page(tmp_path, names, records=500), tmp_path)
    assert len(long) < 1.4 * len(short) < 1e6
    # Legends of many sources take rows; dotted lines are the second round of colours.
    assert 'stroke-dasharray="1.5 3"' in long


def test_a_page_without_a_record_says_so(tmp_path):
    assert "Nothing logged yet." in write(make_page(tmp_path, records=0), tmp_path)


def test_a_legend_that_does_not_fit_goes_to_further_rows():
    lines = [Line(f"a_long_name_{n}", [0, 1], [0, 1]) for n in range(9)]
    svg = line_plot(lines, x_label="x", y_label="loss")
    spots = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>(a_long_name_\d)</text>', svg)
    assert [name for *_, name in spots] == [f"a_long_name_{n}" for n in range(9)]
    assert all(float(x) >= 0 and float(x) + 6.6 * len(name) <= 480 for x, _, name in spots)
    rows = sorted({float(y) for _, y, _ in spots})
    assert rows == [12 + 16 * n for n in range(len(rows))] and len(rows) > 1
    height = re.search(r'viewBox="0 0 480 (\d+)"', svg)
    assert height is not None and int(height[1]) == 230 + 16 * (len(rows) - 1)
    for first, second in itertools.pairwise(spots):
        if first[1] == second[1]:
            assert float(second[0]) > float(first[0]) + 6 * len(first[2])
