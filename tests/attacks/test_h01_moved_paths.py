"""h01: a client cannot use a mount point in a header to move a protected path below an excluded one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import served
from tests.support.issuers import Issuer
from tests.support.served import Server, serving
from tests.support.tokens import claims, make_token

EXCLUDED = ("/healthz", "/healthz/", "/health/live", "/health/deep/live")
# These are the applications in `tests.support.mounted_apps`.
ASGI = (
    "starlette",
    "fastapi",
    "starlette behind a middleware",
    "starlette within a middleware",
    "django",
    "falcon",
    "quart",
    "litestar",
    "mounted",
    "by hand",
)
WSGI = (
    "flask",
    "flask behind ProxyFix",
    "flask within ProxyFix",
    "flask behind a snippet",
    "flask within a snippet",
    "django",
    "falcon",
    "mounted",
)
MOVES = (
    ("/health/live", "/health"),
    ("/health/live", "/health/"),
    ("/health/live", "/health//"),
    ("/health/live", "health"),
    ("/health/live", "th"),
    ("/health/live", "/heal"),
    ("/health/live", "/he%61lth"),
    ("/health/deep/live", "/health/deep"),
    ("/health/deep/live", "/health"),
    ("/healthz", "/healthz"),
    ("/healthz/", "/healthz"),
    ("/healthz/", "/healthz/"),
    ("/healthz", "/"),
    ("/live", "/health"),
    ("/", "/healthz"),
    ("/admin/healthz", "/admin"),
)
HEADERS = ("Daphne-Root-Path", "SCRIPT_NAME", "X-Forwarded-Prefix", "X-Script-Name")


@pytest.fixture(scope="module", params=["daphne", "uvicorn", "gunicorn"])
def server(request: pytest.FixtureRequest, issuer: Issuer) -> Iterator[Server]:
    """Run each server with every application that the server supports."""
    commands = {
        "daphne": ("asgi", "{python} -m daphne {app} --fd {fd} --verbosity 0"),
        "uvicorn": served.COMMANDS["uvicorn-h11"],
        "gunicorn": served.COMMANDS["gunicorn"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(served.COMMANDS, request.param, commands[request.param])
        apps = {kind: f"tests.support.mounted_apps:{kind}_app" for kind in ("asgi", "wsgi")}
        with serving(request.param, apps, {"ISSUER": issuer.url, "EXCLUDED": ",".join(EXCLUDED)}) as running:
            yield running


def apps_of(server: Server) -> tuple[str, ...]:
    """Return the names of the applications that the server supports."""
    return WSGI if server.name == "gunicorn" else ASGI


def send(server: Server, app: str, target: str, *headers: str, token: str | None = None) -> Any:
    """Send a request to one application on the server."""
    lines = tuple(line.encode() for line in (f"X-App: {app}", *headers))
    return server.send(*([] if token is None else [f"Bearer {token}".encode()]), target=target, headers=lines)


def test_h01_no_header_moves_a_path_under_an_excluded_one(server: Server, issuer: Issuer) -> None:
    """A client without a token can access only the paths that the application itself routes as excluded."""
    moved = []
    for app in apps_of(server):
        for target, mount in MOVES:
            for header in HEADERS:
                reply = send(server, app, target, f"{header}: {mount}")
                if reply.status == 200 and reply.body.decode() not in EXCLUDED:
                    moved.append((app, target, header, mount, reply.body.decode()))
                assert reply.status in (200, 307, 308, 400, 401, 404, 500, 502)

    assert moved == []
    served_with_token = send(server, apps_of(server)[0], "/live", token=make_token(claims(issuer.url)))
    assert served_with_token.status == 200


def test_h01_excluded_paths_stay_open(server: Server) -> None:
    """Every excluded path remains accessible without a token, including below the application's mount point."""
    for app in apps_of(server):
        for target in ("/health/live",) if app == "mounted" else ("/healthz", "/health/live"):
            reply = send(server, app, target, "X-Forwarded-Prefix: /other", "Referer: http://a/health/live?x=/health")
            if app.endswith(("a middleware", "ProxyFix")):  # these servers use the header as the mount point
                continue
            assert (app, target, reply.status) == (app, target, 200)
