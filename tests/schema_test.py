"""Mappings to dataclasses: what is accepted, and what the errors say."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Literal

import pytest

from vla_jax import schema


@dataclasses.dataclass(frozen=True)
class Layer:
    width: int
    rate: float = 0.5

    def __post_init__(self):
        if self.width <= 0:
            raise ValueError(f"width {self.width} must be positive")


@dataclasses.dataclass(frozen=True)
class Net:
    layer: Layer
    kind: Literal["relu", "gelu"] = "relu"
    shape: tuple[int, ...] = (1,)
    pair: tuple[str, float] = ("a", 1.0)
    limit: float | None = None
    parts: dict[str, Layer] = dataclasses.field(default_factory=dict)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    extra: Layer | None = None
    on: bool = False
    name: str = ""


FULL = {
    "layer": {"width": 3, "rate": 1},
    "kind": "gelu",
    "shape": [2, 3],
    "pair": ["b", 2],
    "limit": 4,
    "parts": {"left": {"width": 5}},
    "weights": {"robot": 1},
    "extra": {"width": 7},
    "on": True,
    "name": "n",
}
EXPECTED = Net(
    layer=Layer(3, 1.0),
    kind="gelu",
    shape=(2, 3),
    pair=("b", 2.0),
    limit=4.0,
    parts={"left": Layer(5, 0.5)},
    weights={"robot": 1.0},
    extra=Layer(7),
    on=True,
    name="n",
)


def test_every_kind_of_field_is_read():
    net = schema.from_dict(Net, FULL)
    assert net == EXPECTED
    # An int became a float, not just something equal to one.
    assert [type(net.layer.rate), type(net.limit), type(net.weights["robot"])] == [float] * 3


def test_json_round_trip():
    text = json.dumps(schema.to_plain(EXPECTED))
    assert schema.from_dict(Net, json.loads(text)) == EXPECTED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layr": {}}, "layr: no such key; did you mean 'layer'? Known here: extra, kind, layer"),
        ({"layer": {"width": 1, "rat": 2}}, "layer.rat: no such key; did you mean 'rate'?"),
        ({"layer": {"rate": 2}}, "layer.width: missing; expected int"),
        ({"layer": {"width": True}}, "layer.width: expected int, got bool True"),
        ({"layer": {"width": 1.5}}, "layer.width: expected int, got float 1.5"),
        ({"layer": {"width": "3"}}, "layer.width: expected int, got str '3'"),
        ({"layer": {"width": 0}}, "layer: width 0 must be positive"),
        ({"layer": 3}, "layer: expected a section, got 3"),
        ({"kind": "gelo"}, "kind: expected one of 'relu', 'gelu', got str 'gelo'; did you mean"),
        ({"shape": 3}, "shape: expected a tuple of int, got int 3"),
        ({"shape": [1, "x"]}, "shape[1]: expected int, got str 'x'"),
        ({"pair": ["a"]}, "pair: expected a tuple (str, float), got list ['a']"),
        ({"limit": "x"}, "limit: expected float, got str 'x'"),
        ({"parts": {"left": {"wdth": 5}}}, "parts.left.wdth: no such key; did you mean 'width'?"),
        ({"parts": {"left": None}}, "parts.left: expected a section, got None"),
        ({"weights": 3}, "weights: expected a mapping of names to float, got int 3"),
        ({"on": 1}, "on: expected bool, got int 1"),
    ],
)
def test_errors_name_the_key(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schema.from_dict(Net, FULL | change)


def test_defaults_are_filled_at_every_depth_and_unknown_keys_kept():
    filled = schema.with_defaults(
        Net, {"layer": {"width": 1, "typo": 2}, "parts": {"a": {"width": 2}}, "oops": 0}
    )
    assert filled["layer"] == {"width": 1, "typo": 2, "rate": 0.5}
    assert filled["parts"] == {"a": {"width": 2, "rate": 0.5}}
    assert filled["shape"] == [1]
    assert filled["limit"] is None
    assert filled["oops"] == 0


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("layer.width", "12", 12),
        ("layer.rate", "1e-3", 1e-3),
        ("layer.rate", "2", 2.0),
        ("limit", "none", None),
        ("limit", "inf", float("inf")),
        ("kind", "gelu", "gelu"),
        ("shape", "4,5", (4, 5)),
        ("shape", "(4, 5)", (4, 5)),
        ("shape", "4", (4,)),
        ("pair", "('x', 2.5)", ("x", 2.5)),
        ("on", "false", False),
        ("name", "12", "12"),
        ("parts.left.rate", "0.1", 0.1),
        ("weights.robot", "0.25", 0.25),
        ("extra", "none", None),
        ("extra.width", "9", 9),
    ],
)
def test_text_is_read_as_the_declared_type(path, text, value):
    mapping = schema.with_defaults(Net, FULL)
    schema.set_from_text(Net, mapping, path, text)
    got = schema.from_dict(Net, mapping)
    for name in path.split("."):
        got = got[name] if isinstance(got, dict) else getattr(got, name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("layer.wdith", "1", "layer.wdith: no such key; did you mean 'width'?"),
        ("lyer.width", "1", "lyer: no such key; did you mean 'layer'?"),
        ("parts.lft.width", "1", "parts.lft: no such key; did you mean 'left'?"),
        ("layer.width", "wide", "layer.width: expected int, got str 'wide'"),
        ("layer.width", "1.0", "layer.width: expected int, got float 1.0"),
        ("on", "yes", "on: expected bool, got str 'yes'"),
        ("kind", "gelo", "did you mean 'gelu'?"),
        ("name.x", "1", "name.x: name is not a section but str"),
        ("layer", "3", "layer is a section with keys width, rate; override one of those"),
    ],
)
def test_text_errors_name_the_key(path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schema.set_from_text(Net, schema.with_defaults(Net, FULL), path, text)


def test_a_key_of_an_absent_section_is_refused():
    mapping = schema.with_defaults(Net, {"layer": {"width": 1}})
    with pytest.raises(ValueError, match="leaves the section extra out"):
        schema.set_from_text(Net, mapping, "extra.width", "3")


def test_a_path_of_equal_names_reaches_the_inner_one():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        a: int = 1

    outer = dataclasses.make_dataclass("Outer", [("a", Inner)], frozen=True)
    mapping = {"a": {"a": 1}}
    schema.set_from_text(outer, mapping, "a.a", "5")
    assert mapping == {"a": {"a": 5}}
