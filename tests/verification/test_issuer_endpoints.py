"""Issuers are asked as a verifier asks them: each failure is named, and everything ends in time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from otel_token_relay.client_credentials import ClientCredential, Secret
from otel_token_relay.verification.issuer_endpoints import InThread, IssuerReport, ask_issuers
from tests.support.issuers import Issuer, issuing
from tests.support.loopback import party
from tests.support.processes import unused_port
from tests.support.tokens import public_jwk, rsa_key

ALGORITHMS = ("RS256", "ES256")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


def ask_one(url: str, **options: Any) -> IssuerReport:
    (report,) = ask_issuers([url], ALGORITHMS, **options)
    return report


def results_of(report: IssuerReport) -> list[tuple[str, str, str, str]]:
    return [(r.kind, r.url.removeprefix(report.issuer), r.state, r.result) for r in report.endpoints]


OPENID = "/.well-known/openid-configuration"
RFC8414 = "/.well-known/oauth-authorization-server"
TRUSTED = ("metadata", OPENID, "ok", "the document specifies this issuer and its key set")
NOT_NEEDED = ("metadata", RFC8414, "unused", "status 404; not needed")


# Issuers


def test_a_healthy_issuer_is_reported_with_its_keys(issuer: Issuer) -> None:
    """Both metadata documents and the key set are asked for, in the verifier's order."""
    report = ask_one(issuer.url)

    assert results_of(report) == [TRUSTED, NOT_NEEDED, ("key set", "/jwks", "ok", "1 usable key: k1 (RS256)")]
    assert (report.state, report.issuer) == ("ok", issuer.url)
    assert report.keys is not None
    assert report.keys.knows("k1")
    assert sorted(issuer.hits) == sorted([OPENID, RFC8414, "/jwks"])
    assert all(0 <= endpoint.seconds < 60 for endpoint in report.endpoints)
    assert report.clock_difference == pytest.approx(0, abs=2)


def test_a_report_is_also_data(issuer: Issuer) -> None:
    """The report of an issuer contains those of its endpoints, without what they have found."""
    document = json.loads(json.dumps(ask_one(issuer.url).as_dict()))

    assert (document["issuer"], document["state"]) == (issuer.url, "ok")
    assert [one["kind"] for one in document["endpoints"]] == ["metadata", "metadata", "key set"]


def test_the_second_document_is_used_without_the_first(issuer: Issuer) -> None:
    """Some servers publish only the document of RFC 8414."""
    issuer.metadata_path = RFC8414

    report = ask_one(issuer.url)

    assert report.state == "ok"
    assert results_of(report)[:2] == [
        ("metadata", OPENID, "unused", "status 404; not needed"),
        ("metadata", RFC8414, "ok", TRUSTED[3]),
    ]


def test_a_configured_key_set_needs_no_metadata(issuer: Issuer) -> None:
    """The verifier does not ask for metadata either."""
    report = ask_one("https://idp.example", jwks_uri=f"{issuer.url}/jwks")

    assert issuer.hits == ["/jwks"]
    assert (report.state, len(report.endpoints)) == ("ok", 1)


def test_several_keys_are_reported_with_their_algorithms_and_problems(issuer: Issuer) -> None:
    """Each key that the verifier skips is reported with the reason."""
    issuer.keys = [
        public_jwk("RS256", "k1", alg=None),
        public_jwk("ES256", None),
        public_jwk("RS256", "e\x1b[31m", use="enc"),
        public_jwk("RS256", "operations", key_ops=["sign"]),
        public_jwk("RS256", "weak", key=rsa_key(1024)),
        public_jwk("ES384", "other"),
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
    ]

    (*_, key_set) = ask_one(issuer.url).endpoints

    assert key_set.result == (
        "2 usable keys: k1 (RS256), no kid (ES256); 6 unusable keys: e\\x1b[31m (not for signatures),"
        " operations (not for signatures), secret (not an RSA, EC, or OKP key), weak (too short),"
        " other (not for an accepted algorithm), 1 more"
    )


@pytest.mark.parametrize(
    ("keys", "state", "result"),
    [
        pytest.param([], "problem", "the key set is empty", id="empty"),
        pytest.param({}, "problem", "the response is not a key set", id="not a list"),
        pytest.param(
            [public_jwk("RS256", "k1"), public_jwk("RS256", "k1", name="second")],
            "problem",
            "no usable key; 2 unusable keys: k1 (duplicate kid), k1 (duplicate kid)",
            id="one kid twice",
        ),
        pytest.param(["x"], "problem", "no usable key; 1 unusable key: no kid (malformed)", id="no object"),
        pytest.param(
            [{"kty": "RSA", "kid": 1}], "problem", "no usable key; 1 unusable key: no kid (malformed)", id="kid"
        ),
    ],
)
def test_a_key_set_without_a_usable_key_is_a_problem(issuer: Issuer, keys: Any, state: str, result: str) -> None:
    """Every request would fail."""
    issuer.keys = keys

    report = ask_one(issuer.url)

    assert results_of(report)[-1] == ("key set", "/jwks", state, result)
    assert (report.state, report.keys) == ("problem", None)


SECRET = "a-secret-in-the-response"


@pytest.mark.parametrize(
    ("metadata", "result"),
    [
        pytest.param(
            {"issuer": "{url}/"}, "the document specifies a different issuer (an extra trailing slash)", id="slash"
        ),
        pytest.param({"issuer": f"https://{SECRET}"}, "the document specifies a different issuer", id="another issuer"),
        pytest.param({"issuer": None}, "the document does not specify an issuer", id="no issuer"),
        pytest.param({"jwks_uri": None}, "the document has no jwks_uri", id="no jwks_uri"),
        pytest.param({"jwks_uri": f"http://{SECRET}"}, "the document's jwks_uri is not an https URL", id="plain http"),
    ],
)
def test_a_metadata_document_that_is_not_believed_is_explained(
    issuer: Issuer, metadata: dict[str, Any], result: str
) -> None:
    """The verifier does not use its keys. The document is not quoted."""
    issuer.metadata |= {k: v and v.replace("{url}", issuer.url) for k, v in metadata.items()}

    report = ask_one(issuer.url)

    assert results_of(report) == [
        ("metadata", OPENID, "problem", result),
        ("metadata", RFC8414, "problem", "status 404"),
    ]
    assert (report.state, report.keys) == ("problem", None)
    assert SECRET not in str(report)


@pytest.mark.parametrize(
    ("status", "body", "result"),
    [
        pytest.param(503, b"", "status 503", id="503"),
        pytest.param(302, b"", "status 302; redirects are not followed", id="redirect"),
        pytest.param(200, SECRET.encode(), "the response is not a JSON document: not JSON", id="not JSON"),
        pytest.param(
            200, b'["%s"]' % SECRET.encode(), "the response is not a JSON document: not a JSON object", id="list"
        ),
    ],
)
def test_a_response_that_cannot_be_used_is_named(issuer: Issuer, status: int, body: bytes, result: str) -> None:
    """A web application often serves its start page at every path. The response is not quoted."""

    def behave(handler: BaseHTTPRequestHandler, path: str) -> bool:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Location", f"https://{SECRET}")
        handler.end_headers()
        handler.wfile.write(body)
        return True

    issuer.behave = behave
    report = ask_one(issuer.url)

    assert results_of(report) == [("metadata", path, "problem", result) for path in (OPENID, RFC8414)]
    issuer.behave = lambda handler, path: path == "/jwks" and behave(handler, path)
    assert results_of(ask_one(issuer.url))[-1] == ("key set", "/jwks", "problem", result)
    assert SECRET not in str(report)


def test_an_endpoint_that_does_not_respond_is_named(issuer: Issuer) -> None:
    """The state differs from that of an endpoint whose response cannot be used."""
    report = ask_one(f"http://127.0.0.1:{unused_port()}")
    assert [(r.state, r.result) for r in report.endpoints] == [("no_response", "connection refused")] * 2
    assert (report.state, report.clock_difference) == ("no_response", None)

    issuer.behave = lambda handler, path: path == "/jwks"
    report = ask_one(issuer.url)
    assert results_of(report)[-1] == ("key set", "/jwks", "no_response", "connection closed without a response")
    assert report.state == "no_response"


def test_an_untrusted_certificate_is_named() -> None:
    """The reason is one of a closed set."""
    with party(tls=True) as server:
        report = ask_one(server.url)

    assert {r.result for r in report.endpoints} == {"certificate not trusted: the certificate is self-signed"}


def test_issuers_are_asked_in_parallel_and_in_time(issuer: Issuer) -> None:
    """Six issuers that hang take as long as one, and do not delay the report about another."""
    with ExitStack() as stack:
        hanging = [stack.enter_context(issuing()) for _ in range(6)]
        for one in hanging:
            one.behave = one.hang
        started = time.monotonic()
        reports = ask_issuers([*(one.url for one in hanging), issuer.url], ALGORITHMS, timeout=1.5)
        seconds = time.monotonic() - started

    assert [report.state for report in reports] == ["no_response"] * 6 + ["ok"]
    assert {r.result for report in reports[:6] for r in report.endpoints} == {"timed out"}
    assert seconds < 6


def test_a_name_lookup_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be canceled, so its thread is left behind."""
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: released.wait(20) and [])
    monkeypatch.setenv("no_proxy", "*")
    try:
        started = time.monotonic()
        report = ask_one("https://idp.example", timeout=0.5)
        with_keys = ask_one("https://idp.example", timeout=0.5, jwks_uri="https://idp.example/jwks")
        seconds = time.monotonic() - started
    finally:
        released.set()

    assert {r.result for r in report.endpoints} == {"timed out"}
    assert results_of(with_keys) == [("key set", "/jwks", "no_response", "timed out")]
    assert seconds < 10


def test_a_metadata_document_that_is_late_does_not_delay_the_keys(issuer: Issuer) -> None:
    """The second document is not needed."""
    issuer.behave = lambda handler, path: path == RFC8414 and issuer.hang(handler, path)

    report = ask_one(issuer.url, timeout=1.0)

    assert report.state == "ok"
    assert results_of(report)[1] == ("metadata", RFC8414, "unused", "timed out; not needed")


def test_an_error_in_a_thread_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """A traceback could contain a response."""

    def fail() -> None:
        raise RuntimeError(SECRET)

    assert InThread(fail).result(time.monotonic() + 5) is None
    assert capfd.readouterr() == ("", "")


# Introspection


def introspecting(issuer: Issuer, **options: Any) -> IssuerReport:
    return ask_one(issuer.url, introspection_endpoint=f"{issuer.url}/introspect", **options)


def test_the_introspection_endpoint_is_asked_about_a_random_token(issuer: Issuer) -> None:
    """The credential is sent as the verifier sends it, and the random token is not active."""
    client = ClientCredential(client_id="me", secret=Secret("s3cr3t"))
    report = introspecting(issuer, client=client)

    assert results_of(report)[-1] == ("introspection", "/introspect", "ok", "a random token is not active")
    assert report.state == "ok"
    (request,) = [request for request in issuer.seen if "token=" in request]
    assert "Authorization: Basic bWU6czNjcjN0" in request


@pytest.mark.parametrize(
    ("response", "result"),
    [
        pytest.param((401, {}), "status 401; check the client's credential", id="credential"),
        pytest.param((403, {}), "status 403; check the client's permissions", id="permission"),
        pytest.param((301, {}), "status 301; redirects are not followed", id="redirect"),
        pytest.param((200, b"<html>secret"), "the introspection response is not a JSON document: not JSON", id="HTML"),
        pytest.param(
            (200, {"active": "no"}), "the introspection response does not contain a boolean 'active' member", id="text"
        ),
        pytest.param((200, {"active": True}), "the endpoint reports that a random token is active", id="active"),
    ],
)
def test_a_problem_of_the_introspection_endpoint_is_named(issuer: Issuer, response: Any, result: str) -> None:
    """The keys are good, but this issuer's tokens cannot be verified."""
    answer = issuer.answer
    issuer.answer = lambda path, body: response if path == "/introspect" else answer(path, body)  # type: ignore[method-assign]
    report = introspecting(issuer)

    assert results_of(report)[-1] == ("introspection", "/introspect", "problem", result)
    assert report.state == "problem"
    assert report.keys is not None


def test_an_endpoint_without_an_issuer_is_asked_alone(issuer: Issuer) -> None:
    """Tokens are then verified by introspection alone. A secret that cannot be read is a problem."""
    endpoint = f"{issuer.url}/introspect"
    (report,) = ask_issuers([], ALGORITHMS, introspection_endpoint=endpoint)
    assert [(r.kind, r.url, r.state) for r in report.endpoints] == [("introspection", endpoint, "ok")]
    assert issuer.hits == ["/introspect"]

    client = ClientCredential(client_id="me", secret_file="/nonexistent/secret")
    (report,) = ask_issuers([], ALGORITHMS, introspection_endpoint=endpoint, client=client)
    assert [(r.state, r.result) for r in report.endpoints] == [
        ("problem", "the file in client_secret_file cannot be read")
    ]
    (down,) = ask_issuers([], ALGORITHMS, introspection_endpoint=f"http://127.0.0.1:{unused_port()}/introspect")
    assert (down.state, down.endpoints[0].result) == ("no_response", "connection refused")


def test_a_token_for_the_keys_that_cannot_be_read_is_a_problem() -> None:
    """No request is sent without the token, so the issuer is not reported as unreachable."""
    with issuing(tls=True) as issuer:
        report = ask_one(issuer.url, jwks_token_file="/nonexistent/token")

    problem = "the file in jwks_token_file cannot be read or does not contain a token"
    assert {(r.state, r.result) for r in report.endpoints} == {("problem", problem)}
    assert issuer.hits == []
