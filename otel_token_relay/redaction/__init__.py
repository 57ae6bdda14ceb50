"""Keep tokens out of spans, log records, and metrics.

Redaction is on by default (``OTEL_PYTHON_TOKEN_RELAY_REDACTION``). These classes are for pipelines built by hand, and
`redact` is for values that do not pass through them. They are imported on first access because two of them need the
SDK, which the rest of the package does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_token_relay.redaction.log_filter import RedactingFilter
    from otel_token_relay.redaction.processors import RedactingSpanExporter, RedactingSpanProcessor
    from otel_token_relay.redaction.values import redact

__all__ = ["RedactingFilter", "RedactingSpanExporter", "RedactingSpanProcessor", "redact"]

_MODULES = {
    "RedactingFilter": "otel_token_relay.redaction.log_filter",
    "RedactingSpanExporter": "otel_token_relay.redaction.processors",
    "RedactingSpanProcessor": "otel_token_relay.redaction.processors",
    "redact": "otel_token_relay.redaction.values",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
