"""The path of a request, which may be excluded from verification, and the error response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.authentication import ErrorResponse, RequestPath

EXCLUDED = ("/healthz", "/healthz/", "/health/live", "/health/deep/live")


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
    """A mount point in a header is chosen by the client."""
    assert RequestPath(routed, whole, lambda: headers).is_one_of(EXCLUDED) is expected


@pytest.mark.parametrize(
    ("routed", "whole", "expected"),
    [("/healthz", "/api/healthz", False), ("/healthz", "/healthz", False), (None, "/healthz", True)],
)
def test_without_headers_only_an_ambiguous_path_is_suspect(routed: str | None, whole: str, expected: bool) -> None:
    """gRPC has no mount points, so its boundary passes no headers."""
    path = RequestPath(routed, whole)

    assert (path.routed, path.whole) == (routed, whole)
    assert path.is_mount_chosen is expected


@pytest.mark.parametrize(
    ("routed", "whole", "reads"),
    [("/users/7", "/users/7", 0), ("/healthz", "/healthz", 0), ("/health/live", "/health/live", 1)],
    ids=["not excluded", "one segment", "two segments"],
)
def test_headers_are_read_only_if_they_can_change_the_result(routed: str, whole: str, reads: int) -> None:
    """Most requests are not to an excluded path, and their headers are not searched."""
    calls: list[str] = []

    def header_values() -> Iterator[str]:
        calls.append("read")
        yield "unrelated"

    RequestPath(routed, whole, header_values).is_one_of(EXCLUDED)

    assert len(calls) == reads


@given(
    st.text("abc/%é", min_size=1, max_size=6).filter(lambda mount: mount.strip("/ \t")),
    st.text(max_size=8),
    st.sampled_from([lambda mount: mount, lambda mount: f"/{mount}/", lambda mount: quote(mount, safe="")]),
)
def test_a_mount_point_in_any_header_is_found_in_any_spelling(mount: str, other: str, spell: Any) -> None:
    """An attacker may add other values, slashes and percent encodings. Reading such headers never raises."""
    mount = mount.strip("/")
    path = RequestPath("/healthz", f"/{mount}/healthz", lambda: (other, f"{other},{spell(mount)}"))

    assert path.is_mount_chosen
    assert not path.is_one_of(EXCLUDED)


def test_an_error_response_is_complete_and_must_not_be_cached() -> None:
    """The body is JSON, its length is correct, and further headers follow in their order."""
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
    """It cannot be modified, and equal responses are interchangeable."""
    response = ErrorResponse.build(503, "temporarily_unavailable")

    with pytest.raises(FrozenInstanceError):
        response.status = 200  # type: ignore[misc]  # this is the mistake
    assert response == ErrorResponse.build(503, "temporarily_unavailable")
    assert len({response, ErrorResponse.build(503, "temporarily_unavailable")}) == 1


def test_the_error_is_one_word_in_ascii() -> None:
    """Text that the client sent could contain other characters, and must not be the error."""
    with pytest.raises(UnicodeEncodeError):
        ErrorResponse.build(401, "ungültig")


def test_the_reason_is_not_part_of_the_response() -> None:
    """It is for operators. The response is the same for every reason."""
    error_response = ErrorResponse.build(401, "invalid_token", ("WWW-Authenticate", "Bearer"))
    with_reason = error_response.because("wrong_audience")

    assert error_response.reason is None
    assert with_reason.reason == "wrong_audience"
    assert with_reason == error_response
    assert b"wrong_audience" not in with_reason.body
    assert all("wrong_audience" not in pair for pair in with_reason.headers)
