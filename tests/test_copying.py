"""Copies of objects from other libraries are independent of the originals."""

from __future__ import annotations

import urllib.request

import httpx

from otel_token_relay.copying import shallow_copy, with_changes


def test_a_copy_has_the_same_state_and_is_independent() -> None:
    """A copy has the original's state and does not share new attributes with the original."""
    request = urllib.request.Request("http://profile-service/me", data=b"body", headers={"X-Own": "1"})
    copy = shallow_copy(request)
    copy.timeout = 5

    assert type(copy) is type(request)
    assert (copy.full_url, copy.data, copy.headers) == (request.full_url, request.data, request.headers)
    assert not hasattr(request, "timeout")


def test_no_constructor_runs() -> None:
    """Copying runs no constructor, which could read the body or reject the copied state."""

    class Once(httpx.Request):
        def __init__(self) -> None:
            super().__init__("POST", "http://profile-service/me", content=b"body")
            self.made = getattr(self, "made", 0) + 1

    original = Once()
    copy = shallow_copy(original)

    assert copy.made == 1
    assert copy.stream is original.stream
    assert copy.url == original.url


def test_a_changed_copy_is_made_only_if_something_changes() -> None:
    """If nothing changes, the same object is returned, so callers can detect the difference."""
    request = urllib.request.Request("http://profile-service/me", headers={"X-Own": "1"})

    assert with_changes(request, host=request.host, headers=request.headers) is request
    copy = with_changes(request, host="other", headers=request.headers)
    assert (type(copy), copy.host, copy.selector) == (type(request), "other", "/me")
    assert copy.headers is request.headers
    assert request.host == "profile-service"
