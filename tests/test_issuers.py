"""Trusted issuers can be written in every form that operators use."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.errors import ConfigurationError
from otel_token_relay.issuers import (
    PERSONAL_TENANT,
    TrustedIssuer,
    combine,
    fill_tenant,
    is_issuer,
    problem_with_entry,
    problem_with_issuer,
    read_issuers,
)
from tests.support.json_values import json_values

TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47"
ANY_TENANT = "https://login.microsoftonline.com/{tid}/v2.0"


@pytest.mark.parametrize(
    ("issuer", "is_accepted", "has_metadata"),
    [
        pytest.param("https://idp.example/realms/x", True, True, id="URL"),
        pytest.param("http://127.0.0.1:8080", True, True, id="loopback"),
        pytest.param("accounts.google.com", True, False, id="Google's old name"),
        pytest.param("acme.com", True, False, id="FusionAuth's default"),
        pytest.param("http://adfs.example/adfs/services/trust", True, False, id="AD FS"),
        pytest.param("urn:example:idp", True, False, id="URN"),
        pytest.param(ANY_TENANT, True, True, id="any tenant"),
        pytest.param("https://sts.windows.net/{tid}/", True, True, id="any tenant, version 1"),
        pytest.param(f"https://login.microsoftonline.com/{TENANT}/v2.0", True, True, id="one tenant"),
        pytest.param("https://idp.example/?x=1", False, False, id="query"),
        pytest.param("https://idp.example#x", False, False, id="fragment"),
        pytest.param("https://login.microsoftonline.com/common/v2.0", False, False, id="common"),
        pytest.param("https://login.microsoftonline.com/organizations/v2.0", False, False, id="organizations"),
        pytest.param("https://idp.example/{tid}/v2.0", False, False, id="any tenant of another host"),
        pytest.param("https://login.microsoftonline.com.evil.example/{tid}/v2.0", False, False, id="longer host"),
        pytest.param("https://{tid}.microsoftonline.com/v2.0", False, False, id="tenant in the host"),
        pytest.param("https://login.microsoftonline.com/x{tid}/v2.0", False, False, id="part of a segment"),
        pytest.param("https://login.microsoftonline.com/{tid}/{tid}", False, False, id="twice"),
        pytest.param("https://login.microsoftonline.com/{tenant}/v2.0", False, False, id="another placeholder"),
        pytest.param("http://login.microsoftonline.com/{tid}/v2.0", False, False, id="any tenant over http"),
        pytest.param("https://login.microsoftonline.com:8443/{tid}/v2.0", False, False, id="another port"),
        pytest.param("https://a@login.microsoftonline.com/{tid}/v2.0", False, False, id="user info"),
        pytest.param("a b", False, False, id="white space"),
        pytest.param("a\nb", False, False, id="line break"),
        pytest.param("", False, False, id="empty"),
        pytest.param(1, False, False, id="number"),
    ],
)
def test_an_issuer_is_a_url_a_name_or_any_tenant(issuer: Any, is_accepted: bool, has_metadata: bool) -> None:
    """An issuer is a URL, a name that is compared with `iss` but never fetched, or a URL for any tenant."""
    assert (problem_with_issuer(issuer) is None) is is_accepted
    if is_accepted:
        assert TrustedIssuer(issuer=issuer).has_metadata() is has_metadata
        assert (problem_with_entry(issuer) is None) is has_metadata
        assert problem_with_entry(issuer, "https://keys.example") is None
    else:
        with pytest.raises(ConfigurationError, match="issuers"):
            TrustedIssuer(issuer=issuer)


@pytest.mark.parametrize(
    ("tenant", "tenants", "is_accepted"),
    [
        pytest.param(TENANT, (), True, id="any"),
        pytest.param(TENANT, (TENANT,), True, id="listed"),
        pytest.param(TENANT, ("11111111-1111-1111-1111-111111111111",), False, id="not listed"),
        pytest.param(PERSONAL_TENANT, (), False, id="personal accounts"),
        pytest.param(PERSONAL_TENANT, (PERSONAL_TENANT,), True, id="personal accounts, listed"),
        pytest.param(TENANT.upper(), (), False, id="upper case"),
        pytest.param(f"{TENANT}/v2.0#", (), False, id="more than a tenant"),
        pytest.param(f"{TENANT}\n", (), False, id="line break"),
        pytest.param("common", (), False, id="no tenant"),
        pytest.param("{tid}", (), False, id="placeholder"),
        pytest.param(None, (), False, id="none"),
        pytest.param([TENANT], (), False, id="a list"),
        pytest.param(TENANT, ("(none)",), False, id="the strict value"),
    ],
)
def test_a_tenant_fills_the_issuer(tenant: Any, tenants: tuple[str, ...], is_accepted: bool) -> None:
    """Only a tenant's ID matches the tenant placeholder, and the ID of personal accounts matches only if it is
    listed.
    """
    expected = f"https://login.microsoftonline.com/{tenant}/v2.0" if is_accepted else None

    assert fill_tenant(ANY_TENANT, tenant, tenants) == expected


def read(*entries: object) -> tuple[tuple[Any, ...], list[str]]:
    problems: list[str] = []
    return read_issuers(entries, lambda setting, problem: problems.append(f"{setting}: {problem}")), problems


def test_an_entry_of_a_file_has_its_own_settings() -> None:
    """An issuer in a file has its own settings, and an empty value is equivalent to an absent one."""
    found, problems = read(
        "https://a.example",
        {
            "issuer": "https://b.example",
            "jwks_uri": "https://keys.example",
            "audience": "orders, billing",
            "introspection_endpoint": "https://b.example/introspect",
            "client": {"id": "me", "secret": "s3cr3t", "auth": "client_secret_post", "secret_file": None},
        },
        {"issuer": "https://c.example", "audience": ["orders"], "jwks_uri": "", "client": None},
        "https://a.example",
    )

    assert problems == []
    assert found[0] == "https://a.example"
    assert (found[1].jwks_uri, found[1].audience) == ("https://keys.example", ("orders", "billing"))
    assert (found[1].client.client_id, found[1].client.method) == ("me", "client_secret_post")
    assert "s3cr3t" not in repr(found)
    assert found[2] == TrustedIssuer(issuer="https://c.example", audience=("orders",))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        pytest.param({"isuer": "https://b.example"}, "item 1: unknown key 'isuer'; did you mean issuer?", id="key"),
        pytest.param({"jwks_uri": "https://k.example"}, "item 1: expected an https URL", id="no issuer"),
        pytest.param({"issuer": 1}, "item 1: issuer: expected text", id="number"),
        pytest.param(
            {"issuer": "https://b.example", "jwks_uri": "k.example"},
            "https://b.example: jwks_uri: expected an https URL",
            id="no URL",
        ),
        pytest.param(
            {"issuer": "https://b.example", "client": {"id": "a"}}, "https://b.example: client_secret: ", id="client"
        ),
        pytest.param(
            {"issuer": "https://b.example", "client": {"id": "a", "secrte": "s3cr3t"}},
            "https://b.example: unknown key 'secrte'; did you mean secret?",
            id="key of the client",
        ),
        pytest.param(
            {"issuer": "https://b.example", "client": {"id": "a", "secret": "s3cr3t", "key_file": "/run/key"}},
            "https://b.example: client_secret: client_secret and client_key_file cannot be combined",
            id="two credentials",
        ),
        pytest.param(
            {
                "issuer": "https://b.example",
                "introspection_endpoint": "http://localhost/introspect",
                "client": {"id": "a", "cert_file": "/run/cert"},
            },
            "https://b.example: client_auth: tls_client_auth requires an https endpoint",
            id="certificate over http",
        ),
        pytest.param({"issuer": "https://b.example", "client": "a"}, "https://b.example: client: ", id="text"),
        pytest.param({"issuer": "https://b.example", "audience": 1}, "https://b.example: audience: ", id="audience"),
        pytest.param({"issuer": "https://a.example", "audience": "x"}, "https://a.example: duplicate", id="twice"),
        pytest.param("https://user:s3cr3t@b.example", "https://***@b.example: expected", id="password"),
        pytest.param(7, "item 1: expected", id="not text"),
    ],
)
def test_a_bad_entry_is_named_and_skipped(entry: object, problem: str) -> None:
    """A message without secrets reports an invalid issuer, and the other issuers remain."""
    found, problems = read("https://a.example", entry, "https://z.example")

    assert found == ("https://a.example", "https://z.example")
    assert len(problems) == 1
    assert problems[0].startswith(f"issuers: {problem}")
    assert "s3cr3t" not in problems[0]


@given(
    st.lists(json_values | st.dictionaries(st.sampled_from(["issuer", "client", "audience", "jwks_uri"]), json_values))
)
def test_any_entries_are_read(entries: list[Any]) -> None:
    """Any entries in a file can be read without raising an error, and the remaining issuers are usable."""
    found, _ = read(*entries)

    assert all(problem_with_issuer(str(entry)) is None for entry in found)


def test_a_value_that_belongs_to_one_issuer_goes_to_the_only_one() -> None:
    """A separate key set URL or introspection endpoint applies to the only issuer, and is an error with several
    issuers.
    """
    (only,) = combine(["acme.com"], jwks_uri="https://keys.example", introspection_endpoint="https://a.example/i")
    assert (only.jwks_uri, only.introspection_endpoint) == ("https://keys.example", "https://a.example/i")

    several = ["https://a.example", "https://b.example"]
    assert [issuer.issuer for issuer in combine(several)] == several
    for values in ({"jwks_uri": "https://k.example"}, {"introspection_endpoint": "https://a.example/i"}):
        with pytest.raises(ConfigurationError, match="requires exactly one issuer"):
            combine(several, **values)
    with pytest.raises(ConfigurationError, match=r"acme\.com: expected an https URL"):
        combine(["https://a.example", "acme.com"])


def test_only_a_url_can_be_fetched() -> None:
    """Only a URL can be fetched, not a name or a template."""
    assert is_issuer("https://idp.example")
    assert not is_issuer(ANY_TENANT)
    assert not is_issuer("http://idp.example")
    assert is_issuer("http://idp.example", ["idp.example"])
    assert not is_issuer("http://idp.example:81", ["idp.example:80"])


@pytest.mark.parametrize("name", ["issuer", "jwks_uri", "introspection_endpoint"])
def test_plain_http_needs_a_host_that_the_operator_trusts(name: str) -> None:
    """An issuer or an endpoint with plain http requires a host that the operator trusts."""
    entry = TrustedIssuer(**{"issuer": "https://a.example"} | {name: "http://b.example/x"})
    with pytest.raises(ConfigurationError, match="plaintext_issuers"):
        combine([entry])
    assert combine([entry], plaintext_hosts=["b.example"]) == (entry,)


def test_a_token_for_keys_belongs_to_one_issuer() -> None:
    """A token for fetching keys belongs to one issuer, so with several issuers each needs its own."""
    (only,) = combine(["https://a.example"], jwks_token_file="/run/token")
    assert only.jwks_token_file == "/run/token"
    for issuers in ([], ["https://a.example", "https://b.example"]):
        with pytest.raises(ConfigurationError, match="jwks_token_file requires exactly one issuer"):
            combine(issuers, jwks_token_file="/run/token")
    entries = ({"issuer": "https://a.example", "jwks_token_file": "/run/token"}, "https://b.example")
    first, second = combine(read_issuers(entries, pytest.fail))
    assert (first.jwks_token_file, second.jwks_token_file) == ("/run/token", "")
