"""The interface between server boundaries and authenticators: the path of a request, and the error response to it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from otel_token_relay.credentials import Credentials


class Authenticator(Protocol):
    """Decides whether a request may reach the application. Must not raise."""

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Return the error response, or ``None`` to accept the request; then its token is marked as verified."""
        ...

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Do the same as `check` without blocking the event loop."""
        ...

    def prepare(self) -> None:
        """Do in advance what the first check would otherwise do, outside of every request; see `Runtime.prepare`."""
        ...


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The complete response to a request that does not reach the application.

    Attributes:
        status: The HTTP status; for gRPC, it is translated to a status code.
        error: One word from a closed set.
        headers: All headers of the HTTP response.
        body: The error as JSON.
    """

    status: int
    error: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def build(cls, status: int, error: str, *headers: tuple[str, str]) -> ErrorResponse:
        """Build a response that must not be cached (RFC 9111, section 5.2.2.5)."""
        body = f'{{"error":"{error}"}}'.encode("ascii")
        fixed = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        )
        return cls(status, error, (*fixed, *headers), body)


class RequestPath:
    """The path of one request, as one boundary sees it.

    Args:
        routed: The path without the mount point, by which the application routes; ``None`` if
            applications would read it differently.
        whole: The path with the mount point. An inner boundary with the same whole path serves a part
            of the same application.
        header_values: Returns the value of every header line.
    """

    __slots__ = ("_header_values", "routed", "whole")

    def __init__(
        self, routed: str | None, whole: str, header_values: Callable[[], Iterable[str]] | None = None
    ) -> None:
        self.routed: str | None = routed
        self.whole: str = whole
        self._header_values = header_values

    def is_one_of(self, excluded: Container[object]) -> bool:
        """Return whether the path is excluded and the client cannot have moved it there."""
        return self.routed in excluded and not self.is_mount_chosen

    @property
    def is_mount_chosen(self) -> bool:
        """Whether the client may have chosen the mount point.

        Servers and middleware read it from headers (``Daphne-Root-Path``, ``SCRIPT_NAME``,
        ``X-Forwarded-Prefix``, ``X-Script-Name``), also inside this boundary. A header with the
        beginning of the path could therefore move any path of the application below an excluded one.
        """
        if self.routed is None:
            return True
        mount = self.whole.removesuffix(self.routed).strip("/")
        if self._header_values is None or not (mount or self.whole.count("/") > 1):
            return False
        for value in self._header_values():
            for part in value.split(","):
                for text in (part, unquote(part)):
                    name = text.strip(" \t/")
                    if name and (name == mount or self.whole.startswith(f"/{name}/")):
                        return True
        return False
