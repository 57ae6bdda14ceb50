"""Placeholders for secrets remain unchanged, and no generated secret is mistaken for a placeholder."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest

from otel_token_relay.redaction.scrubber import MASK, Scrubber
from otel_token_relay.redaction.stand_ins import end_of_call, is_call_without_secret, is_description, is_stand_in
from otel_token_relay.redaction.token_search import NOTHING

SCRUBBER = Scrubber()
SECRET = "kq3Zt9vX0aPl71bLxYqHs4"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "none",
        "***",
        "{token}",
        "{{ .Values.token }}",
        "${{ secrets.API_KEY }}",
        "${TOKEN}",
        "<your-access-token>",
        "%(password)s",
        "%CLIENT_SECRET%",
        "[FILTERED]",
        "YOUR_API_KEY",
        "./password.txt",
        "~/.netrc",
        "urn:ietf:params:oauth:grant-type:device_code",
        "must be at least 8 characters",
        "This field is required.",
    ],
)
def test_stand_ins(value: str) -> None:
    """Placeholders remain unchanged in text and as the value of a key, also in a list."""
    assert is_stand_in(value)
    for clean in ({"password": value}, {"password": [value]}, json.dumps({"password": value})):
        assert SCRUBBER.redact(clean, NOTHING) is clean


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        "hunter2",
        "plainsecret",
        f"{{{SECRET}}}",
        f"<{SECRET}>",
        "<hunter2>",
        f"./{SECRET}",
        "correct horse battery",
        "the password is hunter",
        "must be hunter2 characters",
        "must.be.short",
        "YOUR_SECRET_hunter2",
        f"urn:ietf:params:oauth:request_uri:{SECRET}",
        "my-secret-password",
        "too short " * 40,
        "token secret",
    ],
)
def test_secrets_that_resemble_them_are_masked(value: str) -> None:
    """A secret that resembles a placeholder is masked if one part does not match."""
    assert not is_stand_in(value)
    for secret in ({"password": value}, {"password": [value]}, json.dumps({"password": value})):
        assert value not in str(SCRUBBER.redact(secret, NOTHING))


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "minLength": 8},
        {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        {"$ref": "#/components/schemas/Token"},
        {"type": "array", "items": {"type": "string"}},
        {"code": "too_short", "minimum": 8},
        {"message": "This field is required."},
    ],
)
def test_schemas_and_errors(value: dict[str, Any]) -> None:
    """Schemas and error messages that describe a secret remain unchanged."""
    assert is_description(value)
    clean = {"properties": {"password": value}}
    assert SCRUBBER.redact(clean, NOTHING) is clean


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"value": "x"},
        {"type": "string", "default": "hunter2"},
        {"type": "string", "const": "hunter2"},
        {"type": "bearer", "code": "abc"},
        {"scheme": "Basic", "params": "abc"},
        {"message": "hunter2"},
        {"type": "string", "title": SECRET},
        {"$ref": SECRET},
        {"$ref": f"#/{SECRET}"},
        {"anyOf": ["hunter2"]},
        {"type": ["string", SECRET]},
        {"type": "string", "items": "hunter2"},
        {"name": "hunter2"},
        {1: "hunter2"},
    ],
)
def test_mappings_that_contain_a_value_are_masked(value: dict[Any, Any]) -> None:
    """A mapping that contains an actual value under a secret name is masked as a whole."""
    assert not is_description(value)
    assert SCRUBBER.redact({"password": value}, NOTHING) == {"password": MASK}


def test_configured_names_have_no_stand_ins() -> None:
    """Every value under a configured name is masked, even a placeholder."""
    assert Scrubber(["password"]).redact({"password": "none"}, NOTHING) == {"password": MASK}


@pytest.mark.parametrize("call", ['crypt("%s", gen_salt("bf"))', "SecretStr('%s')", "encode(b'%s')", "config['%s']"])
def test_a_secret_within_a_call_is_masked(call: str) -> None:
    """A secret within a function call is masked, unless all of the call's arguments are names."""
    text = f"UPDATE u SET password={call}".replace("%s", SECRET)

    assert SECRET not in SCRUBBER.redact(text, NOTHING)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("crypt", f'("{SECRET}", gen_salt("bf"))'),
        ("os.getenv", '("API_KEY")'),
        ("config", "['API_KEY']"),
        ("self.refresh_token", "()"),
    ],
)
def test_the_end_of_a_call_is_found(name: str, call: str) -> None:
    """A call ends with the bracket that closes its arguments, and a subscript ends with its own bracket."""
    text = f"password={name}{call}, timeout=5"

    assert end_of_call(text, 9, 9 + len(name)) == 9 + len(name + call)


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("crypt", ", timeout=(5)"),
        ("crypt", "(never closed"),
        ("crypt", "(x)y"),
        ("kqztvxpl", "(x)"),
        ("s3cret", "(x)"),
        ("config", "[0]"),
    ],
)
def test_text_that_is_no_call_has_no_end(name: str, after: str) -> None:
    """A name without complete brackets, and a secret that precedes brackets, are not a call."""
    assert end_of_call(f"password={name}{after}", 9, 9 + len(name)) is None


@pytest.mark.parametrize(
    "call",
    [
        'os.getenv("API_KEY")',
        "headers['Api-Key']",
        "headers['X-Token']",
        "get('X-API-Key', 'X-XSRF-TOKEN')",
        "f(token)",
        "get('', \"{token}\")",
    ],
)
def test_a_call_with_names_contains_no_secret(call: str) -> None:
    """The names of variables, environment variables, and headers, and placeholders, are not secrets."""
    assert is_call_without_secret(call)


@pytest.mark.parametrize("literal", [f"'{SECRET}'", '"hunter2"', '"API_KEY", "hunter2"'])
def test_a_call_with_a_literal_contains_a_secret(literal: str) -> None:
    """A string literal that is not a name is a secret, also beside a name."""
    assert not is_call_without_secret(f"encode({literal})")


ALPHANUMERIC = string.ascii_letters + string.digits
SYMBOLS = ALPHANUMERIC + "!#$%()*+,-./:;<=>?@[]^_{|}~"
SHAPES = {
    "github": ("ghp_", ALPHANUMERIC, 36),
    "gitlab": ("glpat-", ALPHANUMERIC + "-_", 20),
    "aws": ("", ALPHANUMERIC + "+/", 40),
    "azure": ("", ALPHANUMERIC + "~._-", 40),
    "google": ("AIza", ALPHANUMERIC + "-_", 35),
    "slack": ("xoxb-", ALPHANUMERIC + "-", 40),
    "openai": ("sk-proj-", ALPHANUMERIC + "-_", 48),
    "django": ("", string.ascii_lowercase + string.digits + "!@#$%^&*(-_=+)", 50),
    "password": ("", SYMBOLS, 12),
    "letters": ("", string.ascii_letters, 10),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_no_generated_secret_is_a_stand_in(shape: tuple[str, str, int]) -> None:
    """No secret with the format of providers or password managers is mistaken for a placeholder."""
    prefix, alphabet, size = shape
    generator = random.Random(7)

    for _ in range(3000):
        secret = prefix + "".join(generator.choices(alphabet, k=size))
        assert not is_stand_in(secret), secret
