"""What the boundaries of all servers share: one request's lease and token."""

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

# Where a request (an ASGI scope, a WSGI environ) keeps its boundary, so that the boundaries of
# nested applications, instrumentation and middleware are one.
BOUNDARY_KEY = "otel_token_relay.boundary"


class _RequestLease(Lease):
    """The lease of a request, as opposed to one that somebody has opened by hand."""

    __slots__ = ()


class Boundary:
    """One request: its token, if it brings one, and the lease that ends with the response.

    Attributes:
        reading: The token, or why there is none.
        token: The token, or ``None``.
        passed: What has let this request in, and on which whole path.
        lines: The header lines that the token was read from, none of which can change in its place;
            ``None`` if reading them again costs no more than comparing them.
    """

    __slots__ = (
        "_header_lines",
        "_is_answering",
        "_is_refused",
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
        self._is_answering = True
        self.lines = None
        self._header_lines, self.credentials = self._read(values_of)
        self.token = self.credentials if isinstance(self.credentials, BearerToken) else None
        self._is_refused = self.token is None and self.credentials is not Reason.ABSENT
        if self._is_refused:
            _logger.debug("no token taken from the request: %s", self.credentials)
        self.admitted_by = ()

    def check(self, authenticator: Authenticator | None, path: RequestPath) -> ErrorResponse | None:
        """Have *gate* check this request, unless it has let it in on this path; ``None`` lets it in.

        A refusal is not remembered, nor a check that is still under way: what is further in may be
        called again, by a middleware that tries again or that makes several requests of one.

        Args:
            gate: ``None`` where nothing is checked.
            path: The path at this boundary. For gRPC the full name of the method.
        """
        if authenticator is None or self._was_admitted(authenticator, path):
            return None
        return self._note(authenticator, path, authenticator.check(self.credentials, path))

    async def check_async(self, authenticator: Authenticator | None, path: RequestPath) -> ErrorResponse | None:
        """The same as `check`, awaited."""
        if authenticator is None or self._was_admitted(authenticator, path):
            return None
        return self._note(authenticator, path, await authenticator.check_async(self.credentials, path))

    def _was_admitted(self, authenticator: Authenticator, path: RequestPath) -> bool:
        # An exclusion that let the request in further out does not hold below a mount point that the caller chose.
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
        """Whether a verifier has accepted the token of this request."""
        return self.token is not None and self.token.verification is not None

    def context(self) -> Context:
        """Give the current context with the request's token, or with none.

        What was refused here, instrumentation may be able to read: for some servers it sees one of
        two header lines. It is kept from that for as long as the request lasts.
        """
        context = with_token(self.token)
        if self._is_refused or REFUSED_KEY in context:
            context = otel_context.set_value(REFUSED_KEY, self._lease if self._is_refused else None, context)
        return context

    def still_applies_to(self, values_of: ValuesOf, lines: Sequence[object] | None = None) -> bool:
        """Whether an application further in may go on under this boundary.

        It may not once the response is complete, where a middleware has exchanged or taken out
        the credentials in between, and in a context that is not this request's: that of a
        worker task which another request has started, or one that was built from nothing. What
        was bound by hand in between (`use_token`) is meant, and stays.

        Args:
            values_of: See `otel_token_relay.credentials.find`.
            lines: The request's header lines by now, as in the attribute.
        """
        context = otel_context.get_current()
        if not self._is_answering or TOKEN_KEY not in context:
            return False
        bound = bound_token(context)
        if bound is not None and bound.lease is not self._lease and isinstance(bound.lease, _RequestLease):
            return False
        if self.lines is not None and self.lines == lines:
            return True
        try:
            source = find(values_of, self._settings)
        except Exception:  # as below
            return self.credentials is Reason.MALFORMED
        # The same text is the same token, which need not be read again.
        return source == self._header_lines or read(source, self._settings) == self.credentials

    def close(self) -> None:
        """End the lease: the response is complete, or will never be."""
        self._is_answering = False
        self._lease.end(linger=self._settings.linger)

    def _read(self, values_of: ValuesOf) -> tuple[HeaderLines | None, Credentials]:
        try:
            source = find(values_of, self._settings)
            return source, read(source, self._settings, lease=self._lease)
        except Exception:  # headers that no server should hand over; the request goes on without
            _logger.debug("the headers of a request cannot be read", exc_info=True)
            return None, Reason.MALFORMED
