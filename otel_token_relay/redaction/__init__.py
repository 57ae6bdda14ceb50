"""Keep tokens out of spans, log records, and metrics.

Redaction is enabled by default (see ``OTEL_PYTHON_TOKEN_RELAY_REDACTION``). Use the classes in this package for
pipelines that the application builds itself, and use `redact` for values outside a pipeline. The package imports its
public names on first access, because only the span processor and the span exporter require the SDK.
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
