"""Decide for each hop whether to send the caller's token, a different token, or no token.

This module makes all decisions. Adapters report each request's target and whether the request already has a credential.
Adapters then write the header value that `Relay.decide` returns. In two cases, `Relay.decide` returns an object
instead:

* A `Hop`, if the request might still have to wait for a connection. The adapter calls `Hop.confirm` when the request is
  sent.
* An `Exchange`, if a token for the destination must be obtained first and the adapter runs on an event loop, which must
  not be blocked. The adapter awaits `Exchange.run_async`, which returns the header value or a `Hop`.

A `TokenSource` provides tokens for individual destinations. This module does not import any token source, because token
sources require a package extra.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, overload

from opentelemetry.context import Context

from otel_token_relay import context as binding
from otel_token_relay import operator_log
from otel_token_relay.closest_entries import ClosestEntries, ClosestEntry, closest_entry
from otel_token_relay.context import TOKEN_KEY, is_unserved
from otel_token_relay.decisions import Decision, DecisionRecorder, ExchangeResult
from otel_token_relay.destinations import Destination
from otel_token_relay.errors import ExchangeFailed, TokenUnavailable
from otel_token_relay.origin import Origin, Target
from otel_token_relay.otel import OLD_SUPPRESS_KEY, SUPPRESS_KEY, get_current, is_suppressed
from otel_token_relay.policy import RelayPolicy
from otel_token_relay.reasons import Reason
from otel_token_relay.retries import METHODS, Rejection, read_rejection
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Clock, Lease
from otel_token_relay.urls import read_url

_logger = logging.getLogger("otel_token_relay")

Request = TypeVar("Request")
Sent = TypeVar("Sent", bound="str | Hop")
HasHeader = bool | Literal["fixed"]


class Explanation(NamedTuple):
    """The decision that the relay would make for a request to a URL.

    Attributes:
        decision: The decision.
        entry: The most specific matching entry, which may have ``;never``; ``None`` if no entry matches.
        closest: The closest entry or the entry that excludes the origin, if the token is withheld because of the
            allow-list; otherwise, ``None``.
        fails: Whether the call would raise `TokenUnavailable`.
    """

    decision: Decision
    entry: Destination | None = None
    closest: ClosestEntry | None = None
    fails: bool = False


class Obtained(NamedTuple):
    """A token for a specific destination.

    Attributes:
        token: The token. If the token was obtained in exchange for the caller's token, both tokens have the same lease.
        result: Whether the token was obtained from the cache, by a request for this hop, or by a request for a
            concurrent hop.
        until: The time, in seconds on the monotonic clock, after which the token must not be sent.
    """

    token: BearerToken
    result: ExchangeResult
    until: float


class Renewed(NamedTuple):
    """A replacement for a token that a destination has rejected.

    Attributes:
        obtained: The token.
        settle: A function to call exactly once, with an argument that indicates whether the destination accepted the
            token. Other requests with the same rejected token wait for this call.
    """

    obtained: Obtained
    settle: Callable[[bool], None]


class TokenSource(Protocol):
    """A source of tokens for individual destinations. `otel_token_relay.exchange.tokens` implements this protocol."""

    def cached(self, caller: BearerToken | None, destination: Destination) -> Obtained | None:
        """Return a cached token, or ``None`` if there is none.

        Args:
            caller: The caller's token, which the relay has checked; ``None`` for the service's own token.
            destination: The entry.
        """
        ...

    def obtain(self, caller: BearerToken | None, destination: Destination) -> Obtained:
        """Return a token. This method blocks until the token is available.

        Raises:
            ExchangeFailed: No token could be obtained from the authorization server.
        """
        ...

    async def obtain_async(self, caller: BearerToken | None, destination: Destination) -> Obtained:
        """Return a token without blocking the event loop; see `obtain`."""
        ...

    def renew(
        self, caller: BearerToken | None, destination: Destination, rejected: BearerToken, rejection: Rejection
    ) -> Renewed | None:
        """Return a replacement for a rejected token. This method blocks until the new token is available.

        Returns:
            The new token, or ``None`` if the request must not be sent again. Retrying is pointless if the new token
            is identical to the rejected one, or if the destination has just rejected the new token in a different
            request.

        Raises:
            ExchangeFailed: No token could be obtained from the authorization server.
        """
        ...

    async def renew_async(
        self, caller: BearerToken | None, destination: Destination, rejected: BearerToken, rejection: Rejection
    ) -> Renewed | None:
        """Return a replacement for a rejected token without blocking the event loop; see `renew`."""
        ...

    def failure(self, caller: BearerToken | None, destination: Destination) -> ExchangeFailed | None:
        """Return the error from the last attempt to obtain a token if that attempt failed recently; otherwise, return
        ``None``.
        """
        ...


class Relay:
    """A relay that decides which token to send for each hop. Instances can be shared among threads and tasks.

    Args:
        settings: The settings.
        source: The source of tokens for individual destinations; ``None`` if such tokens cannot be obtained.
        now: A function that returns the current wall-clock time, as seconds since the epoch.
        monotonic: A function that returns the time on a monotonic clock, in seconds.

    Attributes:
        settings: The settings, which are immutable.
        header: The name of the header to write, in lowercase.
        is_closed: Whether `close` has been called.
    """

    def __init__(
        self,
        settings: Settings,
        source: TokenSource | None = None,
        *,
        now: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self.settings = settings
        self._source = source
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
        """Stop relaying tokens, even through wrappers that can no longer be removed."""
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

    @overload
    def decide(
        self,
        request: Request,
        target_of: Callable[[Request], Target],
        has_header: Callable[[Request, str], HasHeader],
        context: Context | None = None,
        *,
        may_block: Literal[False],
    ) -> str | Exchange[str] | None: ...

    @overload
    def decide(
        self,
        request: Request,
        target_of: Callable[[Request], Target],
        has_header: Callable[[Request, str], HasHeader],
        context: Context | None = None,
        *,
        is_final: Literal[False],
        may_block: Literal[False],
    ) -> Hop | Exchange[Hop] | None: ...

    def decide(
        self,
        request: Request,
        target_of: Callable[[Request], Target],
        has_header: Callable[[Request, str], HasHeader],
        context: Context | None = None,
        *,
        is_final: bool = True,
        may_block: bool = True,
    ) -> str | Hop | Exchange[Any] | None:
        """Make and record the decision for one hop.

        Args:
            request: The request, which is passed to *target_of* and *has_header*.
            target_of: A function that returns the scheme, host, and port of the request's destination; see `Origin.of`.
            has_header: A function that returns whether the request already has the header with the given lowercase
                name, regardless of the header's case. The function returns ``"fixed"`` if the request has a credential
                that the adapter cannot replace, such as a signed URL.
            context: The context that contains the token; ``None`` for the current context.
            is_final: ``False`` if the request might still have to wait before it is sent (for example, for a
                connection). In that case, the returned `Hop` records the decision to send a token.
            may_block: ``False`` on an event loop. In that case, the returned `Exchange` obtains any token that is not
                cached.

        Returns:
            The header value to write, a `Hop`, or an `Exchange`; ``None`` to leave the request unchanged.

        Raises:
            TokenUnavailable: The destination requires a token, but none can be relayed.
        """
        if self.is_closed:
            return None
        current = get_current()
        # This check runs for every hop, so it avoids the slower call to `is_suppressed`.
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
            if self.policy.has_own and is_unserved(context):
                missing = Reason.OWN
            elif self._may_ignore(missing, context):
                return None
        try:
            target = target_of(request)
            destination = self.policy.find(*target)
            reason = self._reason(token, missing, destination, request, has_header)
        except Exception as error:  # the application's request continues without the token
            # Do not log the error message, because it might include the URL, which might contain a password.
            _logger.debug("no decision could be made, so a request is sent without a token: %s", type(error).__name__)
            self._record(_lacking(missing) if token is None else Reason.DESTINATION_UNKNOWN, context)
            return None
        if reason is Reason.RELAYED and token is not None and destination is not None:
            if not is_final:
                return Hop(self, token, destination, target, context)
            self._record(reason, context, destination, target)
            return self._prefix + token.reveal()
        if destination is not None and (reason is Reason.EXCHANGED or reason is Reason.OWN):
            exchange: Exchange[Any] = Exchange(self, token, destination, target, context, is_final=is_final)
            if (sent := exchange.cached()) is not None or not may_block:
                return sent or exchange
            return exchange.run()
        self._record(reason, context, destination, target)
        if reason is Reason.NO_BOUNDARY and destination is not None:
            self._warn_once(destination)
        # A request with its own credential does not need a token, so `;required` does not block it.
        if destination is not None and destination.required and reason is not Reason.EXPLICIT_CREDENTIAL:
            raise TokenUnavailable(reason, str(destination))
        return None

    async def prepare_hop(self, target: Target, *, has_header: HasHeader) -> None:
        """Obtain a hop's token in advance for a client that cannot wait when it calls `decide`.

        Args:
            target: The target to which the request will be sent.
            has_header: The value that *has_header* will return when the client calls `decide`.
        """
        context, source = get_current(), self._source
        if source is None or self.is_closed or is_suppressed(context) or self._is_explicit(has_header):
            return
        try:
            destination = self.policy.find(*target)
            if destination is None or not destination.needs_exchange:
                return
            token: BearerToken | None = context.get(TOKEN_KEY)  # type: ignore[assignment]
            if token is None:
                may_obtain = destination.without_user is not None and is_unserved(context)
            else:
                may_obtain = (self._reason_of_token(token) or self._reason_not_to_exchange(token)) is None
            if may_obtain and source.cached(token, destination) is None:
                await source.obtain_async(token, destination)
        except Exception as error:  # `decide` will then withhold the token
            _logger.debug("no token could be obtained in advance: %s", type(error).__name__)

    def may_send(self, url: str, has_header: Callable[[str], bool]) -> bool:
        """Return whether a request to *url* might be sent with a token. This method does not make or record a decision.

        Cache hooks call this method, because caches must not return a stored response for such a request. If *url*
        cannot be parsed, the result is ``True``.

        Args:
            url: The URL, as passed to a client.
            has_header: A function that returns whether the request already has the header with the given lowercase
                name.
        """
        context = get_current()
        if self.is_closed or self.policy.is_empty or is_suppressed(context):
            return False
        has_token = context.get(TOKEN_KEY) is not None
        if not has_token and not (self.policy.has_own and is_unserved(context)):
            return False
        try:
            if self._keeps_explicit and has_header(self.header):
                return False
            origin = read_url(url).origin
            if origin is None:
                return True
            destination = self.policy.match(origin)
        except Exception as error:  # fail closed, because the cached response might belong to a different caller
            _logger.debug("a request cannot be read and does not use the cache: %s", type(error).__name__)
            return True
        return destination is not None and (has_token or destination.without_user is not None)

    def _may_ignore(self, reason: Reason, context: Context) -> bool:
        """Return whether a hop without a token needs no decision. If the hop only needs to be recorded, record it."""
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
            "token relay: a request to %s is sent without a token, because this process has not served any requests."
            " Either the call does not belong to a request, or the server is not hooked. To find out, run"
            " otel-token-relay check.",
            destination,
        )

    def _reason(
        self,
        token: BearerToken | None,
        missing: Reason,
        destination: Destination | None,
        request: Request,
        has_header: Callable[[Request, str], HasHeader],
    ) -> Reason:
        """Return the first reason to withhold the token, or the reason that describes which token to send.

        Args:
            token: The caller's token; ``None`` if there is none.
            missing: The reason to use if *token* is ``None``; ``OWN`` if the service acts on its own behalf.

        Returns:
            ``RELAYED``, ``EXCHANGED``, or ``OWN`` to send a token; otherwise, the reason to withhold the token.
        """
        if destination is None:
            return _lacking(missing) if token is None else Reason.DESTINATION_NOT_LISTED
        try:
            held = has_header(request, self.header)
        except Exception as error:  # unreadable headers might contain a credential
            _logger.debug("cannot read a request's headers: %s", type(error).__name__)
            held = "fixed"
        if held and self._is_explicit(held):
            return Reason.EXPLICIT_CREDENTIAL
        if token is None:
            return missing if destination.without_user is not None else _lacking(missing)
        reason = self._reason_of_token(token)
        if reason is None and self.policy.has_exchanged and destination.needs_exchange:
            reason = self._reason_not_to_exchange(token) or Reason.EXCHANGED
        return reason or Reason.RELAYED

    def _is_explicit(self, held: HasHeader) -> bool:
        return held == "fixed" or (held and self._keeps_explicit)

    def _reason_of_token(self, token: BearerToken) -> Reason | None:
        if not token.is_own_process:
            return Reason.OTHER_PROCESS
        lease = token.lease
        if lease is not None:
            if not lease.is_open:
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

    def _reason_not_to_exchange(self, token: BearerToken) -> Reason | None:
        if self._source is None:
            return Reason.EXCHANGE_FAILED
        # Anyone can send a fabricated token, and each exchange uses this service's credential to send a request.
        is_checked = token.verification is not None or self.settings.exchange_unverified
        return None if is_checked else Reason.NOT_VERIFIED

    def explain(self, url: str, *, without_user: bool = False) -> Explanation:
        """Return the decision for a request to *url*. The rules are the same as for a hop.

        The request is assumed to have no credentials other than a signature or user info in the URL. Most clients send
        user info as a header.

        Args:
            url: The URL, as passed to a client.
            without_user: Whether to assume that no request is being served. Otherwise, the caller's token is assumed to
                be ordinary and unexpired. If this service verifies tokens, the token is also assumed to be verified.
        """
        read = read_url(url)
        if read.origin is None:
            return Explanation(Decision(Reason.NO_BOUNDARY if without_user else Reason.DESTINATION_UNKNOWN))
        destination = self.policy.match(read.origin)
        reason = self._reason(
            None if without_user else self._sample(),
            Reason.OWN if without_user else Reason.NO_TOKEN,
            destination,
            read,
            lambda read, name: "fixed" if read.is_signed else read.has_credential and name == "authorization",
        )
        if reason in (Reason.EXCHANGED, Reason.OWN) and self._source is None:
            reason = Reason.EXCHANGE_FAILED
        is_withheld = reason not in (*_SENDING, Reason.EXPLICIT_CREDENTIAL)
        return Explanation(
            Decision(reason),
            entry=self.policy.deciding_entry(read.origin),
            closest=None if destination else closest_entry(read.origin, self.policy),
            fails=is_withheld and destination is not None and destination.required,
        )

    def _sample(self) -> BearerToken | None:
        """Return a sample token that can be relayed. If this service verifies tokens, the sample is marked as verified.

        If this service does not read tokens from requests, return ``None``.
        """
        if not self.settings.source_headers:
            return None
        token = BearerToken("sample", lease=Lease(), received_at=self._monotonic())
        if self.settings.verify != "off" and not self.settings.missing_to_verify:
            token.mark_verified(AssumedVerification())
        return token


class AssumedVerification:
    """The assumed verification of the sample token that an explanation uses."""

    claims: Mapping[str, object] = MappingProxyType({})
    expires_at: float | None = None

    def is_still_valid(self) -> bool:
        return True


_SENDING: Final = frozenset({Reason.RELAYED, Reason.EXCHANGED, Reason.OWN})


def _lacking(reason: Reason) -> Reason:
    """Return the reason to record if the destination does not permit the service's own token."""
    return Reason.NO_BOUNDARY if reason is Reason.OWN else reason


class Hop:
    """A decision to send a token. The decision is checked again when the request is sent.

    A hop's string representation does not include its tokens, so a client library can safely store the hop with the
    request.

    Args:
        relay: The relay that made the decision.
        caller: The caller's token; ``None`` if the service acts on its own behalf.
        destination: The entry.
        target: The request's target.
        context: The hop's context.
        obtained: The token for this destination; ``None`` to send the caller's token.
        settle: See `Renewed`; ``None`` unless the request is being retried.

    Attributes:
        is_recorded: Whether the decision has been recorded.
        replaced: The header lines that the adapter replaced with the token's header.
    """

    __slots__ = (
        "_caller",
        "_context",
        "_destination",
        "_obtained",
        "_relay",
        "_settle",
        "_target",
        "is_recorded",
        "replaced",
    )

    def __init__(
        self,
        relay: Relay,
        caller: BearerToken | None,
        destination: Destination,
        target: Target,
        context: Context,
        obtained: Obtained | None = None,
        settle: Callable[[bool], None] | None = None,
    ) -> None:
        self._settle = settle
        self._relay = relay
        self._caller = caller
        self._destination = destination
        self._target = target
        self._context = context
        self._obtained = obtained
        self.is_recorded: bool = False
        self.replaced: list[tuple[bytes, bytes]] | None = None

    def __deepcopy__(self, memo: object) -> Hop:
        return self

    @property
    def header(self) -> str:
        """The name of the header to write, in lowercase."""
        return self._relay.header

    def reveal(self) -> str:
        """Return the header value to write."""
        sent = self._caller if self._obtained is None else self._obtained.token
        if sent is None:
            raise ValueError("this hop has no token")
        return self._relay._prefix + sent.reveal()

    def confirm(self) -> bool:
        """Check the tokens again and record the decision. Adapters call this method when the request no longer has to
        wait.

        If a client sends the request again on a different connection, the adapter calls this method again, because each
        attempt is a separate hop.

        Returns:
            Whether the token may be sent. If ``False``, the adapter must remove the header from the request.

        Raises:
            TokenUnavailable: The destination requires a token, but this hop's token may no longer be sent.
        """
        relay = self._relay
        if relay.is_closed:
            self.is_recorded = True
            return False
        try:
            reason = self.check()
        except Exception as error:  # the application's request continues without the token
            _logger.debug("a token could not be checked again and is not sent: %s", type(error).__name__)
            reason = Reason.NOT_VERIFIED
        if reason is None:
            self.record()
            return True
        self.record(reason)
        if self._destination.required:
            raise TokenUnavailable(reason, str(self._destination))
        return False

    def check(self) -> Reason | None:
        """Return the first reason to withhold the token, or ``None`` if the token may still be sent."""
        relay, obtained = self._relay, self._obtained
        reason = self._check_caller()
        if reason is None and obtained is not None:
            expires_at = obtained.token.expires_at
            is_late = expires_at is not None and relay._now() >= expires_at
            if is_late or relay._monotonic() >= obtained.until:
                reason = Reason.EXPIRED
        return reason

    def _check_caller(self) -> Reason | None:
        if self._caller is not None:
            return self._relay._reason_of_token(self._caller)
        return None if is_unserved(self._context) else Reason.NO_BOUNDARY

    def may_repeat(self, method: str) -> bool:
        """Return whether the request may be retried once if the destination rejects its token.

        Args:
            method: The request's method, in uppercase.
        """
        is_first = self._obtained is not None and self._settle is None
        return is_first and self._destination.retry == "idempotent" and method in METHODS

    def is_for(self, target: Target) -> bool:
        """Return whether *target* has the same origin as this hop's target."""
        return Origin.of(*target) == Origin.of(*self._target)

    def again(self, challenges: Iterable[str]) -> Hop | None:
        """Obtain a new token after a 401 response if `may_repeat` returned ``True``. This method blocks.

        If the result is ``None``, the application receives the first response, so that response must still be readable.
        Otherwise, the adapter sends the request with the returned hop and calls that hop's `settle` method, even if the
        request fails. This method never raises an exception.

        Args:
            challenges: The values of the response's ``WWW-Authenticate`` headers.
        """
        if (wanted := self._wanted(challenges)) is None:
            return None
        source, rejected, rejection = wanted
        try:
            return self._next(source.renew(self._caller, self._destination, rejected, rejection))
        except Exception as error:
            _logger.debug("a rejected token is not renewed: %s", type(error).__name__)
        return None

    async def again_async(self, challenges: Iterable[str]) -> Hop | None:
        """Obtain a new token after a 401 response without blocking the event loop; see `again`."""
        if (wanted := self._wanted(challenges)) is None:
            return None
        source, rejected, rejection = wanted
        try:
            return self._next(await source.renew_async(self._caller, self._destination, rejected, rejection))
        except Exception as error:
            _logger.debug("a rejected token is not renewed: %s", type(error).__name__)
        return None

    def settle(self, *, is_accepted: bool) -> None:
        """Report whether the destination accepted the token in a retried request."""
        if self._settle is not None:
            self._settle(is_accepted)

    def _wanted(self, challenges: Iterable[str]) -> tuple[TokenSource, BearerToken, Rejection] | None:
        """Return the arguments for renewing the token, or ``None`` if it must not be renewed."""
        relay, obtained = self._relay, self._obtained
        try:
            rejection = read_rejection(challenges)
            if rejection is None or obtained is None or relay.is_closed or self._check_caller() is not None:
                return None
        except Exception as error:
            _logger.debug("cannot read a challenge: %s", type(error).__name__)
            return None
        return None if relay._source is None else (relay._source, obtained.token, rejection)

    def _next(self, renewed: Renewed | None) -> Hop | None:
        if renewed is None:
            return None
        hop = Hop(
            self._relay,
            self._caller,
            self._destination,
            self._target,
            self._context,
            renewed.obtained,
            renewed.settle,
        )
        try:
            if not self._relay.is_closed and hop.check() is None:
                return hop
        except Exception as error:
            _logger.debug("cannot check a renewed token: %s", type(error).__name__)
        renewed.settle(False)
        return None

    def record(self, reason: Reason | None = None) -> None:
        """Record the decision without checking the tokens again. If *reason* is ``None``, record that a token was
        sent.
        """
        self.is_recorded = True
        obtained = self._obtained
        if obtained is None:
            self._relay._record(reason or Reason.RELAYED, self._context, self._destination, self._target)
            return
        sent = Reason.OWN if self._caller is None else Reason.EXCHANGED
        self._relay._record(reason or sent, self._context, self._destination, self._target, obtained.result)


class Exchange(Generic[Sent]):
    """A hop whose token must first be obtained: a token in exchange for the caller's, or the service's own token.

    Args:
        relay: The relay that made the decision.
        caller: The caller's token; ``None`` if the service acts on its own behalf.
        destination: The entry.
        target: The request's target.
        context: The hop's context.
        is_final: See `Relay.decide`.
    """

    __slots__ = ("_caller", "_context", "_destination", "_is_final", "_relay", "_target")

    def __init__(
        self,
        relay: Relay,
        caller: BearerToken | None,
        destination: Destination,
        target: Target,
        context: Context,
        *,
        is_final: bool,
    ) -> None:
        self._relay = relay
        self._caller = caller
        self._destination = destination
        self._target = target
        self._context = context
        self._is_final = is_final

    def cached(self) -> Sent | None:
        """Make the decision with a cached token, or return ``None`` if no token is cached."""
        source = self._relay._source
        try:
            found = None if source is None else source.cached(self._caller, self._destination)
        except Exception as error:
            _logger.debug("cannot look for an exchanged token: %s", type(error).__name__)
            return None
        return None if found is None else self._send(self._hop(found))

    def run(self) -> Sent | None:
        """Obtain the token and complete the decision. This method blocks until the token is available.

        Returns:
            The header value to write or a `Hop`; ``None`` to leave the request unchanged.

        Raises:
            TokenUnavailable: The destination requires a token, but none can be sent.
        """
        source = self._relay._source
        if source is None:
            return self._fail(_NOT_CONFIGURED)
        try:
            return self._finish(source.obtain(self._caller, self._destination))
        except Exception as error:  # the request continues without a token, never with the caller's own token
            # Remove the traceback, because error trackers report the local variables in its frames.
            failure = error.with_traceback(None)
        return self._fail(failure)

    async def run_async(self) -> Sent | None:
        """Obtain the token and complete the decision without blocking the event loop; see `run`."""
        source = self._relay._source
        if source is None:
            return self._fail(_NOT_CONFIGURED)
        try:
            return self._finish(await source.obtain_async(self._caller, self._destination))
        except Exception as error:
            failure = error.with_traceback(None)
        return self._fail(failure)

    def give_up(self) -> Sent | None:
        """Make the decision without a token, because the client cannot wait for the exchange."""
        source = self._relay._source
        failure = None if source is None else source.failure(self._caller, self._destination)
        return self._fail(failure or _NOT_CONFIGURED)

    def _finish(self, obtained: Obtained) -> Sent | None:
        """Make the decision after checking the tokens again, because the caller's request might have ended."""
        if self._relay.is_closed:
            return None
        hop = self._hop(obtained)
        reason = hop.check()
        if reason is not None:
            raise TokenUnavailable(reason, str(self._destination))
        return self._send(hop)

    def _hop(self, obtained: Obtained) -> Hop:
        return Hop(self._relay, self._caller, self._destination, self._target, self._context, obtained)

    def _send(self, hop: Hop) -> Sent:
        if not self._is_final:
            return hop  # type: ignore[return-value]
        hop.record()
        return hop.reveal()  # type: ignore[return-value]

    def _fail(self, error: Exception) -> Sent | None:
        reason = error.reason if isinstance(error, TokenUnavailable) else Reason.EXCHANGE_FAILED
        if not isinstance(error, TokenUnavailable | ExchangeFailed):
            _logger.error("token relay: no token could be obtained for %s: %s", self._destination, type(error).__name__)
        self._relay._record(reason, self._context, self._destination, self._target, "failed")
        if self._destination.required:
            # Never store the claims challenge in a variable. The challenge might identify the user, and error trackers
            # report this frame's variables.
            raise TokenUnavailable(
                reason, str(self._destination), claims_challenge=getattr(error, "claims_challenge", None)
            )
        return None


_NOT_CONFIGURED: Final = ExchangeFailed("unavailable", "no exchange is configured")
