"""A warning appears once, in any log destination that the application uses."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.instrumentation.logging.handler import LoggingHandler

from otel_token_relay import operator_log

LOGGER = logging.getLogger("otel_token_relay")
SHOWN = "WARNING:otel_token_relay:3 requests\n"


ROOT = logging.Logger("root", logging.WARNING)  # noqa: LOG001 - not a logger of this process
"""A root logger for the application. This is a separate logger, because pytest adds handlers to the real root
logger."""


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An application that has not configured logging."""
    for name, value in (("parent", ROOT), ("handlers", []), ("level", 0), ("propagate", True), ("disabled", False)):
        monkeypatch.setattr(LOGGER, name, value)
    before = LOGGER.manager.disable
    yield
    LOGGER.manager.disable = before
    ROOT.handlers.clear()


class Keeping(logging.Handler):
    """A log handler of the application."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


def warn() -> None:
    operator_log.warn("%d requests", 3)


def test_python_shows_it_without_any_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """Without any handler, Python's handler of last resort writes the warning, and the package does not repeat it."""
    warn()

    assert capsys.readouterr().err == "3 requests\n"


@pytest.mark.parametrize("logger", [ROOT, LOGGER], ids=["root", "ours"])
def test_a_handler_of_the_application_is_enough(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning that an application's handler receives is not repeated on standard error."""
    handler = Keeping()
    logger.addHandler(handler)
    warn()

    assert handler.kept == ["3 requests"]
    assert capsys.readouterr().err == ""


def _add(handler: logging.Handler, level: int = logging.NOTSET) -> None:
    handler.setLevel(level)
    ROOT.addHandler(handler)


def _stop_propagation() -> None:
    _add(Keeping())
    LOGGER.propagate = False
    LOGGER.addHandler(logging.NullHandler())


@pytest.mark.parametrize(
    "configure",
    [
        pytest.param(lambda: _add(LoggingHandler()), id="OpenTelemetry's handler only"),
        pytest.param(lambda: _add(logging.NullHandler()), id="a handler that drops all"),
        pytest.param(lambda: _add(Keeping(), logging.ERROR), id="a handler for errors only"),
        pytest.param(_stop_propagation, id="no propagation to the handler"),
        # `logging.config.dictConfig` disables every existing logger, including those of other tests.
        pytest.param(lambda: setattr(LOGGER, "disabled", True), id="disabled by dictConfig"),
    ],
)
def test_standard_error_shows_what_no_handler_shows(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error contains a warning that no handler receives."""
    configure()
    warn()

    assert capsys.readouterr().err == SHOWN


@pytest.mark.parametrize(
    "configure",
    [
        pytest.param(lambda: LOGGER.setLevel(logging.ERROR), id="level"),
        pytest.param(lambda: logging.disable(logging.WARNING), id="logging.disable"),
    ],
)
def test_what_the_application_switches_off_stays_off(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A level that the operator sets also suppresses warnings on standard error."""
    configure()
    warn()

    assert capsys.readouterr().err == ""


def test_without_standard_error_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without standard error, as in Windows programs without a console, the warning is dropped without an error."""
    _add(logging.NullHandler())
    monkeypatch.setattr("sys.stderr", None)

    warn()


def test_a_handler_that_raises_is_harmless() -> None:
    """A handler that raises an error does not stop the request that caused the warning."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no logging today")

    _add(Broken())
    warn()


# The decision log


@pytest.fixture
def decision_log() -> Iterator[operator_log.DecisionLog]:
    """The log of a process with ``…_LOG=decisions``."""
    operator_log.follow("decisions")
    assert operator_log.decisions is not None
    yield operator_log.decisions
    operator_log.follow("")


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.partition(" otel-token-relay ")[2] for line in capsys.readouterr().err.splitlines()]


def test_a_line_contains_the_fields_that_have_a_value(
    decision_log: operator_log.DecisionLog, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line starts with the time in UTC and contains only fields that have a value."""
    decision_log.write(decision="withheld", entry=None, reason="no token")

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z otel-token-relay decision=withheld reason=\"no token\"\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://a", "https://a"),
        ("a b", '"a b"'),
        ('a"b', '"a\\"b"'),
        ("a=b", '"a=b"'),
        ('x\\" verification=accepted y="', '"x\\\\\\" verification=accepted y=\\""'),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("ä\u2028\U0001f600\udc80", "\\xe4\\u2028\\U0001f600\\udc80"),
    ],
)
def test_a_value_is_printable_ascii(
    decision_log: operator_log.DecisionLog, value: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value is printable ASCII, so it cannot end the line or control a terminal."""
    decision_log.write(a=value)

    assert written(capsys) == [f"a={shown}"]


def test_a_value_is_computed_only_for_a_line_that_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """A value is computed only for a line that is written, and a callable can return nothing."""
    log = operator_log.DecisionLog(clock=lambda: 0.0)
    calls: list[int] = []

    def value() -> str | None:
        calls.append(1)
        return "x" if len(calls) == 1 else None

    for _ in range(150):
        log.write(a="1", b=value)

    assert len(calls) == 100
    assert written(capsys)[:2] == ["a=1 b=x", "a=1"]


def test_a_line_has_at_most_500_bytes(
    decision_log: operator_log.DecisionLog, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line has at most 500 bytes, and a truncated line ends with three dots."""
    decision_log.write(a="x" * 1000)

    line = capsys.readouterr().err
    assert len(line.encode()) == 500
    assert line.endswith("x...\n")


def test_at_most_100_lines_are_written_in_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    """At most 100 lines are written each second, and the next line contains the number of missing lines."""
    now = 0.0
    log = operator_log.DecisionLog(clock=lambda: now)
    for _ in range(150):
        log.write(a="1")
    assert len(written(capsys)) == 100

    now = 1.0
    log.write(a="2")
    assert written(capsys) == ["a=2 skipped_lines=50"]


@pytest.mark.parametrize("stream", ["closed", "missing"])
def test_without_standard_error_nothing_raises(
    decision_log: operator_log.DecisionLog, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logging without standard error, which a service might have closed, does not raise an error."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed if stream == "closed" else None)

    decision_log.write(a="1")


@pytest.mark.parametrize("configuration", ["disabled", "level", "disable", "no propagation"])
def test_debug_writes_log_records_whatever_the_configuration_is(
    configuration: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debug logging writes log records regardless of the configuration, and its effect ends when it is disabled."""
    handler = Keeping()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.ERROR if configuration == "level" else logging.INFO)
    LOGGER.disabled = configuration == "disabled"
    LOGGER.propagate = configuration != "no propagation"
    if configuration == "disable":
        LOGGER.manager.disable = logging.CRITICAL
    kind = type(LOGGER)
    try:
        operator_log.follow("debug")
        operator_log.follow("debug")
        LOGGER.debug("a %s", "message")
        LOGGER.warning("important")
        assert written(capsys) == ['level=debug message="a message"', "level=warning message=important"]
        assert handler.kept == (["important"] if configuration == "no propagation" else [])
    finally:
        operator_log.follow("")

    assert type(LOGGER) is kind
    LOGGER.debug("no more")
    assert written(capsys) == []
    assert operator_log.decisions is None
