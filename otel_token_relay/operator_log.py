"""Messages that operators see even if the application's logging configuration would lose them.

`opentelemetry-instrument` adds a handler that sends records to an exporter, which may not exist. Without any handlers,
Python writes warnings to standard error, but it no longer does so once that handler is installed. In that case, `warn`
writes the warning to standard error itself.

``…_LOG=decisions`` writes one line for each decision, and ``…_LOG=debug`` also writes this package's log records,
regardless of the logging configuration. No line contains a token, because calling code passes only origins and values
from closed sets or the settings.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from otel_token_relay.rate_limits import RateLimit

MAX_LINE_BYTES: Final = 500
MAX_LINES_PER_SECOND: Final = 100

_logger: Final = logging.getLogger("otel_token_relay")


def warn(message: str, *args: object) -> None:
    """Log a warning, and write it to standard error if no handler would show it. Never raises.

    Args:
        message: A format string.
        args: The format string's arguments, which must not contain any part of a request.
    """
    try:
        if _logger.manager.disable >= logging.WARNING or _logger.getEffectiveLevel() > logging.WARNING:
            return  # the application has switched warnings off
        is_shown = _is_shown()
        _logger.warning(message, *args, stacklevel=2)
        if not is_shown:
            record = _logger.makeRecord(_logger.name, logging.WARNING, __file__, 0, message, args, None)
            _standard_error.handle(record)
    except Exception:  # one of the application's handlers or filters failed; the request continues
        return


def _is_shown() -> bool:
    """Return whether a non-OpenTelemetry handler shows warnings, or Python itself writes them to standard error."""
    if _logger.disabled:  # by `logging.config`, which disables existing loggers by default
        return False
    logger: logging.Logger | None = _logger
    has_handlers = False
    while logger is not None:
        for handler in logger.handlers:
            has_handlers = True
            if handler.level <= logging.WARNING and not _is_silent(handler):
                return True
        logger = logger.parent if logger.propagate else None
    last_resort = logging.lastResort
    return not has_handlers and last_resort is not None and last_resort.level <= logging.WARNING


def _is_silent(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.NullHandler) or any(
        kind.__module__.startswith("opentelemetry.") for kind in type(handler).__mro__
    )


class _StandardErrorHandler(logging.Handler):
    """Write each record to the current ``sys.stderr``, which the application may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


_standard_error: Final = _StandardErrorHandler()
_standard_error.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))


class DecisionLog:
    """Write ASCII lines to standard error: at most 500 bytes per line, and at most 100 lines per second.

    Safe to share between threads.

    Args:
        clock: Returns the time in seconds, which never goes backward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = RateLimit(MAX_LINES_PER_SECOND, 1.0, clock)

    def write(self, **fields: str | Callable[[], str | None] | None) -> None:
        """Write one line with the *fields* that have a value. Never raises.

        Args:
            fields: The values, or callables that return them. The callables are not called for a skipped line.
        """
        try:
            skipped = self._limit.admit("")
            if skipped is None or sys.stderr is None:
                return
            if skipped:
                fields["skipped_lines"] = str(skipped)
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            values = ((name, value() if callable(value) else value) for name, value in fields.items())
            pairs = (f"{name}={_quote(value)}" for name, value in values if value)
            line = f"{now} otel-token-relay {' '.join(pairs)}"
            # A single call, so that lines from multiple threads are not interleaved.
            sys.stderr.write((line if len(line) < MAX_LINE_BYTES else line[: MAX_LINE_BYTES - 4] + "...") + "\n")
            sys.stderr.flush()
        except Exception:  # standard error may be closed; the request continues
            return


def _quote(value: str) -> str:
    # A backslash is doubled, so that a value cannot close its quotation marks and start another field.
    text = "".join(c if " " <= c <= "~" and c != "\\" else ascii(c)[1:-1] for c in value[:MAX_LINE_BYTES])
    return text if text and not set(text) & set(' "=') else '"' + text.replace('"', '\\"') + '"'


class _DebugLogger(logging.Logger):
    """Pass each record to the decision log, and pass it to the application's handlers only if its level is enabled."""

    def isEnabledFor(self, level: int) -> bool:
        return True

    def handle(self, record: logging.LogRecord) -> None:
        if (log := decisions) is not None:  # another thread may switch the log off
            # Omit the traceback, whose last line may quote a value.
            log.write(level=record.levelname.lower(), message=record.getMessage())
        if super().isEnabledFor(record.levelno):
            super().handle(record)


decisions: DecisionLog | None = None
"""The decision log; ``None`` if it is off. `follow` sets it."""


shows_values: bool = False
"""Whether lines may contain claim values from unverified tokens, masked and escaped. `follow` sets it."""


def follow(mode: str) -> None:
    """Switch the decision log on or off.

    Args:
        mode: ``decisions`` to write decisions; ``debug`` to also write log records and values from rejected tokens;
            empty to write nothing.
    """
    global decisions, shows_values
    shows_values = mode == "debug"
    decisions = (decisions or DecisionLog()) if mode else None
    kind: type[Any] = type(_logger)
    if mode == "debug" and not issubclass(kind, _DebugLogger):
        # Another library may have changed the logger class.
        _logger.__class__ = type("_DebugLogger", (_DebugLogger, kind), {"before": kind})
    elif mode != "debug" and issubclass(kind, _DebugLogger):
        _logger.__class__ = getattr(kind, "before", kind)
