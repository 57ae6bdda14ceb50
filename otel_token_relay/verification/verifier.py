"""Verify access tokens: issuer, signature, audience, lifetime and revocation.

Verification limits the size and parses strictly (`jws`), finds the issuer by its exact name, gets that
issuer's keys (`jwks_client`), checks the signature and the claims (`claims`), introspects the token if
configured to, and calls the revocation hook. `TokenVerifier` and `AsyncTokenVerifier` differ only in how
they wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from otel_token_relay.algorithms import DEFAULT_ALGORITHMS, Profile
from otel_token_relay.errors import ConfigurationError, KeysUnavailable, TokenRejected
from otel_token_relay.token import DEFAULT_MAX_LENGTH, Clock, is_b64token
from otel_token_relay.verification.cache import Cache, digest
from otel_token_relay.verification.causes import Cause, Expectations, ExplainedReason
from otel_token_relay.verification.claims import DEFAULT_LEEWAY, Rules, check_claims, check_type, check_values
from otel_token_relay.verification.drivers import Wait, drive, drive_async
from otel_token_relay.verification.explanations import explain
from otel_token_relay.verification.http_client import HttpClient, shared_client
from otel_token_relay.verification.introspection import Introspection
from otel_token_relay.verification.jwk import Key, KeySet, check_algorithms
from otel_token_relay.verification.jwks_client import KeySource, KeyTimes
from otel_token_relay.verification.jws import Claims, Jws, copy_json, looks_like_jws, parse_jws
from otel_token_relay.verification.malformations import read_unverified
from otel_token_relay.verification.metadata import check_issuer

IsRevoked = Callable[[Mapping[str, Any]], bool]

# RFC 7662, section 2.2: token_type is as in RFC 6749, section 5.1. Servers that also introspect refresh
# tokens mark them here, and a refresh token must not be accepted as an access token.
_BEARER_TYPES: Final = frozenset({"bearer", "access_token"})


class _Accepted(NamedTuple):
    """A verification result, shared by all requests with the same token.

    Attributes:
        keys: The keys used to check the signature; ``None`` if no signature was checked.
        until: The time on the monotonic clock, in seconds, at which the result expires.
        introspected: The introspection response that was checked; ``None`` if there was none.
    """

    claims: Claims
    scopes: frozenset[str]
    expires_at: float | None
    keys: KeySet | None
    issuer: str | None
    until: float
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
        """All claims, as a read-only mapping. Each request has its own copy, so it cannot affect other requests."""
        if self._claims is None:
            self._claims = MappingProxyType(copy_json(self._shared))
        return self._claims

    @property
    def subject(self) -> str | None:
        """The ``sub`` claim: the user or service that the token represents."""
        return self._shared.get("sub")

    @property
    def client_id(self) -> str | None:
        """The client to which the token was issued: ``client_id``, ``azp``, ``cid`` or ``appid``."""
        return next((self._shared[n] for n in ("client_id", "azp", "cid", "appid") if n in self._shared), None)

    def is_still_valid(self) -> bool:
        """Return true if the token is known not to be revoked, and false otherwise. Never waits."""
        try:
            return self._is_valid()
        except Exception:  # if the revocation hook fails, the token's state is unknown
            return False

    def __repr__(self) -> str:
        return f"VerifiedToken({len(self._shared)} claims, {len(self.scopes)} scopes)"


class VerifierCore:
    """The rules, key sources and cache that both verifiers share.

    Args:
        issuers: The trusted issuers, exactly as in ``iss``: https URLs, or http URLs on loopback. An
            issuer's keys verify only that issuer's tokens.
        audience: The name that identifies this service in ``aud``, or several such names.
        algorithms: The accepted signature algorithms, which must be asymmetric (RFC 8725, section 3.1).
        profile: ``rfc9068``, or ``generic`` for issuers that do not send ``typ: at+jwt``.
        leeway: The number of seconds by which clocks may differ.
        jwks_uri: The key set's URL, which requires exactly one issuer; ``None`` to read the URL from the
            issuer's metadata.
        introspection_endpoint: The URL at which every token is looked up (RFC 7662). Without *issuers*,
            tokens are verified by introspection alone; with *issuers*, the signature and claims of JWTs
            are verified as well. A response is reused for at most 60 seconds.
        client_id: The client ID with which this service identifies itself to the introspection endpoint.
        client_secret: This service's client secret at the introspection endpoint.
        is_revoked: A callable that receives the verified claims each time a token is used and at each hop
            that relays it. It is also called on event loops, so it must return at once and do no I/O.
        scope_claims: The names of claims that contain scopes; the first one present is used. A dot
            separates the names of nested members.
        max_length: The maximum token length in characters; longer tokens are rejected.
        cache_size: The maximum number of verified tokens to cache, each under its hash; 0 to cache none.
        cache_seconds: How long a verified token is cached. Caching also ends when the token expires, the
            keys change, or an introspection response may no longer be reused.
        cooldown: The minimum number of seconds between two fetches for an unknown key, and after a failed
            fetch.
        timeout: The maximum number of seconds for which a request waits if there are no keys.
        max_stale: The number of seconds for which expired keys are still used while the issuer is down.
        jwks_token_file: A file with a bearer token for the issuer's metadata and keys, which requires exactly one
            issuer. It is sent over https only, and only to the origin of the issuer or of *jwks_uri*.
        http: Sends the requests to issuers; ``None`` for a client that trusts the system's certificate authorities.
        now: A clock that returns the seconds since the epoch.
        monotonic: A clock that returns seconds and never goes backward.

    Raises:
        ConfigurationError: A setting is invalid; the error names it.
    """

    def __init__(
        self,
        issuers: Sequence[str] = (),
        audience: str | Sequence[str] | None = None,
        algorithms: Sequence[str] = DEFAULT_ALGORITHMS,
        profile: Profile = "rfc9068",
        leeway: float = DEFAULT_LEEWAY,
        jwks_uri: str | None = None,
        *,
        introspection_endpoint: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
        is_revoked: IsRevoked | None = None,
        scope_claims: Sequence[str] = ("scope", "scp"),
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
        names = _as_tuple(issuers)
        self._algorithms = check_algorithms(algorithms)
        self._algorithm_names = tuple(algorithms)
        self._rules = Rules(
            audience=_as_tuple(audience), profile=profile, leeway=leeway, scope_claims=_as_tuple(scope_claims)
        )
        times = KeyTimes(cooldown=cooldown, timeout=timeout, max_stale=max_stale)
        http = shared_client() if http is None else http
        _check_sources(names, self._rules, jwks_uri, introspection_endpoint, http)
        if jwks_token_file and len(names) != 1:
            raise ConfigurationError("jwks_token_file", "jwks_token_file requires exactly one issuer")
        self._sources = {
            check_issuer(issuer, http.plaintext_hosts): KeySource(
                issuer,
                self._algorithms,
                jwks_uri=jwks_uri,
                times=times,
                token_file=jwks_token_file,
                http=http,
                monotonic=monotonic,
            )
            for issuer in names
        }
        self._introspection = None
        if introspection_endpoint is not None:
            self._introspection = Introspection(
                introspection_endpoint,
                client_id=client_id,
                client_secret=client_secret,
                timeout=timeout,
                # Each hop looks up the result again, so a cache is needed even if cache_size is 0.
                size=max(cache_size, 1024),
                http=http,
                monotonic=monotonic,
            )
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
        if accepted.keys is not None:
            # If keys have been withdrawn or are too old, tokens verified with them must be verified again.
            source = self._sources.get(accepted.issuer or "")
            if source is None or source.current() is not accepted.keys:
                return None
        if self._introspection is not None:
            result = self._introspection.cached(key, token)
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
        is_jwt = bool(self._sources) and (self._introspection is None or looks_like_jws(token))
        if is_jwt:
            accepted = yield from self._verify_jwt(token)
            if self._introspection is not None:
                introspected = yield from self._introspect(key, token)
                self._check_introspected(introspected, audience=())
                accepted = accepted._replace(introspected=introspected)
        else:
            introspected = yield from self._introspect(key, token)
            accepted = self._check_introspected(introspected, audience=self._rules.audience)
        verified = self._check_revocation(accepted, key, token)
        self._cache.put(key, accepted)
        return verified

    def explain(self, token: str, reason: ExplainedReason, *, required_scopes: Sequence[str] = ()) -> Cause:
        """Return why *token* was rejected, for an operator. Never raises, and neither waits nor fetches keys.

        The cause contains values of some claims and header members, but never a part of the token itself.

        Args:
            token: The token, passed without the ``Bearer`` prefix.
            reason: The reason of `TokenRejected`, or ``insufficient_scope``.
            required_scopes: The scopes that the request needs.
        """
        read = read_unverified(token) if len(token) <= self._max_length else None
        issuer = None if read is None else read[1].get("iss")
        source = self._sources.get(issuer) if isinstance(issuer, str) else None
        keys = None if source is None else source.current()
        expectations = Expectations(
            rules=self._rules,
            issuers=tuple(self._sources),
            algorithms=self._algorithm_names,
            max_length=self._max_length,
            required_scopes=tuple(required_scopes),
            keys=None if keys is None else keys.uses,
            unusable_keys=() if keys is None else keys.skipped,
        )
        return explain(token, reason, expectations, now=self._now())

    def _verify_jwt(self, token: str) -> Generator[Wait, None, _Accepted]:
        jws = parse_jws(token, max_length=self._max_length)
        if jws.header["alg"] not in self._algorithms:
            raise TokenRejected("algorithm_not_allowed")
        # The token's issuer is not verified yet; it only selects one of the trusted issuers.
        issuer = jws.claims.get("iss")
        if "iss" not in jws.claims:
            raise TokenRejected("missing_claim")
        source = self._sources.get(issuer) if isinstance(issuer, str) else None
        if source is None:
            raise TokenRejected("unknown_issuer" if isinstance(issuer, str) else "invalid_claim")
        keys = yield from self._check_signature(jws, source)
        check_type(jws.header, jws.claims, self._rules.profile)
        scopes = check_claims(jws.claims, self._rules, now=self._now())
        until = self._monotonic() + self._cache_seconds
        return _Accepted(jws.claims, scopes, float(jws.claims["exp"]), keys, issuer, until)

    def _check_signature(self, jws: Jws, source: KeySource) -> Generator[Wait, None, KeySet]:
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
            raise TokenRejected("algorithm_not_allowed" if keys.knows(kid) else "unknown_key")
        if not _verifies(jws, candidates):
            raise TokenRejected("bad_signature")
        return keys

    def _introspect(self, key: bytes, token: str) -> Generator[Wait, None, Mapping[str, Any]]:
        introspection = self._introspection
        if introspection is None:
            raise TokenRejected("malformed")
        result = introspection.cached(key)
        if result is None:
            wait = introspection.look_up(key, token)
            yield wait
            result = wait.future.result() if wait.future.done() else None
        if result is None:
            raise KeysUnavailable
        if result.claims is None:
            raise TokenRejected("inactive")
        return result.claims

    def _check_introspected(self, introspected: Mapping[str, Any], *, audience: tuple[str, ...]) -> _Accepted:
        """Check the members that are present in an ``active`` response against the rules."""
        claims = dict(introspected)
        kind = claims.get("token_type", "Bearer")
        if not isinstance(kind, str) or kind.lower() not in _BEARER_TYPES:
            raise TokenRejected("wrong_type")
        issuer = claims.get("iss")
        if issuer is not None and (not isinstance(issuer, str) or (self._sources and issuer not in self._sources)):
            raise TokenRejected("unknown_issuer")
        rules = replace(self._rules, audience=audience)
        # Some servers send null for members whose value they do not know.
        claims = {name: value for name, value in claims.items() if value is not None}
        scopes = check_values(claims, rules, now=self._now())
        expires_at = float(claims["exp"]) if "exp" in claims else None
        until = self._monotonic() + self._cache_seconds
        return _Accepted(claims, scopes, expires_at, None, issuer, until, introspected)

    def _check_revocation(self, accepted: _Accepted, key: bytes, token: str) -> VerifiedToken:
        """Return this request's view of the token, or raise an error if the hook reports that it is revoked."""
        is_revoked, introspection = self._is_revoked, self._introspection
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


def _check_sources(
    issuers: tuple[str, ...], rules: Rules, jwks_uri: str | None, endpoint: str | None, http: HttpClient
) -> None:
    if not issuers and endpoint is None:
        raise ConfigurationError("issuers", "expected at least one issuer or an introspection endpoint")
    if issuers and not rules.audience:
        # RFC 9068, section 4: without an audience, tokens for any other service would be accepted.
        raise ConfigurationError("audience", "expected this service's name, as in aud")
    if jwks_uri is not None:
        http.check_url("jwks_uri", jwks_uri)
        if len(issuers) != 1:
            raise ConfigurationError("jwks_uri", "jwks_uri requires exactly one issuer")


class TokenVerifier(VerifierCore):
    """Verify access tokens in threads. Create one verifier per process and share it."""

    def verify(self, token: str) -> VerifiedToken:
        """Verify *token*, passed without the ``Bearer`` prefix, and return the result.

        Raises:
            TokenRejected: The token violates a rule; the reason identifies the first such rule.
            KeysUnavailable: The token cannot be verified now; try again later.
        """
        verified = self.cached(token)
        return drive(self.steps(token)) if verified is None else verified


class AsyncTokenVerifier(VerifierCore):
    """Verify access tokens in asyncio or trio tasks, without ever blocking the event loop."""

    async def verify(self, token: str) -> VerifiedToken:
        """Verify *token*, passed without the ``Bearer`` prefix, and return the result.

        Raises:
            TokenRejected: The token violates a rule; the reason identifies the first such rule.
            KeysUnavailable: The token cannot be verified now; try again later.
        """
        verified = self.cached(token)
        return await drive_async(self.steps(token)) if verified is None else verified
