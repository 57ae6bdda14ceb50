"""The test helpers for users find leaked tokens and never print them."""

from __future__ import annotations

import http.client
import logging
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from otel_token_relay import BearerToken
from otel_token_relay.testing import SeenRequest, ThirdParty, assert_never_leaked, third_party

TOKEN = "Sample-token.with/every+kind~of_sign=="


# The third party


def test_third_party_records_requests() -> None:
    """A third party records the method, target, headers, and body of each request, oldest first."""
    with third_party() as outsider, httpx.Client() as client:
        client.get(f"{outsider.url}/a?b=c", headers={"Authorization": "Bearer x"})
        client.post(f"{outsider.url}/d", content=b"body")
        client.post(f"{outsider.url}/e", content=iter([b"in ", b"chunks"]))

    first, second, third = outsider.requests
    assert (first.method, first.target, first.authorization) == ("GET", "/a?b=c", "Bearer x")
    assert (second.method, second.target, second.authorization, second.body) == ("POST", "/d", None, b"body")
    assert third.body == b"in chunks"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_third_party_answers_every_method(method: str) -> None:
    """A third party records each method and sends a 200 response."""
    with third_party() as outsider:
        assert httpx.request(method, outsider.url).status_code == 200

    assert [request.method for request in outsider.requests] == [method]


def test_third_party_is_not_a_proxy() -> None:
    """A third party rejects a CONNECT request and records its headers."""
    with third_party() as outsider:
        connection = http.client.HTTPConnection(urlsplit(outsider.url).netloc, timeout=30)
        connection.request("CONNECT", "profile-service:443", headers={"Proxy-Authorization": "Basic x"})
        status = connection.getresponse().status
        connection.close()

    assert status == 405
    assert [(r.method, r.target) for r in outsider.requests] == [("CONNECT", "profile-service:443")]
    assert outsider.requests[0].header_lines("proxy-authorization") == ["Basic x"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_third_party_redirects(status: int) -> None:
    """A redirecting URL redirects to the exact target with the specified status."""
    with third_party() as outsider, third_party() as target:
        url = outsider.redirecting_to(f"{target.url}/landing?a=b&c=d%20e", status=status)
        response = httpx.get(url)
        httpx.get(url, follow_redirects=True)

    assert response.status_code == status
    assert [request.target for request in target.requests] == ["/landing?a=b&c=d%20e"]


def test_third_party_serves_in_parallel() -> None:
    """Each of many concurrent clients gets a response."""
    with third_party() as outsider:
        threads = [
            threading.Thread(target=lambda: urllib.request.urlopen(outsider.url, timeout=30).close()) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert len(outsider.requests) == 20


def test_third_party_stops_at_the_end_of_its_block() -> None:
    """After a third party's block, even one that failed, no server listens on its port."""
    with pytest.raises(RuntimeError, match="the block"), third_party() as outsider:
        raise RuntimeError("the block")

    with pytest.raises(httpx.ConnectError):
        httpx.get(outsider.url)


def test_two_authorization_lines_fail() -> None:
    """A request with two Authorization lines causes an error instead of returning one of the lines."""
    request = SeenRequest("GET", "/", [("Authorization", f"Bearer {TOKEN}"), ("authorization", "Basic x")], b"")

    with pytest.raises(AssertionError) as failure:
        _ = request.authorization

    assert request.header_lines("AUTHORIZATION") == [f"Bearer {TOKEN}", "Basic x"]
    assert TOKEN not in str(failure.value)


@pytest.mark.parametrize(
    "request_with_it",
    [
        pytest.param(SeenRequest("GET", f"/{TOKEN}", [], b""), id="target"),
        pytest.param(SeenRequest("GET", "/?" + urlencode({"t": TOKEN}), [], b""), id="query, percent-encoded"),
        pytest.param(SeenRequest("GET", "/", [("X-Own", f"a {TOKEN} b")], b""), id="header value"),
        pytest.param(SeenRequest("GET", "/", [(TOKEN, "a")], b""), id="header name"),
        pytest.param(SeenRequest("POST", "/", [], b"\xff" + TOKEN.encode() + b"\x00"), id="body"),
        pytest.param(SeenRequest("POST", "/", [], urlencode({"t": TOKEN}).encode()), id="form"),
    ],
)
def test_a_token_is_found_in_every_part_of_a_request(request_with_it: SeenRequest) -> None:
    """A token is found in every part of a request, and the failure message does not contain it."""
    party = ThirdParty("http://127.0.0.1:1")
    party.requests += [SeenRequest("GET", "/", [], b""), request_with_it]

    with pytest.raises(AssertionError) as failure:
        party.assert_saw_no(TOKEN)

    assert str(failure.value) == "1 of 2 requests contained the token"
    assert TOKEN not in repr(party.requests)


def test_a_third_party_without_the_token_passes() -> None:
    """A third party passes if its requests contain a different token or none."""
    party = ThirdParty("http://127.0.0.1:1")
    party.requests.append(SeenRequest("GET", "/", [("Authorization", "Bearer another")], b"body"))

    party.assert_saw_no(TOKEN)


# The search


def spans_with(where: str) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"own": TOKEN if where == "resource" else "x"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    other = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
    span = provider.get_tracer("tests").start_span(
        f"GET /{TOKEN}" if where == "name" else "GET",
        links=[Link(other, {"own": TOKEN})] if where == "link" else [],
    )
    if where == "attribute":
        span.set_attribute("own", ["x", TOKEN])
    if where == "event":
        span.add_event("failed", {"exception.message": f"refused {TOKEN}"})
    if where == "status":
        span.set_status(Status(StatusCode.ERROR, TOKEN))
    span.end()
    provider.shutdown()
    return exporter.get_finished_spans()


@pytest.mark.parametrize("where", ["name", "attribute", "event", "link", "status", "resource"])
def test_a_leak_into_a_span_is_found(where: str) -> None:
    """A leak into any part of a span is found."""
    assert_never_leaked(TOKEN, spans_with("nowhere"))

    with pytest.raises(AssertionError):
        assert_never_leaked(TOKEN, spans_with(where))


def test_a_leak_into_a_metric_is_found() -> None:
    """A leak into the attributes of a metric's data point is found."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("tests").create_counter("calls").add(1, {"own": TOKEN})

    with pytest.raises(AssertionError):
        assert_never_leaked(TOKEN, reader.get_metrics_data())
    provider.shutdown()


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, None)
    return logging.LogRecord("app", logging.INFO, "app.py", 1, message, arguments, info)


class Holder:
    """An object whose attribute contains the token and whose `repr` does not."""

    def __init__(self) -> None:
        self.header = f"Bearer {TOKEN}"

    def __repr__(self) -> str:
        return "<Holder>"


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(f"a {TOKEN} b", id="text"),
        pytest.param(b"\xff" + TOKEN.encode(), id="bytes"),
        pytest.param(bytearray(TOKEN.encode()), id="bytearray"),
        pytest.param(memoryview(TOKEN.encode()), id="memoryview"),
        pytest.param({"a": {"b": [TOKEN]}}, id="value of nested mappings"),
        pytest.param({TOKEN: 1}, id="key of a mapping"),
        pytest.param({"a": TOKEN}.values(), id="view"),
        pytest.param(deque([1, (2, {TOKEN})]), id="nested sequences"),
        pytest.param((text for text in ["a", f"b {TOKEN}"]), id="generator"),
        pytest.param(httpx.Headers({"Authorization": f"Bearer {TOKEN}"}), id="headers that hide it in their repr"),
        pytest.param(ValueError("a", {"b": TOKEN}), id="exception"),
        pytest.param(raised(ValueError("a"), cause=KeyError(TOKEN)), id="cause of an exception"),
        pytest.param(record(f"sent {TOKEN}"), id="message of a log record"),
        pytest.param(record("sent %s", TOKEN), id="argument of a log record"),
        pytest.param(record("sent", error=ValueError(TOKEN)), id="exception of a log record"),
        pytest.param(Holder(), id="attribute"),
    ],
)
def test_a_leak_is_found(place: object) -> None:
    """A leak is found, and the failure message contains the argument's name but not its content."""
    with pytest.raises(AssertionError) as failure:
        assert_never_leaked(TOKEN, "a clean place", place)

    assert str(failure.value) == f"token found in argument 1 ({type(place).__name__})"


def test_clean_places_pass() -> None:
    """Locations without the token pass, including a `BearerToken`, which hides its value."""
    endless: list[object] = ["a"]
    endless.append({"self": endless})

    assert_never_leaked(TOKEN)
    assert_never_leaked(TOKEN, "a", b"b", {"c": ["d"]}, ValueError("e"), record("f %s", "g"), None, endless)
    assert_never_leaked(TOKEN, BearerToken(TOKEN), record("token %s", BearerToken(TOKEN)))


def test_short_lived_items_are_all_searched() -> None:
    """Every item of a generator is searched, even if the items use the same memory address."""
    items = ([f"item {number}"] if number < 999 else [TOKEN] for number in range(1000))

    with pytest.raises(AssertionError):
        assert_never_leaked(TOKEN, items)


@pytest.mark.parametrize(
    "options", [["--tb=auto"], ["--tb=long", "--showlocals"]], ids=["default", "with local variables"]
)
def test_pytest_does_not_show_the_token(tmp_path: Path, options: list[str]) -> None:
    """The output of pytest for a failed check does not contain the token or the object that contains it."""
    settings = tmp_path / "pytest.ini"  # empty, so that the settings of a parent directory do not apply
    settings.write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        """
from otel_token_relay.testing import SeenRequest, ThirdParty, assert_never_leaked

TOKEN = "-".join(["sample", "token"])

def test_search():
    assert_never_leaked(TOKEN, {"header": TOKEN})

def test_third_party():
    party = ThirdParty("http://127.0.0.1:1")
    party.requests.append(SeenRequest("GET", f"/{TOKEN}", [], b""))
    party.assert_saw_no(TOKEN)

def test_two_lines():
    SeenRequest("GET", "/", [("Authorization", TOKEN), ("Authorization", TOKEN)], b"").authorization
"""
    )

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(settings), *options, "."],
        cwd=tmp_path,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "3 failed" in ran.stdout
    assert "token found in argument 0 (dict)" in ran.stdout
    assert "sample-token" not in ran.stdout + ran.stderr
