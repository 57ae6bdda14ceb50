"""The request forms of both grants contain only the parameters in their specifications.

The forms are compared with the forms of two independent clients: requests-oauth2client for RFC 8693, and Microsoft's
msal for Entra's on-behalf-of grant.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
import requests
from msal import ConfidentialClientApplication
from requests.adapters import BaseAdapter
from requests_oauth2client import ClientSecretBasic, OAuth2Client

from otel_token_relay.exchange.grants import ACCESS_TOKEN, Request

SUBJECT, ACTOR = "the-callers-token", "the-services-token"


def test_the_form_of_token_exchange_has_the_parameters_of_rfc_8693() -> None:
    """The form contains the access token type for both tokens and only the requested parameters."""
    request = Request(audience="billing-api", resource="https://billing", scope="invoices:read")

    assert dict(request.form(SUBJECT, ACTOR)) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": SUBJECT,
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "actor_token": ACTOR,
        "actor_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": "billing-api",
        "resource": "https://billing",
        "scope": "invoices:read",
    }
    assert {name for name, _ in Request(scope="a").form(SUBJECT)} == {
        "grant_type",
        "subject_token",
        "subject_token_type",
        "requested_token_type",
        "scope",
    }


@pytest.mark.parametrize(
    ("request_", "scope"),
    [
        (Request("on-behalf-of", scope="api://billing/invoices.read"), "api://billing/invoices.read"),
        (Request("on-behalf-of", audience="api://billing"), "api://billing/.default"),
        (Request("on-behalf-of", resource="api://billing"), "api://billing/.default"),
    ],
)
def test_the_form_of_on_behalf_of_has_the_parameters_of_entra(request_: Request, scope: str) -> None:
    """In Entra's form, the audience is part of the scope."""
    assert dict(request_.form(SUBJECT)) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": SUBJECT,
        "requested_token_use": "on_behalf_of",
        "scope": scope,
    }


def test_the_expected_audiences_are_those_asked_for() -> None:
    """Without a requested audience or resource, any audience in the response is accepted."""
    assert Request(scope="a").audiences == frozenset()
    assert Request(scope="a", expected=("x",)).audiences == frozenset()
    assert Request(audience="a", resource="b", expected=("c",)).audiences == {"a", "b", "c"}


ISSUED = json.dumps({"access_token": "issued", "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer"})


class RecordingAdapter(BaseAdapter):
    """A transport for requests that issues a token for every request and records the forms."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[dict[str, str]] = []

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        pairs = parse_qsl(str(request.body), keep_blank_values=True, strict_parsing=True)
        assert len(dict(pairs)) == len(pairs), "a parameter is repeated"
        self.forms.append(dict(pairs))
        response = requests.Response()
        response.status_code, response._content = 200, ISSUED.encode()
        return response

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("asked", "actor"),
    [
        ({"audience": "billing-api"}, None),
        ({"resource": "https://billing"}, None),
        ({"scope": "invoices:read invoices:write"}, None),
        ({"audience": "billing api", "resource": "https://billing?a=b&c", "scope": "invoices:read"}, ACTOR),
    ],
    ids=["audience", "resource", "scope", "everything"],
)
def test_the_form_of_token_exchange_equals_that_of_requests_oauth2client(
    asked: dict[str, str], actor: str | None
) -> None:
    """The form has the same names and values as the form of requests-oauth2client."""
    adapter, session = RecordingAdapter(), requests.Session()
    session.mount("https://", adapter)
    client = OAuth2Client(
        "https://issuer.example/token", auth=ClientSecretBasic("user-service", "s3cret"), session=session
    )
    options = {} if actor is None else {"actor_token": actor, "actor_token_type": "access_token"}

    client.token_exchange(
        subject_token=SUBJECT,
        subject_token_type="access_token",
        requested_token_type=ACCESS_TOKEN,
        **options,
        **asked,
    )

    assert adapter.forms == [dict(Request(**asked).form(SUBJECT, actor))]


class RecordingHttp:
    """An HTTP client for msal that responds with the issuer's metadata or a token and records the forms."""

    def __init__(self) -> None:
        self.forms: list[dict[str, Any]] = []

    def get(self, url: str, **options: Any) -> Any:
        base = "https://login.microsoftonline.com/tenant"
        endpoints = {"authorization_endpoint": f"{base}/authorize", "token_endpoint": f"{base}/token"}
        return self._response({"issuer": f"{base}/v2.0", **endpoints})

    def post(self, url: str, **options: Any) -> Any:
        self.forms.append(dict(options["data"]))
        return self._response(json.loads(ISSUED))

    def _response(self, document: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response._content = 200, json.dumps(document).encode()
        return response

    def close(self) -> None:
        pass


def test_the_form_of_on_behalf_of_equals_that_of_msal() -> None:
    """The form has the same names and values as msal's form, apart from three explained differences."""
    http = RecordingHttp()
    client = ConfidentialClientApplication(
        "user-service",
        client_credential="s3cret",
        authority="https://login.microsoftonline.com/tenant",
        instance_discovery=False,
        http_client=http,
    )

    client.acquire_token_on_behalf_of(SUBJECT, ["api://billing/.default"])

    [theirs] = http.forms
    ours = dict(Request("on-behalf-of", audience="api://billing").form(SUBJECT))
    # The relay's form does not contain the credential, which `client_credentials` adds later.
    assert (theirs.pop("client_id"), theirs.pop("client_secret")) == ("user-service", "s3cret")
    # msal uses client_info from the response as its cache key, but the relay uses the subject token.
    assert theirs.pop("client_info") == 1
    # msal also requests an ID token and a refresh token, which a relay must not have.
    assert set(theirs.pop("scope").split()) - {"openid", "profile", "offline_access"} == {ours.pop("scope")}
    assert theirs == ours


def test_the_service_requests_its_own_token_for_the_same_destination() -> None:
    """The request has no subject and no actor. Entra expects the scope for all permissions instead of an audience."""
    own = Request(audience="billing", scope="read", expected=("b",), has_actor=True).of_client()
    assert own == Request("client-credentials", audience="billing", scope="read", expected=("b",))
    assert dict(own.form(None)) == {"grant_type": "client_credentials", "audience": "billing", "scope": "read"}

    entra = Request("on-behalf-of", audience="api://billing").of_client()
    assert dict(entra.form(None)) == {"grant_type": "client_credentials", "scope": "api://billing/.default"}
