"""Redact individual values for libraries that bypass the SDK and ``logging``."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

from otel_token_relay.otel import get_current
from otel_token_relay.redaction.known_tokens import listen, tokens_in_context
from otel_token_relay.redaction.records import ScrubberInForce
from otel_token_relay.redaction.scrubber import FAILED

_T = TypeVar("_T")

# Calls to `listen` are counted, so this calls it only once.
_listen_once = cache(listen)
_scrubber_in_force = ScrubberInForce(None)


def redact(value: _T) -> _T:
    """Return a value with its tokens replaced by ``[REDACTED]``, or the same object if it contains none.

    Use this function in loguru patchers, structlog processors, and Sentry's ``before_send``. It masks the current
    context's and trace's tokens as well as tokens that are recognized by pattern. The installed settings apply or, if
    none are installed, the settings from the environment; the ``redaction`` setting is ignored.

    Args:
        value: A string, bytes, a sequence, a mapping, or any combination of them. An object of any other type is
            replaced by its masked string form if that string contains a token. The value is never modified.

    Returns:
        A value of the same shape, or ``[REDACTION FAILED]`` if the value cannot be redacted. No `Exception` is raised.
    """
    try:
        _listen_once()
        return _scrubber_in_force().redact(value, tokens_in_context(get_current()))  # type: ignore[no-any-return]
    except Exception:  # fail closed; the application continues
        return FAILED  # type: ignore[return-value]
