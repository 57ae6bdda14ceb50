"""The interface between server boundaries and authenticators: the request path and the error response."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol
from urllib.parse import unquote

from otel_token_relay.credentials import Credentials


class Authenticator(Protocol):
    """Decides whether a request may reach the application. Its methods must not raise."""

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Return the error response, or ``None`` to accept the request, whose token is then marked as verified."""
        ...

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Do the same as `check` without blocking the event loop."""
        ...

    def prepare(self) -> None:
        """Do the first check's setup in advance, outside any request; see `Runtime.prepare`."""
        ...


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The complete response to a request that does not reach the application.

    Attributes:
        status: The HTTP status code, which is translated to a gRPC status code for gRPC requests.
        error: One word from a closed set.
        headers: All headers of the HTTP response.
        body: The error as JSON.
        reason: Why the request is refused, for operators; one word from a closed set. The response does not contain
            it. ``None`` if it is *error*.
        claim: The claim that does not satisfy a rule, for operators; ``None`` if there is not exactly one.
    """

    status: int
    error: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reason: str | None = field(default=None, compare=False)
    claim: str | None = field(default=None, compare=False)

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

    def because(self, reason: str, claim: str | None = None) -> ErrorResponse:
        """Return the same response with a *reason* and, if one claim is the cause, its name."""
        return replace(self, reason=reason, claim=claim)


CANNOT_VERIFY: Final = ErrorResponse.build(503, "temporarily_unavailable", ("Retry-After", "60"))
"""The response if requests must be verified and an operator must first correct a setting or a program."""


class RequestPath:
    """A request's path, as seen by one boundary.

    Args:
        routed: The path that the application routes by, without the mount point; ``None`` if
            applications could read the path differently.
        whole: The path including the mount point. An inner boundary that sees the same whole path
            serves part of the same application.
        header_values: Returns the values of all header lines.
    """

    __slots__ = ("_header_values", "routed", "whole")

    def __init__(
        self, routed: str | None, whole: str, header_values: Callable[[], Iterable[str]] | None = None
    ) -> None:
        self.routed: str | None = routed
        self.whole: str = whole
        self._header_values = header_values

    def is_one_of(self, excluded: Container[object]) -> bool:
        """Return whether the path is excluded and the client cannot have chosen its mount point."""
        return self.routed in excluded and not self.is_mount_chosen

    @property
    def is_mount_chosen(self) -> bool:
        """Whether the client may have chosen the mount point.

        Servers and middleware, even middleware inside this boundary, read the mount point from headers
        (``Daphne-Root-Path``, ``SCRIPT_NAME``, ``X-Forwarded-Prefix``, ``X-Script-Name``). By sending the
        beginning of the path in such a header, a client could disguise any path as an excluded one.
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
