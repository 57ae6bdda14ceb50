"""Tests for CacheControl only; `tests/attacks/test_h04_shared_caches.py` tests all caches."""

from __future__ import annotations

import gc

import pytest
import requests
from cachecontrol import CacheControl, CacheControlAdapter

from otel_token_relay import use_token
from tests.support.caches import ANONYMOUS, Server

ALICE = "alice-has-this-token-0123456789"


class OwnSession(requests.Session):
    """A custom session class, which might be a cache."""


class OwnAdapter(CacheControlAdapter):
    """A custom adapter class, which might be a cache."""

    def send(self, *args: object, **kwargs: object) -> requests.Response:  # type: ignore[override]
        return super().send(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("session", "adapter", "expected"),
    [
        (requests.Session, CacheControlAdapter, "private, max-age=60"),
        (OwnSession, CacheControlAdapter, "no-store"),
        (requests.Session, OwnAdapter, "no-store"),
    ],
)
def test_only_the_librarys_own_session_sees_the_servers_headers(
    session: type[requests.Session], adapter: type[CacheControlAdapter], expected: str, server: Server
) -> None:
    """Responses to a custom session or adapter class are marked ``no-store``, because the class might be a cache."""
    with session() as opened, use_token(ALICE):
        opened.trust_env = False
        opened.mount("http://", adapter())
        response = opened.get(f"{server.url}/private")

    assert response.headers["Cache-Control"] == response.raw.headers["Cache-Control"] == expected


def test_a_body_that_is_read_late_or_not_at_all_is_not_stored(server: Server) -> None:
    """A personal response is not stored, even if its body is read after the user's request has ended."""
    with CacheControl(requests.Session()) as session:
        session.trust_env = False
        url = f"{server.url}/public"
        with use_token(ALICE):
            late, partial, closed = (session.get(url, stream=True) for _ in range(3))
        assert late.content == ALICE.encode()
        assert partial.raw.read(3) == ALICE[:3].encode()
        closed.close()
        del late, partial, closed
        gc.collect()

        assert session.get(url).text == ANONYMOUS
