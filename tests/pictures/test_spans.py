"""OTLP JSON is read in every form that exporters write, and other files are rejected."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.pictures.spans import NotARecording, Span, read_recording
from tests.support.otlp_json import START, lines_of, make_span, request_of


def test_a_span_is_read() -> None:
    """A span contains the data for the picture, including its service's name."""
    text = lines_of(request_of("orders", make_span("01", "02", name="GET /x", server__address="host", server__port=81)))

    assert read_recording(text).spans == (
        Span(
            trace_id="a" * 32,
            span_id="01",
            parent_id="02",
            service="orders",
            name="GET /x",
            kind="CLIENT",
            start=START,
            end=START + 10**9,
            attributes={"server.address": "host", "server.port": "81"},
        ),
    )


@pytest.mark.parametrize(
    "write",
    [
        lines_of,
        lambda *requests: json.dumps(requests[0], indent=2) + json.dumps(requests[1], indent=2),
        lambda *requests: "\ufeff" + lines_of(*requests) + "\n\n",
        lambda *requests: lines_of(requests[0], {}, {"resourceLogs": []}, {"resourceMetrics": []}, requests[1]),
        lambda *requests: json.dumps({"resourceSpans": [item for r in requests for item in r["resourceSpans"]]}),
        lambda *requests: lines_of(*requests).replace("parentSpanId", "parent_span_id").replace("spanId", "span_id"),
    ],
    ids=["lines", "indented", "byte order mark", "other signals", "one document", "snake case"],
)
def test_every_form_is_read(write) -> None:
    """A file can contain one request on each line, indented requests, or a single document."""
    text = write(request_of("a", make_span("01")), request_of("b", make_span("02", "01", 2)))

    spans = read_recording(text).spans

    assert [(span.span_id, span.parent_id, span.service) for span in spans] == [("01", "", "a"), ("02", "01", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("secret", "the file is not JSON"),
        ("{", "the file is not JSON"),
        ("[" * 100_000, "the file is not JSON"),
        ("9" * 5_000, "the file is not JSON"),
        ("[]", "the file is JSON, but not OTLP"),
        ('"resourceSpans"', "the file is JSON, but not OTLP"),
        ('{"secret": 1}', "the file is JSON, but not OTLP"),
        ('{"resourceSpans": []}', "but no spans"),
        ('{"resourceSpans": 5}', "but no spans"),
        ('{"resourceLogs": []}', "but no spans"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "secret"}]}]}]}', "but no spans"),
    ],
)
def test_another_file_is_refused(text: str, message: str) -> None:
    """A file that is not a recording causes an error that states what was expected without quoting the file."""
    with pytest.raises(NotARecording, match=message) as raised:
        read_recording(text)

    assert "secret" not in str(raised.value)


def test_a_file_that_is_still_written() -> None:
    """An incomplete end of a file is reported, and everything before it is read."""
    text = lines_of(request_of("a", make_span("01")), request_of("b", make_span("02")))

    recording = read_recording(text[:-20])

    assert [span.span_id for span in recording.spans] == ["01"]
    assert recording.is_cut
    assert not read_recording(text).is_cut


def test_duplicates_and_spans_without_identifiers_are_counted() -> None:
    """Duplicate spans are counted, but spans with the same ID in different traces are not duplicates."""
    nameless = {"name": "x", "traceId": "a" * 32}
    other = make_span("01", trace="b" * 32)

    recording = read_recording(lines_of(request_of("a", make_span("01"), nameless, make_span("01"), other)))

    assert [span.trace_id[0] for span in recording.spans] == ["a", "b"]
    assert recording.skipped == 2


@pytest.mark.parametrize(
    ("written", "kind"),
    [(3, "CLIENT"), ("SPAN_KIND_CLIENT", "CLIENT"), (2, "SERVER"), (99, "UNSPECIFIED"), (True, "UNSPECIFIED")],
)
def test_kinds(written, kind: str) -> None:
    """A span's kind can be a number or a name."""
    (span,) = read_recording(lines_of(request_of("a", make_span("01", kind=written)))).spans

    assert span.kind == kind


@pytest.mark.parametrize("written", [None, "", "-5", "1e9", 1.5, "²", 10**30, "9" * 40, [], {}, True])
def test_a_time_that_is_none_is_unknown(written) -> None:
    """A time that is not a 64-bit number is read as 0."""
    (span,) = read_recording(lines_of(request_of("a", make_span("01") | {"startTimeUnixNano": written}))).spans

    assert span.start == 0


NAMES = ["resource", "attributes", "scopeSpans", "spans", "traceId", "spanId", "key", "value", "stringValue", "kind"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


@given(VALUES)
def test_no_json_breaks_the_reader(value) -> None:
    """Any JSON is either read or rejected as not being a recording."""
    with contextlib.suppress(NotARecording):
        read_recording(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [value]}], "resource": value}, value]}))
