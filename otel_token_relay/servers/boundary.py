"""What the boundaries of ASGI and WSGI share: one request's lease and token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from opentelemetry.context import Context, set_value

from otel_token_relay.context import REFUSED_KEY, with_token
from otel_token_relay.door import admit
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease

_logger = logging.getLogger(__name__)

# Where a request (an ASGI scope, a WSGI environ) keeps its boundary, so that the boundaries of
# nested applications, instrumentation and middleware are one.
BOUNDARY_KEY = "otel_token_relay.boundary"


class Boundary:
    """One request: its token, if it brings one, and the lease that ends with the response."""

    __slots__ = ("_is_refused", "_lease", "_linger", "token")

    token: BearerToken | None

    def __init__(self, values_of: Callable[[str], Sequence[str]], settings: Settings) -> None:
        self._lease = Lease()
        self._linger = settings.linger
        try:
            self.token = admit(values_of, settings, lease=self._lease)
            self._is_refused = self.token is None and any(map(values_of, settings.source_headers))
        except Exception:  # headers that no server should hand over; the request goes on without
            _logger.debug("the headers of a request cannot be read", exc_info=True)
            self.token = None
            self._is_refused = True

    def context(self) -> Context:
        """Give the current context with the request's token, or with none.

        What was refused here, instrumentation may be able to read: for some servers it sees one of
        two header lines. It is kept from that for as long as the request lasts.
        """
        context = with_token(self.token)
        return set_value(REFUSED_KEY, self._lease, context) if self._is_refused else context

    @property
    def is_open(self) -> bool:
        """Whether the request is still being answered."""
        return self._lease.is_open

    def close(self) -> None:
        """End the lease: the response is complete, or will never be."""
        self._lease.end(linger=self._linger)
