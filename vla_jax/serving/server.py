"""The server process: HTTP, websockets and gRPC on one event loop, one policy behind them.

HTTP has, beside `protocols/rest.py`:

    GET  /           as a websocket: openpi's protocol; else a page for people, see `page`
    GET  /healthz    200 while the process answers
    GET  /readyz     200 once it is warmed up, 503 while it starts, drains or hangs
    GET  /metrics    Prometheus
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import weakref

from aiohttp import WSCloseCode, web
from prometheus_client import CONTENT_TYPE_LATEST

from vla_jax.serving import page
from vla_jax.serving.access import Access
from vla_jax.serving.contract import ServedPolicy
from vla_jax.serving.protocols import grpc as grpc_protocol
from vla_jax.serving.protocols import openpi, rest
from vla_jax.serving.service import Service
from vla_jax.serving.settings import ServerSettings

_OPEN_PATHS = ("/healthz", "/readyz", *page.OPEN_PATHS)  # without a token: they tell nothing


def make_app(service: Service, access: Access) -> web.Application:
    """All of HTTP.

    Raises:
      ValueError: a demo with a policy that does not fit it.
    """

    @web.middleware
    async def authorized(request: web.Request, handler):
        allowed = access.allows(request.headers.get("Authorization", ""))
        is_open = request.path in _OPEN_PATHS and not _is_websocket(request)
        if not is_open and not allowed:
            return web.json_response(
                {"error": "a missing or wrong token"},
                status=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        return await handler(request)

    sockets: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()

    async def root(request: web.Request) -> web.StreamResponse:
        if _is_websocket(request):
            socket = openpi.make_socket(service)
            sockets.add(socket)
            return await openpi.converse(service, request, socket)
        return page.document()

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="OK\n")  # as openpi's server says it

    async def readyz(request: web.Request) -> web.Response:
        reason = service.not_ready
        return web.Response(text=f"{reason or 'OK'}\n", status=503 if reason else 200)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(
            body=service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def say_goodbye(app: web.Application) -> None:
        closing = [s.close(code=WSCloseCode.GOING_AWAY, message=b"stopped") for s in sockets]
        if closing:
            await asyncio.wait([asyncio.create_task(c) for c in closing], timeout=1.0)

    app = web.Application(
        middlewares=[authorized],
        client_max_size=int(service.settings.max_message_mib * 2**20),
    )
    app.add_routes(
        [
            web.get("/", root),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            *rest.routes(service),
        ]
    )
    app.on_shutdown.append(say_goodbye)
    page.mount(app, service)
    return app


def _is_websocket(request: web.Request) -> bool:
    return bool(web.WebSocketResponse().can_prepare(request))


async def serve(policy: ServedPolicy, settings: ServerSettings) -> bool:
    """Serves until SIGTERM or SIGINT; whether all requests in flight were answered.

    The ports are open while it warms up: robots that ask are told to hold.

    Raises:
      ValueError: settings that do not fit the policy.
      OSError, RuntimeError: a port is taken.
    """
    service, access = Service(policy, settings), Access(settings)
    runner = web.AppRunner(
        make_app(service, access),
        access_log=None,
        handler_cancellation=True,  # whoever has gone needs no model call
        shutdown_timeout=1.0,
    )
    await runner.setup()
    site = web.TCPSite(runner, settings.host, settings.port, ssl_context=access.of_http())
    await site.start()
    grpc_server, grpc_port = None, 0
    if settings.grpc_port >= 0:
        address = f"{settings.host}:{settings.grpc_port}"
        grpc_server, grpc_port = grpc_protocol.make_server(
            service, access, address, access.of_grpc()
        )
        await grpc_server.start()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    port = runner.addresses[0][1]
    print(
        f"http and websockets on {settings.host}:{port}, grpc on {grpc_port or 'none'}", flush=True
    )
    started = asyncio.create_task(service.start())
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait((started, waiting), return_when=asyncio.FIRST_COMPLETED)
    if started.done():
        started.result()
        print(f"ready: {policy.spec.name}, bundle {policy.digest}", flush=True)
        scheme = "https" if settings.tls_certificate else "http"
        print(f"page for people: {scheme}://{settings.host}:{port}/", flush=True)
        await waiting
    started.cancel()
    print("draining", flush=True)
    await site.stop()
    finished = await service.drain()
    if grpc_server is not None:
        await grpc_server.stop(grace=1.0)
    await runner.cleanup()
    await service.stop()
    return finished and not service.hangs


def run(policy: ServedPolicy, settings: ServerSettings) -> int:
    """`serve` as a process; returns the exit code: 0, 1 if a request was left unanswered."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    finished = asyncio.run(serve(policy, settings))
    if not finished:
        # The thread of the model may hang for ever.
        sys.stdout.flush()
        os._exit(1)
    return 0
