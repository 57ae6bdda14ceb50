"""Make every decision visible: span attributes, a counter and a debug log line, never the token.

Free when nothing listens: a span that does not record, a meter without an SDK and a logger above
``DEBUG`` cost one check each.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final, Literal

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context

from otel_token_relay.reasons import Reason

Outcome = Literal["relayed", "exchanged", "withheld"]


_SENT: dict[Reason, Outcome] = {Reason.RELAYED: "relayed", Reason.EXCHANGED: "exchanged"}


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for one hop, and its reason. It never contains a token.

    Attributes:
        reason: One of the closed set.
        outcome: ``relayed`` or ``exchanged`` if a token was sent, ``withheld`` if not.
    """

    reason: Reason

    @property
    def outcome(self) -> Outcome:
        return _SENT.get(self.reason, "withheld")


__all__ = ["Decision", "DecisionRecorder", "Reason", "is_suppressed"]

DECISION_ATTRIBUTE: Final = "token_relay.decision"
REASON_ATTRIBUTE: Final = "token_relay.reason"
ADDRESS_ATTRIBUTE: Final = "server.address"
COUNTER_NAME: Final = "token_relay.decisions"

_logger = logging.getLogger("otel_token_relay")

# Where a context keeps its span. `get_current_span` also checks that it is one, by an abstract class, which
# costs more than everything else that is done for a hop nobody watches.
_SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))


# What exporters and other telemetry code set around their own calls. The one for HTTP alone is
# not here: requests, urllib and urllib3 instrumentation sets it around the application's own call.
SUPPRESS_KEY: Final = otel_context._SUPPRESS_INSTRUMENTATION_KEY
OLD_SUPPRESS_KEY: Final = "suppress_instrumentation"


def is_suppressed(context: Context) -> bool:
    """Return whether *context* is that of telemetry's own work, which is neither served nor recorded.

    An exporter may run while its provider holds a lock, and asking that provider for anything would then wait forever.
    """
    return bool(context.get(SUPPRESS_KEY) or context.get(OLD_SUPPRESS_KEY))


class DecisionRecorder:
    """Record decisions through the OpenTelemetry API. Safe to share between threads."""

    def __init__(self) -> None:
        self._counter: metrics.Counter | None = None
        # Keyed by the closed set of reasons and by hosts of the configuration: bounded.
        self._attributes: dict[tuple[Reason, str | None], dict[str, str]] = {}

    def prepare(self) -> None:
        """Create the counter now, so that no hop has to. Never raises; without an SDK, the API replaces it later."""
        try:
            if self._counter is None and not is_suppressed(otel_context.get_current()):
                self._create_counter()
        except Exception:
            _logger.debug("the counter of decisions cannot be created yet", exc_info=True)

    def is_watched(self, context: Context) -> bool:
        """Return whether a decision recorded now would appear anywhere. Never raises."""
        try:
            counter = self._counter or self._create_counter()
            # The API's own counter passes measurements on to the SDK's, once there is one.
            real = getattr(counter, "_real_instrument", counter)
            if real is not None and type(real) is not metrics.NoOpCounter:
                return True
            span: Any = context.get(_SPAN_KEY)
            if span is not None and span.is_recording() and getattr(span, "kind", None) is trace.SpanKind.CLIENT:
                return True
            return _logger.isEnabledFor(logging.DEBUG)
        except Exception:  # `record` reports what fails
            return True

    def record(self, reason: Reason, context: Context, address: str | None = None, *, is_known: bool = True) -> None:
        """Record one decision. Never raises: a decision does not depend on the application's span or meter.

        Args:
            reason: Why.
            context: Where the hop's CLIENT span is, if there is one.
            address: The host of the destination's entry; ``None`` if it is not listed, since
                hosts that a caller can choose would be series without bound.
            is_known: Whether the destination could be read at all.
        """
        try:
            span: Any = context.get(_SPAN_KEY)
            # Any other kind is the span of the whole request, which has many hops.
            if span is not None and span.is_recording() and getattr(span, "kind", None) is trace.SpanKind.CLIENT:
                span.set_attribute(DECISION_ATTRIBUTE, Decision(reason).outcome)
                span.set_attribute(REASON_ATTRIBUTE, reason.value)
            counter = self._counter or self._create_counter()
            counter.add(1, self._attributes.get((reason, address)) or self._build_attributes(reason, address))
            if _logger.isEnabledFor(logging.DEBUG):
                destination = address or ("not listed" if is_known else "unknown")
                _logger.debug("%s: %s, destination %s", Decision(reason).outcome, reason, destination)
        except Exception:
            _logger.debug("a decision could not be recorded", exc_info=True)

    def _create_counter(self) -> metrics.Counter:
        # Not at construction: that may be while OpenTelemetry itself is being imported, and
        # asking for a meter loads the meter provider.
        self._counter = metrics.get_meter("otel_token_relay").create_counter(
            COUNTER_NAME, unit="{decision}", description="Decisions on whether the caller's token was relayed."
        )
        return self._counter

    def _build_attributes(self, reason: Reason, address: str | None) -> dict[str, str]:
        attributes = {DECISION_ATTRIBUTE: Decision(reason).outcome, REASON_ATTRIBUTE: reason.value}
        if address is not None:
            attributes[ADDRESS_ATTRIBUTE] = address
        self._attributes[reason, address] = attributes
        return attributes
