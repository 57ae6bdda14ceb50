"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from otel_token_relay.credentials import Credentials


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A whole answer to a request that does not get to the application.

    Attributes:
        status: Of HTTP; gRPC has codes of its own that say the same.
        error: What is wrong, in one word of a closed set.
        headers: All of them, for an answer over HTTP.
        body: The same error as JSON.
    """

    status: int
    error: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def build(cls, status: int, error: str, *headers: tuple[str, str]) -> ErrorResponse:
        """Build an answer that nobody may keep (RFC 9111, section 5.2.2.5)."""
        body = f'{{"error":"{error}"}}'.encode("ascii")
        fixed = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        )
        return cls(status, error, (*fixed, *headers), body)


class RequestPath:
    """The path of one request, as seen at one boundary.

    Args:
        routed: What the application behind this boundary routes by, without the mount point; ``None`` if
            applications would not agree on it.
        whole: The path with its mount point. A boundary further in that sees the same one serves a part of
            the application that the outer boundary serves.
        header_values: Returns the value of every header line.
    """

    __slots__ = ("_header_values", "routed", "whole")

    def __init__(
        self, routed: str | None, whole: str, header_values: Callable[[], Iterable[str]] | None = None
    ) -> None:
        self.routed = routed
        self.whole = whole
        self._header_values = header_values

    def is_one_of(self, excluded: Container[object]) -> bool:
        """Return whether the path is excluded and the caller cannot have moved it there."""
        return self.routed in excluded and not self.is_mount_chosen

    @property
    def is_mount_chosen(self) -> bool:
        """Whether the caller may have chosen the mount point.

        Servers and middleware take it from headers (``Daphne-Root-Path``, ``SCRIPT_NAME``,
        ``X-Forwarded-Prefix``, ``X-Script-Name``), also further in than this boundary. So a header that
        names the beginning of the path could move any path of the application under an excluded one.
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


class Authenticator(Protocol):
    """Check what the door has read, once for each request. It must not raise."""

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Give ``None`` to let the request in; an accepted token is marked as verified then."""
        ...

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """The same, awaited."""
        ...

    def prepare(self) -> None:
        """Do, outside of every request and lock, what the first check would do otherwise; see `Relay.prepare`."""
        ...
