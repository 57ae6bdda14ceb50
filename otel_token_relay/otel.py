"""The private names of OpenTelemetry that the core uses.

They are here and nowhere else in the core, so that an upgrade of OpenTelemetry has one file to check. The
adapters (clients, servers, redaction) know the private names of their own libraries.
"""

from __future__ import annotations

from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator

SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""Where a context keeps its span.

`opentelemetry.trace.get_current_span` also checks the type against an abstract class, which costs more than
everything else in a hop that is not recorded.
"""

# Exporters and other telemetry code set these around their own calls. The key for HTTP alone is not among
# them: the instrumentation of requests, urllib and urllib3 sets it around the application's own call.
SUPPRESS_KEY: Final = otel_context._SUPPRESS_INSTRUMENTATION_KEY
OLD_SUPPRESS_KEY: Final = "suppress_instrumentation"


def is_suppressed(context: Context) -> bool:
    """Return whether *context* is that of telemetry's own work, which is neither served nor recorded.

    An exporter may run while its provider holds a lock, and asking that provider for anything would then wait forever.
    """
    return bool(context.get(SUPPRESS_KEY) or context.get(OLD_SUPPRESS_KEY))


def parts_of(propagator: TextMapPropagator) -> list[TextMapPropagator]:
    """Return the parts of a composite propagator, which has no public attribute for them."""
    parts = getattr(propagator, "_propagators", None)
    return [propagator] if parts is None else list(parts)
