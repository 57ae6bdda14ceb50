"""Every name of a secret is recognized in every notation, and its value is masked in any surrounding text."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.redaction.scrubber import MASK, Scrubber
from otel_token_relay.redaction.secret_names import Kind, SecretNames, rows
from otel_token_relay.redaction.token_search import NOTHING
from otel_token_relay.redaction.unknown_tokens import BUILT_IN_RULES, UnknownTokens
from tests.redaction.corpus import BENIGN

SCRUBBER = Scrubber()
SECRET = "kq3Zt9vX0aPl71bLxYqHs4"
# These values do not look like credentials. Strong names alone are enough to mask them.
PLAIN = "plainsecret"

Form = Callable[[str, str], str]


def _json_in(levels: int) -> Form:
    def form(name: str, value: str) -> str:
        text: object = {name: value, "n": 1}
        for _ in range(levels):
            text = {"arguments": json.dumps(text)}
        return json.dumps(text)

    return form


FORMS: dict[str, Form] = {
    "url": lambda n, v: f"https://a.example/x?{n}={v}&page=2",
    "url-last": lambda n, v: f"GET /x?page=2&{n}={v} HTTP/1.1",
    "url-fragment": lambda n, v: f"https://a.example/cb#{n}={v}",
    "url-nested": lambda n, v: f"/go?to={quote(f'https://a.example/?{n}={v}&x=1', safe='')}",
    "url-nested-twice": lambda n, v: f"/go?to={quote(quote(f'/?{n}={v}&x=1', safe=''), safe='')}",
    "url-array": lambda n, v: f"/x?{n}[]={v}",
    "form": lambda n, v: f"page=2&{n}={v}",
    "json": _json_in(0),
    "json-compact": lambda n, v: f'{{"{n}":"{v}"}}',
    "json-lines": lambda n, v: json.dumps({n: v}, indent=2),
    "json-in-json": _json_in(1),
    "json-in-json-in-json": _json_in(2),
    "json-array": lambda n, v: json.dumps({n: [v]}),
    "json-cut": lambda n, v: f'{{"{n}": "{v}',
    "json-in-url": lambda n, v: "/x?q=" + quote(json.dumps({n: v})),
    "json-in-html": lambda n, v: html.escape(json.dumps({n: v})),
    "har": lambda n, v: json.dumps({"name": n, "value": v}),
    "repr": lambda n, v: repr({n: v}),
    "repr-bytes": lambda n, v: repr({n.encode(): v.encode()}),
    "repr-list": lambda n, v: repr({n: [v]}),
    "repr-pair": lambda n, v: repr([(n, v)]),
    "repr-asgi": lambda n, v: repr([(n.encode(), v.encode()), (b"accept", b"*/*")]),
    "repr-keyword": lambda n, v: f"Client({n}={v!r}, timeout=5)",
    "grpc-metadata": lambda n, v: f"(_Metadatum(key={n!r}, value={v!r}),)",
    "attribute": lambda n, v: f'<input name="x" {n}="{v}">',
    "xml": lambda n, v: f"<Credentials><{n}>{v}</{n}></Credentials>",
    "xml-namespace": lambda n, v: f"<ns2:{n}>{v}</ns2:{n}>",
    "multipart": lambda n, v: f'Content-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n--x',
    "environment": lambda n, v: f"env {n}={v} python app.py",
    "connection-string": lambda n, v: f"Endpoint=sb://a.example/;{n}={v};EntityPath=q",
    "yaml-quoted": lambda n, v: f'config:\n  {n}: "{v}"\n',
    "toml": lambda n, v: f"{n} = '{v}'",
    "sql": lambda n, v: f"SELECT * FROM t WHERE {n} = '{v}' AND id = 7",
}
# In these notations, ordinary text can follow a name, so the value must look like a credential.
LOOSE: dict[str, Form] = {
    "header-line": lambda n, v: f"> {n}: {v}\r\n> Accept: */*",
    "yaml": lambda n, v: f"config:\n  {n}: {v}\n  other: 1\n",
    "assignment": lambda n, v: f"{n} = {v}",
}
MASKED = {name: kind for name, kind, _ in rows() if kind is not Kind.HARMLESS}


def _spelled(name: str) -> list[str]:
    words = name.split()
    return ["_".join(words), "-".join(word.title() for word in words), words[0] + "".join(w.title() for w in words[1:])]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_labeled_secret_is_masked_in_every_notation(form: Form) -> None:
    """The value of each name is masked in three spellings, with and without a prefix, and the rest remains
    unchanged.
    """
    for name, kind in MASKED.items():
        for spelled in _spelled(name):
            prefixes = [""] if kind is Kind.ALONE else ["", "x_" if "_" in spelled else "X-"]
            for label in (prefix + spelled for prefix in prefixes):
                text = form(label, SECRET)
                cleaned = SCRUBBER.redact(text, NOTHING)
                assert cleaned.replace(MASK, SECRET) == text, label
                assert SECRET not in cleaned, label
                assert SCRUBBER.redact(cleaned, NOTHING) is cleaned


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_strong_name_is_enough(form: Form) -> None:
    """Any word is masked as the value of a strong name."""
    for label in (spelled for name, kind in MASKED.items() if kind is Kind.STRONG for spelled in _spelled(name)):
        assert PLAIN not in SCRUBBER.redact(form(label, PLAIN), NOTHING), label


@pytest.mark.parametrize("form", LOOSE.values(), ids=LOOSE)
def test_a_secret_is_masked_after_a_colon(form: Form) -> None:
    """A secret is masked after a colon, as in a header or in YAML, but a word, which could be part of a sentence, is
    not.
    """
    for label in (spelled for name, kind in MASKED.items() if kind is not Kind.ALONE for spelled in _spelled(name)):
        assert SECRET not in SCRUBBER.redact(form(label, SECRET), NOTHING), label
        text = form(label, PLAIN)
        assert SCRUBBER.redact(text, NOTHING) is text


@pytest.mark.parametrize("form", [*FORMS.values(), *LOOSE.values()], ids=[*FORMS, *LOOSE])
def test_the_position_in_a_list_stays(form: Form) -> None:
    """A pagination token is not masked, because operators need it and the server accepts it only from its owner."""
    for name in ("next_token", "nextPageToken", "ClientRequestToken", "x-continuation-token"):
        text = form(name, SECRET)
        assert SCRUBBER.redact(text, NOTHING) is text


CONFIGURED = Scrubber(["X-Tenant-Id", "session.id", "cookie", "set-cookie"], ["x-user-assertion"])


@pytest.mark.parametrize("form", [*FORMS.values(), *LOOSE.values()], ids=[*FORMS, *LOOSE])
def test_a_configured_name_is_masked_in_every_notation(form: Form) -> None:
    """Any value of a configured name is masked in every notation, also in text."""
    for label in ("X-Tenant-Id", "x_tenant_id", "session.id", "my.session.id", "X-User-Assertion", "Set-Cookie"):
        text = form(label, "alice")
        assert "alice" not in CONFIGURED.redact(text, NOTHING), label
        assert SCRUBBER.redact(text, NOTHING) is text


@pytest.mark.parametrize("label", ["Cookie", "set-cookie", "Set-Cookie"])
def test_cookies_are_masked_up_to_the_end_of_the_line_on_request(label: str) -> None:
    """Cookies are masked up to the end of the line if this is configured, because a line can contain several."""
    text = f"> {label}: sid=alice; theme=dark\r\n> Accept: */*"

    assert CONFIGURED.redact(text, NOTHING) == f"> {label}: {MASK}\r\n> Accept: */*"
    assert SCRUBBER.redact(text, NOTHING) is text


BASIC = "YWxpY2U6cGFzc3dvcmQ="
CREDENTIALS = {
    "basic": f"Basic {BASIC}",
    "basic-letters": "Basic dXNlcjpwYXNz",
    "dpop": f"DPoP {SECRET}",
    "negotiate": f"Negotiate {SECRET}",
    "token": f"Token {SECRET}",
    "api-key": f"ApiKey {SECRET}",
    "unknown-scheme": f"Acme-Auth {SECRET}",
    "no-scheme": SECRET,
    "aws": f"AWS4-HMAC-SHA256 Credential={SECRET}/20261127/eu/s3/aws4_request, SignedHeaders=host, Signature={SECRET}",
    "digest": f'Digest username="alice", nonce="{SECRET}", response="{SECRET}"',
    "azure": f"SharedKey account:{SECRET}",
    "signature": f'Signature keyId="k",signature="{SECRET}"',
}
HEADER_FORMS: dict[str, Form] = {
    "line": lambda n, v: f"{n}: {v}\r\nAccept: */*",
    "lines-escaped": lambda n, v: f"GET / HTTP/1.1\\r\\n{n}: {v}\\r\\nAccept: */*",
    "curl": lambda n, v: f"curl -H '{n}: {v}' https://a.example" if '"' in v else f'curl -H "{n}: {v}" https://a',
    "environment": lambda n, v: f"OTEL_EXPORTER_OTLP_HEADERS: {n.lower()}={v}",
    "dict": lambda n, v: repr({n: v, "Accept": "*/*"}),
    "asgi": lambda n, v: repr([(n.lower().encode(), v.encode()), (b"accept", b"*/*")]),
    "json": lambda n, v: json.dumps({"headers": {n: v}, "x": 1}),
    "tool-call": lambda n, v: json.dumps({"arguments": json.dumps({"headers": {n: v}})}),
    "har": lambda n, v: json.dumps([{"name": n, "value": v}, {"name": "Accept", "value": "*/*"}]),
    "grpc": lambda n, v: f"(_Metadatum(key={n.lower()!r}, value={v!r}),)",
    "url": lambda n, v: f"/x?{n.lower()}={quote(v)}&page=2",
    "keyword": lambda n, v: f"Request({n.lower()}={v!r})",
}


@pytest.mark.parametrize("form", HEADER_FORMS.values(), ids=HEADER_FORMS)
@pytest.mark.parametrize("credentials", CREDENTIALS.values(), ids=CREDENTIALS)
def test_credentials_of_every_scheme_are_masked_after_authorization(credentials: str, form: Form) -> None:
    """Credentials of every scheme, and without a scheme, are masked after `Authorization`, and the following text
    remains.
    """
    for name in ("Authorization", "Proxy-Authorization", "X-Original-Authorization"):
        text = form(name, credentials)
        cleaned = SCRUBBER.redact(text, NOTHING)

        assert MASK in cleaned
        for secret in (SECRET, BASIC.rstrip("="), "dXNlcjpwYXNz"):
            assert secret not in cleaned
        assert ("*/*" in text) == ("*/*" in cleaned)
        assert SCRUBBER.redact(cleaned, NOTHING) is cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: none",
        "Authorization: required",
        "Authorization: Basic authentication is required",
        "Authorization: the header is missing",
        "Authorization: Bearer token expected",
        "authorization=granted",
        '{"authorization": "approved"}',
        "['id', 'authorization', 'created_at']",
        "authorization: see RFC 9110, section 11.6.2",
        "Authorization: ",
        "Authorization:",
        "authorization failed: no such user",
        "allow-headers: authorization, content-type",
    ],
)
def test_sentences_about_authorization_stay(text: str) -> None:
    """Sentences about authorization remain unchanged if they contain no credentials."""
    assert SCRUBBER.redact(text, NOTHING) is text


@pytest.mark.parametrize(
    "text",
    [
        "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Security-Token=%s&X-Amz-Signature=%s",
        "https://b.s3.amazonaws.com/k?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=%s&Expires=1",
        "https://storage.googleapis.com/b/o?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Signature=%s",
        "https://a.blob.core.windows.net/c/b?sv=2024-11-04&sr=b&sig=%s&se=2026-11-27",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=%s==;EndpointSuffix=core.windows.net",
        "Endpoint=sb://n.servicebus.windows.net/;SharedAccessKeyName=k;SharedAccessKey=%s=",
        "<SessionToken>%s</SessionToken><Expiration>2026-11-27T00:00:00Z</Expiration>",
        "b'<SecretAccessKey>%s</SecretAccessKey>'",
        "{'SecretAccessKey': '%s', 'SessionToken': '%s'}",
        "Incorrect API key: %s. You can find your API key at https://a.example.",
        "Access token: %s",
    ],
)
def test_credentials_of_cloud_providers_are_masked(text: str) -> None:
    """Cloud providers' credentials are masked in presigned URLs, connection strings, and responses."""
    cleaned = SCRUBBER.redact(text.replace("%s", SECRET), NOTHING)

    assert cleaned.count(MASK) >= text.count("%s")
    assert SECRET not in cleaned
    assert "AKIA" not in cleaned


def test_every_word_that_the_first_check_looks_for_is_enough() -> None:
    """The first check does not exclude any text that the full search would mask."""
    for name in MASKED:
        for label in _spelled(name):
            assert BUILT_IN_RULES.may_be_labeled_in(f"{label}={SECRET}".lower()), label


@pytest.mark.parametrize("text", BENIGN)
def test_nothing_is_found_in_benign_text(text: str) -> None:
    """Documents, code, SQL, and error codes that contain names of secrets remain unchanged."""
    assert BUILT_IN_RULES.intervals_in(text) == []


@given(
    st.lists(st.sampled_from([*FORMS["json"]("token", "x"), "\\", '"', "'", "%22", "&quot;", " ", "Authorization: "]))
)
def test_odd_quotes_raise_nothing(parts: list[str]) -> None:
    """Unbalanced quotes in truncated text do not raise an error."""
    text = "".join(parts)

    cleaned = SCRUBBER.redact(text, NOTHING)

    assert SCRUBBER.redact(cleaned, NOTHING) is cleaned


@pytest.mark.parametrize(
    "unit",
    ['code: "a" ', 'token=\\"', "authorization: basic realm ", "token=&quot;", "a token: b ", "password=a,", "_token"],
)
def test_a_text_made_of_labels_is_read_in_bounded_time(unit: str) -> None:
    """A text that consists of labels is searched in bounded time, without quadratic growth."""
    text = unit * (1_000_000 // len(unit))

    assert isinstance(SCRUBBER.redact(text, NOTHING), str)


def test_the_rest_of_a_text_with_very_many_labels_is_masked() -> None:
    """In a text with very many labels, the part that was not searched is masked."""
    text = 'code: "a" ' * 20_001 + f"access_token={SECRET}"

    cleaned = SCRUBBER.redact(text, NOTHING)

    assert cleaned == 'code: "a" ' * 20_000 + MASK


def test_configured_names_are_searched_for_beside_the_built_in_names() -> None:
    """The rules of one configuration also find the values of its own names, even in text without a built-in name."""
    rules = UnknownTokens(SecretNames(["X-Tenant"]))
    text = f"x-tenant=acme&page=2&access_token={SECRET}"

    assert rules.may_be_labeled_in("x_tenant: acme")
    assert not BUILT_IN_RULES.may_be_labeled_in("x_tenant: acme")
    assert sorted(text[start:end] for start, end in rules.intervals_in(text)) == ["acme", SECRET]
    assert [text[start:end] for start, end in BUILT_IN_RULES.intervals_in(text)] == [SECRET]


@pytest.mark.parametrize(
    ("call", "is_masked"),
    [
        (f'crypt("{SECRET}", gen_salt("bf"))', True),
        (f"SecretStr('{SECRET}')", True),
        ('os.getenv("API_KEY")', False),
        ("request.headers['Api-Key']", False),
        ("hash(new, rounds=12)", False),
    ],
)
def test_a_call_is_masked_as_a_whole_if_it_contains_a_secret(call: str, is_masked: bool) -> None:
    """A call that is the value of a name is masked from the function's name to the last bracket, or not at all."""
    text = f"client_secret={call}, timeout=5"

    assert [text[start:end] for start, end in BUILT_IN_RULES.intervals_in(text)] == [call] * is_masked
