"""Count and log verifications. The counter and the default log messages never contain any part of a request.

If an operator enables the decision log, it contains the name of any claim that failed verification. If ``…_LOG`` is set
to ``debug``, the decision log also contains claim values.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

from opentelemetry import trace

from otel_token_relay import operator_log
from otel_token_relay.counters import LazyCounter
from otel_token_relay.operator_log import DecisionLog
from otel_token_relay.rate_limits import RateLimit

_logger = logging.getLogger("otel_token_relay")

COUNTER_NAME: Final = "token_relay.verifications"
OUTCOME_ATTRIBUTE: Final = "token_relay.verification"
REASON_ATTRIBUTE: Final = "token_relay.reason"
CLAIM_ATTRIBUTE: Final = "token_relay.claim"

# The minimum number of seconds between two warnings for the same reason.
WARNING_SECONDS: Final = 60.0

Mode = Literal["report", "optional", "enforce"]
Outcome = Literal["accepted", "reported", "refused", "unavailable", "excluded"]

_WARNINGS: Final[dict[Outcome, str]] = {
    "reported": "report mode: request would have been rejected (%s); %d more since the last warning",
    "refused": "request rejected (%s); %d more since the last warning",
    "unavailable": "request failed with 503 because tokens cannot be verified (%s); %d more since the last warning",
}


class VerificationRecorder:
    """A recorder for an authenticator's verifications. This class is thread-safe.

    Every request that is not accepted is logged at the DEBUG level. In addition, at most one warning per minute is
    logged for each reason.

    Args:
        mode: The verification mode. In ``report`` mode, the outcome for a request that would otherwise be rejected is
            ``reported``.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._counter = LazyCounter(COUNTER_NAME, "{request}", "Requests, by the result of their token verification.")
        self._warnings = RateLimit(1, WARNING_SECONDS)
        # The keys are reasons or, for requests without a reason, outcomes. The number of keys is limited, and each
        # reason has exactly one outcome.
        self._attributes: dict[str, dict[str, str]] = {}

    def prepare(self) -> None:
        """Create the counter before the first request. This method never raises an exception."""
        self._counter.prepare()

    def record(
        self,
        outcome: Outcome,
        reason: str | None = None,
        cause: Callable[[], str] | None = None,
        *,
        claim: str | None = None,
        details: Callable[[], str] | None = None,
    ) -> None:
        """Count a request, and log it if a *reason* is given. This method never raises an exception.

        Args:
            outcome: The outcome of the verification.
            reason: The reason why the request is not accepted; ``None`` if the request is accepted.
            cause: A function that returns a one-line description of the problem, without any values from the request.
                This function is called only if the decision log is enabled.
            claim: The name of the claim that failed verification.
            details: A function that returns a one-line description of the expected and actual values, without any part
                of the encoded token. This function is called only if the decision log can contain values.
        """
        if reason is not None and self._mode == "report":
            outcome = "reported"
        attributes = self._attributes.get(reason or outcome) or self._build_attributes(outcome, reason)
        try:
            counter = self._counter.created or self._counter.create()
            counter.add(1, attributes)
        except Exception:  # an error in the application's meter must not affect the verification
            self._log("a verification could not be counted")
        if operator_log.decisions is not None:
            _write(operator_log.decisions, outcome, reason, claim, details if operator_log.shows_values else cause)
        if reason is None:
            return
        self._log("request rejected: %s", reason)
        skipped = self._warnings.admit(reason)
        if skipped is not None:
            operator_log.warn(_WARNINGS[outcome], reason, skipped)

    def _build_attributes(self, outcome: Outcome, reason: str | None) -> dict[str, str]:
        attributes: dict[str, str] = {OUTCOME_ATTRIBUTE: outcome}
        if reason is not None:
            attributes[REASON_ATTRIBUTE] = reason
        self._attributes[reason or outcome] = attributes
        return attributes

    def _log(self, message: str, *args: object) -> None:
        with suppress(Exception):  # an error in the application's logging must not affect the verification
            _logger.debug(message, *args)


def _write(
    log: DecisionLog, outcome: Outcome, reason: str | None, claim: str | None, cause: Callable[[], str] | None
) -> None:
    with suppress(Exception):  # an error in the application's span must not affect the verification
        trace_id = trace.get_current_span().get_span_context().trace_id
        log.write(
            verification=outcome,
            reason=reason,
            claim=claim,
            trace_id=trace.format_trace_id(trace_id) if trace_id else None,
            cause=cause,  # must be last, because long lines are truncated
        )
