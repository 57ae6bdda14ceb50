"""This service authenticates at a real authorization server, for introspection and for token exchange."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import logging
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding
from jwt.algorithms import get_default_algorithms

from otel_token_relay import current_token, use_token
from otel_token_relay.client_assertions import parse_private_key
from otel_token_relay.client_credentials import ClientCertificate, ClientCredential
from otel_token_relay.errors import ConfigurationError, ExchangeFailed, KeysUnavailable
from otel_token_relay.exchange import TokenExchanger
from otel_token_relay.redaction.scrubber import Scrubber
from otel_token_relay.redaction.token_search import NOTHING
from otel_token_relay.settings import Settings
from otel_token_relay.verification import TokenVerifier, TrustedIssuer, http_client
from otel_token_relay.verification.authenticator import verifier_from
from otel_token_relay.verification.fetch_failures import failure
from otel_token_relay.verification.http_client import FetchFailed, HttpClient
from otel_token_relay.verification.issuer_endpoints import ask_issuers
from tests.support.client_authentication import (
    ASSERTION_TYPE,
    CLIENT,
    Server,
    certify,
    mutual_tls,
    pem_of,
    public_pem_of,
    replace_file,
    serving,
    write_certificate,
)
from tests.support.loopback import Status, certificate, party, proxy
from tests.support.tokens import AUDIENCE, make_token, private_key

BOTH = pytest.mark.parametrize("how", ["introspect", "exchange"])
ALGORITHMS = [("PS256", "PS256"), ("ES256", "ES256"), ("ES384", "ES384"), ("ES512", "ES512"), ("EdDSA", "EdDSA")]

# A token for a Kubernetes service account has this form.
PROJECTED = make_token({"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:shop:orders"})


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(pem_of(private_key("ES256")))
    return path


def jwk_of(key: Any, algorithm: str, **members: Any) -> str:
    return json.dumps(get_default_algorithms()[algorithm].to_jwk(key, as_dict=True) | members)


# Signed assertions


@BOTH
@pytest.mark.parametrize("form", ["pem", "jwk"])
@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
def test_an_assertion_is_signed_for_the_issuer(
    server: Server, tmp_path: Path, how: str, form: str, kind: str, algorithm: str
) -> None:
    """The server accepts an assertion for the issuer that is signed with the key's algorithm
    (draft-ietf-oauth-rfc7523bis).
    """
    key, path = private_key(kind), tmp_path / "key"
    path.write_bytes(pem_of(key) if form == "pem" else jwk_of(key, kind, kid="k-7").encode())
    server.expect(key, algorithm)

    server.use(how, client_key_file=str(path))

    assert server.problems == []
    assert server.headers[0].get("kid") == (None if form == "pem" else "k-7")
    assert "nbf" not in server.claims[0]


@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
def test_the_text_of_a_key_is_its_algorithm(kind: str, algorithm: str) -> None:
    """A debugger or an error report shows it."""
    key = parse_private_key(pem_of(private_key(kind)))

    assert repr(key) == f"SigningKey({algorithm})"


@BOTH
def test_an_assertion_is_used_once(server: Server, key_file: Path, how: str) -> None:
    """Each assertion has a new `jti` claim, because the server rejects a repeated one."""
    server.expect(private_key("ES256"), "ES256")
    for number in range(5):
        server.use(how, number, client_key_file=str(key_file), client_key_id="k-1")

    assert server.problems == []
    assert len({claims["jti"] for claims in server.claims}) == 5
    assert {header["kid"] for header in server.headers} == {"k-1"}


@BOTH
@pytest.mark.parametrize("has_certificate", [True, False])
def test_an_assertion_in_the_older_form_names_the_endpoint_and_the_certificate(
    server: Server, tmp_path: Path, how: str, has_certificate: bool
) -> None:
    """Microsoft Entra requires ``aud`` to be the endpoint, ``typ`` to be JWT, ``nbf``, and ``x5t#S256``."""
    cert_file, key_file = write_certificate(tmp_path, algorithm="PS256")
    key = private_key("PS256", "client-1")
    server.expect(key, "PS256", is_rfc7523=True)
    encoded = certify(key).public_bytes(Encoding.DER)
    cert_file.write_text(
        "Bag Attributes\n" + key_file.read_text() + ssl.DER_cert_to_PEM_cert(encoded) + certificate_of_an_authority()
    )

    server.use(
        how,
        client_key_file=str(key_file),
        client_cert_file=str(cert_file) if has_certificate else None,
        client_auth="private_key_jwt_rfc7523",
    )

    assert server.problems == []
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(encoded).digest()).rstrip(b"=").decode()
    assert server.headers[0].get("x5t#S256") == (thumbprint if has_certificate else None)
    assert server.claims[0]["nbf"] == server.claims[0]["iat"]


def test_entra_gets_the_assertion_beside_that_of_the_user(server: Server, tmp_path: Path) -> None:
    """Entra's on-behalf-of grant sends the caller's token as ``assertion``, in addition to the client's assertion."""
    cert_file, key_file = write_certificate(tmp_path, algorithm="PS256")
    server.expect(private_key("PS256", "client-1"), "PS256", is_rfc7523=True)

    server.exchange(
        "token-1",
        grant="on-behalf-of",
        client_key_file=str(key_file),
        client_cert_file=str(cert_file),
        client_auth="private_key_jwt_rfc7523",
    )

    assert server.problems == []
    assert server.forms[0]["assertion"] == "token-1"
    assert server.forms[0]["requested_token_use"] == "on_behalf_of"
    assert "x5t#S256" in server.headers[0]


def certificate_of_an_authority() -> str:
    return ssl.DER_cert_to_PEM_cert(certify(private_key("ES384"), 99).public_bytes(Encoding.DER))


@BOTH
def test_a_key_is_read_again_when_it_changes(server: Server, key_file: Path, how: str) -> None:
    """A key file is read again when it changes, even if the new key is of a different kind."""
    for number, (kind, algorithm) in enumerate([("ES256", "ES256"), ("PS256", "PS256"), ("EdDSA", "EdDSA")]):
        replace_file(key_file, pem_of(private_key(kind)))
        server.expect(private_key(kind), algorithm)
        server.use(how, number, client_key_file=str(key_file))

    assert server.problems == []
    assert [header["alg"] for header in server.headers] == ["ES256", "PS256", "EdDSA"]


def test_one_verifier_and_one_exchanger_notice_a_new_key(server: Server, key_file: Path) -> None:
    """An existing verifier and an existing exchanger detect a new key."""
    verifier = server.verifier(client_key_file=str(key_file))
    for number, kind in enumerate(["ES256", "ES384"]):
        replace_file(key_file, pem_of(private_key(kind)))
        server.expect(private_key(kind), kind)
        verifier.verify(f"opaque-token-{number}")

    assert server.problems == []


@pytest.mark.parametrize("algorithm", ["RS256", "PS384"])
def test_a_jwk_may_name_another_algorithm_of_its_kind(server: Server, tmp_path: Path, algorithm: str) -> None:
    """A JWK can specify a different algorithm of its kind, because some servers accept only RS256."""
    path = tmp_path / "key.json"
    path.write_text(jwk_of(private_key("PS256"), "PS256", alg=algorithm))
    server.expect(private_key("PS256"), algorithm)

    server.introspect(client_key_file=str(path))

    assert server.problems == []


def changed_jwk(**members: Any) -> bytes:
    return jwk_of(private_key("ES256"), "ES256", **members).encode()


UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"\n", "is empty"),
    "too large": (lambda: b"-----BEGIN PRIVATE KEY-----" + b"A" * 70_000, "is too large"),
    "garbage": (lambda: b"\xff\xfe\x00 Hunter2", "is not a private key in PEM or JWK format"),
    "text": (lambda: b"Hunter2", "is not a private key in PEM or JWK format"),
    "public key": (lambda: public_pem_of(private_key("ES256")), "contains only a public key"),
    "certificate": (
        lambda: Path(certificate()).read_bytes().partition(b"-----END PRIVATE KEY-----\n")[2],
        "not a private key",
    ),
    "encrypted": (lambda: pem_of(private_key("ES256"), b"Hunter2"), "a password-protected private key"),
    "damaged": (lambda: pem_of(private_key("ES256")).replace(b"M", b"N"), "contains a private key that cannot be read"),
    "secp256k1": (lambda: pem_of(private_key("ES256K")), "an unsupported type of key"),
    "Ed448": (lambda: pem_of(ed448.Ed448PrivateKey.generate()), "an unsupported type of key"),
    "X25519": (lambda: pem_of(x25519.X25519PrivateKey.generate()), "an unsupported type of key"),
    "short RSA": (lambda: pem_of(rsa.generate_private_key(65537, 1024)), "an RSA key with fewer than 2048 bits"),
    "P-224": (lambda: pem_of(ec.generate_private_key(ec.SECP224R1())), "an unsupported type of key"),
    "public JWK": (lambda: jwk_of(private_key("ES256").public_key(), "ES256").encode(), "contains only a public key"),
    "symmetric JWK": (lambda: b'{"kty": "oct", "k": "SHVudGVyMg"}', "is not a private key in PEM or"),
    "JWK set": (lambda: b'{"keys": []}', "is not a private key in PEM or JWK format"),
    "JWK for encryption": (lambda: changed_jwk(use="enc"), "not intended for signing"),
    "JWK with another alg": (lambda: changed_jwk(alg="ES384"), "unsupported alg"),
    "JWK with alg none": (lambda: changed_jwk(alg="none"), "unsupported alg"),
    "JWK whose alg is a list": (lambda: changed_jwk(alg=["ES256"]), "unsupported alg"),
    "JWK whose kty is a list": (lambda: changed_jwk(kty=["EC"]), "is not a private key in PEM or"),
    "damaged JWK": (lambda: b'{"kty": "RSA", "d": "Hunter2", "n": "Hunter2", "e": "AQAB"}', "cannot be read"),
    "not JSON": (lambda: b'{"kty": "RSA", "d": "Hunter2"', "is not a private key in PEM or JWK format"),
    "deep JSON": (lambda: b'{"a":' + b"[" * 60_000, "is not a private key in PEM or JWK format"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_without_a_usable_key_is_named(
    server: Server, key_file: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error about a file without a usable key contains the setting and the problem, does not quote the file, and
    prevents the request.
    """
    content, problem = UNUSABLE[name]
    key_file.write_bytes(content())

    with pytest.raises(ExchangeFailed) as failed, caplog.at_level(logging.DEBUG):
        server.exchange(client_key_file=str(key_file))
    with pytest.raises(KeysUnavailable), caplog.at_level(logging.DEBUG):
        server.introspect(client_key_file=str(key_file))

    assert failed.value.error == "invalid_client"
    assert "the file in client_key_file " in str(failed.value)
    assert problem in str(failed.value)
    assert problem in caplog.text
    assert "Hunter2" not in str(failed.value) + caplog.text
    assert server.requests == []


def test_a_file_that_is_missing_or_is_not_a_file_is_named(server: Server, tmp_path: Path) -> None:
    """A missing file is reported, and a device or a directory is not read, because reading might never end."""
    for path, problem in (
        ("/dev/zero", "is not a regular file"),
        (str(tmp_path), "is not a regular file"),
        (str(tmp_path / "missing"), "cannot be read"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(ExchangeFailed, match=f"the file in client_key_file {problem}"):
            server.exchange(client_key_file=path)
    assert server.requests == []


def test_a_key_and_the_certificate_of_another_key_are_not_used(server: Server, tmp_path: Path) -> None:
    """A key with a different key's certificate is rejected, because the server could not verify the signature."""
    (cert_file, _), (_, key_file) = write_certificate(tmp_path, 1), write_certificate(tmp_path, 2, "ES384")
    options = {"client_key_file": str(key_file), "client_auth": "private_key_jwt_rfc7523"}

    with pytest.raises(ExchangeFailed, match="do not match"):
        server.exchange(client_cert_file=str(cert_file), **options)
    for content, problem in (
        (b"Hunter2", "does not contain a certificate"),
        (b"-----BEGIN CERTIFICATE-----\nHunter2\n-----END CERTIFICATE-----", "contains .*cannot be read"),
    ):
        cert_file.write_bytes(content)
        with pytest.raises(ExchangeFailed, match=f"client_cert_file {problem}"):
            server.exchange(client_cert_file=str(cert_file), **options)
    assert server.requests == []


def test_a_missing_package_is_named(server: Server, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error states that the cryptography package, which PyJWT does not install by itself, is missing."""

    def import_module(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ExchangeFailed, match=r"pip install 'otel-token-relay\[verify\]'"):
        server.exchange(client_key_file=str(key_file))


def test_an_assertion_for_an_issuer_requires_one(server: Server, key_file: Path) -> None:
    """An assertion without an issuer raises an error at startup that suggests an alternative."""
    endpoint, options = f"{server.url}/introspect", {"client_id": CLIENT, "client_key_file": str(key_file)}
    entra, client = "https://login.microsoftonline.com/{tid}/v2.0", ClientCredential(client_id=CLIENT, key_file="/key")

    for build in (
        lambda: TokenVerifier((), AUDIENCE, introspection_endpoint=endpoint, **options),
        lambda: TokenVerifier([entra], AUDIENCE, introspection_endpoint=endpoint, **options),
        lambda: TrustedIssuer(issuer=entra, introspection_endpoint=endpoint, client=client),
        lambda: TokenExchanger(token_endpoint=f"{server.url}/token", **options),
    ):
        with pytest.raises(ConfigurationError, match="private_key_jwt_rfc7523") as rejected:
            build()
        assert rejected.value.setting == "client_auth"
    TokenVerifier((), AUDIENCE, introspection_endpoint=endpoint, client_auth="private_key_jwt_rfc7523", **options)


def test_each_issuer_gets_an_assertion_for_itself(tmp_path: Path, key_file: Path) -> None:
    """Each of several issuers gets its own assertion, which cannot be used at a different issuer."""
    with serving() as one, serving() as other:
        trusted = []
        for server in (one, other):
            server.expect(private_key("ES256"), "ES256")
            client = ClientCredential(client_id=CLIENT, key_file=str(key_file))
            endpoint = f"{server.url}/introspect"
            trusted.append(TrustedIssuer(issuer=server.url, introspection_endpoint=endpoint, client=client))
        reports = ask_issuers(trusted, ["ES256"])

        for server, report in zip((one, other), reports, strict=True):
            assert server.problems == []
            assert [claims["aud"] for claims in server.claims] == [server.url]
            assert "401" not in report.endpoints[-1].result


# Assertions that a platform provides


@BOTH
def test_a_projected_token_is_sent_as_it_is(server: Server, tmp_path: Path, how: str) -> None:
    """A projected token is sent unchanged and read again when the platform replaces it."""
    path = tmp_path / "token"
    tokens = [PROJECTED, make_token({"sub": "another"}), "opaque-but-usable"]
    for number, token in enumerate(tokens):
        replace_file(path, f"\n{token}\n")
        server.use(how, number, client_assertion_file=str(path))

    assert [form["client_assertion"] for form in server.forms] == tokens
    assert {(form["client_id"], form["client_assertion_type"]) for form in server.forms} == {(CLIENT, ASSERTION_TYPE)}
    assert {request.authorization for request in server.requests} == {None}


@pytest.mark.parametrize("content", [b"two words Hunter2", b"", b"\xff", b"a" * 70_000, "Hunter2é".encode()])
def test_a_file_without_a_token_is_named(server: Server, tmp_path: Path, content: bytes) -> None:
    """The error about a file without a token does not quote the file, and nothing is sent."""
    path = tmp_path / "token"
    path.write_bytes(content)

    with pytest.raises(ExchangeFailed, match="the file in client_assertion_file") as failed:
        server.exchange(client_assertion_file=str(path))
    assert "Hunter2" not in str(failed.value)
    assert server.requests == []


@BOTH
def test_a_callable_returns_the_assertion_of_each_request(server: Server, how: str) -> None:
    """A callable returns the assertion for each request without access to the caller's token."""
    seen: list[object] = []

    def assertion() -> str:
        seen.append(current_token())
        return f"{PROJECTED}.{len(seen)}"

    with use_token("the-callers-own-token"):
        for number in range(2):
            server.use(how, number, client_assertion=assertion)

    assert [form["client_assertion"] for form in server.forms] == [f"{PROJECTED}.1", f"{PROJECTED}.2"]
    assert seen == [None, None]


def test_a_callable_returns_the_secret_of_each_request(server: Server) -> None:
    """A callable returns the secret for each request, because secret stores rotate secrets."""
    secrets = iter(["first", "second"])
    for number in range(2):
        server.use("exchange", number, client_secret=lambda: next(secrets), client_auth="client_secret_post")

    assert [form["client_secret"] for form in server.forms] == ["first", "second"]


def raises() -> str:
    raise LookupError("no such entry: Hunter2")


@pytest.mark.parametrize("name", ["client_assertion", "client_secret"])
@pytest.mark.parametrize(
    ("source", "problem"),
    [
        pytest.param(raises, "raised LookupError", id="error"),
        pytest.param(lambda: "", "did not return a usable string", id="empty"),
        pytest.param(lambda: b"Hunter2", "did not return a usable string", id="bytes"),
        pytest.param(lambda: "Hunter2\r\nX: y", "did not return a usable string", id="line break"),
        pytest.param(lambda: "Hunter2\ud800", "did not return a usable string", id="surrogate"),
        pytest.param(lambda needed: "Hunter2", "raised TypeError", id="argument"),
    ],
)
def test_a_callable_that_fails_does_not_reveal_a_secret(
    server: Server, name: str, source: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The message of a failing callable, which can contain a secret, does not appear in errors or in the log."""
    with pytest.raises(ExchangeFailed) as failed, caplog.at_level(logging.DEBUG):
        server.exchange(**{name: source})
    with pytest.raises(KeysUnavailable), caplog.at_level(logging.DEBUG):
        server.introspect(**{name: source})

    assert failed.value.error == "invalid_client"
    assert f"the callable in {name} {problem}" in str(failed.value)
    assert "Hunter2" not in str(failed.value) + caplog.text
    assert server.requests == []


# TLS client certificates


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trust the loopback servers' certificate in new clients."""
    monkeypatch.setenv("SSL_CERT_FILE", certificate())
    http_client.shared_client.cache_clear()
    yield
    http_client.shared_client.cache_clear()


@BOTH
@pytest.mark.parametrize("is_one_file", [True, False])
def test_a_certificate_is_presented(trusting: None, tmp_path: Path, how: str, is_one_file: bool) -> None:
    """The client presents its certificate and sends its ID, as the server requires (RFC 8705, section 2.1)."""
    cert_file, key_file = write_certificate(tmp_path, 7)
    with serving(mutual_tls(cert_file)) as server:
        if is_one_file:
            cert_file.write_bytes(key_file.read_bytes() + cert_file.read_bytes())
            server.use(how, client_cert_file=str(cert_file))
        else:
            server.use(
                how,
                client_cert_file=str(cert_file),
                client_key_file=str(key_file),
                client_auth="tls_client_auth",
            )

        (request,) = server.requests
        assert request.peer == 7
        assert request.form["client_id"] == CLIENT
        assert not {"client_assertion", "client_secret"} & request.form.keys()
        assert request.authorization is None


@BOTH
def test_a_server_that_requires_a_certificate_refuses_without_one(trusting: None, tmp_path: Path, how: str) -> None:
    """A server that requires a certificate rejects a client without a trusted one."""
    (cert_file, _), (other_cert, other_key) = write_certificate(tmp_path, 1), write_certificate(tmp_path, 2, "ES384")
    other = {"client_cert_file": str(other_cert), "client_key_file": str(other_key), "client_auth": "tls_client_auth"}
    with serving(mutual_tls(cert_file)) as server:
        for credential in ({"client_secret": "s3cr3t"}, other):
            with pytest.raises((KeysUnavailable, ExchangeFailed)):
                server.use(how, **credential)
        assert server.requests == []


@pytest.mark.parametrize(
    "reason",
    [
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    ],
)
def test_an_alert_about_the_certificate_is_named(reason: str) -> None:
    """A TLS alert about the certificate is reported with OpenSSL's name for the alert."""
    error = ssl.SSLError(1, "[SSL] a text of OpenSSL")
    error.reason = reason

    found = failure(error, is_late=False, is_proxied=False)
    assert str(found) == "the server does not accept the client certificate, or requires one"
    assert found.cause == "tls_failed"


def test_a_certificate_is_presented_to_its_endpoint_only(trusting: None, tmp_path: Path) -> None:
    """Requests for metadata and keys, or with a different credential, present no certificate, even to the same host and
    port.
    """
    cert_file, key_file = write_certificate(tmp_path, 7)
    credential = {
        "client_cert_file": str(cert_file),
        "client_key_file": str(key_file),
        "client_auth": "tls_client_auth",
    }
    with serving(mutual_tls(cert_file, is_required=False)) as server:
        verifier = server.verifier(**credential)
        verifier.verify("opaque-token-1")
        with pytest.raises(KeysUnavailable):
            verifier.verify(make_token({"iss": server.url}))
        server.introspect("opaque-token-2", client_secret="s3cr3t")
        verifier.verify("opaque-token-3")

        peers = [(request.path, request.peer) for request in server.requests]
    assert [peer for path, peer in peers if path == "/introspect"] == [7, None, 7]
    assert {peer for path, peer in peers if path != "/introspect"} == {None}
    assert len(peers) > 3


def test_a_certificate_is_not_presented_to_the_target_of_a_redirect(tmp_path: Path) -> None:
    """A certificate is not presented to a redirect's target, because redirects are not followed."""
    cert_file, key_file = write_certificate(tmp_path, 7)
    client = HttpClient(ca_file=certificate())
    with party(tls=True) as target, serving(mutual_tls(cert_file)) as server:
        target.answers.append(Status(307, (("Location", f"{server.url}/token"),)))
        presented = ClientCertificate.read(str(cert_file), str(key_file))
        assert client.fetch(f"{target.url}/token", timeout=5, form=b"a=b", certificate=presented).status == 307
        assert server.requests == []
    client.close()


def test_a_certificate_is_presented_through_a_proxy_but_not_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate is presented to the host inside a proxy's tunnel, but not to the proxy."""
    cert_file, key_file = write_certificate(tmp_path, 7)
    presented = ClientCertificate.read(str(cert_file), str(key_file))
    client = HttpClient(ca_file=certificate())
    with serving(mutual_tls(cert_file)) as server:
        # Loopback never uses a proxy, so the host has a name that only the proxy can resolve.
        url = f"https://idp.example:{server.url.rpartition(':')[2]}/introspect"
        for tls in (False, True, mutual_tls(cert_file)):
            with proxy(tls=tls) as through:
                through.addresses["idp.example"] = "127.0.0.1"
                monkeypatch.setenv("HTTPS_PROXY", through.url)
                if isinstance(tls, bool):
                    assert client.fetch(url, timeout=5, form=b"token=a", certificate=presented).status == 200
                else:
                    with pytest.raises(FetchFailed):
                        client.fetch(url, timeout=5, form=b"token=a", certificate=presented)
                assert len(through.requests) == isinstance(tls, bool)
                client.close()
        assert [request.peer for request in server.requests] == [7, 7]


def test_a_certificate_is_read_again_when_its_files_change(trusting: None, tmp_path: Path) -> None:
    """A certificate is read again when its files change, and the verifier presents the new one on a new connection."""
    first, second = write_certificate(tmp_path, 1), write_certificate(tmp_path, 2, "ES384")
    cert_file, key_file = tmp_path / "tls.crt", tmp_path / "tls.key"
    with serving(mutual_tls(first[0], second[0])) as server:
        verifier = server.verifier(
            client_cert_file=str(cert_file), client_key_file=str(key_file), client_auth="tls_client_auth"
        )
        for number, (new_cert, new_key) in enumerate([first, second, first]):
            replace_file(cert_file, new_cert.read_bytes())
            replace_file(key_file, new_key.read_bytes())
            for again in range(2):
                verifier.verify(f"opaque-token-{number}-{again}")

        assert [request.peer for request in server.requests] == [1, 1, 2, 2, 1, 1]


def test_files_that_are_not_a_certificate_and_its_key_are_named(trusting: None, tmp_path: Path) -> None:
    """If the files are not a certificate and its key, an error states the problem, no password is asked for, and
    nothing is sent.
    """
    (cert_file, key_file), (_, other_key) = write_certificate(tmp_path, 1), write_certificate(tmp_path, 2, "ES384")
    encrypted, large = tmp_path / "encrypted", tmp_path / "large"
    encrypted.write_bytes(pem_of(private_key("ES256", "client-1"), b"Hunter2"))
    large.write_bytes(key_file.read_bytes() + b"\n" * 70_000)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"Hunter2")
    with serving(mutual_tls(cert_file)) as server:
        for cert, key, problem in (
            (cert_file, other_key, "do not match"),
            (cert_file, encrypted, "a password-protected private key"),
            (cert_file, garbage, "must contain a certificate and an unencrypted private key"),
            (garbage, key_file, "must contain a certificate and an unencrypted private key"),
            (cert_file, large, "the file in client_key_file is too large"),
            (tmp_path / "missing", key_file, "the file in client_cert_file cannot be read"),
            (cert_file, tmp_path / "missing", "the file in client_key_file cannot be read"),
        ):
            with pytest.raises(ExchangeFailed, match=problem) as failed:
                server.exchange(client_cert_file=str(cert), client_key_file=str(key), client_auth="tls_client_auth")
            assert failed.value.error == "invalid_client"
            assert "Hunter2" not in str(failed.value)
        with pytest.raises(ExchangeFailed, match="must contain a certificate and an unencrypted private key"):
            server.exchange(client_cert_file=str(cert_file))  # this file does not contain the key
        assert server.requests == []


def test_a_certificate_requires_https(server: Server, tmp_path: Path) -> None:
    """A certificate requires https, because over http the server would not receive the certificate."""
    cert_file, key_file = write_certificate(tmp_path)
    credential = {"client_cert_file": str(cert_file), "client_key_file": str(key_file)}
    for build in (server.introspect, server.exchange):
        with pytest.raises(ConfigurationError, match="https") as rejected:
            build(client_auth="tls_client_auth", **credential)
        assert rejected.value.setting == "client_auth"
    presented = ClientCertificate.read(str(cert_file), str(key_file))
    with pytest.raises(FetchFailed, match="requires an https URL"):
        HttpClient().fetch(f"{server.url}/token", timeout=5, certificate=presented)
    assert server.requests == []


# Settings


FORMS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "key": (
        {"CLIENT_KEY_FILE": "{key}", "CLIENT_KEY_ID": "k-1"},
        {"key_file": "{key}", "key_id": "k-1"},
    ),
    "older form": (
        {
            "CLIENT_KEY_FILE": "{key}",
            "CLIENT_CERT_FILE": "{cert}",
            "CLIENT_AUTH": "private_key_jwt_rfc7523",
        },
        {"key_file": "{key}", "cert_file": "{cert}", "auth": "private_key_jwt_rfc7523"},
    ),
    "assertion": ({"CLIENT_ASSERTION_FILE": "{token}"}, {"assertion_file": "{token}"}),
}


@pytest.mark.parametrize("source", ["variables", "file"])
@pytest.mark.parametrize("name", FORMS)
def test_settings_have_the_same_forms(server: Server, tmp_path: Path, name: str, source: str) -> None:
    """The settings are the same in variables for a single issuer and in a configuration file for each issuer."""
    cert_file, key_file = write_certificate(tmp_path)
    (tmp_path / "token").write_text(PROJECTED)
    if name != "assertion":
        server.expect(private_key("ES256", "client-1"), "ES256", is_rfc7523=name == "older form")
    paths = {"key": str(key_file), "cert": str(cert_file), "token": str(tmp_path / "token")}
    variables, client = ({key: text.format(**paths) for key, text in values.items()} for values in FORMS[name])
    endpoint = f"{server.url}/introspect"
    if source == "file":
        issuer = {"issuer": server.url, "introspection_endpoint": endpoint, "client": {"id": CLIENT, **client}}
        section = {"verify": "enforce", "audience": AUDIENCE, "issuers": [issuer]}
        file = tmp_path / "otel.json"
        file.write_text(json.dumps({"instrumentation/development": {"python": {"token_relay": section}}}))
        settings = Settings.load({"OTEL_CONFIG_FILE": str(file)})
    else:
        variables |= {"VERIFY": "enforce", "ISSUERS": server.url, "AUDIENCE": AUDIENCE, "CLIENT_ID": CLIENT}
        variables["INTROSPECTION_ENDPOINT"] = endpoint
        settings = Settings.from_env({f"OTEL_PYTHON_TOKEN_RELAY_{key}": text for key, text in variables.items()})

    assert settings.problems == ()
    verifier_from(settings).verify("opaque-token-1")

    assert server.problems == []
    assert server.forms[-1]["client_assertion"]
    if name != "assertion":
        assert server.headers[0].get("kid") == ("k-1" if name == "key" else None)
        assert ("x5t#S256" in server.headers[0]) is (name == "older form")


def test_a_certificate_and_the_certificate_authorities_are_settings(tmp_path: Path) -> None:
    """Settings provide the client certificate and the certificate authorities for a server that the system does not
    trust.
    """
    cert_file, key_file = write_certificate(tmp_path, 7)
    with serving(mutual_tls(cert_file)) as server:
        variables = {
            "VERIFY": "enforce",
            "ISSUERS": server.url,
            "AUDIENCE": AUDIENCE,
            "CA_FILE": certificate(),
            "INTROSPECTION_ENDPOINT": f"{server.url}/introspect",
            "CLIENT_ID": CLIENT,
            "CLIENT_CERT_FILE": str(cert_file),
            "CLIENT_KEY_FILE": str(key_file),
            "CLIENT_AUTH": "tls_client_auth",
        }
        settings = Settings.from_env({f"OTEL_PYTHON_TOKEN_RELAY_{key}": text for key, text in variables.items()})
        assert settings.problems == ()
        verifier_from(settings).verify("opaque-token-1")

        assert [request.peer for request in server.requests] == [7]


# Telemetry


def test_assertions_are_masked(server: Server, key_file: Path) -> None:
    """Redaction recognizes assertions by their format and by the parameter's name."""
    server.introspect(client_key_file=str(key_file))
    signed = server.forms[0]["client_assertion"]
    scrubber = Scrubber()

    for assertion in (signed, PROJECTED):
        masked = scrubber.clean_text(f"sent {assertion} to the server", NOTHING)
        assert [part for part in assertion.split(".") if part in masked] == []
    for assertion in (signed, PROJECTED, "opaque-but-usable"):
        assert assertion not in scrubber.clean_text(f"client_id=orders&client_assertion={assertion}&a=b", NOTHING)
