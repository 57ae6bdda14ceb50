"""The relay checks that a connection uses TCP and leads to the URL's host."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import wrapt

from otel_token_relay.clients.connections import check_tls_name, function_of, is_ip_peer, is_tcp


@pytest.mark.parametrize("peer", [None, "", "/run/socket", b"\0abstract", (3, 1024), (), ("/run/x",), ("hci0", 1)])
def test_peers_of_other_families_are_not_ip_addresses(peer: Any) -> None:
    """A peer name of a different socket family is not mistaken for an IP address and a port."""
    assert not is_ip_peer(peer)
    assert is_ip_peer(("127.0.0.1", 80))
    assert is_ip_peer(("::1", 80, 0, 0))


@contextmanager
def opened(kind: str) -> Iterator[socket.socket]:
    """Open a socket of the given kind."""
    if kind == "unix":
        one, other = socket.socketpair(socket.AF_UNIX)
        with one, other:
            yield one
    elif kind == "connected":
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as one,
        ):
            yield one
    else:
        with socket.socket(socket.AF_INET6 if kind == "IPv6" else socket.AF_INET, socket.SOCK_STREAM) as one:
            yield one


class Around:
    """A wrapper without a family attribute, such as urllib3's wrapper for TLS in TLS."""

    def __init__(self, inner: Any) -> None:
        self.socket = inner


@pytest.mark.parametrize(("kind", "expected"), [("connected", True), ("IPv4", True), ("IPv6", True), ("unix", False)])
def test_only_sockets_of_the_internet_are_tcp(kind: str, expected: bool) -> None:
    """Only an Internet socket is considered TCP, even without a protocol or in a wrapper."""
    with opened(kind) as one:
        assert is_tcp(one) is expected
        assert is_tcp(Around(one)) is expected
        assert is_tcp(Around(Around(one))) is expected


@pytest.mark.parametrize(
    "opened", [None, object(), SimpleNamespace(family=None), SimpleNamespace(proto=0), Around(None)]
)
def test_an_object_that_shows_no_socket_is_not_tcp(opened: object) -> None:
    """An object without a family or a socket, such as a Windows pipe, is not considered TCP."""
    assert not is_tcp(opened)


class Connection:
    """A connection with a method that instrumentation wraps."""

    def connect(self) -> str:
        return "connected"


class Derived(Connection):
    """A class that inherits its method."""


def test_the_function_inside_of_instrumentation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method is considered unchanged if it is wrapped by a transparent proxy, but not if it is replaced."""
    original = vars(Connection)["connect"]

    def pass_on(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    assert function_of(Connection, "connect") is original
    monkeypatch.setattr(Connection, "connect", wrapt.FunctionWrapper(original, pass_on))
    monkeypatch.setattr(Connection, "connect", wrapt.FunctionWrapper(vars(Connection)["connect"], pass_on))
    assert Connection().connect() == "connected"
    assert function_of(Connection, "connect") is original
    monkeypatch.setattr(Connection, "connect", lambda self: "elsewhere")
    assert function_of(Connection, "connect") is not original


def test_an_inherited_method_has_no_function_of_its_own() -> None:
    """Looking up an inherited method fails, because only the class that defines the method has its function."""
    with pytest.raises(KeyError):
        function_of(Derived, "connect")


@pytest.mark.parametrize(
    ("name", "host"),
    [("localhost", "localhost"), ("LocalHost", "localhost"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")],
)
def test_the_host_of_the_url_is_accepted_as_the_tls_name(name: str, host: str) -> None:
    """The TLS server name and the URL's host are compared in normalized form."""
    check_tls_name(name, host)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        pytest.param("unlisted.example", "localhost", id="another name"),
        pytest.param("localhost.unlisted.example", "localhost", id="longer name"),
        pytest.param("localhost", "127.0.0.1", id="name of the address"),
        pytest.param("localhost:443", "localhost", id="with a port"),
        pytest.param("localhost\x00.unlisted.example", "localhost", id="NUL"),
        pytest.param("", "localhost", id="empty"),
        pytest.param(b"localhost", "localhost", id="bytes"),
        pytest.param(None, "localhost", id="none"),
        pytest.param("", "", id="both empty"),
    ],
)
def test_any_other_tls_name_is_an_error(name: Any, host: str) -> None:
    """A TLS server name other than the URL's host is an error."""
    with pytest.raises(ValueError, match="TLS server name"):
        check_tls_name(name, host)
