"""JSON over HTTP.

    POST /act     {"image": ..., "instruction": "..."}  -> an action
    POST /answer  {"image": ..., "question": "..."}     -> {"answer": "..."}
    POST /reset   {"session": "..."}                    a robot begins a new episode
    GET  /spec                                          what is served

A picture is json-numpy's form of an array, nested lists, or base64 of a PNG or JPEG file. OpenVLA's
clients send the first, alone or with the whole message as a string in "encoded", and get what
OpenVLA's server gives: the action alone, as json-numpy writes it. Others get an object. In both
cases the headers `X-Action-Valid` and `X-Action-Why` tell whether it holds the position.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from aiohttp import web

from vla_jax.serving.protocols.arrays import loads, require_fields, to_json_numpy
from vla_jax.serving.reply import Reply
from vla_jax.serving.request import NotUnderstoodError, session_name
from vla_jax.serving.safety import HoldError
from vla_jax.serving.service import Service

_LARGE = 1 << 16  # bytes whose reading would hold up other robots


def routes(service: Service) -> list[web.RouteDef]:
    """All of this protocol."""

    async def act(request: web.Request) -> web.Response:
        fields, encoded = await _read(service, request)
        as_array = encoded or isinstance(fields.get("image"), np.ndarray)
        whole = fields.get("chunk") is True
        reply = await service.act(
            fields, protocol="rest", default_session=_address(request), whole_chunk=whole
        )
        return _written(reply, as_array=as_array, encoded=encoded, whole=whole)

    async def answer(request: web.Request) -> web.Response:
        fields, _ = await _read(service, request)
        try:
            text = await service.answer(
                fields.get("image"), fields.get("question"), protocol="rest"
            )
        except HoldError as e:
            service.metrics.errors.labels("rest").inc()
            busy = e.reason in ("overload", "timeout", "draining", "starting", "policy")
            return web.json_response(
                {"error": e.why, "reason": e.reason}, status=503 if busy else 400
            )
        return web.json_response({"answer": text})

    async def reset(request: web.Request) -> web.Response:
        fields, _ = await _read(service, request)
        service.reset(session_name(fields, _address(request)))
        return web.json_response({})

    async def spec(request: web.Request) -> web.Response:
        return web.json_response(service.description())

    return [
        web.post("/act", _errors(service, act)),
        web.post("/answer", _errors(service, answer)),
        web.post("/reset", _errors(service, reset)),
        web.get("/spec", spec),
    ]


def _errors(service: Service, handler):
    async def handled(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except NotUnderstoodError as e:
            service.metrics.errors.labels("rest").inc()
            return web.json_response({"error": str(e)}, status=400)
        except web.HTTPRequestEntityTooLarge:
            service.metrics.errors.labels("rest").inc()
            return web.json_response(
                {"error": f"more than {service.settings.max_message_mib:g} MiB"}, status=413
            )
        except TimeoutError:
            service.metrics.errors.labels("rest").inc()
            return web.json_response({"error": "the message took too long"}, status=408)

    return handled


async def _read(service: Service, request: web.Request) -> tuple[Mapping[str, Any], bool]:
    """The fields, and whether they were in "encoded"."""
    async with asyncio.timeout(service.settings.read_s):
        data = await request.read()
    fields = require_fields(await _parsed(data))
    encoded = fields.get("encoded")
    if encoded is None:
        return fields, False
    if not isinstance(encoded, str):
        raise NotUnderstoodError("encoded must be a string of JSON")
    return require_fields(await _parsed(encoded)), True


async def _parsed(data: bytes | str) -> Any:
    return await asyncio.to_thread(loads, data) if len(data) > _LARGE else loads(data)


def _address(request: web.Request) -> str:
    """The name of a robot that gives none. Each connection is new to OpenVLA's clients."""
    return f"rest-{request.remote}"


def _written(reply: Reply, *, as_array: bool, encoded: bool, whole: bool) -> web.Response:
    headers = {"X-Action-Valid": "true" if reply.valid else "false"}
    if reply.why:
        headers["X-Action-Why"] = quote(reply.why[:500], safe=" ")
    if as_array:
        array = reply.actions if whole else reply.actions[0]
        value: Any = to_json_numpy(array.astype(np.float64))
        return web.json_response(json.dumps(value) if encoded else value, headers=headers)
    value = {
        "action": reply.actions[0].tolist(),
        "actions": reply.actions.tolist(),
        **reply.said(),
        **reply.times(),
    }
    return web.json_response(value, headers=headers)
