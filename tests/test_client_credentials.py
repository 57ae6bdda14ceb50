"""The service's own credential is sent as configured and is not exposed."""

from __future__ import annotations

import base64
import functools
import pickle
import ssl
from pathlib import Path
from typing import Any

import jwt
import pytest

from otel_token_relay import credential_files, current_token, use_token
from otel_token_relay.client_credentials import (
    Authentication,
    ClientCertificate,
    ClientCredential,
    CredentialUnavailable,
    Secret,
    make_credential,
)
from otel_token_relay.errors import ConfigurationError
from tests.support.client_authentication import replace_file, write_certificate
from tests.support.tokens import private_key

# A secret like those that Keycloak generates, and a client ID whose colon RFC 6749 requires to be encoded.
SECRET = "#NdhMw3!?:R+7_8{E/s="
CLIENT = "orders:prod"
ENDPOINT = "https://idp.example/token"


def decoded(header: str | None) -> str:
    assert header is not None
    scheme, _, value = header.partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(value).decode()


def test_each_method_sends_the_secret_as_its_specification_says() -> None:
    """Basic credentials are form-encoded (RFC 6749, section 2.3.1), except with the method for servers that do not
    decode them.
    """
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
    """The error about an incomplete credential contains the setting's name but not the secret."""
    with pytest.raises(ConfigurationError) as rejected:
        make(**changes)

    assert rejected.value.setting == setting
    assert SECRET not in str(rejected.value)


def test_a_credential_is_optional_as_a_whole() -> None:
    """A credential is optional, but an incomplete one is an error."""
    assert make_credential(None, None) is None
    assert make_credential(CLIENT, SECRET) == make()
    for half in ((CLIENT, None), (None, SECRET)):
        with pytest.raises(ConfigurationError, match="client_secret"):
            make_credential(*half)
    with pytest.raises(ConfigurationError, match="client_secret"):
        make_credential(None, None, "/run/secrets/a")


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """A file is read again when it changes, because secrets are rotated by replacing the file."""
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
    with pytest.raises(CredentialUnavailable, match="is not valid UTF-8"):
        credential.authenticate(None, ENDPOINT)
    file.write_bytes(b"a" * 100_000)
    with pytest.raises(CredentialUnavailable, match="too large"):
        credential.authenticate(None, ENDPOINT)


@pytest.mark.parametrize(
    ("parts", "method"),
    [
        (["secret"], "client_secret_basic"),
        (["secret_file"], "client_secret_basic"),
        (["key_file"], "private_key_jwt"),
        (["key_file", "key_id"], "private_key_jwt"),
        (["assertion"], None),
        (["assertion_file"], None),
        (["cert_file"], "tls_client_auth"),
    ],
)
def test_the_method_depends_on_the_credential(parts: list[str], method: str | None) -> None:
    """The authentication method depends on the credential, so most services do not configure it."""
    assert of(*parts).method == method
    if method is not None:
        assert of(*parts, method=method) == of(*parts)


def of(*parts: str, **others: Any) -> ClientCredential:
    """Return a credential with these parts, or raise an error."""
    values: dict[str, Any] = {name: f"/run/{name}" for name in parts} | others
    if "assertion" in parts:
        values["assertion"] = str
    return ClientCredential(client_id=CLIENT, **values)


@pytest.mark.parametrize(
    ("parts", "method", "setting"),
    [
        pytest.param(["secret", "key_file"], None, "client_secret", id="secret and key"),
        pytest.param(["secret", "cert_file"], None, "client_secret", id="secret and certificate"),
        pytest.param(["key_file", "assertion_file"], None, "client_key_file", id="key and assertion"),
        pytest.param(["assertion", "assertion_file"], None, "client_assertion", id="two assertions"),
        pytest.param(["assertion_file", "cert_file"], None, "client_assertion_file", id="assertion and certificate"),
        pytest.param(["key_id"], None, "client_secret", id="only the name of a key"),
        pytest.param(["key_file", "cert_file"], None, "client_auth", id="key and certificate need a method"),
        pytest.param(["key_file", "cert_file"], "private_key_jwt", "client_auth", id="a certificate without use"),
        pytest.param(["key_file"], "client_secret_post", "client_auth", id="key as a secret"),
        pytest.param(["key_file"], "tls_client_auth", "client_auth", id="key without its certificate"),
        pytest.param(["cert_file"], "private_key_jwt_rfc7523", "client_auth", id="certificate without its key"),
        pytest.param(["secret"], "private_key_jwt", "client_auth", id="secret as a key"),
        pytest.param(["assertion_file"], "private_key_jwt", "client_auth", id="assertion that is not signed here"),
        pytest.param(["secret", "key_id"], None, "client_key_id", id="name of a key without a key"),
        pytest.param(["key_file", "cert_file", "key_id"], "tls_client_auth", "client_key_id", id="TLS has no kid"),
    ],
)
def test_parts_that_contradict_each_other_are_an_error(parts: list[str], method: Any, setting: str) -> None:
    """Contradictory parts raise an error at startup that contains a setting's name."""
    with pytest.raises(ConfigurationError) as rejected:
        of(*parts, method=method)
    assert rejected.value.setting == setting
    assert f"/run/{parts[0]}" not in str(rejected.value)

    values: dict[str, Any] = {name: f"/run/{name}" for name in parts} | {"method": method}
    if "key_id" not in parts:
        with pytest.raises(ConfigurationError, match="expected both client_id and client_"):
            make_credential(None, **values | ({"assertion": str} if "assertion" in parts else {}))


async def coroutine() -> str:
    return SECRET


@pytest.mark.parametrize("source", [coroutine, b"bytes", 1, Secret])
def test_a_source_that_is_not_a_plain_callable_is_an_error(source: Any) -> None:
    """A source that is not a plain callable, such as a coroutine function, is an error."""
    if source is Secret:
        source = Secret(SECRET)
        with pytest.raises(ConfigurationError, match="client_assertion"):
            ClientCredential(client_id=CLIENT, assertion=source)
        return
    for name in ("secret", "assertion"):
        with pytest.raises(ConfigurationError, match=f"client_{name}: expected a synchronous callable"):
            ClientCredential(client_id=CLIENT, **{name: source})


def test_a_callable_is_not_shown() -> None:
    """The `repr` of a credential does not include its callable, whose own `repr` can contain a secret."""
    source = functools.partial(str, SECRET)
    for credential in (ClientCredential(client_id=CLIENT, secret=source), of(assertion=source)):
        assert SECRET not in repr(credential)
    assert SECRET not in repr(of(secret=SECRET))
    assert SECRET not in repr(of(secret=SECRET, method="client_secret_post").authenticate(None, ENDPOINT))


def test_a_callable_does_not_see_the_token_of_the_caller() -> None:
    """A callable does not see the caller's token, even if instrumentation copied the context into the worker thread."""
    seen: list[object] = []

    def secret() -> str:
        seen.append(current_token())
        return SECRET

    with use_token("the-callers-own-token"):
        make(secret=secret).authenticate(None, ENDPOINT)

    assert seen == [None]


def test_a_removed_secret_is_forgotten(tmp_path: Path) -> None:
    """The content of a secret file is forgotten when the file is removed."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    credential = make(secret=None, secret_file=str(file))
    credential.authenticate(None, ENDPOINT)
    assert any(SECRET in content for _, content in credential_files._contents.values())
    file.unlink()
    with pytest.raises(CredentialUnavailable) as failed:
        credential.authenticate(None, ENDPOINT)

    assert not any(content == SECRET for _, content in credential_files._contents.values())
    assert failed.value.__context__ is None


def test_a_secret_shows_only_that_it_is_set() -> None:
    """The `repr` of a secret or a credential does not contain the secret, which can still be pickled for another
    process.
    """
    secret = Secret(SECRET)

    for text in (repr(secret), str(secret), f"{secret}", "%s" % secret, repr(make()), str(make())):  # noqa: UP031
        assert SECRET not in text
    assert pickle.loads(pickle.dumps(secret)) == secret
    assert secret != Secret("another")
    assert secret != SECRET
    assert hash(secret) == hash(Secret(SECRET))


@pytest.mark.parametrize(
    ("method", "audience"), [("private_key_jwt", "https://idp.example"), ("private_key_jwt_rfc7523", ENDPOINT)]
)
def test_an_assertion_is_signed_for_the_audience_of_its_method(tmp_path: Path, method: str, audience: str) -> None:
    """The form contains a client assertion (RFC 7523, section 2.2), whose audience is the issuer or the endpoint."""
    certificate, key = write_certificate(tmp_path)
    parts = {"cert_file": str(certificate)} if method == "private_key_jwt_rfc7523" else {}
    credential = make(secret=None, key_file=str(key), method=method, **parts)
    found = credential.authenticate("https://idp.example", ENDPOINT)

    form = dict(found.form)
    claims = jwt.decode(
        form["client_assertion"], private_key("ES256", "client-1").public_key(), ["ES256"], audience=audience
    )
    assert (claims["iss"], claims["sub"], form["client_id"]) == (CLIENT, CLIENT, CLIENT)
    assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    assert ("x5t#S256" in jwt.get_unverified_header(form["client_assertion"])) == bool(parts)
    assert found.authorization is None
    assert form["client_assertion"] not in repr(found)


def test_a_signature_requires_the_issuer_and_the_key_of_the_certificate(tmp_path: Path) -> None:
    """An assertion is not signed without an audience, or with a key that does not match the certificate."""
    (certificate, _), (_, other_key) = write_certificate(tmp_path), write_certificate(tmp_path, 2)
    with pytest.raises(CredentialUnavailable, match="requires an issuer"):
        make(secret=None, key_file=str(other_key), method="private_key_jwt").authenticate(None, ENDPOINT)
    mixed = make(secret=None, key_file=str(other_key), cert_file=str(certificate), method="private_key_jwt_rfc7523")
    with pytest.raises(CredentialUnavailable, match="do not match"):
        mixed.authenticate(None, ENDPOINT)


def test_an_assertion_of_the_platform_is_sent_unchanged(tmp_path: Path) -> None:
    """An assertion from a file or a callable is sent unchanged (RFC 7521, section 4.2) if it has a token's syntax."""
    file = tmp_path / "projected"
    file.write_text("header.claims.signature\n")
    for credential in (
        make(secret=None, assertion_file=str(file)),
        make(secret=None, assertion=lambda: "header.claims.signature"),
    ):
        form = dict(credential.authenticate(None, ENDPOINT).form)
        assert form["client_assertion"] == "header.claims.signature"

    file.write_text("two words")
    with pytest.raises(CredentialUnavailable, match="contains no token"):
        make(secret=None, assertion_file=str(file)).authenticate(None, ENDPOINT)
    with pytest.raises(CredentialUnavailable, match="did not return a usable string"):
        make(secret=None, assertion=lambda: "two words").authenticate(None, ENDPOINT)


def test_a_certificate_is_loaded_before_it_is_presented(tmp_path: Path) -> None:
    """The files must contain a certificate and its own key, and a new version of a file is a different certificate."""
    (certificate, key), (_, other_key) = write_certificate(tmp_path), write_certificate(tmp_path, 2)
    credential = make(secret=None, cert_file=str(certificate), key_file=str(key), method="tls_client_auth")
    found = credential.authenticate(None, ENDPOINT)

    assert found.form == (("client_id", CLIENT),)
    assert found.certificate == ClientCertificate.read(str(certificate), str(key))
    found.certificate.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    replace_file(key, other_key.read_bytes())
    assert found.certificate != ClientCertificate.read(str(certificate), str(key))
    with pytest.raises(CredentialUnavailable, match="do not match"):
        credential.authenticate(None, ENDPOINT)
    key.unlink()
    with pytest.raises(CredentialUnavailable, match="client_key_file"):
        credential.authenticate(None, ENDPOINT)


@pytest.mark.parametrize(
    ("method", "issuer", "endpoint", "problem"),
    [
        ("private_key_jwt", "https://idp.example", ENDPOINT, None),
        ("private_key_jwt", None, ENDPOINT, "exactly one issuer"),
        ("private_key_jwt", "https://idp.example/{tid}/v2.0", ENDPOINT, "exactly one issuer"),
        ("tls_client_auth", None, ENDPOINT.upper(), None),
        ("tls_client_auth", None, "http://idp.example/token", "requires an https endpoint"),
    ],
)
def test_a_method_must_suit_the_issuer_and_the_endpoint(
    method: Any, issuer: str | None, endpoint: str, problem: str | None
) -> None:
    """Signing requires one issuer as the audience, and a TLS client certificate requires https."""
    files = {"key_file": "key.pem"} | ({"cert_file": "cert.pem"} if method == "tls_client_auth" else {})
    credential = make(secret=None, method=method, **files)
    if problem is None:
        credential.check_use(issuer, endpoint)
        return
    with pytest.raises(ConfigurationError, match=problem):
        credential.check_use(issuer, endpoint)
