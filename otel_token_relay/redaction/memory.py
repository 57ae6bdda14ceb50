"""Which tokens belong to which trace: remembered from the moment they are bound, and not for ever.

A span may end when its request's context is long gone, and a log record may come from a thread
that never had it. What they have is the trace.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from otel_token_relay.context import TOKEN_KEY, token_watchers
from otel_token_relay.redaction.fragments import NOTHING, Secrets, secrets_of, secrets_of_one
from otel_token_relay.token import BearerToken

_TRACES: Final = 2048
_MAX_CHARACTERS: Final = 8_388_608
_TOKENS_OF_A_TRACE: Final = 8
_LOOSE_TOKENS: Final = 64
_TOKENS_OF_A_THREAD: Final = 8

# Where OpenTelemetry keeps the current span; asking for it by function costs as much as the rest.
_SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))

_HELD: Final = "_token_relay_secrets"


class TokenMemory:
    """The tokens of the traces used last, bounded. Safe to share between threads.

    Args:
        traces: At least as many are remembered, and at most twice as many: they are kept in two
            generations, and the older one goes when the younger one is full.
    """

    def __init__(self, traces: int = _TRACES) -> None:
        self._traces = traces
        self.young: dict[int, Secrets] = {}
        self._old: dict[int, Secrets] = {}
        self._characters = 0
        self._loose: dict[str, None] = {}
        self._threads = threading.local()
        self.renew_lock()

    def renew_lock(self) -> None:
        """Take a new lock: in a forked child, whoever held the old one is not there to release it."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"TokenMemory({len(self.young) + len(self._old)} traces)"

    def remember(self, trace_id: int, value: str) -> Secrets:
        """Add a token to a trace and give all of the trace's."""
        known = self.young.get(trace_id)
        if known is not None and value in known.values:
            return known
        with self._lock:
            known = self.young.get(trace_id) or self._old.get(trace_id)
            if known is None:
                known = secrets_of_one(value)
            elif value not in known.values:
                known = _joined(known, value)
            self._keep(trace_id, known)
        return known

    def remember_loose(self, value: str) -> None:
        """Add a token that was bound where there is no trace yet."""
        with self._lock:
            _put(self._loose, value, _LOOSE_TOKENS)

    def remember_here(self, value: str) -> None:
        """Add a token to those of this thread, for what it says when the request is over."""
        here = self._threads.__dict__
        if "values" not in here:
            here["values"] = {}
        if _put(here["values"], value, _TOKENS_OF_A_THREAD):
            here["secrets"] = None

    def here(self) -> Secrets:
        """Give the tokens that this thread had last: a server logs a request after it, without its trace."""
        here = self._threads.__dict__
        if not here:
            return NOTHING
        if here["secrets"] is None:
            here["secrets"] = secrets_of(*here["values"])
        known: Secrets = here["secrets"]
        return known

    def loose(self) -> Secrets:
        """Give the tokens that were bound last where there was no trace."""
        with self._lock:
            values = tuple(self._loose)
        return secrets_of(*values) if values else NOTHING

    def find(self, trace_id: int) -> Secrets:
        """Give the tokens of a trace, and remember it longer."""
        known = self.young.get(trace_id)
        if known is not None:
            return known
        known = self._old.get(trace_id)
        if known is None:
            return NOTHING
        with self._lock:
            self._keep(trace_id, known)
        return known

    def everything(self) -> Secrets:
        """Give every token that is remembered, for what belongs to no trace. Not cheap."""
        with self._lock:
            loose = tuple(self._loose)
            known = [*self._old.values(), *self.young.values()]
        values = [value for secrets in known for value in secrets.values]
        return Secrets(tuple(dict.fromkeys([*loose, *values])))

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self.young, self._old, self._characters = {}, {}, 0
            self._loose.clear()
            self._threads = threading.local()

    def _keep(self, trace_id: int, secrets: Secrets) -> None:
        self.young[trace_id] = secrets
        # Whoever calls chooses the trace and the token: not only their number is bounded.
        self._characters += sum(map(len, secrets.values))
        if len(self.young) > self._traces or self._characters > _MAX_CHARACTERS:
            self._old, self.young, self._characters = self.young, {}, 0


def _put(values: dict[str, None], value: str, most: int) -> bool:
    """Make a value the last of an ordered set; say whether it is new there. The first ones go."""
    is_new = value not in values
    if not is_new:
        del values[value]
    values[value] = None
    if len(values) > most:
        del values[next(iter(values))]
    return is_new


MEMORY: Final = TokenMemory()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=MEMORY.renew_lock)
_listeners = 0
_lock = threading.Lock()


def listen() -> None:
    """Take note of every token that is bound from now on."""
    global _listeners
    with _lock:
        _listeners += 1
        if _watch not in token_watchers:
            token_watchers.append(_watch)


def stop_listening() -> None:
    """Undo one `listen`; after the last one, forget."""
    global _listeners
    with _lock:
        _listeners = max(0, _listeners - 1)
        if _listeners == 0 and _watch in token_watchers:
            token_watchers.remove(_watch)
            MEMORY.forget()
            secrets_of_one.cache_clear()
            secrets_of.cache_clear()


def _watch(token: BearerToken, context: Context) -> None:
    value = token.reveal()
    MEMORY.remember_here(value)
    span: Any = context.get(_SPAN_KEY)
    trace_id = 0 if span is None else span.get_span_context().trace_id
    if trace_id:
        hold(span, MEMORY.remember(trace_id, value))
    else:
        MEMORY.remember_loose(value)


def hold(span: Any, secrets: Secrets) -> None:
    """Let a recording span hold its tokens itself: it may outlive thousands of traces."""
    if span.is_recording():
        with contextlib.suppress(AttributeError):  # a span of another make; the trace still knows
            setattr(span, _HELD, secrets)


def note_start(span: Any, context: Context | None) -> None:
    """Remember the token under which a span of the SDK starts."""
    token: Any = (otel_context.get_current() if context is None else context).get(TOKEN_KEY)
    if token is not None:
        hold_token(span, token)


def hold_token(span: Any, token: BearerToken) -> None:
    """Let a span of the SDK that starts hold a token, and its trace."""
    value = token.reveal()
    trace_id = span._context.trace_id
    known = MEMORY.young.get(trace_id)
    if known is None or value not in known.values:
        known = MEMORY.remember(trace_id, value)
    span._token_relay_secrets = known


def secrets_of_span(span: Any, trace_id: int) -> Secrets:
    """Give the tokens of a span: its trace's, its own, and that of the context in which it ends.

    For one that has none of these, they are those that the thread had last: a span that is nobody's
    may have been given its attributes while a token was bound.
    """
    known = MEMORY.young.get(trace_id)
    held: Secrets | None = getattr(span, _HELD, None)
    if known is None or held is not known:
        known = known or MEMORY.find(trace_id)
        if held is not None and not set(held.values) <= set(known.values):
            known = secrets_of(*dict.fromkeys(held.values + known.values))
    token: Any = otel_context.get_current().get(TOKEN_KEY)
    if token is None:
        return MEMORY.here() if known is NOTHING else known
    value: str = token.reveal()
    return known if value in known.values else _joined(known, value)


def with_trace(secrets: Secrets, trace_id: int | None) -> Secrets:
    """Add the tokens that the trace has got since."""
    known = MEMORY.young.get(trace_id) if trace_id else None
    if known is None or known is secrets or set(known.values) <= set(secrets.values):
        return secrets
    return secrets_of(*dict.fromkeys(secrets.values + known.values))


def secrets_in(context: Context, trace_id: int | None = None) -> Secrets:
    """Give the tokens of a context: the one that is bound there and those of the trace.

    Args:
        context: Where to look for the token and the span.
        trace_id: Where it is known; ``None`` for that of the span in the context.
    """
    token: Any = context.get(TOKEN_KEY)
    span: Any = context.get(_SPAN_KEY)
    if trace_id is None:
        trace_id = 0 if span is None else span.get_span_context().trace_id
    if not trace_id:
        return MEMORY.here() if token is None else secrets_of_one(token.reveal())
    known = MEMORY.find(trace_id)
    if known is NOTHING:
        known = getattr(span, _HELD, NOTHING)
    if token is None or (value := token.reveal()) in known.values:
        return known
    return _joined(known, value)


def _joined(known: Secrets, value: str) -> Secrets:
    others = known.values[1 - _TOKENS_OF_A_TRACE :]
    return secrets_of(*others, value) if others else secrets_of_one(value)
