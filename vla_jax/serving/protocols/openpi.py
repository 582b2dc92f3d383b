"""openpi's websocket: the unmodified `openpi-client` controls the server.

The first frame tells what is served. Then every frame is an observation and is answered by the
whole chunk. A message that is no observation is answered, as by openpi, by a text frame with the
error, and the connection is closed with 1011. Whatever else goes wrong is a chunk that holds the
position, with `valid` false and `why`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from vla_jax.serving.protocols.arrays import pack, require_fields, unpack
from vla_jax.serving.reply import Reply
from vla_jax.serving.request import NotUnderstoodError
from vla_jax.serving.service import Service

_HEARTBEAT_S = 20.0
_numbers = itertools.count()


def make_socket(service: Service) -> web.WebSocketResponse:
    """As openpi's client wants it: not compressed."""
    return web.WebSocketResponse(
        heartbeat=_HEARTBEAT_S,
        compress=False,
        max_msg_size=int(service.settings.max_message_mib * 2**20),
    )


async def converse(
    service: Service, request: web.Request, socket: web.WebSocketResponse
) -> web.WebSocketResponse:
    """One robot's connection, until it ends."""
    await socket.prepare(request)
    name = f"openpi-{next(_numbers)}"
    service.metrics.connections.inc()
    try:
        await _send(service, socket, service.description())
        previous_ms = None
        async for message in socket:
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                break
            try:
                reply = await _answer(service, message.data, name)
            except NotUnderstoodError as e:
                service.metrics.errors.labels("openpi").inc()
                await socket.send_str(f"{type(e).__name__}: {e}")
                await socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"not understood")
                break
            fields = _fields(reply)
            if previous_ms is not None:
                fields["server_timing"]["prev_total_ms"] = previous_ms
            await _send(service, socket, fields)
            previous_ms = 1e3 * reply.total_s
            if reply.reason == "draining":
                await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops")
    except (ConnectionError, TimeoutError) as e:
        logging.info("%s: lost: %r", name, e)
        # A peer that does not read would hold up an orderly close.
        if request.transport is not None:
            request.transport.abort()
    finally:
        service.metrics.connections.dec()
        service.sessions.close(name)
    return socket


async def _answer(service: Service, data: bytes | str, name: str) -> Reply:
    if isinstance(data, str):
        raise NotUnderstoodError("a text frame; observations are msgpack in binary frames")
    return await service.act(
        require_fields(unpack(data)), protocol="openpi", default_session=name, whole_chunk=True
    )


async def _send(service: Service, socket: web.WebSocketResponse, value: Any) -> None:
    """Raises TimeoutError if the peer does not read."""
    async with asyncio.timeout(service.settings.read_s):
        await socket.send_bytes(pack(value))


def _fields(reply: Reply) -> dict[str, Any]:
    # Lists but for the actions: openpi's broker cuts every array along the chunk.
    return {
        "actions": reply.actions,
        **reply.said(),
        "server_timing": {"infer_ms": 1e3 * (reply.queue_s + reply.model_s), **reply.times()},
    }
