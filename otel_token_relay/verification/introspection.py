"""Ask the authorization server whether a token is active (RFC 7662).

Introspection verifies opaque tokens and, if configured, checks whether JWTs have been revoked. If the server does not
respond, the request fails with status 503, and the token is not reported as invalid. A failed lookup does not affect
other tokens unless the lookup of a random token also fails (see `circuit_breaker`).
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from otel_token_relay.client_credentials import Authentication, ClientCredential, CredentialUnavailable
from otel_token_relay.errors import KeysUnavailable
from otel_token_relay.forks import call_in_child
from otel_token_relay.token import Clock
from otel_token_relay.verification.cache import Cache
from otel_token_relay.verification.circuit_breaker import OPEN_SECONDS, CircuitBreaker
from otel_token_relay.verification.drivers import Wait
from otel_token_relay.verification.http_client import FetchFailed, HttpClient, shared_client
from otel_token_relay.verification.jws import parse_object
from otel_token_relay.verification.worker_pools import WorkerPool

_logger = logging.getLogger("otel_token_relay")

MAX_REUSE_SECONDS: Final = 60.0
# Inactive results are cached only briefly, because some of a server's nodes might not recognize a newly issued token
# immediately.
NEGATIVE_REUSE_SECONDS: Final = 5.0
# The delay before the next lookup of a token that the server refused to introspect.
REFUSED_REUSE_SECONDS: Final = 5.0
WARNING_SECONDS: Final = 10.0
# The maximum number of running and waiting calls in each worker pool.
MAX_PENDING: Final = 256
# The maximum number of running and waiting refreshes. The limit is low, because a lookup might have to wait for earlier
# refreshes.
MAX_REFRESHES: Final = 32
# The delay before a dropped refresh is retried. Without this delay, every request would retry the refresh.
REFRESH_PAUSE_SECONDS: Final = 1.0
_LOOKUP_WORKERS: Final = 8
_REFRESH_WORKERS: Final = 4
_PROBE_SECONDS: Final = 1.0

# These 4xx statuses indicate a problem with this service's credential, URL, or request rate rather than with the token.
# Source: RFC 7662, section 2.3; RFC 6750, section 3.1; RFC 6585, section 4.
_NOT_ABOUT_TOKEN: Final = frozenset({401, 403, 404, 405, 407, 408, 429})


class _TokenRefused(FetchFailed):
    """An error that is raised when the server refuses to introspect a token."""


class IntrospectionResult(NamedTuple):
    """The introspection response for one token.

    Attributes:
        claims: The members of the response, or ``None`` if the token is not active.
        until: The monotonic time, in seconds, when the result expires.
        refresh_at: The monotonic time, in seconds, after which the next use of the result triggers a background
            refresh.
    """

    claims: Mapping[str, Any] | None
    until: float
    refresh_at: float


class Introspection:
    """One server's introspection endpoint. An instance can be shared by threads, tasks, and event loops.

    Args:
        endpoint: The endpoint's URL, which the HTTP client must accept.
        client: This service's credential for the endpoint, or ``None`` if the endpoint does not require one.
        issuer: The issuer that the endpoint belongs to, or ``None`` if the issuer is unknown.
        timeout: The maximum time, in seconds, to wait for a response.
        size: The maximum number of active results to cache. The same limit applies to inactive results.
        http: The client that sends the requests, or ``None`` to use the default client.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        client: ClientCredential | None = None,
        issuer: str | None = None,
        timeout: float = 4.0,
        size: int = 4096,
        http: HttpClient | None = None,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._http = shared_client() if http is None else http
        self._endpoint = self._http.check_url("introspection_endpoint", endpoint)
        self._client = client
        self._issuer = issuer
        self._timeout = timeout
        self._monotonic = monotonic
        self._active: Cache[IntrospectionResult] = Cache(size)
        # Separate caches prevent invalid tokens from evicting active tokens.
        self._inactive: Cache[IntrospectionResult] = Cache(size)
        # The earliest retry time for each token whose lookup failed.
        self._failed: Cache[float] = Cache(size)
        self._breaker = CircuitBreaker(monotonic)
        self._warn_at = float("-inf")
        self._start_over()
        call_in_child(self, Introspection._start_over)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._pending: dict[bytes, Future[IntrospectionResult | None]] = {}
        # The pools are separate for two reasons. Invalid tokens must not delay recently active tokens. Refreshes, which
        # are not urgent, must not delay a token's first lookup.
        self._lookups = WorkerPool("introspection", _LOOKUP_WORKERS)
        self._refreshes = WorkerPool("refresh", _REFRESH_WORKERS)
        self._breaker.start_over()

    def __repr__(self) -> str:
        return f"Introspection({self._endpoint!r})"

    def cached(self, key: bytes, token: str | None = None) -> IntrospectionResult | None:
        """Return the cached result without waiting, or ``None`` if no valid result is cached.

        Args:
            key: The token's digest.
            token: The token. If the token is passed and the result is due for a refresh, the refresh starts in the
                background.
        """
        result = self._active.get(key) or self._inactive.get(key)
        now = self._monotonic()
        if result is None or now >= result.until:
            return None
        if token is not None and result.claims is not None and now >= result.refresh_at:
            with contextlib.suppress(KeysUnavailable):  # the next use retries the refresh
                self._submit(key, token, is_refresh=True)
        return result

    def look_up(self, key: bytes, token: str) -> Wait:
        """Start a lookup, or join a pending lookup of the same token.

        Returns:
            The future to wait for, whose result is ``None`` if the lookup fails.

        Raises:
            KeysUnavailable: The endpoint is down, the last lookup of this token failed recently, or too many lookups
                are pending.
        """
        return Wait(self._submit(key, token, is_refresh=False), self._timeout)

    def _submit(self, key: bytes, token: str, *, is_refresh: bool) -> Future[IntrospectionResult | None]:
        now = self._monotonic()
        if (remaining := (self._failed.get(key) or now) - now) > 0:
            raise KeysUnavailable(remaining)
        with self._lock:
            future = self._pending.get(key)
            if future is None:
                future = self._start(key, token, now + self._timeout, is_refresh)
        return future

    def _start(self, key: bytes, token: str, deadline: float, is_refresh: bool) -> Future[IntrospectionResult | None]:
        pool = self._pool(key, is_refresh)
        if pool.load >= (MAX_REFRESHES if is_refresh else MAX_PENDING):
            if is_refresh:
                self._postpone_refresh(key)
            raise KeysUnavailable
        if not self._breaker.allows(key):
            raise KeysUnavailable(OPEN_SECONDS)
        future: Future[IntrospectionResult | None] = Future()
        self._pending[key] = future
        pool.load += 1
        try:
            pool.executor.submit(self._run, pool, key, token, future, deadline)
        except RuntimeError:  # no thread can be started, because the process has reached its thread limit or is exiting
            # Cancel the call, because the executor might have queued it despite the error.
            if future.cancel():
                self._cancel(pool, key)
                raise KeysUnavailable from None
        return future

    def _cancel(self, pool: WorkerPool, key: bytes) -> None:
        self._pending.pop(key, None)
        pool.load -= 1
        self._breaker.cancel(key)
        if not pool.load:
            # Replace the executor to discard its queue. Otherwise, tokens might accumulate in the queue.
            pool.start_over()

    def _pool(self, key: bytes, is_refresh: bool) -> WorkerPool:
        if is_refresh:
            return self._refreshes
        if self._active.get(key) is None:
            return self._lookups
        # The token was active recently, and a caller is waiting. If all refresh workers are busy, use an idle lookup
        # worker.
        return self._lookups if self._refreshes.is_busy and not self._lookups.is_busy else self._refreshes

    def _postpone_refresh(self, key: bytes) -> None:
        """Postpone the next refresh of *key* after a refresh was dropped.

        Call this method only from the thread that owns the current lookup of *key*. Any other thread might overwrite a
        newer result.
        """
        result = self._active.get(key)
        if result is not None:
            self._active.put(key, result._replace(refresh_at=self._monotonic() + REFRESH_PAUSE_SECONDS))

    def _run(
        self, pool: WorkerPool, key: bytes, token: str, future: Future[IntrospectionResult | None], deadline: float
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return
        result, probe_is_due = None, False
        try:
            if self._monotonic() < deadline and self._breaker.still_allows(key):
                result = self._store(key, self._introspect(token))
                self._breaker.record_success()
            else:  # all callers stopped waiting, or the circuit opened, while the call was queued
                self._postpone_refresh(key)
                probe_is_due = self._breaker.record_failure(key)
        except _TokenRefused as error:
            self._record_failure(key, REFUSED_REUSE_SECONDS, error)
            self._breaker.record_success()
        except Exception as error:  # the waiting callers do not receive a result
            self._record_failure(key, OPEN_SECONDS, error)
            probe_is_due = self._breaker.record_failure(key)
        finally:
            with self._lock:
                self._pending.pop(key, None)
                pool.load -= 1
            future.set_result(result)
        if probe_is_due:
            self._breaker.end_probe(succeeded=self._probe())

    def _record_failure(self, key: bytes, seconds: float, error: Exception) -> None:
        now = self._monotonic()
        self._failed.put(key, now + seconds)
        # Limit the number of warnings, because a caller could send many tokens whose lookups fail.
        level = logging.WARNING if now >= self._warn_at else logging.DEBUG
        if level == logging.WARNING:
            self._warn_at = now + WARNING_SECONDS
        _log(level, "introspection failed: %s", error)

    def _probe(self) -> bool:
        """Return whether a lookup of a random token succeeds. The token should be inactive (RFC 7662, section 2.2)."""
        try:
            self._introspect(secrets.token_urlsafe(32), min(self._timeout, _PROBE_SECONDS))
        except _TokenRefused:
            return True
        except Exception as error:  # the endpoint is down
            _log(logging.WARNING, "the introspection endpoint is down: %s", error)
            return False
        return True

    def _introspect(self, token: str, timeout: float | None = None) -> Mapping[str, Any] | None:
        form, identity = build_request(token, self._client, self._issuer, self._endpoint)
        seconds = self._timeout if timeout is None else timeout
        response = self._http.fetch(
            self._endpoint,
            timeout=seconds,
            form=form,
            authorization=identity.authorization,
            certificate=identity.certificate,
        )
        if response.status != 200:
            is_about_token = 400 <= response.status < 500 and response.status not in _NOT_ABOUT_TOKEN
            failure = _TokenRefused if is_about_token else FetchFailed
            raise failure(f"the introspection endpoint responded with status {response.status}")
        return read_response(response.body)

    def _store(self, key: bytes, claims: Mapping[str, Any] | None) -> IntrospectionResult:
        now = self._monotonic()
        if claims is None:
            # Store the new result before removing the old one so that a result is always available.
            until = now + NEGATIVE_REUSE_SECONDS
            result = IntrospectionResult(None, until, until)
            self._inactive.put(key, result)
            self._active.drop(key)
        else:
            result = IntrospectionResult(claims, now + MAX_REUSE_SECONDS, now + MAX_REUSE_SECONDS / 2)
            self._active.put(key, result)
            self._inactive.drop(key)
        return result


def _log(level: int, text: str, error: Exception) -> None:
    with contextlib.suppress(Exception):  # the worker must continue even if a logging filter raises an error
        _logger.log(level, text, FetchFailed.describe(error))


def build_request(
    token: str, client: ClientCredential | None, issuer: str | None, endpoint: str
) -> tuple[bytes, Authentication]:
    """Return the form data and this service's authentication for an introspection request (RFC 7662, section 2.1).

    Raises:
        FetchFailed: The client credential is currently unavailable.
    """
    try:
        identity = Authentication() if client is None else client.authenticate(issuer, endpoint)
    except CredentialUnavailable as error:
        raise FetchFailed(str(error)) from None
    members = (("token", token), ("token_type_hint", "access_token"), *identity.form)
    return urlencode(members).encode("ascii"), identity


def read_response(body: bytes) -> Mapping[str, Any] | None:
    """Return the members of the introspection response, or ``None`` if the token is not active (RFC 7662, section 2.2).

    Raises:
        FetchFailed: The response is not a JSON object with a boolean ``active`` member.
    """
    try:
        claims = parse_object(body)
    except ValueError as error:
        raise FetchFailed(f"the introspection response is not a JSON document: {error}") from None
    active = claims.get("active")
    if not isinstance(active, bool):
        raise FetchFailed("the introspection response does not contain a boolean 'active' member")
    return claims if active else None
