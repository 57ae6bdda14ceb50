"""The private OpenTelemetry names that the core uses.

The core uses private names in this module only, so that only one file has to be checked when OpenTelemetry
is upgraded. The adapters (clients, servers, redaction) contain the private names of their own libraries.
"""

from __future__ import annotations

from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator

SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""The key under which a context stores its span.

`opentelemetry.trace.get_current_span` also checks the span's type against an abstract class, which takes
longer than everything else in an unrecorded hop.
"""

# Exporters and other telemetry code set these keys around their own calls. The HTTP-only key is not included,
# because the instrumentation of requests, urllib and urllib3 sets it around the application's own calls.
SUPPRESS_KEY: Final = otel_context._SUPPRESS_INSTRUMENTATION_KEY
OLD_SUPPRESS_KEY: Final = "suppress_instrumentation"


def is_suppressed(context: Context) -> bool:
    """Return whether *context* belongs to telemetry's own work, which is neither served nor recorded.

    An exporter may run while its provider holds a lock, and calling that provider would then block forever.
    """
    return bool(context.get(SUPPRESS_KEY) or context.get(OLD_SUPPRESS_KEY))


def parts_of(propagator: TextMapPropagator) -> list[TextMapPropagator]:
    """Return the parts of a composite propagator, which does not expose them publicly."""
    parts = getattr(propagator, "_propagators", None)
    return [propagator] if parts is None else list(parts)
