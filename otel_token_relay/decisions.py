"""Hop decisions and their records: span attributes, a counter and a debug log line, none of which contains the token.

If the span is not recording, the meter has no SDK and the logger's level is above ``DEBUG``, recording a
decision costs only the time to check these three conditions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final, Literal

from opentelemetry import metrics, trace
from opentelemetry.context import Context

from otel_token_relay.counters import LazyCounter
from otel_token_relay.otel import SPAN_KEY
from otel_token_relay.reasons import Reason

_logger = logging.getLogger("otel_token_relay")

DECISION_ATTRIBUTE: Final = "token_relay.decision"
REASON_ATTRIBUTE: Final = "token_relay.reason"
ADDRESS_ATTRIBUTE: Final = "server.address"
COUNTER_NAME: Final = "token_relay.decisions"

Outcome = Literal["relayed", "exchanged", "withheld"]
_SENT: dict[Reason, Outcome] = {Reason.RELAYED: "relayed", Reason.EXCHANGED: "exchanged"}


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for one hop and the reason for it. A decision never contains a token.

    Attributes:
        reason: Why the token was sent or withheld.
        outcome: ``relayed`` or ``exchanged`` if a token was sent, ``withheld`` if not.
    """

    reason: Reason

    @property
    def outcome(self) -> Outcome:
        return _SENT.get(self.reason, "withheld")


_CLIENT: Final = trace.SpanKind.CLIENT
_OUTCOMES: Final = {reason: Decision(reason).outcome for reason in Reason}


class DecisionRecorder:
    """Record decisions through the OpenTelemetry API. Safe to share between threads."""

    def __init__(self) -> None:
        self._counter = LazyCounter(COUNTER_NAME, "{decision}", "Decisions on whether to relay the caller's token.")
        # Bounded: a key combines a reason from a closed set with a host from the configuration.
        self._attributes: dict[tuple[Reason, str | None], dict[str, str]] = {}

    def prepare(self) -> None:
        """Create the counter before the first hop. Never raises."""
        self._counter.prepare()

    def is_watched(self, context: Context) -> bool:
        """Return whether a decision recorded now would be visible anywhere. Never raises."""
        try:
            counter = self._counter.created or self._counter.create()
            # The API's counter forwards measurements to the SDK's counter once one exists.
            real = getattr(counter, "_real_instrument", counter)
            if real is not None and type(real) is not metrics.NoOpCounter:
                return True
            span: Any = context.get(SPAN_KEY)
            if span is not None and span.is_recording() and getattr(span, "kind", None) is _CLIENT:
                return True
            return _logger.isEnabledFor(logging.DEBUG)
        except Exception:  # `record` logs the error
            return True

    def record(self, reason: Reason, context: Context, address: str | None = None, *, is_known: bool = True) -> None:
        """Record one decision. Never raises: a decision must not depend on the application's span or meter.

        Args:
            reason: Why the token is sent or withheld.
            context: Contains the hop's CLIENT span, if there is one.
            address: The host in the destination's entry; ``None`` if the destination is not listed, since
                callers could otherwise create an unlimited number of time series by choosing hosts.
            is_known: Whether the destination could be determined.
        """
        try:
            span: Any = context.get(SPAN_KEY)
            # A span of another kind belongs to the whole request, which can have many hops.
            if span is not None and span.is_recording() and getattr(span, "kind", None) is _CLIENT:
                # `set_attributes` costs more than two calls.
                span.set_attribute(DECISION_ATTRIBUTE, _OUTCOMES[reason])
                span.set_attribute(REASON_ATTRIBUTE, reason.value)
            counter = self._counter.created or self._counter.create()
            counter.add(1, self._attributes.get((reason, address)) or self._build_attributes(reason, address))
            if _logger.isEnabledFor(logging.DEBUG):
                destination = address or ("not listed" if is_known else "unknown")
                _logger.debug("%s: %s, destination %s", Decision(reason).outcome, reason, destination)
        except Exception:
            _logger.debug("a decision could not be recorded", exc_info=True)

    def _build_attributes(self, reason: Reason, address: str | None) -> dict[str, str]:
        attributes: dict[str, str] = {DECISION_ATTRIBUTE: _OUTCOMES[reason], REASON_ATTRIBUTE: reason.value}
        if address is not None:
            attributes[ADDRESS_ATTRIBUTE] = address
        self._attributes[reason, address] = attributes
        return attributes
