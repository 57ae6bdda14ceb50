"""Decide for each hop whether the request gets the caller's token.

All decisions are made here. Adapters report their request's target and whether the request already has a
credential. They then write the header value that `Relay.decide` returns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar, overload

from opentelemetry.context import Context

from otel_token_relay import context as binding
from otel_token_relay import operator_log
from otel_token_relay.closest_entries import ClosestEntries, ClosestEntry, closest_entry
from otel_token_relay.context import TOKEN_KEY
from otel_token_relay.decisions import Decision, DecisionRecorder
from otel_token_relay.destinations import Destination
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.origin import Target
from otel_token_relay.otel import OLD_SUPPRESS_KEY, SUPPRESS_KEY, get_current, is_suppressed
from otel_token_relay.policy import RelayPolicy
from otel_token_relay.reasons import Reason
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Clock, Lease
from otel_token_relay.urls import read_url

_logger = logging.getLogger("otel_token_relay")

Request = TypeVar("Request")
HasHeader = bool | Literal["fixed"]


class Explanation(NamedTuple):
    """The decision for a URL before any request is sent.

    Attributes:
        decision: The decision.
        entry: The most specific entry that matches, which may have ``;never``; ``None`` if no entry matches.
        closest: If the list is the reason to withhold the token: the entry that differs least, or that excludes the
            origin. ``None`` if there is none.
        fails: Whether the call raises `TokenUnavailable`.
    """

    decision: Decision
    entry: Destination | None = None
    closest: ClosestEntry | None = None
    fails: bool = False


class Relay:
    """Make the decision for each hop according to one `Settings` object. Safe to share between threads and tasks.

    Attributes:
        settings: The settings, which are immutable.
        header: The name of the header to write, in lower case.
        is_closed: Whether `close` has been called.
    """

    def __init__(self, settings: Settings, *, now: Clock = time.time, monotonic: Clock = time.monotonic) -> None:
        self.settings = settings
        self.policy: RelayPolicy = RelayPolicy(settings.entries, settings.refused)
        self.header: str = settings.header.lower()
        self._prefix = "Bearer " if settings.header_is_authorization else ""
        self._keeps_explicit = settings.on_conflict == "keep"
        self._now = now
        self._monotonic = monotonic
        self._recorder = DecisionRecorder(ClosestEntries(self.policy).find)
        self._record = self._recorder.record
        self._is_watched = self._recorder.is_watched
        self._has_warned = False
        self.is_closed: bool = False

    def prepare(self) -> None:
        """Create the decision counter; see `Runtime.prepare`."""
        self._recorder.prepare()

    def close(self) -> None:
        """Relay no more tokens, not even through wrappers that can no longer be removed."""
        self.is_closed = True

    @overload
    def decide(
        self,
        request: Request,
        target_of: Callable[[Request], Target],
        has_header: Callable[[Request, str], HasHeader],
        context: Context | None = None,
    ) -> str | None: ...

    @overload
    def decide(
        self,
        request: Request,
        target_of: Callable[[Request], Target],
        has_header: Callable[[Request, str], HasHeader],
        context: Context | None = None,
        *,
        is_final: Literal[False],
    ) -> Hop | None: ...

    def decide(
        self,
        request: Request,
        target_of: Callable[[Request], Target],
        has_header: Callable[[Request, str], HasHeader],
        context: Context | None = None,
        *,
        is_final: bool = True,
    ) -> str | Hop | None:
        """Make and record the decision for one hop.

        Args:
            request: Passed to *target_of* and *has_header*.
            target_of: Returns the scheme, host and port of the request's destination; see `Origin.of`.
            has_header: Returns whether the request already has the header with the given lower-case name,
                ignoring case; ``"fixed"`` if it has one that the adapter cannot replace.
            context: The context that contains the token; ``None`` for the current context.
            is_final: ``False`` if the request may still wait before it is sent, for example for a connection.
                A decision to relay is then recorded by the returned `Hop`.

        Returns:
            The header value to write (or the `Hop`), or ``None`` to leave the request unchanged.

        Raises:
            TokenUnavailable: The destination requires a token, and none can be relayed.
        """
        if self.is_closed:
            return None
        current = get_current()
        # This check comes first, and does not call `is_suppressed`, because it runs at every hop.
        if current.get(SUPPRESS_KEY) or current.get(OLD_SUPPRESS_KEY):
            return None
        if context is None:
            context = current
        elif is_suppressed(context):
            return None
        token: BearerToken | None = context.get(TOKEN_KEY)  # type: ignore[assignment]
        missing = Reason.NO_TOKEN
        if token is None:
            if TOKEN_KEY not in context:
                missing = Reason.NO_BOUNDARY
            if self._may_ignore(missing, context):
                return None
        try:
            target = target_of(request)
            destination = self.policy.find(*target)
            reason = self._reason(token or missing, destination, request, has_header)
        except Exception as error:  # the application's request continues without the token
            # Do not log the message: it may quote the URL, which may contain a password.
            _logger.debug("cannot make a decision, so a request is sent without the token: %s", type(error).__name__)
            self._record(missing if token is None else Reason.DESTINATION_UNKNOWN, context)
            return None
        if not is_final and reason is Reason.RELAYED and token is not None and destination is not None:
            return Hop(self, token, destination, target, context)
        self._record(reason, context, destination, target)
        if reason is Reason.RELAYED and token is not None:
            return self._prefix + token.reveal()
        if reason is Reason.NO_BOUNDARY and destination is not None:
            self._warn_once(destination)
        # A call with its own credential is authenticated, so `;required` does not stop it.
        if destination is not None and destination.required and reason is not Reason.EXPLICIT_CREDENTIAL:
            raise TokenUnavailable(reason, str(destination))
        return None

    def _may_ignore(self, reason: Reason, context: Context) -> bool:
        """Return whether a hop without a token needs no decision. Record the hop if its destination is irrelevant."""
        will_warn = reason is Reason.NO_BOUNDARY and not (self._has_warned or binding.has_bound or self.policy.is_empty)
        if self.policy.has_required or will_warn:
            return False
        if not self._is_watched(context):
            return True
        if self.policy.is_empty and operator_log.decisions is None:
            self._record(reason, context)
            return True
        return False

    def _warn_once(self, destination: Destination) -> None:
        if self._has_warned or binding.has_bound:
            return
        self._has_warned = True
        _logger.warning(
            "token relay: a request to %s is sent without a token. This process has not served any request: either the"
            " call does not belong to a request, or the server is not hooked, which otel-token-relay check shows.",
            destination,
        )

    def _reason(
        self,
        token: BearerToken | Reason,
        destination: Destination | None,
        request: Request,
        has_header: Callable[[Request, str], HasHeader],
    ) -> Reason:
        """Return the first reason to withhold the token, or ``RELAYED``.

        Args:
            token: The token, or the reason why there is none.
        """
        if destination is None:
            return token if isinstance(token, Reason) else Reason.DESTINATION_NOT_LISTED
        try:
            held = has_header(request, self.header)
        except Exception as error:  # headers that cannot be read may contain a credential
            _logger.debug("cannot read a request's headers: %s", type(error).__name__)
            held = "fixed"
        if held and (self._keeps_explicit or held == "fixed"):
            return Reason.EXPLICIT_CREDENTIAL
        if isinstance(token, Reason):
            return token
        reason = self._reason_of_token(token)
        if reason is None and self.policy.has_exchanged:
            reason = self._reason_of_destination(destination)
        return reason or Reason.RELAYED

    def _reason_of_token(self, token: BearerToken) -> Reason | None:
        if not token.is_own_process:
            return Reason.OTHER_PROCESS
        if token.lease is not None:
            if not token.lease.is_open:
                return Reason.LEASE_ENDED
        elif self._monotonic() - token.received_at >= self.settings.max_age:
            return Reason.TOO_OLD
        expires_at = token.expires_at
        if expires_at is not None and self._now() >= expires_at - self.settings.min_ttl:
            return Reason.EXPIRED
        if token.is_sender_constrained:
            return Reason.SENDER_CONSTRAINED
        verification = token.verification
        if self.settings.require_verified if verification is None else not verification.is_still_valid():
            return Reason.NOT_VERIFIED
        return None

    def _reason_of_destination(self, destination: Destination) -> Reason | None:
        # The caller's own token must not go to a destination that requires an exchanged one.
        return Reason.EXCHANGE_FAILED if destination.needs_exchange else None

    def explain(self, url: str, *, without_user: bool = False) -> Explanation:
        """Return the decision for a request to *url*, made by the same rules as that for a hop.

        The request has no credential except the URL's user info, which most clients send as a header.

        Args:
            url: The URL, as passed to a client.
            without_user: Whether no request is being served. Otherwise, the token is a plain, living, verified one.
        """
        read = read_url(url)
        if read.origin is None:
            return Explanation(Decision(Reason.NO_BOUNDARY if without_user else Reason.DESTINATION_UNKNOWN))
        destination = self.policy.match(read.origin)
        reason = self._reason(
            Reason.NO_BOUNDARY if without_user else self._sample(),
            destination,
            read,
            lambda read, name: read.has_credential and name == "authorization",
        )
        is_withheld = reason not in (Reason.RELAYED, Reason.EXPLICIT_CREDENTIAL)
        return Explanation(
            Decision(reason),
            entry=self.policy.deciding_entry(read.origin),
            closest=None if destination else closest_entry(read.origin, self.policy),
            fails=is_withheld and destination is not None and destination.required,
        )

    def _sample(self) -> BearerToken | Reason:
        """Return a token that can be relayed, and that is verified if this service verifies tokens.

        Return a reason if this service reads no token from any request.
        """
        if not self.settings.source_headers:
            return Reason.NO_TOKEN
        token = BearerToken("sample", lease=Lease(), received_at=self._monotonic())
        if self.settings.verify != "off" and not self.settings.missing_to_verify:
            token.mark_verified(_Accepted())
        return token


class _Accepted:
    """The verification of a token that exists only for `Relay.explain`."""

    claims: Mapping[str, object] = MappingProxyType({})
    expires_at: float | None = None

    def is_still_valid(self) -> bool:
        return True


class Hop:
    """A decision to relay that is made before the request waits, and is checked again when the request is sent.

    It does not print its token, so it can accompany the request through a client library.

    Attributes:
        is_recorded: Whether the decision has been recorded.
        replaced: The header lines that the token's header replaced, for use by the adapter.
    """

    __slots__ = ("_context", "_destination", "_relay", "_target", "_token", "is_recorded", "replaced")

    def __init__(
        self, relay: Relay, token: BearerToken, destination: Destination, target: Target, context: Context
    ) -> None:
        self._relay = relay
        self._token = token
        self._destination = destination
        self._target = target
        self._context = context
        self.is_recorded: bool = False
        self.replaced: list[tuple[bytes, bytes]] | None = None

    def __deepcopy__(self, memo: object) -> Hop:
        return self

    @property
    def header(self) -> str:
        """The name of the header to write, in lower case."""
        return self._relay.header

    def reveal(self) -> str:
        """Return the header value to write."""
        return self._relay._prefix + self._token.reveal()

    def confirm(self) -> bool:
        """Check the token again and record the decision. Call this once, when the request no longer waits.

        A client that sends the request again on another connection calls this again: that is another hop.

        Returns:
            Whether the request may be sent with the token. Otherwise, it must be sent without the header.

        Raises:
            TokenUnavailable: The destination requires a token, and the token may no longer be sent.
        """
        relay = self._relay
        if relay.is_closed:
            self.is_recorded = True
            return False
        try:
            reason = relay._reason_of_token(self._token)
        except Exception as error:  # the application's request continues without the token
            _logger.debug("cannot check a token again, so it is not sent: %s", type(error).__name__)
            reason = Reason.NOT_VERIFIED
        if reason is None:
            self.record()
            return True
        self.record(reason)
        if self._destination.required:
            raise TokenUnavailable(reason, str(self._destination))
        return False

    def record(self, reason: Reason = Reason.RELAYED) -> None:
        """Record the decision without checking the token again, because the request has been sent."""
        self.is_recorded = True
        self._relay._record(reason, self._context, self._destination, self._target)
