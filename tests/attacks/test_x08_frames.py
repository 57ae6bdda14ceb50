"""x08: no stack frame that an error tracker can find through an error or a log record contains a secret."""

from __future__ import annotations

import base64
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from otel_token_relay import Settings, as_service, install, use_token
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.errors import ExchangeFailed, TokenUnavailable
from tests.support.clients import Client, every_client
from tests.support.rejecting_tokens import SENDERS, guarded
from tests.support.token_endpoint import ACCESS_TOKEN, SECRET, Endpoint, Response, verified

ALICE = "alice-has-this-token-0123456789"
ISSUED = "an-issued-token-0123456789"
CHALLENGE = '{"access_token":{"acrs-of-alice":1}}'
CREDENTIALS = base64.b64encode(f"user-service:{SECRET}".encode()).decode()


def drop(form: dict[str, str]) -> Response:
    raise ConnectionResetError


RESPONSES: dict[str, Callable[[dict[str, str]], Response]] = {
    "refused": lambda form: (400, {"error": "interaction_required", "claims": CHALLENGE, "error_description": ISSUED}),
    "garbage": lambda form: (200, ISSUED.encode()),
    "bound to a key": lambda form: (
        200,
        {"access_token": ISSUED, "issued_token_type": ACCESS_TOKEN, "token_type": "DPoP"},
    ),
    "dropped": drop,
}


class Tracker(logging.Handler):
    """A handler that collects the local variables of all reachable package frames, as an error tracker does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._done: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(f"{record.getMessage()} {vars(record)}")
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            self._add_frame(frame)
            frame = frame.f_back
        self.add(sys.exc_info()[1])

    def add(self, error: BaseException | None) -> None:
        if error is None or id(error) in self._done:
            return
        self._done.add(id(error))
        self.seen.append(f"{error} {error!r}")
        trace_back = error.__traceback__
        while trace_back is not None:
            self._add_frame(trace_back.tb_frame)
            trace_back = trace_back.tb_next
        self.add(error.__cause__)
        self.add(error.__context__)

    def _add_frame(self, frame: FrameType) -> None:
        if "otel_token_relay" in frame.f_code.co_filename:
            for value in frame.f_locals.values():
                self.seen.append(repr(value))
                if isinstance(value, BaseException):
                    self.add(value)

    def assert_clean(self) -> None:
        assert self.seen
        for secret in (ALICE, SECRET, CREDENTIALS, ISSUED, "acrs-of-alice"):
            assert not [text for text in self.seen if secret in text]


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    build_token_source.cache_clear()
    tracker, root = Tracker(), logging.getLogger()
    level = root.level
    root.addHandler(tracker)
    root.setLevel(logging.DEBUG)
    yield tracker
    root.setLevel(level)
    root.removeHandler(tracker)
    build_token_source.cache_clear()


def settings_for(token_endpoint: str, url: str, **others: Any) -> Settings:
    return Settings(
        destinations=(f"{url};audience=billing;required;without-user=client",),
        token_endpoint=token_endpoint,
        client_id="user-service",
        client_secret=SECRET,
        **others,
    )


@every_client
@pytest.mark.parametrize("outage", [*RESPONSES, "nothing listens"])
def test_hops(client: Client, endpoint: Endpoint, tracker: Tracker, outage: str) -> None:
    """No frame contains a secret if an exchange fails, for a user or for the service itself."""
    url = endpoint.url
    if outage in RESPONSES:
        endpoint.respond = RESPONSES[outage]
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            url = f"http://127.0.0.1:{free.getsockname()[1]}/token"
    with client.party() as billing:
        install(settings_for(url, billing.url))
        for bound in (use_token(verified(ALICE)), as_service()):
            with bound, pytest.raises(TokenUnavailable) as caught:
                client.call(billing.url)
            tracker.add(caught.value)
    tracker.assert_clean()


@pytest.mark.parametrize("name", SENDERS)
def test_hops_that_are_sent_again(name: str, endpoint: Endpoint, tracker: Tracker) -> None:
    """No frame contains a secret if the renewal or the second request fails."""
    tokens = iter([f"{ISSUED}.1", None, f"{ISSUED}.3", f"{ISSUED}.4"])

    def respond(form: dict[str, str]) -> Response:
        token = next(tokens)
        return RESPONSES["refused"](form) if token is None else (200, {"access_token": token, "token_type": "Bearer"})

    def hang_up(token: str) -> None:
        if token.endswith(".4"):
            raise ConnectionResetError

    endpoint.respond = respond
    with guarded() as billing:
        billing.before, billing.accepts = hang_up, lambda token: False
        encoded = base64.b64encode(CHALLENGE.encode()).decode()
        billing.challenges = [f'Bearer error="insufficient_claims", claims="{encoded}"']
        settings = settings_for(endpoint.url, billing.url, exchange_grant="on-behalf-of")
        entry = f"{billing.url};audience=billing;required;retry=idempotent"
        install(replace(settings, destinations=(entry,)))
        with use_token(verified(ALICE)):
            assert SENDERS[name](billing.url, "GET", "none").status == 401
        with use_token(verified(f"{ALICE}-2")):
            try:
                SENDERS[name](billing.url, "GET", "none")
            except Exception as error:
                tracker.add(error)
    assert len(endpoint.forms) == 4
    tracker.assert_clean()


@pytest.mark.parametrize("outage", RESPONSES)
def test_the_exchanger_in_code(endpoint: Endpoint, tracker: Tracker, outage: str) -> None:
    endpoint.respond = RESPONSES[outage]
    with pytest.raises(ExchangeFailed) as caught:
        endpoint.exchanger().exchange(verified(ALICE), audience="billing")
    tracker.add(caught.value)
    tracker.assert_clean()


def test_an_error_that_is_not_expected(endpoint: Endpoint, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError(f"{arguments}")

    monkeypatch.setattr("otel_token_relay.exchange.engine.read_response", fail)
    with pytest.raises(ExchangeFailed) as caught:
        endpoint.exchanger().exchange(verified(ALICE), audience="billing")
    tracker.add(caught.value)
    tracker.assert_clean()
