"""The base class of all server boundaries. A boundary manages a request's token and lease."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay import context as binding
from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.context import (
    REFUSED_KEY,
    TOKEN_KEY,
    UNUSED_KEY,
    bound_token,
    unused_watchers,
    with_token,
    with_unused,
)
from otel_token_relay.credentials import Credentials, Source, locate, read
from otel_token_relay.otel import get_current
from otel_token_relay.reasons import Reason
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.unused_credentials import UnusedCredentials, find_unused, may_have_unused

_logger = logging.getLogger("otel_token_relay")

ValuesOf = Callable[[str], Sequence[str | bytes]]

# The key for the boundary in a request's ASGI scope or WSGI environ. Nested applications, instrumentation, and
# middleware share the boundary.
BOUNDARY_KEY = "otel_token_relay.boundary"


class RequestLease(Lease):
    """A lease for an incoming request; `use_token` creates a plain `Lease` instead.

    The lease records the thread and, under asyncio, the task that serves the request.
    """

    __slots__ = ("_task", "_thread")

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._task = _current_task()

    def move_here(self) -> None:
        """Record that the current thread and task now serve the request."""
        self._thread = threading.get_ident()
        self._task = _current_task()

    @property
    def is_here(self) -> bool:
        """Whether the calling code is running in the thread and, under asyncio, the task that serves the request."""
        return self._thread == threading.get_ident() and self._task == _current_task()


def _current_task() -> int | None:
    """Return an ID for the current asyncio task instead of a reference, which would keep the task alive."""
    asyncio: Any = sys.modules.get("asyncio")  # importing asyncio would take 30 ms
    if asyncio is None or (loop := asyncio._get_running_loop()) is None:
        return None
    return id(asyncio.current_task(loop))


class Boundary:
    """A request's token and the lease that ends with the response.

    Args:
        source: The header that contains the credentials; see `otel_token_relay.credentials.locate`.
        values_of: A function that returns the field lines of the header with the given lowercase name. The boundary
            calls this function only if the request might contain unused credentials.
        settings: The settings, which specify how to read the header and when the lease ends.

    Attributes:
        credentials: The token, or the reason why the request has no usable token.
        token: The token; ``None`` if the request has no usable token.
        admitted_by: The authenticators that have accepted this request, each with the whole and routed paths that it
            checked; see `RequestPath`.
    """

    __slots__ = (
        "_is_refused",
        "_is_responding",
        "_lease",
        "_settings",
        "_source",
        "_unused",
        "admitted_by",
        "credentials",
        "token",
    )

    credentials: Credentials
    token: BearerToken | None
    admitted_by: tuple[tuple[Authenticator, str, str | None], ...]

    def __init__(self, source: Source, values_of: ValuesOf, settings: Settings) -> None:
        binding.has_served = True
        self._source = source
        self._settings = settings
        self._is_responding = True
        self._unused: UnusedCredentials | None = None
        self.admitted_by = ()
        if source is None:
            self._lease: RequestLease | None = None
            self.credentials, self.token = Reason.ABSENT, None
            self._is_refused = False
            if may_have_unused(settings, is_present=False, token=None):
                self._find_unused(values_of)
            return
        self._lease = RequestLease()
        self.credentials = credentials = read(source, settings, lease=self._lease)
        self.token = credentials if isinstance(credentials, BearerToken) else None
        # Whether the request's credentials were rejected.
        self._is_refused = self.token is None and credentials is not Reason.ABSENT
        if self._is_refused:
            _logger.debug("the request has no usable token: %s", credentials)
        if may_have_unused(settings, is_present=True, token=self.token):
            self._find_unused(values_of)

    def _find_unused(self, values_of: ValuesOf) -> None:
        if not unused_watchers:  # redaction is off
            return
        words = find_unused(values_of, self._settings, self.token)
        if words:
            if self._lease is None:
                self._lease = RequestLease()
            self._unused = UnusedCredentials(words, self._lease)

    @classmethod
    def of(cls, values_of: ValuesOf, settings: Settings) -> Boundary:
        """Create a boundary for the request whose headers *values_of* returns."""
        return cls(locate(values_of, settings), values_of, settings)

    def check(self, authenticator: Authenticator | None, path: RequestPath) -> ErrorResponse | None:
        """Return an error response, or ``None`` if *authenticator* accepts or has already accepted this request.

        Only successful checks are cached, because middleware might retry a request or split it into several requests.

        Args:
            authenticator: The authenticator; ``None`` if requests are not verified.
            path: The path at this boundary; for gRPC, the full method name.
        """
        if authenticator is None or self._was_admitted(authenticator, path):
            return None
        return self._note(authenticator, path, authenticator.check(self.credentials, path))

    async def check_async(self, authenticator: Authenticator | None, path: RequestPath) -> ErrorResponse | None:
        """Check the request as `check` does, but without blocking the event loop."""
        if authenticator is None or self._was_admitted(authenticator, path):
            return None
        return self._note(authenticator, path, await authenticator.check_async(self.credentials, path))

    def is_verified_for(self, authenticator: Authenticator, whole_path: str) -> bool:
        """Return whether *authenticator* has verified this request's token for a path that includes the mount point."""
        return (
            self.token is not None
            and self.token.verification is not None
            and any(admitted_by is authenticator and whole == whole_path for admitted_by, whole, _ in self.admitted_by)
        )

    def _was_admitted(self, authenticator: Authenticator, path: RequestPath) -> bool:
        """Return whether an inner boundary can skip checking this request.

        A token that an authenticator has verified is valid for every part of the application. An exclusion applies at
        an inner boundary only if the whole path is the same and the inner mount point is at least as long as the outer
        mount point. An exclusion does not apply if the client might have chosen the mount point.
        """
        return self.is_verified_for(authenticator, path.whole) or any(
            admitted_by is authenticator
            and whole == path.whole
            and len(path.routed or "") <= len(routed or "")
            and not path.is_mount_chosen
            for admitted_by, whole, routed in self.admitted_by
        )

    def _note(
        self, authenticator: Authenticator, path: RequestPath, error_response: ErrorResponse | None
    ) -> ErrorResponse | None:
        if error_response is None:
            self.admitted_by = (*self.admitted_by, (authenticator, path.whole, path.routed))
        return error_response

    def context(self) -> Context:
        """Return a copy of the current context with the request's token, or without a token if the request has none.

        If a header is duplicated, instrumentation might see only one of its lines and accept that line. The context
        marks the credentials as rejected so that ``extract`` ignores them until the request ends.
        """
        context = with_token(self.token)
        if self._is_refused or REFUSED_KEY in context:
            context = otel_context.set_value(REFUSED_KEY, self._lease if self._is_refused else None, context)
        if self._unused is not None or UNUSED_KEY in context:
            context = with_unused(self._unused, context)
        return context

    def encloses(self, request: Any) -> bool:
        """Return whether *request* is the request for which this boundary was opened.

        For speed, the check consists of a few simple comparisons. The result is ``False`` if those comparisons are
        inconclusive.

        Args:
            request: The request's ASGI scope or WSGI environ.
        """
        return False

    def still_applies_to(self, locate_now: Callable[[Settings], Source]) -> bool:
        """Return whether an inner application can use this boundary.

        An inner application must not use this boundary if the response is complete, or if middleware has replaced or
        removed the credentials. The boundary is also unusable if the current context is empty or belongs to a
        different request, which can happen in a worker task. A token that the application has bound with `use_token`
        remains bound.

        Args:
            locate_now: A function that uses the settings to find the header that currently contains the credentials.
        """
        context = get_current()
        if not self._is_responding or TOKEN_KEY not in context:
            return False
        bound = bound_token(context)
        if bound is not None and bound.lease is not self._lease and isinstance(bound.lease, RequestLease):
            return False
        source = locate_now(self._settings)
        # Identical header lines do not have to be parsed again.
        return source == self._source or read(source, self._settings) == self.credentials

    def move_here(self) -> None:
        """Record that the current thread and task now serve the request; see `RequestLease`."""
        if self._lease is not None:
            self._lease.move_here()

    def close(self) -> None:
        """End the lease. Call this method when the response is complete or has been aborted."""
        self._is_responding = False
        if self._lease is not None:
            self._lease.end(linger=self._settings.linger)
