"""Redact individual values for libraries that bypass the SDK and ``logging``."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

from otel_token_relay.otel import get_current
from otel_token_relay.redaction.known_tokens import listen, tokens_in_context
from otel_token_relay.redaction.records import ScrubberInForce
from otel_token_relay.redaction.scrubber import FAILED

_T = TypeVar("_T")

# Each call to `listen` must be undone separately, so this module calls `listen` only once.
_listen_once = cache(listen)
_scrubber_in_force = ScrubberInForce(None)


def redact(value: _T) -> _T:
    """Return a value with its tokens replaced by ``[REDACTED]``, or the same object if it contains no tokens.

    Use this function in loguru patchers, structlog processors, and Sentry's ``before_send``. The function masks tokens
    that match a pattern and tokens from the current context and trace. The function uses the installed settings, or the
    settings from the environment if none are installed. The ``redaction`` setting is ignored.

    Args:
        value: A string, bytes, a sequence, a mapping, or a nested combination of these types. If the string
            representation of any other object contains a token, the object is replaced with the masked string. The
            value itself is never modified.

    Returns:
        A value with the same structure, or ``[REDACTION FAILED]`` if the value cannot be redacted. The function never
        raises an `Exception`.
    """
    try:
        _listen_once()
        return _scrubber_in_force().redact(value, tokens_in_context(get_current()))  # type: ignore[no-any-return]
    except Exception:  # fail closed, and let the application continue
        return FAILED  # type: ignore[return-value]
