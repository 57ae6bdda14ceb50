"""Redaction does not change telemetry without credentials, most of which was recorded in real programs."""

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
# Raise this minimum when you add entries. Do not remove an entry because a rule masks it.
MIN_ENTRIES = 710
SCRUBBER = Scrubber()


def _changed(values: dict[str, Any]) -> dict[str, Any]:
    return {source: value for source, value in values.items() if SCRUBBER.redact(value, NOTHING) is not value}


def _named() -> dict[str, Any]:
    return {f"{at}: {entry['source']}": entry["value"] for at, entry in enumerate(ENTRIES)}


def test_every_value_stays_the_same_object() -> None:
    """Values without credentials are returned as the same object, even nested under a neutral key."""
    values = _named()

    assert _changed(values) == {}
    assert _changed({name: {"a": [{"b": value}]} for name, value in values.items()}) == {}


def test_every_value_stays_as_json_text() -> None:
    """Values without credentials stay unchanged as JSON text and as JSON nested in JSON."""
    texts = {name: json.dumps(value) for name, value in _named().items() if not isinstance(value, str)}

    assert len(texts) > 80
    assert _changed(texts) == {}
    assert _changed({name: json.dumps({"arguments": text}) for name, text in texts.items()}) == {}


def test_every_value_is_exported_unchanged() -> None:
    """The SDK exports each value unchanged as a span attribute, an event attribute, a log body, and a log attribute."""
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
    """Every entry states its source, and no entry appears twice."""
    values = [json.dumps([entry["as"], entry["value"]], sort_keys=True) for entry in ENTRIES]

    assert len(ENTRIES) >= MIN_ENTRIES
    assert len(values) == len(set(values))
    for entry in ENTRIES:
        assert entry.keys() == {"source", "as", "value"}
        assert entry["source"].startswith(("recorded: ", "written by hand, after "))
        assert {"text": str, "attributes": dict}.get(entry["as"], object) in (type(entry["value"]), object)
