"""x11: every client reports that the user must sign in again, even if the exchange includes an actor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_token_relay import Settings, install, use_token
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.errors import TokenUnavailable
from tests.support.clients import Client, every_client
from tests.support.token_endpoint import SECRET, Endpoint, Response, serving, verified

CHALLENGE = '{"access_token":{"acrs":{"essential":true}}}'


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    build_token_source.cache_clear()
    with serving() as running:
        yield running
    build_token_source.cache_clear()


@every_client
@pytest.mark.parametrize("grant", ["token-exchange", "client_credentials"])
def test_the_challenge(client: Client, endpoint: Endpoint, grant: str) -> None:
    """The exception contains the challenge, regardless of which of the two token requests is refused."""

    def respond(form: dict[str, str]) -> Response:
        if form["grant_type"].endswith(grant):
            return 400, {"error": "interaction_required", "claims": CHALLENGE}
        return endpoint.issue(form)

    endpoint.respond = respond
    with client.party() as billing:
        install(
            Settings(
                destinations=(f"{billing.url};audience=billing;required",),
                token_endpoint=endpoint.url,
                client_id="user-service",
                client_secret=SECRET,
                exchange_actor="client",
            )
        )
        with use_token(verified("alice-has-this-token-0123456789")), pytest.raises(TokenUnavailable) as caught:
            client.call(billing.url)
    assert caught.value.claims_challenge == CHALLENGE
