"""What the boundaries of ASGI and WSGI share: one request's lease and token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from otel_token_relay.door import admit
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease

_logger = logging.getLogger(__name__)

# Where a request (an ASGI scope, a WSGI environ) keeps its boundary, so that the boundaries of
# nested applications, instrumentation and middleware are one.
BOUNDARY_KEY = "otel_token_relay.boundary"


class Boundary:
    """One request: its token, if it brings one, and the lease that ends with the response."""

    __slots__ = ("_lease", "_linger", "is_open", "token")

    token: BearerToken | None
    is_open: bool  # Whether the request is still being answered; the lease may linger longer.

    def __init__(self, values_of: Callable[[str], Sequence[str]], settings: Settings) -> None:
        self.is_open = True
        self._lease = Lease()
        self._linger = settings.linger
        try:
            self.token = admit(values_of, settings, lease=self._lease)
        except Exception:  # headers that no server should hand over; the request goes on without
            _logger.debug("the headers of a request cannot be read", exc_info=True)
            self.token = None

    def close(self) -> None:
        """End the lease: the response is complete, or will never be."""
        self.is_open = False
        self._lease.end(linger=self._linger)
