"""Real servers and raw sockets follow the header table of RFC 6750 and RFC 9110."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.authenticator import BearerAuthenticator
from tests.support.issuers import Issuer
from tests.support.protected_apps import OPTIONS
from tests.support.protected_servers import OWN_INTERFACE, GrpcServer, Protected, serving_behind
from tests.support.served import COMMANDS, Server, serving
from tests.support.tokens import AUDIENCE, claims, make_token

APPS = {"asgi": "tests.support.protected_apps:asgi_app", "wsgi": "tests.support.protected_apps:wsgi_app"}

METADATA = 'resource_metadata="https://profiles.example/.well-known/oauth-protected-resource"'
BARE = f'Bearer realm="profiles", scope="profiles:read", {METADATA}'
INVALID_REQUEST = f'Bearer realm="profiles", error="invalid_request", {METADATA}'
INVALID_TOKEN = f'Bearer realm="profiles", error="invalid_token", scope="profiles:read", {METADATA}'
INSUFFICIENT_SCOPE = f'Bearer realm="profiles", error="insufficient_scope", scope="profiles:read", {METADATA}'

# The middlewares of servers in separate processes, and the boundaries of servers with their own interfaces.
HTTP_SERVERS = (*COMMANDS, "aiohttp.web", "Tornado")

# The header values, with @ for a valid token, followed by the status and the challenge.
ACCEPTED = {
    "Bearer T": [b" Bearer @"],
    "bearer T": [b" bearer @"],
    "BEARER T": [b" BEARER @"],
    "two spaces": [b" Bearer  @"],
    "five spaces": [b" Bearer     @"],
    "no space after the colon": [b"Bearer @"],
    "spaces in front": [b"    Bearer @"],
    "tab in front": [b"\tBearer @"],
    "spaces behind": [b" Bearer @  "],
    "tab behind": [b" Bearer @\t"],
}
BARE_CHALLENGE = {
    "no header": [],
    "empty header": [b""],
    "tab instead of the space": [b" Bearer\t@"],
    "token alone": [b" @"],
    "no space": [b" Bearer@"],
    "colon": [b" Bearer: @"],
    "equals sign": [b" Bearer=@"],
    "Basic": [b" Basic YWxpY2U6c2VjcmV0"],
    "Token": [b" Token @"],
    "DPoP": [b" DPoP @"],
    "Digest": [b' Digest username="a", realm="b", nonce="c", uri="/", response="d"'],
    "Bearers": [b" Bearers @"],
}
MALFORMED = {
    "Bearer": [b" Bearer"],
    "Bearer and spaces": [b" Bearer   "],
    "two tokens with a comma": [b" Bearer @,@"],
    "two credentials with a comma": [b" Bearer @, Bearer @"],
    "two tokens with a space": [b" Bearer @ @"],
    "quotes": [b' Bearer "@"'],
    "a parameter": [b" Bearer token=@"],
    "semicolon": [b" Bearer @;x"],
    "percent": [b" Bearer @%20"],
    "beyond ASCII": [b" Bearer \xc3\xa9@"],
    "beyond ASCII behind": [b" Bearer @\xff"],
    "Basic and Bearer with a comma": [b" Basic YWxpY2U6c2VjcmV0, Bearer @"],
    "two lines": [b" Bearer @", b" Bearer @"],
    "two lines, bad one first": [b" Bearer x", b" Bearer @"],
    "two lines, Basic first": [b" Basic YWxpY2U6c2VjcmV0", b" Bearer @"],
    "two lines, Basic last": [b" Bearer @", b" Basic YWxpY2U6c2VjcmV0"],
    "two lines, one empty": [b" Bearer @", b""],
}


@pytest.fixture(scope="module", params=(*COMMANDS, *OWN_INTERFACE))
def server(request: pytest.FixtureRequest, issuer: Issuer) -> Iterator[Protected]:
    if request.param in COMMANDS:
        with serving(request.param, APPS, {"ISSUER": issuer.url}) as running:
            yield running
    else:
        authenticator = BearerAuthenticator(TokenVerifier([issuer.url], AUDIENCE), **OPTIONS)
        with serving_behind(authenticator, request.param) as running:
            yield running


over_http = pytest.mark.parametrize("server", HTTP_SERVERS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def token(issuer: Issuer) -> bytes:
    return make_token(claims(issuer.url)).encode()


def fill(lines: list[bytes], token: bytes) -> list[bytes]:
    return [line.replace(b"@", token) for line in lines]


def expect(server: Protected, lines: list[bytes], status: int, challenge: str) -> None:
    reply = server.send(*lines)

    if isinstance(server, GrpcServer):
        # gRPC has one code for both errors, which the challenge in the trailing metadata distinguishes.
        assert (reply.status, reply.headers.get("www-authenticate")) == (401 if status == 400 else status, challenge)
        assert reply.headers["grpc-message"].replace("_", "").isalpha()
        return
    assert (reply.status, reply.headers.get("www-authenticate")) == (status, challenge)
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["content-type"] == "application/json"
    assert json.loads(reply.body)["error"]


@pytest.mark.parametrize("lines", ACCEPTED.values(), ids=ACCEPTED)
def test_valid_header_gets_in(server: Protected, token: bytes, lines: list[bytes]) -> None:
    """Rows 2, 3, and 5: a valid header is accepted with any permitted case and white space, and the application can
    read the caller.
    """
    reply = server.send(*fill(lines, token))

    assert reply.status == 200
    assert json.loads(reply.body) == {"user": "alice", "claims": "alice"}


@pytest.mark.parametrize("lines", BARE_CHALLENGE.values(), ids=BARE_CHALLENGE)
def test_no_bearer_token_is_challenged_without_an_error(server: Protected, token: bytes, lines: list[bytes]) -> None:
    """Rows 1, 4, and 7: a request without a bearer token gets a challenge without an error code."""
    expect(server, fill(lines, token), 401, BARE)


@pytest.mark.parametrize("lines", MALFORMED.values(), ids=MALFORMED)
def test_malformed_header_is_a_bad_request(server: Protected, token: bytes, lines: list[bytes]) -> None:
    """Rows 6, 8, and 9: a header with invalid syntax or an ambiguous header is a bad request."""
    expect(server, fill(lines, token), 400, INVALID_REQUEST)


def test_invalid_token_is_unauthorized(server: Protected, issuer: Issuer, token: bytes) -> None:
    """Rows 10, 11, and 16: a well-formed header with an invalid token is unauthorized."""
    for bad in (
        b"not-a-jwt",
        token[:-4] + b"AAAA",
        token + b"==",
        make_token(claims(issuer.url, exp=1)).encode(),
        make_token(claims(issuer.url, aud="billing-service")).encode(),
        make_token(claims(issuer.url), typ="JWT").encode(),
        make_token(claims(issuer.url, cnf={"jkt": "x"})).encode(),
    ):
        expect(server, [b" Bearer " + bad], 401, INVALID_TOKEN)


def test_token_that_is_too_long_does_not_get_in(server: Protected, token: bytes) -> None:
    """Row 12: the boundary, or a server with its own limits, rejects a token that is too long."""
    reply = server.send(b" Bearer " + token + b"A" * 20_000)

    assert (reply.status, reply.headers.get("www-authenticate")) in [(401, INVALID_TOKEN), (400, None), (431, None)]


def test_missing_scope_is_forbidden(server: Protected, issuer: Issuer) -> None:
    """Row 13: a valid token without the required scope is forbidden."""
    for scope in ("profiles:write", "", "profiles", "profiles:reading"):
        token = make_token(claims(issuer.url, scope=scope)).encode()
        expect(server, [b" Bearer " + token], 403, INSUFFICIENT_SCOPE)


@over_http
def test_refused_head_request_has_no_body(server: Server) -> None:
    """A rejected HEAD request has the same headers and no body, and the connection remains usable (RFC 9110, section
    9.3.2).
    """
    reply = server.send_raw(b"HEAD / HTTP/1.1\r\nHost: profiles.example\r\nConnection: close\r\n\r\n")

    assert (reply.status, reply.headers["www-authenticate"]) == (401, BARE)
    assert reply.headers["content-length"] == "27"
    assert reply.body == b""


@over_http
def test_refused_request_leaves_the_connection_usable(server: Server, token: bytes) -> None:
    """An unread body of a rejected request is not parsed as the next request."""
    refused = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789"
    good = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer " + token + b"\r\n\r\n"
    reply = server.send_raw(refused + good)

    assert reply.status == 401
    assert reply.body.count(b"HTTP/1.1 ") <= 1
    assert b"HTTP/1.1 400" not in reply.body


@over_http
def test_token_in_the_query_does_not_count(server: Server, token: bytes) -> None:
    """Rows 14 and 15: only the header is read for a token, not the query or the body (RFC 9700, section 4.3.2)."""
    target = f"/?access_token={token.decode()}"

    assert server.send(target=target).status == 401
    assert server.send(b" Bearer " + token, target=target).status == 200
    assert server.send(b" Bearer x", target=f"/?access_token={token.decode()}").status == 401


@pytest.mark.parametrize(
    "target",
    [
        "/healthz/",
        "/healthz/deep",
        "//healthz",
        "/HEALTHZ",
        "/healthz;x",
        "/x/../healthz",
        "/healthz%2f",
        "/healthz%00",
    ],
)
def test_only_the_exact_path_is_excluded(server: Protected, target: str) -> None:
    """Only the exact path is excluded, not a path that a router might treat as the same."""
    assert server.send(target="/healthz").status == 200
    if not isinstance(server, GrpcServer):  # gRPC methods have no query
        assert server.send(target="/healthz?x=1").status == 200
    assert server.send(target=target).status in (400, 401)


def test_issuer_that_is_down_is_unavailable(issuer: Issuer) -> None:
    """Row 17: while the issuer is down, a token is not reported as invalid, and the client is asked to retry."""
    issuer.behave = issuer.fail
    try:
        for name in ("uvicorn-h11", "gunicorn"):
            with serving(name, APPS, {"ISSUER": issuer.url}) as server:
                reply = server.send(b" Bearer " + make_token(claims(issuer.url)).encode())
                assert reply.status == 503
                assert 1 <= int(reply.headers["retry-after"]) <= 10
                assert "www-authenticate" not in reply.headers
                assert reply.headers["cache-control"] == "no-store"
    finally:
        issuer.behave = None
