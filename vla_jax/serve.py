"""Serves a bundle to robots: `python -m vla_jax.serve --bundle=DIR`.

Any setting can be given: `--server.port=9000 --server.token_file=token.txt`, or in a JSON file that
`--config` names; `vla_jax/serving/settings.py` has all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_jax import schema
from vla_jax.serving import load
from vla_jax.serving.server import run
from vla_jax.serving.settings import ServerSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vla_jax.serve", description="Serves a bundle to robots"
    )
    parser.add_argument("--bundle", required=True, help="a directory made by vla_jax.export")
    parser.add_argument("--config", type=Path, help="a JSON file of the server's settings")
    options, rest = parser.parse_known_args(arguments)
    prefix = "--server."
    strange = [word for word in rest if not word.startswith(prefix)]
    if strange:
        parser.error(f"unknown argument {strange[0]!r}; settings are {prefix}key=value")
    try:
        settings = read_settings(options.config, [word.removeprefix(prefix) for word in rest])
        return run(load(options.bundle), settings)
    except (ValueError, OSError, RuntimeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def read_settings(path: Path | None, overrides: Sequence[str]) -> ServerSettings:
    """Raises ValueError for a setting that does not exist or cannot be."""
    mapping = {} if path is None else json.loads(path.read_text())
    mapping = schema.with_defaults(ServerSettings, mapping)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--server.{override}: write --server.{key}=VALUE")
        schema.set_from_text(ServerSettings, mapping, key, value)
    return schema.from_dict(ServerSettings, mapping, "server")


if __name__ == "__main__":
    sys.exit(main())
