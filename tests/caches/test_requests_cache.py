"""Tests for requests-cache only; `tests/attacks/test_h04_shared_caches.py` tests all caches."""

from __future__ import annotations

import pytest
import requests
import requests_cache

from otel_token_relay import use_token
from tests.support.caches import Server, personal_server

ALICE, BOB = "alice-has-this-token-0123456789", "bob-has-another-token-9876543210"


class OwnSession(requests_cache.CachedSession):
    """A custom session class, which might be a cache."""


class MixedSession(requests_cache.CacheMixin, requests.Session):
    """A custom session class with requests-cache's mixin, which might be a cache."""


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (requests_cache.CachedSession, "private, max-age=60"),
        (OwnSession, "no-store"),
        (MixedSession, "no-store"),
    ],
)
def test_only_the_librarys_own_session_sees_the_servers_headers(
    session: type[requests.Session], expected: str, server: Server
) -> None:
    """Responses to a custom session class are marked ``no-store``, because the class might be a cache."""
    with session(backend="memory") as opened, use_token(ALICE):  # type: ignore[call-arg]
        response = opened.get(f"{server.url}/private")

    assert response.headers["Cache-Control"] == expected


def test_no_method_and_no_status_is_stored(server: Server) -> None:
    """No personal response is stored, even if requests-cache is configured to store every method and status."""
    requests_cache.install_cache(
        backend="memory", allowable_methods=("GET", "HEAD", "POST"), allowable_codes=range(600)
    )
    try:
        for send in (requests.post, requests.head, requests.get):
            statuses = []
            for number, token in enumerate((ALICE, BOB, ALICE)):
                with use_token(token):
                    response = send(f"{server.url}/etag", headers={"Range": "bytes=0-3"}, timeout=10)
                statuses.append((response.status_code, getattr(response, "from_cache", False)))
                assert response.text in ("", token) or response.status_code == 501, number
            assert [is_cached for _, is_cached in statuses] == [False] * 3
        assert len(requests_cache.get_cache().responses) == 0  # type: ignore[union-attr]
    finally:
        requests_cache.uninstall_cache()


def test_a_redirect_to_a_listed_host_is_not_used_for_the_next_caller(server: Server) -> None:
    """The cache stores the anonymous caller's response under the URL of the unlisted host, which redirects."""
    with personal_server() as unlisted, requests_cache.CachedSession(backend="memory") as session:
        url = f"{unlisted.url}/302?to={server.url}/public"
        received = []
        for caller in (None, ALICE, BOB, None):
            with use_token(caller):
                received.append(session.get(url).text)

    assert received == ["anonymous", ALICE, BOB, "anonymous"]
