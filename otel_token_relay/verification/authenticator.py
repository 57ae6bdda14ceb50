"""Verify the token in each request and build an error response for each rejected request.

An authenticator works with any kind of server, either in middleware or at the server boundary. The boundary reads the
headers and passes the credentials to the authenticator.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypedDict, TypeVar, cast, overload

from otel_token_relay.authentication import Authenticator, ErrorResponse, Exclusions, RequestPath, needs_no_token
from otel_token_relay.context import announce_verified
from otel_token_relay.credentials import Credentials
from otel_token_relay.errors import ConfigurationError, KeysUnavailable, TokenRejected
from otel_token_relay.reasons import Reason
from otel_token_relay.runtime import SettingsInForce
from otel_token_relay.settings import Settings, is_exclusion
from otel_token_relay.token import BearerToken, Clock
from otel_token_relay.verification.causes import ExplainedReason
from otel_token_relay.verification.challenges import Challenges
from otel_token_relay.verification.drivers import drive, drive_async
from otel_token_relay.verification.http_client import HttpClient, shared_client
from otel_token_relay.verification.protected_resource import ProtectedResource
from otel_token_relay.verification.span_claims import SpanClaims, SpanClaimsInForce
from otel_token_relay.verification.verifier import AsyncTokenVerifier, TokenVerifier, VerifiedToken, VerifierCore
from otel_token_relay.verifications import Mode, Outcome, VerificationRecorder

_logger = logging.getLogger("otel_token_relay")

DEFAULT_REALM: Final = "api"

# The explanations for these reasons do not contain any values from the token.
_WITHOUT_VALUES: Final = frozenset({"absent", "malformed", "ambiguous", "too_long", "inactive", "revoked"})


class Verifier(Protocol):
    """A verifier from this package or any other object that has a synchronous or asynchronous ``verify`` method."""

    def verify(self, token: str) -> VerifiedToken | Awaitable[VerifiedToken]:
        """Return the verified token, or raise `TokenRejected` or `KeysUnavailable`."""
        ...


class AuthenticatorOptions(TypedDict, total=False):
    """The options that `BearerAuthMiddleware` passes to `BearerAuthenticator`."""

    realm: str | None
    required_scopes: Sequence[str]
    any_scopes: Sequence[str]
    exclude: Sequence[str]
    resource_metadata: str | None
    acr_values: Sequence[str]
    max_age: float | None


class BearerAuthenticator:
    """An authenticator that accepts only requests with a valid token that has the required scopes.

    Args:
        verifier: A `TokenVerifier` or an `AsyncTokenVerifier`. Either class works with any kind of server and never
            blocks an event loop.
        realm: The realm to send in every challenge, or ``None`` to use ``api``.
        required_scopes: The scopes that a token must have.
        any_scopes: A list of scopes. A token must have at least one of these scopes.
        exclude: Paths that do not require a token. Each path is compared with the path that the application uses for
            routing, which does not include the mount point (``root_path``, ``SCRIPT_NAME``). Paths must match exactly,
            so ``/healthz`` does not match ``/healthz/`` or ``/healthz/deep``. To match all paths below ``/healthz/``,
            use ``/healthz/*``. For gRPC, use full method names, such as ``/package.Service/Method``.
        resource_metadata: The identifier of this protected resource (RFC 9728), which is the URL that clients use. If
            this argument is set, clients can fetch the resource's metadata without a token, and each challenge includes
            the metadata URL.
        acr_values: The accepted values of the token's ``acr`` claim (RFC 9470).
        max_age: The maximum time, in seconds, since the user authenticated (RFC 9470). The token's ``auth_time`` claim
            specifies when the user authenticated.
        mode: In ``enforce`` mode, requests without a valid token are rejected. In ``optional`` mode, requests without a
            token are also accepted. In ``report`` mode, every request is accepted, and failed checks are only counted
            and logged.
        span_claims: A callable that returns the claims to record as attributes of the SERVER span.
        now: A callable that returns the current time as seconds since the epoch.

    Raises:
        ConfigurationError: An option is invalid. The error identifies the option.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        realm: str | None = None,
        required_scopes: Sequence[str] = (),
        any_scopes: Sequence[str] = (),
        exclude: Sequence[str] = (),
        resource_metadata: str | None = None,
        acr_values: Sequence[str] = (),
        max_age: float | None = None,
        mode: Mode = "enforce",
        span_claims: Callable[[], SpanClaims | None] | None = None,
        now: Clock = time.time,
    ) -> None:
        if isinstance(exclude, str) or not all(isinstance(path, str) and is_exclusion(path) for path in exclude):
            raise ConfigurationError(
                "exclude", "expected a sequence of paths; each path must start with / and can end with /*"
            )
        self._resource = None
        if resource_metadata is not None:
            servers = verifier.issuers if isinstance(verifier, VerifierCore) else ()
            self._resource = ProtectedResource(resource_metadata, servers, (*required_scopes, *any_scopes))
        self.challenges: Challenges = Challenges(
            realm=DEFAULT_REALM if realm is None else realm,
            required_scopes=required_scopes,
            any_scopes=any_scopes,
            resource_metadata=None if self._resource is None else self._resource.url,
            acr_values=acr_values,
            max_age=max_age,
        )
        self._verifier = verifier
        self._required_scopes = frozenset(required_scopes)
        self._any_scopes = frozenset(any_scopes)
        self._exclude = Exclusions(exclude)
        self._acr_values = frozenset(acr_values)
        self._max_age = max_age
        self._mode = mode
        self._span_claims = span_claims
        self._now = now
        self._recorder = VerificationRecorder(mode)

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Return an error response if the request is rejected; otherwise, return ``None``."""
        if isinstance(credentials, Reason) or self._is_open(credentials, path):
            return self._respond_without_token(credentials, path)
        try:
            verifier, token = self._verifier, credentials.reveal()
            if isinstance(verifier, VerifierCore):
                verified = verifier.cached(token) or drive(verifier.steps(token))
            else:
                verified = cast("VerifiedToken", verifier.verify(token))
            return self._check_verified(credentials, verified)
        except Exception as error:  # a verifier error must never cause a request to be accepted
            return self._reject_after(error, credentials)

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Perform the same check as `check` without blocking the event loop."""
        if isinstance(credentials, Reason) or self._is_open(credentials, path):
            return self._respond_without_token(credentials, path)
        try:
            verifier, token = self._verifier, credentials.reveal()
            if isinstance(verifier, VerifierCore):
                verified = verifier.cached(token)
                return self._check_verified(
                    credentials, await drive_async(verifier.steps(token)) if verified is None else verified
                )
            found = verifier.verify(token)
            return self._check_verified(credentials, await found if inspect.isawaitable(found) else found)
        except Exception as error:
            return self._reject_after(error, credentials)

    def prepare(self) -> None:
        """Create the counter."""
        self._recorder.prepare()

    def _check_verified(self, token: BearerToken, verified: VerifiedToken) -> ErrorResponse | None:
        lacks_any = bool(self._any_scopes) and self._any_scopes.isdisjoint(verified.scopes)
        if lacks_any or not self._required_scopes <= verified.scopes:
            details = partial(self._explain, token, "insufficient_scope", lacks_any=lacks_any)
            return self._reject(
                self.challenges.insufficient_scope, "insufficient_scope", claim="scope", details=details
            )
        if not self._is_fresh_enough(verified.claims if self._acr_values or self._max_age is not None else {}):
            return self._reject(self.challenges.insufficient_authentication, "insufficient_user_authentication")
        token.mark_verified(verified)
        announce_verified(token)
        if self._span_claims is not None and (claims := self._span_claims()) is not None:
            claims.describe_current(verified)
        self._recorder.record("accepted")
        return None

    def _is_fresh_enough(self, claims: Mapping[str, Any]) -> bool:
        if self._acr_values and claims.get("acr") not in self._acr_values:
            return False
        if self._max_age is None:
            return True
        authenticated_at = claims.get("auth_time")
        return type(authenticated_at) in (int, float) and self._now() - authenticated_at <= self._max_age  # type: ignore[operator]

    def _is_open(self, credentials: Credentials, path: RequestPath) -> bool:
        return needs_no_token(credentials, path, self._exclude) or (
            self._resource is not None and self._resource.respond(path) is not None
        )

    def _respond_without_token(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        is_anonymous = self._mode == "optional" and credentials is Reason.ABSENT
        if isinstance(credentials, Reason) and not is_anonymous and not self._is_open(credentials, path):
            meaning = credentials.meaning
            return self._reject(self.challenges.without_token(credentials), credentials.value, details=lambda: meaning)
        self._recorder.record("excluded")
        return None if self._resource is None else self._resource.respond(path)

    def _reject_after(self, error: Exception, token: BearerToken) -> ErrorResponse | None:
        if isinstance(error, TokenRejected):
            details = partial(self._explain, token, error.reason)
            return self._reject(self.challenges.invalid_token, error.reason, claim=error.claim, details=details)
        if not isinstance(error, KeysUnavailable):
            # Log only the error's type, because the message of an unexpected error might contain the token.
            _logger.error("a verifier raised %s", type(error).__name__)
        retry_after = error.retry_after if isinstance(error, KeysUnavailable) else 1.0
        return self._reject(self.challenges.unavailable(retry_after), "unavailable", "unavailable")

    def _reject(
        self,
        error_response: ErrorResponse,
        reason: str,
        outcome: Outcome = "refused",
        *,
        claim: str | None = None,
        details: Callable[[], str] | None = None,
    ) -> ErrorResponse | None:
        cause = details if reason in _WITHOUT_VALUES else None
        self._recorder.record(outcome, reason, cause, claim=claim, details=details)
        return None if self._mode == "report" else error_response.because(reason, claim)

    def _explain(self, token: BearerToken, reason: ExplainedReason, *, lacks_any: bool = False) -> str:
        """Return a description of the expected and actual values, or an empty string for a custom verifier."""
        if not isinstance(self._verifier, VerifierCore):
            return ""
        required = sorted(self._required_scopes)
        if lacks_any:
            required.append(f"one of {', '.join(sorted(self._any_scopes))}")
        return self._verifier.explain(token.reveal(), reason, required_scopes=required).line()


_Kind = TypeVar("_Kind", TokenVerifier, AsyncTokenVerifier)


@overload
def verifier_from(settings: Settings) -> TokenVerifier: ...
@overload
def verifier_from(settings: Settings, kind: type[_Kind]) -> _Kind: ...
def verifier_from(settings: Settings, kind: type[Any] = TokenVerifier) -> Any:
    """Build a verifier from the settings.

    Raises:
        ConfigurationError: A setting that is required to verify tokens is missing.
    """
    if (missing := settings.missing_to_verify) != ():
        # An introspection endpoint requires an audience in the settings but not in code.
        raise ConfigurationError(missing[0], "expected a value")
    return kind(
        settings.issuers,
        settings.audience,
        settings.algorithms,
        settings.profile,
        settings.leeway,
        settings.jwks_uri,
        introspection_endpoint=settings.introspection_endpoint,
        client_id=settings.client_id,
        client_secret=settings.client_secret,
        client_secret_file=settings.client_secret_file,
        client_key_file=settings.client_key_file,
        client_key_id=settings.client_key_id,
        client_assertion_file=settings.client_assertion_file,
        client_cert_file=settings.client_cert_file,
        client_auth=settings.client_auth,
        audience_claim=settings.audience_claim,
        tenants=settings.tenants,
        scope_claims=settings.scope_claims,
        max_length=settings.max_length,
        jwks_token_file=settings.jwks_token_file,
        http=client_from(settings),
    )


def client_from(settings: Settings) -> HttpClient:
    """Return the HTTP client for these settings."""
    return shared_client(settings.ca_file or None, settings.plaintext_issuers)


def authenticator_from(settings: Settings) -> BearerAuthenticator:
    """Build the authenticator for the server boundary of a service that does not use the middleware.

    Raises:
        ConfigurationError: A setting that is required to verify tokens is missing.
    """
    return BearerAuthenticator(
        verifier_from(settings),
        required_scopes=settings.required_scopes,
        exclude=settings.verify_exclude,
        realm=settings.realm,
        resource_metadata=settings.resource_metadata or None,
        mode="enforce" if settings.verify == "off" else settings.verify,
        span_claims=SpanClaimsInForce(SettingsInForce(settings)),
    )


def choose_authenticator(
    verifier: Verifier | None,
    authenticator: Authenticator | None,
    settings: SettingsInForce,
    options: AuthenticatorOptions,
) -> Authenticator:
    """Return *authenticator*, or build one from *verifier* and *options*.

    Raises:
        ConfigurationError: *authenticator* and *verifier* are both missing, or *authenticator* is combined with
            *verifier* or *options*.
    """
    if authenticator is not None:
        if verifier is not None or options:
            raise ConfigurationError("authenticator", "cannot be combined with a verifier or options")
        return authenticator
    if verifier is None:
        raise ConfigurationError("verifier", "expected a verifier or an authenticator")
    return BearerAuthenticator(verifier, span_claims=SpanClaimsInForce(settings), **options)
