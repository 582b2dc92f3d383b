"""Sources that a user writes: a class or function in a Python file or module of theirs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import types
from typing import Any

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.sources.base import Source


def open_custom(name: str, path: str, split: str) -> Source:
    """What `my_data.py:Notes` or `my_package.my_module:Notes` makes of (name, split).

    Args:
      name: of the source; becomes its `name` unless it has one.
      path: a file or module, a colon, and a callable in it.
      split: passed on.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no such module or callable, or what it makes is no source: says what it lacks.
    """
    where = f"source {name!r} ({path})"
    module_name, colon, attribute = path.rpartition(":")
    if not colon:
        raise ValueError(
            f"{where}: give a Python file or module and what makes the source: my_data.py:MySource"
        )
    make = getattr(_import(module_name, where), attribute, None)
    if not callable(make):
        raise ValueError(f"{where}: there is no class or function {attribute!r} in {module_name}")
    source: Any = make(name, split)
    lacking = [part for part in ("__len__", "read", "action_spec") if not hasattr(source, part)]
    if lacking:
        raise ValueError(
            f"{where}: what it makes has no {', '.join(lacking)}; see vla_jax.data.sources.base"
        )
    spec = source.action_spec
    if spec is not None and not isinstance(spec, ActionSpec):
        raise ValueError(
            f"{where}: action_spec is {type(spec).__name__}, not an ActionSpec or None"
        )
    if not getattr(source, "name", ""):
        source.name = name
    return source


def _import(name: str, where: str) -> types.ModuleType:
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ImportError as e:
            raise ValueError(f"{where}: {name} cannot be imported: {e}") from e
    if not os.path.isfile(name):
        raise FileNotFoundError(f"{where}: there is no file {name}")
    spec = importlib.util.spec_from_file_location(os.path.basename(name)[:-3], name)
    assert spec is not None and spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
