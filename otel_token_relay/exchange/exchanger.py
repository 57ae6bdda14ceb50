"""Exchange callers' tokens at one token endpoint, in threads and on event loops.

The work is written once, as a generator (see `verification.drivers`). Requests run in worker threads, so an event
loop never blocks, and a slow server delays only the callers that wait for it. Callers that need the same token at the
same time share one request.

Callers choose their tokens, and every request is made with this service's credential. Tokens that have not been
exchanged before may therefore use only a few of the workers, and a refused token is not sent again for a moment.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final
from urllib.parse import urlencode

from otel_token_relay.client_credentials import (
    Authentication,
    ClientAuth,
    ClientCredential,
    CredentialUnavailable,
    Secret,
    make_credential,
)
from otel_token_relay.durations import check_seconds
from otel_token_relay.errors import ConfigurationError, ExchangeFailed, TokenUnavailable
from otel_token_relay.exchange.cache import DEFAULT_SIZE, ExchangeCache, Exchanged, endpoint_hash, key_of, subject_hash
from otel_token_relay.exchange.grants import GRANTS, Grant, Request
from otel_token_relay.exchange.responses import read_response
from otel_token_relay.forks import call_in_child
from otel_token_relay.reasons import Reason
from otel_token_relay.token import DEFAULT_MAX_LENGTH, BearerToken, Clock
from otel_token_relay.verification.circuit_breaker import CircuitBreaker
from otel_token_relay.verification.drivers import Wait, drive, drive_async
from otel_token_relay.verification.http_client import FetchFailed, HttpClient, shared_client
from otel_token_relay.verification.jws import Claims, parse_object

_logger = logging.getLogger("otel_token_relay")

MAX_CONCURRENT: Final = 64
"""The maximum number of requests to one endpoint at a time."""
MAX_NEW: Final = 8
"""The maximum number of these requests for tokens that have not been exchanged before."""
# The maximum number of exchanges that may be running or waiting for a worker, in each of the two groups.
_MAX_PENDING: Final = 512
_WARNING_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 1.0

_Result = Exchanged | ExchangeFailed


class _Workers:
    """A thread pool, and the number of its running and waiting calls. The owner's lock guards the number."""

    __slots__ = ("_name", "_size", "executor", "load")

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self.start_over()

    def start_over(self) -> None:
        """Replace the workers with new ones, which start when they are needed."""
        self.executor: ThreadPoolExecutor = ThreadPoolExecutor(self._size, f"token-relay-{self._name}")
        self.load: int = 0


class ExchangerCore:
    """The endpoint, credential and cache that both exchangers share.

    Args:
        token_endpoint: The URL of the authorization server's token endpoint.
        client_id: This service's client ID there.
        client_secret: The client's secret, or a callable that returns it. Instead, there may be one of the next
            arguments; see `ClientCredential`.
        client_secret_file: A file that contains the secret. Each file is read again when it changes.
        client_key_file: A file with the private key that signs this service's assertions.
        client_key_id: The ``kid`` of the assertions.
        client_assertion: A callable that returns an assertion to send as it is.
        client_assertion_file: A file with an assertion to send as it is.
        client_cert_file: A file with a certificate.
        client_auth: How the credential is sent; ``None`` for what the credential suggests.
        issuer: The authorization server's issuer, for which ``private_key_jwt`` signs the assertions.
        grant: ``token-exchange`` (RFC 8693) or ``on-behalf-of`` (Microsoft Entra).
        allow_unverified: Whether to exchange tokens that no verifier has accepted in this request. Otherwise, anyone
            could make this service send requests with its credential.
        timeout: The maximum number of seconds for which a call waits.
        max_length: The maximum length of an issued token, in characters.
        cache_size: The maximum number of results to cache.
        http: Sends the requests; ``None`` for the default client.
        now: A clock that returns the seconds since the epoch.
        monotonic: A clock that returns seconds and never goes backward.

    Raises:
        ConfigurationError: An argument is invalid; the error names it.
    """

    def __init__(
        self,
        *,
        token_endpoint: str,
        client_id: str,
        client_secret: Secret | str | Callable[[], str] | None = None,
        client_secret_file: str | None = None,
        client_key_file: str | None = None,
        client_key_id: str | None = None,
        client_assertion: Callable[[], str] | None = None,
        client_assertion_file: str | None = None,
        client_cert_file: str | None = None,
        client_auth: ClientAuth | None = None,
        issuer: str | None = None,
        grant: Grant = "token-exchange",
        allow_unverified: bool = False,
        timeout: float = 4.0,
        max_length: int = DEFAULT_MAX_LENGTH,
        cache_size: int = DEFAULT_SIZE,
        http: HttpClient | None = None,
        now: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._http = shared_client() if http is None else http
        self._endpoint = self._http.check_url("token_endpoint", token_endpoint)
        credential = make_credential(
            client_id,
            client_secret,
            client_secret_file,
            client_auth,
            key_file=client_key_file,
            key_id=client_key_id,
            assertion=client_assertion,
            assertion_file=client_assertion_file,
            cert_file=client_cert_file,
        )
        if credential is None:
            raise ConfigurationError("client_id", "expected the name of this service at the authorization server")
        credential.check_use(issuer, self._endpoint)
        if grant not in GRANTS:
            raise ConfigurationError("grant", f"expected one of {', '.join(GRANTS)}")
        check_seconds("timeout", timeout)
        if timeout == 0:
            raise ConfigurationError("timeout", "expected more than 0 seconds")
        self._client: ClientCredential = credential
        self._issuer = issuer
        self._grant: Grant = grant
        self._allow_unverified = allow_unverified
        self._timeout = timeout
        self._max_length = max_length
        self._now = now
        self._monotonic = monotonic
        self._cache = ExchangeCache(cache_size, now=now, monotonic=monotonic)
        self._breaker = CircuitBreaker(monotonic)
        self._warn_at = float("-inf")
        self._start_over()
        call_in_child(self, ExchangerCore._start_over)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._pending: dict[bytes, Future[_Result]] = {}
        self._new = _Workers("exchange-new", MAX_NEW)
        self._known = _Workers("exchange", MAX_CONCURRENT - MAX_NEW)
        self._breaker.start_over()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint!r}, client_id={self._client.client_id!r})"

    def _request(self, audience: str | None, resource: str | None, scope: str | None) -> Request:
        if audience is None and resource is None and scope is None:
            raise ConfigurationError("audience", "expected an audience, a resource or a scope")
        return Request(self._grant, audience=audience, resource=resource, scope=scope)

    def steps(self, token: BearerToken, request: Request) -> Generator[Wait, None, BearerToken]:
        """Exchange a token. This generator is run by `drive` or `drive_async`.

        Returns:
            The issued token, under the lease of *token*, so that it cannot be used after the request either.

        Raises:
            TokenUnavailable: *token* must not be exchanged.
            ExchangeFailed: No token could be obtained.
        """
        self._check_subject(token)
        subject = token.reveal()
        key = key_of(subject_hash(subject), endpoint_hash(self._endpoint, self._client.client_id, request))
        result = self._cache.get(key)
        if result is None:
            if (failure := self._cache.failure(key)) is not None:
                raise failure
            future = self._submit(key, subject, token.expires_at, request)
            yield Wait(future, self._timeout)
            found = future.result() if future.done() else ExchangeFailed("timeout")
            if isinstance(found, ExchangeFailed):
                raise ExchangeFailed(found.error, found.detail, claims_challenge=found.claims_challenge)
            result = found
            self._check_subject(token)  # the request may have ended, or the token may have been revoked
        return BearerToken(result.value, lease=token.lease)

    def _check_subject(self, token: BearerToken) -> None:
        """Raise unless a token may be exchanged now."""
        reason = self._reason_against(token)
        if reason is not None:
            raise TokenUnavailable(reason, self._endpoint)

    def _reason_against(self, token: BearerToken) -> Reason | None:
        if not token.is_own_process:
            return Reason.OTHER_PROCESS
        if token.lease is not None and not token.lease.is_open:
            return Reason.LEASE_ENDED
        if token.expires_at is not None and self._now() >= token.expires_at:
            return Reason.EXPIRED
        if token.is_sender_constrained:
            return Reason.SENDER_CONSTRAINED
        verification = token.verification
        if verification is None:
            return None if self._allow_unverified else Reason.NOT_VERIFIED
        return None if verification.is_still_valid() else Reason.NOT_VERIFIED

    def _submit(self, key: bytes, subject: str, expires_at: float | None, request: Request) -> Future[_Result]:
        with self._lock:
            future = self._pending.get(key)
            if future is None:
                future = self._start(key, subject, expires_at, request)
        return future

    def _start(self, key: bytes, subject: str, expires_at: float | None, request: Request) -> Future[_Result]:
        workers = self._known if self._cache.has_succeeded(key) else self._new
        if workers.load >= _MAX_PENDING:
            raise ExchangeFailed("unavailable", "too many exchanges are waiting")
        if not self._breaker.allows(key):
            raise ExchangeFailed("unavailable", "the token endpoint did not respond a moment ago")
        future: Future[_Result] = Future()
        self._pending[key] = future
        workers.load += 1
        deadline = self._monotonic() + self._timeout
        try:
            workers.executor.submit(self._run, workers, key, subject, expires_at, request, future, deadline)
        except RuntimeError:  # no thread can be started: the process has reached its limit or is ending
            # The executor may have queued the call anyway, and would run it once it has a thread.
            if future.cancel():
                del self._pending[key]
                workers.load -= 1
                self._breaker.cancel(key)
                raise ExchangeFailed("unavailable", "no thread can be started") from None
        return future

    def _run(
        self,
        workers: _Workers,
        key: bytes,
        subject: str,
        expires_at: float | None,
        request: Request,
        future: Future[_Result],
        deadline: float,
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return
        probe_is_due = False
        found: _Result = ExchangeFailed("unavailable")
        try:
            if self._monotonic() >= deadline or not self._breaker.still_allows(key):
                found = ExchangeFailed("timeout", "the exchange was not started in time")
                probe_is_due = self._breaker.record_failure(key)
            else:
                found = self._exchange(key, subject, expires_at, request)
                self._breaker.record_success()
        except ExchangeFailed as failure:
            found = failure.with_traceback(None)
            if failure.error in ("unavailable", "timeout"):
                probe_is_due = self._breaker.record_failure(key)
            else:  # the server responds; the failure is about this token, or about this service's credential
                self._breaker.record_success()
            self._cache.put_failure(key, failure)
            self._warn(failure)
        except Exception as error:  # the waiting callers must not wait for the timeout
            probe_is_due = self._breaker.record_failure(key)
            _logger.error("a token exchange raised %s", type(error).__name__)
        finally:
            with self._lock:
                self._pending.pop(key, None)
                workers.load -= 1
            future.set_result(found)
        if probe_is_due:
            self._breaker.end_probe(succeeded=self._probe(request))

    def _exchange(self, key: bytes, subject: str, expires_at: float | None, request: Request) -> Exchanged:
        status, members = self._post(request, subject, self._timeout)
        issued = read_response(status, members, request, (subject,), self._max_length)
        return self._cache.put(key, issued, expires_at)

    def _post(self, request: Request, subject: str, timeout: float) -> tuple[int, Claims | None]:
        try:
            identity: Authentication = self._client.authenticate(self._issuer, self._endpoint)
        except CredentialUnavailable as error:
            raise ExchangeFailed("invalid_client", str(error)) from None
        form = urlencode((*request.form(subject), *identity.form)).encode("ascii")
        try:
            response = self._http.fetch(
                self._endpoint,
                timeout=timeout,
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
        """Return whether the server responds to the exchange of a random token, which it must refuse."""
        try:
            status, _ = self._post(request, secrets.token_urlsafe(32), min(self._timeout, _PROBE_SECONDS))
        except ExchangeFailed:
            return False
        return status < 500

    def _warn(self, failure: ExchangeFailed) -> None:
        # Callers can send tokens that are refused, and could otherwise fill the log.
        now = self._monotonic()
        level = logging.WARNING if now >= self._warn_at else logging.DEBUG
        if level == logging.WARNING:
            self._warn_at = now + _WARNING_SECONDS
        with contextlib.suppress(Exception):  # the application's logging filter may raise; the worker must go on
            _logger.log(level, "%s: %s", self._endpoint, failure)


class TokenExchanger(ExchangerCore):
    """Exchange tokens in threads. Create one exchanger per process and share it."""

    def exchange(
        self, token: BearerToken, *, audience: str | None = None, resource: str | None = None, scope: str | None = None
    ) -> BearerToken:
        """Return a token for another service, issued in exchange for the caller's *token*.

        Args:
            token: The caller's token, for example from `current_token`.
            audience: The logical name of the other service.
            resource: The URI of the other service.
            scope: The scopes of the result, separated by spaces.

        Returns:
            The issued token, under the lease of *token*, for use with `use_token`.

        Raises:
            ConfigurationError: None of *audience*, *resource* and *scope* is given.
            TokenUnavailable: *token* must not be exchanged.
            ExchangeFailed: No token could be obtained. The caller's own token must not be sent instead.
        """
        return drive(self.steps(token, self._request(audience, resource, scope)))


class AsyncTokenExchanger(ExchangerCore):
    """Exchange tokens in asyncio or trio tasks, without ever blocking the event loop."""

    async def exchange(
        self, token: BearerToken, *, audience: str | None = None, resource: str | None = None, scope: str | None = None
    ) -> BearerToken:
        """Do the same as `TokenExchanger.exchange`."""
        return await drive_async(self.steps(token, self._request(audience, resource, scope)))
