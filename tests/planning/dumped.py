"""The TPU compiler's schedules of `toy.toy_program`, without what nobody reads, and where they ran.

v5e_replicas  v5e:4x4, data 4 x fsdp 4; width 1,024, inner 4,096, 64 rows
v5e_windowed  v5e:4x4, fsdp 16, likewise: products in windows; after code generation
v5e_slices    v5e:4x4*2, a copy on each slice, likewise
v5p_sparse    v5p:4x4x4, data 4 x fsdp 16; width 2,048; transfers on sparse cores
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from vla_jax.planning.hlo import Module, parse_module
from vla_jax.planning.network import Placement
from vla_jax.sharding.topology import parse_topology

DUMPS = Path(__file__).parent / "dumps"

# name -> (topology, width)
KNOWN = {
    "v5e_replicas": ("v5e:4x4", 1024),
    "v5e_windowed": ("v5e:4x4", 1024),
    "v5e_slices": ("v5e:4x4*2", 1024),
    "v5p_sparse": ("v5p:4x4x4", 2048),
}
INNER, ROWS = 4096, 64


def load(name: str) -> tuple[Module, Placement]:
    text = gzip.decompress((DUMPS / f"{name}.txt.gz").read_bytes()).decode()
    info = json.loads((DUMPS / f"{name}.json").read_text())
    topology = parse_topology(KNOWN[name][0])
    place = Placement(
        topology.chip,
        np.array(info["coordinates"]),
        np.array(info["slices"]),
        tuple(info["mesh"]),
        tuple(info["mesh"].values()),
        topology.torus,
        topology.wrap,
    )
    return parse_module(text), place
