"""Mocks of requests and httpx see the header that the relay adds, and only that header."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import requests
import requests_mock as requests_mock_library
import responses
import respx
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from otel_token_relay import Reason, use_token
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.testing import RecordedDecisions, ThirdParty, installed_relay
from otel_token_relay.testkit import mocks

LISTED = "https://profile-service/me"
OTHER = "https://other.example/me"
TOKEN = "callers-token"
SENT = f"Bearer {TOKEN}"

relays = pytest.mark.token_relay(destinations=["https://profile-service", "https://required;required"])


class Mock:
    """A uniform interface to the mocks.

    Attributes:
        get: A function that adds a response.
        seen: A function that returns the Authorization header of each request that the mock received.
        requests: A function that returns the requests that the mock received.
    """

    def __init__(self, get: Callable[..., Any], received: Callable[[], list[Any]]) -> None:
        self.get = get
        self.requests = received

    def seen(self) -> list[str | None]:
        return [request.headers.get("Authorization") for request in self.requests()]


@pytest.fixture(params=["responses", "requests-mock"])
def mock(request: pytest.FixtureRequest) -> Iterator[Mock]:
    """A mock that starts after the relay is installed."""
    request.getfixturevalue("token_relay")
    if request.param == "responses":
        with responses.RequestsMock(assert_all_requests_are_fired=False) as one:
            yield Mock(
                lambda url, status=200, headers=None: one.get(url, status=status, headers=headers),
                lambda: [call.request for call in one.calls],
            )
    else:
        with requests_mock_library.Mocker() as other:
            yield Mock(
                lambda url, status=200, headers=None: other.get(url, status_code=status, headers=headers or {}),
                lambda: other.request_history,
            )


# Headers that mocks see


@relays
def test_the_mock_sees_the_header(mock: Mock, recorded_decisions: RecordedDecisions) -> None:
    """The mock sees the token only at a listed destination, and the application's request is unchanged."""
    mock.get(LISTED)
    mock.get(OTHER)
    with use_token(TOKEN):
        answered = [requests.get(LISTED, timeout=9), requests.get(OTHER, timeout=9)]
    requests.get(LISTED, timeout=9)

    assert mock.seen() == [SENT, None, None]
    assert ["Authorization" in response.request.headers for response in answered] == [False, False]
    assert recorded_decisions.reasons(LISTED) == ["relayed", "no_boundary"]
    assert recorded_decisions.reasons(OTHER) == ["destination_not_listed"]


@relays
def test_a_signed_url_is_left_alone(mock: Mock, recorded_decisions: RecordedDecisions) -> None:
    """The mock sees a signed URL, whose query is the credential, without a token."""
    mock.get(LISTED)
    with use_token(TOKEN):
        requests.get(f"{LISTED}?X-Amz-Signature=5d67&X-Amz-Credential=AKIA&X-Amz-Date=20261127T000000Z", timeout=9)

    assert mock.seen() == [None]
    assert recorded_decisions.reasons(LISTED) == ["explicit_credential"]


@relays
def test_an_explicit_credential_is_left_alone(mock: Mock, recorded_decisions: RecordedDecisions) -> None:
    """A header, `auth=`, or user info in the URL is sent as the application chose it, in one line."""
    mock.get(LISTED)
    with use_token(TOKEN):
        requests.get(LISTED, headers={"authorization": "Bearer own"}, timeout=9)
        requests.get(LISTED, auth=("user", "password"), timeout=9)

    assert [value if value == "Bearer own" else str(value).split()[0] for value in mock.seen()] == [
        "Bearer own",
        "Basic",
    ]
    assert recorded_decisions.reasons(LISTED) == ["explicit_credential"] * 2


@relays
def test_the_application_gets_what_the_mock_adds_to_its_request() -> None:
    """The application gets what the mock adds to its request, such as the parsed parameters of `responses`."""
    with responses.RequestsMock() as mocked, use_token(TOKEN):
        mocked.post(LISTED)
        response = requests.post(LISTED, params={"a": "b"}, data=io.BytesIO(b"content"), timeout=9)

        request: Any = response.request
        assert request.params == mocked.calls[0].request.params == {"a": "b"}
        assert request.body is mocked.calls[0].request.body
        assert "Authorization" not in request.headers


@relays
def test_each_redirect_is_decided_alone(mock: Mock) -> None:
    """The header does not follow a redirect to a different host, and is added again after a redirect back."""
    mock.get(LISTED, status=302, headers={"Location": OTHER})
    mock.get(OTHER, status=302, headers={"Location": "https://profile-service/back"})
    mock.get("https://profile-service/back")
    with use_token(TOKEN):
        response = requests.get(LISTED, timeout=9)

    assert mock.seen() == [SENT, None, SENT]
    assert [one.request.headers.get("Authorization") for one in [*response.history, response]] == [None, None, None]


@relays
def test_a_request_object_is_used_by_two_callers(mock: Mock) -> None:
    """A prepared request that is sent again contains only the token of its second caller."""
    mock.get(LISTED)
    prepared = requests.Request("GET", LISTED).prepare()
    with requests.Session() as session:
        for token in ("first", "second"):
            with use_token(token):
                session.send(prepared)
        session.send(prepared)

    assert mock.seen() == ["Bearer first", "Bearer second", None]


@relays
def test_callers_in_threads_keep_their_tokens(mock: Mock) -> None:
    """Two concurrent callers in threads never see each other's tokens."""
    mock.get(LISTED)
    mock.get(f"{LISTED}/")
    both = threading.Barrier(2)

    def call(token: str) -> None:
        with use_token(token), requests.Session() as session:
            both.wait(20)
            for _ in range(20):
                session.get(LISTED, headers={"Caller": token}, timeout=9)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(call, "first"), pool.submit(call, "second")]:
            done.result()

    assert len(mock.requests()) == 40
    for request in mock.requests():
        assert request.headers["Authorization"] == f"Bearer {request.headers['Caller']}"


@relays
def test_a_required_destination_fails_as_in_production(mock: Mock, recorded_decisions: RecordedDecisions) -> None:
    """Without a token, a call to a required destination raises an error before the mock sees the call."""
    mock.get("https://required/")
    with pytest.raises(TokenUnavailable):
        requests.get("https://required/", timeout=9)

    assert mock.seen() == []
    assert recorded_decisions.reasons("https://required") == ["no_boundary"]


@relays
def test_a_call_without_a_response_fails_without_the_token(mock: Mock) -> None:
    """The error for a call without a mocked response does not contain the token, so error trackers do not get it."""
    unanswered = (requests.ConnectionError, requests_mock_library.NoMockAddress)
    with use_token(TOKEN), pytest.raises(unanswered) as failed:
        requests.get(LISTED, timeout=9)

    request: Any = failed.value.request
    assert "Authorization" not in request.headers
    assert TOKEN not in str(failed.value)


@relays
def test_the_end_of_the_relay_is_the_end_of_the_header(mock: Mock, third_party: Callable[[], ThirdParty]) -> None:
    """After `uninstall`, and outside the block, the mock sees the request as the application sends it."""
    mock.get(LISTED)
    with installed_relay(destinations=["https://else.example"]), use_token(TOKEN):
        requests.get(LISTED, timeout=9)
    with use_token(TOKEN):
        requests.get(LISTED, timeout=9)

    assert mock.seen() == [None, SENT]


@pytest.mark.token_relay(header="X-Caller", on_conflict="replace")
@relays
def test_the_header_is_the_one_of_the_settings(mock: Mock) -> None:
    """A custom header contains the token without `Bearer`, and `replace` replaces the application's header."""
    mock.get(LISTED)
    with use_token(TOKEN):
        requests.get(LISTED, headers={"x-caller": "own"}, timeout=9)

    (request,) = mock.requests()
    assert request.headers["X-Caller"] == TOKEN
    assert [name.lower() for name in request.headers].count("x-caller") == 1


# Requests that pass through the mock


@relays
def test_what_responses_lets_pass_is_decided_by_the_real_hook(
    third_party: Callable[[], ThirdParty],
    token_relay: Callable[..., Any],
    recorded_decisions: RecordedDecisions,
) -> None:
    """Each request that `responses` passes through has one decision, which urllib3's hook makes."""
    listed, other = third_party(), third_party()
    token_relay(destinations=[listed.url])
    with responses.RequestsMock() as mocked, use_token(TOKEN):
        mocked.add_passthru(listed.url)
        mocked.get(f"{other.url}/", passthrough=True)
        requests.get(listed.redirecting_to(f"{other.url}/"), timeout=9)

    assert [request.authorization for request in (*listed.requests, *other.requests)] == [SENT, None]
    assert recorded_decisions.reasons(listed.url) == ["relayed"]
    assert recorded_decisions.reasons(other.url) == ["destination_not_listed"]


@relays
def test_what_requests_mock_lets_pass_is_decided_by_the_real_hook(
    third_party: Callable[[], ThirdParty],
    token_relay: Callable[..., Any],
    recorded_decisions: RecordedDecisions,
) -> None:
    """Each request that requests-mock passes through, for the mocker or one URL, has one decision."""
    listed, other = third_party(), third_party()
    token_relay(destinations=[listed.url])
    with requests_mock_library.Mocker(real_http=True) as mocked, use_token(TOKEN):
        mocked.get(f"{other.url}/", real_http=True)
        requests.get(listed.redirecting_to(f"{other.url}/"), timeout=9)

    assert [request.authorization for request in (*listed.requests, *other.requests)] == [SENT, None]
    assert recorded_decisions.reasons(listed.url) == ["relayed"]
    assert recorded_decisions.reasons(other.url) == ["destination_not_listed"]


@relays
def test_a_retry_of_responses_carries_the_header(recorded_decisions: RecordedDecisions) -> None:
    """A request that `responses` repeats as urllib3 would also contains the header."""
    with responses.RequestsMock() as mocked, use_token(TOKEN), requests.Session() as session:
        session.mount("https://", HTTPAdapter(max_retries=Retry(1, status_forcelist=[503], backoff_factor=0)))
        mocked.get(LISTED, status=503)
        mocked.get(LISTED)
        session.get(LISTED, timeout=9)

        assert [call.request.headers.get("Authorization") for call in mocked.calls] == [SENT, SENT]


# Times at which the mock starts


@responses.activate
@relays
def test_decorated_tests_see_the_header() -> None:
    """Tests with the `responses.activate` decorator, which starts after the fixtures, see the header."""
    responses.get(LISTED, match=[responses.matchers.header_matcher({"Authorization": SENT})])
    with use_token(TOKEN):
        requests.get(LISTED, timeout=9)

    assert responses.calls[0].request.headers["Authorization"] == SENT


@relays
def test_the_fixture_of_requests_mock_sees_the_header(requests_mock: requests_mock_library.Mocker) -> None:
    """With requests-mock's fixture, the header can be a condition of a response."""
    requests_mock.get(LISTED, request_headers={"Authorization": SENT})
    with use_token(TOKEN):
        requests.get(LISTED, timeout=9)

    assert requests_mock.last_request is not None
    assert requests_mock.last_request.headers["Authorization"] == SENT


def test_mocks_that_started_earlier_see_the_header() -> None:
    """A mock that starts before the relay is installed, and ends after it, sees the header."""
    with responses.RequestsMock() as mocked:
        mocked.get(LISTED)
        with installed_relay(destinations=[LISTED.removesuffix("/me")]), use_token(TOKEN):
            requests.get(LISTED, timeout=9)
        with installed_relay(destinations=["https://else.example"]), use_token(TOKEN):
            requests.get(LISTED, timeout=9)

        assert [call.request.headers.get("Authorization") for call in mocked.calls] == [SENT, None]


# httpx


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
@relays
def test_respx_sees_the_header(using: str, recorded_decisions: RecordedDecisions) -> None:
    """respx, which replaces connection pools or uses `httpx.MockTransport`, sees the header without help."""
    with respx.mock(using=using) as router, use_token(TOKEN):
        route = router.get(LISTED)
        response = httpx.get(LISTED)

    assert route.calls[0].request.headers["Authorization"] == SENT
    assert "Authorization" not in response.request.headers
    assert recorded_decisions.reasons(LISTED) == [str(Reason.RELAYED)]


@relays
def test_pytest_httpx_sees_the_header(httpx_mock: Any, recorded_decisions: RecordedDecisions) -> None:
    """pytest-httpx sees the header, because the relay is installed around its methods."""
    httpx_mock.add_response(url=LISTED, match_headers={"Authorization": SENT})
    httpx_mock.add_response(url=OTHER)
    with use_token(TOKEN):
        response = httpx.get(LISTED)
        httpx.get(OTHER)

    first, second = httpx_mock.get_requests()
    assert first.headers["Authorization"] == SENT
    assert "Authorization" not in second.headers
    assert "Authorization" not in response.request.headers
    assert recorded_decisions.reasons(LISTED) == ["relayed"]


@pytest.mark.anyio
@relays
async def test_pytest_httpx_sees_the_header_of_asynchronous_clients(httpx_mock: Any) -> None:
    """pytest-httpx also sees the header for `httpx.AsyncClient`."""
    httpx_mock.add_response(url=LISTED)
    with use_token(TOKEN):
        async with httpx.AsyncClient() as client:
            await client.get(LISTED)

    assert httpx_mock.get_request().headers["Authorization"] == SENT


@pytest.mark.httpx_mock(should_mock=lambda request: request.url.host != "127.0.0.1")
@relays
def test_what_pytest_httpx_lets_pass_has_one_decision(
    httpx_mock: Any,
    third_party: Callable[[], ThirdParty],
    token_relay: Callable[..., Any],
    recorded_decisions: RecordedDecisions,
) -> None:
    """A request that pytest-httpx passes through to a real server has one decision and one header line."""
    listed = third_party()
    token_relay(destinations=[listed.url])
    with use_token(TOKEN):
        httpx.get(listed.url)

    assert listed.requests[0].authorization == SENT
    assert recorded_decisions.reasons(listed.url) == ["relayed"]


# Hooks


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
