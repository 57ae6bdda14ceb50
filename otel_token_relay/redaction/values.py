"""Redact single values for libraries that do not pass through the SDK or ``logging``."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

from otel_token_relay.otel import get_current
from otel_token_relay.redaction.known_tokens import listen, tokens_in_context
from otel_token_relay.redaction.records import ScrubberInForce
from otel_token_relay.redaction.scrubber import FAILED

_T = TypeVar("_T")

# Each call to `listen` counts, so one suffices.
_listen_once = cache(listen)
_scrubber_in_force = ScrubberInForce(None)


def redact(value: _T) -> _T:
    """Return a value with its tokens replaced by ``[REDACTED]``, or the same object if it contains none.

    For patchers of loguru, processors of structlog, and Sentry's ``before_send``. The tokens that are looked for are
    those of the current context and trace, and those that are recognized by pattern. The installed settings apply,
    or those from the environment if none are installed; the ``redaction`` setting is ignored.

    Args:
        value: A string, bytes, a sequence, a mapping, or any combination of them. An object of any other type is
            replaced by its masked text if that text contains a token. The value is never modified.

    Returns:
        A value of the same shape. If it cannot be redacted, ``[REDACTION FAILED]``. No `Exception` is raised.
    """
    try:
        _listen_once()
        return _scrubber_in_force().redact(value, tokens_in_context(get_current()))  # type: ignore[no-any-return]
    except Exception:  # fail closed; the application continues
        return FAILED  # type: ignore[return-value]
