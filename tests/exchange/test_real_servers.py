"""Tokens are exchanged at three real authorization servers, two of which are third-party products."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import anyio
import jwt
import pytest

from otel_token_relay.client_credentials import ClientAuth, ClientCredential, Secret
from otel_token_relay.errors import ExchangeFailed, TokenRejected
from otel_token_relay.exchange import AsyncTokenExchanger, TokenExchanger
from otel_token_relay.exchange.grants import Request
from otel_token_relay.exchange.responses import Issued, read_response
from otel_token_relay.token import DEFAULT_MAX_LENGTH, BearerToken
from otel_token_relay.verification import TokenVerifier
from tests.support.real_servers import SERVICE, Client, RealServer, RealServers

BILLING = "billing-service"


class Row(NamedTuple):
    """An exchange at one server.

    Attributes:
        server: The name of the server.
        form: The format of the caller's token: its signature algorithm, or ``opaque``.
        asked: The parameters of the exchange.
        issued: The format of the issued token.
    """

    server: str
    form: str
    asked: dict[str, str]
    issued: str


ROWS = (
    Row("demo", "RS256", {"audience": BILLING}, "RS256"),
    Row("demo", "opaque", {"resource": BILLING, "scope": "profile"}, "RS256"),
    Row("oidc-provider", "EdDSA", {"audience": BILLING}, "RS256"),
    # The server's operator has chosen the name that is the audience of a token for this resource.
    Row("oidc-provider", "opaque", {"audience": BILLING, "resource": f"https://es256.{BILLING}.test"}, "ES256"),
    Row("oidc-provider", "RS256", {"resource": f"https://opaque.{BILLING}.test", "scope": "profile"}, "opaque"),
    # Without a scope, this server requests all of the client's scopes, which exceed the scope of the caller's token.
    Row("authgent", "ES256", {"audience": BILLING, "scope": "profile"}, "ES256"),
    Row("authgent", "ES256", {"resource": BILLING, "scope": "profile"}, "ES256"),
)


def name_of(row: Row) -> str:
    return f"{row.server}-{row.form}-{'-'.join(row.asked)}"


def exchangers(server: RealServer, client: Client | None = None, **options: Any) -> tuple[Any, Any]:
    """Return an exchanger for threads and an exchanger for tasks."""
    client = client or server.service
    options |= {"token_endpoint": server.metadata["token_endpoint"], "timeout": 20.0}
    if "client_id" not in options:
        options |= {"client_id": client.client_id, "client_secret": client.secret}
    return TokenExchanger(**options), AsyncTokenExchanger(**options)


def exchange(pair: tuple[Any, Any], token: BearerToken, **asked: Any) -> list[str]:
    """Exchange the token with each exchanger, and return the results."""
    return [_exchange(exchanger, token, asked).reveal() for exchanger in pair]


def _exchange(exchanger: Any, token: BearerToken, asked: dict[str, Any]) -> BearerToken:
    async def wait() -> Any:
        return await exchanger.exchange(token, **asked)

    found: BearerToken = (
        anyio.run(wait) if isinstance(exchanger, AsyncTokenExchanger) else exchanger.exchange(token, **asked)
    )
    return found


def errors(pair: tuple[Any, Any], token: BearerToken, **asked: str) -> set[str]:
    """Return the errors of both exchangers, and assert that no error message contains the token."""
    found = set()
    for exchanger in pair:
        with pytest.raises(ExchangeFailed) as failed:
            _exchange(exchanger, token, asked)
        assert token.reveal() not in f"{failed.value} {failed.value!r}"
        found.add(failed.value.error)
    return found


def verifier(server: RealServer, form: str, audience: str = SERVICE) -> TokenVerifier:
    introspection: dict[str, Any] = {}
    if form == "opaque":
        introspection = {
            "introspection_endpoint": server.metadata["introspection_endpoint"],
            "client_id": server.service.client_id,
            "client_secret": server.service.secret,
        }
    return TokenVerifier([server.issuer], audience, profile=server.profile, **introspection)


def verified(server: RealServer, form: str, user: str = "alice", **options: str) -> BearerToken:
    """Return a caller's token that this service has verified."""
    value = server.sign_in(user, form, **options).access
    token = BearerToken(value)
    token.mark_verified(verifier(server, form).verify(value))
    return token


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_token_is_exchanged_for_the_audience_that_was_asked_for(real_servers: RealServers, row: Row) -> None:
    """Only the requested service accepts the result, which identifies the caller and differs for each caller."""
    server = real_servers[row.server]
    pair = exchangers(server)
    there, here = verifier(server, row.issued, BILLING), verifier(server, row.issued)
    seen = set()

    for user in ("alice", "bob"):
        token = verified(server, row.form, user)
        results = exchange(pair, token, **row.asked)
        for issued in results:
            assert (issued.count(".") == 2) is (row.issued != "opaque")
            accepted = there.verify(issued)
            assert accepted.subject == server.subject(user)
            assert (accepted.client_id, accepted.scopes) == (server.service.client_id, {"profile"})
            with pytest.raises(TokenRejected, match="wrong_audience"):
                here.verify(issued)
            seen |= {issued, token.reveal()}
        assert exchange(pair, token, **row.asked) == results  # from the cache

    assert len(seen) == 6


def post(server: RealServer, request: Request, subject: str, actor: str | None) -> Issued:
    """Send the relay's form to the server, and parse the response as the relay does."""
    client, endpoint = server.service, server.metadata["token_endpoint"]
    own = ClientCredential(client_id=client.client_id, secret=Secret(client.secret)).authenticate(None, endpoint)
    response = server.http.post(
        endpoint,
        content=urlencode(request.form(subject, actor)),
        headers={"Content-Type": "application/x-www-form-urlencoded", "Authorization": str(own.authorization)},
    )
    given = (subject,) if actor is None else (subject, actor)
    return read_response(response.status_code, response.json(), request, given, DEFAULT_MAX_LENGTH)


@pytest.mark.parametrize(("name", "form"), [("demo", "RS256"), ("oidc-provider", "ES256")])
def test_actor_becomes_a_claim_of_the_result(real_servers: RealServers, name: str, form: str) -> None:
    """The actor becomes a claim of the result, and later exchanges keep the claim."""
    server = real_servers[name]
    token, own = verified(server, form), server.own_token(form)

    once = post(server, Request(audience=SERVICE), token.reveal(), own)
    twice = post(server, Request(audience=BILLING), once.token, own)

    service = server.service.client_id
    assert once.has_actor
    assert claims_of(once.token)["act"] == {"sub": service}
    assert claims_of(twice.token)["act"] == {"sub": service, "act": {"sub": service}}
    assert claims_of(twice.token)["sub"] == "alice"
    delegated = BearerToken(once.token)
    delegated.mark_verified(verifier(server, form).verify(once.token))
    for issued in exchange(exchangers(server), delegated, audience=BILLING):
        assert claims_of(issued)["act"] == {"sub": service}
    assert not post(server, Request(audience=BILLING), token.reveal(), None).has_actor


def test_authgent_makes_the_client_the_actor(real_servers: RealServers) -> None:
    """authgent-server ignores `actor_token` and adds the client to the nested `act` claim at each exchange."""
    server = real_servers["authgent"]
    pair, actor = exchangers(server), {"sub": f"client:{server.service.client_id}"}

    [once, _] = exchange(pair, verified(server, "ES256"), audience=SERVICE, scope="profile")
    delegated = BearerToken(once)
    delegated.mark_verified(verifier(server, "ES256").verify(once))
    [twice, _] = exchange(pair, delegated, audience=BILLING, scope="profile")

    assert claims_of(once)["act"] == actor
    assert claims_of(twice)["act"] == actor | {"act": actor}
    assert claims_of(twice)["sub"] == server.subject("alice")


@pytest.mark.parametrize(
    ("client", "method"),
    [
        (None, "client_secret_basic"),
        (Client("with-post", "another secret"), "client_secret_post"),
    ],
)
def test_client_authenticates(real_servers: RealServers, client: Client | None, method: ClientAuth) -> None:
    """The client authenticates at a certified server with an ID and a secret that require encoding."""
    server = real_servers["oidc-provider"]
    pair = exchangers(server, client, client_auth=method)

    for issued in exchange(pair, verified(server, "RS256"), audience=BILLING):
        assert claims_of(issued)["client_id"] == (client or server.service).client_id


def test_client_authenticates_with_a_key(real_servers: RealServers, tmp_path: Path) -> None:
    """A client that authenticates with a key sends a different assertion for each exchange."""
    server: Any = real_servers["oidc-provider"]
    key_file = server.write_key(tmp_path / "key.pem")
    pair = exchangers(server, client_id="with-key", client_key_file=key_file, issuer=server.issuer)

    for issued in exchange(pair, verified(server, "RS256"), audience=BILLING):
        assert claims_of(issued)["client_id"] == "with-key"


@pytest.mark.parametrize(
    ("name", "form", "rejected", "target"),
    [
        ("demo", "RS256", "invalid_request", "invalid_target"),
        ("oidc-provider", "ES256", "invalid_grant", "invalid_target"),
        ("authgent", "ES256", "invalid_grant", None),
    ],
)
def test_errors_of_a_server_are_those_of_a_closed_set(
    real_servers: RealServers,
    name: str,
    form: str,
    rejected: str,
    target: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each server's errors are mapped to defined errors, and neither messages nor logs contain a secret."""
    caplog.set_level(0, "otel_token_relay")
    server = real_servers[name]
    pair, service = exchangers(server, allow_unverified=True), server.service
    token, made_up = verified(server, form), BearerToken("made-up-token")
    foreign = BearerToken(f"{token.reveal()[:-8]}AAAAAAAA")
    wrong = Client(service.client_id, "the-wrong-secret")

    assert errors(pair, made_up, audience=BILLING) == {rejected}
    assert errors(pair, foreign, audience=BILLING) == {rejected}
    assert errors(pair, token, audience=BILLING, scope="email") == {"invalid_scope"}
    assert errors(exchangers(server, wrong), token, audience=BILLING) == {"invalid_client"}
    if target is not None:
        assert errors(pair, token, audience="unknown-service") == {target}
    for secret in (token.reveal(), foreign.reveal(), service.secret, wrong.secret):
        assert secret not in caplog.text
    assert "token exchange failed" in caplog.text


@pytest.mark.parametrize(
    ("name", "form", "error"),
    [
        ("demo", "RS256", "invalid_request"),
        ("demo", "opaque", "invalid_request"),
        ("oidc-provider", "opaque", "invalid_grant"),
        ("authgent", "ES256", "invalid_grant"),
    ],
)
def test_revoked_token_is_not_exchanged(real_servers: RealServers, name: str, form: str, error: str) -> None:
    """A revoked token is not exchanged, even if this service verified it earlier."""
    server = real_servers[name]
    token = verified(server, form)

    server.revoke(token.reveal(), form)

    assert errors(exchangers(server), token, audience=BILLING) == {error}


def test_client_without_the_grant_exchanges_nothing(real_servers: RealServers) -> None:
    """A client without the grant gets an error, which oidc-provider reports as an invalid request."""
    server = real_servers["oidc-provider"]
    pair = exchangers(server, Client("without-exchange", "a third secret"))

    assert errors(pair, verified(server, "RS256"), audience=BILLING) == {"invalid_request"}


def test_audience_that_was_not_asked_for_is_refused(real_servers: RealServers) -> None:
    """A token for an unexpected audience is rejected, even if the server uses that name for the resource."""
    server = real_servers["oidc-provider"]
    token = verified(server, "RS256")
    resource = f"https://es256.{BILLING}.test"

    assert errors(exchangers(server), token, resource=resource) == {"wrong_audience"}
    for issued in exchange(exchangers(server), token, resource=resource, expect=[BILLING]):
        assert claims_of(issued)["aud"] == BILLING
