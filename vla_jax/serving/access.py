"""Who may ask, and how the connection is encrypted."""

from __future__ import annotations

import hmac
import ssl
from pathlib import Path

import grpc

from vla_jax.serving.settings import ServerSettings


class Access:
    """The server's token and certificate.

    Raises:
      ValueError: an empty token file; a file that is not there or no certificate.
    """

    def __init__(self, settings: ServerSettings):
        self._token = b""
        if settings.token_file:
            self._token = _read(settings.token_file, "token_file").strip()
            if not self._token:
                raise ValueError(f"token_file {settings.token_file!r} is empty")
        self._certificate, self._key = settings.tls_certificate, settings.tls_key

    def allows(self, authorization: str) -> bool:
        """Whether a header says "Bearer TOKEN", or "Api-Key TOKEN" as openpi's client does."""
        if not self._token:
            return True
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode("utf-8", "replace")
        return scheme.lower() in ("bearer", "api-key") and hmac.compare_digest(given, self._token)

    def of_http(self) -> ssl.SSLContext | None:
        """None: without TLS."""
        if not self._certificate:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as e:
            raise ValueError(
                f"tls_certificate {self._certificate!r} with tls_key {self._key!r}: {e}"
            ) from e
        return context

    def of_grpc(self) -> grpc.ServerCredentials | None:
        """None: without TLS."""
        if not self._certificate:
            return None
        key, chain = _read(self._key, "tls_key"), _read(self._certificate, "tls_certificate")
        return grpc.ssl_server_credentials([(key, chain)])


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise ValueError(f"{what} {path!r} cannot be read: {e}") from e
