"""The methods of mocking libraries are wrapped only until a block ends."""

from __future__ import annotations

import pytest
import requests
import requests_mock as requests_mock_library
import responses
from requests.adapters import HTTPAdapter

from otel_token_relay import use_token
from otel_token_relay.testing import installed_relay
from otel_token_relay.testkit import mocks

LISTED = "https://profile-service/me"
TOKEN = "callers-token"
SENT = f"Bearer {TOKEN}"


def test_nothing_stays_wrapped() -> None:
    """After the block, the libraries have their original methods, even if a mock ended before or within the block."""
    own = (responses.RequestsMock.unbound_on_send, HTTPAdapter.send, HTTPAdapter.add_headers)
    own_of_requests_mock = requests_mock_library.Adapter.send
    before = responses.RequestsMock(assert_all_requests_are_fired=False)
    before.start()
    with mocks.visible_to_mocks():
        before.stop()
        assert responses.RequestsMock.unbound_on_send is not own[0]
        assert requests_mock_library.Adapter.send is not own_of_requests_mock

    assert (responses.RequestsMock.unbound_on_send, HTTPAdapter.send, HTTPAdapter.add_headers) == own
    assert requests_mock_library.Adapter.send is own_of_requests_mock


def test_a_library_that_cannot_be_wrapped_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a library's method is missing, a warning is emitted, so no test silently lacks the header."""
    monkeypatch.delattr(responses.RequestsMock, "unbound_on_send")
    with pytest.warns(RuntimeWarning, match="mocks of responses do not receive the header"), mocks.visible_to_mocks():
        pass


def test_mocks_that_started_earlier_see_the_header() -> None:
    """A mock that starts before the relay is installed, and ends after it, sees the header."""
    with responses.RequestsMock() as mocked:
        mocked.get(LISTED)
        with installed_relay(destinations=[LISTED.removesuffix("/me")]), use_token(TOKEN):
            requests.get(LISTED, timeout=9)
        with installed_relay(destinations=["https://else.example"]), use_token(TOKEN):
            requests.get(LISTED, timeout=9)

        assert [call.request.headers.get("Authorization") for call in mocked.calls] == [SENT, None]
