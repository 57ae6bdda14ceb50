"""The demo's third-party server gives every request the same response and never repeats a token."""

from __future__ import annotations

import httpx
import pytest
from starlette.testclient import TestClient

from otel_token_relay.demo.third_party import app
from tests.support.servers import serve_asgi


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/weather", "/picture?x=1"])
def test_every_request_gets_the_same_response(method: str, path: str) -> None:
    """Every request gets the same response."""
    response = TestClient(app).request(method, path)

    assert (response.status_code, response.text) == (200, "ok")
    assert response.headers["content-type"] == "text/plain"
    assert response.headers["content-length"] == "2"


def test_a_received_token_is_not_repeated() -> None:
    """A response never contains the token from its request."""
    token = "third-party-sample-token"
    response = TestClient(app).post(f"/{token}", headers={"Authorization": f"Bearer {token}"}, content=token)

    assert response.text == "ok"
    assert token not in str(response.headers)


def test_one_connection_serves_several_requests() -> None:
    """The connection stays open for several requests, because each response has a length."""
    with serve_asgi(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert [client.get("/").text for _ in range(3)] == ["ok"] * 3
