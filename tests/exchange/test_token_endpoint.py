"""The token endpoint is specified in the settings or in the issuer's metadata."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from otel_token_relay import Settings, install, use_token
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.errors import ExchangeFailed
from otel_token_relay.exchange import token_endpoint
from otel_token_relay.exchange.engine import ExchangeEngine
from otel_token_relay.exchange.token_endpoint import TokenEndpoint
from otel_token_relay.verification.http_client import HttpClient
from tests.support import client_authentication
from tests.support.client_authentication import pem_of
from tests.support.clocks import StoppedClock
from tests.support.issuers import Issuer, issuing
from tests.support.loopback import certificate, party
from tests.support.token_endpoint import verified
from tests.support.tokens import private_key

OPENID = "/.well-known/openid-configuration"
OAUTH = "/.well-known/oauth-authorization-server"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as running:
        running.metadata["token_endpoint"] = f"{running.url}/token"
        yield running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    """Return a clock for a test that reads the metadata again, and allow more time for reading."""
    monkeypatch.setattr(token_endpoint, "_REFRESH_SECONDS", 20.0)
    return StoppedClock()


def endpoint_of(issuer: Issuer, *, monotonic: Any = time.monotonic, **options: Any) -> TokenEndpoint:
    return TokenEndpoint(None, issuer.url, http=HttpClient(**options), monotonic=monotonic)


def failure_of(endpoint: TokenEndpoint, timeout: float = 20.0) -> ExchangeFailed:
    with pytest.raises(ExchangeFailed) as failed:
        endpoint.locate(timeout)
    return failed.value


def test_endpoint_in_the_settings_is_used_as_it_is(issuer: Issuer) -> None:
    """An endpoint in the settings is used without fetching the metadata."""
    endpoint = TokenEndpoint("https://idp.example/token", issuer.url, http=HttpClient())

    assert endpoint.locate(20) == str(endpoint) == "https://idp.example/token"
    assert issuer.hits == []


def test_endpoint_is_read_from_the_metadata_once(issuer: Issuer) -> None:
    """The metadata is fetched once and can contain an endpoint on a different host."""
    issuer.metadata["token_endpoint"] = "https://tokens.example/token"
    endpoint = endpoint_of(issuer)
    assert str(endpoint) == f"the token endpoint of {issuer.url}"

    assert [endpoint.locate(20) for _ in range(3)] == ["https://tokens.example/token"] * 3
    assert str(endpoint) == "https://tokens.example/token"
    assert issuer.hits == [OPENID]


def test_without_an_issuer_there_is_no_endpoint() -> None:
    """Without an issuer, the error states that the issuer is unknown."""
    failure = failure_of(TokenEndpoint(None, None, http=HttpClient()))

    assert (failure.error, failure.detail) == ("unavailable", "the issuer is unknown")


@pytest.mark.parametrize("path", [OPENID, OAUTH], ids=["OpenID", "RFC 8414"])
def test_both_documents_are_tried(issuer: Issuer, path: str) -> None:
    """Both metadata documents are tried, because an issuer might publish only one of them."""
    issuer.metadata_path = path

    assert endpoint_of(issuer).locate(20) == f"{issuer.url}/token"
    assert issuer.hits == [OPENID, OAUTH][: 1 + (path == OAUTH)]


def test_second_document_replaces_one_that_names_no_endpoint(issuer: Issuer) -> None:
    """If the OpenID document contains no endpoint, the second document is used."""
    usable = dict(issuer.metadata)
    del issuer.metadata["token_endpoint"]
    answer = issuer.answer
    issuer.answer = lambda path, body: (200, usable) if path == OAUTH else answer(path, body)  # type: ignore[method-assign]

    assert endpoint_of(issuer).locate(20) == f"{issuer.url}/token"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param(
            {"issuer": "https://evil.example"}, "the document specifies a different issuer", id="another issuer"
        ),
        pytest.param({"issuer": "{url}/"}, "the document specifies a different issuer", id="a slash more"),
        pytest.param({"issuer": ...}, "the document does not specify an issuer", id="no issuer"),
        pytest.param({"token_endpoint": ...}, "the document has no token_endpoint", id="no endpoint"),
        pytest.param({"token_endpoint": ["https://a/token"]}, "the document has no token_endpoint", id="a list"),
        pytest.param({"token_endpoint": "http://idp.example/token"}, "is not an https URL", id="plain http"),
        pytest.param({"token_endpoint": "https://a@idp.example/token"}, "is not an https URL", id="user name"),
        pytest.param({"token_endpoint": "file:///etc/passwd"}, "is not an https URL", id="file"),
    ],
)
def test_metadata_is_trusted_only_if_the_credential_stays_safe(
    issuer: Issuer, changes: dict[str, Any], problem: str
) -> None:
    """Untrustworthy metadata is rejected, and the error does not quote its content."""
    for name, value in changes.items():
        issuer.metadata[name] = value.format(url=issuer.url) if isinstance(value, str) else value
    issuer.metadata = {name: value for name, value in issuer.metadata.items() if value is not ...}

    failure = failure_of(endpoint_of(issuer))

    assert failure.error == "unavailable"
    assert problem in str(failure.detail)
    assert not any(text in str(failure) for text in ("evil.example", "passwd", "a@"))
    assert issuer.hits == [OPENID, OAUTH]


def test_https_is_never_downgraded_to_plain_http() -> None:
    """An endpoint over plain HTTP is rejected if the issuer uses https, even on loopback."""
    with issuing(tls=True) as issuer:
        issuer.metadata["token_endpoint"] = f"http{issuer.url.removeprefix('https')}/token"
        endpoint = endpoint_of(issuer, ca_file=certificate())

        assert "is not an https URL" in str(failure_of(endpoint))
        issuer.metadata["token_endpoint"] = f"{issuer.url}/token"
        assert endpoint.locate(20) == f"{issuer.url}/token"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b'{"issuer": "a", "issuer": "b"}'], ids=repr)
def test_document_that_is_not_a_json_object_is_not_used(issuer: Issuer, body: bytes) -> None:
    """A metadata response that is not a JSON object is rejected."""
    issuer.answer = lambda path, _: (200, body)  # type: ignore[method-assign]

    assert "the response is not a JSON object" in str(failure_of(endpoint_of(issuer)))


def redirect(handler: BaseHTTPRequestHandler, path: str) -> bool:
    handler.send_response(302)
    handler.send_header("Location", "/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def test_redirect_is_not_followed(issuer: Issuer) -> None:
    """Redirects are not followed, because the target could impersonate the issuer."""
    issuer.behave = redirect

    assert "status 302; redirects are not followed" in str(failure_of(endpoint_of(issuer)))
    assert issuer.hits == [OPENID, OAUTH]


def test_issuer_that_was_down_is_asked_again(issuer: Issuer) -> None:
    """After an issuer's failure, the metadata is fetched again immediately."""
    endpoint = endpoint_of(issuer)
    issuer.behave = issuer.fail
    assert "status 503" in str(failure_of(endpoint))

    issuer.behave = None
    assert endpoint.locate(20) == f"{issuer.url}/token"


def test_issuer_that_refuses_connections_is_unavailable() -> None:
    """An issuer that refuses connections is reported as unavailable, together with the reason."""
    with issuing() as gone:
        pass

    failure = failure_of(endpoint_of(gone))
    assert failure.error == "unavailable"
    assert "refused" in str(failure.detail)


def test_issuer_that_does_not_respond_is_reported_as_that(issuer: Issuer) -> None:
    """The caller's timeout applies to both metadata documents together."""
    issuer.behave = issuer.hang

    assert failure_of(endpoint_of(issuer), timeout=0.2).error == "timeout"


def test_endpoint_is_read_again_when_the_document_is_no_longer_fresh(issuer: Issuer, clock: StoppedClock) -> None:
    """The endpoint is read again when the metadata is no longer fresh."""
    issuer.headers["Cache-Control"] = "max-age=600"
    endpoint = endpoint_of(issuer, monotonic=clock)
    endpoint.locate(20)
    issuer.metadata["token_endpoint"] = f"{issuer.url}/moved"

    clock.seconds = 590
    assert endpoint.locate(20) == f"{issuer.url}/token"
    clock.seconds = 601
    assert endpoint.locate(20) == f"{issuer.url}/moved"
    assert issuer.hits == [OPENID] * 2


@pytest.mark.parametrize("fault", ["down", "hangs", "another issuer", "redirects"])
def test_old_url_is_used_while_the_document_cannot_be_read_again(
    issuer: Issuer, clock: StoppedClock, fault: str
) -> None:
    """If the metadata cannot be read again, the previous endpoint is used, and the issuer is retried occasionally."""
    endpoint = endpoint_of(issuer, monotonic=clock)
    endpoint.locate(20)
    issuer.metadata["token_endpoint"] = f"{issuer.url}/moved"
    named = issuer.metadata["issuer"]
    if fault == "another issuer":
        issuer.metadata["issuer"] = "https://evil.example"
    else:
        issuer.behave = {"down": issuer.fail, "hangs": issuer.hang, "redirects": redirect}[fault]
    timeout = 0.4 if fault == "hangs" else 20

    clock.seconds = 1000
    assert endpoint.locate(timeout) == f"{issuer.url}/token"
    asked = len(issuer.hits)
    assert endpoint.locate(timeout) == f"{issuer.url}/token"
    assert len(issuer.hits) == asked

    issuer.behave, issuer.metadata["issuer"] = None, named
    clock.seconds = 1060
    assert endpoint.locate(20) == f"{issuer.url}/moved"


class Remaining(HttpClient):
    """An HTTP client that records each request's timeout."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float] = []

    def fetch(self, url: str, *, timeout: float, **options: Any) -> Any:
        self.timeouts.append(timeout)
        return super().fetch(url, timeout=timeout, **options)


def test_reading_the_document_again_leaves_time_for_the_exchange(issuer: Issuer) -> None:
    """Reading the metadata again leaves enough time for the exchange, even if the issuer does not respond."""
    http, clock = Remaining(), StoppedClock()
    endpoint = TokenEndpoint(None, issuer.url, http=http, monotonic=clock)
    endpoint.locate(20)
    clock.seconds = 1000
    endpoint.locate(20)

    assert http.timeouts == [20, 1]


def test_any_tenant_has_the_endpoint_of_the_common_document(issuer: Issuer) -> None:
    """Any Entra tenant uses the endpoint in the common metadata document, which does not specify a tenant."""
    issuer.metadata_path = "/common/v2.0/.well-known/openid-configuration"
    issuer.metadata["issuer"] = f"{issuer.url}/{{tenantid}}/v2.0"
    endpoint = TokenEndpoint(None, f"{issuer.url}/{{tid}}/v2.0", http=HttpClient())

    assert endpoint.locate(20) == f"{issuer.url}/token"


@pytest.mark.parametrize(
    ("url", "is_used"),
    [("http://keycloak:8080/token", True), ("http://other/token", False), ("https://other/token", True)],
    ids=["own origin", "another host", "https"],
)
def test_issuer_over_plain_http_names_only_its_own_origin(url: str, is_used: bool) -> None:
    """Metadata over plain HTTP can specify an endpoint on the issuer's own host or over https, but nothing else."""
    issuer = "http://keycloak:8080"

    class Client(HttpClient):
        def fetch(self, url: str, **options: Any) -> Any:
            return super().fetch(url.replace(issuer, running.url), **options)

    with issuing() as running:
        running.metadata = {"issuer": issuer, "token_endpoint": url}
        endpoint = TokenEndpoint(None, issuer, http=Client(plaintext_hosts=("keycloak", "other")))
        if is_used:
            assert endpoint.locate(20) == url
        else:
            assert "is not an https URL" in str(failure_of(endpoint))


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    build_token_source.cache_clear()
    monkeypatch.setitem(ExchangeEngine.__init__.__kwdefaults__, "timeout", 60.0)
    yield
    build_token_source.cache_clear()


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("method", ["private_key_jwt", "private_key_jwt_rfc7523"])
def test_assertion_is_meant_for_the_issuer_of_an_endpoint_that_was_found(tmp_path: Path, method: Any) -> None:
    """An assertion's audience is the issuer of the endpoint or, with the RFC 7523 method, the endpoint itself."""
    key, key_file = private_key("ES256", "client"), tmp_path / "key.pem"
    key_file.write_bytes(pem_of(key))
    with client_authentication.serving() as server, party() as billing:
        server.expect(key, "ES256", is_rfc7523=method == "private_key_jwt_rfc7523")
        install(
            Settings(
                destinations=(f"{billing.url};audience=billing",),
                verify="enforce",
                issuers=(server.url,),
                audience=("orders",),
                client_id=client_authentication.CLIENT,
                client_key_file=str(key_file),
                client_auth=method,
            )
        )
        for number in range(2):
            with use_token(verified(f"token-{number}-of-a-caller")):
                requests.get(billing.url, timeout=20)

        assert server.problems == []
        assert [claims["aud"] for claims in server.claims] == (
            [server.url] * 2 if method == "private_key_jwt" else [f"{server.url}/token"] * 2
        )
        assert billing.lines() == [[f"Bearer issued.for.token-{number}-of-a-caller"] for number in range(2)]
