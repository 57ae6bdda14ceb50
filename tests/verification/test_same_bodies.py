"""A rejected request gets the same response from code and from settings, with every server and framework."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import fastapi
import pytest
from fastapi import Depends, HTTPException
from fastapi.responses import PlainTextResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Mount
from starlette.testclient import TestClient

from otel_token_relay.verification import fastapi as dependencies
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from otel_token_relay.verification.challenges import Challenges
from otel_token_relay.verification.fastapi import current_principal, require_scopes
from tests.support.issuers import Issuer, issuing
from tests.support.rejecting import MAX_LENGTH, WAYS, Service, asgi_middleware, fastapi_app
from tests.support.served import Reply, Server
from tests.support.tokens import claims, make_token, public_jwk

FIXED = {"content-type": "application/json", "cache-control": "no-store"}
# Servers add these headers to all responses.
OF_SERVER = {"date", "server", "connection", "keep-alive", "via"}


class Fault(NamedTuple):
    """A request that is rejected.

    Attributes:
        authorization: The request's Authorization lines.
        status, error: The expected status and error.
        challenge: The challenge's expected attributes after the realm, or ``None``.
        scopes: The scopes that the service requires.
        method: The request's method.
    """

    authorization: tuple[bytes, ...]
    status: int
    error: str
    challenge: str | None
    scopes: tuple[str, ...] = ()
    method: bytes = b"GET"

    @property
    def expected(self) -> tuple[int, dict[str, str], bytes]:
        body = f'{{"error":"{self.error}"}}'.encode()
        headers = FIXED | {"content-length": str(len(body))}
        headers |= (
            {"retry-after": "N"}
            if self.challenge is None
            else {"www-authenticate": f'Bearer realm="api"{self.challenge}'}
        )
        return self.status, headers, b"" if self.method == b"HEAD" else body

    def send_to(self, server: Server) -> tuple[int, dict[str, str], bytes]:
        """Send the request. Return the response without the headers that the server adds to all responses."""
        lines = [self.method + b" / HTTP/1.1", b"Host: a", b"Connection: close"]
        lines += [b"Authorization:" + value for value in self.authorization]
        reply = server.send_raw(b"\r\n".join([*lines, b"", b""]))
        return _comparable(reply)


def _comparable(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    headers = {name: value for name, value in reply.headers.items() if name not in OF_SERVER}
    if 1 <= int(headers.get("retry-after", 0)) <= 10:  # the number of seconds until the next attempt
        headers["retry-after"] = "N"
    return reply.status, headers, reply.body


def _bearer(issuer: Issuer, **changes: Any) -> bytes:
    return f" Bearer {make_token(claims(issuer.url, **changes))}".encode()


@pytest.fixture(scope="module")
def down() -> Iterator[Issuer]:
    """A trusted issuer that does not provide its keys."""
    with issuing(public_jwk("RS256", "k1")) as running:
        running.behave = running.fail
        yield running


@pytest.fixture
def faults(issuer: Issuer, down: Issuer) -> dict[str, Fault]:
    """All faults, by name."""
    invalid = 401, "invalid_token", ', error="invalid_token"'
    bad = 400, "invalid_request", ', error="invalid_request"'
    valid = _bearer(issuer)
    scope = "admin"
    return {
        "absent": Fault((), 401, "unauthenticated", ""),
        "absent, HEAD": Fault((), 401, "unauthenticated", "", method=b"HEAD"),
        "another scheme": Fault((b" Basic YTpi",), 401, "unauthenticated", ""),
        "malformed": Fault((b" Bearer a b",), *bad),
        "two headers": Fault((valid, valid), *bad),
        "too long": Fault((b" Bearer " + b"a" * (MAX_LENGTH + 1),), *invalid),
        "expired": Fault((_bearer(issuer, exp=1),), *invalid),
        "wrong audience": Fault((_bearer(issuer, aud="another-service"),), *invalid),
        "issuer down": Fault((_bearer(down),), 503, "temporarily_unavailable", None),
        "insufficient scope": Fault(
            (valid,), 403, "insufficient_scope", f', error="insufficient_scope", scope="{scope}"', (scope,)
        ),
        "insufficient scope, HEAD": Fault(
            (valid,), 403, "insufficient_scope", f', error="insufficient_scope", scope="{scope}"', (scope,), b"HEAD"
        ),
    }


@pytest.mark.parametrize("way", WAYS)
def test_every_way_sends_the_same_response(issuer: Issuer, down: Issuer, faults: dict[str, Fault], way: str) -> None:
    """The status, the body, and all headers are identical, and the application receives requests with a valid token."""
    received = {}
    for scopes in ((), ("admin",)):
        with WAYS[way](Service([issuer.url, down.url], scopes)) as server:
            received |= {name: fault.send_to(server) for name, fault in faults.items() if fault.scopes == scopes}
            assert server.send(_bearer(issuer, scope="admin")).status == 200

    assert received == {name: fault.expected for name, fault in faults.items()}


def test_a_dependency_sends_the_same_response_on_an_excluded_path(issuer: Issuer, faults: dict[str, Fault]) -> None:
    """On an excluded path, the middleware accepts the request, and the dependency rejects it with the same response."""
    service = Service([issuer.url], exclude=("/",))
    app = TestClient(asgi_middleware(fastapi_app(()), service))

    for method in ("GET", "HEAD"):
        response = app.request(method, "/")
        status, headers, body = faults["absent" if method == "GET" else "absent, HEAD"].expected
        assert (response.status_code, dict(response.headers), response.content) == (status, headers, body)


# FastAPI's handlers.


def protected(issuer: Issuer, **options: Any) -> fastapi.FastAPI:
    """An application with one protected path and one path that raises a custom exception."""
    app = fastapi.FastAPI(**options)
    app.add_middleware(BearerAuthMiddleware, authenticator=Service([issuer.url], exclude=("/own",)).authenticator())

    @app.get("/", dependencies=[Depends(require_scopes("admin"))])
    def root() -> None: ...

    @app.get("/own")
    def own() -> None:
        raise HTTPException(403, "its own detail")

    return app


def authorization(issuer: Issuer) -> dict[str, str]:
    return {"Authorization": _bearer(issuer).decode().strip()}


def test_other_exceptions_of_the_application_are_not_affected(issuer: Issuer) -> None:
    """FastAPI handles the application's other exceptions as before, even after a rejected request."""
    client = TestClient(protected(issuer))

    assert client.get("/", headers=authorization(issuer)).json() == {"error": "insufficient_scope"}
    assert client.get("/own").json() == {"detail": "its own detail"}
    assert client.get("/none", headers=authorization(issuer)).json() == {"detail": "Not Found"}


@pytest.mark.parametrize(
    "kind", [403, HTTPException, StarletteHTTPException], ids=["status", "FastAPI's", "Starlette's"]
)
def test_a_handler_of_the_application_takes_precedence(issuer: Issuer, kind: Any) -> None:
    """An application's exception handler takes precedence and finds the status and the challenge in the exception."""

    def handle(request: fastapi.Request, error: Any) -> PlainTextResponse:
        return PlainTextResponse("its own body", error.status_code, headers=error.headers)

    app = protected(issuer, exception_handlers={kind: handle})
    for _ in range(2):
        response = TestClient(app).get("/", headers=authorization(issuer))

        assert (response.status_code, response.text) == (403, "its own body")
        assert response.headers["www-authenticate"].endswith('error="insufficient_scope", scope="admin"')
        assert response.headers["cache-control"] == "no-store"


def test_a_mounted_application_sends_the_same_response(issuer: Issuer) -> None:
    """A mounted application's own handlers apply, instead of those of the application that mounts it."""
    outer = Starlette(routes=[Mount("/", fastapi_app(("admin",)))])
    client = TestClient(asgi_middleware(outer, Service([issuer.url])))

    assert client.get("/", headers=authorization(issuer)).content == b'{"error":"insufficient_scope"}'


@pytest.mark.parametrize("handlers", [None, (), ([],)], ids=["missing", "empty", "of another type"])
def test_without_known_handlers_a_dependency_still_rejects(handlers: Any) -> None:
    """If Starlette changes its handlers, a dependency still rejects requests, with FastAPI's body."""
    forbidden = Challenges(realm="api").insufficient_scope
    error = dependencies._build_error({dependencies._HANDLERS_KEY: handlers}, forbidden)

    assert isinstance(error, HTTPException)
    assert error.status_code == 403
    assert error.headers is not None
    assert error.headers["WWW-Authenticate"] == 'Bearer realm="api", error="insufficient_scope"'


def test_a_websocket_is_rejected_with_the_same_body(issuer: Issuer) -> None:
    """A dependency also rejects WebSocket handshakes with the same body."""
    app = fastapi.FastAPI()

    @app.websocket("/", dependencies=[Depends(current_principal)])
    async def never(websocket: fastapi.WebSocket) -> None:
        raise AssertionError("the application was called")

    client = TestClient(asgi_middleware(app, Service([issuer.url], exclude=("/",))))
    with pytest.raises(Exception) as rejected, client.websocket_connect("/"):  # noqa: PT011  # of Starlette's client
        pass
    assert rejected.value.status_code == 401  # type: ignore[attr-defined]
    assert rejected.value.content == b'{"error":"unauthenticated"}'  # type: ignore[attr-defined]
