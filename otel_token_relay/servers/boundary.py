"""The part that all server boundaries share: the token and the lease of one request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.context import REFUSED_KEY, TOKEN_KEY, bound_token, with_token
from otel_token_relay.credentials import Credentials, HeaderLines, find, read
from otel_token_relay.reasons import Reason
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease

_logger = logging.getLogger(__name__)

ValuesOf = Callable[[str], Sequence[str | bytes]]

# The key under which a request (an ASGI scope or a WSGI environ) stores its boundary, so that nested
# applications, instrumentation and middleware use the same one.
BOUNDARY_KEY = "otel_token_relay.boundary"


class _RequestLease(Lease):
    """The lease of a request, as opposed to one that `use_token` opens."""

    __slots__ = ()


class Boundary:
    """A request's token, if it has one, and the lease that ends with the response.

    Attributes:
        credentials: The token, or the reason why there is none.
        token: The token, or ``None``.
        admitted_by: The authenticators that have accepted this request, each with the whole path it accepted.
        lines: The immutable header lines from which the token was read; ``None`` if reading them again is
            as cheap as comparing them.
    """

    __slots__ = (
        "_header_lines",
        "_is_refused",
        "_is_responding",
        "_lease",
        "_settings",
        "admitted_by",
        "credentials",
        "lines",
        "token",
    )

    credentials: Credentials
    token: BearerToken | None
    admitted_by: tuple[tuple[Authenticator, str], ...]
    lines: Sequence[object] | None

    def __init__(self, values_of: ValuesOf, settings: Settings) -> None:
        self._lease = _RequestLease()
        self._settings = settings
        self._is_responding = True
        self.lines = None
        self._header_lines, self.credentials = self._read(values_of)
        self.token = self.credentials if isinstance(self.credentials, BearerToken) else None
        self._is_refused = self.token is None and self.credentials is not Reason.ABSENT
        if self._is_refused:
            _logger.debug("no token taken from the request: %s", self.credentials)
        self.admitted_by = ()

    def check(self, authenticator: Authenticator | None, path: RequestPath) -> ErrorResponse | None:
        """Return the error response; ``None`` if *authenticator* accepts or has already accepted this request and path.

        Only successful checks are cached. Middleware may retry a request or split it into several, so failed
        and pending checks run again.

        Args:
            authenticator: ``None`` if requests are not verified.
            path: The path at this boundary. For gRPC, this is the full method name.
        """
        if authenticator is None or self._was_admitted(authenticator, path):
            return None
        return self._note(authenticator, path, authenticator.check(self.credentials, path))

    async def check_async(self, authenticator: Authenticator | None, path: RequestPath) -> ErrorResponse | None:
        """Do the same as `check` without blocking the event loop."""
        if authenticator is None or self._was_admitted(authenticator, path):
            return None
        return self._note(authenticator, path, await authenticator.check_async(self.credentials, path))

    def _was_admitted(self, authenticator: Authenticator, path: RequestPath) -> bool:
        # An exclusion that applied at an outer boundary does not apply below a mount point that the client chose.
        return any(
            admitted_by is authenticator and where == path.whole for admitted_by, where in self.admitted_by
        ) and (self._is_verified or not path.is_mount_chosen)

    def _note(
        self, authenticator: Authenticator, path: RequestPath, error_response: ErrorResponse | None
    ) -> ErrorResponse | None:
        if error_response is None:
            self.admitted_by = (*self.admitted_by, (authenticator, path.whole))
        return error_response

    @property
    def _is_verified(self) -> bool:
        """Whether a verifier has accepted this request's token."""
        return self.token is not None and self.token.verification is not None

    def context(self) -> Context:
        """Return the current context with the request's token, or with no token.

        Instrumentation may see only one of two duplicate headers and accept it. Rejected credentials are
        therefore marked, so that ``extract`` ignores them until the request ends.
        """
        context = with_token(self.token)
        if self._is_refused or REFUSED_KEY in context:
            context = otel_context.set_value(REFUSED_KEY, self._lease if self._is_refused else None, context)
        return context

    def still_applies_to(self, values_of: ValuesOf, lines: Sequence[object] | None = None) -> bool:
        """Return whether an inner application may use this boundary.

        It must not do so once the response is complete, or if middleware has replaced or removed the credentials.
        The same applies if the current context is empty or belongs to another request, as in a worker task. A
        token that the application has bound with `use_token` stays bound.

        Args:
            values_of: See `otel_token_relay.credentials.find`.
            lines: The current header lines, to compare with the attribute `lines`.
        """
        context = otel_context.get_current()
        if not self._is_responding or TOKEN_KEY not in context:
            return False
        bound = bound_token(context)
        if bound is not None and bound.lease is not self._lease and isinstance(bound.lease, _RequestLease):
            return False
        if self.lines is not None and self.lines == lines:
            return True
        try:
            source = find(values_of, self._settings)
        except Exception:  # invalid headers, as in `_read`
            return self.credentials is Reason.MALFORMED
        # Identical header lines contain the same token, so they are not parsed again.
        return source == self._header_lines or read(source, self._settings) == self.credentials

    def close(self) -> None:
        """End the lease, because the response is complete or has been aborted."""
        self._is_responding = False
        self._lease.end(linger=self._settings.linger)

    def _read(self, values_of: ValuesOf) -> tuple[HeaderLines | None, Credentials]:
        try:
            source = find(values_of, self._settings)
            return source, read(source, self._settings, lease=self._lease)
        except Exception:  # invalid headers from the server; the request continues without a token
            _logger.debug("cannot read the request's headers", exc_info=True)
            return None, Reason.MALFORMED
