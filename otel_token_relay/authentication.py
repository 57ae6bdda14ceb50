"""The types that make up the interface between server boundaries and authenticators."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol
from urllib.parse import unquote

from otel_token_relay.credentials import Credentials
from otel_token_relay.reasons import Reason


class Authenticator(Protocol):
    """An object that decides whether to accept a request. An authenticator's methods must not raise exceptions."""

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Return an error response, or ``None`` to accept the request and mark its token as verified."""
        ...

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Check the request as `check` does, but without blocking the event loop."""
        ...

    def prepare(self) -> None:
        """Perform the setup for the first check. Call this method outside any request; see `Runtime.prepare`."""
        ...


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """The complete response to a request that is not passed to the application.

    A request for protected resource metadata gets a 200 or 204 response. All other responses are errors.

    Attributes:
        status: The HTTP status code, which is mapped to a gRPC status code for gRPC requests.
        error: The error code, from a closed set; empty if the response is not an error.
        headers: All HTTP response headers.
        body: The JSON response body.
        reason: The reason for the error, from a closed set; ``None`` if the reason is the same as *error*. The reason
            is recorded for operators and is not sent to the client.
        claim: The name of the claim that failed verification; ``None`` unless exactly one claim failed. The name is
            recorded for operators.
    """

    status: int
    error: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reason: str | None = field(default=None, compare=False)
    claim: str | None = field(default=None, compare=False)

    @classmethod
    def build(cls, status: int, error: str, *headers: tuple[str, str]) -> ErrorResponse:
        """Build an error response that must not be cached (RFC 9111, section 5.2.2.5)."""
        body = f'{{"error":"{error}"}}'.encode("ascii")
        fixed = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        )
        return cls(status, error, (*fixed, *headers), body)

    def because(self, reason: str, claim: str | None = None) -> ErrorResponse:
        """Return a copy of the response with a reason and, if a single claim caused the error, that claim's name."""
        return replace(self, reason=reason, claim=claim)


CANNOT_VERIFY: Final = ErrorResponse.build(503, "temporarily_unavailable", ("Retry-After", "60"))
"""The response to send if a configuration or programming error prevents required verification."""


# Matches the part of a path that corresponds to the `*` in an entry. Segments can contain only characters that servers
# and frameworks do not decode, remove, or interpret. The segments `.` and `..` are not allowed, but the last segment
# can be empty.
_are_plain_segments: Final = re.compile(
    r"(?:(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+(?:/|\Z))*", re.ASCII
).fullmatch


# The headers that browsers send with every preflight request.
_PREFLIGHT: Final = ("origin", "access-control-request-method")
# The headers that browsers never send with a preflight request.
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
        entries: The excluded paths. An entry that ends with ``/*`` excludes all paths below its prefix.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        entries = [*entries]
        self._exact = frozenset(entry for entry in entries if not entry.endswith("/*"))
        self._prefixes = tuple(entry[:-1] for entry in entries if entry.endswith("/*"))

    def cover(self, path: RequestPath) -> bool:
        """Return whether the path is excluded.

        The result is always ``False`` if the client might have chosen the mount point.
        """
        routed = path.routed
        if routed is None or not (routed in self._exact or self._covers_below(routed, path.is_encoded)):
            return False
        return not path.is_mount_chosen

    def _covers_below(self, routed: str, is_encoded: bool) -> bool:
        # A prefix match is riskier than an exact match, because an application that decodes, normalizes, or splits the
        # rest of the path differently might route the request elsewhere.
        return not is_encoded and any(
            routed.startswith(prefix) and _are_plain_segments(routed[len(prefix) :]) is not None
            for prefix in self._prefixes
        )


def needs_no_token(credentials: Credentials, path: RequestPath, exclusions: Exclusions) -> bool:
    """Return whether a request needs no token because it is a CORS preflight request or its path is excluded."""
    return exclusions.cover(path) or (credentials is Reason.ABSENT and path.is_preflight)


class RequestPath:
    """A request's path and method, as a server boundary sees them.

    Args:
        routed: The path that the application uses for routing, without the mount point; ``None`` if the path
            is ambiguous.
        whole: The path, including the mount point. An inner boundary with the same whole path belongs to the same
            application.
        header_values: A function that returns the values of all header lines.
        method: The HTTP method in uppercase; empty for WebSockets and for protocols other than HTTP.
        values_of: A function that returns the values of the header with the given lowercase name.
        is_encoded: Whether the client sent percent-encoded characters in the path.
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
        """Whether the request looks like a browser's CORS preflight request, which has no body or method override.

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
        """Whether the client might have chosen the mount point.

        Some servers and middleware, including middleware inside this boundary, read the mount point from a request
        header, such as ``Daphne-Root-Path``, ``SCRIPT_NAME``, ``X-Forwarded-Prefix``, or ``X-Script-Name``. A client
        that sends the first part of a path in such a header could make any path look like an excluded path.
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
