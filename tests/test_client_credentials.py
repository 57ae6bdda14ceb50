"""This service's own credential: how it is sent, and that it is not shown."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path
from typing import Any

import pytest

from otel_token_relay.client_credentials import (
    Authentication,
    ClientCredential,
    CredentialUnavailable,
    Secret,
    make_credential,
)
from otel_token_relay.errors import ConfigurationError

# A secret of Keycloak's kind, and a client ID with a colon, which RFC 6749 requires to be encoded.
SECRET = "#NdhMw3!?:R+7_8{E/s="
CLIENT = "orders:prod"
ENDPOINT = "https://idp.example/token"


def decoded(header: str | None) -> str:
    assert header is not None
    scheme, _, value = header.partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(value).decode()


def test_each_method_sends_the_secret_as_its_specification_says() -> None:
    """RFC 6749, section 2.3.1: the parts are form-encoded; some servers do not decode them."""
    encoded = "orders%3Aprod:%23NdhMw3%21%3F%3AR%2B7_8%7BE%2Fs%3D"

    assert decoded(make(method="client_secret_basic").authenticate(None, ENDPOINT).authorization) == encoded
    assert (
        decoded(make(method="client_secret_basic_plain").authenticate(None, ENDPOINT).authorization)
        == f"{CLIENT}:{SECRET}"
    )
    assert make(method="client_secret_post").authenticate(None, ENDPOINT) == Authentication(
        form=(("client_id", CLIENT), ("client_secret", SECRET))
    )


def make(**changes: Any) -> ClientCredential:
    return ClientCredential(**{"client_id": CLIENT, "secret": Secret(SECRET)} | changes)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"client_id": ""}, "client_id"),
        ({"secret": None}, "client_secret"),
        ({"secret_file": "/run/secrets/a"}, "client_secret"),
        ({"method": "none"}, "client_auth"),
    ],
)
def test_a_credential_that_is_not_complete_is_an_error(changes: dict[str, Any], setting: str) -> None:
    """The error names the setting and does not contain the secret."""
    with pytest.raises(ConfigurationError) as rejected:
        make(**changes)

    assert rejected.value.setting == setting
    assert SECRET not in str(rejected.value)


def test_a_credential_is_optional_as_a_whole() -> None:
    """One half is an error."""
    assert make_credential(None, None) is None
    assert make_credential(CLIENT, SECRET) == make()
    for half in ((CLIENT, None), (None, SECRET)):
        with pytest.raises(ConfigurationError, match="client_secret"):
            make_credential(*half)
    with pytest.raises(ConfigurationError, match="client_secret"):
        make_credential(None, None, "/run/secrets/a")


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Secrets are rotated by replacing the file."""
    file = tmp_path / "secret"
    credential = make(secret=None, secret_file=str(file), method="client_secret_post")
    with pytest.raises(CredentialUnavailable, match="cannot be read"):
        credential.authenticate(None, ENDPOINT)
    for secret in ("first", "another one", "third"):
        (tmp_path / "new").write_text(f"{secret}\n")
        (tmp_path / "new").replace(file)
        assert credential.authenticate(None, ENDPOINT).form[1] == ("client_secret", secret)
    file.write_text("\n")
    with pytest.raises(CredentialUnavailable, match="empty"):
        credential.authenticate(None, ENDPOINT)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CredentialUnavailable, match="cannot be read"):
        credential.authenticate(None, ENDPOINT)
    file.write_bytes(b"a" * 100_000)
    with pytest.raises(CredentialUnavailable, match="too large"):
        credential.authenticate(None, ENDPOINT)


def test_a_secret_shows_only_that_it_is_set() -> None:
    """Neither its representation nor that of the credential contains it. Processes can still pass it on."""
    secret = Secret(SECRET)

    for text in (repr(secret), str(secret), f"{secret}", "%s" % secret, repr(make()), str(make())):  # noqa: UP031
        assert SECRET not in text
    assert pickle.loads(pickle.dumps(secret)) == secret
    assert secret != Secret("another")
    assert secret != SECRET
    assert hash(secret) == hash(Secret(SECRET))
