"""Shared code for hooks that retry a request with a new token; see `otel_token_relay.retries`."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from otel_token_relay.origin import Target
from otel_token_relay.relay import Hop
from otel_token_relay.retries import UNAUTHORIZED

_Request = TypeVar("_Request")


def is_repeatable(body: object) -> bool:
    """Return whether a request's body is empty or in memory, which is required for a retry.

    A file might be shared, and an iterator cannot be consumed twice.
    """
    return body is None or type(body) in (bytes, str, bytearray)


def check_target(hop: Hop, target_of: Callable[[_Request], Target], request: _Request) -> None:
    """Check that a retried request goes to the same server as the original request.

    Raises:
        ConnectionError: The retry would go to a different server, for example, because a tunnel was closed.
    """
    try:
        is_same = hop.is_for(target_of(request))
    except Exception:
        is_same = False
    if not is_same:
        raise ConnectionError("the connection to the server has been lost")


class Result:
    """A context manager that reports the result of a retry, even if the retry raises an exception.

    Other requests wait for the result.

    Attributes:
        status: The status of the retry's response. Set this attribute when the response arrives.
    """

    def __init__(self, hop: Hop) -> None:
        self._hop = hop
        self.status: int = UNAUTHORIZED

    def __enter__(self) -> Result:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hop.settle(is_accepted=self.status != UNAUTHORIZED)
