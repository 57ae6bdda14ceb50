"""Tokens are exchanged at three authorization servers, two of which are not ours."""

from __future__ import annotations

from collections.abc import Mapping
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
from otel_token_relay.exchange.tokens import DestinationTokens
from otel_token_relay.settings import Settings
from otel_token_relay.token import DEFAULT_MAX_LENGTH, BearerToken
from otel_token_relay.verification import TokenVerifier
from tests.support.exchange_recipes import COMMON, RECIPES, RUN, Recipe
from tests.support.real_servers import SERVICE, Client, RealServer, RealServers

BILLING = "billing-service"


class Row(NamedTuple):
    """An exchange at one server.

    Attributes:
        server: The server.
        form: The form of the caller's token: its signature algorithm, or ``opaque``.
        asked: What is asked for.
        issued: The form of the result.
    """

    server: str
    form: str
    asked: dict[str, str]
    issued: str


ROWS = (
    Row("demo", "RS256", {"audience": BILLING}, "RS256"),
    Row("demo", "opaque", {"resource": BILLING, "scope": "profile"}, "RS256"),
    Row("oidc-provider", "EdDSA", {"audience": BILLING}, "RS256"),
    # The audience of a token for a resource is a name that the operator of the server has chosen.
    Row("oidc-provider", "opaque", {"audience": BILLING, "resource": f"https://es256.{BILLING}.test"}, "ES256"),
    Row("oidc-provider", "RS256", {"resource": f"https://opaque.{BILLING}.test", "scope": "profile"}, "opaque"),
    # Without a scope, this server asks for all scopes of the client, which exceed those of the caller's token.
    Row("authgent", "ES256", {"audience": BILLING, "scope": "profile"}, "ES256"),
    Row("authgent", "ES256", {"resource": BILLING, "scope": "profile"}, "ES256"),
)


def name_of(row: Row) -> str:
    return f"{row.server}-{row.form}-{'-'.join(row.asked)}"


def exchangers(server: RealServer, client: Client | None = None, **options: Any) -> tuple[Any, Any]:
    """Return the exchanger for threads and the one for tasks."""
    client = client or server.service
    options |= {"token_endpoint": server.metadata["token_endpoint"], "timeout": 20.0}
    options |= {"client_id": client.client_id, "client_secret": client.secret}
    return TokenExchanger(**options), AsyncTokenExchanger(**options)


def exchange(pair: tuple[Any, Any], token: BearerToken, **asked: str) -> list[str]:
    """Return what each exchanger obtains."""
    return [_exchange(exchanger, token, asked).reveal() for exchanger in pair]


def _exchange(exchanger: Any, token: BearerToken, asked: dict[str, str]) -> BearerToken:
    async def wait() -> Any:
        return await exchanger.exchange(token, **asked)

    found: BearerToken = (
        anyio.run(wait) if isinstance(exchanger, AsyncTokenExchanger) else exchanger.exchange(token, **asked)
    )
    return found


def errors(pair: tuple[Any, Any], token: BearerToken, **asked: str) -> set[str]:
    """Return the errors of both exchangers. No message may contain a token."""
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
    """It is accepted by that service and by no other one, and still names the caller. Other callers get another one."""
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


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.server in RUN], ids=lambda r: r.server)
def test_recipe_of_the_documentation_exchanges_tokens(
    real_servers: RealServers, recipe: Recipe, tmp_path: Path
) -> None:
    """The settings on the page, with this server's address and credential, obtain a token that billing accepts."""
    server = real_servers[RUN[recipe.server]]
    secret = tmp_path / "secret"
    secret.write_text(server.service.secret)
    changed = {
        "ISSUERS": server.issuer,
        "CLIENT_ID": server.service.client_id,
        "CLIENT_SECRET_FILE": str(secret),
    }
    here = {f"OTEL_PYTHON_TOKEN_RELAY_{name}": value for name, value in changed.items()}
    assert here.keys() <= recipe.variables.keys()
    settings = Settings.from_env(COMMON | recipe.variables | here)
    assert settings.problems == ()
    assert settings.profile == server.profile
    form = "RS256" if server.profile == "rfc9068" else "ES256"

    (entry,) = settings.entries
    token = verified(server, form)
    obtained = DestinationTokens(settings).obtain(token, entry)

    issued = obtained.token.reveal()
    assert (obtained.result, issued != token.reveal()) == ("miss", True)
    billing = verifier(server, jwt.get_unverified_header(issued)["alg"], BILLING)
    assert billing.verify(issued).subject == server.subject("alice")


def post(
    server: RealServer, request: Request, subject: str, actor: str | None, more: Mapping[str, str] | None = None
) -> Issued:
    """Send our form, and read the response with our rules.

    Args:
        more: The parameters with which the client authenticates, if it does not have a secret.
    """
    client = server.service
    credential = ClientCredential(client_id=client.client_id, secret=Secret(client.secret))
    own = credential.authenticate(server.issuer, server.metadata["token_endpoint"])
    headers = {} if more or own.authorization is None else {"Authorization": own.authorization}
    response = server.http.post(
        server.metadata["token_endpoint"],
        content=urlencode([*request.form(subject, actor), *(more or {}).items()]),
        headers={"Content-Type": "application/x-www-form-urlencoded", **headers},
    )
    given = (subject,) if actor is None else (subject, actor)
    return read_response(response.status_code, response.json(), request, given, DEFAULT_MAX_LENGTH)


@pytest.mark.parametrize(("name", "form"), [("demo", "RS256"), ("oidc-provider", "ES256")])
def test_actor_becomes_a_claim_of_the_result(real_servers: RealServers, name: str, form: str) -> None:
    """Later exchanges keep it, also those without an actor."""
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
    """It ignores `actor_token`, and nests the client into `act` at each exchange."""
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
    """A certified server accepts IDs and secrets with characters that must be encoded."""
    server = real_servers["oidc-provider"]
    pair = exchangers(server, client, client_auth=method)

    for issued in exchange(pair, verified(server, "RS256"), audience=BILLING):
        assert claims_of(issued)["client_id"] == (client or server.service).client_id


def test_client_authenticates_with_a_key(real_servers: RealServers) -> None:
    """The rest of the form is the same as with a secret."""
    server: Any = real_servers["oidc-provider"]
    subject = verified(server, "RS256").reveal()

    issued = post(server, Request(audience=BILLING), subject, None, server.assertion())

    assert claims_of(issued.token)["client_id"] == "with-key"


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
    """No token and no secret is in a message or in the log. authgent-server issues tokens for any audience."""
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
    """Even if this service has verified it before."""
    server = real_servers[name]
    token = verified(server, form)

    server.revoke(token.reveal(), form)

    assert errors(exchangers(server), token, audience=BILLING) == {error}


def test_client_without_the_grant_exchanges_nothing(real_servers: RealServers) -> None:
    """oidc-provider reports it as an invalid request."""
    server = real_servers["oidc-provider"]
    pair = exchangers(server, Client("without-exchange", "a third secret"))

    assert errors(pair, verified(server, "RS256"), audience=BILLING) == {"invalid_request"}


def test_audience_that_was_not_asked_for_is_refused(real_servers: RealServers) -> None:
    """The server calls the resource by another name, and the caller of `exchange` has not said which."""
    server = real_servers["oidc-provider"]
    token = verified(server, "RS256")
    resource = f"https://es256.{BILLING}.test"

    assert errors(exchangers(server), token, resource=resource) == {"wrong_audience"}
    issued = post(server, Request(resource=resource, expected=(BILLING,)), token.reveal(), None)
    assert claims_of(issued.token)["aud"] == BILLING
