"""The conversion of `vla_jax.data.convert` as an Apache Beam pipeline: one element, one shard.

Every worker opens the source and writes to the same directory, so on several machines both are in a
store or on a shared disk. What is written are the same bytes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from vla_jax.data import convert as local
from vla_jax.data.config import SourceConfig
from vla_jax.data.shards import Conversion


def convert(
    name: str,
    source: SourceConfig,
    out: str | os.PathLike[str],
    arguments: Sequence[str] = (),
    **options: int,
) -> None:
    """`convert.convert` by Beam; goes on with what was written, by either of them.

    Args:
      name, source, out, options: as there, but workers.
      arguments: Beam's own, `--runner=...` and so on; see its PipelineOptions.

    Raises as `convert.convert`, what the runner makes of an error in a worker, and ImportError if
    Beam is not installed.
    """
    beam, pipeline_options = _import_beam()
    conversion, _ = local.prepare(name, source, out, **options)
    if local.is_finished(conversion):
        print(f"{name}: {conversion.directory} is there already and whole", flush=True)
        return
    parts = local.finished_parts(conversion)
    todo = [shard for shard in range(conversion.shards) if shard not in parts]
    with beam.Pipeline(options=pipeline_options.PipelineOptions(list(arguments))) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(todo)
            | "spread over workers" >> beam.Reshuffle()
            | "write" >> beam.Map(functools.partial(_write, conversion))
        )
    local.finish(conversion)
    print(f"{name}: written to {conversion.directory}", flush=True)


def _write(conversion: Conversion, shard: int) -> None:
    """In a worker. The runner shows the count of what is written."""
    beam, _ = _import_beam()
    records = local.write_shard_alone(conversion, shard)
    beam.metrics.Metrics.counter("convert", "records").inc(records)


def _import_beam() -> tuple[Any, Any]:
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options import (  # pyright: ignore[reportMissingImports]
            pipeline_options,
        )
    except ImportError as e:
        raise ImportError(
            f"Apache Beam cannot be imported ({e}): pip install 'vla_jax[beam]', in an environment "
            "of its own: it asks for older protobuf and pyarrow than the tested lock has"
        ) from e
    return apache_beam, pipeline_options
