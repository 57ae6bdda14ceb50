"""What the hooks share that send a rejected request once more."""

from __future__ import annotations

import io
from typing import Any

import pytest
from opentelemetry.context import Context

from otel_token_relay.clients.retrying import Result, check_target, is_repeatable
from otel_token_relay.origin import Target
from otel_token_relay.relay import Hop, Relay
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken


@pytest.fixture
def settled() -> list[bool]:
    """The results that have been reported."""
    return []


@pytest.fixture
def hop(settled: list[bool]) -> Hop:
    """A hop to https://billing.example whose request is being retried."""
    settings = Settings(destinations=("https://billing.example",))
    (destination,) = settings.entries
    target = ("https", "billing.example", 443)
    return Hop(Relay(settings), BearerToken("alice-1"), destination, target, Context(), settle=settled.append)


class Text(str):
    """A class of an application, which may read from anywhere."""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(None, True, id="none"),
        pytest.param(b"", True, id="empty"),
        pytest.param(b"body", True, id="bytes"),
        pytest.param("body", True, id="text"),
        pytest.param(bytearray(b"body"), True, id="bytearray"),
        pytest.param(Text("body"), False, id="subclass"),
        pytest.param(io.BytesIO(b"body"), False, id="file"),
        pytest.param(iter([b"body"]), False, id="iterator"),
        pytest.param([b"body"], False, id="list"),
    ],
)
def test_only_a_body_in_memory_is_repeatable(body: object, expected: bool) -> None:
    """A file may be at its end, or shared with another request."""
    assert is_repeatable(body) is expected


def fail(request: object) -> Target:
    raise AttributeError("a later release has no such attribute")


@pytest.mark.parametrize(
    ("target_of", "is_same"),
    [
        pytest.param(lambda request: ("https", "billing.example", 443), True, id="same"),
        pytest.param(lambda request: ("https", "BILLING.example", 443), True, id="case"),
        pytest.param(lambda request: ("https", "billing.example", 8443), False, id="port"),
        pytest.param(lambda request: ("http", "billing.example", 443), False, id="scheme"),
        pytest.param(lambda request: ("https", "proxy.example", 443), False, id="host"),
        pytest.param(fail, False, id="unknown"),
    ],
)
def test_a_retry_is_only_sent_to_the_same_server(hop: Hop, target_of: Any, is_same: bool) -> None:
    """The new token is for that server. The application gets an error of the connection, and no cause."""
    if is_same:
        check_target(hop, target_of, object())
        return

    with pytest.raises(ConnectionError, match="the connection to the server has been lost") as lost:
        check_target(hop, target_of, object())
    assert lost.value.__context__ is None


@pytest.mark.parametrize(("status", "is_accepted"), [(200, True), (403, True), (500, True), (401, False)])
def test_any_status_but_401_accepts_the_token(hop: Hop, settled: list[bool], status: int, is_accepted: bool) -> None:
    """A token that lacks permission is still one that the destination recognizes."""
    with Result(hop) as result:
        result.status = status
        assert settled == []

    assert settled == [is_accepted]


def test_a_retry_without_a_response_does_not_accept_the_token(hop: Hop, settled: list[bool]) -> None:
    """The requests that wait for the result are freed, and the error is the application's."""
    with pytest.raises(TimeoutError), Result(hop):
        raise TimeoutError

    assert settled == [False]
