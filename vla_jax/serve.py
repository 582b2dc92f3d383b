"""Serves a bundle to robots: `python -m vla_jax.serve --bundle=DIR`.

Any setting can be given: `--server.port=9000 --server.token_file=token.txt`, or in a JSON file that
`--config` names; `vla_jax/serving/settings.py` has all of them. A model that is too big for one
device is split as in training: `--mesh.fsdp=4 --mesh.tensor=2`, see `sharding.mesh`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_jax import schema
from vla_jax.serving import load
from vla_jax.serving.server import run
from vla_jax.serving.settings import ServerSettings
from vla_jax.sharding.mesh import MeshConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vla_jax.serve", description="Serves a bundle to robots"
    )
    parser.add_argument("--bundle", required=True, help="a directory made by vla_jax.export")
    parser.add_argument(
        "--max_batch_size", type=int, default=16, help="robots in the model's largest call"
    )
    parser.add_argument("--config", type=Path, help="a JSON file of the server's settings")
    options, rest = parser.parse_known_args(arguments)
    words: dict[str, list[str]] = {"--server.": [], "--mesh.": []}
    for word in rest:
        prefix = next((p for p in words if word.startswith(p)), None)
        if prefix is None:
            parser.error(f"unknown argument {word!r}; settings are --server.key=value")
        words[prefix].append(word.removeprefix(prefix))
    try:
        settings = read_settings(options.config, words["--server."])
        mesh = read_mesh(words["--mesh."]) if words["--mesh."] else None
        policy = load(options.bundle, mesh=mesh, max_batch_size=options.max_batch_size)
        return run(policy, settings)
    except (ValueError, OSError, RuntimeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def read_mesh(overrides: Sequence[str]) -> MeshConfig:
    """Raises ValueError for an axis that does not exist or cannot be."""
    mapping = schema.with_defaults(MeshConfig, {})
    _override(MeshConfig, mapping, "mesh", overrides)
    return schema.from_dict(MeshConfig, mapping, "mesh")


def read_settings(path: Path | None, overrides: Sequence[str]) -> ServerSettings:
    """Raises ValueError for a setting that does not exist or cannot be."""
    mapping = {} if path is None else json.loads(path.read_text())
    mapping = schema.with_defaults(ServerSettings, mapping)
    _override(ServerSettings, mapping, "server", overrides)
    return schema.from_dict(ServerSettings, mapping, "server")


def _override(kind: type, mapping: dict[str, Any], name: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--{name}.{override}: write --{name}.{key}=VALUE")
        schema.set_from_text(kind, mapping, key, value)


if __name__ == "__main__":
    sys.exit(main())
