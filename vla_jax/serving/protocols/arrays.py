"""NumPy arrays in messages: as openpi writes them in msgpack and json-numpy in JSON. No pickle.

Only plain numbers are read. Objects, structures and complex numbers are refused, as is an array
whose shape does not fit its bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from vla_jax.serving.request import NotUnderstoodError

_MAX_DIMENSIONS = 8
_MAX_ENTRIES = 65_536
_MAX_JSON_ENTRIES = 1_000_000  # a picture of 640 x 480 as lists has 921,600


def unpack(data: bytes) -> Any:
    """A msgpack message. Raises NotUnderstoodError.

    Numbers belong into arrays: a message of many lists and mappings is refused before it has held
    up other robots.
    """
    entries = 0

    def counted(value: Any) -> Any:
        nonlocal entries
        entries += len(value)
        if entries > _MAX_ENTRIES:
            raise NotUnderstoodError(f"more than {_MAX_ENTRIES} entries in lists and mappings")
        return _from_openpi(value) if isinstance(value, dict) else value

    try:
        return msgpack.unpackb(
            data,
            object_hook=counted,
            list_hook=counted,
            strict_map_key=False,
            max_map_len=_MAX_ENTRIES,
            max_array_len=_MAX_ENTRIES,
            max_ext_len=0,
        )
    except NotUnderstoodError:
        raise
    except Exception as e:  # msgpack raises many kinds
        raise NotUnderstoodError(f"not msgpack: {type(e).__name__}: {e}") from e


def pack(value: Any) -> bytes:
    """As msgpack, arrays in openpi's form."""
    packed = msgpack.packb(value, default=_to_openpi)
    assert packed is not None
    return packed


def loads(text: str | bytes) -> Any:
    """A JSON message, arrays in json-numpy's form. Raises NotUnderstoodError."""
    # Python does nothing else while it reads JSON, a million numbers in a tenth of a second.
    if (text.count(",") if isinstance(text, str) else text.count(b",")) > _MAX_JSON_ENTRIES:
        raise NotUnderstoodError(
            f"more than {_MAX_JSON_ENTRIES} numbers: send pictures as PNG, JPEG or json-numpy"
        )
    try:
        return json.loads(text, object_hook=_from_json_numpy, parse_constant=_refuse_constant)
    except NotUnderstoodError:
        raise
    except (ValueError, RecursionError) as e:
        raise NotUnderstoodError(f"not JSON: {e}") from e


def to_json_numpy(array: np.ndarray) -> dict[str, Any]:
    """What json-numpy reads as this array."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}


def _refuse_constant(name: str) -> float:
    raise NotUnderstoodError(f"not JSON: {name}")


def _from_openpi(fields: dict) -> Any:
    if b"__ndarray__" in fields:
        return _array(fields.get(b"data"), fields.get(b"dtype"), fields.get(b"shape"))
    if b"__npgeneric__" in fields:
        value, dtype = fields.get(b"data"), _dtype(fields.get(b"dtype"), "biufUS")
        if not isinstance(value, bool | int | float | str | bytes):
            raise NotUnderstoodError(f"a scalar of {type(value).__name__}")
        try:
            with np.errstate(over="ignore"):
                return value if dtype.kind in "US" else dtype.type(value)
        except (ValueError, TypeError, OverflowError) as e:
            raise NotUnderstoodError(f"a scalar: {e}") from e
    return fields


def _to_openpi(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(f"{type(value).__name__} has no place in a message")


def _from_json_numpy(fields: dict) -> Any:
    if "__numpy__" not in fields:
        return fields
    text, dtype, shape = fields["__numpy__"], fields.get("dtype"), fields.get("shape")
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as e:
        raise NotUnderstoodError(f"an array: {e}") from e
    array = _array(data, dtype, shape)
    return array[()] if array.ndim == 0 else array


def _dtype(name: Any, kinds: str) -> np.dtype:
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    # Longer ones describe structures.
    if not isinstance(name, str) or not 0 < len(name) <= 16:
        raise NotUnderstoodError(f"no dtype: {str(name)[:40]!r}")
    try:
        dtype = np.dtype(name)
    except Exception as e:  # NumPy parses it in many ways
        raise NotUnderstoodError(f"no dtype: {name!r}") from e
    if dtype.kind not in kinds or dtype.hasobject:
        raise NotUnderstoodError(f"unsupported dtype {name!r}: arrays must hold plain numbers")
    return dtype


def _array(data: Any, name: Any, shape: Any) -> np.ndarray:
    dtype = _dtype(name, "biuf")
    sides = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else None
    fine = sides is not None and len(sides) <= _MAX_DIMENSIONS
    if not fine or not all(type(n) is int and 0 <= n < 2**31 for n in sides or ()):
        raise NotUnderstoodError(f"an array: no shape: {str(shape)[:80]}")
    if not isinstance(data, bytes) or len(data) != math.prod(sides or ()) * dtype.itemsize:
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise NotUnderstoodError(f"an array: {size} bytes for {dtype} {str(sides)[:80]}")
    return np.frombuffer(data, dtype).reshape(sides or ())


def require_fields(message: Any) -> Mapping[str, Any]:
    """Raises NotUnderstoodError if it is not a mapping of names."""
    if not isinstance(message, Mapping):
        raise NotUnderstoodError(f"a message must be a mapping, not {type(message).__name__}")
    return {
        k.decode("utf-8", "replace") if isinstance(k, bytes) else k: v for k, v in message.items()
    }
