"""Which tokens belong to which record: those of its own request, and those that are remembered.

A span may end when its request's context is long gone, and a log record may come from a thread
that never had it. What they have is the trace, or the thread.

A caller chooses the token and may choose the trace, so not every token is remembered:

* A record's *own* tokens are the one that is bound in its context, while the lease is open, and those that a
  span holds: bound when the span started or while it was current. Any token is masked there, also a word.
* Only a *lasting* token reaches records beyond that: by the trace, by the thread, or as one of the last ones
  that were bound without a trace. It looks like a credential (`looks_like_credential`), or a verifier has
  accepted it. What it masks there is limited, too: see `Secrets`.

Reading takes no lock, since records are read in the middle of exports and collections, under the locks of
the SDK. Writing takes one that the same thread may take again: a finalizer that ends a span can run anywhere.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import deque
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from otel_token_relay.context import TOKEN_KEY, token_watchers, verification_watchers
from otel_token_relay.redaction.fragments import (
    NOTHING,
    Secrets,
    forget_secrets,
    secrets_of,
    secrets_of_one,
    secrets_with,
)
from otel_token_relay.redaction.rules import looks_like_credential
from otel_token_relay.token import BearerToken

_TRACES: Final = 2048
_MAX_CHARACTERS: Final = 8_388_608
_TOKENS_OF_A_TRACE: Final = 8
_LOOSE_TOKENS: Final = 64
_TOKENS_OF_A_THREAD: Final = 8
_TOKENS_OF_A_SPAN: Final = 8
_VERIFIED_TOKENS: Final = 512

# Where OpenTelemetry keeps the current span; asking for it by function costs as much as the rest.
_SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))

_HELD: Final = "_token_relay_secrets"

_NEVER: Final = math.inf


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
        self._found_old: deque[int] = deque(maxlen=traces)
        self._characters = 0
        self._loose: dict[str, None] = {}
        self._last_loose = ""
        self._verified: dict[str, None] = {}
        self._threads = threading.local()
        self.renew_lock()

    def renew_lock(self) -> None:
        """Create a new lock. In a forked child, the thread that held the old one does not exist."""
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"TokenMemory({len(self.young) + len(self._old)} traces)"

    def is_lasting(self, token: BearerToken) -> bool:
        """Return whether a token may be remembered beyond the records of its own request."""
        return self.was_lasting(token.reveal()) or token.verification is not None

    def was_lasting(self, value: str) -> bool:
        """Return whether a token was lasting when it was bound, before anything verified it in this request."""
        return looks_like_credential(value) or value in self._verified

    def remember_verified(self, value: str) -> None:
        """Take a token for a lasting one whenever it is bound again."""
        with self._lock:
            _put(self._verified, value, _VERIFIED_TOKENS)

    def remember(self, trace_id: int, value: str) -> Secrets:
        """Add a token to a trace and return all of the trace's."""
        known = self.young.get(trace_id)
        if known is not None and value in known.values:
            return known
        with self._lock:
            known = self.young.get(trace_id) or self._old.get(trace_id)
            if known is None:
                known = secrets_of_one(value)
            elif value not in known.values:
                known = secrets_of(*known.values[1 - _TOKENS_OF_A_TRACE :], value)
            self._keep(trace_id, known)
            while self._found_old:
                trace_id = self._found_old.popleft()
                if trace_id not in self.young and trace_id in self._old:
                    self._keep(trace_id, self._old[trace_id])
        return known

    def remember_loose(self, value: str) -> None:
        """Add a token that was bound where there is no trace yet."""
        # Each boundary of a request and each `extract` binds the same token again.
        if value == self._last_loose:
            return
        with self._lock:
            _put(self._loose, value, _LOOSE_TOKENS)
            self._last_loose = value

    def remember_here(self, value: str) -> None:
        """Add a token to those of this thread, for records that it makes after the request."""
        here = self._threads.__dict__
        if here.get("last") == value:
            return
        if "values" not in here:
            here["values"] = {}
        if _put(here["values"], value, _TOKENS_OF_A_THREAD):
            here["secrets"] = None
        here["last"] = value

    def here(self) -> Secrets:
        """Return the tokens that this thread had last: a server logs a request after it, without its trace."""
        here = self._threads.__dict__
        if not here:
            return NOTHING
        if here["secrets"] is None:
            here["secrets"] = secrets_with((), tuple(here["values"].copy()))
        known: Secrets = here["secrets"]
        return known

    def loose(self) -> Secrets:
        """Return the tokens that were bound last where there was no trace."""
        return secrets_with((), tuple(self._loose.copy()))

    def find(self, trace_id: int) -> Secrets:
        """Return the tokens of a trace. The next one to be remembered renews this trace, too."""
        known = self.young.get(trace_id)
        if known is not None:
            return known
        known = self._old.get(trace_id)
        if known is None:
            return NOTHING
        self._found_old.append(trace_id)
        return known

    def everything(self) -> Secrets:
        """Return every token that is remembered, for what belongs to no trace. Not cheap."""
        known = [*self._old.copy().values(), *self.young.copy().values()]
        values = [value for secrets in known for value in secrets.values]
        return Secrets((), tuple(dict.fromkeys([*self._loose.copy(), *values])))

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self.young, self._old, self._characters = {}, {}, 0
            self._found_old.clear()
            self._loose.clear()
            self._last_loose = ""
            self._verified.clear()
            self._threads = threading.local()

    def _keep(self, trace_id: int, secrets: Secrets) -> None:
        self.young[trace_id] = secrets
        # The caller chooses the trace and the token: not only their number is bounded.
        self._characters += sum(map(len, secrets.values))
        if len(self.young) > self._traces or self._characters > _MAX_CHARACTERS:
            self._old, self.young, self._characters = self.young, {}, 0


def _put(values: dict[str, None], value: str, most: int) -> bool:
    """Make a value the last of an ordered set; return whether it is new there. The first ones go."""
    is_new = value not in values
    if not is_new:
        values.pop(value, None)
    values[value] = None
    if len(values) > most:
        # A finalizer may bind a token of its own in between, and then one too few is forgotten.
        with contextlib.suppress(RuntimeError):
            values.pop(next(iter(values)), None)
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
            verification_watchers.append(_watch_verified)


def stop_listening() -> None:
    """Undo one `listen`; after the last one, forget."""
    global _listeners
    with _lock:
        _listeners = max(0, _listeners - 1)
        if _listeners == 0 and _watch in token_watchers:
            token_watchers.remove(_watch)
            verification_watchers.remove(_watch_verified)
            MEMORY.forget()
            forget_secrets()


def _watch(token: BearerToken, context: Context) -> None:
    value = token.reveal()
    span: Any = context.get(_SPAN_KEY)
    trace_id = 0 if span is None else span.get_span_context().trace_id
    if looks_like_credential(value) or MEMORY.is_lasting(token):
        MEMORY.remember_here(value)
        if trace_id:
            MEMORY.remember(trace_id, value)
        else:
            MEMORY.remember_loose(value)
    if trace_id:
        _hold(span, value)


def _watch_verified(token: BearerToken) -> None:
    value = token.reveal()
    if not MEMORY.was_lasting(value):
        MEMORY.remember_verified(value)
        _watch(token, otel_context.get_current())


def _hold(span: Any, value: str) -> None:
    """Let a recording span hold a token itself: it may outlive thousands of traces."""
    if not span.is_recording():
        return
    held = getattr(span, _HELD, None)
    if not isinstance(held, Secrets):
        held = secrets_of_one(value)
    elif value not in held.values:
        held = secrets_of(*held.values[1 - _TOKENS_OF_A_SPAN :], value)
    with contextlib.suppress(AttributeError):  # a span of another make; the trace may still know
        setattr(span, _HELD, held)


def note_start(span: Any, context: Context | None) -> None:
    """Remember the token under which a span of the SDK starts."""
    token: Any = (otel_context.get_current() if context is None else context).get(TOKEN_KEY)
    if token is not None:
        hold_token(span, token)


def hold_token(span: Any, token: BearerToken) -> None:
    """Let a span of the SDK that starts hold a token, and its trace if the token is a lasting one."""
    value = token.reveal()
    trace_id = span._context.trace_id
    known = MEMORY.young.get(trace_id)
    if known is None or value not in known.values:
        known = MEMORY.remember(trace_id, value) if MEMORY.is_lasting(token) else secrets_of_one(value)
    if _is_own(token):
        # Nearly always the trace has this one token, and then it is the same object.
        span._token_relay_secrets = known if len(known.values) == 1 else secrets_of_one(value)


def secrets_of_span(span: Any, trace_id: int) -> Secrets:
    """Return the tokens of a span: its own, that of the context in which it ends, and its trace's.

    For one that has none of these, they are those that the thread had last: a span of no request
    may have been given its attributes while a token was bound.
    """
    known = MEMORY.young.get(trace_id)
    held: Secrets | None = getattr(span, _HELD, None)
    token: Any = otel_context.get_current().get(TOKEN_KEY)
    if held is not None and held is known and (token is None or token.reveal() in held.values):
        return held  # nearly always
    found = _secrets(held or NOTHING, token, known or MEMORY.find(trace_id))
    return MEMORY.here() if found is NOTHING else found


def with_trace(secrets: Secrets, trace_id: int | None) -> Secrets:
    """Add the tokens that the trace has got since."""
    known = MEMORY.young.get(trace_id) if trace_id else None
    if known is None or known is secrets:
        return secrets
    new = [value for value in known.values if value not in secrets.values and value not in secrets.remembered]
    return secrets_with(secrets.values, (*secrets.remembered, *new)) if new else secrets


def secrets_in(context: Context, trace_id: int | None = None) -> Secrets:
    """Return the tokens of a context: the one that is bound there, and those of the trace.

    Args:
        context: Where to look for the token and the span.
        trace_id: Where it is known; ``None`` for that of the span in the context.
    """
    token: Any = context.get(TOKEN_KEY)
    span: Any = context.get(_SPAN_KEY)
    if trace_id is None:
        trace_id = 0 if span is None else span.get_span_context().trace_id
    if token is not None and _is_own(token):
        own = secrets_of_one(token.reveal())
        if not trace_id or MEMORY.young.get(trace_id) is own:
            return own  # nearly always
    if not trace_id:
        found = NOTHING if token is None else _secrets(NOTHING, token, NOTHING)
        return MEMORY.here() if found is NOTHING else found
    known = MEMORY.young.get(trace_id) or MEMORY.find(trace_id)
    if known is NOTHING:
        if isinstance(held := getattr(span, _HELD, None), Secrets):
            # The span has outlived the memory of its trace. A word that it holds is for the span alone.
            known = secrets_of(*filter(looks_like_credential, held.values))
        elif token is None:
            return NOTHING
    return _secrets(NOTHING, token, known)


def lasting_secrets() -> Secrets:
    """Return the lasting tokens of the current context, for what is made once and kept."""
    context = otel_context.get_current()
    token: Any = context.get(TOKEN_KEY)
    span: Any = context.get(_SPAN_KEY)
    trace_id = 0 if span is None else span.get_span_context().trace_id
    found = [] if token is None or not MEMORY.is_lasting(token) else [token.reveal()]
    if trace_id:
        found += MEMORY.find(trace_id).values
    return secrets_with((), tuple(dict.fromkeys(found)))


def _secrets(held: Secrets, token: BearerToken | None, trace: Secrets) -> Secrets:
    """Return what a record is compared with that has these tokens: held, in its context, and of its trace."""
    own, remembered = held.values, trace.values
    if token is not None and (value := token.reveal()) not in own:
        if _is_own(token):
            own = (*own, value)
        elif value not in remembered and MEMORY.is_lasting(token):
            remembered = (*remembered, value)
    if not remembered:
        return secrets_of(*own) if own else NOTHING
    return secrets_with(own, tuple([value for value in remembered if value not in own]))


def _is_own(token: BearerToken) -> bool:
    """Return whether a context that holds this token still belongs to the request that brought it.

    What a request has started, such as the thread of a pool, keeps the request's context for ever.
    """
    lease = token.lease
    # The first of these saves a call: a lease is simply open until it has ended.
    return lease is None or lease._deadline == _NEVER or lease.is_open
