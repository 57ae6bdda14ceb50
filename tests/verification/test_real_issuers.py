"""Tokens from three authorization servers, two of them third-party, are verified in code and with variables.

A third-party server determines what its tokens contain and how it responds. Each row of `KINDS` is one kind of
access token from one server.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import anyio
import httpx
import pytest

from otel_token_relay.verification import AsyncTokenVerifier, KeysUnavailable, TokenRejected, TokenVerifier
from tests.support.processes import BIN, RELAY, instrumentations, service, uvicorn
from tests.support.real_servers import SERVICE, RealServer, RealServers

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"


class Kind(NamedTuple):
    """A kind of access token.

    Attributes:
        server: The server that issues the token.
        form: The token's signature algorithm, or ``opaque``.
        is_introspected: Whether the server introspects and revokes tokens of this kind.
    """

    server: str
    form: str
    is_introspected: bool = True

    @property
    def is_opaque(self) -> bool:
        return self.form == "opaque"


KINDS = (
    Kind("demo", "RS256"),
    Kind("demo", "opaque"),
    # oidc-provider neither stores nor introspects JWTs.
    Kind("oidc-provider", "RS256", is_introspected=False),
    Kind("oidc-provider", "ES256", is_introspected=False),
    Kind("oidc-provider", "EdDSA", is_introspected=False),
    Kind("oidc-provider", "opaque"),
    Kind("authgent", "ES256"),
)
INTROSPECTED = tuple(kind for kind in KINDS if kind.is_introspected)
SIGNED = tuple(kind for kind in KINDS if not kind.is_opaque)


def kinds(*rows: Kind) -> pytest.MarkDecorator:
    """Run a test for each of these kinds."""
    return pytest.mark.parametrize("kind", rows, ids=lambda kind: f"{kind.server}-{kind.form}")


class Verifiers:
    """Both verifiers with the same options."""

    def __init__(self, server: RealServer, *, introspects: bool, **options: Any) -> None:
        if introspects:
            options |= {
                "introspection_endpoint": server.metadata["introspection_endpoint"],
                "client_id": server.service.client_id,
                "client_secret": server.service.secret,
            }
        options = {"audience": SERVICE, "profile": server.profile} | options
        self._threads = TokenVerifier([server.issuer], **options)
        self._tasks = AsyncTokenVerifier([server.issuer], **options)

    def verify(self, token: str) -> tuple[Any, Any]:
        """Return each verifier's result for the token: a verified token or an error."""

        async def verify_async() -> Any:
            return await self._tasks.verify(token)

        return _outcome(lambda: self._threads.verify(token)), _outcome(lambda: anyio.run(verify_async))

    def reasons(self, token: str) -> tuple[str, str]:
        """Return the reasons for which the verifiers reject the token."""
        first, second = self.verify(token)
        for error in (first, second):
            assert isinstance(error, TokenRejected), error
            assert token not in f"{error} {error!r} {error.expected} {error.found}"
        return first.reason, second.reason

    def subjects(self, token: str) -> tuple[str, str]:
        first, second = self.verify(token)
        return first.subject, second.subject


def _outcome(verify: Any) -> Any:
    try:
        return verify()
    except (TokenRejected, KeysUnavailable) as error:
        return error


def verifiers(server: RealServer, kind: Kind, **options: Any) -> Verifiers:
    """Return verifiers for that kind of token. JWTs are not introspected, so only their signature and claims matter."""
    return Verifiers(server, introspects=kind.is_opaque, **options)


def both(value: str) -> tuple[str, str]:
    return value, value


@kinds(*KINDS)
def test_access_token_is_accepted(real_servers: RealServers, kind: Kind) -> None:
    """An accepted access token has the user, client, scopes, and issuer that the server sent."""
    server = real_servers[kind.server]
    checked = verifiers(server, kind)

    for user in ("alice", "bob"):
        token = server.sign_in(user, kind.form).access
        assert (token.count(".") == 2) is not kind.is_opaque
        for verified in checked.verify(token):
            assert (verified.subject, verified.issuer) == (server.subject(user), server.issuer)
            assert verified.scopes == {"profile"}
            assert verified.client_id == verified.claims["client_id"]
            assert verified.expires_at > time.time()
            assert verified.is_still_valid()


@kinds(*(kind for kind in KINDS if kind != Kind("demo", "opaque")))  # this server gives services only JWTs
def test_token_of_the_service_itself_is_accepted(real_servers: RealServers, kind: Kind) -> None:
    """A token from the client credentials grant is accepted, although oidc-provider omits the subject from opaque
    tokens.
    """
    server = real_servers[kind.server]
    has_subject = kind != Kind("oidc-provider", "opaque")

    for verified in verifiers(server, kind).verify(server.own_token(kind.form)):
        assert verified.client_id == server.service.client_id
        assert (verified.subject is not None) is has_subject
        if not has_subject:
            assert verified.identity == f"client:{server.service.client_id}"


@kinds(*KINDS)
def test_token_for_another_service_is_refused(real_servers: RealServers, kind: Kind) -> None:
    """A token for a different service is rejected, even with the same user, client, issuer, and key."""
    server = real_servers[kind.server]
    token = server.sign_in("alice", kind.form, service="billing-service").access

    assert verifiers(server, kind).reasons(token) == both("wrong_audience")
    assert verifiers(server, kind, audience="billing-service").subjects(token) == both(server.subject("alice"))


@kinds(*KINDS)
def test_refresh_token_is_refused(real_servers: RealServers, kind: Kind) -> None:
    """A refresh token is rejected: it is not a JWT, and oidc-provider reports it as active but without an audience."""
    server = real_servers[kind.server]
    token = server.sign_in("alice", kind.form).refresh
    assert token

    introspected = "missing_claim" if kind.server == "oidc-provider" else "inactive"
    assert Verifiers(server, introspects=False).reasons(token) == both("malformed")
    assert Verifiers(server, introspects=True).reasons(token) == both(introspected)


def test_refresh_token_is_recognized_only_by_its_missing_audience(real_servers: RealServers) -> None:
    """A refresh token from oidc-provider is recognized only by its missing audience, as the page on verification
    warns.
    """
    server = real_servers["oidc-provider"]
    token = server.sign_in("alice", "opaque").refresh
    assert token
    introspection = {
        "introspection_endpoint": server.metadata["introspection_endpoint"],
        "client_id": server.service.client_id,
        "client_secret": server.service.secret,
    }

    with pytest.raises(TokenRejected, match="missing_claim"):
        TokenVerifier(audience=SERVICE, **introspection).verify(token)
    assert server.introspect(token).keys() == {"active", "sub", "client_id", "exp", "iat", "iss", "scope"}
    assert TokenVerifier(**introspection).verify(token).subject == "alice"


@pytest.mark.parametrize("audience", [SERVICE, "web"], ids=["another audience", "its own audience"])
@pytest.mark.parametrize("profile", ["rfc9068", "generic"])
def test_id_token_is_refused(real_servers: RealServers, audience: str, profile: str) -> None:
    """An ID token with the same issuer and key, which only oidc-provider issues, is rejected."""
    server = real_servers["oidc-provider"]
    token = server.sign_in("alice", "RS256", scope="openid profile").id
    assert token

    options: dict[str, Any] = {"audience": audience, "profile": profile}
    assert Verifiers(server, introspects=False, **options).reasons(token) == both("wrong_type")
    for error in Verifiers(server, introspects=True, **options).verify(token):
        assert isinstance(error, (TokenRejected, KeysUnavailable))


@kinds(*KINDS)
def test_changed_token_is_refused(real_servers: RealServers, kind: Kind) -> None:
    """A token is rejected if one character of its signature, claims, or opaque text differs."""
    server = real_servers[kind.server]
    token, other = server.sign_in("alice", kind.form).access, server.sign_in("bob", kind.form).access
    checked = verifiers(server, kind)

    if kind.is_opaque:
        assert checked.reasons(_flip(token, 5)) == both("inactive")
        return
    header, claims, signature = token.split(".")
    assert checked.reasons(f"{header}.{claims}.{_flip(signature, 5)}") == both("bad_signature")
    assert checked.reasons(f"{header}.{other.split('.')[1]}.{signature}") == both("bad_signature")
    assert checked.reasons(f"{header}.{claims}.") == both("malformed")


def _flip(text: str, position: int) -> str:
    return f"{text[:position]}{'A' if text[position] != 'A' else 'B'}{text[position + 1 :]}"


@kinds(*KINDS)
def test_expired_token_is_refused(real_servers: RealServers, kind: Kind) -> None:
    """A token is accepted until the service's clock passes the token's lifetime and the leeway, and is
    then rejected.
    """
    server = real_servers[kind.server]
    token = server.sign_in("alice", kind.form).access
    ahead = 0.0
    checked = verifiers(server, kind, now=lambda: time.time() + ahead, cache_seconds=1e6)
    assert checked.subjects(token) == both(server.subject("alice"))

    ahead = 1000.0
    assert checked.reasons(token) == both("expired")


@kinds(*INTROSPECTED)
def test_revoked_token_is_refused(real_servers: RealServers, kind: Kind) -> None:
    """A revoked token is rejected immediately if no response is cached, and otherwise after 60 seconds, even if
    verifications are cached longer.
    """
    server = real_servers[kind.server]
    token, kept = server.sign_in("alice", kind.form).access, server.sign_in("alice", kind.form).access
    ahead = 0.0
    warm = Verifiers(server, introspects=True, monotonic=lambda: time.monotonic() + ahead, cache_seconds=1e6)
    uncached = Verifiers(server, introspects=True, cache_size=0)
    assert warm.subjects(token) == both(server.subject("alice"))
    views = warm.verify(token)

    server.revoke(token, kind.form)

    assert uncached.reasons(token) == both("inactive")
    ahead = 61.0
    assert warm.reasons(token) == both("inactive")
    assert [view.is_still_valid() for view in views] == [False, False]
    assert warm.subjects(kept) == both(server.subject("alice"))


def test_jwt_that_its_server_does_not_introspect_is_unavailable(real_servers: RealServers) -> None:
    """oidc-provider responds to the introspection of a JWT with status 400, so the token's state is unknown."""
    server = real_servers["oidc-provider"]
    checked = Verifiers(server, introspects=True)

    errors = checked.verify(server.sign_in("alice", "ES256").access)

    assert [type(error) for error in errors] == [KeysUnavailable, KeysUnavailable]
    assert checked.subjects(server.sign_in("alice", "opaque").access) == both("alice")


@kinds(*SIGNED)
def test_rotated_keys_are_used_at_once(real_servers: RealServers, kind: Kind) -> None:
    """A token with the new key is accepted immediately, and tokens with the old key are accepted while that key is
    published.
    """
    server = real_servers[kind.server]
    old = server.sign_in("alice", kind.form).access
    checked = verifiers(server, kind, cache_size=0)
    assert checked.subjects(old) == both(server.subject("alice"))

    server.rotate(keep=True)
    new = server.sign_in("bob", kind.form).access
    assert new.split(".")[0] != old.split(".")[0]

    assert checked.subjects(new) == both(server.subject("bob"))
    assert checked.subjects(old) == both(server.subject("alice"))
    if server.can_drop_keys:
        server.rotate(keep=False)
        fresh = verifiers(server, kind)
        assert fresh.subjects(server.sign_in("bob", kind.form).access) == both("bob")
        assert fresh.reasons(new) == fresh.reasons(old) == both("unknown_key")


@contextmanager
def protected(server: RealServer, *, introspects: bool) -> Iterator[httpx.Client]:
    """Run an application that does not import the package, with OpenTelemetry's launcher."""
    settings = {
        "VERIFY": "enforce",
        "ISSUERS": server.issuer,
        "AUDIENCE": SERVICE,
        "PROFILE": server.profile,
        "REQUIRED_SCOPES": "profile",
    }
    if introspects:
        settings |= {
            "INTROSPECTION_ENDPOINT": server.metadata["introspection_endpoint"],
            "CLIENT_ID": server.service.client_id,
            "CLIENT_SECRET": server.service.secret,
        }
    environ = {f"{PREFIX}{name}": value for name, value in settings.items()}
    launcher = str(BIN / "opentelemetry-instrument")
    command = uvicorn("tests.support.plain_app:app")
    with (
        service(launcher, *command, environ=RELAY | instrumentations() | environ) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client,
    ):
        yield client


def status_of(client: httpx.Client, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return client.get("/", headers=headers).status_code


@pytest.mark.parametrize("name", ["demo", "oidc-provider", "authgent"])
def test_environment_variables_alone_verify_the_tokens_of_a_server(real_servers: RealServers, name: str) -> None:
    """Environment variables alone verify a server's tokens, without code in the application."""
    server = real_servers[name]
    forms = [kind.form for kind in SIGNED if kind.server == name]
    introspects = name != "oidc-provider"
    with protected(server, introspects=introspects) as client:
        for form in forms:
            token = server.sign_in("alice", form).access
            assert status_of(client, token) == 200
            header, claims, signature = token.split(".")
            assert status_of(client, f"{header}.{claims}.{_flip(signature, 5)}") == 401
            assert status_of(client, server.sign_in("alice", form, service="billing-service").access) == 401
            assert status_of(client, server.sign_in("alice", form, scope="email").access) == 403
            if introspects:
                revoked = server.sign_in("alice", form).access
                server.revoke(revoked, form)
                assert status_of(client, revoked) == 401
        assert status_of(client, None) == 401
        server.rotate(keep=True)
        assert status_of(client, server.sign_in("alice", forms[0]).access) == 200


def test_environment_variables_alone_verify_opaque_tokens(real_servers: RealServers) -> None:
    """Environment variables alone verify opaque tokens, with special characters in the client's ID and secret."""
    server = real_servers["oidc-provider"]
    with protected(server, introspects=True) as client:
        tokens = server.sign_in("alice", "opaque")
        revoked = server.sign_in("alice", "opaque").access
        server.revoke(revoked, "opaque")

        assert status_of(client, tokens.access) == 200
        assert status_of(client, tokens.refresh) == 401
        assert status_of(client, revoked) == 401
        assert status_of(client, server.sign_in("alice", "opaque", service="billing-service").access) == 401
