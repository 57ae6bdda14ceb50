"""Copies of other libraries' objects."""

from __future__ import annotations

import urllib.request

import httpx

from otel_token_relay.copying import shallow_copy


def test_a_copy_has_the_same_state_and_is_independent() -> None:
    """Attributes that are set on the copy do not appear on the original."""
    request = urllib.request.Request("http://profile-service/me", data=b"body", headers={"X-Own": "1"})
    copy = shallow_copy(request)
    copy.timeout = 5

    assert type(copy) is type(request)
    assert (copy.full_url, copy.data, copy.headers) == (request.full_url, request.data, request.headers)
    assert not hasattr(request, "timeout")


def test_no_constructor_runs() -> None:
    """A constructor could read the body or reject its own result."""

    class Once(httpx.Request):
        def __init__(self) -> None:
            super().__init__("POST", "http://profile-service/me", content=b"body")
            self.made = getattr(self, "made", 0) + 1

    original = Once()
    copy = shallow_copy(original)

    assert copy.made == 1
    assert copy.stream is original.stream
    assert copy.url == original.url
