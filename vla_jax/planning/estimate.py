"""From what the compiler made to what a run would take: memory, time, money. All predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

from vla_jax.config import Config
from vla_jax.planning.compile import Buffer, Compiled
from vla_jax.planning.schedule import StepTime, simulate
from vla_jax.sharding.topology import Topology
from vla_jax.training.flops import train_flops_per_sample

_GIB = 2**30

# Python, the libraries and the compiler at work, of one host.
_PROGRAM_GIB = 6.0


@dataclasses.dataclass(frozen=True)
class HostMemory:
    """GiB of one host."""

    data: float
    checkpoint: float
    program: float
    available: float

    @property
    def total(self) -> float:
        return self.data + self.checkpoint + self.program


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a program would do on a topology.

    Times are intervals (soonest, latest). The soonest takes matrix products at 95% of the peak; the
    latest the compiler's own estimates where code was generated (`estimated`), else what published
    runs have reached at least.

    Attributes:
      hbm: name -> GiB of each chip; "temporaries" is the rest of `hbm_gib`.
      model_flops: of a step, over all chips: forward and backward, nothing for recomputation; None
        for a program that does not train.
      rows: of a step: samples, or prompts answered.
      tokens: positions of a step, images included and padding too.
    """

    topology: Topology
    mesh: dict[str, int]
    compiler_options: dict[str, str]
    hbm_gib: float
    hbm: dict[str, float]
    buffers: tuple[Buffer, ...]
    soonest: StepTime
    latest: StepTime
    estimated: bool
    model_flops: float | None
    rows: int
    tokens: int
    steps: int | None
    host: HostMemory
    compile_seconds: float

    @property
    def seconds(self) -> tuple[float, float]:
        return self.soonest.seconds, self.latest.seconds

    @property
    def mfu(self) -> tuple[float, float] | None:
        """(least, most): model FLOPs over time and peak."""
        if self.model_flops is None:
            return None
        devices = self.topology.chips * self.topology.chip.devices_per_chip
        per_chip = self.model_flops / devices / (self.topology.chip.peak_tflops * 1e12)
        return per_chip / self.seconds[1], per_chip / self.seconds[0]

    @property
    def fits(self) -> bool:
        return self.hbm_gib <= self.topology.chip.hbm_gib

    def to_json(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        plain["topology"] = self.topology.name
        plain["hbm_budget_gib"] = self.topology.chip.hbm_gib
        plain["predicted"] = {
            "seconds": self.seconds,
            "mfu": self.mfu,
            "rows_per_second": [self.rows / s for s in reversed(self.seconds)],
            "tokens_per_second": [self.tokens / s for s in reversed(self.seconds)],
        }
        if self.steps is not None:
            plain["predicted"]["days"] = [self.steps * s / 86_400 for s in self.seconds]
            plain["predicted"]["chip_hours"] = [
                self.steps * s / 3600 * self.topology.chips for s in self.seconds
            ]
        return plain


def predict(
    compiled: Compiled,
    topology: Topology,
    *,
    model_flops: float | None,
    rows: int,
    tokens: int,
    steps: int | None = None,
    data_gib: float = 0.0,
    compiler_options: dict[str, str] | None = None,
) -> Plan:
    """The plan of a compiled program.

    Args:
      steps: of the run.
      data_gib: that the data pipeline of one host may take.
    """
    soonest = simulate(compiled.module, compiled.placement)
    if compiled.has_estimates:
        latest = simulate(compiled.module, compiled.placement, use_estimates=True)
    else:
        efficiency = topology.chip.low_efficiency
        latest = simulate(compiled.module, compiled.placement, efficiency=efficiency)
    soonest, latest = sorted((soonest, latest), key=lambda found: found.seconds)
    parts = {name: size / _GIB for name, size in compiled.argument_bytes.items()}
    total = compiled.hbm_bytes / _GIB
    parts["temporaries"] = max(total - sum(parts.values()), 0.0)
    per_host = topology.chips // max(topology.hosts, 1) * topology.chip.devices_per_chip
    kept = sum(parts.get(name, 0.0) for name in ("parameters", "optimizer state"))
    return Plan(
        topology=topology,
        mesh={axis: size for axis, size in _mesh(compiled).items()},
        compiler_options=dict(compiler_options or {}),
        hbm_gib=total,
        hbm=parts,
        buffers=compiled.buffers,
        soonest=soonest,
        latest=latest,
        estimated=compiled.has_estimates,
        model_flops=model_flops,
        rows=rows,
        tokens=tokens,
        steps=steps,
        host=HostMemory(
            data=data_gib,
            # A save copies what the host's chips hold before it goes on in the background.
            checkpoint=kept * per_host if steps is not None else 0.0,
            program=_PROGRAM_GIB,
            available=topology.chip.host_ram_gib,
        ),
        compile_seconds=compiled.seconds,
    )


def _mesh(compiled: Compiled) -> dict[str, int]:
    """Axis -> size, both halves of fsdp together."""
    sizes: dict[str, int] = {}
    for axis, size in zip(compiled.placement.mesh_axes, compiled.placement.mesh_sizes):
        name = axis.split("_")[0]
        sizes[name] = sizes.get(name, 1) * size
    return sizes


def plan_training(
    compiled: Compiled, config: Config, topology: Topology, compiler_options: dict[str, str]
) -> Plan:
    """The plan of a config's train step."""
    data, model = config.data, config.model
    per_sample = train_flops_per_sample(model, *data.row_lengths, samples=data.examples_per_row)
    patches = model.num_views * data.examples_per_row * model.num_patches
    return predict(
        compiled,
        topology,
        model_flops=per_sample * config.samples_per_step,
        rows=config.samples_per_step,
        tokens=config.train.batch_size * (patches + data.row_lengths[0]),
        steps=config.train.steps,
        data_gib=data.host_memory_gib,
        compiler_options=compiler_options,
    )


def plan_serving(
    compiled: Compiled,
    config: Config,
    topology: Topology,
    compiler_options: dict[str, str],
    rows: int,
) -> Plan:
    """The plan of prefill and decoding, for `rows` prompts at a time."""
    patches = config.model.num_views * config.model.num_patches
    return predict(
        compiled,
        topology,
        model_flops=None,
        rows=rows,
        tokens=rows * (patches + config.data.row_lengths[0]),
        compiler_options=compiler_options,
    )
