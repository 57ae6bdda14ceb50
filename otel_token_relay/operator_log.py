"""Messages that operators see even if the application's logging configuration would discard them.

`opentelemetry-instrument` adds a handler for exporting log records, even if no exporter is configured. Python writes
warnings to standard error only if no handlers exist, so OpenTelemetry's handler would hide them. If no other handler
exists, `warn` itself writes warnings to standard error.

The ``decisions`` mode writes one line for each decision. The ``debug`` mode also writes this package's log records.
Both modes ignore the application's logging configuration. Lines never contain tokens. This package logs only origins,
settings, values from closed sets, and, in ``debug`` mode, masked claim values from rejected tokens.
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
    """Log a warning. If the logging configuration would hide the warning from operators, also write it to standard
    error. This function never raises an exception.

    Args:
        message: A format string.
        args: The format string's arguments, which must not contain any part of a request.
    """
    try:
        if _logger.manager.disable >= logging.WARNING or _logger.getEffectiveLevel() > logging.WARNING:
            return  # the application has disabled warnings
        is_shown = _is_shown()
        _logger.warning(message, *args, stacklevel=2)
        if not is_shown:
            record = _logger.makeRecord(_logger.name, logging.WARNING, __file__, 0, message, args, None)
            _standard_error.handle(record)
    except Exception:  # an application's handler or filter failed, but the request must continue
        return


def _is_shown() -> bool:
    """Return whether Python's last-resort handler or a handler that is not part of OpenTelemetry writes warnings."""
    if _logger.disabled:  # `logging.config` disables existing loggers by default
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
    """A handler that writes to the current ``sys.stderr``, which the application might have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


_standard_error: Final = _StandardErrorHandler()
_standard_error.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))


class DecisionLog:
    """A rate-limited log that writes short ASCII lines to standard error.

    Instances are thread-safe.

    Args:
        clock: A function that returns the time on a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = RateLimit(MAX_LINES_PER_SECOND, 1.0, clock)

    def write(self, **fields: str | Callable[[], str | None] | None) -> None:
        """Write one line with the *fields* that have non-empty values. This method never raises an exception.

        Args:
            fields: The values, or functions that return them. The functions are not called if the line is skipped.
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
            # Write the whole line in a single call to prevent interleaving with lines from other threads.
            sys.stderr.write((line if len(line) < MAX_LINE_BYTES else line[: MAX_LINE_BYTES - 4] + "...") + "\n")
            sys.stderr.flush()
        except Exception:  # standard error might be closed, but the request must continue
            return


def _quote(value: str) -> str:
    # Double each backslash to prevent a value from closing its quotation marks and starting a new field.
    text = "".join(c if " " <= c <= "~" and c != "\\" else ascii(c)[1:-1] for c in value[:MAX_LINE_BYTES])
    return text if text and not set(text) & set(' "=') else '"' + text.replace('"', '\\"') + '"'


class _DebugLogger(logging.Logger):
    """A logger that also writes every record to the decision log. Handlers receive only records at enabled levels."""

    def isEnabledFor(self, level: int) -> bool:
        return True

    def handle(self, record: logging.LogRecord) -> None:
        if (log := decisions) is not None:  # another thread might turn off the log
            # Omit the traceback, because its last line might contain sensitive values.
            log.write(level=record.levelname.lower(), message=record.getMessage())
        if super().isEnabledFor(record.levelno):
            super().handle(record)


decisions: DecisionLog | None = None
"""The decision log, or ``None`` if it is off."""


shows_values: bool = False
"""Whether lines can contain claim values from unverified tokens. The claim values are masked and escaped."""


def follow(mode: str) -> None:
    """Turn the decision log on or off by setting `decisions` and `shows_values`.

    Args:
        mode: ``decisions`` to write decisions; ``debug`` to also write log records and claim values from rejected
            tokens; an empty string to write nothing.
    """
    global decisions, shows_values
    shows_values = mode == "debug"
    decisions = (decisions or DecisionLog()) if mode else None
    kind: type[Any] = type(_logger)
    if mode == "debug" and not issubclass(kind, _DebugLogger):
        # Another library might have changed the logger class.
        _logger.__class__ = type("_DebugLogger", (_DebugLogger, kind), {"before": kind})
    elif mode != "debug" and issubclass(kind, _DebugLogger):
        _logger.__class__ = getattr(kind, "before", kind)
