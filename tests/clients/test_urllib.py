"""Tests for urllib.request's connections, targets, and headers; `test_all_clients.py` covers all clients."""

from __future__ import annotations

import functools
import http.client
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from otel_token_relay import Settings, install, use_token
from otel_token_relay.clients.urllib import Destinations
from otel_token_relay.origin import Target
from tests.support.loopback import PLACEHOLDER, Party, Proxy, party, unix_socket
from tests.support.rejecting_tokens import Guarded, check_one_retry

TOKEN = "urllib-sample-token"
LINE = [f"Bearer {TOKEN}"]


def _subclass(path: str) -> Any:
    class UnixConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = unix_socket(path)

    return UnixConnection


def _subclass_with_a_creator(path: str) -> Any:
    class UnixConnection(http.client.HTTPConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._create_connection = lambda *_, **__: _WithoutOptions(path)

    return UnixConnection


class _WithoutOptions(socket.socket):
    """A Unix socket that ignores TCP options."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connect(path)

    def setsockopt(self, *_: Any) -> None: ...


def _open_already(path: str) -> Any:
    def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*args, **kwargs)
        connection.sock = unix_socket(path)
        return connection

    return make


def _own_method(path: str) -> Any:
    def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*args, **kwargs)
        connection.connect = functools.partial(_subclass(path).connect, connection)  # type: ignore[method-assign]
        return connection

    return make


HTTP_CLASSES = {
    "subclass": _subclass,
    "creator": _subclass_with_a_creator,
    "already open": _open_already,
    "replaced connect": _own_method,
}


def _opener(http_class: Any) -> urllib.request.OpenerDirector:
    class Handler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(http_class, req)

    return urllib.request.build_opener(urllib.request.ProxyHandler({}), Handler)


@pytest.mark.parametrize("kind", HTTP_CLASSES)
def test_a_urllib_handler_for_a_unix_socket_gets_no_token(kind: str, served: tuple[Party, str]) -> None:
    """A urllib handler whose connections lead to a Unix socket gets no token."""
    one, path = served
    with use_token(TOKEN):
        _opener(HTTP_CLASSES[kind](path)).open(f"{PLACEHOLDER}/x", timeout=10).close()

    assert one.lines() == [[]]


def test_a_patched_urllib_gets_no_token(served: tuple[Party, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request carries no token if the ``connect`` method of http.client's own class is replaced."""
    one, path = served
    monkeypatch.setattr(http.client.HTTPConnection, "connect", _subclass(path).connect)
    with use_token(TOKEN):
        _opener(http.client.HTTPConnection).open(f"{PLACEHOLDER}/x", timeout=10).close()

    assert one.lines() == [[]]


def test_a_urllib_handler_that_connects_by_tcp_gets_the_token() -> None:
    """A handler whose connections use TCP gets the token, and each connection is created only once."""
    made: list[http.client.HTTPConnection] = []

    class Named(http.client.HTTPConnection):
        """A connection class that overrides a method that is unrelated to connecting."""

        def putheader(self, header: str | bytes, *values: Any) -> None:
            super().putheader(header, *values)

    def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        made.append(Named(*args, **kwargs))
        return made[-1]

    with party() as one, party() as other, use_token(TOKEN):
        install(Settings(destinations=[one.url]))
        _opener(make).open(f"{one.url}/x", timeout=10).close()
        _opener(Named).open(f"{one.url}/x", timeout=10).close()
        # The connection leads to a server other than the one in the URL.
        elsewhere = functools.partial(_connection_to, other.port)
        _opener(elsewhere).open(f"{one.url}/x", timeout=10).close()

    assert one.lines() == [LINE, LINE]
    assert len(made) == 1
    assert other.lines() == [[]]


def _connection_to(port: int, *_: Any, **options: Any) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=options["timeout"])


def _proxied_request(listed: Party, between: Proxy, **options: Any) -> urllib.request.Request:
    request = urllib.request.Request(f"{listed.url}/x", **options)
    request.set_proxy(urlsplit(between.url).netloc, "http")
    return request


def _open(request: urllib.request.Request) -> None:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


def test_a_urllib_selector_that_differs_from_the_url_gets_no_token(
    listed: Party, unlisted: Party, between: Proxy
) -> None:
    """A request carries no token if its selector, which urllib sends as the target, differs from the URL."""
    install(Settings(destinations=[listed.url, between.url]))
    with use_token(TOKEN):
        proxied = _proxied_request(listed, between)
        proxied.selector = f"{unlisted.url}/x"
        _open(proxied)
        direct = urllib.request.Request(f"{listed.url}/x")
        direct.selector = f"{unlisted.url}/x"
        _open(direct)
        _open(_proxied_request(listed, between))

    assert unlisted.lines() == [[]]
    assert listed.lines() == [[], LINE]


def test_a_urllib_method_that_contains_a_target_gets_no_token(listed: Party, unlisted: Party, between: Proxy) -> None:
    """A request carries no token if its method contains a target, which http.client allows."""
    # The proxy rejects this request line.
    with use_token(TOKEN), suppress(urllib.error.HTTPError, http.client.HTTPException):
        _open(_proxied_request(listed, between, method=f"GET {unlisted.url}/x"))

    assert not any(request.holds(TOKEN) for request in between.requests)
    unlisted.assert_saw_no(TOKEN)


def _target(url: str, http_class: Any = http.client.HTTPConnection, **changes: Any) -> Target:
    request = urllib.request.Request(url)
    for name, value in changes.items():
        setattr(request, name, value)
    return Destinations(urllib.request).target_of((request, http_class))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1/x", ("127.0.0.1", None)),
        ("http://localhost:8080/x", ("localhost", 8080)),
        ("http://[::1]/x", ("[::1]", None)),
        ("http://[::1]:8080/x", ("[::1]", 8080)),
        ("http://b\u00fccher.example/x", ("xn--bcher-kva.example", None)),
    ],
)
def test_host_and_port_are_read_as_http_client_reads_them(url: str, expected: tuple[str, int | None]) -> None:
    """The host and the port are read as http.client reads them, and non-ASCII names as the resolver receives them."""
    assert _target(url) == ("http", *expected)
    assert _target(url, http.client.HTTPSConnection) == ("https", *expected)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"selector": "http://unlisted.example/x"}, ValueError, id="complete URL as the target"),
        pytest.param({"selector": "unlisted.example:80"}, ValueError, id="authority as the target"),
        pytest.param({"host": "127.0.0.1:80:x"}, ValueError, id="invalid port"),
        pytest.param({"http_class": _subclass("/run/socket")}, KeyError, id="connection of the application"),
    ],
)
def test_a_request_without_one_destination_is_an_error(changes: dict[str, Any], error: type[Exception]) -> None:
    """A request whose destination cannot be determined is an error."""
    with pytest.raises(error):
        _target("http://127.0.0.1/x", **changes)


def test_the_end_of_a_tunnel_is_the_destination() -> None:
    """The destination of a tunneled request is the end of the tunnel."""
    request = urllib.request.Request("https://localhost:8443/x")
    request.set_proxy("127.0.0.1:9", "http")

    found = Destinations(urllib.request).target_of((request, http.client.HTTPSConnection))

    assert found == ("https", "localhost", 8443)


def test_a_replaced_header_remains_on_the_request_of_the_caller(listed: Party) -> None:
    """With ON_CONFLICT=replace, each use of a request sends only the relay's line and keeps the caller's header."""
    install(Settings(destinations=[listed.url], on_conflict="replace"))
    request = urllib.request.Request(listed.url, headers={"authorization": "Own a"})
    request.add_unredirected_header("AUTHORIZATION", "Own b")
    with use_token(TOKEN):
        _open(request)
        _open(request)

    assert listed.lines() == [LINE, LINE]
    assert request.headers["Authorization"] == "Own a"
    assert request.unredirected_hdrs["Authorization"] == "Own b"


def test_a_rejected_request_is_sent_once_more(rejecting: Guarded) -> None:
    """The application sees only the second response, or the first response if the second token is rejected too."""
    check_one_retry("urllib", rejecting)


def test_no_cache_stores_a_personal_response(listed: Party) -> None:
    """Only a response to a request with the token is marked ``no-store``."""
    for token, expected in ((TOKEN, ["no-store"]), (None, None)):
        with use_token(token), urllib.request.urlopen(listed.url, timeout=10) as response:
            assert response.headers.get_all("Cache-Control") == expected
