"""Verify access tokens: issuer, signature, audience, lifetime, and revocation.

Verification limits the token's size and parses it strictly (`jws`), finds the issuer by its exact name, gets that
issuer's keys (`jwks_client`), checks the signature and the claims (`claims`), introspects the token if configured to,
and calls the revocation hook. `TokenVerifier` and `AsyncTokenVerifier` differ only in how they wait.
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
    """One trusted issuer.

    Attributes:
        issuer: The issuer, as configured.
        keys: The source of its keys.
        rules: The rules for its tokens.
        introspection: Where its tokens are looked up; ``None`` if they are not introspected.
    """

    issuer: str
    keys: KeySource
    rules: Rules
    introspection: Introspection | None


class _Accepted(NamedTuple):
    """A verification result, shared by all requests with the same token.

    Attributes:
        source: The source of *keys*; ``None`` if no signature was checked.
        keys: The keys used to check the signature.
        until: The time on the monotonic clock, in seconds, at which the result expires.
        introspection: Where the token was looked up; ``None`` if it was not introspected.
        introspected: The introspection response that was checked.
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
    """One request's view of a verified access token. It does not contain the token itself.

    Attributes:
        scopes: The token's scopes (RFC 6749, section 3.3).
        expires_at: The ``exp`` claim in seconds since the epoch; ``None`` if an introspected token has none.
        issuer: The ``iss`` claim; ``None`` if an introspected token has none.
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
        """All claims, as a read-only mapping. Each request has its own copy, so one request cannot affect another."""
        if self._claims is None:
            self._claims = MappingProxyType(copy_json(self._shared))
        return self._claims

    @property
    def subject(self) -> str | None:
        """The ``sub`` claim: the user or service that the token represents; ``None`` if the token has none."""
        return self._shared.get("sub")

    @property
    def client_id(self) -> str | None:
        """The client to which the token was issued: ``client_id``, ``azp``, ``cid``, or ``appid``."""
        return next((self._shared[n] for n in CLIENT_NAMES if n in self._shared), None)

    @property
    def identity(self) -> str:
        """The subject or, for a machine token without ``sub``, ``client:`` followed by the client ID.

        No other claims are used. A subject that itself begins with ``client:`` or ``subject:`` is prefixed with
        ``subject:``. The identity is empty if a token without ``sub`` has user claims: the client acts for many users,
        and it is not known which one the token represents.
        """
        subject = self.subject
        if subject is not None:
            return f"subject:{subject}" if subject.startswith(("client:", "subject:")) else subject
        client = self.client_id
        return "" if client is None or names_user(self._shared) else f"client:{client}"

    def is_still_valid(self) -> bool:
        """Return whether the token is known not to be revoked. Never waits."""
        try:
            return self._is_valid()
        except Exception:  # if the revocation hook fails, the token's state is unknown
            return False

    def __repr__(self) -> str:
        return f"VerifiedToken({len(self._shared)} claims, {len(self.scopes)} scopes)"


class VerifierCore:
    """The rules, key sources, and cache that both verifiers share.

    Args:
        issuers: The trusted issuers, each a `TrustedIssuer` or the issuer's name exactly as it appears in ``iss``. An
            issuer's keys verify only that issuer's tokens. An issuer that is neither an https URL nor an http URL on
            loopback is only a name, and the URL of its keys must be configured.
            ``https://login.microsoftonline.com/{tid}/v2.0`` accepts any Microsoft Entra tenant except the one for
            personal accounts.
        audience: One or more names that identify this service in ``aud``.
        algorithms: The accepted signature algorithms, which must be asymmetric (RFC 8725, section 3.1).
        profile: ``rfc9068``; ``generic`` for issuers that do not send ``typ: at+jwt``; or ``id-token`` for
            providers that hand ID tokens to APIs.
        leeway: The number of seconds by which clocks may differ.
        jwks_uri: The key set's URL, which requires exactly one issuer; ``None`` to read the URL from the
            issuer's metadata.
        introspection_endpoint: The URL at which every token from the only issuer is looked up (RFC 7662). Without
            *issuers*, tokens are verified by introspection alone; with *issuers*, the signature and claims of JWTs are
            verified first. A response is reused for at most 60 seconds.
        client_id: The client ID with which this service identifies itself to the introspection endpoint.
        client_secret: This service's client secret at the introspection endpoint, or a callable that returns it. One of
            the following arguments can be used instead; see `ClientCredential`.
        client_secret_file: A file that contains the secret.
        client_key_file: A file with the private key that signs this service's assertions.
        client_key_id: The ``kid`` header of the assertions.
        client_assertion: A callable that returns an assertion to send unchanged.
        client_assertion_file: A file with an assertion to send unchanged.
        client_cert_file: A file with the client certificate.
        client_auth: How the credential is sent; ``None`` to use the default for that kind of credential.
        audience_claim: The claim that contains the audience, if the issuer does not send ``aud``. Requires the
            ``generic`` profile and at most one issuer.
        tenants: The accepted Microsoft Entra tenants; empty to accept any tenant.
        is_revoked: A callable that receives the verified claims each time a token is used and at each hop that relays
            it. It is also called on event loops, so it must return immediately and must not perform I/O.
        scope_claims: The names of the claims that contain scopes. The token has the scopes from all of these claims. A
            dot separates the names of nested members.
        max_length: The maximum token length in characters; longer tokens are rejected.
        cache_size: The maximum number of verified tokens to cache, each keyed by its hash; 0 to disable caching.
        cache_seconds: How long a verified token is cached. Caching also ends when the token expires, the
            keys change, or an introspection response may no longer be reused.
        cooldown: The minimum number of seconds between two fetches for an unknown key, and before a failed fetch is
            retried.
        timeout: The maximum number of seconds for which a request waits if there are no keys.
        max_stale: The number of seconds for which expired keys remain in use while the issuer is down.
        jwks_token_file: A file with the bearer token used to fetch the issuer's metadata and keys, which requires
            exactly one issuer. The token is sent only over https, and only to the origin of the issuer or of
            *jwks_uri*.
        http: The client that sends requests to issuers; ``None`` for one that trusts the system's certificate
            authorities.
        now: A clock that returns the seconds since the epoch.
        monotonic: A clock that returns seconds and never goes backward.

    Raises:
        ConfigurationError: A setting is invalid; the error identifies it.
        TypeError: An argument does not exist; the error suggests the one that was probably intended.
    """

    # `__new__` accepts any arguments so that the error can explain an incorrect one.
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
            # Each hop looks up the result again, so a cache is needed even if cache_size is 0.
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
        # Where opaque tokens are looked up. They do not identify their issuer, so there must be exactly one endpoint.
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
        """Return the cached verification of *token*; ``None`` if the token must be verified again.

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
        # If keys have been withdrawn or are too old, tokens verified with them must be verified again.
        if accepted.source is not None and accepted.source.current() is not accepted.keys:
            return None
        if accepted.introspection is not None:
            result = accepted.introspection.cached(key, token)
            # A newer response may grant less, so it is checked like the first one. This does not require waiting.
            if result is None or result.claims is None or result.claims is not accepted.introspected:
                return None
        if accepted.expires_at is not None and self._now() >= accepted.expires_at + self._rules.leeway:
            return None
        return self._check_revocation(accepted, key, token)

    def steps(self, token: str) -> Generator[Wait, None, VerifiedToken]:
        """Verify a token. This generator is run by `drive` or `drive_async`.

        Raises:
            TokenRejected: The token violates a rule; the reason identifies the first such rule.
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
        """Return why *token* was rejected, for operators. Never raises an exception, waits, or fetches keys.

        The cause contains the values of some claims and header members, but never any part of the token itself.

        Args:
            token: The token, passed without the ``Bearer`` prefix.
            reason: The reason from `TokenRejected`, or ``insufficient_scope``.
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
        """Return the same error with the expected and actual values, which authenticators do not need."""
        if not isinstance(token, str):
            return error
        cause = self.explain(token, error.reason)
        return TokenRejected(error.reason, error.claim, cause.expected, cause.actual)

    def _find_trusted(self, claims: Claims) -> _Trusted | None:
        """Return the trusted issuer that the claims identify; ``None`` if there is none."""
        issuer = claims.get("iss")
        if not isinstance(issuer, str):
            return None
        trusted = self._trusted.get(issuer)
        if trusted is not None:
            return None if trusted in self._of_many_tenants else trusted  # {tid} itself is not a tenant
        for trusted in self._of_many_tenants:
            if fill_tenant(trusted.issuer, claims.get("tid"), self._tenants) == issuer:
                return trusted
        return None

    def _verify_jwt(self, token: str, key: bytes) -> Generator[Wait, None, _Accepted]:
        jws = parse_jws(token, max_length=self._max_length)
        if jws.header["alg"] not in self._algorithms:
            raise TokenRejected("algorithm_not_allowed", "alg")
        claims = without_nulls(jws.claims)
        # The token's issuer is not verified yet; it only selects one of the trusted issuers.
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
        # The token itself has the required audience and the type that its profile requires.
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
            # The issuer may have new keys. If the kid is forged, it remains unknown after a fetch.
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
            # The keys for one tenant, or for personal accounts, must not sign another tenant's tokens (Microsoft:
            # Access tokens in the Microsoft identity platform, Validate the issuer).
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
        """Check the members that an ``active`` response contains against the rules.

        Args:
            introspection: Where the token was looked up.
            introspected: The response.
            rules: The rules.
            issuer: The verified issuer if the token is a JWT; otherwise, ``None``.
        """
        # Some servers send null for members whose values they do not know.
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
        """Return this request's view of the token, or raise an error if the hook reports that it has been revoked."""
        is_revoked, introspection = self._is_revoked, accepted.introspection
        if is_revoked is not None:
            try:
                revoked = is_revoked(MappingProxyType(accepted.claims))
            except Exception:  # not the caller's mistake: the token's state is unknown
                raise KeysUnavailable from None
            if revoked:
                raise TokenRejected("revoked")

        def is_valid() -> bool:
            if introspection is not None:
                result = introspection.cached(key, token)
                if result is None:
                    introspection.look_up(key, token)  # for the next hop; this hop does not wait
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
        # RFC 9068, section 4: without an audience, tokens for any other service would be accepted.
        raise ConfigurationError("audience", "expected this service's name, as in aud")
    if len(issuers) > 1 and rules.audience_claim != "aud":
        raise ConfigurationError("audience_claim", "any claim other than aud requires a single issuer")


class TokenVerifier(VerifierCore):
    """Verify access tokens in threads. Create one verifier per process and share it."""

    def verify(self, token: str) -> VerifiedToken:
        """Verify *token*, passed without the ``Bearer`` prefix, and return the result.

        Raises:
            TokenRejected: The token violates a rule; the reason identifies the first such rule.
            KeysUnavailable: The token cannot be verified now; try again later.
        """
        try:
            verified = self.cached(token)
            return drive(self.steps(token)) if verified is None else verified
        except TokenRejected as error:
            raise self._with_values(error, token) from None


class AsyncTokenVerifier(VerifierCore):
    """Verify access tokens in asyncio or trio tasks, without ever blocking the event loop."""

    async def verify(self, token: str) -> VerifiedToken:
        """Verify *token*, passed without the ``Bearer`` prefix, and return the result.

        Raises:
            TokenRejected: The token violates a rule; the reason identifies the first such rule.
            KeysUnavailable: The token cannot be verified now; try again later.
        """
        try:
            verified = self.cached(token)
            return await drive_async(self.steps(token)) if verified is None else verified
        except TokenRejected as error:
            raise self._with_values(error, token) from None
