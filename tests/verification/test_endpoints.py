"""A check of the endpoints reports each failure, compares clocks, and ends in time."""

from __future__ import annotations

import email.utils
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.client_credentials import ClientCredential, Secret
from otel_token_relay.testing import third_party
from otel_token_relay.verification.endpoints import (
    Endpoint,
    Finding,
    ask,
    describe_clock,
    problem_with_status,
    read_clock_difference,
)
from otel_token_relay.verification.http_client import Response
from otel_token_relay.verification.issuer_endpoints import InThread, IssuerReport, ask_issuers
from tests.support.issuers import Issuer, issuing
from tests.support.loopback import party
from tests.support.processes import unused_port
from tests.support.tokens import public_jwk, rsa_key

NOW = 1_795_761_796.0  # 2026-11-27T06:43:16Z
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
    """A healthy issuer is reported with its keys after both metadata documents and the key set are fetched."""
    report = ask_one(issuer.url)

    assert results_of(report) == [TRUSTED, NOT_NEEDED, ("key set", "/jwks", "ok", "1 usable key: k1 (RS256)")]
    assert (report.state, report.issuer) == ("ok", issuer.url)
    assert report.keys is not None
    assert report.keys.knows("k1")
    assert sorted(issuer.hits) == sorted([OPENID, RFC8414, "/jwks"])
    assert all(0 <= endpoint.seconds < 60 for endpoint in report.endpoints)


def test_the_second_document_is_used_without_the_first(issuer: Issuer) -> None:
    """If a server publishes only the RFC 8414 metadata document, that document is used."""
    issuer.metadata_path = RFC8414

    report = ask_one(issuer.url)

    assert report.state == "ok"
    assert results_of(report)[:2] == [
        ("metadata", OPENID, "unused", "status 404; not needed"),
        ("metadata", RFC8414, "ok", TRUSTED[3]),
    ]


def test_a_configured_key_set_needs_no_metadata(issuer: Issuer) -> None:
    """With a configured key set, no metadata is fetched."""
    report = ask_one("https://idp.example", jwks_uri=f"{issuer.url}/jwks")

    assert issuer.hits == ["/jwks"]
    assert (report.state, len(report.endpoints)) == ("ok", 1)


def test_several_keys_are_reported_with_their_algorithms_and_problems(issuer: Issuer) -> None:
    """Several keys are reported with their algorithms, and each skipped key with its reason."""
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
    """A key set without a usable key is a problem, because every request would fail."""
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
    """An untrusted metadata document is explained without being quoted, and its keys are not used."""
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
    """An unusable response, such as a start page, is reported without being quoted."""

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
    """An endpoint that does not respond is reported differently from one whose response cannot be used."""
    report = ask_one(f"http://127.0.0.1:{unused_port()}")
    assert [(r.state, r.result) for r in report.endpoints] == [("no_response", "connection refused")] * 2
    assert (report.state, report.clock_difference) == ("no_response", None)

    issuer.behave = lambda handler, path: path == "/jwks"
    report = ask_one(issuer.url)
    assert results_of(report)[-1] == ("key set", "/jwks", "no_response", "connection closed without a response")
    assert report.state == "no_response"


def test_an_untrusted_certificate_is_named() -> None:
    """An untrusted certificate is reported with one of a closed set of reasons."""
    with party(tls=True) as server:
        report = ask_one(server.url)

    assert {r.result for r in report.endpoints} == {"certificate not trusted: the certificate is self-signed"}


def test_issuers_are_asked_in_parallel_and_in_time(issuer: Issuer) -> None:
    """Issuers are checked in parallel, so six that hang take as long as one."""
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
    """A name lookup that hangs is abandoned with its thread, because the lookup cannot be canceled."""
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
    """If the second metadata document is late, the report has the keys without it."""
    issuer.behave = lambda handler, path: path == RFC8414 and issuer.hang(handler, path)

    report = ask_one(issuer.url, timeout=1.0)

    assert report.state == "ok"
    assert results_of(report)[1] == ("metadata", RFC8414, "unused", "timed out; not needed")


def test_an_error_in_a_thread_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """An error in a thread is not printed, because a traceback could contain a response."""

    def fail() -> None:
        raise RuntimeError(SECRET)

    assert InThread(fail).result(time.monotonic() + 5) is None
    assert capfd.readouterr() == ("", "")


# One endpoint


def test_another_kind_of_endpoint_can_be_asked() -> None:
    """Other kinds of endpoints can be checked with their own form, credential, and function that
    examines the response.
    """
    with third_party() as server:
        endpoint = Endpoint(
            "introspection",
            f"{server.url}/introspect",
            lambda response: Finding("ok", f"status {response.status}", response.status),
            form=b"token=abc",
            authorization="Basic YTpi",
        )
        report = ask(endpoint, timeout=5.0)

    (request,) = server.requests
    assert (request.method, request.body, request.header_lines("Authorization")) == (
        "POST",
        b"token=abc",
        ["Basic YTpi"],
    )
    assert (report.kind, report.state, report.result, report.found) == ("introspection", "ok", "status 200", 200)
    assert str(report).startswith(f"introspection {server.url}/introspect: status 200 (0.")


def test_a_report_is_also_data(issuer: Issuer) -> None:
    """A report is also available as data, which excludes the content of responses."""
    (*_, key_set) = ask_one(issuer.url).endpoints

    document = json.loads(json.dumps(key_set.as_dict()))
    assert {name: document[name] for name in ("kind", "url", "state", "result")} == {
        "kind": "key set",
        "url": f"{issuer.url}/jwks",
        "state": "ok",
        "result": "1 usable key: k1 (RS256)",
    }
    assert set(document) == {"kind", "url", "state", "result", "seconds", "clock_difference"}


@pytest.mark.parametrize(("status", "problem"), [(200, None), (404, "status 404"), (204, "status 204")])
def test_only_the_status_200_is_expected(status: int, problem: str | None) -> None:
    """Only status 200 is expected, because the endpoints return documents."""
    assert problem_with_status(Response(status, {}, b"")) == problem


# Clocks


@pytest.mark.parametrize("offset", [-312, 0, 45])
def test_the_clock_difference_is_measured(issuer: Issuer, offset: int) -> None:
    """The issuer's `Date` header is compared with the midpoint of the exchange to measure the clock difference."""
    report = ask_one(issuer.url, now=lambda: time.time() - offset)

    assert report.clock_difference == pytest.approx(offset, abs=2)


@pytest.mark.parametrize(
    ("headers", "difference"),
    [
        pytest.param({"date": "Fri, 27 Nov 2026 06:43:16 GMT"}, 0.5, id="the same second"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:44:16 GMT"}, 60.5, id="ahead"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:42:16 GMT"}, -59.5, id="behind"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:42:16 GMT", "age": "60"}, 0.5, id="from a cache"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:43:16 GMT", "age": "x"}, None, id="age not a number"),
        pytest.param({"date": "Fri, 27 Nov 2026 06:43:16 -0000"}, 0.5, id="no time zone"),
        pytest.param({"date": "soon"}, None, id="not a date"),
        pytest.param({"date": ""}, None, id="empty"),
        pytest.param({}, None, id="no date"),
    ],
)
def test_the_date_is_read(headers: dict[str, str], difference: float | None) -> None:
    """A date is truncated to whole seconds, and a cached response's age is added."""
    assert read_clock_difference(Response(200, headers, b""), NOW) == difference


@given(st.dictionaries(st.sampled_from(["date", "age"]), st.text() | st.floats(0, 2**33).map(email.utils.formatdate)))
def test_any_header_can_be_read(headers: dict[str, str]) -> None:
    """Any `Date` header that a server sends can be read without an error."""
    found = read_clock_difference(Response(200, headers, b""), NOW)

    assert found is None or isinstance(found, float)


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (None, None),
        (0.0, "The issuer's clock and this machine's clock agree."),
        (1.9, "The issuer's clock and this machine's clock agree."),
        (-1.9, "The issuer's clock and this machine's clock agree."),
        (2.0, "The issuer's clock is 2 s ahead of this machine's clock."),
        (-312.4, "The issuer's clock is 312 s behind this machine's clock."),
    ],
)
def test_the_clock_difference_is_a_sentence(difference: float | None, text: str | None) -> None:
    """The clock difference is described in a sentence, unless it is below the measurement's resolution."""
    assert describe_clock(difference) == text


# Introspection


def introspecting(issuer: Issuer, **options: Any) -> IssuerReport:
    return ask_one(issuer.url, introspection_endpoint=f"{issuer.url}/introspect", **options)


def test_the_introspection_endpoint_is_asked_about_a_random_token(issuer: Issuer) -> None:
    """A random, inactive token is sent to the introspection endpoint with the verifier's credential."""
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
    """A problem with the introspection endpoint is reported, even if the issuer's keys are usable."""
    answer = issuer.answer
    issuer.answer = lambda path, body: response if path == "/introspect" else answer(path, body)  # type: ignore[method-assign]
    report = introspecting(issuer)

    assert results_of(report)[-1] == ("introspection", "/introspect", "problem", result)
    assert report.state == "problem"
    assert report.keys is not None


def test_an_endpoint_without_an_issuer_is_asked_alone(issuer: Issuer) -> None:
    """An introspection endpoint without an issuer is checked by itself, and an unreadable secret is reported as a
    problem.
    """
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
