"""Requests to excluded paths skip verification, and rejected requests get an error response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.authentication import ErrorResponse, Exclusions, RequestPath, needs_no_token
from otel_token_relay.reasons import Reason
from otel_token_relay.token import BearerToken

EXCLUDED = Exclusions(("/healthz", "/healthz/", "/health/live", "/health/deep/live"))


BELOW = Exclusions(("/public/*", "/a/b/*", "/pkg.Health/*"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/public/x", True, id="one segment"),
        pytest.param("/public/x/y.css", True, id="several segments"),
        pytest.param("/public/x/", True, id="slash at the end"),
        pytest.param("/public/", True, id="empty rest"),
        pytest.param("/public/..x/.well-known/...", True, id="dots in a segment"),
        pytest.param("/public/a-b_c~d@1:2,3=4+5", True, id="other characters"),
        pytest.param("/a/b/c", True, id="longer prefix"),
        pytest.param("/pkg.Health/Check", True, id="gRPC"),
        pytest.param("/public", False, id="the prefix itself"),
        pytest.param("/publicx/y", False, id="part of a segment"),
        pytest.param("/x/public/y", False, id="not at the start"),
        pytest.param("//public/x", False, id="two slashes at the start"),
        pytest.param("/Public/x", False, id="case"),
        pytest.param("/public/*", True, id="a star"),
        pytest.param("/public/../admin", False, id="parent"),
        pytest.param("/public/..", False, id="parent at the end"),
        pytest.param("/public/./x", False, id="current"),
        pytest.param("/public/x/..", False, id="parent after a segment"),
        pytest.param("/public//admin", False, id="two slashes"),
        pytest.param("/public/x//", False, id="two slashes at the end"),
        pytest.param("/public/..%2fadmin", False, id="encoded slash"),
        pytest.param("/public/%2e%2e/admin", False, id="encoded dots"),
        pytest.param("/public/x%00", False, id="encoded NUL"),
        pytest.param("/public/x\0", False, id="NUL"),
        pytest.param("/public/x\n", False, id="line break"),
        pytest.param("/public/..\\admin", False, id="backslash"),
        pytest.param("/public/..;/admin", False, id="parameter"),
        pytest.param("/public/\uff0e\uff0e/admin", False, id="full-width dots"),
        pytest.param("/public/x?/../admin", False, id="question mark"),
        pytest.param("/public/x#", False, id="number sign"),
        pytest.param("", False, id="empty"),
    ],
)
def test_an_entry_with_a_star_covers_whole_plain_segments(path: str, expected: bool) -> None:
    """A wildcard entry covers whole plain segments that an application cannot normalize or decode into a different
    route.
    """
    assert BELOW.cover(RequestPath(path, path)) is expected


def test_an_entry_with_a_star_covers_no_encoded_path() -> None:
    """A wildcard entry does not cover an encoded path, because an application can route by the path that the client
    sent.
    """
    assert not BELOW.cover(RequestPath("/public/x", "/public/x", is_encoded=True))
    assert EXCLUDED.cover(RequestPath("/healthz", "/healthz", is_encoded=True))


def test_an_entry_with_a_star_follows_the_rules_for_mount_points() -> None:
    """A client cannot choose the beginning of a path that matches a wildcard entry."""
    assert BELOW.cover(RequestPath("/public/x", "/app/public/x", lambda: ["other"]))
    assert not BELOW.cover(RequestPath("/public/x", "/app/public/x", lambda: ["/app"]))
    assert not BELOW.cover(RequestPath(None, "/public/x"))


PREFLIGHT = {"origin": ["https://app.example"], "access-control-request-method": ["POST"]}


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        pytest.param("OPTIONS", {}, True, id="preflight"),
        pytest.param("OPTIONS", {"content-length": ["0"]}, True, id="no body, announced"),
        pytest.param("GET", {}, False, id="another method"),
        pytest.param("options", {}, False, id="case"),
        pytest.param("", {}, False, id="no HTTP"),
        pytest.param("OPTIONS", {"origin": []}, False, id="no origin"),
        pytest.param("OPTIONS", {"origin": [""]}, False, id="empty origin"),
        pytest.param("OPTIONS", {"access-control-request-method": []}, False, id="plain OPTIONS"),
        pytest.param("OPTIONS", {"content-length": ["2"]}, False, id="body"),
        pytest.param("OPTIONS", {"content-length": [b"2"]}, False, id="body, as bytes"),
        pytest.param("OPTIONS", {"transfer-encoding": ["chunked"]}, False, id="chunked body"),
        pytest.param("OPTIONS", {"x-http-method-override": ["GET"]}, False, id="override"),
    ],
)
def test_a_preflight_request_is_what_browsers_send(
    method: str, headers: dict[str, list[str | bytes]], expected: bool
) -> None:
    """A request is a preflight request only if it is identical to what browsers send."""
    sent: dict[str, Any] = PREFLIGHT | headers
    path = RequestPath("/a", "/a", method=method, values_of=lambda name: sent.get(name, []))

    assert path.is_preflight is expected


@pytest.mark.parametrize(
    ("routed", "whole", "headers", "expected"),
    [
        ("/healthz", "/healthz", (), True),
        ("/healthz", "/healthz", ("/healthz", "/", ""), True),
        ("/healthz", "/api/healthz", (), True),
        ("/healthz", "/api/healthz", ("/api",), False),
        ("/healthz", "/api/healthz", ("x, /api/",), False),
        ("/healthz", "/api/healthz", ("%2Fapi",), False),
        ("/health/live", "/health/live", ("/health/live",), True),
        ("/health/live", "/health/live", ("health",), False),
        ("/health/live", "/health/live", ("/heal",), True),
        (None, "/healthz", (), False),
        ("/live", "/live", (), False),
    ],
)
def test_h01_exclusion_needs_a_mount_point_of_the_operator(
    routed: str | None, whole: str, headers: tuple[str, ...], expected: bool
) -> None:
    """An exclusion requires a mount point from the operator, because the client can choose one in a header."""
    assert EXCLUDED.cover(RequestPath(routed, whole, lambda: headers)) is expected


@pytest.mark.parametrize(
    ("routed", "whole", "expected"),
    [("/healthz", "/api/healthz", False), ("/healthz", "/healthz", False), (None, "/healthz", True)],
)
def test_without_headers_only_an_ambiguous_path_is_suspect(routed: str | None, whole: str, expected: bool) -> None:
    """Without headers, as in gRPC, only an ambiguous path is suspect."""
    path = RequestPath(routed, whole)

    assert (path.routed, path.whole) == (routed, whole)
    assert path.is_mount_chosen is expected


@pytest.mark.parametrize(
    ("routed", "whole", "reads"),
    [("/users/7", "/users/7", 0), ("/healthz", "/healthz", 0), ("/health/live", "/health/live", 1)],
    ids=["not excluded", "one segment", "two segments"],
)
def test_headers_are_read_only_if_they_can_change_the_result(routed: str, whole: str, reads: int) -> None:
    """Headers are read only if they can change the result, which is rare."""
    calls: list[str] = []

    def header_values() -> Iterator[str]:
        calls.append("read")
        yield "unrelated"

    EXCLUDED.cover(RequestPath(routed, whole, header_values))

    assert len(calls) == reads


@given(
    st.text("abc/%é", min_size=1, max_size=6).filter(lambda mount: mount.strip("/ \t")),
    st.text(max_size=8),
    st.sampled_from([lambda mount: mount, lambda mount: f"/{mount}/", lambda mount: quote(mount, safe="")]),
)
def test_a_mount_point_in_any_header_is_found_in_any_spelling(mount: str, other: str, spell: Any) -> None:
    """A mount point is found in any header, among other values, slashes, and percent encodings, without raising an
    error.
    """
    mount = mount.strip("/")
    path = RequestPath("/healthz", f"/{mount}/healthz", lambda: (other, f"{other},{spell(mount)}"))

    assert path.is_mount_chosen
    assert not EXCLUDED.cover(path)


def test_an_error_response_is_complete_and_must_not_be_cached() -> None:
    """An error response has a JSON body, its length, and additional headers in order, and forbids caching."""
    challenge, retry = ("WWW-Authenticate", 'Bearer realm="api"'), ("Retry-After", "1")
    response = ErrorResponse.build(401, "invalid_token", challenge, retry)

    assert (response.status, response.error) == (401, "invalid_token")
    assert json.loads(response.body) == {"error": "invalid_token"}
    assert response.headers == (
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(response.body))),
        ("Cache-Control", "no-store"),
        challenge,
        retry,
    )


def test_an_error_response_can_be_shared_between_requests() -> None:
    """Error responses are immutable and can be shared, and equal responses are interchangeable."""
    response = ErrorResponse.build(503, "temporarily_unavailable")

    with pytest.raises(FrozenInstanceError):
        response.status = 200  # type: ignore[misc]  # this is the mistake
    assert response == ErrorResponse.build(503, "temporarily_unavailable")
    assert len({response, ErrorResponse.build(503, "temporarily_unavailable")}) == 1


def test_the_error_is_one_word_in_ascii() -> None:
    """The error is a single ASCII word, so it cannot contain text that the client sent."""
    with pytest.raises(UnicodeEncodeError):
        ErrorResponse.build(401, "ungültig")


def test_the_reason_is_not_part_of_the_response() -> None:
    """The response is the same for every reason, which is intended only for operators."""
    error_response = ErrorResponse.build(401, "invalid_token", ("WWW-Authenticate", "Bearer"))
    with_reason = error_response.because("wrong_audience")

    assert error_response.reason is None
    assert with_reason.reason == "wrong_audience"
    assert with_reason == error_response
    assert b"wrong_audience" not in with_reason.body
    assert all("wrong_audience" not in pair for pair in with_reason.headers)


def test_an_excluded_path_and_a_preflight_request_need_no_token() -> None:
    """A preflight request needs no token only if it has no credentials at all."""
    preflight = {"origin": ["https://app.example"], "access-control-request-method": ["GET"]}
    exclusions = Exclusions(("/healthz", "/public/*"))

    def needs_none(path: str, credentials: Any, headers: dict[str, list[str]], method: str = "OPTIONS") -> bool:
        request = RequestPath(
            path,
            path,
            header_values=lambda: [value for values in headers.values() for value in values],
            method=method,
            values_of=lambda name: headers.get(name, []),
        )
        return needs_no_token(credentials, request, exclusions)

    assert needs_none("/healthz", BearerToken("a-token"), {}, "GET")
    assert needs_none("/public/logo.svg", Reason.MALFORMED, {}, "GET")
    assert needs_none("/orders", Reason.ABSENT, preflight)
    assert not needs_none("/orders", Reason.ABSENT, preflight, "GET")
    assert not needs_none("/orders", Reason.MALFORMED, preflight)
    assert not needs_none("/orders", BearerToken("a-token"), preflight)
