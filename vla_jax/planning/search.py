"""Which mesh, which recomputation, which batch: compiled, predicted and ranked."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from vla_jax import schema
from vla_jax.config import Config
from vla_jax.models.presets import RematPolicy
from vla_jax.models.vla import init_params
from vla_jax.planning.compile import Compiled, DoesNotFit, Request, compile_program
from vla_jax.planning.estimate import Plan, plan_training
from vla_jax.planning.program import bytes_per_device
from vla_jax.sharding.mesh import MeshConfig, abstract_mesh
from vla_jax.sharding.rules import param_shardings
from vla_jax.sharding.topology import Topology

TRAIN = "vla_jax.planning.program:train_program"

_REMATS: tuple[RematPolicy, ...] = ("none", "dots", "full")
_TENSOR = (1, 2, 4)
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Found:
    """One candidate and what became of it: a plan, or why there is none."""

    config: Config
    plan: Plan | None
    reason: str = ""

    @property
    def label(self) -> str:
        mesh = self.config.mesh
        sizes = f"{mesh.data}x{mesh.fsdp}x{mesh.tensor}"
        outer = mesh.dcn_data * mesh.dcn_fsdp
        slices = f" ({mesh.dcn_data}x{mesh.dcn_fsdp} slices)" if outer > 1 else ""
        model, train = self.config.model, self.config.train
        return f"{sizes}{slices}  remat {model.remat}  batch {train.batch_size}"

    @property
    def speed(self) -> float:
        """Samples a second, at the soonest; 0 for what does not fit."""
        return 0.0 if self.plan is None else self.plan.rows / self.plan.seconds[0]


Note = Callable[[str], None]


def compile_training(
    config: Config, topology: Topology, options: dict[str, str], *, quick: bool = True
) -> Compiled | DoesNotFit:
    """Compiles the train step of a config. Raises as `compile.compile_program` does."""
    settings = {"config": schema.to_plain(config)}
    return compile_program(Request(topology, TRAIN, settings, options, quick=quick))


def attempt(config: Config, topology: Topology, options: dict[str, str]) -> Found:
    """Compiles quickly. What a config's own checks refuse is a reason, too."""
    try:
        made = compile_training(config, topology, options)
    except ValueError as e:
        return Found(config, None, str(e))
    if isinstance(made, DoesNotFit):
        return Found(
            config,
            None,
            f"needs {made.needed_gib:.1f} GiB of {made.budget_gib:.2f} for temporaries",
        )
    return Found(config, plan_training(made, config, topology, options))


def search(
    config: Config, topology: Topology, options: dict[str, str], *, jobs: int, note: Note
) -> list[Found]:
    """Ranks meshes, and for the best three recomputation and batches; the fastest first.

    Args:
      jobs: compilations at a time; each takes a core and 2 GB.
      note: gets a line of progress after each.
    """
    meshes = [changed(config, mesh=mesh) for mesh in mesh_candidates(topology)]
    possible, refused = [], []
    for candidate in meshes:
        reason = _cannot_work(candidate, topology)
        if reason:
            refused.append(Found(candidate, None, reason))
        else:
            possible.append(candidate)
    found = _attempt_all(possible, topology, options, jobs, note, "meshes")
    best = sorted(found, key=lambda f: -f.speed)[:3]
    # With nothing that fits, less of everything may.
    more = [other for one in best for other in _variations(one)]
    found += _attempt_all(more, topology, options, jobs, note, "recomputation and batches")
    return sorted(found, key=lambda f: -f.speed) + refused


def remedies(config: Config, topology: Topology) -> Iterator[tuple[str, Config]]:
    """What may make a config fit that does not, the cheapest first: (in words, config)."""
    if config.model.remat != "full":
        config = changed(config, remat="full")
        yield "model.remat=full", config
    mesh = config.mesh
    if mesh.data > 1:
        wider = dataclasses.replace(mesh, data=1, fsdp=mesh.fsdp * mesh.data)
        other = changed(config, mesh=wider)
        if not _cannot_work(other, topology):
            config = other
            yield f"mesh.data=1, mesh.fsdp={wider.fsdp}", config
    batch = config.train.batch_size
    while batch > 1:
        batch //= 2
        smaller = changed(config, batch=batch)
        if _cannot_work(smaller, topology):
            return
        yield f"train.batch_size={batch}", smaller


def mesh_candidates(topology: Topology) -> list[MeshConfig]:
    """Every split of a slice over data, fsdp and tensor by powers of two; slices are data."""
    devices = math.prod(topology.shape) * topology.chip.devices_per_chip
    found = []
    for tensor in _TENSOR:
        fsdp = devices // tensor
        while fsdp >= 1 and devices % (fsdp * tensor) == 0:
            data = devices // (fsdp * tensor)
            found.append(MeshConfig(data, fsdp, tensor, dcn_data=topology.slices))
            if fsdp % 2:
                break
            fsdp //= 2
    return found


def changed(
    config: Config,
    *,
    mesh: MeshConfig | None = None,
    remat: RematPolicy | None = None,
    batch: int | None = None,
) -> Config:
    """The config with another mesh, recomputation or batch."""
    return dataclasses.replace(
        config,
        mesh=mesh or config.mesh,
        model=dataclasses.replace(config.model, remat=remat or config.model.remat),
        train=dataclasses.replace(config.train, batch_size=batch or config.train.batch_size),
    )


def _variations(found: Found) -> list[Config]:
    batch = found.config.train.batch_size
    own = found.config.model.remat
    return [
        *(changed(found.config, remat=remat) for remat in _REMATS if remat != own),
        *(changed(found.config, batch=size) for size in (batch * 2, batch // 2) if size),
    ]


def _cannot_work(config: Config, topology: Topology) -> str:
    """Why a candidate need not be compiled; empty if it must be."""
    mesh = config.mesh
    data, fsdp = mesh.data * mesh.dcn_data, mesh.fsdp * mesh.dcn_fsdp
    if config.train.batch_size % (data * fsdp):
        return f"a batch of {config.train.batch_size} does not divide over {data * fsdp} devices"
    params = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    try:
        shardings = param_shardings(params, abstract_mesh(data, fsdp, mesh.tensor))
    except ValueError as e:
        return str(e)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        params,
        shardings,
    )
    # Parameters, and gradients of their size: what no optimizer does without.
    least = 2 * bytes_per_device(placed) / _GIB
    if least > topology.chip.hbm_gib:
        return f"parameters and gradients alone take {least:.1f} GiB of {topology.chip.hbm_gib}"
    return ""


def _attempt_all(
    configs: Sequence[Config],
    topology: Topology,
    options: dict[str, str],
    jobs: int,
    note: Note,
    what: str,
) -> list[Found]:
    found, begun = [], time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(attempt, config, topology, options) for config in configs]
        for done, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            found.append(future.result())
            left = (time.monotonic() - begun) / done * (len(configs) - done)
            note(f"{what} {done}/{len(configs)}, {left:.0f} s left: {_line(found[-1])}")
    return found


def _line(found: Found) -> str:
    if found.plan is None:
        return f"{found.label}: {found.reason}"
    assert found.plan.mfu is not None
    least, most = found.plan.mfu
    return f"{found.label}: {found.plan.hbm_gib:.1f} GiB, MFU {least:.1%} .. {most:.1%}"


def ranking(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """Rows of a table, the fastest first."""
    rows: list[tuple[str, ...]] = [("", "mesh", "GiB", "MFU predicted", "samples/s", "step s")]
    for place, one in enumerate(found, 1):
        if one.plan is None or one.plan.mfu is None:
            rows.append(("-", one.label, "", one.reason[:90], "", ""))
            continue
        low, high = one.plan.mfu
        seconds = one.plan.seconds
        rows.append(
            (
                str(place),
                one.label,
                f"{one.plan.hbm_gib:.1f}",
                f"{low:.1%} .. {high:.1%}",
                f"{one.plan.rows / seconds[1]:,.0f} .. {one.plan.rows / seconds[0]:,.0f}",
                f"{seconds[0]:.3f} .. {seconds[1]:.3f}",
            )
        )
    return rows
