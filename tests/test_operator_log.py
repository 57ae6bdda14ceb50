"""Warnings are shown once, wherever the application sends its log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.instrumentation.logging.handler import LoggingHandler

from otel_token_relay import operator_log

LOGGER = logging.getLogger("otel_token_relay")
SHOWN = "WARNING:otel_token_relay:3 requests\n"


ROOT = logging.Logger("root", logging.WARNING)  # noqa: LOG001 - not a logger of this process
"""The root logger of an application. Pytest adds handlers to the real one."""


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
    """A handler of the application."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


def warn() -> None:
    operator_log.warn("%d requests", 3)


def test_python_shows_it_without_any_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """Python's handler of last resort writes it, and ours does not repeat it."""
    warn()

    assert capsys.readouterr().err == "3 requests\n"


@pytest.mark.parametrize("logger", [ROOT, LOGGER], ids=["root", "ours"])
def test_a_handler_of_the_application_is_enough(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not repeated on standard error."""
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
        # `logging.config.dictConfig` does this to every existing logger, also to those of other tests.
        pytest.param(lambda: setattr(LOGGER, "disabled", True), id="disabled by dictConfig"),
    ],
)
def test_standard_error_shows_what_no_handler_shows(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise, the warning would be lost without notice."""
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
    """A level is a decision of the operator."""
    configure()
    warn()

    assert capsys.readouterr().err == ""


def test_without_standard_error_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows programs without a console have none."""
    _add(logging.NullHandler())
    monkeypatch.setattr("sys.stderr", None)

    warn()


def test_a_handler_that_raises_is_harmless() -> None:
    """The request that caused the warning continues."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no logging today")

    _add(Broken())
    warn()
