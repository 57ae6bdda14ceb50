"""A short run of `tools.soak.exchange` succeeds."""

from __future__ import annotations

import pytest

from otel_token_relay.exchange.engine import ExchangeEngine
from tests.support.token_endpoint import Endpoint, Response
from tools.soak import exchange

USERS, MADE_UP = 20, 200


def test_no_hop_has_a_wrong_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one exchange for each token and destination, and none for an invalid token."""
    monkeypatch.setitem(ExchangeEngine.__init__.__kwdefaults__, "timeout", 60.0)  # a busy machine can be slow
    result = exchange.run(USERS, MADE_UP)

    assert result.problems == {}
    pairs = USERS * 2 * len(exchange.AUDIENCES)
    assert result.exchanges >= pairs + USERS  # results for every tenth user expire, and rejected tokens have no result
    assert result.hops - result.unauthorized == 3 * (3 * USERS * 4) + MADE_UP + USERS + 3 * USERS


def test_a_server_that_mixes_users_is_noticed() -> None:
    """The soak test detects a server that mixes up users."""

    def mix(endpoint: Endpoint, form: dict[str, str]) -> Response:
        return endpoint.issue(form | {"subject_token": "user-of-another-request", "audience": "billing"})

    result = exchange.run(3, 0, mix)

    assert result.wrong_subject > 0
    assert result.wrong_audience > 0


def test_a_server_that_fails_is_noticed() -> None:
    """If the server fails, its callers lack tokens and never send their own instead."""
    result = exchange.run(3, 0, lambda endpoint, form: (400, {"error": "invalid_target"}))

    assert result.missing > 0
    assert result.original == 0
