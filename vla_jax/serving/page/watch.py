"""What people see of robots and of the demo, as lines of JSON."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from vla_jax.serving.page.demo import Demo, Moment
from vla_jax.serving.reply import Exchange
from vla_jax.serving.service import Service

LOOK_S = 0.15
_ALIVE_S = 2.0  # between signs of life: a reader that has gone is noticed by them


class Watch:
    """Lines for any number of readers; each gets only what is newest when it is ready for more.

    Args:
      demo: None: there is none.
    """

    def __init__(self, service: Service, demo: Demo | None):
        self._service, self._demo = service, demo
        self._lines: dict[str, tuple[Exchange | Moment, bytes]] = {}
        self._making = asyncio.Lock()  # one thread at most: robots' pictures need the others

    async def lines(self) -> AsyncIterator[bytes]:
        """Without end. Each is one of

        {"server": {"not_ready": "", "robots": [names]}}
        {"robot": {"name": ..., "pictures": {camera: PNG in base64}, "actions": [C][A], ...}}
        {"demo": {"status": ..., "view": JPEG in base64, "pictures": ..., ...}}
        """
        told: dict[str, Exchange | Moment] = {}
        server, server_at = b"", 0.0
        while True:
            newest = self._service.sessions.newest()
            self._lines = {n: x for n, x in self._lines.items() if n in newest or not n}
            line = _line(
                {"server": {"not_ready": self._service.not_ready, "robots": sorted(newest)}}
            )
            if line != server or time.monotonic() - server_at > _ALIVE_S:
                server, server_at = line, time.monotonic()
                yield line
            told = {n: x for n, x in told.items() if n in newest or not n}
            looks: dict[str, Exchange | Moment] = dict(newest)
            if self._demo is not None:
                looks[""] = self._demo.moment  # no robot has this name
            for name, look in looks.items():
                if told.get(name) is not look:
                    told[name] = look
                    yield await self._line_of(name, look)
            await asyncio.sleep(LOOK_S)

    async def _line_of(self, name: str, look: Exchange | Moment) -> bytes:
        async with self._making:
            made = self._lines.get(name)
            if made is None or made[0] is not look:
                made = look, await asyncio.to_thread(_written, name, look)
                self._lines[name] = made
            return made[1]


def _written(name: str, look: Exchange | Moment) -> bytes:
    if isinstance(look, Moment):
        view = None if look.view is None else _file(look.view, "JPEG", quality=90)
        shown = look._asdict() | {"view": view, "pictures": _pictures(look.pictures)}
        return _line({"demo": shown})
    reply = look.reply
    return _line(
        {
            "robot": {
                "name": name,
                "protocol": look.protocol,
                "instruction": look.instruction,
                "at": look.at,
                "pictures": _pictures(look.images),
                "actions": np.round(reply.actions.astype(float), 6).tolist(),
                **reply.said(),
                **reply.times(),
            }
        }
    )


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _pictures(images: Mapping[str, np.ndarray]) -> dict[str, str]:
    """By camera, without loss, so that a question is about just what the policy saw; of several
    frames the newest."""
    newest = {c: image[-1] if image.ndim == 4 else image for c, image in images.items()}
    return {c: _file(image, "PNG", compress_level=1) for c, image in newest.items()}


def _file(image: np.ndarray, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()
