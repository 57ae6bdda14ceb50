"""Protected resource metadata: the document, and the requests that get it."""

from __future__ import annotations

import json

import pytest

from otel_token_relay.authentication import RequestPath
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.verification.protected_resource import WELL_KNOWN, ProtectedResource

PREFLIGHT = {"origin": ("https://app.example",), "access-control-request-method": ("GET",)}
RESOURCE = ProtectedResource("https://mcp.example/a%20b", ["https://idp.example", "https://login/{tenantid}"], ["read"])


def test_the_document_names_the_issuers() -> None:
    """RFC 9728, section 2. A placeholder for a tenant is not the URL of a server."""
    response = RESOURCE.respond(RequestPath(f"{WELL_KNOWN}/a b", "", method="GET"))

    assert response is not None
    assert (response.status, dict(response.headers)["Access-Control-Allow-Origin"]) == (200, "*")
    assert json.loads(response.body) == {
        "resource": "https://mcp.example/a%20b",
        "bearer_methods_supported": ["header"],
        "authorization_servers": ["https://idp.example"],
        "scopes_supported": ["read"],
    }


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        (f"{WELL_KNOWN}/a b", "HEAD", 200),
        (f"{WELL_KNOWN}/a%20b", "GET", 200),
        (f"{WELL_KNOWN}/a b", "POST", None),
        (f"{WELL_KNOWN}/a b", "OPTIONS", None),
        (WELL_KNOWN, "GET", None),
        (f"{WELL_KNOWN}/a b/", "GET", None),
        ("/a b", "GET", None),
    ],
)
def test_other_requests_need_a_token(path: str, method: str, status: int | None) -> None:
    """Only the exact path is public, and only for reading."""
    response = RESOURCE.respond(RequestPath(path, "", method=method))

    assert (response and response.status) == status


def test_browsers_may_read_the_document() -> None:
    """A preflight request has no token."""
    response = RESOURCE.respond(
        RequestPath(f"{WELL_KNOWN}/a b", "", method="OPTIONS", values_of=lambda name: PREFLIGHT.get(name, ()))
    )

    assert response is not None
    assert (response.status, response.body) == (204, b"")
    assert dict(response.headers)["Access-Control-Allow-Headers"] == "*"


@pytest.mark.parametrize(
    "identifier", [None, "", "mcp.example", "http://mcp.example", "https://mcp.example/?a", "https://mcp.example/#a"]
)
def test_an_invalid_identifier_is_an_error(identifier: object) -> None:
    """It is the URL that clients use."""
    with pytest.raises(ConfigurationError) as failed:
        ProtectedResource(identifier, [], [])
    assert failed.value.setting == "resource_metadata"


def test_empty_members_are_left_out() -> None:
    """RFC 9728, section 3.2: members with zero elements must be omitted."""
    resource = ProtectedResource("https://mcp.example/", [], [])
    response = resource.respond(RequestPath(WELL_KNOWN, "", method="GET"))

    assert resource.url == f"https://mcp.example{WELL_KNOWN}"
    assert response is not None
    assert set(json.loads(response.body)) == {"resource", "bearer_methods_supported"}
