"""Each verification is counted and logged."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry import trace

from otel_token_relay import operator_log, verifications
from otel_token_relay.rate_limits import RateLimit
from otel_token_relay.verifications import COUNTER_NAME, VerificationRecorder
from tests.support.telemetry import Telemetry, recording


def counted(telemetry: Telemetry) -> dict[tuple[str, ...], int]:
    return {tuple(value for _, value in labels): value for labels, value in telemetry.points(COUNTER_NAME).items()}


@pytest.mark.parametrize(
    ("mode", "not_accepted"),
    [
        ("enforce", {("expired", "refused"): 2, ("unavailable", "unavailable"): 1}),
        ("report", {("expired", "reported"): 2, ("unavailable", "reported"): 1}),
    ],
)
def test_outcomes_and_reasons_are_counted(
    monkeypatch: pytest.MonkeyPatch, mode: Any, not_accepted: dict[tuple[str, ...], int]
) -> None:
    """Outcomes and reasons are counted, and report mode counts no request as rejected or unavailable."""
    with recording(monkeypatch) as telemetry:
        recorder = VerificationRecorder(mode)
        recorder.record("accepted")
        recorder.record("accepted")
        recorder.record("excluded")
        recorder.record("refused", "expired")
        recorder.record("refused", "expired")
        recorder.record("unavailable", "unavailable")

        assert counted(telemetry) == {("accepted",): 2, ("excluded",): 1} | not_accepted


@pytest.mark.parametrize(
    ("mode", "texts"),
    [
        (
            "enforce",
            [
                "request rejected (expired); 0 more since the last warning",
                "request failed with 503 because tokens cannot be verified (unavailable);"
                " 0 more since the last warning",
                "request rejected (expired); 2 more since the last warning",
            ],
        ),
        (
            "report",
            [
                "report mode: request would have been rejected (expired); 0 more since the last warning",
                "report mode: request would have been rejected (unavailable); 0 more since the last warning",
                "report mode: request would have been rejected (expired); 2 more since the last warning",
            ],
        ),
    ],
)
def test_each_reason_is_a_warning_once_a_minute(caplog: pytest.LogCaptureFixture, mode: Any, texts: list[str]) -> None:
    """Each reason causes one warning a minute, with the number of requests since the last one, and accepted requests
    cause none.
    """
    now = 0.0
    recorder = VerificationRecorder(mode)
    recorder._warnings = RateLimit(1, verifications.WARNING_SECONDS, lambda: now)
    for _ in range(3):
        recorder.record("refused", "expired")
    recorder.record("unavailable", "unavailable")
    recorder.record("accepted")
    recorder.record("excluded")
    now = 60.0
    recorder.record("refused", "expired")

    assert caplog.messages == texts


def test_every_request_is_in_the_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    """The debug log contains every request, because operators enable it to find a single request."""
    recorder = VerificationRecorder("enforce")
    with caplog.at_level(logging.DEBUG, "otel_token_relay"):
        for _ in range(3):
            recorder.record("refused", "expired")

    assert caplog.messages.count("request rejected: expired") == 3


def test_the_attributes_of_accepted_requests_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attributes of accepted requests, which are the most frequent, are built once."""
    seen: list[object] = []

    class Counter:
        def add(self, amount: int, attributes: object) -> None:
            seen.append(attributes)

    recorder = VerificationRecorder("enforce")
    monkeypatch.setattr(recorder._counter, "created", Counter())
    recorder.record("accepted")
    recorder.record("accepted")

    assert seen[0] is seen[1]


@pytest.mark.parametrize("broken", ["meter", "logger", "both"])
def test_broken_telemetry_is_harmless(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """An error in the application's meter or logging does not affect the request."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not today")

    recorder = VerificationRecorder("enforce")
    if broken != "logger":
        monkeypatch.setattr("opentelemetry.metrics.get_meter", fail)
    if broken != "meter":
        monkeypatch.setattr(logging.getLogger("otel_token_relay"), "debug", fail)
        monkeypatch.setattr(logging.getLogger("otel_token_relay"), "warning", fail)

    recorder.prepare() if broken == "logger" else None
    recorder.record("refused", "expired")


@pytest.mark.parametrize(
    ("mode", "cause"),
    [("decisions", ' cause="The value of aud is wrong."'), ("debug", ' cause="The token has billing."')],
)
def test_the_decision_log_has_a_line_for_each_verification(
    capsys: pytest.CaptureFixture[str], mode: str, cause: str
) -> None:
    """The decision log has one line for each verification with the request's trace, and values only in debug mode."""
    recorder = VerificationRecorder("report")
    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 1, is_remote=True))
    operator_log.follow(mode)
    try:
        recorder.record("accepted")
        with trace.use_span(span):
            recorder.record(
                "refused",
                "wrong_audience",
                lambda: "The value of aud is wrong.",
                claim="aud",
                details=lambda: "The token has billing.",
            )
    finally:
        operator_log.follow("")
    recorder.record("accepted")

    lines = [line.partition(" otel-token-relay ")[2] for line in capsys.readouterr().err.splitlines()]
    assert [line for line in lines if line.startswith("verification=")] == [
        "verification=accepted",
        f"verification=reported reason=wrong_audience claim=aud trace_id={'0' * 29}abc{cause}",
    ]
