"""Tokens that look like credentials are remembered after their request ends."""

from __future__ import annotations

import base64
import json
import secrets
import string
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.redaction.credential_patterns import (
    ascii_lower,
    bearers_in,
    is_random,
    is_unpronounceable,
    jwts_in,
    looks_like_credential,
    looks_secret,
)
from otel_token_relay.redaction.unknown_tokens import BUILT_IN_RULES
from tests.redaction.corpus import FOREIGN_JWT, MARKED, OWN

LETTERS_AND_DIGITS = string.ascii_letters + string.digits


def _random(size: int, alphabet: str = LETTERS_AND_DIGITS) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(size))


def _segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


CREDENTIALS = {
    "github": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github-fine-grained": "github_pat_11BK7XQ2A0mZr9vLw4TnYc_8HdJf3GsXeUoiZ1aK9tRMwGC7nWq3bKx9TzR5mYv2LdJ86MQp",
    "gitlab": "glpat-kB7xQ2mZr9vLw4TnYc8H",
    "gitlab-routable": "glpat-GC7nWq3bKx9TzR5mYv2LdJ86MQpOjEKCA.01.120abc9xq",
    "google": "ya29.a0AfH6SMBx7kQ9zR2mVtLw4NpYc8HdJf3GsTeUqXbKoiZ1",
    "opaque-32-bytes": "Zr8kQ2mXv5TnYc7HdJf3GsLw4NpBqXeUoiZ1aK9tRMw",
    "opaque-16-bytes": MARKED,
    "django-oauth-toolkit": "wXq3bKx9TzR5mYv2LdJ86MQpGC7nHs",
    "auth0": "kB7xQ2mZr9vLw4TnYc8HdJf3GsXeUoiZ",
    "okta": "00Zr8kQ2mXv5TnYc7HdJf3GsLw4NpBqXeUoiZ1aK9t",
    "hydra": "ory_at_Zr8kQ2mXv5TnYc7HdJf3GsLw4NpBqXeUoiZ1aK9tRMw.k9ZrQ71bLxYqHs4tGzv3JOkF0XG5Qx2TlKWIAmBcDeF",
    "rest-framework": "9944b09199c62bcf9418ad846dd0e4bbdfc6ee4b",
    "identity-server": "7C5A2D9E41F07AB386D19C4E75A2B860F3D7419CE05B8A62F1C0D3E4F5A6B7C8-1",
    "base64": OWN["base64"],
    "slack": "xoxb-123456789012-1234567890123-kB7xQ2mZr9vLw4TnYc8HdJf3",
    "npm": "npm_kB7xQ2mZr9vLw4TnYc8HdJf3GsXeUoiZ1aK9",
    "openai": "sk-proj-kB7xQ2mZr9vLw4TnYc8HdJf3GsXeUoiZ1aK9tRMwGC7nWq3b",
    "one-case": "4f7xq2mzr9vlw4tnyc8hdjf3gsxeuoiz1ak9",
    "base32": "GC7NWQ3BKX2TZR5MYV2LDJ66MQPHSXEU",
    "paseto": "v4.public.eyJzdWIiOiJhbGljZSJ9Zr8kQ2mXv5TnYc7HdJf3GsLw4NpBqXeUoiZ1aK9tRMw",
    "jwt": OWN["jwt"],
    "jwt-of-another-key": FOREIGN_JWT,
    "jwe": _segment({"alg": "dir", "enc": "A256GCM"}) + "..48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALv.XFBoMY",
    "itsdangerous": "eyJpZCI6NDJ9.ZwXYZQ.8K2vTnYc7HdJf3GsLw4NpBqXeUo",
    "django-signed": "eyJpZCI6NDJ9.1tKxYz.Zr8kQ2mXv5TnYc7HdJf3GsLw4NpBqXeUoiZ1aK9tRMw",
}

READABLE = {
    "service": "checkout-service",
    "services": "checkout-service-payments-worker",
    "instrument": "http.server.request.duration",
    "scope": "opentelemetry.instrumentation.asgi",
    "route": "/payments/list/by/customer",
    "route-with-numbers": "/api/v2/users/1234567890123/orders/42",
    "route-with-date": "/payments/2026-11-26/settled",
    "route-with-uuid": "/users/550e8400-e29b-41d4-a716-446655440000/profile",
    "route-with-ulid": "/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV/items",
    "uuid": "550e8400-e29b-41d4-a716-446655440000",
    "uuid-upper": "550E8400-E29B-41D4-A716-446655440000",
    "uuid-bare": "550e8400e29b41d4a716446655440000",
    "two-uuids": "550e8400-e29b-41d4-a716-446655440000.9f1c2d3e-4b5a-6978-8796-a5b4c3d2e1f0",
    "trace-id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "amazon-trace": "1-67891233-abcdef012345678912345678",
    "object-id": "/files/507f1f77bcf86cd799439011",
    "digest-cut": "sha256-1a2b3c4d5e6f7890",
    "address": "203.0.113.77",
    "address-and-port": "203.0.113.77.51034-203.0.113.78",
    "number": "123456789012345678901234567890123456789012345",
    "account": "DE89370400440532013000-0001",
    "order": "ORDER2026112612345678",
    "timestamp": "20261126T083000.123456Z",
    "date-and-time": "2026-11-26T08-30-00.000Z",
    "version": "2026.11.0-rc.4+build.1234",
    "git-describe": "v1.2.3-45-gabcdef012-dirty",
    "platform": "manylinux_2_17_x86_64.manylinux2014_x86_64",
    "host-aws": "ip-10-2-3-4.eu-west-1.compute.internal",
    "instance-aws": "i-0abcd1234ef567890.eu-west-1",
    "host-kubernetes": "postgres-primary-0.postgres.default.svc.cluster.local",
    "pod": "checkout-7d9f8b6c5-x2x9q",
    "node-google": "gke-cluster-1-default-pool-1a2b3c4d-x5yz",
    "node-azure": "aks-agentpool-12345678-vmss00000a",
    "stack-aws": "/aws/lambda/prod-OrderStack-ProcessorFunction-1A2B3C4D5E6F",
    "function": "com.example.OrderServiceImpl/getUserByEmailAddress",
    "grpc": "/package.subpackage.v1beta1.UserManagementService/GetUserByEmailAddress",
    "camel": "getUserAccountSettingsByOrganizationId",
    "acronyms": "AsyncHTTPClient/SimpleAsyncHTTPClient.getURL",
    "names-with-digits": "com.example.auth.parseOAuth2Token.IPv4Address",
    "constant": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "model": "gpt-4o-mini-2024-07-18",
    "model-anthropic": "us.anthropic.claude-3-7-sonnet-20250219-v1",
    "model-open": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "asset": "/static/js/main.8f3a9b2c.chunk.js",
    "repository": "/repos/open-telemetry/opentelemetry-python/pulls/5614",
    "jwt-of-words": "eyJhbGciOiJub25lIn0.checkout-service.http.server.duration",
    "jwt-beginning-and-words": "eyJcheckout-service/payments.list",
    "jwt-of-nothing": "eyJhbGciOiJub25lIn0.e30.payments",
    "short": "k9_Zr-71bLxYqHs4",
    "empty": "",
}


@pytest.mark.parametrize("token", CREDENTIALS.values(), ids=CREDENTIALS)
def test_tokens_of_real_servers_look_like_credentials(token: str) -> None:
    """Tokens with prefixes, several segments, a single case, or hexadecimal digits look like credentials."""
    assert looks_like_credential(token)


@pytest.mark.parametrize("token", READABLE.values(), ids=READABLE)
def test_readable_text_does_not_look_like_a_credential(token: str) -> None:
    """Names, paths, hosts, versions, dates, and identifiers do not look like credentials, even when a caller
    combines them.
    """
    assert not looks_like_credential(token)


@pytest.mark.parametrize(
    "parts", [("service", "pod", "uuid"), ("model", "trace-id", "function"), ("host-aws", "timestamp")]
)
def test_joined_readable_texts_do_not_look_like_a_credential(parts: tuple[str, ...]) -> None:
    """Readable texts do not look like a credential, no matter how many are joined."""
    for separator in ".-_~+/":
        assert not looks_like_credential(separator.join(READABLE[part] for part in parts))


@given(st.uuids(), st.lists(st.sampled_from(["checkout", "v2", "orders", "eu-west-1", "2026-11-26"]), max_size=8))
def test_no_uuid_among_words_looks_like_a_credential(value: uuid.UUID, words: list[str]) -> None:
    """UUIDs, which identify requests, users, and sessions, do not look like credentials."""
    assert not looks_like_credential("/".join([*words, str(value)]))
    assert not looks_like_credential(".".join([value.hex, *words]))


# A token that is mistaken for words is masked only in its own request, so such mistakes must be rare. The measured
# rate is 0.02 to 1 percent.
SHAPES: dict[str, Callable[[], str]] = {
    "base64url-32-bytes": lambda: secrets.token_urlsafe(32),
    "base64url-16-bytes": lambda: secrets.token_urlsafe(16),
    "letters-and-digits-30": lambda: _random(30),
    "github": lambda: "ghp_" + _random(36),
    "hex-20-bytes": lambda: secrets.token_hex(20),
    "one-case-36": lambda: _random(36, string.ascii_lowercase + string.digits),
    "base32-32": lambda: _random(32, string.ascii_uppercase + "234567"),
    "jwt": lambda: f"{_segment({'alg': 'RS256'})}.{_segment({'sub': _random(8)})}.{secrets.token_urlsafe(64)}",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_few_random_tokens_are_taken_for_words(shape: str) -> None:
    """At most 50 of 1,000 random tokens are mistaken for words."""
    missed = sum(not looks_like_credential(SHAPES[shape]()) for _ in range(1000))

    assert missed <= 50


def test_a_long_token_of_words_is_not_read_to_its_end() -> None:
    """Reading a long token of words stops early, because the caller chooses the length and every request pays the
    cost.
    """
    words = "checkout." * 2000

    assert not is_random(words + MARKED)
    assert is_random(MARKED + words)


SECRETS_UNDER_WEAK_NAMES = [
    "SplxlOBeZQQYbYS6WxSbIA",
    "4/0AX4XfWh-kq3Zt9vX0aPl7",
    "Token kq3Zt9vX0aPl7",
    " kq3Zt9vX0aPl7 ",
]
VALUES_UNDER_WEAK_NAMES = [
    "print(sum(range(100)))",
    "import os\nresult = compute2\nprint3",
    "response.time < 1000 ms",
    "0x80070005",
    "0xC0000135DEADBEEF0000",
    "PAYMENT_INTENT_3DS2_AUTHENTICATION_REQUIRED_V2",
    "https://pay.example/qr/8f3a9b2c7d",
    "{{ secrets.API_TOKEN_2 }}",
    "${CI_JOB_TOKEN_2}",
    "The 3rd assertion failed after 20 ms",
]


@pytest.mark.parametrize("value", SECRETS_UNDER_WEAK_NAMES)
def test_a_credential_under_a_weak_name_is_masked(value: str) -> None:
    """A single word under a weak name is masked, with or without a scheme before it."""
    assert looks_secret(value)


@pytest.mark.parametrize("value", VALUES_UNDER_WEAK_NAMES)
def test_what_cannot_be_a_credential_stays_under_a_weak_name(value: str) -> None:
    """Programs, sentences, error codes, addresses, and placeholders under a weak name remain unchanged."""
    assert not looks_secret(value)
    for name in ("code", "token", "assertion"):
        text = json.dumps({name: value})
        assert BUILT_IN_RULES.intervals_in(text) == []
        assert BUILT_IN_RULES.intervals_in(repr({name: value})) == []


@pytest.mark.parametrize("padding", ["=", "==", "%3D", "%3d%3D"])
def test_a_jwt_with_padded_segments_is_found_whole(padding: str) -> None:
    """A JWT with padded segments and any first claim, as an AWS load balancer writes it, is masked completely."""
    segments = [_segment({"typ": "JWT", "alg": "ES256"}), _segment({"email": "zofie@example.com"}), _random(86)]
    token = ".".join(segment + padding for segment in segments)

    assert BUILT_IN_RULES.intervals_in(f"a {token} b") == [(2, 2 + len(token))]


@pytest.mark.parametrize(
    "name", ["api_token", "session_token", "SessionToken", "X-Amz-Security-Token", "private_token", "PRIVATE-TOKEN"]
)
def test_names_of_cloud_providers_and_forges_are_known_in_texts(name: str) -> None:
    """The credential names of cloud providers and forges are recognized in URLs and in JSON."""
    for before, after in ((f"/x?{name}=", "&b=1"), (f'{{"{name}": "', '"}')):
        assert BUILT_IN_RULES.intervals_in(f"{before}plainsecret{after}") == [(len(before), len(before) + 11)]


@pytest.mark.parametrize(
    "value",
    [
        "0XkQ2mXv5TnYc7HdJf3GsLw4Np",
        "https://user:kq3Zt9vX0aPl71bLxYqHs4@h",
        "SharedAccessSignature sr=a&sig=kq3Zt9vX0aPl71",
        "KQ3ZT9VX0APL_7B2LXYQH4TGZ",
    ],
)
def test_a_credential_that_begins_like_something_else_is_masked(value: str) -> None:
    """A random token that begins with 0x and a URL that contains a credential are masked."""
    assert looks_secret(value)


def test_a_value_whose_closing_quote_was_cut_off_is_masked() -> None:
    """A credential whose closing quote was cut off is masked, even if text follows it."""
    text = '{"token": "kq3Zt9vX0aPl7 and more'

    assert BUILT_IN_RULES.intervals_in(text) == [(11, 24)]


def test_the_padding_of_a_short_jwt_does_not_hide_it() -> None:
    """A short JWT with padded segments is masked, even in a URL."""
    for padding in ("=", "%3D"):
        text = _segment({"sub": "ab"}) + padding
        assert BUILT_IN_RULES.intervals_in(text) == [(0, len(text))]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\n    ", "\n\t", "\\n", "\\r\\n", "\\\\n  ", " "], ids=repr)
@pytest.mark.parametrize("width", [20, 40, 60, 64, 76, 80])
def test_an_unknown_jwt_that_is_wrapped_into_lines_is_found(width: int, separator: str) -> None:
    """An unknown JWT that is wrapped into lines is masked, except for at most a short last line."""
    for _ in range(20):
        head, claims = _segment({"alg": "RS256", "kid": _random(8)}), _segment({"email": _random(12), "sub": "a"})
        token = f"{head}.{claims}.{secrets.token_urlsafe(64)}"
        lines = [token[at : at + width] for at in range(0, len(token), width)]
        text = f"sent {separator.join(lines)}{separator}to billing-service"

        ((start, end),) = jwts_in(text)

        assert text[:start] == "sent "
        assert len(text[end:].removesuffix(f"{separator}to billing-service").replace(separator, "")) < 12
        assert text[end:].endswith("to billing-service")


@pytest.mark.parametrize(
    "header", ['{ "alg":"RS256"}', '{\n "alg":"RS256"}', '{\r\n  "typ":"JWT"}', '{\n"alg":"RS256"}'], ids=repr
)
def test_an_unknown_jwt_whose_header_has_white_space_is_found(header: str) -> None:
    """A JWT is masked if its header contains white space, which some serializers write."""
    head = base64.urlsafe_b64encode(header.encode()).decode().rstrip("=")
    token = f"{head}.{_segment({'sub': 'alice'})}.{_random(40)}"

    assert jwts_in(f"token {token}!") == [(6, 6 + len(token))]
    assert jwts_in(f"token {head}!") == [(6, 6 + len(head))]


@pytest.mark.parametrize(
    "after",
    [
        "\nTraceback (most recent call last):",
        "\n  File main.py",
        "\nbilling-service",
        "\ncom.example.auth.TokenService",
        "\nERROR",
        " expired",
        " 2026-11-27T08:30:00Z",
        " kq3Zt9vX0aPl71bLxYqHs4",
    ],
)
def test_what_follows_a_complete_jwt_stays(after: str) -> None:
    """Text that follows a complete JWT remains unchanged."""
    assert jwts_in(f"{FOREIGN_JWT}{after}") == [(0, len(FOREIGN_JWT))]


def test_a_jwe_is_found_whole() -> None:
    """A JWE is masked completely, whether or not one of its five segments is empty."""
    token = f"{_segment({'alg': 'dir', 'enc': 'A256GCM'})}..{_random(16)}.{_random(50)}.{_random(22)}"

    assert jwts_in(token) == [(0, len(token))]
    assert jwts_in(f"{token[:60]}\n{token[60:]}") == [(0, len(token) + 1)]


@pytest.mark.parametrize("text", ["framework network newest", "eyAikido", "ewogs.and.more", "a renewogram", "ew0KINDA"])
def test_words_are_no_jwts(text: str) -> None:
    """Words that begin like a JWT are not masked."""
    assert jwts_in(text) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"Authorization: Bearer {MARKED}, retrying", MARKED),
        (f"authorization%3A%20Bearer%20{MARKED}&page=2", MARKED),
        (f"{{'Authorization': 'Bearer {MARKED}'}}", MARKED),
        ('{"authorization": "Bearer a1-b2"}', "a1-b2"),
        ("Bearer swordfish-swordfish", "swordfish-swordfish"),
        ("sent Bearer pass-2word to billing", "pass-2word"),
    ],
)
def test_the_credentials_after_bearer_are_found(text: str, value: str) -> None:
    """The word after `Bearer` is found if it looks like a credential, or if it is the rest of a quoted value."""
    ((start, end),) = bearers_in(text, ascii_lower(text))

    assert text[start:end] == value


@pytest.mark.parametrize(
    "text",
    [
        "the bearer of news arrived",
        "Bearer token",
        'Bearer realm="api", error="invalid_token"',
        "supports Bearer authentication/authorization headers",
        "Bearer oauth2.0 flow",
        "bearer --------------------------",
        '"Bearer " + "kq3Zt9vX0aPl71"',
        '{"token_type": "Bearer", "refresh_token_expires_in": 86400}',
        f"forebearer {MARKED}",
    ],
)
def test_a_word_after_bearer_that_is_no_credential_stays(text: str) -> None:
    """Sentences, challenges, and code that contain `Bearer` contain no credentials."""
    assert bearers_in(text, ascii_lower(text)) == []


@pytest.mark.parametrize("word", ["kqztvxpl", "QrstBcdfg", "xKqZtVxPl"])
def test_a_run_of_letters_without_words_is_unpronounceable(word: str) -> None:
    """More than half of an unpronounceable run of letters consists of parts that are not words."""
    assert is_unpronounceable(word)


@pytest.mark.parametrize("word", ["", "sql", "XYZ", "password", "getUserAccount", "parseHTTPHeader"])
def test_words_and_abbreviations_are_pronounceable(word: str) -> None:
    """Words, words in camel case, and abbreviations of up to three letters are pronounceable."""
    assert not is_unpronounceable(word)
