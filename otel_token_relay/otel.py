"""The private OpenTelemetry names that the core uses.

The core uses private names only in this module, so that a single file has to be checked when OpenTelemetry is upgraded.
The adapters (clients, servers, and redaction) use the private names of the libraries that they adapt.
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
"""The key under which a context stores its span.

`opentelemetry.trace.get_current_span` also checks the span's type against an abstract class, which takes longer than
everything else in an unrecorded hop combined.
"""

# Exporters and other telemetry code set these keys around their own calls. The HTTP-only key is not included, because
# the instrumentation for requests, urllib, and urllib3 sets it around the application's own calls.
SUPPRESS_KEY: Final = otel_context._SUPPRESS_INSTRUMENTATION_KEY
OLD_SUPPRESS_KEY: Final = "suppress_instrumentation"


def is_suppressed(context: Context) -> bool:
    """Return whether *context* belongs to telemetry's own work, which gets no token and is not recorded.

    An exporter may run while its provider holds a lock, in which case calling that provider would block forever.
    """
    return bool(context.get(SUPPRESS_KEY) or context.get(OLD_SUPPRESS_KEY))


def is_server_suppressed(context: Context) -> bool:
    """Return whether server instrumentation is suppressed in *context*."""
    return is_suppressed(context) or bool(context.get(otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY))


# The code of the SDK's own `Span.set_attribute`.
_setter: CodeType | None = None


def set_texts(span: Any, texts: dict[str, str]) -> None:
    """Set attributes of a span. Both the keys and the values must be non-empty strings.

    The SDK checks each key and each value in Python, and takes two locks for each, which costs as much as the rest of
    a hop. The attributes are therefore written directly, under the lock that the SDK uses, unless they might exceed
    one of the span's limits or ``set_attribute`` has been replaced.
    """
    try:
        if span.set_attribute.__code__ is (_setter or _find_setter()):
            attributes = span._attributes
            held, most = attributes._dict, attributes.maxlen
            if attributes.max_value_len is None and (most is None or len(held) + len(texts) <= most):
                with span._lock:
                    if span._end_time is None:
                        held.update(texts)
                return
    except AttributeError:  # not one of the SDK's spans, or another version of the SDK
        pass
    for key, text in texts.items():
        span.set_attribute(key, text)


def _find_setter() -> CodeType | None:
    """Return the code of the SDK's method; ``None`` if the SDK is not imported or the method has been replaced."""
    global _setter
    sdk: Any = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is None:
        return None
    code: CodeType = sdk.Span.set_attribute.__code__
    if code.co_filename == sdk.__file__:
        _setter = code
    return _setter


def parts_of(propagator: TextMapPropagator) -> list[TextMapPropagator]:
    """Return the parts of a composite propagator, which does not expose them publicly."""
    parts = getattr(propagator, "_propagators", None)
    return [propagator] if parts is None else list(parts)


# OpenTelemetry's functions call a method of its runtime context, which in turn calls a context variable. Every request
# and every hop uses these functions several times, so the variable is used directly unless OTEL_PYTHON_CONTEXT selects
# a different runtime context.
_runtime_context: Final = getattr(otel_context, "_RUNTIME_CONTEXT", None)
_variable: Final[Any] = (
    getattr(_runtime_context, "_current_context", None) if type(_runtime_context) is ContextVarsRuntimeContext else None
)

get_current: Final[Callable[[], Context]] = otel_context.get_current if _variable is None else _variable.get
attach: Final[Callable[[Context], Any]] = otel_context.attach if _variable is None else _variable.set
_reset: Final[Callable[[Any], None]] = otel_context.detach if _variable is None else _variable.reset


def detach(attached: Any) -> None:
    """Do the same as ``opentelemetry.context.detach``: if the context cannot be detached, log the error."""
    try:
        _reset(attached)
    except Exception:  # for example, if the event loop closes a coroutine in a different task
        _logger.debug("a context could not be detached", exc_info=True)


def keeps_unknown_keys() -> bool:
    """Return whether an attached context can be read back with all of its keys.

    A runtime context that OTEL_PYTHON_CONTEXT selects may keep only the keys that it recognizes. For example, Datadog's
    context keeps only the span.
    """
    key = otel_context.create_key("token-relay-check")
    attached = otel_context.attach(otel_context.set_value(key, True))
    try:
        return get_current().get(key) is True and otel_context.get_value(key) is True
    finally:
        otel_context.detach(attached)


@contextmanager
def without_choosing_conventions() -> Generator[None, None, None]:
    """Run an instrumentor without locking in the semantic conventions, which the first instrumentor would otherwise do.

    The application may set OTEL_SEMCONV_STABILITY_OPT_IN in code, before it instruments anything itself.
    """
    from opentelemetry.instrumentation import _semconv

    chosen: Any = getattr(_semconv, "_OpenTelemetrySemanticConventionStability", None)
    was_chosen = getattr(chosen, "_initialized", True)
    try:
        yield
    finally:
        if not was_chosen:
            chosen._initialized = False
