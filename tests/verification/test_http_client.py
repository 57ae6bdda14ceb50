"""The HTTP client for issuers restricts which URLs it accepts, what it sends, and which responses it reads."""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from otel_token_relay import current_token, use_token
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.testing import third_party
from otel_token_relay.verification.http_client import MAX_BODY_BYTES, FetchFailed, HttpClient, Response, shared_client
from tests.support.issuers import Issuer, issuing
from tests.support.loopback import Status, certificate, party, proxy
from tests.support.processes import unused_port
from tests.support.wires import complete, wire


@pytest.fixture(autouse=True)
def no_proxy_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxy variables of the machine that runs the tests."""
    for name in ("https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def fetch(url: str, *, timeout: float, form: bytes | None = None, authorization: str | None = None) -> Response:
    """Send one request with a new client."""
    client = HttpClient()
    try:
        return client.fetch(url, timeout=timeout, form=form, authorization=authorization)
    finally:
        client.close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as running:
        yield running


@pytest.mark.parametrize(
    ("url", "is_accepted"),
    [
        pytest.param("https://idp.example/jwks", True, id="https"),
        pytest.param("https://idp.example:8443/jwks?tenant=a", True, id="port and query"),
        pytest.param("http://localhost:8080/jwks", True, id="localhost"),
        pytest.param("http://127.1.2.3/jwks", True, id="loopback"),
        pytest.param("http://[::1]/jwks", True, id="IPv6 loopback"),
        pytest.param("http://idp.example/jwks", False, id="plain http"),
        pytest.param("http://localhost.evil.example/jwks", False, id="a name that starts like loopback"),
        pytest.param("http://127.1/jwks", False, id="an address that clients read differently"),
        pytest.param("https://idp.example/jwks#a", False, id="fragment"),
        pytest.param("https://a:b@idp.example/jwks", False, id="credentials"),
        pytest.param("https://idp.example\\@evil.example/", False, id="backslash"),
        pytest.param("https://idp.example/jwks\r\nX: y", False, id="line break"),
        pytest.param("https://idp.example/jwks y", False, id="space"),
        pytest.param("https://idp.example/é", False, id="beyond ASCII"),
        pytest.param("ftp://idp.example/jwks", False, id="ftp"),
        pytest.param("/jwks", False, id="no host"),
        pytest.param("", False, id="empty"),
    ],
)
def test_a_url_must_be_unambiguous_and_secure(url: str, is_accepted: bool) -> None:
    """A URL must be unambiguous and use https; http is allowed only on the same machine."""
    client = HttpClient()
    assert client.accepts(url) is is_accepted
    if is_accepted:
        assert client.check_url("jwks_uri", url) == url
        return

    with pytest.raises(ConfigurationError) as rejected:
        client.check_url("jwks_uri", url)
    assert rejected.value.setting == "jwks_uri"
    assert url == "" or url not in str(rejected.value)


def test_a_url_that_is_not_text_is_a_configuration_error() -> None:
    """A URL that is not text is a configuration error, because settings can contain any object."""
    with pytest.raises(ConfigurationError):
        HttpClient().check_url("jwks_uri", b"https://idp.example")


def test_a_form_is_posted_with_the_given_credential() -> None:
    """A form is posted with the given credential; a request without a form is a GET and has a credential only if one is
    given.
    """
    with party() as server:
        fetch(f"{server.url}?a=b%20c", timeout=5.0)
        fetch(f"{server.url}/introspect", timeout=5.0, form=b"token=abc", authorization="Basic YTpi")

    plain, posted = server.requests
    assert (plain.method, plain.target, plain.body) == ("GET", "/?a=b%20c", b"")
    assert plain.header_lines("Authorization") == plain.header_lines("Content-Type") == []
    assert plain.header_lines("User-Agent") == ["otel-token-relay"]
    assert (posted.method, posted.target, posted.body) == ("POST", "/introspect", b"token=abc")
    assert posted.header_lines("Authorization") == ["Basic YTpi"]
    assert posted.header_lines("Content-Type") == ["application/x-www-form-urlencoded"]


@pytest.mark.parametrize("status", [204, 302, 404, 503])
def test_any_status_is_returned_and_no_redirect_is_followed(status: int) -> None:
    """Any status is returned to the caller with lowercase header names, and redirects are not followed."""
    with party() as server, third_party() as outsider:
        server.answers.append(Status(status, (("Location", outsider.url), ("X-Some-Header", "Value"))))
        response = fetch(server.url, timeout=5.0, authorization="Basic YTpi")

    assert response.status == status
    assert response.headers["x-some-header"] == "Value"
    assert len(server.requests) == 1
    assert outsider.requests == []


def responding(body: bytes, **headers: str) -> Any:
    """Return a behavior that sends status 200 with exactly these headers and this body."""

    def behave(handler: BaseHTTPRequestHandler, path: str) -> bool:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return behave


def failure_of(url: str) -> tuple[str, BaseException | None]:
    """Return the message and the cause, but not the error, whose traceback would keep the connection open."""
    try:
        fetch(url, timeout=10.0)
    except FetchFailed as error:
        return str(error), error.__cause__
    raise AssertionError("no error was raised")


LARGE = f"response larger than {MAX_BODY_BYTES} bytes"
FULL = b"a" * MAX_BODY_BYTES


@pytest.mark.parametrize(
    ("behave", "problem"),
    [
        pytest.param(responding(FULL), None, id="as large as allowed"),
        pytest.param(responding(FULL, Content_Length=str(len(FULL))), None, id="as large as allowed, announced"),
        pytest.param(responding(FULL + b"a"), LARGE, id="too large"),
        pytest.param(responding(b"", Content_Length=str(MAX_BODY_BYTES + 1)), LARGE, id="too large, announced"),
        pytest.param(responding(b"", Content_Length="9" * 5000), LARGE, id="a length that is too long"),
        pytest.param(responding(b"secret", Content_Length="-1"), LARGE, id="negative length"),
        pytest.param(
            responding(b"secret", Content_Encoding="gzip"), "unexpected Content-Encoding in the response", id="encoded"
        ),
        pytest.param(responding(b"secret", Content_Encoding="IDENTITY"), None, id="identity"),
        pytest.param(
            lambda handler, path: bool(handler.wfile.write(b"secret\r\n")),
            "the response is not valid HTTP",
            id="not HTTP",
        ),
        pytest.param(lambda handler, path: True, "connection closed without a response", id="no response"),
    ],
)
def test_a_response_that_is_broken_or_too_large_is_a_failure(issuer: Issuer, behave: Any, problem: str | None) -> None:
    """A broken or excessively large response is a failure whose message quotes no part of the response."""
    issuer.behave = behave
    if problem is None:
        assert fetch(issuer.url, timeout=10.0).body in (FULL, b"secret")
        return

    assert failure_of(issuer.url) == (problem, None)


def test_an_error_of_another_class_is_described_by_its_type() -> None:
    """An unexpected error is described only by its type, because its message can quote the response."""
    assert FetchFailed.describe(FetchFailed("timed out", "timed_out")) == "timed out"
    assert FetchFailed.describe(ValueError("a secret of the server")) == "ValueError"


def test_only_a_trusted_certificate_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a certificate that the system or ``SSL_CERT_FILE`` trusts is accepted."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with party(tls=True) as server:
        with pytest.raises(FetchFailed, match="certificate not trusted: the certificate is self-signed"):
            fetch(server.url, timeout=5.0, authorization="Basic YTpi")
        assert server.requests == []

        monkeypatch.setenv("SSL_CERT_FILE", certificate())
        assert fetch(server.url, timeout=5.0, authorization="Basic YTpi").status == 200


def test_our_own_requests_run_in_an_empty_context_and_suppressed(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's own requests run in an empty context, so a hook finds no token, and instrumentation
    is suppressed.
    """
    seen: list[object] = []
    original = http.client.HTTPConnection.putrequest

    def putrequest(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((current_token(), is_instrumentation_enabled()))
        original(self, *args, **kwargs)

    monkeypatch.setattr(http.client.HTTPConnection, "putrequest", putrequest)
    with use_token("the-callers-own-token"):
        assert current_token() is not None
        fetch(f"{issuer.url}/jwks", timeout=3.0)

    assert seen == [(None, False)]


def test_fetch_refuses_to_be_sent_elsewhere_by_a_proxy_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client connects directly to a loopback server, even if a proxy is set."""
    with third_party() as proxy, issuing() as issuer:
        monkeypatch.setenv("http_proxy", proxy.url)

        assert fetch(f"{issuer.url}/jwks", timeout=3.0).status == 200
        assert proxy.requests == []


def test_fetch_goes_through_the_proxy_by_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy gets only a CONNECT request with its own credential and sees no path."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen: list[bytes] = []

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

        proxy = threading.Thread(target=refuse)
        proxy.start()
        monkeypatch.setenv("https_proxy", f"http://user:p%40ss@127.0.0.1:{listener.getsockname()[1]}")

        with pytest.raises(FetchFailed):
            fetch("https://idp.example/jwks", timeout=3.0)
        proxy.join(5)

    assert seen[0].startswith(b"CONNECT idp.example:443 ")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"user:p@ss") in seen[0]
    assert b"/jwks" not in seen[0]


@pytest.mark.parametrize(
    "head_and_body",
    [
        pytest.param(b"Content-Length: 20\r\n\r\n{}", id="half a body"),
        pytest.param(b"Content-Length: 20\r\n\r\n", id="no body"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n14\r\n{}", id="half a chunk"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", id="no last chunk"),
    ],
)
def test_a_truncated_response_is_not_a_response(head_and_body: bytes) -> None:
    """A truncated response is a failure, so half of a key set never replaces a complete one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + head_and_body)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        with pytest.raises(FetchFailed, match=r"(?i)incomplete"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/jwks", timeout=10)
        server.join(10)


def failure_at(url: str, *, timeout: float = 5.0) -> tuple[str, str]:
    """Return the failure's cause and message."""
    try:
        fetch(url, timeout=timeout)
    except FetchFailed as error:
        return error.cause, str(error)
    raise AssertionError("no error was raised")


def test_a_port_on_which_nothing_listens_is_named() -> None:
    """A port on which nothing listens, the most common mistake in a local setup, is reported."""
    assert failure_at(f"http://127.0.0.1:{unused_port()}") == ("connection_refused", "connection refused")


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        pytest.param(socket.EAI_NONAME, ("host_not_found", "host name not found"), id="no such name"),
        pytest.param(socket.EAI_AGAIN, ("name_server_failed", "the name server does not respond"), id="no name server"),
    ],
)
def test_a_name_that_is_not_resolved_is_named(
    number: int, failure: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unresolved host name is reported differently from a name server that is down."""

    def getaddrinfo(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(number, "text of the system")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    assert failure_at("https://idp.example") == failure


def test_an_unreachable_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable network is reported, and other system errors are reported by their symbol."""
    address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 443))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [address])
    for number, failure in (
        (errno.ENETUNREACH, ("network_unreachable", "network unreachable")),
        (errno.EPERM, ("connection_closed", "connection failed: EPERM")),
    ):

        def connect(*args: object, number: int = number) -> None:
            raise OSError(number, "text of the system")

        monkeypatch.setattr(socket.socket, "connect", connect)
        assert failure_at("https://idp.example") == failure


def test_a_server_that_hangs_is_named(issuer: Issuer) -> None:
    """The failure is the same, whether the server sends nothing or the deadline closes the connection."""
    issuer.behave = issuer.hang

    assert failure_at(issuer.url, timeout=0.3) == ("timed_out", "timed out")


def test_a_timeout_that_is_over_is_named(issuer: Issuer) -> None:
    """A timeout that is zero or negative is reported, because a caller passes the rest of its own time."""
    assert failure_at(issuer.url, timeout=-1.0) == ("timed_out", "timed out")


def test_a_server_without_tls_is_named(issuer: Issuer) -> None:
    """An https URL with the port of a server without TLS is reported."""
    cause, message = failure_at(issuer.url.replace("http:", "https:"))

    assert (cause, message) == ("tls_failed", "TLS handshake failed; the server does not use https on this port")


def test_a_certificate_for_another_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate for a different host is reported without quoting the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", certificate())
    with party(tls=True) as server:
        monkeypatch.setattr(socket, "getaddrinfo", resolving_to("127.0.0.1"))
        for host, kind in (("127.0.0.2", "IP address"), ("other.localhost", "host name")):
            assert failure_at(f"https://{host}:{server.port}") == (
                "certificate_not_trusted",
                f"certificate not trusted: the certificate is for a different {kind}",
            ), host


def resolving_to(address: str) -> Any:
    original = socket.getaddrinfo
    return lambda host, *args, **kwargs: original(address, *args, **kwargs)


@pytest.mark.parametrize("is_listening", [True, False], ids=["refuses", "is down"])
def test_a_failure_of_the_proxy_is_not_attributed_to_the_host(
    is_listening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy's failure is not attributed to the host, and the proxy's text is not quoted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if is_listening else unused_port()

        def refuse() -> None:
            with contextlib.suppress(OSError):  # the listener is closed if the proxy is down
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 407 secret\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")

        failure = failure_at("https://idp.example")

    assert failure == (
        ("proxy_refused", "the proxy refused to connect to the host")
        if is_listening
        else ("connection_refused", "connection refused (while connecting to the proxy in https_proxy)")
    )


@pytest.fixture
def client() -> Iterator[HttpClient]:
    one = HttpClient()
    yield one
    one.close()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(complete("404 Not Found"), id="another status"),
        pytest.param(complete(more=b"Connection: close\r\n"), id="close"),
        pytest.param(complete() + b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 50_000, id="more than one response"),
    ],
)
def test_a_connection_in_doubt_is_not_used_again(client: HttpClient, first: bytes) -> None:
    """After an unusual status, `Connection: close`, or extra data, a connection is not reused, because responses could
    be mixed up.
    """
    with wire(first, complete()) as server:
        client.fetch(server.url, timeout=5.0)
        assert client.fetch(server.url, timeout=5.0).body == b"{}"

    assert [len(requests) for requests in server.requests] == [1, 1]


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"HTTP/1.1 103 Early Hints\r\n\r\n", id="early hints"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}", id="late"),
    ],
)
def test_a_connection_is_not_used_again_after_a_failure(client: HttpClient, first: bytes) -> None:
    """A connection is not reused after a failure, because the rest of the response can still arrive."""
    with wire(first, complete()) as server:
        with contextlib.suppress(FetchFailed):
            assert client.fetch(server.url, timeout=0.3).status != 200
        assert client.fetch(server.url, timeout=5.0).body == b"{}"

    assert [len(requests) for requests in server.requests] == [1, 1]


def test_a_request_is_repeated_if_the_kept_connection_was_closed(client: HttpClient) -> None:
    """A request is repeated only if the server closed a reused connection while it was idle."""
    with wire(complete(), b"", complete(), b"") as server:
        client.fetch(server.url, timeout=5.0)
        assert client.fetch(server.url, timeout=5.0).status == 200
        client.close()
        with pytest.raises(FetchFailed, match="connection closed without a response"):
            client.fetch(server.url, timeout=5.0)

    assert [len(requests) for requests in server.requests] == [2, 1, 1]


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_tunnel_leads_to_the_issuer(tls: bool, client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sees only the host and its own credential, even with an https URL, and TLS to the issuer is inside the
    tunnel.
    """
    monkeypatch.setenv("SSL_CERT_FILE", certificate())
    with proxy(tls=tls) as through, party(tls=True) as server:
        through.addresses["idp.example"] = "127.0.0.1"
        monkeypatch.setenv("HTTPS_PROXY", through.url.replace("://", "://bob:p%40ss@"))
        for _ in range(2):
            url = f"https://idp.example:{server.port}/jwks"
            assert client.fetch(url, timeout=5.0, authorization="Basic YTpi").body == b"Basic YTpi"
        client.close()

    (tunnel,) = through.requests  # the second request also used this tunnel
    assert (tunnel.method, tunnel.target) == ("CONNECT", f"idp.example:{server.port}")
    assert tunnel.header_lines("Proxy-Authorization") == ["Basic Ym9iOnBAc3M="]
    assert tunnel.header_lines("Authorization") == []
    assert [request.header_lines("Proxy-Authorization") for request in server.requests] == [[], []]


def test_a_proxy_that_is_not_trusted_gets_no_password(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An https proxy's certificate is verified before a password is sent."""
    with proxy(tls=True) as through:
        monkeypatch.setenv("HTTPS_PROXY", through.url.replace("://", "://bob:secret@"))
        with pytest.raises(FetchFailed, match="certificate not trusted: the certificate is self-signed"):
            client.fetch("https://idp.example/jwks", timeout=5.0)

    assert through.requests == []


def test_a_plain_port_of_an_https_proxy_gets_no_password(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password is not sent to an unencrypted port of an https proxy."""
    with wire(b"HTTP/1.1 200 OK\r\n\r\n") as server:
        monkeypatch.setenv("HTTPS_PROXY", server.url.replace("http://", "https://bob:secret@"))
        with pytest.raises(FetchFailed, match="TLS handshake failed"):
            client.fetch("https://idp.example/jwks", timeout=5.0)

    assert b"CONNECT" not in b"".join(*server.requests)


def test_a_socks_proxy_is_refused(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SOCKS proxy is rejected, and no direct connection is made, because the network might not allow it."""
    with third_party() as outsider:
        monkeypatch.setenv("HTTPS_PROXY", outsider.url.replace("http://", "socks5h://bob:secret@"))
        with pytest.raises(FetchFailed) as refused:
            client.fetch("https://127.0.0.9.example/jwks", timeout=5.0)

    assert str(refused.value) == "https_proxy has the scheme socks5h; only http and https proxies are supported"
    assert outsider.requests == []


def test_certificate_authorities_come_from_a_file(tmp_path: Path) -> None:
    """The file's certificate authorities replace the system's; a changed file is read again, and an unreadable one is
    an error.
    """
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    client = HttpClient(ca_file=str(file))
    with party(tls=True) as server:
        for _ in range(2):
            with pytest.raises(FetchFailed, match="the CA certificates cannot be read") as failed:
                client.fetch(server.url, timeout=5.0)
            assert failed.value.cause == "not_configured"
            file.unlink(missing_ok=True)

        file.write_bytes(Path(certificate()).read_bytes())
        assert client.fetch(server.url, timeout=5.0).status == 200
        client.close()


def test_plain_http_is_allowed_to_listed_hosts_only(monkeypatch: pytest.MonkeyPatch, issuer: Issuer) -> None:
    """Plain http is allowed only to exactly the listed hosts, on the entry's port if it has one, and never through a
    proxy.
    """
    port = int(issuer.url.rpartition(":")[2])
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("127.0.0.1"))
    monkeypatch.setenv("http_proxy", "http://192.0.2.1")
    monkeypatch.setenv("https_proxy", "http://192.0.2.1")
    client = HttpClient(plaintext_hosts=("keycloak", f"other:{port}"))

    for host in ("keycloak", "other", "KEYCLOAK"):
        assert client.fetch(f"http://{host}:{port}/jwks", timeout=3.0).status == 200
    for refused in ("http://a.keycloak", "http://other:81", "http://keycloak.example", "http://keycloak@evil"):
        assert not client.accepts(refused)
        with pytest.raises(FetchFailed, match="not secure"):
            client.fetch(refused, timeout=3.0)
    client.close()


def test_parts_with_the_same_settings_share_a_client() -> None:
    """Its connections are then used again, and the certificates are read once."""
    assert shared_client() is shared_client()
    assert shared_client("ca.pem", ("keycloak",)) is shared_client("ca.pem", ("keycloak",))
    assert shared_client("ca.pem") is not shared_client()
    assert shared_client(None, ("keycloak",)).accepts("http://keycloak/jwks")
    assert not shared_client().accepts("http://keycloak/jwks")
