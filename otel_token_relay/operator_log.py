"""Warnings that operators see even if the application's logging configuration would lose them.

`opentelemetry-instrument` adds a handler that sends records to an exporter, which may not exist. With that handler,
Python no longer writes warnings to standard error, as it does without any handler.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

_logger: Final = logging.getLogger("otel_token_relay")


def warn(message: str, *args: object) -> None:
    """Log a warning, and write it to standard error if no handler would show it. Never raises.

    Args:
        message: A format string.
        args: Its arguments. They must not contain any part of a request.
    """
    try:
        if _logger.manager.disable >= logging.WARNING or _logger.getEffectiveLevel() > logging.WARNING:
            return  # the application has switched warnings off
        is_shown = _is_shown()
        _logger.warning(message, *args, stacklevel=2)
        if not is_shown:
            record = _logger.makeRecord(_logger.name, logging.WARNING, __file__, 0, message, args, None)
            _standard_error.handle(record)
    except Exception:  # a handler or a filter of the application failed; the request continues
        return


def _is_shown() -> bool:
    """Return whether a handler other than OpenTelemetry's shows warnings, or Python writes them to standard error."""
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
    """Write to the stream that is standard error when the record is emitted."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


_standard_error: Final = _StandardErrorHandler()
_standard_error.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
