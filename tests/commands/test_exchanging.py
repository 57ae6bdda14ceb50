"""``otel-token-relay explain --online`` makes one exchange and never contacts the destination."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from otel_token_relay import cli
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.exchange.advice import ADVICE
from tests.exchange.test_hops import jwt
from tests.support.issuers import Issuer
from tests.support.loopback import Party, party
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint
from tests.support.tokens import AUDIENCE, claims, make_token

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"


@pytest.fixture
def billing() -> Iterator[Party]:
    with party() as one:
        yield one
    assert one.requests == []  # the destination is never contacted


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    build_token_source.cache_clear()
    yield
    build_token_source.cache_clear()


class Explain:
    """A callable that runs the command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], **variables: str) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        monkeypatch.setenv("OTEL_PROPAGATORS", "token_relay")
        for name, value in variables.items():
            monkeypatch.setenv(PREFIX + name, value)

    def __call__(self, *arguments: str, token: str | None = None) -> tuple[int, str]:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((token or "").encode())))
        status = cli.main(["explain", "--online", *arguments])
        captured = self._capfd.readouterr()
        for secret in filter(None, (token, SECRET, "issued-token")):
            assert secret not in captured.out + captured.err
        return status, captured.out + captured.err


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], endpoint: Endpoint, billing: Party
) -> Explain:
    return Explain(
        monkeypatch,
        capfd,
        DESTINATIONS=f"{billing.url};audience=billing;without-user=client",
        TOKEN_ENDPOINT=endpoint.url,
        CLIENT_ID="user-service",
        CLIENT_SECRET=SECRET,
        EXCHANGE_UNVERIFIED="true",
    )


def issued(**members: Any) -> tuple[int, Any]:
    return 200, {"access_token": "issued-token", "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer"} | members


def test_an_exchange_that_works_is_described(run: Explain, endpoint: Endpoint, billing: Party) -> None:
    """A successful exchange is described by the token's audience, without its subject."""
    endpoint.respond = lambda form: issued(access_token=jwt(aud=["billing", "x"], sub="alice", exp=9999999999))
    status, text = run(f"{billing.url}/invoices", token="the-callers-token")

    assert status == 0
    assert text.startswith("exchanged\n")
    assert "The server issued a token for billing, x, valid for " in text
    assert "without an actor (act)" in text
    assert "alice" not in text
    assert [form["subject_token"] for form in endpoint.forms] == ["the-callers-token"]

    endpoint.respond = lambda form: issued()
    build_token_source.cache_clear()
    assert "The server issued an opaque token." in run(billing.url, token="Bearer the-callers-token")[1]


@pytest.mark.parametrize(
    ("response", "error", "status"),
    [
        ((400, {"error": "invalid_target"}), "invalid_target (status 400)", 1),
        ((401, {"error": "invalid_client"}), "invalid_client (status 401)", 1),
        ((500, {}), "unavailable (status 500)", 3),
        (issued(access_token=jwt(aud="orders")), "wrong_audience (the issued token is for a different audience)", 1),
        ((200, b"<html>"), "bad_response (the body is not a JSON object)", 1),
    ],
)
def test_an_exchange_that_fails_is_explained(
    run: Explain, endpoint: Endpoint, billing: Party, response: Any, error: str, status: int
) -> None:
    """A failed exchange is described with the server's error and advice, and without a response, the status is 3."""
    endpoint.respond = lambda form: response
    found, text = run(billing.url, token="the-callers-token")

    assert found == status
    assert text.startswith("withheld: exchange_failed\n")
    assert f"Error: {error}" in text
    advice = ADVICE[error.split(" ")[0]].replace("`", "")  # type: ignore[index]
    assert advice.split(".")[0] in " ".join(text.split())
    found, text = run("--json", billing.url, token="the-callers-token")
    (result,) = [json.loads(line) for line in text.splitlines()]
    assert (result["decision"], result["reason"]) == ("withheld", "exchange_failed")
    assert result["exchange"]["error"] == error.split(" ")[0]


def test_a_token_of_the_services_own_needs_no_input(run: Explain, endpoint: Endpoint, billing: Party) -> None:
    """Obtaining a token of the service's own requires no input."""
    status, text = run("--without-user", billing.url)
    assert (status, text.splitlines()[0]) == (0, "own")
    assert [form["grant_type"] for form in endpoint.forms] == ["client_credentials"]


def test_input_without_a_token_is_a_usage_error(run: Explain, endpoint: Endpoint, billing: Party) -> None:
    """Missing input is a usage error only if a destination requires an exchange."""
    status, text = run(billing.url)
    assert status == 2
    assert (
        "standard input contains no token; pass a token, for example: otel-token-relay explain --online URL < token.txt"
        in text
    )
    assert run("https://elsewhere.example")[0] == 1
    assert endpoint.forms == []


def test_a_token_that_this_service_rejects_is_not_exchanged(
    run: Explain, endpoint: Endpoint, billing: Party, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that this service rejects is not exchanged, just as at a hop."""
    for name, value in {"VERIFY": "enforce", "ISSUERS": issuer.url, "AUDIENCE": AUDIENCE}.items():
        monkeypatch.setenv(PREFIX + name, value)
    status, text = run(billing.url, token=make_token(claims(issuer.url, aud="another")))
    assert status == 1
    assert text.startswith("withheld: not_verified\n")
    assert "Error: rejected (this service rejects the token: wrong_audience)" in text
    assert endpoint.forms == []

    assert run(billing.url, token=make_token(claims(issuer.url)))[0] == 0
    assert len(endpoint.forms) == 1


@pytest.mark.parametrize(
    ("response", "status", "words"),
    [
        ((400, {"error": "invalid_grant"}), 0, "a random token is refused: invalid_grant (status 400)"),
        ((400, {"error": "invalid_request"}), 0, "a random token is refused: invalid_request (status 400)"),
        ((401, {"error": "invalid_client"}), 1, "invalid_client (status 401)"),
        ((400, {"error": "unsupported_grant_type"}), 1, "unsupported_grant_type (status 400)"),
        ((200, b"<html>"), 1, "bad_response (the body is not a JSON object)"),
        (issued(access_token="issued-token"), 1, "it issues a token in exchange for a random token"),
        ((503, {}), 3, "unavailable (status 503)"),
    ],
)
def test_check_asks_the_token_endpoint_about_a_random_token(
    run: Explain, endpoint: Endpoint, capfd: pytest.CaptureFixture[str], response: Any, status: int, words: str
) -> None:
    """The `check` command reports how the token endpoint responds to a random token, and prints no issued token."""
    endpoint.respond = lambda form: response
    assert cli.main(["check", "--online"]) == status
    captured = capfd.readouterr()

    assert f"token {endpoint.url}: {words}" in captured.out
    assert "issued-token" not in captured.out + captured.err
    assert len(endpoint.forms) == 1
    assert endpoint.forms[0]["subject_token"] not in captured.out
