"""Decide which tokens to search for in each record.

A record is searched for the tokens from its own request and for remembered tokens from other requests.

A span can end long after its request's context is gone, and a log record can be created in a thread that never had the
context. In such cases, tokens are looked up by trace or by thread.

Callers choose their tokens and can choose their trace IDs, so only some tokens are remembered. The following rules
apply:

* A record's *own* tokens are masked even if they are plain words. These tokens include the token that is bound in the
  record's context (while the lease is open) and any tokens that were obtained in exchange for the bound token during
  the request. Tokens that were bound when the record's span started or while it was current are also the record's own
  tokens.
* Other records are searched only for *remembered* tokens. A token is remembered if it looks like a credential (see
  `looks_like_credential`) or if a verifier has accepted it. Remembered tokens are looked up by trace, by thread, or
  among the most recent tokens that were bound without a trace. In other records, only some parts of a remembered token
  are masked; see `token_search`.
* A request's unused credentials (`otel_token_relay.unused_credentials`) are treated like the request's token, but they
  never evict other tokens.

Lookups do not acquire a lock, because they run during exports and collections, when the SDK holds its own locks.
Updates acquire a reentrant lock, because a finalizer that ends a span can run at any time, even while its thread holds
the lock.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from typing import Any, Final

from opentelemetry.context import Context

from otel_token_relay.context import TOKEN_KEY, UNUSED_KEY, token_watchers, unused_watchers, verification_watchers
from otel_token_relay.forks import call_in_child
from otel_token_relay.otel import SPAN_KEY, get_current
from otel_token_relay.redaction.credential_patterns import looks_like_credential
from otel_token_relay.redaction.recent_tokens import RecentTokens, TokensInUse, within_limit
from otel_token_relay.redaction.token_search import (
    NOTHING,
    KnownTokens,
    clear_caches,
    known_from,
    known_from_one,
    known_with_remembered,
)
from otel_token_relay.token import BearerToken
from otel_token_relay.unused_credentials import UnusedCredentials

_MAX_RECENT_TRACES: Final = 2048
_MAX_CHARACTERS: Final = 8_388_608
_MAX_OF_TRACE: Final = 8
_MAX_WITHOUT_TRACE: Final = 64
_MAX_OF_THREAD: Final = 8
# This limit is low, because each additional token slows down the redaction of every record that has neither a trace nor
# a token.
_MAX_IN_USE_OF_THREAD: Final = 16
_MAX_OF_SPAN: Final = 8
_MAX_VERIFIED: Final = 512

# The name of the Python attribute that stores a span's own tokens on the span object.
HELD: Final = "_token_relay_known"

_NO_DEADLINE: Final = math.inf


class RememberedTokens:
    """Bounded collections of tokens from recent requests. This class is thread-safe.

    ``recent_traces`` and ``older_traces`` contain each trace's tokens. ``_without_trace`` contains the most recent
    tokens that were bound while no span was current. ``_of_thread`` contains the tokens that each thread bound most
    recently. ``_verified`` contains the tokens that a verifier accepted. A token whose lease is open is evicted last;
    see `recent_tokens`. Unused credentials are added to a trace or a thread only if there is room, and never evict
    tokens. Each record is searched for its own tokens, for unused credentials, and for the following remembered tokens:

    ======================== ================================== ======================================================
    signal                   remembered tokens                  reason
    ======================== ================================== ======================================================
    span at start            none; its own token and unused     other records of the trace might contain them
                             credentials are added to its trace
    span at end              its trace's tokens; if none are    the token might have been bound elsewhere in the trace
                             known, its thread's tokens         or while the span's attributes were set
    span at first access     its trace's tokens, read again     a token might have been bound since the span ended
    log record, measurement, its trace's tokens; if the trace   a server writes its access log after the request, in
    `RedactingFilter`        is forgotten, the credentials on   the same thread but without the request's trace
                             its span; if it has neither
                             a trace nor a token, its thread's
                             tokens
    metric callback          as above; if no token is known,    a callback runs in the reader's thread, outside any
                             ``_without_trace``                 request
    `RedactingSpanExporter`  as for a span at end; if no token  an exporter runs in its own thread, after the
                             is known, ``_without_trace``       request
    exported metric          all of them                        without the hooks, data points have lost their
    (`fallback`)                                                context
    resource, scope,         the current trace's tokens         a request can use its token as the name; the object
    instrument at creation                                      is kept, so only remembered tokens are masked
    resource, scope,         none                               a caller must not be able to mask a service's names
    instrument at export
    ======================== ================================== ======================================================

    Args:
        traces: The minimum number of traces to remember. The maximum is twice that number, because traces are stored in
            two generations. When the recent generation is full, the older generation is discarded.
    """

    def __init__(self, traces: int = _MAX_RECENT_TRACES) -> None:
        self._max_recent = traces
        self.renew_lock()
        self.forget()

    def renew_lock(self) -> None:
        """Replace the lock in a forked child process, where the thread that held the old lock does not exist."""
        self._lock = threading.RLock()

    def forget(self) -> None:
        """Forget all tokens."""
        with self._lock:
            self.recent_traces: dict[int, KnownTokens] = {}
            self.older_traces: dict[int, KnownTokens] = {}
            self._traces_to_renew: deque[int] = deque(maxlen=self._max_recent)
            self._recent_characters = 0
            self.in_use: TokensInUse = TokensInUse()
            self._without_trace = RecentTokens(_MAX_WITHOUT_TRACE, self.in_use)
            self._last_without_trace = ""
            self._verified = RecentTokens(_MAX_VERIFIED, ())
            self._of_thread = threading.local()

    def __repr__(self) -> str:
        return f"RememberedTokens({len(self.recent_traces) + len(self.older_traces)} traces)"

    def is_lasting(self, token: BearerToken) -> bool:
        """Return whether a token can be remembered and masked in other requests' records."""
        return self.was_lasting(token.reveal()) or token.verification is not None

    def was_lasting(self, value: str) -> bool:
        """Return whether a token can be remembered even if it has not been verified in the current request."""
        return looks_like_credential(value) or value in self._verified

    def remember_verified(self, value: str) -> None:
        """Record that a verifier has accepted a token so that it can be remembered from now on."""
        with self._lock:
            self._verified.add(value)

    def remember(self, trace_id: int, value: str) -> KnownTokens:
        """Add a token to a trace and return all of the trace's tokens."""
        known = self.recent_traces.get(trace_id)
        if known is not None and value in known.values:
            return known
        with self._lock:
            known = self.recent_traces.get(trace_id) or self.older_traces.get(trace_id)
            if known is None:
                known = known_from_one(value)
            elif value not in known.values:
                known = known_from(*within_limit((*known.values, value), _MAX_OF_TRACE, self.in_use))
            self._keep(trace_id, known)
            while self._traces_to_renew:
                trace_id = self._traces_to_renew.popleft()
                if trace_id not in self.recent_traces and trace_id in self.older_traces:
                    self._keep(trace_id, self.older_traces[trace_id])
        return known

    def remember_unused(self, trace_id: int, words: tuple[str, ...]) -> None:
        """Add a request's unused credentials to this thread and to the request's trace, if there is room."""
        for word in filter(self.was_lasting, words):
            own = self._own_of_thread()
            if own["tokens"].add_if_room(word):
                own["known"] = None
            if not trace_id:
                continue
            with self._lock:
                known = self.recent_traces.get(trace_id) or self.older_traces.get(trace_id) or NOTHING
                if word not in known.values and len(known.values) < _MAX_OF_TRACE:
                    self._keep(trace_id, known_from(*known.values, word))

    def remember_without_trace(self, value: str) -> None:
        """Add a token that was bound while no span was current."""
        # During a request, each server boundary and each call to `extract` binds the same token again.
        if value == self._last_without_trace:
            return
        with self._lock:
            self._without_trace.add(value)
            self._last_without_trace = value

    def remember_in_thread(self, value: str) -> None:
        """Add a token to this thread's tokens, for records that the thread creates after the request."""
        own = self._of_thread.__dict__
        if own.get("last") == value:
            return
        if not own:
            own = self._own_of_thread()
        if own["tokens"].add(value):
            own["known"] = None
        own["last"] = value

    def _own_of_thread(self) -> dict[str, Any]:
        own = self._of_thread.__dict__
        if not own:
            own.update(tokens=RecentTokens(_MAX_OF_THREAD, self.in_use, _MAX_IN_USE_OF_THREAD), known=None)
        return own

    def of_thread(self) -> KnownTokens:
        """Return the tokens that this thread bound most recently.

        A server can log a request after the request has ended and its trace is no longer current.
        """
        own = self._of_thread.__dict__
        if not own:
            return NOTHING
        if own["known"] is None:
            own["known"] = known_with_remembered((), own["tokens"].values())
        known: KnownTokens = own["known"]
        return known

    def without_trace(self) -> KnownTokens:
        """Return the most recent tokens that were bound while no span was current."""
        return known_with_remembered((), self._without_trace.values())

    def of_trace(self, trace_id: int) -> KnownTokens:
        """Return a trace's tokens.

        If the trace is in the older generation, the next update moves it to the recent generation.
        """
        known = self.recent_traces.get(trace_id)
        if known is not None:
            return known
        known = self.older_traces.get(trace_id)
        if known is None:
            return NOTHING
        self._traces_to_renew.append(trace_id)
        return known

    def all_tokens(self) -> KnownTokens:
        """Return the tokens from all traces and the tokens that were bound without a trace. This method is slow."""
        traces = [*self.older_traces.copy().values(), *self.recent_traces.copy().values()]
        values = [value for known in traces for value in known.values]
        return KnownTokens((), tuple(dict.fromkeys([*self._without_trace.values(), *values])))

    def _keep(self, trace_id: int, known: KnownTokens) -> None:
        self.recent_traces[trace_id] = known
        # Callers choose trace IDs and tokens, so the total number of characters is also limited.
        self._recent_characters += sum(map(len, known.values))
        if len(self.recent_traces) > self._max_recent or self._recent_characters > _MAX_CHARACTERS:
            self.older_traces, self.recent_traces, self._recent_characters = self.recent_traces, {}, 0


REMEMBERED: Final = RememberedTokens()
call_in_child(REMEMBERED, RememberedTokens.renew_lock)
_listeners = 0
_lock = threading.RLock()


def listen() -> None:
    """Start remembering tokens when they are bound."""
    global _listeners
    with _lock:
        _listeners += 1
        if _remember_bound not in token_watchers:
            token_watchers.append(_remember_bound)
            verification_watchers.append(_remember_verified)
            unused_watchers.append(_remember_unused)


def stop_listening() -> None:
    """Undo one call to `listen`. After all calls have been undone, all tokens are forgotten."""
    global _listeners
    with _lock:
        _listeners = max(0, _listeners - 1)
        if _listeners == 0 and _remember_bound in token_watchers:
            token_watchers.remove(_remember_bound)
            verification_watchers.remove(_remember_verified)
            unused_watchers.remove(_remember_unused)
            REMEMBERED.forget()
            clear_caches()


def _trace_id_of(span: Any) -> int:
    """Return a span's trace ID, or 0 if the ID is missing or is not an integer.

    The ID can be missing in tests with fake spans, for example.
    """
    if span is None:
        return 0
    try:
        trace_id = span.get_span_context().trace_id
    except Exception:
        return 0
    return trace_id if isinstance(trace_id, int) else 0


def _remember_bound(token: BearerToken, context: Context) -> None:
    value = token._value
    span: Any = context.get(SPAN_KEY)
    trace_id = 0 if span is None else _trace_id_of(span)
    if looks_like_credential(value) or REMEMBERED.is_lasting(token):
        REMEMBERED.in_use.add(token)
        REMEMBERED.remember_in_thread(value)
        if trace_id:
            REMEMBERED.remember(trace_id, value)
        else:
            REMEMBERED.remember_without_trace(value)
    if trace_id:
        _add_to_span(span, value)


def _remember_unused(unused: UnusedCredentials, context: Context) -> None:
    span: Any = context.get(SPAN_KEY)
    trace_id = _trace_id_of(span)
    REMEMBERED.remember_unused(trace_id, unused.words)
    if trace_id and span.is_recording():
        _hold_words(span, unused.words)


def _remember_verified(token: BearerToken) -> None:
    value = token.reveal()
    if not REMEMBERED.was_lasting(value):
        REMEMBERED.remember_verified(value)
        _remember_bound(token, get_current())


def _add_to_span(span: Any, value: str) -> None:
    """Store a token on a recording span, because the span's trace might be forgotten before the span ends."""
    if not span.is_recording():
        return
    held = getattr(span, HELD, None)
    if not isinstance(held, KnownTokens):
        held = known_from_one(value)
    elif value not in held.values:
        held = known_from(*within_limit((*held.values, value), _MAX_OF_SPAN, REMEMBERED.in_use))
    with contextlib.suppress(AttributeError):  # not an SDK span, but the trace might have the token
        setattr(span, HELD, held)


def _hold_words(span: Any, words: tuple[str, ...]) -> None:
    """Store a request's unused credentials on a span, unless the span already has too many tokens."""
    held = getattr(span, HELD, None)
    if not isinstance(held, KnownTokens):
        held = NOTHING
    if len(held.values) <= _MAX_OF_SPAN:
        with contextlib.suppress(AttributeError):  # not an SDK span, but the trace might have the credentials
            setattr(span, HELD, _with_words(held, words))


def _with_words(known: KnownTokens, words: tuple[str, ...]) -> KnownTokens:
    """Return a record's known tokens with *words* added to the record's own tokens."""
    return known_with_remembered(tuple(dict.fromkeys((*known.values, *words))), known.remembered)


def note_start(span: Any, context: Context | None) -> None:
    """Remember the credentials that are bound when an SDK span starts."""
    context = get_current() if context is None else context
    token: Any = context.get(TOKEN_KEY)
    if token is not None:
        hold_token(span, token, span._context.trace_id)
    if UNUSED_KEY in context:
        hold_unused(span, context)


def hold_unused(span: Any, context: Context) -> None:
    """Store a context's unused credentials on an SDK span that is starting, and add them to the span's trace."""
    if words := _unused_words(context):
        REMEMBERED.remember_unused(span._context.trace_id, words)
        _hold_words(span, words)


def _unused_words(context: Context) -> tuple[str, ...]:
    """Return a context's unused credentials, or an empty tuple if their request has ended."""
    unused: Any = context.get(UNUSED_KEY)
    return unused.words if unused is not None and unused.is_open else ()


def hold_token(span: Any, token: Any, trace_id: int) -> None:
    """Store a `BearerToken` on an SDK span that is starting.

    If the token can be remembered, add it to the span's trace.
    """
    known = REMEMBERED.recent_traces.get(trace_id)
    # Usually, the token's request has not ended, and the trace contains only this token. This code runs for each span,
    # so it avoids function calls. Sharing the object speeds up the comparison in `tokens_of_span`.
    lease, value = token.lease, token._value
    if known is not None and known.values == (value,) and (lease is None or lease._deadline == _NO_DEADLINE):
        span._token_relay_known = known
        return
    if known is None or value not in known.values:
        is_lasting = looks_like_credential(value) or REMEMBERED.is_lasting(token)
        known = REMEMBERED.remember(trace_id, value) if is_lasting else known_from_one(value)
    if lease is None or lease._deadline == _NO_DEADLINE or lease.is_open:
        span._token_relay_known = known if len(known.values) == 1 else known_from_one(value)


def tokens_of_span(span: Any, trace_id: int) -> KnownTokens:
    """Return the tokens from a span, its trace, and the context in which the span ends.

    If there are no such tokens, return the tokens that the thread bound most recently. The attributes of a span outside
    a request might have been set while one of those tokens was bound.
    """
    known = REMEMBERED.recent_traces.get(trace_id)
    held: KnownTokens | None = getattr(span, HELD, None)
    context = get_current()
    token: Any = context.get(TOKEN_KEY)
    if UNUSED_KEY in context:
        held = _with_words(held or NOTHING, _unused_words(context))
    if held is None:
        if known is None and token is None and trace_id not in REMEMBERED.older_traces:
            return REMEMBERED.of_thread()  # the most common case if the request has no token
    elif held is known and (token is None or (not token.obtained and token._value in held.values)):
        return held  # the most common case if the request has a token; see also `spans`
    found = _combine(held or NOTHING, token, known or REMEMBERED.of_trace(trace_id))
    return REMEMBERED.of_thread() if found is NOTHING else found


def with_later_tokens(known: KnownTokens, trace_id: int | None) -> KnownTokens:
    """Return *known* with the tokens that were bound in the trace after *known* was collected."""
    present = REMEMBERED.recent_traces.get(trace_id) if trace_id else None
    if present is None or present is known:
        return known
    new = [value for value in present.values if value not in known.values and value not in known.remembered]
    return known_with_remembered(known.values, (*known.remembered, *new)) if new else known


def tokens_in_context(context: Context, trace_id: int | None = None) -> KnownTokens:
    """Return the token that is bound in a context and the tokens from the context's trace.

    Args:
        context: The context that contains the token and the span.
        trace_id: The trace ID. The default is the trace ID of the span in *context*.
    """
    if UNUSED_KEY in context:
        words = _unused_words(context)
        context = Context({key: value for key, value in context.items() if key != UNUSED_KEY})
        return _with_words(tokens_in_context(context, trace_id), words)
    token: Any = context.get(TOKEN_KEY)
    span: Any = context.get(SPAN_KEY)
    if trace_id is None:
        # Handle the most common case here to avoid a function call for each measurement.
        try:
            trace_id = 0 if span is None else span.get_span_context().trace_id
        except Exception:
            trace_id = 0
        if type(trace_id) is not int:
            trace_id = _trace_id_of(span)
    if token is not None and _is_own(token):
        own = known_from(*token.reveal_all()) if token.obtained else known_from_one(token.reveal())
        if not trace_id or REMEMBERED.recent_traces.get(trace_id) is own:
            return own  # the most common case
    if not trace_id:
        found = NOTHING if token is None else _combine(NOTHING, token, NOTHING)
        return REMEMBERED.of_thread() if found is NOTHING else found
    known = REMEMBERED.recent_traces.get(trace_id) or REMEMBERED.of_trace(trace_id)
    if known is NOTHING:
        if isinstance(held := getattr(span, HELD, None), KnownTokens):
            # The trace might already have been forgotten. Tokens on the span that do not look like credentials are
            # masked only in the span itself.
            known = known_from(*filter(looks_like_credential, held.values))
        elif token is None:
            return NOTHING
    return _combine(NOTHING, token, known)


def lasting_tokens() -> KnownTokens:
    """Return the tokens to mask in an object that outlives the current request.

    The result contains only the tokens from the current context and trace that can be remembered.
    """
    context = get_current()
    token: Any = context.get(TOKEN_KEY)
    span: Any = context.get(SPAN_KEY)
    trace_id = _trace_id_of(span)
    found = [] if token is None or not REMEMBERED.is_lasting(token) else [token.reveal()]
    found += filter(REMEMBERED.was_lasting, _unused_words(context))
    if trace_id:
        found += REMEMBERED.of_trace(trace_id).values
    return known_with_remembered((), tuple(dict.fromkeys(found)))


def _combine(held: KnownTokens, token: BearerToken | None, of_trace: KnownTokens) -> KnownTokens:
    """Return the known tokens from a record's span, context, and trace."""
    own, remembered = held.values, of_trace.values
    if token is not None and _is_own(token):
        own = tuple(dict.fromkeys((*own, *token.reveal_all())))
    elif token is not None and (value := token.reveal()) not in (*own, *remembered) and REMEMBERED.is_lasting(token):
        remembered = (*remembered, value)
    if not remembered:
        return known_from(*own) if own else NOTHING
    return known_with_remembered(own, tuple([value for value in remembered if value not in own]))


def _is_own(token: BearerToken) -> bool:
    """Return whether a token's request is still in progress.

    Work that a request started (for example, in a thread pool) keeps the request's context after the request has ended.
    """
    lease = token.lease
    # Checking the deadline first avoids a function call, because an open lease's deadline is nearly always infinite.
    return lease is None or lease._deadline == _NO_DEADLINE or lease.is_open
