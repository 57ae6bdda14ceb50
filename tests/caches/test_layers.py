"""Tests for code that the hooks of all caches share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from otel_token_relay.caches.layers import build_send, has_led_to
from otel_token_relay.personal_responses import MARK

LISTED, OTHER = "https://profile-service/me", "https://elsewhere.example/"


def entry(url: str, *history: str) -> Any:
    return SimpleNamespace(url=url, history=[SimpleNamespace(url=one) for one in history])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(entry(LISTED), False, id="without a redirect"),
        pytest.param(entry(LISTED, OTHER), True, id="to a listed host"),
        pytest.param(entry(OTHER, OTHER, LISTED), True, id="through a listed host"),
        pytest.param(entry(OTHER, OTHER), False, id="between other hosts"),
    ],
)
def test_an_entry_may_have_led_to_a_listed_host(found: Any, expected: bool) -> None:
    """Every URL in a cached redirect chain is checked, as for a request without its own credential."""
    assert has_led_to(found, lambda url, has_header: url == LISTED and not has_header("authorization")) is expected


def test_a_layer_above_the_adapter_sees_no_store() -> None:
    """A caller that is not a requests session receives a restored response with ``no-store``."""
    raw = SimpleNamespace(headers={"Cache-Control": "max-age=60"})
    setattr(raw, MARK, ["Cache-Control", "max-age=60"])
    response = SimpleNamespace(raw=raw, headers={"Cache-Control": "max-age=60"}, history=[])
    send = build_send(lambda adapter, request: response)

    assert send(object(), object()).headers == {"Cache-Control": "no-store"}
