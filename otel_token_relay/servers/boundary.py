"""What the boundaries of ASGI and WSGI share: one request's lease and token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from opentelemetry import context as otel_context

from otel_token_relay.context import TOKEN_KEY, bound_token
from otel_token_relay.door import admit
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease

_logger = logging.getLogger(__name__)

ValuesOf = Callable[[str], Sequence[str]]

# Where a request (an ASGI scope, a WSGI environ) keeps its boundary, so that the boundaries of
# nested applications, instrumentation and middleware are one.
BOUNDARY_KEY = "otel_token_relay.boundary"


class _RequestLease(Lease):
    """The lease of a request, as opposed to one that somebody has opened by hand."""

    __slots__ = ()


class Boundary:
    """One request: its token, if it brings one, and the lease that ends with the response."""

    __slots__ = ("_is_answering", "_lease", "_settings", "token")

    token: BearerToken | None

    def __init__(self, values_of: ValuesOf, settings: Settings) -> None:
        self._lease = _RequestLease()
        self._settings = settings
        self._is_answering = True
        self.token = self._admit(values_of)

    def covers(self, values_of: ValuesOf) -> bool:
        """Whether an application further in may go on under this boundary.

        It may not once the response is complete, where a middleware has exchanged or taken out
        the credentials in between, and in a context that is not this request's: that of a
        worker task which another request has started, or one that was built from nothing. What
        was bound by hand in between (`use_token`) is meant, and stays.
        """
        context = otel_context.get_current()
        if not self._is_answering or TOKEN_KEY not in context:
            return False
        bound = bound_token(context)
        if bound is not None and bound.lease is not self._lease and isinstance(bound.lease, _RequestLease):
            return False
        return self._admit(values_of) == self.token

    def close(self) -> None:
        """End the lease: the response is complete, or will never be."""
        self._is_answering = False
        self._lease.end(linger=self._settings.linger)

    def _admit(self, values_of: ValuesOf) -> BearerToken | None:
        try:
            return admit(values_of, self._settings, lease=self._lease)
        except Exception:  # headers that no server should hand over; the request goes on without
            _logger.debug("the headers of a request cannot be read", exc_info=True)
            return None
