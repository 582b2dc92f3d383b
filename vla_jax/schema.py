"""Nested mappings to nested frozen dataclasses, with errors that name the key.

A dataclass is the schema: its fields say which keys exist, what type each has and which may be left
out. Supported types: bool, int, float, str, `Literal`, `X | None`, `tuple`, `dict[str, X]` and
dataclasses, nested in any way.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


def from_dict(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Builds the dataclass `cls` from a mapping with the same keys.

    An int is accepted for a float, a list for a tuple; a bool is not an int.

    Args:
      where: dotted path of `mapping`, for messages.

    Raises:
      ValueError: an unknown or missing key, a value of the wrong type, or a value that `cls` itself
        refuses; names the dotted path.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where or 'config'}: expected a section, got {mapping!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # pyright: ignore[reportArgumentType]
    for key in mapping:
        if key not in fields:
            raise ValueError(unknown_key(str(key), fields, where))
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], join(where, name))
        elif _is_required(field):
            raise ValueError(f"{join(where, name)}: missing; expected {describe(hints[name])}")
    try:
        return cls(**values)
    except ValueError as e:
        raise ValueError(f"{where}: {e}" if where else str(e)) from e


def with_defaults(cls: type, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A plain copy of `mapping` in which the fields that `cls` has defaults for are filled in.

    Keys that `cls` does not know are kept: `from_dict` refuses them.
    """
    filled = dict(mapping)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if field.name not in filled and not _is_required(field):
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            filled[field.name] = to_plain(default)
        value = filled.get(field.name)
        if not isinstance(value, Mapping):
            continue
        section = _section(hint)
        if section is not None:
            filled[field.name] = with_defaults(section, value)
        elif typing.get_origin(hint) is dict and (item := _section(typing.get_args(hint)[1])):
            filled[field.name] = {
                k: with_defaults(item, v) if isinstance(v, Mapping) else v for k, v in value.items()
            }
    return filled


def set_from_text(cls: type, mapping: dict[str, Any], path: str, text: str) -> None:
    """Sets `mapping[a][b] = value` for a path "a.b", `text` read as the type that `cls` declares.

    `mapping` comes from `with_defaults`; sections on the way must exist in it.

    Raises:
      ValueError: no such key (names the closest), or `text` is not of the declared type.
    """
    hint: Any = cls
    done = ""
    names = path.split(".")
    for depth, name in enumerate(names):
        section = _section(hint)
        if section is not None:
            known = typing.get_type_hints(section)
            known = {f.name: known[f.name] for f in dataclasses.fields(section)}
        elif typing.get_origin(hint) is dict:
            known = dict.fromkeys(mapping, typing.get_args(hint)[1])
        else:
            raise ValueError(f"{path}: {done} is not a section but {describe(hint)}")
        if name not in known:
            raise ValueError(unknown_key(name, known, done))
        hint, done = known[name], join(done, name)
        if depth < len(names) - 1 and _is_nested(hint):
            if not isinstance(mapping.get(name), dict):
                raise ValueError(f"{path}: the config leaves the section {done} out; add it there")
            mapping = mapping[name]
    if _is_nested(hint) and text.lower() != "none":
        raise ValueError(f"{path} is {describe(hint)}; override one of those")
    mapping[names[-1]] = to_plain(_convert(hint, _read(hint, text), path))


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts and tuples to lists, recursively: what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    """The message for a key that does not exist."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{join(where, key)}: no such key{hint} Known here: {', '.join(sorted(known)) or 'none'}"


def join(where: str, name: str) -> str:
    """Dotted path of `name` inside `where`."""
    return f"{where}.{name}" if where else name


def describe(hint: Any) -> str:
    """A type in words, for messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if hint is type(None):
        return "None"
    if origin is tuple:
        if args[1:] == (...,):
            return f"a tuple of {describe(args[0])}"
        return f"a tuple ({', '.join(describe(a) for a in args)})"
    if origin is dict:
        return f"a mapping of names to {describe(args[1])}"
    if dataclasses.is_dataclass(hint):
        return f"a section with keys {', '.join(f.name for f in dataclasses.fields(hint))}"
    return getattr(hint, "__name__", str(hint))


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _section(hint: Any) -> type | None:
    """The dataclass in `Section` or `Section | None`; None for any other type."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        sections = [a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)]
        return sections[0] if len(sections) == 1 else None  # pyright: ignore[reportReturnType]
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _is_nested(hint: Any) -> bool:
    return _section(hint) is not None or typing.get_origin(hint) is dict


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; ValueError if it is not one."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    wrong = ValueError(
        f"{where}: expected {describe(hint)}, got {type(value).__name__} {to_plain(value)!r}"
    )
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        others = [a for a in args if a is not type(None)]
        if len(others) == 1:
            return _convert(others[0], value, where)
        for option in others:
            try:
                return _convert(option, value, where)
            except ValueError:
                continue
        raise wrong
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # pyright: ignore[reportArgumentType]
    if origin is Literal:
        if any(value == a and type(value) is type(a) for a in args):
            return value
        close = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
        raise ValueError(f"{wrong}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong
        return {str(k): _convert(args[1], v, join(where, str(k))) for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise wrong
        items = args[:1] * len(value) if args[1:] == (...,) else args
        if len(items) != len(value):
            raise wrong
        pairs = zip(items, value, strict=True)
        return tuple(_convert(t, v, f"{where}[{i}]") for i, (t, v) in enumerate(pairs))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, int, float, str) and type(value) is hint:
        return value
    raise wrong


def _read(hint: Any, text: str) -> Any:
    """The value that `text` most likely means for `hint`; `_convert` checks it."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        options = typing.get_args(hint)
        if text.lower() == "none" and type(None) in options:
            return None
        hint = next((a for a in options if a is not type(None)), str)
    if hint is str:
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text.split(",") if typing.get_origin(hint) is tuple else text
    if hint is float and isinstance(value, str):
        # 1e-3 is a literal, but inf is not.
        return float(text) if text.lower() in ("inf", "-inf") else value
    if typing.get_origin(hint) is tuple and not isinstance(value, tuple | list):
        return (value,)
    return value
