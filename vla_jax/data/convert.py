"""Converts any source to step-level ArrayRecord files, see `sources.converted`, in parallel.

Shards are independent: each is written by itself from a range of episodes (of robot data) or
records, under another name first. Beside it, in `unfinished/`, comes a part of the tables, which
also says that the shard is whole. When all are there the tables are joined, and the metadata makes
the data set complete. So a conversion that was stopped, wherever, goes on with the next missing
shard, and its files are the same bytes as those of one that was not.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from vla_jax.actions.spec import ActionSpec
from vla_jax.data import images, storage
from vla_jax.data.config import SourceConfig
from vla_jax.data.progress import Progress
from vla_jax.data.shards import Conversion, Part, num_units, view_names, write_shard
from vla_jax.data.sources import converted
from vla_jax.data.sources.base import EpisodicSource, Source
from vla_jax.data.sources.converted import ConvertedMetadata
from vla_jax.data.sources.opening import open_source

RECORDS_PER_SHARD = 4096
"""About so many, if the number of shards is not given."""

_PLAN = "plan.json"
_CONNECTIONS = 16  # parts read at a time


def convert(
    name: str,
    source: SourceConfig,
    out: str | os.PathLike[str],
    *,
    shards: int = 0,
    workers: int = 1,
    image_size: int = 0,
    jpeg_quality: int = 0,
    max_bad_records: int = 0,
) -> None:
    """Writes `source.split` of a source to `out`/split, or goes on with what was written of it.

    Args:
      name: of the source, for messages.
      source: of any kind.
      out: the data set's directory; made. Local or in a store.
      shards: number of files; 0: about `RECORDS_PER_SHARD` records in each.
      workers: processes. 1: this one.
      image_size: images become squares of so many pixels, with antialiasing, as the loader would
        make them; 0: they stay as they are.
      jpeg_quality: images that have to be encoded, frames of videos and those that were resized,
        become JPEG of this quality, 1 to 95; 0: PNG, without loss.
      max_bad_records: damaged episodes that are left out, see `EpisodeSource`.

    Raises:
      FileNotFoundError, ValueError: as the source; an example that cannot be used or converted; a
        conversion of another source or with other options in `out`.
      OSError: `out` cannot be written.
      RuntimeError: a worker died.
    """
    conversion, opened = prepare(
        name,
        source,
        out,
        shards=shards,
        image_size=image_size,
        jpeg_quality=jpeg_quality,
        max_bad_records=max_bad_records,
    )
    if is_finished(conversion):
        print(f"{name}: {conversion.directory} is there already and whole", flush=True)
        return
    parts = finished_parts(conversion)
    todo = [shard for shard in range(conversion.shards) if shard not in parts]
    done = sum(part.shard.records for part in parts.values())
    progress = Progress(name, len(opened), done=done)
    if workers == 1:
        for shard in todo:
            write_shard(conversion, shard, opened, progress.add)
    else:
        _write_in_processes(conversion, todo, workers, progress)
    finish(conversion)
    progress.finish(conversion.directory)


def prepare(
    name: str,
    source: SourceConfig,
    out: str | os.PathLike[str],
    *,
    shards: int = 0,
    image_size: int = 0,
    jpeg_quality: int = 0,
    max_bad_records: int = 0,
) -> tuple[Conversion, Source]:
    """Opens the source and notes in `out` what is to be done. Arguments and errors of `convert`.

    Of a source that was changed since, other numbers of records or episodes and another ActionSpec
    are noticed, and nothing else.
    """
    if not 0 <= jpeg_quality <= 95 or image_size < 0 or shards < 0:
        raise ValueError(
            f"jpeg_quality {jpeg_quality}, image_size {image_size}, shards {shards}: quality is "
            "1 to 95 or 0 for PNG, the others are positive, or 0 for the usual"
        )
    # What has no say in the examples must not stop a conversion from going on.
    config = dataclasses.replace(source, weight=1.0)
    opened = open_source(name, config, max_bad_records=max_bad_records)
    if opened.action_spec is not None and not isinstance(opened, EpisodicSource):
        raise ValueError(f"data set {name!r}: robot data without episodes cannot be converted")
    units = num_units(opened)
    if not units:
        raise ValueError(f"data set {name!r} has no records in split {source.split!r} to convert")
    shards = min(units, shards or -(-len(opened) // RECORDS_PER_SHARD))
    directory = storage.join(out, source.split)
    conversion = Conversion(
        name, config, directory, units, shards, image_size, jpeg_quality, max_bad_records
    )
    plan, metadata = _plan(conversion, opened), _metadata(conversion)
    noted = _noted(conversion)
    if storage.exists(metadata):
        text = storage.read_file(metadata)
        _require_same(plan, ConvertedMetadata.from_json(text, where=metadata).conversion, directory)
    elif storage.exists(noted):
        _require_same(plan, json.loads(storage.read_file(noted)), directory)
    else:
        storage.write_file(noted, json.dumps(plan, indent=2).encode())
    return conversion, opened


def write_shard_alone(conversion: Conversion, shard: int) -> int:
    """`write_shard` for a process that has no source yet; it opens it once."""
    return write_shard(conversion, shard, _opened(conversion), _told)


def finished_parts(conversion: Conversion) -> dict[int, Part]:
    """By shard: those whose file is there in the size that was written."""

    def look(shard: int) -> tuple[bytes, int] | None:
        if not storage.exists(conversion.part(shard)):
            return None
        try:
            [file] = storage.file_facts([conversion.file(shard)], where=conversion.name)
        except FileNotFoundError:
            return None
        return storage.read_file(conversion.part(shard)), file.size

    with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
        found = list(pool.map(look, range(conversion.shards)))
    # In one thread: NumPy reads headers by `ast`, which Python 3.11.7 cannot do in two (gh-106905).
    parts = {i: (Part.from_bytes(f[0]), f[1]) for i, f in enumerate(found) if f is not None}
    return {i: part for i, (part, size) in parts.items() if part and part.shard.size == size}


def is_finished(conversion: Conversion) -> bool:
    """Whether nothing is left to do."""
    return storage.exists(_metadata(conversion))


def finish(conversion: Conversion) -> None:
    """Joins the tables and writes the metadata, which makes the data set complete.

    Raises ValueError if a shard is missing.
    """
    parts = finished_parts(conversion)
    missing = [shard for shard in range(conversion.shards) if shard not in parts]
    if missing:
        raise ValueError(
            f"{conversion.directory}: {len(missing)} of {conversion.shards} shards are not "
            f"written, e.g. {conversion.file(missing[0])}: {converted.REMEDY}"
        )
    ordered = [parts[shard] for shard in range(conversion.shards)]
    plan = json.loads(storage.read_file(_noted(conversion)))
    digests, instructions = [part.shard.sha256 for part in ordered], ()
    spec = plan["action_spec"]
    if spec is not None:
        lengths, steps, instructions = _join(ordered, conversion.directory)
        for name, table in ((converted.EPISODES, lengths), (converted.STEPS, steps)):
            buffer = io.BytesIO()
            np.save(buffer, table)
            digests.append(hashlib.sha256(buffer.getvalue()).hexdigest())
            storage.write_file(storage.join(conversion.directory, name), buffer.getvalue())
    metadata = ConvertedMetadata(
        views=tuple(plan["views"]),
        action_spec=None if spec is None else ActionSpec.from_json(spec),
        shards=tuple(part.shard for part in ordered),
        instructions=instructions,
        conversion=plan,
        digest=hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
    )
    storage.write_file(_metadata(conversion), metadata.to_json().encode())
    storage.remove_directory(storage.join(conversion.directory, converted.UNFINISHED))


def _join(parts: list[Part], where: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Tables of shards as one: lengths, steps, and the instructions that the steps count."""
    forms = {part.steps.dtype for part in parts if len(part.steps)}
    if len(forms) > 1:
        raise ValueError(f"{where}: only some episodes have a state: repair or drop the others")
    numbers: dict[str, int] = {}
    for part in parts:
        ids = [numbers.setdefault(text, len(numbers)) for text in part.instructions]
        part.steps["instruction"] = np.array(ids, np.int32)[part.steps["instruction"]]
    steps = np.concatenate([part.steps for part in parts if len(part.steps)])
    return np.concatenate([part.lengths for part in parts]), steps, tuple(numbers)


def _metadata(conversion: Conversion) -> str:
    return storage.join(conversion.directory, converted.METADATA)


def _noted(conversion: Conversion) -> str:
    return storage.join(conversion.directory, f"{converted.UNFINISHED}/{_PLAN}")


def _plan(conversion: Conversion, source: Source) -> dict[str, Any]:
    """What must be the same when a conversion goes on, as JSON has it."""
    of_source = dataclasses.asdict(conversion.source)
    spec = source.action_spec
    plan = {
        **{key: of_source[key] for key in of_source if key != "weight"},
        "records": len(source),
        "units": conversion.units,
        "views": view_names(source),
        "action_spec": None if spec is None else spec.to_json(),
        "shards": conversion.shards,
        "image_size": conversion.image_size,
        "jpeg_quality": conversion.jpeg_quality,
    }
    return json.loads(json.dumps(plan))


def _require_same(plan: dict[str, Any], noted: dict[str, Any], directory: str) -> None:
    changed = [key for key in plan if plan[key] != noted.get(key)]
    if changed:
        raise ValueError(
            f"{directory} holds another conversion: "
            + "; ".join(f"{key} was {noted.get(key)}, is {plan[key]}" for key in changed)
            + ". Give it what it was begun with, another --out, or remove it"
        )


def _write_in_processes(
    conversion: Conversion, shards: list[int], workers: int, progress: Progress
) -> None:
    # Spawned, because forking a process that runs TensorFlow's threads can hang the child.
    context = multiprocessing.get_context("spawn")
    written = context.Value("q", 0)
    begun_with = progress.done
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, max(1, len(shards))), context, _start_worker, (written,)
    )
    try:
        waiting = {pool.submit(write_shard_alone, conversion, shard) for shard in shards}
        while waiting:
            finished, waiting = concurrent.futures.wait(
                waiting, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in finished:
                future.result()
            progress.add(written.value - (progress.done - begun_with))
    except concurrent.futures.process.BrokenProcessPool as e:
        raise RuntimeError(
            f"a worker died, perhaps for want of memory: use fewer workers; {converted.REMEDY}"
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


_count: Any = None  # of records, shared with the process that shows the progress


def _start_worker(written: Any) -> None:
    global _count
    _count = written
    images.hide_accelerators()
    tf.config.threading.set_intra_op_parallelism_threads(1)  # there is a process for each core
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        """Ends this worker with its parent, which may be killed without a chance to say so."""
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _told(records: int) -> None:
    if _count is not None:
        with _count.get_lock():
            _count.value += records


@functools.lru_cache(maxsize=1)
def _opened(conversion: Conversion) -> Source:
    return open_source(
        conversion.name, conversion.source, max_bad_records=conversion.max_bad_records
    )
