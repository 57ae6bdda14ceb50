"""Redact spans when the SDK converts live spans into the records that processors and exporters receive.

``Span._readable_span`` runs once for each span. The method runs in the thread that ends the span, before any processor
receives the span. When the method is called, the hook only collects the known tokens. The record is created and
redacted on first access, which happens in the exporter's thread if a batch processor is used. The record is a new
object in which values that contain tokens are replaced. The live span, the application's events and links, and the
propagated trace state are not modified.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry.trace import SpanContext, Status, TraceFlags

from otel_token_relay.context import TOKEN_KEY, UNUSED_KEY
from otel_token_relay.copying import shallow_copy, with_changes
from otel_token_relay.otel import get_current
from otel_token_relay.patching import Function, Patches
from otel_token_relay.redaction.deferred import DeferredRecord, deferred_class
from otel_token_relay.redaction.known_tokens import (
    HELD,
    REMEMBERED,
    hold_token,
    hold_unused,
    tokens_of_span,
    with_later_tokens,
)
from otel_token_relay.redaction.records import are_clean, clean_attributes, clean_resource, clean_scope
from otel_token_relay.redaction.scrubber import FAILED, Scrubber
from otel_token_relay.redaction.token_search import NOTHING, KnownTokens

_logger = logging.getLogger("otel_token_relay")

# The fields that processors read from every span. These fields do not contain text, unless a processor replaces a
# field.
_PLAIN: Final = ("_context", "_kind", "_start_time", "_end_time")
# Indexes into a `SpanContext`, which is a tuple.
_TRACE_ID: Final = 0
_TRACE_STATE: Final = 4


def patch(module: ModuleType, scrubber: Scrubber, patches: Patches) -> None:
    """Hook ``opentelemetry.sdk.trace``.

    Raises:
        AttributeError: The SDK does not have this conversion point.
    """

    def clean(readable: Any, known: KnownTokens) -> Any:
        try:
            redact(readable, scrubber, with_later_tokens(known, trace_id_of(readable._context)))
        except Exception:  # fail closed, and let the application continue
            wipe(readable)
        return readable

    # The hooks read the trace ID and the trace state by index, because reading a property would require an additional
    # function call for each span.
    example = SpanContext(1, 2, is_remote=False)
    if example[_TRACE_ID] != example.trace_id or example[_TRACE_STATE] is not example.trace_state:
        raise AttributeError("the items of SpanContext are not in the expected order")

    fields = frozenset(vars(module.ReadableSpan("", resource=module.Resource({}))))

    def build_readable_span(original: Function) -> Function:
        def finish(deferred: DeferredRecord, changes: dict[str, Any]) -> Any:
            try:
                readable = original(deferred.raw)
            except Exception:  # fail closed
                readable = module.ReadableSpan(FAILED, resource=module.Resource({}))
            raw = vars(readable)
            for name, value in changes.items():
                if raw.get(name) is not value:
                    setattr(readable, name, value if name in fields else scrubber.redact(value, deferred.known))
            return clean(readable, deferred.known)

        deferred_span = deferred_class(module.ReadableSpan, fields, finish, _PLAIN)

        def _readable_span(self: Any) -> Any:
            try:
                context, end_time = self._context, self._end_time
                if end_time is not None and not context[_TRACE_STATE]._dict:
                    # This code duplicates part of `tokens_of_span` to avoid a function call in the most common case.
                    known: Any = getattr(self, HELD, None)
                    current = get_current()
                    token: Any = current.get(TOKEN_KEY)
                    if (
                        known is None
                        or UNUSED_KEY in current
                        or (token is not None and (token.obtained or token._value not in known.values))
                        or known is not REMEMBERED.recent_traces.get(context[_TRACE_ID])
                    ):
                        known = tokens_of_span(self, context[_TRACE_ID])
                    # The SDK's own conversion is also deferred, because the fields of an ended span no longer change.
                    deferred: Any = object.__new__(deferred_span)
                    # Set the fields in `_PLAIN`.
                    deferred._context = context
                    deferred._kind = self._kind
                    deferred._start_time = self._start_time
                    deferred._end_time = end_time
                    deferred._token_relay_deferred = DeferredRecord(self, known)
                    return deferred
            except Exception:  # the context is not an SDK object
                _logger.debug("cannot defer the redaction of a span", exc_info=True)
            # The span has not ended, or its trace state contains text.
            return clean_now(self, original(self))

        return _readable_span

    def clean_now(span: Any, readable: Any) -> Any:
        try:
            known = tokens_of_span(span, trace_id_of(readable._context))
        except Exception:  # fail closed
            wipe(readable)
            return readable
        return clean(readable, known)

    def build_start(original: Function) -> Function:
        def start(self: Any, start_time: int | None = None, parent_context: Any = None) -> None:
            try:  # duplicates note_start to avoid a function call for each span
                context = get_current() if parent_context is None else parent_context
                token: Any = context.get(TOKEN_KEY)
                if token is not None:
                    hold_token(self, token, self._context[_TRACE_ID])
                if UNUSED_KEY in context:
                    hold_unused(self, context)
            except Exception:  # the span must start even if this code fails
                _logger.debug("cannot read the token of a span that is starting", exc_info=True)
            original(self, start_time, parent_context)

        return start

    patches.wrap(module.Span, "_readable_span", build_readable_span)
    patches.wrap(module.Span, "start", build_start)


def redact(span: Any, scrubber: Scrubber, known: KnownTokens) -> None:
    """Redact a record in place. No other code can access the record yet."""
    if is_suspect(span, scrubber, known):
        _clean(span, scrubber, known)
    resource, scope = span._resource, span._instrumentation_scope
    if not are_clean(resource, scope, scrubber):
        span._resource = clean_resource(resource, scrubber)
        if (cleaned := clean_scope(scope, scrubber)) is not scope:
            span._instrumentation_scope = cleaned
            span._instrumentation_info = None


def redacted(span: Any, scrubber: Scrubber, otherwise: KnownTokens = NOTHING) -> Any:
    """Return a redacted copy of a span. The span itself is not modified, because other code can access it.

    Args:
        span: The span, which might still be live.
        scrubber: The redaction rules.
        otherwise: The tokens to search for if no tokens are known for the span or its trace.
    """
    try:
        copy = span._readable_span() if hasattr(span, "_readable_span") else shallow_copy(span)
        known = tokens_of_span(span, trace_id_of(span.get_span_context()))
        redact(copy, scrubber, otherwise if known is NOTHING else known)
    except Exception:  # fail closed
        copy = shallow_copy(span)
        wipe(copy)
    return copy


def is_suspect(span: Any, scrubber: Scrubber, known: KnownTokens) -> bool:
    """Return whether a span's own data requires the thorough redaction stage.

    This function runs for every span that is read. For speed, it does not call the methods of the SDK's containers,
    which are written in Python and sometimes acquire a lock.
    """
    strings: list[str] = []
    name = span._name
    if type(name) is str:
        strings.append(name)
    suspect = type(name) is not str and scrubber.gather_value(name, strings, known)
    attributes = span._attributes
    if values := getattr(attributes, "_dict", attributes):
        suspect = scrubber.gather(values, strings, known) or suspect
    events = span._events
    for event in getattr(events, "_dq", events) or ():
        name = event._name
        if type(name) is str:
            strings.append(name)
        elif scrubber.gather_value(name, strings, known):
            suspect = True
        attributes = event._attributes
        if values := getattr(attributes, "_dict", attributes):
            suspect = scrubber.gather(values, strings, known) or suspect
    links = span._links
    for link in getattr(links, "_dq", links) or ():
        attributes = link.attributes
        if values := getattr(attributes, "_dict", attributes):
            suspect = scrubber.gather(values, strings, known) or suspect
        suspect = _gather_state(link.context, scrubber, strings, known) or suspect
    if description := span._status.description:
        suspect = scrubber.gather_value(description, strings, known) or suspect
    suspect = _gather_state(span._context, scrubber, strings, known) or suspect
    suspect = _gather_state(span._parent, scrubber, strings, known) or suspect
    return suspect or scrubber.is_suspect("\0".join(strings), known)


def _gather_state(context: Any, scrubber: Scrubber, strings: list[str], known: KnownTokens) -> bool:
    """Append a trace state's strings to *strings*, and return whether the trace state is suspect or unreadable."""
    if context is None:
        return False
    try:
        state = context.trace_state
        entries = getattr(state, "_dict", state)
        return bool(entries) and scrubber.gather(entries, strings, known)
    except Exception:  # the context is not an SDK object
        return True


def _clean(span: Any, scrubber: Scrubber, known: KnownTokens) -> None:
    span._name = scrubber.clean(span._name, known)
    span._attributes = clean_attributes(span._attributes, scrubber, known)
    span._events = _clean_items(span._events, lambda event: _clean_event(event, scrubber, known))
    span._links = _clean_items(span._links, lambda link: _clean_link(link, scrubber, known))
    span._context = _clean_context(span._context, scrubber, known)
    span._parent = _clean_context(span._parent, scrubber, known)
    status = span._status
    if status.description:
        span._status = Status(status.status_code, scrubber.clean(status.description, known))


def _clean_items(items: Any, clean: Any) -> Any:
    if not items:
        return items
    before = list(items)
    cleaned = [clean(item) for item in before]
    if all(new is old for new, old in zip(cleaned, before, strict=True)):
        return items
    if not hasattr(items, "_dq"):
        return tuple(cleaned)
    return with_changes(items, _dq=type(items._dq)(cleaned, items._dq.maxlen))


def _clean_event(event: Any, scrubber: Scrubber, known: KnownTokens) -> Any:
    attributes = clean_attributes(event._attributes, scrubber, known)
    return with_changes(event, _name=scrubber.clean(event._name, known), _attributes=attributes)


def _clean_link(link: Any, scrubber: Scrubber, known: KnownTokens) -> Any:
    attributes = clean_attributes(link._attributes, scrubber, known)
    return with_changes(link, _context=_clean_context(link._context, scrubber, known), _attributes=attributes)


def _clean_context(context: Any, scrubber: Scrubber, known: KnownTokens) -> Any:
    """Return a span context with a redacted trace state. The propagated trace state is not modified."""
    try:
        return _clean_readable_context(context, scrubber, known)
    except Exception:  # the context is not an SDK object
        return _without_state(context)


def _clean_readable_context(context: Any, scrubber: Scrubber, known: KnownTokens) -> Any:
    if context is None or not context.trace_state:
        return context
    before = dict(context.trace_state.items())
    cleaned: Mapping[str, str] = scrubber.clean(before, known)
    if cleaned is before:
        return context
    # Entries with masked keys are removed, because a masked key is invalid (W3C Trace Context, section 3.3.1.3.1).
    entries = [(key, value) for key, value in cleaned.items() if key in before]
    state = type(context.trace_state)(entries)
    return SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags, state)


def wipe(span: Any) -> None:
    """Remove all application data from a record that cannot be redacted."""
    span._name = FAILED
    span._attributes = {}
    span._events = ()
    span._links = ()
    span._instrumentation_scope = None
    span._instrumentation_info = None
    try:
        if span._resource is not None:
            span._resource = with_changes(span._resource, _attributes={}, _schema_url="")
    except Exception:  # the resource is not an SDK object
        span._resource = None
    try:
        if span._status is not None:
            span._status = Status(span._status.status_code)
    except Exception:  # the status is not an API object
        span._status = Status()
    span._context, span._parent = _without_state(span._context), _without_state(span._parent)


def trace_id_of(context: Any) -> int:
    """Return a span context's trace ID, or 0 if the ID cannot be read or is not an integer."""
    return _number(context, "trace_id")


def _number(context: Any, name: str) -> int:
    try:
        value = getattr(context, name)
    except Exception:  # the context is not an SDK object
        return 0
    return value if isinstance(value, int) else 0


def _without_state(context: Any) -> SpanContext | None:
    if context is None:
        return None
    # The context's own class is not used, because its constructor might have different parameters. If the flags cannot
    # be read, the span is treated as sampled, because processors drop unsampled spans.
    try:
        flags = context.trace_flags
    except Exception:
        flags = None
    flags = flags if isinstance(flags, TraceFlags) else TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(
        _number(context, "trace_id"), _number(context, "span_id"), bool(_number(context, "is_remote")), flags
    )
