"""Some requests are served without a token: optional verification, prefixes, preflight requests, and metadata."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from otel_token_relay import Settings
from otel_token_relay.authentication import RequestPath
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.reasons import Reason
from otel_token_relay.verification import BearerAuthenticator, TokenVerifier
from otel_token_relay.verification.protected_resource import ProtectedResource
from tests.support.enforcement import application_reached, bearer, settings_for
from tests.support.issuers import Issuer
from tests.support.protected_servers import ROWS, GrpcServer, reached
from tests.support.tokens import AUDIENCE

HTTP_ROWS = [row for row in ROWS if not row.startswith("gRPC")]
WELL_KNOWN = "/.well-known/oauth-protected-resource"
PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}

every_server = pytest.mark.parametrize("row", ROWS)
every_http_server = pytest.mark.parametrize("row", HTTP_ROWS)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget the authenticators, because equal settings share them even between tests."""
    build_authenticator.cache_clear()
    reached.clear()
    yield
    build_authenticator.cache_clear()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(port: int, method: str, target: str, headers: dict[str, str] | None = None) -> Answer:
    """Send one request, and return the response with lowercase header names."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, target, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


@every_server
def test_optional_serves_requests_without_a_token(issuer: Issuer, row: str) -> None:
    """With optional verification, a token that is present must be valid, and nothing is read from an invalid one."""
    with ROWS[row](settings_for(issuer, "optional"), None) as server:
        malformed = 401 if isinstance(server, GrpcServer) else 400
        for lines, status in (
            ([b" Bearer opaque"], 401),
            ([bearer(issuer, exp=1)], 401),
            ([bearer(issuer, aud="billing-service")], 401),
            ([b" Bearer a b"], malformed),
            ([b" Bearer " + b"a" * 6000, bearer(issuer)], malformed),
            ([bearer(issuer), bearer(issuer)], malformed),
        ):
            assert server.send(*lines).status == status
        assert application_reached() == []

        for lines in ([], [b" Basic YWxpY2U6c2VjcmV0"]):
            assert json.loads(server.send(*lines).body) == {"user": "", "claims": None}
        assert json.loads(server.send(bearer(issuer)).body) == {"user": "alice", "claims": "alice"}


@every_server
def test_optional_that_cannot_start_serves_nothing(row: str) -> None:
    """With optional verification, a process that cannot verify tokens rejects all requests."""
    settings = Settings.from_env({"OTEL_PYTHON_TOKEN_RELAY_VERIFY": "optional"})
    with ROWS[row](settings, None) as server:
        assert server.send().status == 503
        assert server.send(b" Bearer opaque").status == 503
    assert application_reached() == []


def test_optional_serves_anonymous_requests_while_the_issuer_is_down(issuer: Issuer) -> None:
    """With optional verification, anonymous requests are served while the issuer is down."""
    authenticator = BearerAuthenticator(TokenVerifier(["http://127.0.0.1:1"], AUDIENCE), mode="optional")
    path = RequestPath("/", "/")

    assert authenticator.check(Reason.ABSENT, path) is None
    for reason in (Reason.MALFORMED, Reason.AMBIGUOUS, Reason.TOO_LONG):
        assert authenticator.check(reason, path) is not None


@every_http_server
def test_preflight_requests_reach_the_application(issuer: Issuer, row: str) -> None:
    """The application receives preflight requests, which browsers send without a token."""
    with ROWS[row](settings_for(issuer), None) as server:
        assert ask(server.port, "OPTIONS", "/", PREFLIGHT).status != 401
        assert ask(server.port, "OPTIONS", "/", {"Origin": "https://app.example"}).status == 401
        assert ask(server.port, "OPTIONS", "/").status == 401
        assert ask(server.port, "GET", "/", PREFLIGHT).status == 401
        with_token = PREFLIGHT | {"Authorization": bearer(issuer, exp=1).decode().strip()}
        assert ask(server.port, "OPTIONS", "/", with_token).status == 401
        override = PREFLIGHT | {"X-HTTP-Method-Override": "GET"}
        assert ask(server.port, "OPTIONS", "/", override).status == 401


@every_http_server
def test_a_prefix_is_excluded_with_whole_segments(issuer: Issuer, row: str) -> None:
    """A prefix matches whole segments, and a path that a server or framework could normalize needs a token."""
    with ROWS[row](settings_for(issuer, verify_exclude=("/public/*",)), None) as server:
        for target in (
            "/public",
            "/public/../relay",
            "/public/%2e%2e/relay",
            "/public/..%2frelay",
            "/public%2f..%2frelay",
            "/public%2Frelay",
            "/public//relay",
            "//public/a",
            "/PUBLIC/a",
            "/public/a;b",
            "/public/%252e%252e/relay",
            "/./public/a",
            "/publicity/a",
        ):
            # The WSGI server decodes or normalizes these paths, and the application routes by the result.
            if row != "Flask" or target not in ("/public%2Frelay", "//public/a"):
                assert ask(server.port, "GET", target).status in (400, 401), target
        assert application_reached() == []
        assert ask(server.port, "GET", "/public/a/b.css").status != 401


@every_server
def test_grpc_services_are_excluded_by_a_prefix(issuer: Issuer, row: str) -> None:
    """A prefix excludes all methods of a gRPC service, or all paths of an HTTP server below it."""
    with ROWS[row](settings_for(issuer, verify_exclude=("/grpc.health.v1.Health/*",)), None) as server:
        assert server.send(target="/grpc.health.v1.Health/Check").status != 401
        assert server.send(target="/grpc.health.v1.Healthz/Check").status == 401


@every_http_server
def test_metadata_is_served_without_a_token(issuer: Issuer, row: str) -> None:
    """An MCP client reads the challenge and the metadata without a token, and then uses the authorization server."""
    settings = settings_for(issuer, realm="mcp", resource_metadata="https://mcp.example/mcp")
    with ROWS[row](settings, None) as server:
        refused = ask(server.port, "GET", "/")
        assert refused.status == 401
        url = f"https://mcp.example{WELL_KNOWN}/mcp"
        assert refused.headers["www-authenticate"] == f'Bearer realm="mcp", resource_metadata="{url}"'

        found = ask(server.port, "GET", f"{WELL_KNOWN}/mcp")
        assert (found.status, found.headers["content-type"]) == (200, "application/json")
        assert found.headers["access-control-allow-origin"] == "*"
        assert json.loads(found.body) == {
            "resource": "https://mcp.example/mcp",
            "authorization_servers": [issuer.url],
            "bearer_methods_supported": ["header"],
        }
        head = ask(server.port, "HEAD", f"{WELL_KNOWN}/mcp")
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) == len(found.body)
        preflight = ask(server.port, "OPTIONS", f"{WELL_KNOWN}/mcp", PREFLIGHT)
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, "*")
        invalid = {"Authorization": "Bearer opaque"}
        assert ask(server.port, "GET", f"{WELL_KNOWN}/mcp", invalid).status == 200
        for method, target in (
            ("POST", f"{WELL_KNOWN}/mcp"),
            ("GET", WELL_KNOWN),
            ("GET", f"{WELL_KNOWN}/mcp/"),
            ("GET", f"{WELL_KNOWN}/../{WELL_KNOWN}/mcp"),
        ):
            assert ask(server.port, method, target).status == 401, target
    assert application_reached() == []


@pytest.mark.parametrize(
    ("identifier", "url"),
    [
        ("https://mcp.example", f"https://mcp.example{WELL_KNOWN}"),
        ("https://mcp.example/", f"https://mcp.example{WELL_KNOWN}"),
        ("https://mcp.example/a/b", f"https://mcp.example{WELL_KNOWN}/a/b"),
        ("https://mcp.example:8443/a/", f"https://mcp.example:8443{WELL_KNOWN}/a/"),
        ("http://localhost:8000/mcp", f"http://localhost:8000{WELL_KNOWN}/mcp"),
    ],
)
def test_the_well_known_path_is_inserted_before_the_resources_own(identifier: str, url: str) -> None:
    """The well-known path precedes the resource's path, and the document contains the exact identifier (RFC 9728,
    section 3).
    """
    resource = ProtectedResource(identifier, ["https://idp.example", "https://login.example/{tid}/v2.0"], ["a", "b"])
    path = url[url.index("/.well-known") :]
    document = resource.respond(RequestPath(path, path, method="GET"))

    assert resource.url == url
    assert document is not None
    assert json.loads(document.body) == {
        "resource": identifier,
        "authorization_servers": ["https://idp.example"],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["a", "b"],
    }


@pytest.mark.parametrize(
    "identifier",
    [
        "http://mcp.example",
        "https://mcp.example?a",
        "https://mcp.example#a",
        'https://mcp.example/"',
        f"https://mcp.example{WELL_KNOWN}",
        "mcp.example",
        b"https://mcp.example",
        "",
    ],
)
def test_a_resource_must_be_the_url_that_clients_use(identifier: Any) -> None:
    """A resource must be the URL that clients use, and not the URL of the metadata."""
    with pytest.raises(ConfigurationError) as refused:
        BearerAuthenticator(TokenVerifier(["https://idp.example"], AUDIENCE), resource_metadata=identifier)
    assert refused.value.setting == "resource_metadata"


def test_the_code_names_the_issuers_of_its_verifier() -> None:
    """Without settings, the middleware's document contains its verifier's issuers."""
    authenticator = BearerAuthenticator(
        TokenVerifier(["https://idp.example"], AUDIENCE), resource_metadata="https://a.example", required_scopes=("x",)
    )
    response = authenticator.check(Reason.ABSENT, RequestPath(WELL_KNOWN, WELL_KNOWN, method="GET"))

    assert response is not None
    assert json.loads(response.body)["authorization_servers"] == ["https://idp.example"]
    assert json.loads(response.body)["scopes_supported"] == ["x"]
