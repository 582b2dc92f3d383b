"""The page's part of HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from vla_jax.serving.page.demo import Demo
from vla_jax.serving.page.watch import Watch
from vla_jax.serving.service import Service

OPEN_PATHS = ("/", "/page/page.css", "/page/page.js")
"""Without a token: the page asks for it."""

MAX_READERS = 16
_STUCK_S = 30.0  # a reader that takes nothing for so long makes room for another
_HERE = Path(__file__).parent
_MAX_SEED = 2**31
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def document() -> web.FileResponse:
    """The page itself."""
    return _asset("page.html")


def mount(app: web.Application, service: Service) -> None:
    """Adds the page's routes to the server's.

    Raises:
      ValueError: a demo with a policy that does not fit it.
    """
    demo = Demo(service) if service.settings.demo else None
    watch = Watch(service, demo)
    readers: set[web.StreamResponse] = set()
    stopping = False

    async def style(request: web.Request) -> web.FileResponse:
        return _asset("page.css")

    async def script(request: web.Request) -> web.FileResponse:
        return _asset("page.js")

    async def info(request: web.Request) -> web.Response:
        return web.json_response(_information(service))

    async def events(request: web.Request) -> web.StreamResponse:
        if len(readers) >= MAX_READERS:
            raise _error(503, f"{MAX_READERS} people are watching already")
        response = web.StreamResponse(
            headers={
                **_HEADERS,
                "Content-Type": "application/x-ndjson",
                "Cache-Control": "no-store",
            }
        )
        readers.add(response)
        try:
            await response.prepare(request)
            async for line in watch.lines():
                if stopping:
                    break
                async with asyncio.timeout(_STUCK_S):
                    await response.write(line)
        except (ConnectionResetError, TimeoutError):
            pass  # the reader has gone
        finally:
            readers.discard(response)
        return response

    async def stop_reading(app: web.Application) -> None:
        nonlocal stopping
        stopping = True

    app.add_routes(
        [
            web.get("/page/page.css", style),
            web.get("/page/page.js", script),
            web.get("/page/info", info),
            web.get("/page/events", events),
        ]
    )
    app.on_shutdown.append(stop_reading)
    if demo is not None:
        _mount_demo(app, service, demo)


def _mount_demo(app: web.Application, service: Service, demo: Demo) -> None:
    async def scene(request: web.Request) -> web.Response:
        seed = (await _fields(request)).get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < _MAX_SEED:
            raise _error(400, f"seed must be a whole number from 0 to {_MAX_SEED - 1}")
        return await _done(demo.set_scene(seed))

    async def go(request: web.Request) -> web.Response:
        return await _done(demo.go((await _fields(request)).get("instruction")))

    async def stop(request: web.Request) -> web.Response:
        await _fields(request)
        return await _done(demo.stop())

    async def _done(command) -> web.Response:
        try:
            await command
        except (ValueError, RuntimeError) as e:
            raise _error(409, str(e)) from e
        return web.json_response({})

    async def open_demo(app: web.Application) -> None:
        demo.open()

    async def close_demo(app: web.Application) -> None:
        await demo.close()

    app.add_routes(
        [
            web.post("/page/demo/scene", scene),
            web.post("/page/demo/go", go),
            web.post("/page/demo/stop", stop),
        ]
    )
    app.on_startup.append(open_demo)
    app.on_cleanup.append(close_demo)


def _information(service: Service) -> dict[str, Any]:
    settings, safety = service.settings, service.safety
    return {
        **service.description(),
        "low": [float(x) for x in safety.low],
        "high": [float(x) for x in safety.high],
        "limits": {name: dataclasses.asdict(limits) for name, limits in settings.limits.items()},
        "deadline_ms": 1e3 * settings.deadline_s,
        "demo": settings.demo,
        "now": time.time(),
    }


async def _fields(request: web.Request) -> Mapping[str, Any]:
    # Another site's page cannot send this type without asking first, and is not allowed to.
    if request.content_type != "application/json":
        raise _error(415, "send application/json")
    try:
        fields = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise _error(400, f"not JSON: {e}") from e
    if not isinstance(fields, dict):
        raise _error(400, "send a JSON object")
    return fields


def _error(status: int, why: str) -> web.HTTPException:
    kinds = {
        400: web.HTTPBadRequest,
        409: web.HTTPConflict,
        415: web.HTTPUnsupportedMediaType,
        503: web.HTTPServiceUnavailable,
    }
    return kinds[status](text=json.dumps({"error": why}), content_type="application/json")


def _asset(name: str) -> web.FileResponse:
    return web.FileResponse(_HERE / name, headers=_HEADERS)
