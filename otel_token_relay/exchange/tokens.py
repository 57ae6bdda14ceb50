"""Obtain tokens for destinations that are configured for token exchange.

A token is exchanged only at its own issuer's endpoint, and each endpoint has an `ExchangeEngine`. A hop uses the first
of the following sources that can provide a token:

1. The caller's `BearerToken`, which contains tokens from the same request. These tokens are accessible only through
   this object.
2. The engine's cache, which contains the tokens that requests with the same caller's token have obtained.
3. The token endpoint, which issues a new token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from otel_token_relay.context import announce_obtained
from otel_token_relay.decisions import ExchangeResult
from otel_token_relay.destinations import Destination
from otel_token_relay.entry_syntax import Grant
from otel_token_relay.errors import ConfigurationError, ExchangeFailed
from otel_token_relay.exchange.cache import Exchanged
from otel_token_relay.exchange.engine import ExchangeEngine, Job
from otel_token_relay.exchange.grants import Request
from otel_token_relay.exchange.renewals import WAIT_SECONDS, Renewals
from otel_token_relay.exchange.token_endpoint import TokenEndpoint
from otel_token_relay.issuers import TrustedIssuer, fill_tenant
from otel_token_relay.otel import SPAN_KEY, get_current
from otel_token_relay.relay import Obtained, Renewed
from otel_token_relay.retries import Rejection
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Clock, claims_of
from otel_token_relay.verification.drivers import Wait, drive, drive_async
from otel_token_relay.verification.http_client import HttpClient, shared_client

_ACTOR: Final = Request("client-credentials")


class _Plan(NamedTuple):
    """The engine, the request, and the request's hash, which are the same for all callers."""

    engine: ExchangeEngine
    request: Request
    hashed: bytes


@dataclass(slots=True)
class _Held:
    """A token that later hops of the same request can use, along with its source and destination.

    References keep the source and the destination alive. Otherwise, these objects could be deleted before the caller's
    token, and Python could reuse a deleted object's ``id``.
    """

    source: DestinationTokens
    destination: Destination
    obtained: Obtained
    expires_at: float | None
    announced_in: int

    @property
    def token(self) -> BearerToken:
        """The token, which `BearerToken.reveal_all` reads."""
        return self.obtained.token


class DestinationTokens:
    """A source of tokens for individual destinations.

    Instances can be shared between threads, tasks, and event loops.

    Args:
        settings: The settings.
        http: The client that sends the requests; ``None`` to create a client from the settings.
        now: A clock that returns the time as seconds since the epoch.
        monotonic: A monotonic clock that returns the time in seconds.

    Raises:
        ConfigurationError: The settings do not allow token exchange.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        http: HttpClient | None = None,
        now: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        if (problem := settings.exchange_problem) is not None:
            raise ConfigurationError("exchange_grant", problem)
        self._settings = settings
        self._grant: Grant = cast(Grant, settings.exchange_grant)  # the check above rejects "off"
        self._now = now
        self._monotonic = monotonic
        if http is None:
            http = shared_client(settings.ca_file or None, settings.plaintext_issuers)

        def engine(url: str | None, issuer: TrustedIssuer | None) -> ExchangeEngine | None:
            client = settings.client_credential if issuer is None else issuer.client
            if client is None:
                return None
            name = None if issuer is None or not issuer.has_metadata(settings.plaintext_issuers) else issuer.issuer
            if url is not None:
                client.check_use(name, url)
            return ExchangeEngine(
                TokenEndpoint(url, name, http=http, monotonic=monotonic),
                client,
                http=http,
                max_length=settings.max_length,
                now=now,
                monotonic=monotonic,
            )

        self._trusted = settings.trusted_issuers
        made = {issuer.issuer: engine(issuer.token_endpoint, issuer) for issuer in self._trusted}
        self._engines = {name: engine for name, engine in made.items() if engine is not None}
        self._lone = None if self._trusted else engine(settings.token_endpoint, None)
        # Plans are keyed by destination, and destinations are compared by value. Equal `Settings` objects share a
        # `DestinationTokens` object, but each has its own `Destination` objects.
        self._renewals = Renewals(monotonic)
        self._plans: dict[tuple[ExchangeEngine, Destination, bool], _Plan] = {}

    def requests(self) -> Iterator[tuple[ExchangeEngine, Request]]:
        """Yield each engine, along with the request for the first destination that requires token exchange."""
        destination = next((entry for entry in self._settings.entries if entry.needs_exchange), None)
        if destination is not None:
            request = self._request(destination, is_own=False)
            yield from ((engine, request) for engine in filter(None, (*self._engines.values(), self._lone)))

    def cached(self, caller: BearerToken | None, destination: Destination) -> Obtained | None:
        """Return a token that is immediately available; ``None`` if no such token exists."""
        if caller is not None and caller.obtained is not None:
            held: _Held | None = caller.obtained.get(id(destination))
            if (
                held is not None
                and held.source is self
                and held.destination is destination
                and self._monotonic() < held.obtained.until
                and (held.expires_at is None or self._now() < held.expires_at)
            ):
                place = _place()
                if held.announced_in != place:
                    announce_obtained(held.obtained.token)
                    held.announced_in = place
                return held.obtained
        plan = self._plan(caller, destination)
        actor = None
        if plan.request.has_actor:
            found = plan.engine.find(self._actor_plan(plan).hashed, None)
            if found is None:
                return None
            actor = BearerToken.from_parsed(found.value)
        found = plan.engine.find(plan.hashed, caller, actor)
        if found is None:
            return None
        if caller is None and self._monotonic() >= found.renew_at:
            plan.engine.renew(plan.engine.job(plan.request, plan.hashed, None))
        return self._hand_out(caller, destination, found, "hit")

    def obtain(self, caller: BearerToken | None, destination: Destination) -> Obtained:
        """Return a token. This method blocks until a token is available."""
        return drive(self._steps(caller, destination))

    async def obtain_async(self, caller: BearerToken | None, destination: Destination) -> Obtained:
        """Return a token without blocking the event loop. See `obtain`."""
        return await drive_async(self._steps(caller, destination))

    def renew(
        self, caller: BearerToken | None, destination: Destination, rejected: BearerToken, rejection: Rejection
    ) -> Renewed | None:
        """Return a new token to replace a rejected token. This method blocks until a token is available."""
        return drive(self._renewal(caller, destination, rejected, rejection))

    async def renew_async(
        self, caller: BearerToken | None, destination: Destination, rejected: BearerToken, rejection: Rejection
    ) -> Renewed | None:
        """Return a new token without blocking the event loop. See `renew`."""
        core = self._renewal(caller, destination, rejected, rejection)
        try:
            return await drive_async(core)
        finally:
            core.close()  # end the trial immediately if the task is canceled

    def failure(self, caller: BearerToken | None, destination: Destination) -> ExchangeFailed | None:
        """Return the failure of a recent attempt; ``None`` if no recent attempt failed."""
        try:
            plan = self._plan(caller, destination)
        except ExchangeFailed as failure:
            return failure
        engine, actor = plan.engine, None
        if plan.request.has_actor:
            own = self._actor_plan(plan)
            found = engine.find(own.hashed, None)
            if found is None:
                return engine.failure(engine.job(own.request, own.hashed, None))
            actor = BearerToken.from_parsed(found.value)
        return engine.failure(engine.job(plan.request, plan.hashed, caller, actor))

    def _renewal(
        self, caller: BearerToken | None, destination: Destination, rejected: BearerToken, rejection: Rejection
    ) -> Generator[Wait, None, Renewed | None]:
        plan = self._plan(caller, destination)
        is_entras = (destination.grant or self._settings.exchange_grant) == "on-behalf-of"
        if rejection.needs_claims and not is_entras:
            return None
        actor = yield from self._actor(plan)
        job = plan.engine.job(plan.request, plan.hashed, caller, actor)
        trial, is_ours = self._renewals.join(job.key + str(destination).encode())
        if not is_ours:
            if not trial.result.done():
                yield Wait(trial.result, WAIT_SECONDS)
            found = plan.engine.find(plan.hashed, caller, actor) if trial.is_accepted else None
            if found is None:
                return None
            if rejected == BearerToken.from_parsed(found.value):  # the destination previously accepted this token
                trial.has_ended = True
                return None
            return Renewed(self._hand_out(caller, destination, found, "hit"), trial.settle)
        try:
            if not rejection.needs_claims:
                plan.engine.drop(job, rejected)
            if rejection.claims is not None and is_entras:
                asking = job.with_claims(rejection.claims)
                plan.engine.drop(asking, rejected)
                found, result = yield from plan.engine.steps(asking)
                plan.engine.keep(job, found)
            else:
                found, result = yield from plan.engine.steps(job)
            if rejected == BearerToken.from_parsed(found.value):
                trial.settle(False)
                return None
            return Renewed(self._hand_out(caller, destination, found, result), trial.settle)
        except BaseException:
            trial.settle(False)
            raise

    def _actor(self, plan: _Plan) -> Generator[Wait, None, BearerToken | None]:
        if not plan.request.has_actor:
            return None
        own = self._actor_plan(plan)
        found, _ = yield from own.engine.steps(own.engine.job(own.request, own.hashed, None))
        return BearerToken.from_parsed(found.value)

    def _steps(self, caller: BearerToken | None, destination: Destination) -> Generator[Wait, None, Obtained]:
        plan = self._plan(caller, destination)
        actor = yield from self._actor(plan)
        job: Job = plan.engine.job(plan.request, plan.hashed, caller, actor)
        found, result = yield from plan.engine.steps(job)
        return self._hand_out(caller, destination, found, result)

    def _hand_out(
        self, caller: BearerToken | None, destination: Destination, found: Exchanged, result: ExchangeResult
    ) -> Obtained:
        """Return a token that the request's hops can use. The token has the same lease as the caller's token."""
        token = BearerToken.from_parsed(found.value, lease=None if caller is None else caller.lease)
        announce_obtained(token)
        if caller is not None:
            if caller.obtained is None:
                caller.obtained = {}
            held = Obtained(token, "hit", found.until)
            caller.obtained[id(destination)] = _Held(self, destination, held, found.expires_at, _place())
        return Obtained(token, result, found.until)

    def _plan(self, caller: BearerToken | None, destination: Destination) -> _Plan:
        engine = self._engine_for(caller)
        key = engine, destination, caller is None
        plan = self._plans.get(key)
        if plan is None:
            request = self._request(destination, is_own=caller is None)
            plan = self._plans[key] = _Plan(engine, request, engine.hash_of(request))
        return plan

    def _request(self, destination: Destination, *, is_own: bool) -> Request:
        request = Request(
            destination.grant or self._grant,
            audience=destination.audience,
            resource=destination.resource,
            scope=destination.scope,
            expected=destination.expected,
            has_actor=self._settings.exchange_actor == "client",
        )
        return request.of_client() if is_own else request

    def _actor_plan(self, plan: _Plan) -> _Plan:
        return _Plan(plan.engine, _ACTOR, plan.engine.hash_of(_ACTOR))

    def _engine_for(self, caller: BearerToken | None) -> ExchangeEngine:
        """Return the engine for the token's issuer.

        Raises:
            ExchangeFailed: No engine exists for the token's issuer, or the issuer is unknown.
        """
        if self._lone is not None:
            return self._lone
        issuer, tenant = (None, None) if caller is None else _issuer_and_tenant(caller)
        if issuer is not None:
            engine = self._engines.get(issuer) or self._engine_of_tenant(issuer, tenant)
        elif len(self._trusted) == 1:
            engine = self._engines.get(self._trusted[0].issuer)
        else:  # any of the issuers could have issued the token
            engine = None
        if engine is None:
            raise ExchangeFailed("unavailable", "no credential is configured for the token's issuer")
        return engine

    def _engine_of_tenant(self, issuer: str, tenant: object) -> ExchangeEngine | None:
        """Return the engine for the multitenant entry that matches *issuer*."""
        for trusted in self._trusted:
            if trusted.is_any_tenant and fill_tenant(trusted.issuer, tenant, self._settings.tenants) == issuer:
                return self._engines.get(trusted.issuer)
        return None


def _place() -> int:
    """Return an identifier for the current trace or, outside a trace, for the current thread.

    Redaction uses this identifier to find tokens.
    """
    span: Any = get_current().get(SPAN_KEY)
    trace_id: int = 0 if span is None else span.get_span_context().trace_id
    return trace_id or -threading.get_ident()


def _issuer_and_tenant(token: BearerToken) -> tuple[str | None, object]:
    """Return a token's issuer and its ``tid`` claim.

    The issuer is unverified if the verifier does not report one. For example, an application's own verifier might not
    report the issuer. An unverified issuer is used because a token must never be sent to a different issuer's endpoint.
    """
    verified = token.claims or {}
    issuer: object = getattr(token.verification, "issuer", None) or verified.get("iss")
    claims = verified if issuer is not None else claims_of(token.reveal()) or {}
    issuer = issuer or claims.get("iss")
    return None if issuer is None else str(issuer), claims.get("tid")
