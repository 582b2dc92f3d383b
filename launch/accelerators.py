"""Accelerators by name, "v5p:8x8x8" or "h100:8x4": what each cloud interface calls them.

Sources: Cloud TPU's pages on TPU versions and software versions, GKE's "About TPUs", and the tables
of xpk 1.16.
"""

from __future__ import annotations

import dataclasses
import difflib
import math

from vla_jax.sharding.topology import CHIPS


@dataclasses.dataclass(frozen=True)
class TpuKind:
    """One generation of TPU.

    Attributes:
      type_prefix: of Cloud TPU's accelerator types, e.g. "v5litepod" of v5litepod-256.
      type_counts: what the number in an accelerator type counts for one chip. v4 and v5p count
        TensorCores, of which a chip has two.
      runtime: Cloud TPU's software version; empty if that interface does not have the chip.
      gke_accelerator: value of GKE's node label `cloud.google.com/gke-tpu-accelerator`.
      gke_machine: machine type of a GKE node, without its number of chips.
    """

    type_prefix: str
    type_counts: int
    runtime: str
    gke_accelerator: str
    gke_machine: str


TPU_KINDS = {
    "v4": TpuKind("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu"),
    "v5e": TpuKind("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu"),
    "v5p": TpuKind("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu"),
    "v6e": TpuKind("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard"),
    "tpu7x": TpuKind("tpu7x", 2, "", "tpu7x", "tpu7x-standard"),
}

GPU_KINDS = ("a100", "h100", "h200", "b200")

_FLAT_TOPOLOGIES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One TPU slice, or the GPUs of one job.

    Attributes:
      kind: a key of `TPU_KINDS`, or one of `GPU_KINDS`.
      shape: the slice's topology; or GPUs of a node, nodes.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def is_tpu(self) -> bool:
        return self.kind in TPU_KINDS

    @property
    def chips(self) -> int:
        """Of a slice, or GPUs in all."""
        return math.prod(self.shape)

    @property
    def topology(self) -> str:
        """E.g. "8x8x8"."""
        return "x".join(map(str, self.shape))

    @property
    def usual_topology(self) -> str:
        """What Cloud TPU means by the accelerator type: of as many chips, the most even sides."""
        if not self.is_tpu or len(self.shape) == 2 or self.chips < 64:
            return self.topology
        cubes = self.chips // 64
        shapes = [
            (a, b, cubes // (a * b))
            for a in range(1, cubes + 1)
            for b in range(a, cubes // a + 1)
            if cubes % (a * b) == 0 and cubes // (a * b) >= b
        ]
        return "x".join(str(4 * side) for side in min(shapes, key=sum))

    @property
    def chips_per_host(self) -> int:
        if not self.is_tpu:
            return self.shape[0]
        # Up to eight chips of the flat kinds hang on one host; every larger slice has four on each.
        if len(self.shape) == 2 and self.chips <= 8:
            return self.chips
        return 4

    @property
    def hosts(self) -> int:
        """Of a slice, or nodes."""
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's name, e.g. "v5p-1024" for 512 chips."""
        kind = TPU_KINDS[self.kind]
        return f"{kind.type_prefix}-{self.chips * kind.type_counts}"


def parse_accelerator(text: str) -> Accelerator:
    """Reads "v5p:8x8x8" (kind and topology) or "h100:8x4" (GPUs of a node x nodes).

    Raises:
      ValueError: no such kind, or a shape that it does not come in.
    """
    kind, colon, shape_text = text.partition(":")
    known = (*TPU_KINDS, *GPU_KINDS)
    if kind not in known:
        close = difflib.get_close_matches(kind, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"accelerator {text!r}: no kind {kind!r}{hint} Known: {', '.join(known)}")
    sides = shape_text.split("x")
    if not colon or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(
            f"accelerator {text!r}: expected a kind and a shape, such as v5p:8x8x8, v5e:16x16 or "
            "h100:8x4 (GPUs of a node x nodes)"
        )
    shape = tuple(map(int, sides))
    if kind in GPU_KINDS:
        if len(shape) != 2:
            raise ValueError(f"accelerator {text!r}: expected GPUs of a node x nodes, as h100:8x4")
    else:
        _require_topology(text, shape, CHIPS[kind].dimensions)
    return Accelerator(kind, shape)


def _require_topology(text: str, shape: tuple[int, ...], dimensions: int) -> None:
    name = "x".join(map(str, shape))
    if dimensions == 2:
        if name not in _FLAT_TOPOLOGIES:
            raise ValueError(
                f"accelerator {text!r}: this kind comes as {', '.join(_FLAT_TOPOLOGIES)}"
            )
    elif name not in _SMALL_CUBES and not (
        len(shape) == 3 and all(side % 4 == 0 for side in shape) and sorted(shape) == list(shape)
    ):
        raise ValueError(
            f"accelerator {text!r}: this kind comes as {', '.join(_SMALL_CUBES)}, and above that "
            "with three sides that are multiples of 4, the smallest first"
        )
