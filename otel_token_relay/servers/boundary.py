"""What the boundaries of ASGI and WSGI share: one request's lease and token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from otel_token_relay.door import Gate, Reading, read
from otel_token_relay.reasons import Reason
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease

_logger = logging.getLogger(__name__)

# Where a request (an ASGI scope, a WSGI environ) keeps its boundary, so that the boundaries of
# nested applications, instrumentation and middleware are one.
BOUNDARY_KEY = "otel_token_relay.boundary"


class Boundary:
    """One request: its token, if it brings one, and the lease that ends with the response.

    Attributes:
        reading: The token, or why there is none.
        token: The token, or ``None``.
        gates: What has checked this request so far, whatever it came to.
    """

    __slots__ = ("_lease", "_linger", "gates", "reading", "token")

    reading: Reading
    token: BearerToken | None
    gates: tuple[Gate, ...]

    def __init__(self, values_of: Callable[[str], Sequence[str]], settings: Settings) -> None:
        self._lease = Lease()
        self._linger = settings.linger
        try:
            self.reading = read(values_of, settings, lease=self._lease)
        except Exception:  # headers that no server should hand over; the request goes on without
            _logger.debug("the headers of a request cannot be read", exc_info=True)
            self.reading = Reason.MALFORMED
        self.token = self.reading if isinstance(self.reading, BearerToken) else None
        if self.token is None and self.reading is not Reason.ABSENT:
            _logger.debug("no token taken from the request: %s", self.reading)
        self.gates = ()

    def must_pass(self, gate: Gate | None) -> bool:
        """Whether *gate* has yet to check this request; the next time, it has."""
        if gate is None or any(passed is gate for passed in self.gates):
            return False
        self.gates = (*self.gates, gate)
        return True

    @property
    def is_open(self) -> bool:
        """Whether the request is still being answered."""
        return self._lease.is_open

    def close(self) -> None:
        """End the lease: the response is complete, or will never be."""
        self._lease.end(linger=self._linger)
