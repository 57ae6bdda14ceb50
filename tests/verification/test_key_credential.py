"""The token for fetching keys is sent only where it is configured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_token_relay.verification import KeysUnavailable, TokenVerifier
from otel_token_relay.verification.fetch_failures import FetchFailed
from otel_token_relay.verification.http_client import HttpClient
from otel_token_relay.verification.issuer_endpoints import ask_issuers
from otel_token_relay.verification.key_credential import KeyCredential
from tests.support.issuers import Issuer, issuing
from tests.support.loopback import Status, certificate, party
from tests.support.tokens import AUDIENCE, claims, make_token, public_jwk

OPERATORS = ("https://kubernetes.default.svc", "https://api.example:6443/openid/v1/jwks", "http://localhost:8001", None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file with a token, as a cluster mounts it."""
    path = tmp_path / "token"
    path.write_text("first-token\n")
    return path


@pytest.fixture
def http() -> Iterator[HttpClient]:
    client = HttpClient(ca_file=certificate())
    yield client
    client.close()


@pytest.mark.parametrize(
    ("url", "is_sent"),
    [
        pytest.param("https://kubernetes.default.svc/.well-known/openid-configuration", True, id="issuer"),
        pytest.param("https://KUBERNETES.default.svc:443/openid/v1/jwks", True, id="the same origin"),
        pytest.param("https://api.example:6443/openid/v1/jwks", True, id="configured key set"),
        pytest.param("https://api.example/openid/v1/jwks", False, id="another port"),
        pytest.param("https://evil.example/jwks", False, id="another host"),
        pytest.param("https://a.kubernetes.default.svc/jwks", False, id="below the host"),
        pytest.param("http://kubernetes.default.svc/jwks", False, id="plain http"),
        pytest.param("http://localhost:8001/jwks", False, id="plain http on loopback"),
        pytest.param("https://kubernetes.default.svc@evil.example/", False, id="user info"),
    ],
)
def test_the_token_is_sent_only_to_what_an_operator_wrote(url: str, is_sent: bool, file: Path) -> None:
    """The token is sent only to URLs that an operator configured, so an issuer's document cannot redirect it."""
    assert KeyCredential(str(file), OPERATORS).header_for(url) == ("Bearer first-token" if is_sent else None)


def test_without_a_file_nothing_is_sent() -> None:
    """Without a file, which is the default, no token is sent."""
    assert KeyCredential("", OPERATORS).header_for("https://kubernetes.default.svc") is None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"", id="empty"),
        pytest.param(b"a token", id="two words"),
        pytest.param(b"a\r\nX-Evil: b", id="two lines"),
        pytest.param(b"\xff\xfe", id="binary"),
    ],
)
def test_without_a_usable_token_keys_are_not_fetched(content: bytes | None, file: Path) -> None:
    """Without a usable token, keys are not fetched, because the endpoint's rejection would hide the reason."""
    file.unlink()
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(FetchFailed, match="jwks_token_file cannot be read or does not contain a token") as failed:
        KeyCredential(str(file), OPERATORS).header_for("https://kubernetes.default.svc")
    assert failed.value.cause == "not_configured"


def closed(issuer: Issuer) -> list[str]:
    """Make an issuer whose endpoints require a token, and return the list of accepted tokens."""
    accepted = ["Bearer first-token"]

    def behave(handler: object, path: str) -> bool:
        if handler.headers.get("Authorization") in accepted:  # type: ignore[attr-defined]
            return False
        return issuer.fail(handler, path)  # type: ignore[arg-type]

    issuer.behave = behave
    return accepted


def test_keys_of_a_closed_issuer_are_fetched(file: Path, http: HttpClient) -> None:
    """Keys are fetched from an issuer that rejects anonymous clients, as Kubernetes does, even if the token changes."""
    with issuing(public_jwk("ES256", "a"), tls=True) as issuer:
        accepted = closed(issuer)
        token = make_token(claims(issuer.url), alg="ES256", kid="a")
        with pytest.raises(KeysUnavailable):
            TokenVerifier([issuer.url], AUDIENCE, http=http).verify(token)
        verifier = TokenVerifier([issuer.url], AUDIENCE, jwks_token_file=str(file), http=http, cooldown=0.0)
        assert verifier.verify(token).subject is not None

        accepted[:] = ["Bearer second-token"]
        file.write_text("second-token")
        issuer.keys.append(public_jwk("ES256", "b", name="second"))
        rotated = make_token(claims(issuer.url), alg="ES256", kid="b", name="second")
        assert verifier.verify(rotated).subject is not None
        (report,) = ask_issuers([issuer.url], ["ES256"], jwks_token_file=str(file), http=http)
        assert report.state == "ok"
        file.unlink()
        (report,) = ask_issuers([issuer.url], ["ES256"], jwks_token_file=str(file), http=http)
        assert report.state == "problem"
        assert "jwks_token_file cannot be read" in report.endpoints[0].result


def test_metadata_cannot_send_the_token_elsewhere(file: Path, http: HttpClient) -> None:
    """A ``jwks_uri`` on a different port or a redirect does not get the token."""
    with issuing(public_jwk("ES256", "a"), tls=True) as issuer, party(tls=True) as outsider:
        issuer.metadata["jwks_uri"] = f"{outsider.url}/jwks"
        token = make_token(claims(issuer.url), alg="ES256", kid="a")
        with pytest.raises(KeysUnavailable):
            TokenVerifier([issuer.url], AUDIENCE, jwks_token_file=str(file), http=http).verify(token)
        assert outsider.lines() == [[]]

    with party(tls=True) as server, party(tls=True) as outsider:
        server.answers += [Status(307, (("Location", outsider.url),))] * 2
        with pytest.raises(KeysUnavailable):
            TokenVerifier([server.url], AUDIENCE, jwks_token_file=str(file), http=http).verify(
                make_token(claims(server.url), alg="ES256", kid="a")
            )
        assert server.lines() == [["Bearer first-token"]] * 2
        assert outsider.requests == []
