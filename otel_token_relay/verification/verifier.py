"""Verify access tokens: who signed them, for whom, for how long, and whether they still stand.

The way of a token: caps and strict reading (`claims`), the issuer by its exact name, that
issuer's keys (`keys`), the signature, the claims, introspection where asked for, the revocation
hook. `TokenVerifier` and `AsyncTokenVerifier` differ in how they wait, and in nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from otel_token_relay.errors import ConfigurationError, KeysUnavailable, TokenRejected
from otel_token_relay.token import DEFAULT_MAX_LENGTH, Clock
from otel_token_relay.verification.cache import Cache, digest
from otel_token_relay.verification.claims import Profile, Rules, check_claims, check_type, check_values
from otel_token_relay.verification.drivers import Wait, drive, drive_async
from otel_token_relay.verification.http_client import check_url
from otel_token_relay.verification.introspection import Introspection
from otel_token_relay.verification.jwk import DEFAULT_ALGORITHMS, Key, KeySet, check_algorithms
from otel_token_relay.verification.jwks_client import KeySource, KeyTimes
from otel_token_relay.verification.jws import Claims, Jws, copy_json, looks_like_jws, parse_jws
from otel_token_relay.verification.metadata import check_issuer

IsRevoked = Callable[[Mapping[str, Any]], bool]

_is_b64token = re.compile(r"[A-Za-z0-9\-._~+/]+=*", re.ASCII).fullmatch

# RFC 7662, section 2.2: token_type as in RFC 6749, section 5.1. Servers that introspect refresh
# tokens say so here, and one of those must not pass for an access token.
_BEARER_TYPES: Final = frozenset({"bearer", "access_token"})


class _Accepted(NamedTuple):
    """What a verification found, shared by all requests with that token.

    Attributes:
        answer: What introspection said, which this was made of; ``None`` where it was not asked.
    """

    claims: Claims
    scopes: frozenset[str]
    expires_at: float | None
    keys: KeySet | None
    issuer: str | None
    until: float
    answer: Mapping[str, Any] | None = None


class VerifiedToken:
    """An access token that was verified, as one request sees it. It does not show the token.

    Attributes:
        scopes: What it allows (RFC 6749, section 3.3).
        expires_at: Seconds since the epoch; ``None`` where only introspection knows it.
        issuer: Who issued it; ``None`` where introspection did not say.
    """

    __slots__ = ("_claims", "_holds", "_shared", "expires_at", "issuer", "scopes")

    def __init__(self, accepted: _Accepted, holds: Callable[[], bool]) -> None:
        self._shared = accepted.claims
        self._claims: Mapping[str, Any] | None = None
        self._holds = holds
        self.scopes = accepted.scopes
        self.expires_at = accepted.expires_at
        self.issuer = accepted.issuer

    @property
    def claims(self) -> Mapping[str, Any]:
        """All claims, read-only. Each request has its own copy, so that none can spoil another's."""
        if self._claims is None:
            self._claims = MappingProxyType(copy_json(self._shared))
        return self._claims

    @property
    def subject(self) -> str | None:
        """The ``sub``: whom the token speaks for."""
        return self._shared.get("sub")

    @property
    def client_id(self) -> str | None:
        """The client that the token was issued to, by whichever of the usual names."""
        return next((self._shared[n] for n in ("client_id", "azp", "cid", "appid") if n in self._shared), None)

    def still_holds(self) -> bool:
        """Whether nobody has revoked it meanwhile. Never waits; when in doubt, it does not hold."""
        try:
            return self._holds()
        except Exception:  # noqa: BLE001  # a revocation hook that fails vouches for nothing
            return False

    def __repr__(self) -> str:
        return f"VerifiedToken({len(self._shared)} claims, {len(self.scopes)} scopes)"


class VerifierCore:
    """The rules, sources and memory that the verifiers for threads and for tasks share.

    Args:
        issuers: Who is trusted, exactly as in ``iss``; https, or http on loopback. Each one's keys
            verify its own tokens only.
        audience: What this service is called in ``aud``; one name or several.
        algorithms: Asymmetric ones only (RFC 8725, section 3.1).
        profile: ``rfc9068``, or ``generic`` for issuers that do not send ``typ: at+jwt``.
        leeway: Seconds that clocks may differ.
        jwks_uri: Where the keys of the one issuer are; ``None`` to ask its metadata.
        introspection_endpoint: Ask the server about every token (RFC 7662). Without *issuers*
            that is the verification; with them, JWTs are verified as well. An answer is used
            again for at most 60 seconds.
        client_id: Who this service is to the introspection endpoint.
        client_secret: The same.
        is_revoked: Called with the verified claims, at each use of a token and at each hop it is
            relayed on. It must be quick and is called on event loops too: look into memory.
        scope_claims: Where scopes stand; the first that is there counts, a dot leads into an object.
        max_length: Characters.
        cache_size: Verified tokens that are remembered by their hash; 0 for none.
        cache_seconds: For how long, and never past ``exp``, a change of keys or the answer of
            introspection.
        cooldown: Seconds between fetches of keys that nobody planned.
        timeout: Seconds that a request waits at most, where there are no keys at all.
        max_stale: Seconds that keys are used past their time while the issuer is out.
        now: Seconds since the epoch.
        monotonic: Seconds that never go back.

    Raises:
        ConfigurationError: Names the setting.
    """

    def __init__(
        self,
        issuers: Sequence[str] = (),
        audience: str | Sequence[str] | None = None,
        algorithms: Sequence[str] = DEFAULT_ALGORITHMS,
        profile: Profile = "rfc9068",
        leeway: float = 30.0,
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
        now: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        names = (issuers,) if isinstance(issuers, str) else tuple(issuers)
        self._algorithms = check_algorithms(algorithms)
        self._rules = Rules(
            audience=_texts(audience), profile=profile, leeway=leeway, scope_claims=_texts(scope_claims)
        )
        times = KeyTimes(cooldown=cooldown, timeout=timeout, max_stale=max_stale)
        _check_sources(names, self._rules, jwks_uri, introspection_endpoint)
        self._sources = {
            check_issuer(issuer): KeySource(
                issuer, self._algorithms, jwks_uri=jwks_uri, times=times, monotonic=monotonic
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
                # Each hop asks for the verdict again, so some memory is needed in any case.
                size=max(cache_size, 1024),
                monotonic=monotonic,
            )
        self._is_revoked = is_revoked
        self._max_length = max_length
        self._cache: Cache[_Accepted] = Cache(cache_size)
        self._cache_seconds = cache_seconds
        self._now = now
        self._monotonic = monotonic

    def remembered(self, token: str) -> VerifiedToken | None:
        """Give the verdict on a token that was verified a moment ago, if everything still stands.

        Raises:
            TokenRejected: It has been revoked since.
            KeysUnavailable: The revocation hook failed.
        """
        if not isinstance(token, str) or len(token) > self._max_length:
            return None
        key = digest(token)
        accepted = self._cache.get(key)
        if accepted is None or self._monotonic() >= accepted.until:
            return None
        if accepted.keys is not None:
            # Keys that were taken back, or that are too old to believe, take their tokens along.
            source = self._sources.get(accepted.issuer or "")
            if source is None or source.current() is not accepted.keys:
                return None
        if self._introspection is not None:
            verdict = self._introspection.known(key, token)
            # One answer is not used for longer because another one came after it. That other one may
            # say less: it is held against the rules as the first one was, and nobody has to wait for that.
            if verdict is None or verdict.claims is None or verdict.claims is not accepted.answer:
                return None
        if accepted.expires_at is not None and self._now() >= accepted.expires_at + self._rules.leeway:
            return None
        return self._release(accepted, key, token)

    def steps(self, token: str) -> Generator[Wait, None, VerifiedToken]:
        """Verify a token, as a core for `drive` and `drive_async`.

        Raises:
            TokenRejected: With the first rule that fails.
            KeysUnavailable: The issuer cannot be asked.
        """
        if not isinstance(token, str):
            raise TokenRejected("malformed")
        if len(token) > self._max_length:
            raise TokenRejected("too_long")
        if _is_b64token(token) is None:
            raise TokenRejected("malformed")
        key = digest(token)
        is_jwt = bool(self._sources) and (self._introspection is None or looks_like_jws(token))
        if is_jwt:
            accepted = yield from self._verify_jwt(token)
            if self._introspection is not None:
                answer = yield from self._introspect(key, token)
                self._check_answer(answer, audience=())
                accepted = accepted._replace(answer=answer)
        else:
            answer = yield from self._introspect(key, token)
            accepted = self._check_answer(answer, audience=self._rules.audience)
        verified = self._release(accepted, key, token)
        self._cache.put(key, accepted)
        return verified

    def _verify_jwt(self, token: str) -> Generator[Wait, None, _Accepted]:
        jws = parse_jws(token, max_length=self._max_length)
        if jws.header["alg"] not in self._algorithms:
            raise TokenRejected("algorithm_not_allowed")
        # The issuer is not verified yet; it only picks among those that we trust.
        issuer = jws.claims.get("iss")
        if "iss" not in jws.claims:
            raise TokenRejected("missing_claim")
        source = self._sources.get(issuer) if isinstance(issuer, str) else None
        if source is None:
            raise TokenRejected("unknown_issuer" if isinstance(issuer, str) else "invalid_claim")
        keys = yield from self._check_signature(jws, source)
        check_type(jws.header, jws.claims, self._rules.profile)
        now = self._now()
        scopes = check_claims(jws.claims, self._rules, now=now)
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
            # The issuer may have new keys. A forged kid, of course, is unknown for ever.
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
        verdict = introspection.known(key)
        if verdict is None:
            wait = introspection.ask(key, token)
            yield wait
            verdict = wait.future.result() if wait.future.done() else None
        if verdict is None:
            raise KeysUnavailable
        if verdict.claims is None:
            raise TokenRejected("inactive")
        return verdict.claims

    def _check_answer(self, answer: Mapping[str, Any], *, audience: tuple[str, ...]) -> _Accepted:
        """Hold an ``active`` answer against the rules, as far as its members are there."""
        claims = dict(answer)
        kind = claims.get("token_type", "Bearer")
        if not isinstance(kind, str) or kind.lower() not in _BEARER_TYPES:
            raise TokenRejected("wrong_type")
        issuer = claims.get("iss")
        if issuer is not None and (not isinstance(issuer, str) or (self._sources and issuer not in self._sources)):
            raise TokenRejected("unknown_issuer")
        rules = Rules(
            audience=audience,
            profile=self._rules.profile,
            leeway=self._rules.leeway,
            scope_claims=self._rules.scope_claims,
        )
        # Servers send null for what they do not know.
        claims = {name: value for name, value in claims.items() if value is not None}
        scopes = check_values(claims, rules, now=self._now())
        expires_at = float(claims["exp"]) if "exp" in claims else None
        until = self._monotonic() + self._cache_seconds
        return _Accepted(claims, scopes, expires_at, None, issuer, until, answer)

    def _release(self, accepted: _Accepted, key: bytes, token: str) -> VerifiedToken:
        """Give a request its own view, unless the hook says that the token is revoked."""
        is_revoked, introspection = self._is_revoked, self._introspection
        if is_revoked is not None:
            try:
                revoked = is_revoked(MappingProxyType(accepted.claims))
            except Exception:  # noqa: BLE001  # not the caller's mistake, and nobody knows the verdict
                raise KeysUnavailable from None
            if revoked:
                raise TokenRejected("revoked")
        if is_revoked is None and introspection is None:
            return VerifiedToken(accepted, _holds)

        def holds() -> bool:
            if introspection is not None:
                verdict = introspection.known(key, token)
                if verdict is None:
                    introspection.ask(key, token)  # for the next hop; this one is not waited for
                    return False
                if verdict.claims is None:
                    return False
            return is_revoked is None or not is_revoked(MappingProxyType(accepted.claims))

        return VerifiedToken(accepted, holds)


def _holds() -> bool:
    return True


def _verifies(jws: Jws, candidates: Sequence[Key]) -> bool:
    return any(key.verifies(jws.signing_input, jws.signature) for key in candidates)


def _texts(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _check_sources(issuers: tuple[str, ...], rules: Rules, jwks_uri: str | None, endpoint: str | None) -> None:
    if not issuers and endpoint is None:
        raise ConfigurationError("issuers", "at least one trusted issuer, or an introspection endpoint, is needed")
    if issuers and not rules.audience:
        # RFC 9068, section 4: without it, a token for any other service would do here.
        raise ConfigurationError("audience", "the name of this service, as it stands in aud, is needed")
    if jwks_uri is not None:
        check_url("jwks_uri", jwks_uri)
        if len(issuers) != 1:
            raise ConfigurationError("jwks_uri", "one jwks_uri goes with exactly one issuer")


class TokenVerifier(VerifierCore):
    """Verify access tokens, in threads. One object serves the whole process; share it."""

    def verify(self, token: str) -> VerifiedToken:
        """Give what *token*, without ``Bearer``, says, if every rule holds.

        Raises:
            TokenRejected: The first rule that does not.
            KeysUnavailable: It cannot be known now; ask again later.
        """
        verified = self.remembered(token)
        return drive(self.steps(token)) if verified is None else verified


class AsyncTokenVerifier(VerifierCore):
    """Verify access tokens, in tasks on asyncio or trio. It never stalls the event loop."""

    async def verify(self, token: str) -> VerifiedToken:
        """Give what *token*, without ``Bearer``, says, if every rule holds.

        Raises:
            TokenRejected: The first rule that does not.
            KeysUnavailable: It cannot be known now; ask again later.
        """
        verified = self.remembered(token)
        return await drive_async(self.steps(token)) if verified is None else verified
