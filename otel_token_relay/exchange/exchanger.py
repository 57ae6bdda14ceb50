"""Exchange callers' tokens in application code."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

from otel_token_relay.client_credentials import ClientAuth, Secret, make_credential
from otel_token_relay.context import announce_obtained
from otel_token_relay.entry_syntax import GRANTS, Grant
from otel_token_relay.errors import ConfigurationError, TokenUnavailable
from otel_token_relay.exchange.cache import DEFAULT_SIZE
from otel_token_relay.exchange.engine import DEFAULT_TIMEOUT, ExchangeEngine
from otel_token_relay.exchange.grants import Request
from otel_token_relay.exchange.token_endpoint import TokenEndpoint
from otel_token_relay.reasons import Reason
from otel_token_relay.token import DEFAULT_MAX_LENGTH, BearerToken, Clock
from otel_token_relay.verification.drivers import Wait, drive, drive_async
from otel_token_relay.verification.http_client import HttpClient, shared_client


class ExchangerCore:
    """The endpoint, credential, and cache that both exchangers share.

    Args:
        token_endpoint: The URL of the authorization server's token endpoint.
        client_id: This service's client ID at the authorization server.
        client_secret: The client secret, or a callable that returns it. See `ClientCredential` for alternatives to a
            client secret.
        client_secret_file: A file that contains the client secret. All files are read again when they change.
        client_key_file: A file that contains the private key for signing this service's assertions.
        client_key_id: The ``kid`` of the assertions.
        client_assertion: A callable that returns an assertion, which is sent unchanged.
        client_assertion_file: A file that contains an assertion, which is sent unchanged.
        client_cert_file: A file that contains this service's certificate.
        client_auth: The authentication method; ``None`` to use the default method for the type of credential.
        issuer: The authorization server's issuer identifier, which is the audience of ``private_key_jwt`` assertions.
        grant: ``token-exchange`` (RFC 8693) or ``on-behalf-of`` (Microsoft Entra).
        allow_unverified: Whether to exchange tokens that no verifier has accepted during the current request. If
            ``True``, any caller can cause requests to be sent with this service's credential.
        timeout: The maximum number of seconds that a call waits for a token.
        max_length: The maximum length of an issued token, in characters.
        cache_size: The maximum number of results to cache.
        http: The client that sends the requests; ``None`` to use the default client.
        now: A clock that returns the time as seconds since the epoch.
        monotonic: A monotonic clock that returns the time in seconds.

    Raises:
        ConfigurationError: An argument is invalid. The error identifies the argument.
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
        timeout: float = DEFAULT_TIMEOUT,
        max_length: int = DEFAULT_MAX_LENGTH,
        cache_size: int = DEFAULT_SIZE,
        http: HttpClient | None = None,
        now: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        http = shared_client() if http is None else http
        http.check_url("token_endpoint", token_endpoint)
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
            raise ConfigurationError("client_id", "expected this service's client ID at the authorization server")
        credential.check_use(issuer, token_endpoint)
        if grant not in GRANTS:
            raise ConfigurationError("grant", f"expected one of {', '.join(GRANTS)}")
        self._engine = ExchangeEngine(
            TokenEndpoint(token_endpoint, issuer, http=http, monotonic=monotonic),
            credential,
            http=http,
            timeout=timeout,
            max_length=max_length,
            cache_size=cache_size,
            now=now,
            monotonic=monotonic,
        )
        self._endpoint = token_endpoint
        self._grant: Grant = grant
        self._allow_unverified = allow_unverified
        self._now = now

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint!r}, client_id={self._engine.client_id!r})"

    def _request(self, audience: str | None, resource: str | None, scope: str | None, expect: Sequence[str]) -> Request:
        if audience is None and resource is None and scope is None:
            raise ConfigurationError("audience", "expected an audience, a resource, or a scope")
        expected = (expect,) if isinstance(expect, str) else tuple(expect)
        return Request(self._grant, audience=audience, resource=resource, scope=scope, expected=expected)

    def steps(self, token: BearerToken, request: Request) -> Generator[Wait, None, BearerToken]:
        """Exchange a token. To run this generator, pass it to `drive` or `drive_async`.

        Returns:
            The issued token, which has the same lease as *token*. Therefore, the issued token cannot be used after the
            request has ended.

        Raises:
            TokenUnavailable: The *token* must not be exchanged.
            ExchangeFailed: No token could be obtained.
        """
        self._check_subject(token)
        found, result = yield from self._engine.steps(self._engine.job(request, self._engine.hash_of(request), token))
        if result != "hit":
            # During the exchange, the request might have ended, or the token might have been revoked.
            self._check_subject(token)
        issued = BearerToken.from_parsed(found.value, lease=token.lease)
        announce_obtained(issued)
        return issued

    def _check_subject(self, token: BearerToken) -> None:
        """Raise `TokenUnavailable` unless the token can be exchanged now."""
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


class TokenExchanger(ExchangerCore):
    """A token exchanger for threads. Create a single exchanger for each process."""

    def exchange(
        self,
        token: BearerToken,
        *,
        audience: str | None = None,
        resource: str | None = None,
        scope: str | None = None,
        expect: Sequence[str] = (),
    ) -> BearerToken:
        """Exchange the caller's *token* for a token that a different service accepts.

        Args:
            token: The caller's token (for example, the result of `current_token`).
            audience: The logical name of the service that will receive the issued token.
            resource: The URI of the service that will receive the issued token.
            scope: A space-separated list of the requested scopes.
            expect: Audiences of the issued token that are acceptable in addition to *audience* and *resource*.

        Returns:
            The issued token, which has the same lease as *token*. Pass the issued token to `use_token`.

        Raises:
            ConfigurationError: The *audience*, *resource*, and *scope* arguments are all omitted.
            TokenUnavailable: The *token* must not be exchanged.
            ExchangeFailed: No token could be obtained. Do not send the caller's token instead.
        """
        return drive(self.steps(token, self._request(audience, resource, scope, expect)))


class AsyncTokenExchanger(ExchangerCore):
    """A token exchanger for asyncio and trio tasks that does not block the event loop."""

    async def exchange(
        self,
        token: BearerToken,
        *,
        audience: str | None = None,
        resource: str | None = None,
        scope: str | None = None,
        expect: Sequence[str] = (),
    ) -> BearerToken:
        """Exchange the caller's *token*. See `TokenExchanger.exchange` for the arguments and exceptions."""
        return await drive_async(self.steps(token, self._request(audience, resource, scope, expect)))
