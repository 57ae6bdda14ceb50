"""Verify an access token's issuer, signature, audience, lifetime, and revocation status.

A verifier parses the token (`jws`), finds the trusted issuer, gets the issuer's keys (`jwks_client`), and checks the
signature and the claims (`claims`). If an introspection endpoint is configured, the verifier introspects the token.
Finally, the verifier calls the revocation hook. While waiting, `TokenVerifier` blocks the thread, but
`AsyncTokenVerifier` blocks only the task.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from otel_token_relay.algorithms import DEFAULT_ALGORITHMS, Profile
from otel_token_relay.client_credentials import ClientAuth, ClientCredential, Secret, make_credential
from otel_token_relay.errors import ConfigurationError, KeysUnavailable, TokenRejected
from otel_token_relay.issuers import TrustedIssuer, combine, fill_tenant
from otel_token_relay.spelling import hint
from otel_token_relay.token import DEFAULT_MAX_LENGTH, Clock, is_b64token
from otel_token_relay.verification.cache import Cache, digest
from otel_token_relay.verification.causes import Cause, Expectations, ExplainedReason
from otel_token_relay.verification.claims import (
    CLIENT_NAMES,
    DEFAULT_LEEWAY,
    DEFAULT_SCOPE_CLAIMS,
    Rules,
    check_claims,
    check_type,
    check_values,
    without_nulls,
)
from otel_token_relay.verification.drivers import Wait, drive, drive_async
from otel_token_relay.verification.explanations import explain
from otel_token_relay.verification.http_client import HttpClient, shared_client
from otel_token_relay.verification.introspection import Introspection
from otel_token_relay.verification.jwk import Key, KeySet, check_algorithms
from otel_token_relay.verification.jwks_client import KeySource, KeyTimes
from otel_token_relay.verification.jws import Claims, Jws, copy_json, looks_like_jws, parse_jws
from otel_token_relay.verification.key_credential import KeyCredential
from otel_token_relay.verification.malformations import read_unverified
from otel_token_relay.verification.metadata import TENANT_IN_METADATA
from otel_token_relay.verification.token_kinds import names_user, read_kinds

IsRevoked = Callable[[Mapping[str, Any]], bool]


class _Trusted(NamedTuple):
    """A trusted issuer and its keys, rules, and introspection endpoint.

    Attributes:
        issuer: The issuer, as configured.
        keys: The issuer's key source.
        rules: The rules for the issuer's tokens.
        introspection: The issuer's introspection endpoint, or ``None`` if the issuer's tokens are not introspected.
    """

    issuer: str
    keys: KeySource
    rules: Rules
    introspection: Introspection | None


class _Accepted(NamedTuple):
    """A verification result that is shared by all requests with the same token.

    Attributes:
        source: The source of *keys*, or ``None`` if the signature was not checked.
        keys: The keys that were used to check the signature.
        until: The monotonic time, in seconds, when the result expires.
        introspection: The endpoint that introspected the token, or ``None`` if the token was not introspected.
        introspected: The introspection response.
    """

    claims: Claims
    scopes: frozenset[str]
    expires_at: float | None
    issuer: str | None
    until: float
    source: KeySource | None = None
    keys: KeySet | None = None
    introspection: Introspection | None = None
    introspected: Mapping[str, Any] | None = None


class VerifiedToken:
    """A verified access token from one request. This object contains the token's claims but not the token itself.

    Attributes:
        scopes: The token's scopes (RFC 6749, section 3.3).
        expires_at: The ``exp`` claim as seconds since the epoch, or ``None`` if the introspection response does not
            contain ``exp``.
        issuer: The ``iss`` claim, or ``None`` if the introspection response does not contain ``iss``.
    """

    __slots__ = ("_claims", "_is_valid", "_shared", "expires_at", "issuer", "scopes")

    def __init__(self, accepted: _Accepted, is_valid: Callable[[], bool]) -> None:
        self._shared = accepted.claims
        self._claims: Mapping[str, Any] | None = None
        self._is_valid = is_valid
        self.scopes: frozenset[str] = accepted.scopes
        self.expires_at: float | None = accepted.expires_at
        self.issuer: str | None = accepted.issuer

    @property
    def claims(self) -> Mapping[str, Any]:
        """A read-only mapping of all claims. Each request has a separate copy, so requests cannot affect each other."""
        if self._claims is None:
            self._claims = MappingProxyType(copy_json(self._shared))
        return self._claims

    @property
    def subject(self) -> str | None:
        """The ``sub`` claim (the user or service that the token represents), or ``None`` if it is missing."""
        return self._shared.get("sub")

    @property
    def client_id(self) -> str | None:
        """The client that the token was issued to, from the ``client_id``, ``azp``, ``cid``, or ``appid`` claim."""
        return next((self._shared[n] for n in CLIENT_NAMES if n in self._shared), None)

    @property
    def identity(self) -> str:
        """The subject or, for a machine token without a subject, ``client:`` followed by the client ID.

        If the subject begins with ``client:`` or ``subject:``, the identity is ``subject:`` followed by the subject.
        The identity is an empty string if a token without a subject has claims about a user. Such a token represents an
        unknown user of the client.
        """
        subject = self.subject
        if subject is not None:
            return f"subject:{subject}" if subject.startswith(("client:", "subject:")) else subject
        client = self.client_id
        return "" if client is None or names_user(self._shared) else f"client:{client}"

    def is_still_valid(self) -> bool:
        """Check, without waiting, whether the token is still valid. If the status is unknown, return ``False``."""
        try:
            return self._is_valid()
        except Exception:  # the token's status is unknown if the revocation hook fails
            return False

    def __repr__(self) -> str:
        return f"VerifiedToken({len(self._shared)} claims, {len(self.scopes)} scopes)"


class VerifierCore:
    """The rules, key sources, and cache that both verifier classes use.

    Args:
        issuers: The trusted issuers. Each issuer is a `TrustedIssuer` or a name that exactly matches the ``iss`` claim.
            An issuer's keys can verify only tokens from the same issuer. If an issuer is not an HTTPS URL or a loopback
            HTTP URL, the URL of its keys must be configured. Use ``https://login.microsoftonline.com/{tid}/v2.0`` to
            accept any Microsoft Entra tenant except the tenant for personal accounts.
        audience: One or more names that identify this service in the ``aud`` claim.
        algorithms: The accepted signature algorithms, which must be asymmetric (RFC 8725, section 3.1).
        profile: The profile of the accepted tokens. Use ``rfc9068`` for access tokens that comply with RFC 9068,
            ``generic`` for issuers that do not send a ``typ`` of ``at+jwt``, or ``id-token`` for providers whose
            clients send ID tokens to APIs.
        leeway: The maximum difference, in seconds, between the issuer's clock and this service's clock.
        jwks_uri: The key set's URL, or ``None`` to read it from the issuer's metadata. If this argument is set,
            *issuers* must contain exactly one issuer.
        introspection_endpoint: The URL of the introspection endpoint (RFC 7662). If this argument is set, every token
            is introspected, and *issuers* must contain at most one issuer. If *issuers* is empty, tokens are verified
            only by introspection. Otherwise, the signatures and claims of JWTs are verified first. A response is reused
            for at most 60 seconds.
        client_id: This service's client ID for the introspection endpoint.
        client_secret: This service's client secret for the introspection endpoint, or a callable that returns the
            secret. To use a different type of credential, specify one of the following arguments instead. See
            `ClientCredential`.
        client_secret_file: A file that contains the client secret.
        client_key_file: A file that contains the private key for signing client assertions.
        client_key_id: The ``kid`` in the header of client assertions.
        client_assertion: A callable that returns a client assertion.
        client_assertion_file: A file that contains a client assertion.
        client_cert_file: A file that contains the client certificate.
        client_auth: The client authentication method, or ``None`` to use the default method for the credential.
        audience_claim: The name of the claim that contains the audience, for issuers that do not send ``aud``. Any
            value other than ``aud`` requires the ``generic`` profile and at most one issuer.
        tenants: The accepted Microsoft Entra tenants. If the sequence is empty, any tenant is accepted.
        is_revoked: A callable that receives the verified claims and returns whether the token has been revoked. The
            verifier calls this callable for each request with a valid token and at each hop that relays the token. The
            callable must return immediately and must not perform I/O, because it also runs on event loops.
        scope_claims: The names of the claims that contain scopes. The scopes from all of these claims are combined. Use
            dots to separate the names of nested members.
        max_length: The maximum length, in characters, of a token. Longer tokens are rejected.
        cache_size: The maximum number of cached verification results. If the value is 0, results are not cached.
        cache_seconds: The maximum time, in seconds, that a verification result is cached. The result also becomes
            invalid when the token expires, the keys change, or the introspection response expires.
        cooldown: The minimum time, in seconds, between two fetches for unknown keys and before a retry of a failed
            fetch.
        timeout: The maximum time, in seconds, that a request waits for keys or for an introspection response.
        max_stale: The maximum time, in seconds, that stale keys remain in use while the issuer is down.
        jwks_token_file: A file that contains the bearer token for fetching the issuer's metadata and keys. If this
            argument is set, *issuers* must contain exactly one issuer. The token is sent only over HTTPS, and only to
            the origin of the issuer or of *jwks_uri*.
        http: The client that sends requests to issuers, or ``None`` to use a client that trusts the system's CA
            certificates.
        now: A callable that returns the current time as seconds since the epoch.
        monotonic: A callable that returns the time, in seconds, of a monotonic clock.

    Raises:
        ConfigurationError: An argument is invalid. The error identifies the argument.
        TypeError: An argument is unknown. The error suggests an argument with a similar name.
    """

    # `__new__` accepts any arguments so that the error message can suggest the correct name.
    def __new__(cls, *args: object, **options: object) -> Self:
        known = inspect.signature(cls.__init__).parameters
        for name in options.keys() - known.keys():
            raise TypeError(f"{cls.__name__}: unknown argument {name}{hint(name, known)}")
        return super().__new__(cls)

    def __init__(  # pyright: ignore[reportInconsistentConstructor]  # __new__ accepts any argument
        self,
        issuers: Sequence[str | TrustedIssuer] | str | TrustedIssuer = (),
        audience: str | Sequence[str] | None = None,
        algorithms: Sequence[str] = DEFAULT_ALGORITHMS,
        profile: Profile = "rfc9068",
        leeway: float = DEFAULT_LEEWAY,
        jwks_uri: str | None = None,
        *,
        introspection_endpoint: str | None = None,
        client_id: str | None = None,
        client_secret: Secret | str | Callable[[], str] | None = None,
        client_secret_file: str | None = None,
        client_key_file: str | None = None,
        client_key_id: str | None = None,
        client_assertion: Callable[[], str] | None = None,
        client_assertion_file: str | None = None,
        client_cert_file: str | None = None,
        client_auth: ClientAuth | None = None,
        audience_claim: str = "aud",
        tenants: Sequence[str] = (),
        is_revoked: IsRevoked | None = None,
        scope_claims: Sequence[str] = DEFAULT_SCOPE_CLAIMS,
        max_length: int = DEFAULT_MAX_LENGTH,
        cache_size: int = 4096,
        cache_seconds: float = 60.0,
        cooldown: float = 10.0,
        timeout: float = 4.0,
        max_stale: float = 3600.0,
        jwks_token_file: str = "",
        http: HttpClient | None = None,
        now: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._algorithms = check_algorithms(algorithms)
        self._algorithm_names = tuple(algorithms)
        self._rules = Rules(
            audience=_as_tuple(audience),
            profile=profile,
            leeway=leeway,
            scope_claims=_as_tuple(scope_claims),
            audience_claim=audience_claim,
        )
        times = KeyTimes(cooldown=cooldown, timeout=timeout, max_stale=max_stale)
        http = shared_client() if http is None else http
        client = make_credential(
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
        given = (issuers,) if isinstance(issuers, (str, TrustedIssuer)) else tuple(issuers)
        trusted = combine(
            given,
            jwks_uri=jwks_uri,
            jwks_token_file=jwks_token_file,
            introspection_endpoint=introspection_endpoint,
            client=client,
            plaintext_hosts=http.plaintext_hosts,
        )
        _check_sources(trusted, self._rules, introspection_endpoint)

        def introspect_at(
            endpoint: str | None, client: ClientCredential | None, issuer: str | None = None
        ) -> Introspection | None:
            if endpoint is None:
                return None
            # Each hop reads the cached response, so a cache is required even if cache_size is 0.
            size = max(cache_size, 1024)
            return Introspection(
                endpoint, client=client, issuer=issuer, timeout=timeout, size=size, http=http, monotonic=monotonic
            )

        self._sources = {
            issuer.issuer: KeySource(
                issuer.issuer,
                self._algorithms,
                jwks_uri=issuer.jwks_uri,
                credential=KeyCredential.of(issuer),
                times=times,
                http=http,
                monotonic=monotonic,
            )
            for issuer in trusted
        }
        self._trusted = {
            issuer.issuer: _Trusted(
                issuer.issuer,
                self._sources[issuer.issuer],
                replace(self._rules, audience=issuer.audience) if issuer.audience else self._rules,
                introspect_at(issuer.introspection_endpoint, issuer.client, issuer.issuer),
            )
            for issuer in trusted
        }
        self._of_many_tenants = tuple(self._trusted[issuer.issuer] for issuer in trusted if issuer.is_any_tenant)
        self._tenants = _as_tuple(tenants)
        # The introspection endpoint for opaque tokens. An opaque token does not identify its issuer, so opaque tokens
        # are supported only if there is exactly one endpoint.
        self._introspection: Introspection | None = None
        self._opaque_rules = self._rules
        introspecting = [found for found in self._trusted.values() if found.introspection is not None]
        if not trusted:
            self._introspection = introspect_at(introspection_endpoint, client)
        elif len(introspecting) == 1:
            self._introspection, self._opaque_rules = introspecting[0].introspection, introspecting[0].rules
        self._is_revoked = is_revoked
        self._max_length = max_length
        self._cache: Cache[_Accepted] = Cache(cache_size)
        self._cache_seconds = cache_seconds
        self._now = now
        self._monotonic = monotonic

    @property
    def issuers(self) -> tuple[str, ...]:
        """The trusted issuers."""
        return tuple(self._sources)

    def cached(self, token: str) -> VerifiedToken | None:
        """Return the cached verification result for *token*, or ``None`` if the token must be verified again.

        Raises:
            TokenRejected: The token has been revoked.
            KeysUnavailable: The revocation hook failed.
        """
        if not isinstance(token, str) or len(token) > self._max_length:
            return None
        key = digest(token)
        accepted = self._cache.get(key)
        if accepted is None or self._monotonic() >= accepted.until:
            return None
        # If the issuer's keys have changed or are too old, the token must be verified again.
        if accepted.source is not None and accepted.source.current() is not accepted.keys:
            return None
        if accepted.introspection is not None:
            result = accepted.introspection.cached(key, token)
            # If a newer response is available, the token must be verified again, because that response might be more
            # restrictive.
            if result is None or result.claims is None or result.claims is not accepted.introspected:
                return None
        if accepted.expires_at is not None and self._now() >= accepted.expires_at + self._rules.leeway:
            return None
        return self._check_revocation(accepted, key, token)

    def steps(self, token: str) -> Generator[Wait, None, VerifiedToken]:
        """Verify a token. Use `drive` or `drive_async` to run this generator.

        Raises:
            TokenRejected: The token violates a rule. The reason identifies the first violated rule.
            KeysUnavailable: The issuer or the introspection endpoint does not respond.
        """
        if not isinstance(token, str):
            raise TokenRejected("malformed")
        if len(token) > self._max_length:
            raise TokenRejected("too_long")
        if not is_b64token(token):
            raise TokenRejected("malformed")
        key = digest(token)
        if self._trusted and (self._introspection is None or looks_like_jws(token)):
            accepted = yield from self._verify_jwt(token, key)
        elif self._introspection is not None:
            introspected = yield from self._introspect(self._introspection, key, token)
            accepted = self._check_introspected(self._introspection, introspected, self._opaque_rules)
        else:
            raise TokenRejected("malformed")
        verified = self._check_revocation(accepted, key, token)
        self._cache.put(key, accepted)
        return verified

    def explain(self, token: str, reason: ExplainedReason, *, required_scopes: Sequence[str] = ()) -> Cause:
        """Explain to operators why *token* was rejected. This method does not wait, fetch keys, or raise exceptions.

        The cause can contain the values of some claims and header members, but never contains any part of the encoded
        token.

        Args:
            token: The token without the ``Bearer`` prefix.
            reason: The reason in the `TokenRejected` exception, or ``insufficient_scope``.
            required_scopes: The scopes that the request requires.
        """
        read = read_unverified(token) if len(token) <= self._max_length else None
        trusted = None if read is None else self._find_trusted(read[1])
        keys = None if trusted is None else trusted.keys.current()
        expectations = Expectations(
            rules=self._rules if trusted is None else trusted.rules,
            issuers=tuple(self._sources),
            tenants=self._tenants,
            algorithms=self._algorithm_names,
            max_length=self._max_length,
            required_scopes=tuple(required_scopes),
            keys=None if keys is None else keys.uses,
            unusable_keys=() if keys is None else keys.skipped,
        )
        return explain(token, reason, expectations, now=self._now())

    def _with_values(self, error: TokenRejected, token: str) -> TokenRejected:
        """Add the expected and actual values to an error. Authenticators do not use these values."""
        if not isinstance(token, str):
            return error
        cause = self.explain(token, error.reason)
        return TokenRejected(error.reason, error.claim, cause.expected, cause.actual)

    def _find_trusted(self, claims: Claims) -> _Trusted | None:
        """Return the trusted issuer that matches the claims, or ``None`` if the issuer is not trusted."""
        issuer = claims.get("iss")
        if not isinstance(issuer, str):
            return None
        trusted = self._trusted.get(issuer)
        if trusted is not None:
            return None if trusted in self._of_many_tenants else trusted  # the literal {tid} is not a tenant
        for trusted in self._of_many_tenants:
            if fill_tenant(trusted.issuer, claims.get("tid"), self._tenants) == issuer:
                return trusted
        return None

    def _verify_jwt(self, token: str, key: bytes) -> Generator[Wait, None, _Accepted]:
        jws = parse_jws(token, max_length=self._max_length)
        if jws.header["alg"] not in self._algorithms:
            raise TokenRejected("algorithm_not_allowed", "alg")
        claims = without_nulls(jws.claims)
        # The issuer has not been verified yet. The claim is used only to select a trusted issuer.
        issuer = claims.get("iss")
        if issuer is None:
            raise TokenRejected("missing_claim", "iss")
        trusted = self._find_trusted(claims)
        if trusted is None:
            raise TokenRejected("unknown_issuer" if isinstance(issuer, str) else "invalid_claim", "iss")
        keys = yield from self._check_signature(jws, trusted, issuer)
        check_type(jws.header, claims, trusted.rules.profile)
        scopes = check_claims(claims, trusted.rules, now=self._now())
        until = self._monotonic() + self._cache_seconds
        accepted = _Accepted(claims, scopes, float(claims["exp"]), issuer, until, trusted.keys, keys)
        if trusted.introspection is None:
            return accepted
        introspected = yield from self._introspect(trusted.introspection, key, token)
        # The JWT's audience and type have already been checked.
        self._check_introspected(trusted.introspection, introspected, replace(trusted.rules, audience=()), issuer)
        return accepted._replace(introspection=trusted.introspection, introspected=introspected)

    def _check_signature(self, jws: Jws, trusted: _Trusted, issuer: str) -> Generator[Wait, None, KeySet]:
        source = trusted.keys
        keys = source.current()
        if keys is None:
            yield source.wait_for_any()
            keys = source.current()
            if keys is None:
                raise source.unavailable()
        kid = jws.header.get("kid")
        if not keys.knows(kid) or (kid is None and not _verifies(jws, keys.find(kid, jws.header["alg"]))):
            # The issuer might have new keys. A forged kid remains unknown after the fetch.
            wait = source.wait_for_unknown()
            if wait is not None:
                yield wait
                if not wait.future.done():
                    raise source.unavailable()
                keys = source.current() or keys
        candidates = keys.find(kid, jws.header["alg"])
        if not candidates:
            if keys.knows(kid):
                raise TokenRejected("algorithm_not_allowed", "alg")
            raise TokenRejected("unknown_key", "kid")
        if trusted in self._of_many_tenants:
            # A key for one tenant or for personal accounts must not be accepted for a different tenant's tokens.
            # Source: Microsoft, "Access tokens in the Microsoft identity platform", section "Validate the issuer".
            tenant = str(jws.claims["tid"])
            candidates = tuple(
                k for k in candidates if k.issuer and k.issuer.replace(TENANT_IN_METADATA, tenant) == issuer
            )
            if not candidates:
                raise TokenRejected("unknown_key", "kid")
        if not _verifies(jws, candidates):
            raise TokenRejected("bad_signature")
        return keys

    def _introspect(
        self, introspection: Introspection, key: bytes, token: str
    ) -> Generator[Wait, None, Mapping[str, Any]]:
        result = introspection.cached(key)
        if result is None:
            wait = introspection.look_up(key, token)
            yield wait
            result = wait.future.result() if wait.future.done() else None
        if result is None:
            raise KeysUnavailable
        if result.claims is None:
            raise TokenRejected("inactive", "active")
        return result.claims

    def _check_introspected(
        self,
        introspection: Introspection,
        introspected: Mapping[str, Any],
        rules: Rules,
        issuer: str | None = None,
    ) -> _Accepted:
        """Check the members of an active token's introspection response.

        Args:
            introspection: The endpoint that introspected the token.
            introspected: The introspection response.
            rules: The rules that the members must satisfy.
            issuer: The verified issuer of a JWT, or ``None`` for an opaque token.
        """
        # Some servers send null for members whose values are unknown.
        claims = without_nulls(dict(introspected))
        foreign = read_kinds(claims).foreign
        if foreign is not None:
            raise TokenRejected("wrong_type", foreign.members[0])
        named = claims.get("iss")
        if named is not None and not (
            isinstance(named, str)
            and (named == issuer if issuer is not None else not self._trusted or self._find_trusted(claims) is not None)
        ):
            raise TokenRejected("unknown_issuer", "iss")
        scopes = check_values(claims, rules, now=self._now())
        expires_at = float(claims["exp"]) if "exp" in claims else None
        until = self._monotonic() + self._cache_seconds
        return _Accepted(
            claims, scopes, expires_at, named, until, introspection=introspection, introspected=introspected
        )

    def _check_revocation(self, accepted: _Accepted, key: bytes, token: str) -> VerifiedToken:
        """Return the verified token for this request, or raise an error if the token has been revoked."""
        is_revoked, introspection = self._is_revoked, accepted.introspection
        if is_revoked is not None:
            try:
                revoked = is_revoked(MappingProxyType(accepted.claims))
            except Exception:  # the token's status is unknown, which is not the caller's fault
                raise KeysUnavailable from None
            if revoked:
                raise TokenRejected("revoked")

        def is_valid() -> bool:
            if introspection is not None:
                result = introspection.cached(key, token)
                if result is None:
                    introspection.look_up(key, token)  # the result might be available at the next hop
                    return False
                if result.claims is None:
                    return False
            return is_revoked is None or not is_revoked(MappingProxyType(accepted.claims))

        return VerifiedToken(accepted, is_valid)


def _verifies(jws: Jws, candidates: Sequence[Key]) -> bool:
    return any(key.verifies(jws.signing_input, jws.signature) for key in candidates)


def _as_tuple(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _check_sources(issuers: Sequence[TrustedIssuer], rules: Rules, endpoint: str | None) -> None:
    if not issuers and endpoint is None:
        raise ConfigurationError("issuers", "expected at least one issuer or an introspection endpoint")
    if not rules.audience and any(not issuer.audience for issuer in issuers):
        # The audience is required (RFC 9068, section 4). Without an audience, tokens for other services would be
        # accepted.
        raise ConfigurationError("audience", "expected this service's name as it appears in aud")
    if len(issuers) > 1 and rules.audience_claim != "aud":
        raise ConfigurationError("audience_claim", "any claim other than aud requires a single issuer")


class TokenVerifier(VerifierCore):
    """A verifier that blocks the current thread while it waits. Create a single verifier for each process."""

    def verify(self, token: str) -> VerifiedToken:
        """Verify *token*, which must not include the ``Bearer`` prefix, and return the result.

        Raises:
            TokenRejected: The token violates a rule. The reason identifies the first violated rule.
            KeysUnavailable: The token cannot be verified at this time. Try again later.
        """
        try:
            verified = self.cached(token)
            return drive(self.steps(token)) if verified is None else verified
        except TokenRejected as error:
            raise self._with_values(error, token) from None


class AsyncTokenVerifier(VerifierCore):
    """A verifier that waits in an asyncio or trio task without blocking the event loop."""

    async def verify(self, token: str) -> VerifiedToken:
        """Verify *token*, which must not include the ``Bearer`` prefix, and return the result.

        Raises:
            TokenRejected: The token violates a rule. The reason identifies the first violated rule.
            KeysUnavailable: The token cannot be verified at this time. Try again later.
        """
        try:
            verified = self.cached(token)
            return await drive_async(self.steps(token)) if verified is None else verified
        except TokenRejected as error:
            raise self._with_values(error, token) from None
