"""The TLS contexts of the HTTP client: built once, and again when a file changes."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from otel_token_relay.client_credentials import ClientCertificate
from otel_token_relay.verification import tls_contexts
from otel_token_relay.verification.fetch_failures import FetchFailed
from otel_token_relay.verification.tls_contexts import TlsContexts
from tests.support.loopback import certificate


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A certificate and its key in one file."""
    path = tmp_path / "client.pem"
    path.write_bytes(Path(certificate()).read_bytes())
    return path


def test_a_context_verifies_and_is_built_once() -> None:
    """Each connection needs it, and reading the system's certificates takes long."""
    contexts = TlsContexts(None)
    context = contexts.context()

    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert contexts.context() is context


def test_each_certificate_has_a_context(pair: Path) -> None:
    """A certificate is presented only with the requests that it is meant for."""
    contexts = TlsContexts(None)
    ours = contexts.context(ClientCertificate.read(str(pair), None))

    assert contexts.context(ClientCertificate.read(str(pair), None)) is ours
    assert contexts.context() is not ours


def test_a_new_file_of_authorities_is_read(pair: Path) -> None:
    """The file contains the only trusted certificates."""
    contexts = TlsContexts(str(pair))
    first = contexts.context()
    assert len(first.get_ca_certs()) == 1
    replacement = pair.with_name("next.pem")
    replacement.write_bytes(pair.read_bytes())
    replacement.replace(pair)

    assert contexts.context() is not first


@pytest.mark.parametrize("content", [None, b"", b"no certificate"], ids=["missing", "empty", "other"])
def test_unusable_authorities_are_an_error(pair: Path, content: bytes | None) -> None:
    """Otherwise, the system's authorities would be trusted instead."""
    if content is None:
        pair.unlink()
    else:
        pair.write_bytes(content)

    with pytest.raises(FetchFailed, match=r"^the CA certificates cannot be read$") as failed:
        TlsContexts(str(pair)).context()
    assert failed.value.cause == "not_configured"


def test_an_unusable_certificate_is_an_error(pair: Path) -> None:
    """The message names the setting."""
    ours = ClientCertificate.read(str(pair), None)
    pair.write_bytes(b"no certificate")

    with pytest.raises(FetchFailed, match="client_cert_file") as failed:
        TlsContexts(None).context(ours)
    assert failed.value.cause == "not_configured"


def test_the_number_of_contexts_is_limited(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings can change for as long as a process runs."""
    monkeypatch.setattr(tls_contexts, "_MAX_CONTEXTS", 2)
    contexts = TlsContexts(None)
    first = contexts.context()
    for number in range(2):
        copy = pair.with_name(f"{number}.pem")
        copy.write_bytes(pair.read_bytes())
        contexts.context(ClientCertificate.read(str(copy), None))

    assert contexts.context() is not first
