"""Arrays in messages, against openpi's own writer and reader; and what is refused."""

from __future__ import annotations

import base64

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy

from vla_jax.serving.protocols.arrays import loads, pack, to_json_numpy, unpack
from vla_jax.serving.request import NotUnderstoodError

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    np.float32([[1.5, -2.0]]),
    np.array([True, False]),
    np.zeros((0, 3), np.int64),
    np.array([1, 2], ">i2"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: a.dtype.str)
def test_arrays_go_both_ways(array):
    read = unpack(msgpack_numpy.packb({"a": array}))["a"]
    back = msgpack_numpy.unpackb(pack({"a": array}))["a"]
    text = loads(str(to_json_numpy(array)).replace("'", '"'))
    for got in (read, back, text):
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_scalars_are_read():
    read = unpack(msgpack_numpy.packb({"a": np.float32(0.25), "b": np.uint8(7)}))
    assert (read["a"], read["b"]) == (0.25, 7) and read["a"].dtype == np.float32


@pytest.mark.parametrize(
    "dtype", ["|O", "O", "|V8", "<c8", "<c16", "f4,f4", "<M8[s]", "|S4", "", 7]
)
def test_only_plain_numbers_are_read(dtype):
    written = {b"__ndarray__": True, b"data": bytes(8), b"dtype": dtype, b"shape": [1]}
    with pytest.raises(NotUnderstoodError, match="dtype"):
        unpack(msgpack.packb(written))
    data = base64.b64encode(bytes(8)).decode()
    with pytest.raises(NotUnderstoodError, match="dtype"):
        loads(f'{{"__numpy__": "{data}", "dtype": {str(dtype)!r}, "shape": [1]}}'.replace("'", '"'))


@pytest.mark.parametrize("shape", [[9], [-8], [2**40], [8, 2**62], "8", None, [1] * 9, [8.0]])
def test_shapes_must_fit_their_bytes(shape):
    written = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|u1", b"shape": shape}
    with pytest.raises(NotUnderstoodError, match="an array"):
        unpack(msgpack.packb(written))


def test_many_small_entries_are_refused():
    with pytest.raises(NotUnderstoodError, match="entries"):
        unpack(msgpack.packb([[0] * 1000] * 100))
    with pytest.raises(NotUnderstoodError, match="entries"):
        unpack(msgpack.packb([{i: 0 for i in range(1000)}] * 100))
    with pytest.raises(NotUnderstoodError, match="send pictures as PNG"):
        loads("[" + "1," * 1_000_001 + "1]")
