"""Send requests to one token endpoint from a limited number of worker threads.

The same generator runs in threads and in event loops (see `verification.drivers`). Worker threads send the requests, so
an event loop never blocks, and a slow server delays only the callers that need its tokens. Callers that need the same
token at the same time share a single request.

Any caller can send an invalid token, but every exchange uses this service's credential. Therefore, only a few workers
exchange tokens that have not been exchanged before. After the server refuses a token, it is not sent again for a few
seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import replace
from typing import Final, NamedTuple
from urllib.parse import urlencode

from otel_token_relay.client_credentials import ClientCredential, CredentialUnavailable
from otel_token_relay.counters import LazyHistogram
from otel_token_relay.decisions import ExchangeResult
from otel_token_relay.durations import check_seconds
from otel_token_relay.errors import ConfigurationError, ExchangeFailed
from otel_token_relay.exchange.cache import DEFAULT_SIZE, ExchangeCache, Exchanged, endpoint_hash, key_of
from otel_token_relay.exchange.grants import Request
from otel_token_relay.exchange.responses import read_response
from otel_token_relay.exchange.token_endpoint import TokenEndpoint
from otel_token_relay.forks import call_in_child
from otel_token_relay.token import DEFAULT_MAX_LENGTH, BearerToken, Clock
from otel_token_relay.verification.circuit_breaker import CircuitBreaker
from otel_token_relay.verification.drivers import Wait
from otel_token_relay.verification.http_client import FetchFailed, HttpClient
from otel_token_relay.verification.jws import Claims, parse_object
from otel_token_relay.verification.worker_pools import WorkerPool

_logger = logging.getLogger("otel_token_relay")

MAX_CONCURRENT: Final = 64
"""The maximum number of concurrent requests to one endpoint."""
MAX_NEW: Final = 8
"""The maximum number of concurrent requests that exchange a token for the first time."""
DEFAULT_TIMEOUT: Final = 4.0
# The maximum number of running and waiting requests in each worker pool.
_MAX_PENDING: Final = 512
_WARNING_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 1.0

_Result = Exchanged | ExchangeFailed

_duration: Final = LazyHistogram(
    "token_relay.exchange.duration",
    "s",
    "The duration of requests to token endpoints.",
    (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5),
)


class Job(NamedTuple):
    """A single request for a token.

    Attributes:
        key: The cache key.
        request: The parameters of the request.
        subject: The caller's token; ``None`` to request the service's own token.
        actor: The service's own token, which identifies the service as the actor; ``None`` to send no actor token.
    """

    key: bytes
    request: Request
    subject: BearerToken | None = None
    actor: BearerToken | None = None

    def with_claims(self, claims: str) -> Job:
        """Return a job that also requests the given claims.

        The new job has a different cache key so that a failure to obtain the claims does not affect requests without
        claims.
        """
        hashed = hashlib.sha256(claims.encode()).digest()
        return self._replace(key=self.key + b"claims" + hashed, request=replace(self.request, claims=claims))

    def __repr__(self) -> str:
        # The key is omitted because it contains an unkeyed hash of the token. A person who can read the logs could use
        # the hash to test whether the logs refer to a given token.
        return f"Job({self.request})"


class ExchangeEngine:
    """The workers, circuit breaker, and cache for one token endpoint.

    Instances can be shared between threads, tasks, and event loops.

    Args:
        endpoint: The token endpoint.
        credential: This service's credential at the endpoint.
        timeout: The maximum number of seconds that a call waits for a token.
        max_length: The maximum length of an issued token, in characters.
        cache_size: The maximum number of results to cache.
        http: The client that sends the requests.
        now: A clock that returns the time as seconds since the epoch.
        monotonic: A monotonic clock that returns the time in seconds.

    Raises:
        ConfigurationError: The *timeout* is not a positive number.
    """

    def __init__(
        self,
        endpoint: TokenEndpoint,
        credential: ClientCredential,
        *,
        http: HttpClient,
        timeout: float = DEFAULT_TIMEOUT,
        max_length: int = DEFAULT_MAX_LENGTH,
        cache_size: int = DEFAULT_SIZE,
        now: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        check_seconds("timeout", timeout)
        if timeout == 0:
            raise ConfigurationError("timeout", "expected more than 0 seconds")
        self.endpoint = endpoint
        self.client_id: str = credential.client_id
        self._credential = credential
        self._http = http
        self._timeout = timeout
        self._max_length = max_length
        self._now = now
        self._monotonic = monotonic
        self._cache = ExchangeCache(cache_size, now=now, monotonic=monotonic)
        self._breaker = CircuitBreaker(monotonic)
        self._warn_at = self._warn_of_actor_at = float("-inf")
        self._start_over()
        call_in_child(self, ExchangeEngine._start_over)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._pending: dict[bytes, Future[_Result]] = {}
        self._new = WorkerPool("exchange-new", MAX_NEW)
        self._known = WorkerPool("exchange", MAX_CONCURRENT - MAX_NEW)
        self._breaker.start_over()

    def __repr__(self) -> str:
        return f"ExchangeEngine({self.endpoint}, client_id={self.client_id!r})"

    def hash_of(self, request: Request) -> bytes:
        """Return the part of a cache key that is the same for all callers.

        Call this method once for each destination.
        """
        return endpoint_hash(self.endpoint.identity, self.client_id, request)

    def job(
        self, request: Request, hashed: bytes, subject: BearerToken | None, actor: BearerToken | None = None
    ) -> Job:
        """Return the job for a request.

        Args:
            request: The parameters of the request.
            hashed: The request's hash, as returned by `hash_of`.
            subject: The caller's token; ``None`` to request the service's own token.
            actor: See `Job`.
        """
        return Job(_key(hashed, subject, actor), request, subject, actor)

    def find(self, hashed: bytes, subject: BearerToken | None, actor: BearerToken | None = None) -> Exchanged | None:
        """Return the cached result; ``None`` if no usable result is cached. See `job` for the arguments."""
        return self._cache.get(_key(hashed, subject, actor))

    def drop(self, job: Job, rejected: BearerToken) -> None:
        """Remove a job's cached result if it is the rejected token."""
        self._cache.drop(job.key, rejected)

    def keep(self, job: Job, found: Exchanged) -> None:
        """Cache an existing result for a job."""
        self._cache.keep(job.key, found)

    def failure(self, job: Job) -> ExchangeFailed | None:
        """Return the failure of a recent attempt; ``None`` if no recent attempt failed."""
        return self._cache.failure(job.key)

    def renew(self, job: Job) -> None:
        """Obtain a new token in the background, unless a recent attempt failed.

        This method never raises an exception.
        """
        with contextlib.suppress(ExchangeFailed), self._lock:
            if job.key not in self._pending and self._cache.failure(job.key) is None:
                self._start(job)

    def steps(self, job: Job) -> Generator[Wait, None, tuple[Exchanged, ExchangeResult]]:
        """Run a job. To run this generator, pass it to `drive` or `drive_async`.

        Raises:
            ExchangeFailed: No token could be obtained.
        """
        if (cached := self._recall(job)) is not None:
            return cached, "hit"
        with self._lock:
            future = self._pending.get(job.key)
            is_shared = future is not None
            if future is None:
                # A different caller's exchange might have finished after the first cache lookup.
                if (cached := self._recall(job)) is not None:
                    return cached, "hit"
                future = self._start(job)
        yield Wait(future, self._timeout)
        found = future.result() if future.done() else ExchangeFailed("timeout")
        if isinstance(found, ExchangeFailed):
            raise _fresh(found)
        return found, "joined" if is_shared else "miss"

    def _recall(self, job: Job) -> Exchanged | None:
        """Return the cached result; ``None`` if no usable result is cached.

        Raises:
            ExchangeFailed: The last attempt failed, and a retry is not yet allowed.
        """
        cached = self._cache.get(job.key)
        if cached is None and (failure := self._cache.failure(job.key)) is not None:
            raise _fresh(failure)
        return cached

    def _start(self, job: Job) -> Future[_Result]:
        """Start a request, unless too many requests are waiting.

        The calling code must hold the lock and check that no request with the same key is running.
        """
        is_known = job.subject is None or self._cache.has_succeeded(job.key)
        workers = self._known if is_known else self._new
        if workers.load >= _MAX_PENDING:
            raise ExchangeFailed("unavailable", "too many token exchanges are waiting")
        if not self._breaker.allows(job.key):
            raise ExchangeFailed("unavailable", "the token endpoint recently failed to respond")
        future: Future[_Result] = Future()
        self._pending[job.key] = future
        workers.load += 1
        deadline = self._monotonic() + self._timeout
        try:
            workers.executor.submit(self._run, workers, job, future, deadline)
        except RuntimeError:  # the process has reached its thread limit or is exiting
            # The executor might have queued the call, which would then run when a thread becomes available.
            if future.cancel():
                del self._pending[job.key]
                workers.load -= 1
                self._breaker.cancel(job.key)
                if not workers.load:
                    # Replace the executor, because its queue might never be emptied, and tokens could accumulate in it.
                    workers.start_over()
                raise ExchangeFailed("unavailable", "no thread can be started") from None
        return future

    def _run(self, workers: WorkerPool, job: Job, future: Future[_Result], deadline: float) -> None:
        if not future.set_running_or_notify_cancel():
            return
        probe_is_due = False
        found: _Result = ExchangeFailed("unavailable")
        try:
            if self._monotonic() >= deadline or not self._breaker.still_allows(job.key):
                found = ExchangeFailed("timeout", "the exchange did not start in time")
                probe_is_due = self._breaker.record_failure(job.key)
            else:
                found = self._attempt(job)
                probe_is_due = self._note(job.key, found)
        finally:  # prevent callers from having to wait for the timeout
            with self._lock:
                self._pending.pop(job.key, None)
                workers.load -= 1
            future.set_result(found)
        if probe_is_due:
            self._breaker.end_probe(succeeded=self._probe(job.request))

    def _attempt(self, job: Job) -> _Result:
        """Return the result or the failure.

        The failure has no traceback or causes, because these would refer to frames that contain tokens.

        Errors are logged only outside the exception handler, because an error tracker could otherwise report the
        exception and its frames.
        """
        try:
            return self._measured(job)
        except ExchangeFailed as failure:
            return _fresh(failure)
        except Exception as error:
            kind = type(error).__name__
        with contextlib.suppress(Exception):  # log filters can raise exceptions, but the worker must continue
            _logger.error("a token exchange raised %s", kind)
        return ExchangeFailed("unavailable")

    def _note(self, key: bytes, found: _Result) -> bool:
        """Record an attempt in the circuit breaker, the cache, and the log.

        Return whether a probe of the endpoint is due.
        """
        if isinstance(found, Exchanged):
            self._breaker.record_success()
            return False
        self._cache.put_failure(key, found)
        self._warn(found)
        if found.error in ("unavailable", "timeout"):
            return self._breaker.record_failure(key)
        # The server responded, so the token or this service's credential caused the failure.
        self._breaker.record_success()
        return False

    def _measured(self, job: Job) -> Exchanged:
        started = self._monotonic()
        attributes: dict[str, str] = {}
        try:
            return self._exchange(job)
        except ExchangeFailed as failure:
            attributes = {"error.type": failure.error}
            raise
        finally:
            _duration.record(self._monotonic() - started, attributes)

    def _exchange(self, job: Job) -> Exchanged:
        subject, actor = (None if token is None else token.reveal() for token in (job.subject, job.actor))
        status, members = self._post(job.request, subject, actor, self._timeout)
        given = tuple(token for token in (subject, actor) if token is not None)
        issued = read_response(status, members, job.request, given, self._max_length)
        if issued.expires_in == 0 or (issued.expires_at is not None and issued.expires_at <= self._now()):
            raise ExchangeFailed("bad_response", "the issued token has already expired")
        if actor is not None and issued.has_claims and not issued.has_actor:
            self._warn_of_actor()
        expires_at = issued.expires_at if job.subject is None else job.subject.expires_at
        return self._cache.put(job.key, issued, expires_at, is_own=job.subject is None)

    def _post(
        self, request: Request, subject: str | None, actor: str | None, timeout: float
    ) -> tuple[int, Claims | None]:
        deadline = self._monotonic() + timeout
        url = self.endpoint.locate(timeout)
        try:
            identity = self._credential.authenticate(self.endpoint.issuer, url)
        except CredentialUnavailable as error:
            raise ExchangeFailed("invalid_client", str(error)) from None
        form = urlencode((*request.form(subject, actor), *identity.form)).encode("ascii")
        try:
            response = self._http.fetch(
                url,
                timeout=max(deadline - self._monotonic(), 0.001),
                form=form,
                authorization=identity.authorization,
                certificate=identity.certificate,
            )
        except FetchFailed as error:
            raise ExchangeFailed("timeout" if error.cause == "timed_out" else "unavailable", str(error)) from None
        try:
            return response.status, parse_object(response.body)
        except ValueError:
            return response.status, None

    def _probe(self, request: Request) -> bool:
        """Return whether the server responds to the request that `ask` sends."""
        try:
            self.ask(request, min(self._timeout, _PROBE_SECONDS))
        except ExchangeFailed as failure:
            return failure.error not in ("unavailable", "timeout")
        return True

    def ask(self, request: Request, timeout: float) -> None:
        """Try to exchange a random token or, for ``client-credentials``, obtain the service's own token.

        This method blocks.

        Raises:
            ExchangeFailed: The server refuses the request, does not respond, or returns an unusable response. A
                conforming server refuses a random token.
        """
        subject = None if request.grant == "client-credentials" else secrets.token_urlsafe(32)
        status, members = self._post(request, subject, None, timeout)
        given = () if subject is None else (subject,)
        read_response(status, members, request, given, self._max_length)

    def _warn(self, failure: ExchangeFailed) -> None:
        # Limit the number of warnings, because callers could otherwise fill the log by sending invalid tokens.
        now = self._monotonic()
        level = logging.WARNING if now >= self._warn_at else logging.DEBUG
        if level == logging.WARNING:
            self._warn_at = now + _WARNING_SECONDS
        with contextlib.suppress(Exception):  # see `_attempt`
            _logger.log(level, "%s: %s", self.endpoint, failure)

    def _warn_of_actor(self) -> None:
        now = self._monotonic()
        if now < self._warn_of_actor_at:
            return
        self._warn_of_actor_at = now + 60 * _WARNING_SECONDS
        with contextlib.suppress(Exception):
            _logger.warning(
                "%s: the server accepted an actor token, but the issued token does not identify an actor (act)",
                self.endpoint,
            )


_NO_SUBJECT: Final = bytes(32)


def _key(hashed: bytes, subject: BearerToken | None, actor: BearerToken | None) -> bytes:
    return key_of(
        _NO_SUBJECT if subject is None else subject.digest(), hashed, b"" if actor is None else actor.digest()
    )


def _fresh(failure: ExchangeFailed) -> ExchangeFailed:
    """Return a copy of the failure, because multiple callers can raise it at the same time."""
    return ExchangeFailed(failure.error, failure.detail, claims_challenge=failure.claims_challenge)
