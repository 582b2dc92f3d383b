"""TPU slices by name, without TPUs: what their chips can do, and libtpu's description of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from typing import Any

from jax.experimental import topologies

SPARSE_CORE_OPTIONS = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
    "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": "true",
    "xla_tpu_use_single_sparse_core_for_all_gather_offload": "true",
}
"""All-gathers and reduce-scatters run on the SparseCores, beside the matrix units. It takes HBM."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU chip, as one JAX device has it: the whole of it, half of it for tpu7x.

    Published figures where there are any (cloud.google.com/tpu/docs).

    Attributes:
      hbm_gib: what the compiler lets a program have.
      peak_tflops: bfloat16.
      hbm_gbyte_per_s: of memory.
      link_gbyte_per_s: of one ICI link in one direction.
      dcn_gbyte_per_s: its share of the host's network, in one direction.
      clock_ghz: of the matrix units, for cycles that the compiler estimates.
      dimensions: of the torus, 2 or 3.
      host_bounds: chips of one host, along each dimension.
      host_ram_gib: of the usual host.
      devices_per_chip: as JAX counts them.
      config: libtpu's name of the way in which a chip's cores are one device.
      low_efficiency: share of the peak that large matrix products reach at least; the upper end of
        predictions takes 0.95. Of v5e from published runs (tools/validate_plan.py); else guessed.
      sparse_cores: collectives can run beside the compute on a core of their own.
    """

    kind: str
    hbm_gib: float
    peak_tflops: float
    hbm_gbyte_per_s: float
    link_gbyte_per_s: float
    dcn_gbyte_per_s: float
    clock_ghz: float
    dimensions: int
    host_bounds: tuple[int, int, int]
    host_ram_gib: float
    devices_per_chip: int = 1
    config: str = "default"
    low_efficiency: float = 0.9
    sparse_cores: bool = False

    @property
    def compiler_options(self) -> dict[str, str]:
        """XLA's flags that pay on this kind of chip. v5e overlaps its all-gathers without."""
        return dict(SPARSE_CORE_OPTIONS) if self.sparse_cores else {}


CHIPS: dict[str, Chip] = {
    chip.kind: chip
    for chip in (
        Chip("v4", 30.75, 275, 1228, 45, 6.25, 1.05, 3, (2, 2, 1), 407, config="megacore"),
        Chip("v5e", 15.75, 197, 819, 45, 3.125, 1.5, 2, (2, 2, 1), 188),
        Chip(
            "v5p", 95.73, 459, 2765, 90, 6.25, 1.75, 3, (2, 2, 1), 448,
            config="megacore", low_efficiency=0.8, sparse_cores=True,
        ),
        Chip(
            "v6e", 31.24, 918, 1640, 90, 12.5, 1.75, 2, (2, 2, 1), 708,
            low_efficiency=0.7, sparse_cores=True,
        ),
        Chip(
            "tpu7x", 94.74, 1153.5, 3690, 90, 6.25, 1.75, 3, (2, 2, 1), 944,
            devices_per_chip=2, low_efficiency=0.7, sparse_cores=True,
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices of `shape` chips each."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        body = f"{self.chip.kind}:{'x'.join(map(str, self.shape))}"
        return body if self.slices == 1 else f"{body}*{self.slices}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def hosts(self) -> int:
        return self.chips // math.prod(self.bounds)

    @property
    def torus(self) -> tuple[int, int, int]:
        x, y, z = (*self.shape, 1)[:3]
        return x, y, z

    @property
    def bounds(self) -> tuple[int, int, int]:
        """Chips of one host along each dimension."""
        x, y, z = (math.gcd(b, s) for b, s in zip(self.chip.host_bounds, self.torus))
        return x, y, z

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Which dimensions close to a ring: on v5e and v6e those of 16, elsewhere all of a slice
        that is at least 4 wide everywhere (MaxText's accelerator_to_spec_map)."""
        if self.chip.dimensions == 2:
            x, y = (size == 16 for size in self.shape)
            return x, y, False
        full = all(size >= 4 for size in self.shape)
        return full, full, full


def parse_topology(text: str) -> Topology:
    """`v5p:8x8x8`; `v5e:16x16*2` is two slices.

    Raises ValueError saying what is wrong and what there is.
    """
    example = "expected KIND:SHAPE, e.g. v5e:16x16 or v5p:8x8x8, and *2 behind it for two slices"
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)(?:\*(\d+))?", text.strip())
    if match is None:
        raise ValueError(f"topology {text!r}: {example}")
    kind, sizes, slices = match.groups()
    if kind not in CHIPS:
        raise ValueError(f"topology {text!r}: no kind of TPU {kind!r}; known: {', '.join(CHIPS)}")
    chip, shape = CHIPS[kind], tuple(int(size) for size in sizes.split("x"))
    if len(shape) != chip.dimensions:
        raise ValueError(
            f"topology {text!r}: slices of {kind} have {chip.dimensions} dimensions, not "
            f"{len(shape)}"
        )
    if 0 in shape or slices == "0":
        raise ValueError(f"topology {text!r}: sizes are at least 1")
    if chip.dimensions == 2 and max(shape) > 16:
        raise ValueError(f"topology {text!r}: a dimension of {kind} has at most 16 chips")
    return Topology(chip, shape, int(slices or 1))


def require_libtpu() -> None:
    """Raises ModuleNotFoundError with the remedy if the TPU compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "no module libtpu, which holds the TPU compiler (and needs no TPU): "
            "pip install -e '.[plan]'"
        )


def topology_devices(topology: Topology) -> list[Any]:
    """The devices of a slice that is not there, to make a mesh of and to compile for.

    The name alone is not enough: without `wrap` links are missing, without "megacore" v4 and v5p
    chips are half of themselves.

    Raises:
      ModuleNotFoundError: no TPU compiler.
      ValueError: libtpu knows no such slice.
    """
    require_libtpu()
    options: dict[str, Any] = {
        "chips_per_host_bounds": topology.bounds,
        "wrap": topology.wrap,
        "num_slices": topology.slices,
    }
    if topology.chip.config != "default":
        options["chip_config_name"] = topology.chip.config
    name = topology.name.split("*")[0]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as e:  # jaxlib raises JaxRuntimeError, and others in other versions
        raise ValueError(f"the TPU compiler knows no {topology.name} ({options}): {e}") from e
    return list(found.devices)
