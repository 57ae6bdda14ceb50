"""x01: an exchanged token is sent only to its own destination, regardless of later installations.

Equal settings share a cache but have different destination objects, and Python can reuse the ID of a freed object.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import requests

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.destinations import Destination
from tests.support.loopback import party
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint, serving, verified

ALICE = "alice-has-this-token-0123456789"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    build_token_source.cache_clear()
    yield
    build_token_source.cache_clear()


def settings_for(endpoint: Endpoint, *destinations: str | Destination) -> Settings:
    return Settings(
        destinations=destinations,
        token_endpoint=endpoint.url,
        client_id="user-service",
        client_secret=SECRET,
    )


@pytest.mark.parametrize("is_same_token", [False, True], ids=["a token for each", "one token"])
def test_equal_settings_that_are_installed_again(endpoint: Endpoint, is_same_token: bool) -> None:
    with party() as billing, party() as orders, use_token(verified(ALICE)):
        for number in range(5):
            uninstall()
            gc.collect()
            unused = [Destination.parse("https://other;audience=other") for _ in range(number % 3)]
            install(settings_for(endpoint, f"{billing.url};audience=billing", f"{orders.url};audience=orders"))
            del unused
            with nullcontext() if is_same_token else use_token(verified(f"{ALICE}-{number}")):
                requests.get(billing.url)
                requests.get(orders.url)
        assert all(line[0].endswith(".for.billing") for line in billing.lines())
        assert all(line[0].endswith(".for.orders") for line in orders.lines())


def test_a_result_is_not_found_by_the_id_of_a_freed_destination(endpoint: Endpoint) -> None:
    """A result is not found for a later destination object that has the ID of a freed destination object."""
    with party() as billing, party() as orders, use_token(verified(ALICE)) as caller:
        assert caller is not None
        install(settings_for(endpoint, f"{billing.url};audience=billing"))
        requests.get(billing.url)
        assert caller.obtained is not None
        (held,) = caller.obtained.values()
        uninstall()
        settings = settings_for(endpoint, f"{orders.url};audience=orders")
        caller.obtained[id(settings.entries[0])] = held
        install(settings)
        requests.get(orders.url)
        assert orders.lines() == [[f"Bearer {ALICE}.for.orders"]]


def test_settings_with_another_endpoint_that_share_a_destination(endpoint: Endpoint) -> None:
    """After the token endpoint is replaced, tokens from the previous endpoint are no longer used."""
    with serving() as another, party() as billing, use_token(verified(ALICE)):
        another.respond = lambda form: (
            200,
            {"access_token": "from-another", "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer"},
        )
        destination = Destination.parse(f"{billing.url};audience=billing")
        for one in (endpoint, another, endpoint):
            install(settings_for(one, destination))
            requests.get(billing.url)
        assert [line[0] for line in billing.lines()] == [
            f"Bearer {ALICE}.for.billing",
            "Bearer from-another",
            f"Bearer {ALICE}.for.billing",
        ]
