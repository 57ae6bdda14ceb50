"""The demo's token checks interpret responses and logs, and detect faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_token_relay import BearerToken
from otel_token_relay.demo.hops import Call
from otel_token_relay.demo.token_checks import Outcome, TokenCheck, find_fault, run_check, tamper
from tests.support.servers import serve_wsgi

ALICE = Call(trace_id="a" * 32, user="alice", token="digest of alice's")
ANONYMOUS = Call(trace_id="b" * 32, user=None, token=None)
VALID = TokenCheck(what="alice's", call=ALICE, token=BearerToken("eyJ.e30.c2ln"))

INVALID = replace(VALID, reason="expired")

NONE = TokenCheck(what="none", call=ANONYMOUS, token=None, reason="absent")


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(check=VALID, status=200, name="alice"),
        Outcome(check=INVALID, status=401, error="invalid_token", reason="expired"),
        Outcome(check=NONE, status=401, reason="absent"),
    ],
    ids=["accepted", "rejected", "no token"],
)
def test_expected_outcome_is_not_a_fault(outcome):
    """A caller who is correctly identified, or rejected for the expected reason, is not reported as a fault."""
    assert find_fault(outcome) is None


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome(check=VALID, status=401, error="invalid_token", reason="unknown_key"), "expected 200 alice"),
        (Outcome(check=VALID, status=503, reason="unavailable"), "expected 200 alice, received 503 unavailable"),
        (Outcome(check=VALID, status=200, name="bob"), "expected 200 alice, received 200 bob"),
        (Outcome(check=INVALID, status=200, name="alice"), "expected 401 invalid_token expired, received 200 alice"),
        (
            Outcome(check=INVALID, status=401, error="invalid_token", reason="bad_signature"),
            "received 401 invalid_token bad_signature",
        ),
        (
            Outcome(check=INVALID, status=401, reason="expired"),
            "expected 401 invalid_token expired, received 401 expired",
        ),
        (Outcome(check=NONE, status=401, error="invalid_token", reason="absent"), "expected 401 absent"),
    ],
    ids=[
        "rejected",
        "unavailable",
        "another user",
        "accepted",
        "another reason",
        "no error code",
        "error without token",
    ],
)
def test_unexpected_outcome_is_a_fault(outcome, words):
    """An unexpected outcome is reported as a fault, without the token."""
    fault = find_fault(outcome)

    assert fault is not None
    assert words in fault
    assert "eyJ" not in fault + repr(outcome)
    assert fault.startswith('user-service, token "')


@pytest.mark.parametrize("signature", ["Abc", "Bbc", "-bc"])
def test_tampered_token_differs_in_one_character_of_its_signature(signature):
    """Only the first character of a tampered token's signature differs from the original."""
    head, _, changed = tamper(f"eyJ.e30.{signature}").rpartition(".")

    assert head == "eyJ.e30"
    assert changed != signature
    assert changed[1:] == signature[1:]


class ProfileService:
    """A service that responds as the test specifies, writes a log, and records the headers of each request."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.status = "200 OK"
        self.headers: list[tuple[str, str]] = []
        self.name: str | None = None
        self.logged = ""
        self.requests: list[tuple[str, str | None, str]] = []

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.requests.append(
            (environ["PATH_INFO"], environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_TRACEPARENT", ""))
        )
        with self.log.open("a") as log:
            log.write(self.logged)
        start_response(self.status, self.headers)
        return [json.dumps({"name": self.name}).encode()]


@pytest.fixture
def service(tmp_path: Path) -> ProfileService:
    """Return the service, whose log contains an entry of an earlier request."""
    log = tmp_path / "log"
    log.write_text("request rejected: expired\n")
    return ProfileService(log)


@pytest.fixture
def client(service: ProfileService) -> Iterator[httpx.Client]:
    """Run the service and return its client."""
    with serve_wsgi(service) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client


def test_an_accepted_token_has_the_name_of_the_user(service: ProfileService, client: httpx.Client) -> None:
    """A request carries the token and the call's trace, and log entries of earlier requests are ignored."""
    service.name = "alice"
    outcome = run_check(VALID, client, service.log)

    assert outcome == Outcome(check=VALID, status=200, name="alice")
    assert run_check(VALID, client, service.log, "/invoices") == outcome
    (path, authorization, traceparent), other = service.requests
    assert other[0] == "/invoices"
    assert (path, authorization) == ("/profile", "Bearer eyJ.e30.c2ln")
    assert traceparent.startswith(f"00-{ALICE.trace_id}-")


def test_a_rejected_token_has_the_error_of_the_challenge_and_the_reason_in_the_log(
    service: ProfileService, client: httpx.Client
) -> None:
    """The error of a rejected token is read from the challenge, and the reason from the log."""
    service.status, service.name = "401 Unauthorized", "alice"
    service.headers = [("WWW-Authenticate", 'Bearer realm="profiles", error="invalid_token"')]
    service.logged = "DEBUG request rejected: wrong_audience\n"

    assert run_check(INVALID, client, service.log) == Outcome(
        check=INVALID, status=401, error="invalid_token", reason="wrong_audience"
    )


def test_a_request_without_a_token_has_no_error(service: ProfileService, client: httpx.Client) -> None:
    """A request without a token sends no credentials and has no error code."""
    service.status, service.headers = "401 Unauthorized", [("WWW-Authenticate", 'Bearer realm="profiles"')]
    service.logged = "request rejected: absent\nother text\nrequest rejected: unavailable\n"
    rejected = run_check(NONE, client, service.log)
    service.status, service.logged = "200 OK", ""
    accepted = run_check(NONE, client, service.log)

    assert rejected == Outcome(check=NONE, status=401, reason="absent, unavailable")
    assert accepted == Outcome(check=NONE, status=200)
    assert [authorization for _, authorization, _ in service.requests] == [None, None]
