"""Record the decision for each hop in span attributes, a counter, and log lines. Records never contain the token.

Decisions are not recorded if the hop's span is not recording, the meter has no SDK, the logger's level is above
``DEBUG``, and ``…_LOG`` is not set. In that case, the only cost is the time to check these conditions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.context import Context

from otel_token_relay import operator_log
from otel_token_relay.counters import LazyCounter
from otel_token_relay.destinations import Destination
from otel_token_relay.operator_log import DecisionLog
from otel_token_relay.origin import Origin, Target
from otel_token_relay.otel import SPAN_KEY, set_strings
from otel_token_relay.reasons import Reason

_logger = logging.getLogger("otel_token_relay")

DECISION_ATTRIBUTE: Final = "token_relay.decision"
REASON_ATTRIBUTE: Final = "token_relay.reason"
ENTRY_ATTRIBUTE: Final = "token_relay.entry"
EXCHANGE_ATTRIBUTE: Final = "token_relay.exchange.result"
ORIGIN_ATTRIBUTE: Final = "token_relay.origin"
ADDRESS_ATTRIBUTE: Final = "server.address"
COUNTER_NAME: Final = "token_relay.decisions"

Closest = Callable[[str, str, int | None], object | None]
Outcome = Literal["relayed", "exchanged", "own", "withheld"]
_SENT: dict[Reason, Outcome] = {Reason.RELAYED: "relayed", Reason.EXCHANGED: "exchanged", Reason.OWN: "own"}
ExchangeResult = Literal["hit", "miss", "joined", "failed"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for a hop and the reason for it. A decision never contains a token.

    Attributes:
        reason: Why the token was sent or withheld.
        outcome: ``relayed``, ``exchanged``, or ``own`` if a token was sent; otherwise, ``withheld``.
    """

    reason: Reason

    @property
    def outcome(self) -> Outcome:
        return _SENT.get(self.reason, "withheld")


_CLIENT: Final = trace.SpanKind.CLIENT


class _Attributes(NamedTuple):
    """The counter attributes and span attributes for a decision. The dictionaries must not be modified."""

    counter: dict[str, str]
    span: dict[str, str]


class DecisionRecorder:
    """A thread-safe recorder of decisions.

    Args:
        closest: A function that returns the closest entry for an unlisted target; ``None`` to omit closest entries.
    """

    def __init__(self, closest: Closest | None = None) -> None:
        self._closest = closest
        self._counter = LazyCounter(COUNTER_NAME, "{decision}", "Decisions on whether to relay the caller's token.")
        # Each key combines a reason from a closed set with the ID of a destination in the settings, so the number of
        # keys is limited. If keys contained hosts, callers could create any number of time series. Destinations have
        # the same lifetime as the settings, so they can be compared by identity, which is faster than hashing them.
        self._attributes: dict[tuple[Reason, int], _Attributes] = {}

    def prepare(self) -> None:
        """Create the counter before the first hop. Errors are logged, not raised."""
        self._counter.prepare()

    def is_watched(self, context: Context) -> bool:
        """Return whether any span, counter, or log would record a decision now.

        This method never raises an exception.
        """
        try:
            counter = self._counter.created or self._counter.create()
            # The API's counter forwards measurements to an SDK counter once an SDK is configured.
            real = getattr(counter, "_real_instrument", counter)
            if real is not None and type(real) is not metrics.NoOpCounter:
                return True
            span: Any = context.get(SPAN_KEY)
            if span is not None and span.is_recording() and getattr(span, "kind", None) is _CLIENT:
                return True
            return operator_log.decisions is not None or _logger.isEnabledFor(logging.DEBUG)
        except Exception:  # `record` logs the error
            return True

    def record(
        self,
        reason: Reason,
        context: Context,
        destination: Destination | None = None,
        target: Target | None = None,
        exchange: ExchangeResult | None = None,
    ) -> None:
        """Record a decision. Errors in the application's span or meter are logged, not raised.

        Args:
            reason: Why the token is sent or withheld.
            context: The context, which can contain the hop's CLIENT span.
            destination: The matching entry; ``None`` if no entry matches.
            target: The request's target; ``None`` if the target is unknown.
            exchange: How the exchanged token was obtained; ``None`` if the destination does not require an exchange.
        """
        try:
            counted, shown = self._attributes.get((reason, id(destination))) or self._build(reason, destination)
            span: Any = context.get(SPAN_KEY)
            # A span of any other kind represents the whole incoming request, which can have many hops.
            if span is not None and span.is_recording() and getattr(span, "kind", None) is _CLIENT:
                if exchange is not None:
                    shown = {**shown, EXCHANGE_ATTRIBUTE: exchange}
                if destination is None and (origin := _origin_of(target)) is not None:
                    shown = {**shown, ORIGIN_ATTRIBUTE: str(origin)}
                set_strings(span, shown)
            counter = self._counter.created or self._counter.create()
            counter.add(1, counted)
            if operator_log.decisions is not None:
                _write(operator_log.decisions, reason, context, destination, target, self._closest)
            if _logger.isEnabledFor(logging.DEBUG):
                _logger.debug("%s: %s, %s", Decision(reason).outcome, reason, _describe(destination, target))
        except Exception:
            _logger.debug("cannot record a decision", exc_info=True)

    def _build(self, reason: Reason, destination: Destination | None) -> _Attributes:
        shown: dict[str, str] = {DECISION_ATTRIBUTE: Decision(reason).outcome, REASON_ATTRIBUTE: reason.value}
        counted = shown
        if destination is not None:
            shown[ENTRY_ATTRIBUTE] = str(destination)
            if "*" not in destination.pattern.host:
                counted = {**shown, ADDRESS_ATTRIBUTE: destination.pattern.host}
        self._attributes[reason, id(destination)] = built = _Attributes(counted, shown)
        return built


def _origin_of(target: Target | None) -> Origin | None:
    return None if target is None else Origin.of(*target)


def _describe(destination: Destination | None, target: Target | None) -> str:
    if destination is not None:
        return f"entry {destination}"
    return f"origin {_origin_of(target) or 'unknown'}"


def _write(
    log: DecisionLog,
    reason: Reason,
    context: Context,
    destination: Destination | None,
    target: Target | None,
    closest: Closest | None,
) -> None:
    origin = _origin_of(target)

    def closest_entry() -> str | None:
        near = closest(*target) if target is not None and closest is not None else None
        return None if near is None else str(near)

    trace_id = trace.get_current_span(context).get_span_context().trace_id
    log.write(
        decision=Decision(reason).outcome,
        reason=reason.value,
        origin="unknown" if origin is None else str(origin),
        entry=None if destination is None else str(destination),
        trace_id=trace.format_trace_id(trace_id) if trace_id else None,
        closest_entry=closest_entry if destination is None else None,  # written last, because long lines are truncated
    )
