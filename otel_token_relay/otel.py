"""The private OpenTelemetry APIs that the core uses.

This is the only core module that uses private OpenTelemetry APIs, so it is the only one to check after an OpenTelemetry
upgrade. The adapters for clients, servers, and redaction use the private APIs of the libraries that they adapt.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import CodeType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.propagators.textmap import TextMapPropagator

_logger = logging.getLogger("otel_token_relay")

SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""The context key for the current span.

Looking up this key is faster than calling `opentelemetry.trace.get_current_span`, which checks the span's type against
an abstract class. The type check takes longer than all other work for an unrecorded hop.
"""

# Exporters and other telemetry code set these keys for their own calls. The HTTP-only key is not included, because
# instrumentation for requests, urllib, and urllib3 also sets that key for the application's calls.
SUPPRESS_KEY: Final = otel_context._SUPPRESS_INSTRUMENTATION_KEY
OLD_SUPPRESS_KEY: Final = "suppress_instrumentation"


def is_suppressed(context: Context) -> bool:
    """Return whether *context* belongs to telemetry code, whose requests are sent without a token and are not recorded.

    An exporter might run while its provider holds a lock. Recording the exporter's request could then cause a deadlock.
    """
    return bool(context.get(SUPPRESS_KEY) or context.get(OLD_SUPPRESS_KEY))


def is_server_suppressed(context: Context) -> bool:
    """Return whether server instrumentation is suppressed in *context*."""
    return is_suppressed(context) or bool(context.get(otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY))


# The code object of the SDK's own `Span.set_attribute` method.
_setter: CodeType | None = None


def set_strings(span: Any, strings: dict[str, str]) -> None:
    """Set span attributes whose keys and values are non-empty strings.

    The SDK validates each key and value in pure Python and acquires two locks for each attribute, which takes as long
    as all other work for a hop. For speed, this function writes the attributes directly while holding the SDK's lock.
    This function calls ``set_attribute`` instead if the attributes might exceed the span's limits or if that method has
    been replaced.
    """
    try:
        if span.set_attribute.__code__ is (_setter or _find_setter()):
            attributes = span._attributes
            held, most = attributes._dict, attributes.maxlen
            if attributes.max_value_len is None and (most is None or len(held) + len(strings) <= most):
                with span._lock:
                    if span._end_time is None:
                        held.update(strings)
                return
    except AttributeError:  # the SDK did not create the span, or its internals have changed
        pass
    for key, text in strings.items():
        span.set_attribute(key, text)


def _find_setter() -> CodeType | None:
    """Return the code object of the SDK's own `Span.set_attribute` method, or ``None`` if the SDK is not imported or
    the method has been replaced.
    """
    global _setter
    sdk: Any = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is None:
        return None
    code: CodeType = sdk.Span.set_attribute.__code__
    if code.co_filename == sdk.__file__:
        _setter = code
    return _setter


def parts_of(propagator: TextMapPropagator) -> list[TextMapPropagator]:
    """Return the propagators that *propagator* combines, or *propagator* itself if it is not a composite."""
    parts = getattr(propagator, "_propagators", None)
    return [propagator] if parts is None else list(parts)


# OpenTelemetry's context functions make additional calls to access a context variable and are called several times for
# every request and every hop. For speed, this module accesses the variable directly unless OTEL_PYTHON_CONTEXT selects
# a different runtime context.
_runtime_context: Final = getattr(otel_context, "_RUNTIME_CONTEXT", None)
_variable: Final[Any] = (
    getattr(_runtime_context, "_current_context", None) if type(_runtime_context) is ContextVarsRuntimeContext else None
)

get_current: Final[Callable[[], Context]] = otel_context.get_current if _variable is None else _variable.get
attach: Final[Callable[[Context], Any]] = otel_context.attach if _variable is None else _variable.set
_reset: Final[Callable[[Any], None]] = otel_context.detach if _variable is None else _variable.reset


def detach(attached: Any) -> None:
    """Detach a context. Like ``opentelemetry.context.detach``, log any error instead of raising it."""
    try:
        _reset(attached)
    except Exception:  # for example, an event loop can close a coroutine in a different task
        _logger.debug("a context could not be detached", exc_info=True)


def keeps_unknown_keys() -> bool:
    """Return whether attaching a context preserves all of its keys.

    OTEL_PYTHON_CONTEXT can select a runtime context that preserves only certain keys. For example, Datadog's runtime
    context preserves only the span.
    """
    key = otel_context.create_key("token-relay-check")
    attached = otel_context.attach(otel_context.set_value(key, True))
    try:
        return get_current().get(key) is True and otel_context.get_value(key) is True
    finally:
        otel_context.detach(attached)


@contextmanager
def without_choosing_conventions() -> Generator[None, None, None]:
    """Run an instrumentor without finalizing OpenTelemetry's choice of semantic conventions.

    OpenTelemetry normally reads OTEL_SEMCONV_STABILITY_OPT_IN once, when the first instrumentor runs. The application
    might set this variable later, before it instruments anything itself.
    """
    from opentelemetry.instrumentation import _semconv

    chosen: Any = getattr(_semconv, "_OpenTelemetrySemanticConventionStability", None)
    was_chosen = getattr(chosen, "_initialized", True)
    try:
        yield
    finally:
        if not was_chosen:
            chosen._initialized = False
