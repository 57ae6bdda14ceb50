"""The interface between server boundaries and authenticators: requests and error responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol
from urllib.parse import unquote

from otel_token_relay.credentials import Credentials
from otel_token_relay.reasons import Reason


class Authenticator(Protocol):
    """Decides whether a request may reach the application. Its methods must not raise."""

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Return the error response, or ``None`` to accept the request and mark its token as verified."""
        ...

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Do the same as `check` without blocking the event loop."""
        ...

    def prepare(self) -> None:
        """Perform the first check's setup ahead of time, outside any request; see `Runtime.prepare`."""
        ...


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The complete response to a request that does not reach the application.

    The response is an error, except that a request for protected resource metadata gets a 200 or 204 response.

    Attributes:
        status: The HTTP status code, which is mapped to a gRPC status code for gRPC requests.
        error: A word from a closed set; empty if the response is not an error.
        headers: All HTTP response headers.
        body: The error, as JSON.
        reason: Why the request is refused, as a word from a closed set. This word is intended for operators and is not
            part of the response. ``None`` if the reason is the same as *error*.
        claim: The claim that violates a rule, for use by operators; ``None`` unless exactly one claim violates a rule.
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
        """Return the same response with a *reason* and, if a single claim is the cause, that claim's name."""
        return replace(self, reason=reason, claim=claim)


CANNOT_VERIFY: Final = ErrorResponse.build(503, "temporarily_unavailable", ("Retry-After", "60"))
"""The response while verification is required but impossible: an operator must correct a setting or a program."""


# What may follow the `/` in an entry that ends with `/*`: whole segments, except `.` and `..`, that consist of
# characters that no server or framework decodes, removes, or interprets. The last segment may be empty.
_are_plain_segments: Final = re.compile(
    r"(?:(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+(?:/|\Z))*", re.ASCII
).fullmatch


# Browsers send both of these headers in every preflight request, and never send any of the headers below.
_PREFLIGHT: Final = ("origin", "access-control-request-method")
_NOT_PREFLIGHT: Final = (
    "content-length",
    "transfer-encoding",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
)


class Exclusions:
    """The paths that do not require a token.

    Args:
        entries: Paths that must match exactly, and paths followed by ``/*``, which match all paths below them.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        entries = [*entries]
        self._exact = frozenset(entry for entry in entries if not entry.endswith("/*"))
        self._prefixes = tuple(entry[:-1] for entry in entries if entry.endswith("/*"))

    def cover(self, path: RequestPath) -> bool:
        """Return whether the path is excluded and the client cannot have chosen its mount point."""
        routed = path.routed
        if routed is None or not (routed in self._exact or self._covers_below(routed, path.is_encoded)):
            return False
        return not path.is_mount_chosen

    def _covers_below(self, routed: str, is_encoded: bool) -> bool:
        # A prefix is less reliable than a whole path: an application that decodes, normalizes, or splits the remainder
        # differently may route the request elsewhere.
        return not is_encoded and any(
            routed.startswith(prefix) and _are_plain_segments(routed[len(prefix) :]) is not None
            for prefix in self._prefixes
        )


def needs_no_token(credentials: Credentials, path: RequestPath, exclusions: Exclusions) -> bool:
    """Return whether a request to an excluded path, or a CORS preflight request, is served without verification."""
    return exclusions.cover(path) or (credentials is Reason.ABSENT and path.is_preflight)


class RequestPath:
    """A request's path and method, as seen by one boundary.

    Args:
        routed: The path that the application uses for routing, without the mount point; ``None`` if applications could
            interpret the path differently.
        whole: The path, including the mount point. An inner boundary that sees the same whole path serves part of the
            same application.
        header_values: Returns the values of all header lines.
        method: The HTTP method in uppercase; empty for WebSockets and for protocols other than HTTP.
        values_of: Returns the values of the header with the given lowercase name.
        is_encoded: Whether the path, as sent by the client, contains percent-encoded characters.
    """

    __slots__ = ("_header_values", "_values_of", "is_encoded", "method", "routed", "whole")

    def __init__(
        self,
        routed: str | None,
        whole: str,
        header_values: Callable[[], Iterable[str]] | None = None,
        *,
        method: str = "",
        values_of: Callable[[str], Sequence[str | bytes]] | None = None,
        is_encoded: bool = False,
    ) -> None:
        self.routed: str | None = routed
        self.whole: str = whole
        self.method: str = method
        self.is_encoded: bool = is_encoded
        self._header_values = header_values
        self._values_of = values_of

    @property
    def is_preflight(self) -> bool:
        """Whether this is a CORS preflight request as sent by browsers: without a body or a method override.

        Source: Fetch standard, section 4.8.
        """
        values_of = self._values_of
        if self.method != "OPTIONS" or values_of is None:
            return False
        return all(any(values_of(name)) for name in _PREFLIGHT) and not any(
            value not in ("0", b"0") for name in _NOT_PREFLIGHT for value in values_of(name)
        )

    @property
    def is_mount_chosen(self) -> bool:
        """Whether the client may have chosen the mount point.

        Servers and middleware, even middleware inside this boundary, read the mount point from headers
        (``Daphne-Root-Path``, ``SCRIPT_NAME``, ``X-Forwarded-Prefix``, ``X-Script-Name``). By sending the start of the
        path in such a header, a client could disguise any path as an excluded one.
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
