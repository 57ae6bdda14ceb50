"""The error responses of a protected resource match byte for byte."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.authentication import ErrorResponse
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.reasons import Reason
from otel_token_relay.verification.challenges import Challenges

METADATA = "https://profiles.example/.well-known/oauth-protected-resource"
PLAIN = Challenges(realm="api")
FULL = Challenges(
    realm="profiles",
    required_scopes=("profiles:read", "openid"),
    resource_metadata=METADATA,
    acr_values=("gold", "silver"),
    max_age=300.9,
)


def challenge_of(response: ErrorResponse) -> str | None:
    return dict(response.headers).get("WWW-Authenticate")


@pytest.mark.parametrize(
    ("name", "status", "plain", "full"),
    [
        ("unauthenticated", 401, "", ', scope="profiles:read openid"'),
        ("invalid_request", 400, ', error="invalid_request"', ', error="invalid_request"'),
        (
            "invalid_token",
            401,
            ', error="invalid_token"',
            ', error="invalid_token", scope="profiles:read openid"',
        ),
        (
            "insufficient_scope",
            403,
            ', error="insufficient_scope"',
            ', error="insufficient_scope", scope="profiles:read openid"',
        ),
        (
            "insufficient_authentication",
            401,
            ', error="insufficient_user_authentication"',
            ', error="insufficient_user_authentication", acr_values="gold silver", max_age="300"',
        ),
    ],
)
def test_each_response_has_its_challenge(name: str, status: int, plain: str, full: str) -> None:
    """Each response's challenge starts with the realm and ends with the metadata, and a missing option adds nothing."""
    for challenges, expected in (
        (PLAIN, f'Bearer realm="api"{plain}'),
        (FULL, f'Bearer realm="profiles"{full}, resource_metadata="{METADATA}"'),
    ):
        response: ErrorResponse = getattr(challenges, name)

        assert (response.status, challenge_of(response)) == (status, expected)
        assert json.loads(response.body) == {"error": response.error}
        assert dict(response.headers) | {"WWW-Authenticate": ""} == {
            "Content-Type": "application/json",
            "Content-Length": str(len(response.body)),
            "Cache-Control": "no-store",
            "WWW-Authenticate": "",
        }


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (Reason.ABSENT, "unauthenticated"),
        (Reason.MALFORMED, "invalid_request"),
        (Reason.AMBIGUOUS, "invalid_request"),
        (Reason.TOO_LONG, "invalid_token"),
    ],
)
def test_each_kind_of_unreadable_header_has_its_response(reason: Reason, name: str) -> None:
    """Each kind of unreadable header has its own response, without an error code for a missing token (RFC 6750,
    section 3.1).
    """
    assert FULL.without_token(reason) is getattr(FULL, name)


@pytest.mark.parametrize(
    ("scopes", "attribute"), [((), ""), (("admin",), ', scope="admin"'), (["a", "b"], ', scope="a b"')]
)
def test_the_response_to_a_missing_scope_names_the_given_scopes(scopes: Any, attribute: str) -> None:
    """The response to a missing scope contains the given scopes, which can differ from those that every request
    needs.
    """
    response = FULL.build_insufficient_scope(scopes)

    assert response.status == 403
    assert challenge_of(response) == (
        f'Bearer realm="profiles", error="insufficient_scope"{attribute}, resource_metadata="{METADATA}"'
    )


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        (-5.0, "1"),
        (0.0, "1"),
        (1.0, "1"),
        (1.1, "2"),
        (59.5, "60"),
        (3600.0, "3600"),
        (3600.1, "3600"),
        (math.inf, "3600"),
        (-math.inf, "3600"),
        (math.nan, "3600"),
    ],
)
def test_an_unavailable_issuer_is_not_the_fault_of_the_token(retry_after: float, seconds: str) -> None:
    """If the issuer is unavailable, the response has no challenge and asks the client to retry after whole seconds."""
    response = FULL.unavailable(retry_after)

    assert response.status == 503
    assert dict(response.headers)["Retry-After"] == seconds
    assert dict(response.headers)["Cache-Control"] == "no-store"
    assert challenge_of(response) is None
    assert json.loads(response.body) == {"error": "temporarily_unavailable"}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("realm", ""),
        ("realm", 'a", error="none'),
        ("realm", "a\\"),
        ("realm", "a\r\nSet-Cookie: a=b"),
        ("realm", "é"),
        ("realm", 1),
        ("required_scopes", "profiles:read"),
        ("required_scopes", ("profiles:read admin",)),
        ("required_scopes", ("",)),
        ("required_scopes", (None,)),
        ("resource_metadata", "https://a.example/\n"),
        ("resource_metadata", 'https://a.example/"'),
        ("acr_values", ('a"b',)),
        ("acr_values", "gold"),
    ],
)
def test_a_value_that_would_break_a_challenge_is_an_error(setting: str, value: Any) -> None:
    """A value that would break a challenge raises an error at construction that contains the setting's name."""
    with pytest.raises(ConfigurationError) as rejected:
        Challenges(**({"realm": "api"} | {setting: value}))

    assert rejected.value.setting == setting


@given(st.text(), st.text())
def test_no_option_adds_an_attribute_or_a_header_line(realm: str, scope: str) -> None:
    """No option adds an attribute or a header line: each value is an error or one quoted string."""
    try:
        challenge = challenge_of(Challenges(realm=realm).build_insufficient_scope((scope,)))
    except ConfigurationError:
        return
    assert challenge == f'Bearer realm="{realm}", error="insufficient_scope", scope="{scope}"'
    assert challenge.count('"') == 6
    assert challenge.isprintable()
