"""gRPC, as `policy.proto` describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
import numpy as np

from vla_jax.serving.access import Access
from vla_jax.serving.protocols import policy_pb2 as messages
from vla_jax.serving.protocols.policy_pb2_grpc import (
    PolicyServicer,
    add_PolicyServicer_to_server,
)
from vla_jax.serving.reply import Reply
from vla_jax.serving.request import NotUnderstoodError
from vla_jax.serving.safety import HoldError
from vla_jax.serving.service import Service

_BUSY = ("overload", "draining", "starting", "policy")


def make_server(
    service: Service, access: Access, address: str, credentials: grpc.ServerCredentials | None
) -> tuple[grpc.aio.Server, int]:
    """A server that is not started yet, and its port.

    Args:
      address: HOST:PORT; port 0 takes a free one.
      credentials: of TLS; None: without.

    Raises:
      RuntimeError: the port is taken.
    """
    size = int(service.settings.max_message_mib * 2**20)
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", size), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=4 * service.settings.max_sessions,
    )
    add_PolicyServicer_to_server(_Policy(service, access), server)
    if credentials is None:
        return server, server.add_insecure_port(address)
    return server, server.add_secure_port(address, credentials)


class _Policy(PolicyServicer):
    def __init__(self, service: Service, access: Access):
        self._service, self._access = service, access

    async def Act(self, request, context):
        await self._allow(context)
        try:
            reply = await self._service.act(
                _fields(request),
                protocol="grpc",
                default_session=_peer(context),
                whole_chunk=request.whole_chunk,
            )
        except NotUnderstoodError as e:
            await self._refuse(context, str(e))
        return _written(reply)

    async def Answer(self, request, context):
        await self._allow(context)
        try:
            picture = _picture(request.image)
            text = await self._service.answer(picture, request.question, protocol="grpc")
        except NotUnderstoodError as e:
            await self._refuse(context, str(e))
        except HoldError as e:
            self._service.metrics.errors.labels("grpc").inc()
            code = grpc.StatusCode.INVALID_ARGUMENT
            if e.reason == "timeout":
                code = grpc.StatusCode.DEADLINE_EXCEEDED
            elif e.reason in _BUSY:
                code = grpc.StatusCode.UNAVAILABLE
            await context.abort(code, f"{e.reason}: {e.why}")
        return messages.AnswerReply(answer=text)

    async def Reset(self, request, context):
        await self._allow(context)
        self._service.reset(request.session or _peer(context))
        return messages.ResetReply()

    async def Describe(self, request, context):
        await self._allow(context)
        return messages.Description(json=json.dumps(self._service.description()))

    async def _allow(self, context: grpc.aio.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata() or ())
        given = metadata.get("authorization", "")
        if not self._access.allows(given if isinstance(given, str) else ""):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a missing or wrong token")

    async def _refuse(self, context: grpc.aio.ServicerContext, why: str) -> None:
        self._service.metrics.errors.labels("grpc").inc()
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)


def _peer(context: grpc.aio.ServicerContext) -> str:
    return f"grpc-{context.peer()}"[:128]


def _fields(request: messages.ActRequest) -> Mapping[str, Any]:
    fields: dict[str, Any] = {
        "images": {name: _picture(image) for name, image in request.images.items()},
        "instruction": request.instruction,
        "reset": request.reset,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    if request.session:
        fields["session"] = request.session
    for name in ("timestamp", "spec"):
        if request.HasField(name):
            fields[name] = getattr(request, name)
    for name in ("state", "last_action"):
        if getattr(request, name):
            fields[name] = np.asarray(getattr(request, name), np.float32)
    return fields


def _picture(image: messages.Image) -> np.ndarray | bytes:
    if image.WhichOneof("picture") != "pixels":
        return image.file
    pixels = image.pixels
    if len(pixels.rgb) != 3 * pixels.height * pixels.width:
        raise NotUnderstoodError(
            f"{len(pixels.rgb)} bytes for {pixels.height} x {pixels.width} RGB pixels"
        )
    return np.frombuffer(pixels.rgb, np.uint8).reshape(pixels.height, pixels.width, 3)


def _written(reply: Reply) -> messages.ActReply:
    return messages.ActReply(
        actions=[messages.Row(values=row) for row in reply.actions.tolist()],
        valid=reply.valid,
        why=reply.why,
        reason=reply.reason,
        clipped=reply.clipped,
        tokens=reply.tokens,
        text=reply.text,
        plan=reply.plan,
        queue_s=reply.queue_s,
        model_s=reply.model_s,
        total_s=reply.total_s,
        batch=reply.batch,
    )
