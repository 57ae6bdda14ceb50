"""Telemetry without credentials, most of it recorded, and all of it left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opentelemetry._logs import LogRecord

from otel_token_relay import Settings, install, use_token
from otel_token_relay.redaction.scrubber import Scrubber
from otel_token_relay.redaction.token_search import NOTHING
from tests.redaction.pipeline import Pipeline

ENTRIES: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors" / "benign.json").read_text("utf-8"))
# Raise it when entries are added. None is removed because a rule masks it.
MIN_ENTRIES = 710
SCRUBBER = Scrubber()


def _changed(values: dict[str, Any]) -> dict[str, Any]:
    return {source: value for source, value in values.items() if SCRUBBER.redact(value, NOTHING) is not value}


def _named() -> dict[str, Any]:
    return {f"{at}: {entry['source']}": entry["value"] for at, entry in enumerate(ENTRIES)}


def test_every_value_stays_the_same_object() -> None:
    """Also within a mapping and a list, under a key that says nothing."""
    values = _named()

    assert _changed(values) == {}
    assert _changed({name: {"a": [{"b": value}]} for name, value in values.items()}) == {}


def test_every_value_stays_as_json_text() -> None:
    """Agents record arguments, messages and results as JSON, and JSON within JSON."""
    texts = {name: json.dumps(value) for name, value in _named().items() if not isinstance(value, str)}

    assert len(texts) > 80
    assert _changed(texts) == {}
    assert _changed({name: json.dumps({"arguments": text}) for name, text in texts.items()}) == {}


def test_every_value_is_exported_unchanged() -> None:
    """By the SDK: as an attribute of a span and of an event, as the body of a log record and as its attributes."""
    pipeline = Pipeline()
    install(Settings())
    try:
        with use_token("tGzv3JOkF0XG5Qx2TlKWIA.k9_Zr-71bLxYqHs4"):
            for entry in ENTRIES:
                value = entry["value"]
                attributes = value if entry["as"] == "attributes" else {"value": _attribute(value)}
                with pipeline.tracer.start_as_current_span("s", attributes=attributes) as span:
                    span.add_event("e", attributes)
                    pipeline.logger.emit(LogRecord(body=value, attributes=attributes))
        spans = pipeline.spans[0].get_finished_spans()
        logs = pipeline.logs[0].get_finished_logs()
    finally:
        pipeline.close()

    assert len(spans) == len(logs) == len(ENTRIES)
    for entry, span, log in zip(ENTRIES, spans, logs, strict=True):
        value = entry["value"]
        attributes = value if entry["as"] == "attributes" else {"value": _attribute(value)}
        expected = {key: tuple(item) if isinstance(item, list) else item for key, item in attributes.items()}
        assert dict(span.attributes or {}) == expected, entry["source"]
        assert dict(span.events[0].attributes or {}) == expected, entry["source"]
        assert log.log_record.body == value, entry["source"]
        assert json.dumps(dict(log.log_record.attributes or {})) == json.dumps(attributes), entry["source"]


def _attribute(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def test_the_file_only_grows() -> None:
    """Every entry says where it comes from, and none is there twice."""
    values = [json.dumps([entry["as"], entry["value"]], sort_keys=True) for entry in ENTRIES]

    assert len(ENTRIES) >= MIN_ENTRIES
    assert len(values) == len(set(values))
    for entry in ENTRIES:
        assert entry.keys() == {"source", "as", "value"}
        assert entry["source"].startswith(("recorded: ", "written by hand, after "))
        assert {"text": str, "attributes": dict}.get(entry["as"], object) in (type(entry["value"]), object)
