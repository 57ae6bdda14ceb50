"""Records of verifications: a counter and log lines, none of which contain any part of the request.

The decision log, which an operator must enable, also includes the claim's name. With ``…_LOG=debug``, the log also
contains claim values.
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

# The minimum number of seconds between two warnings with the same reason.
WARNING_SECONDS: Final = 60.0

Mode = Literal["report", "optional", "enforce"]
Outcome = Literal["accepted", "reported", "refused", "unavailable", "excluded"]

_WARNINGS: Final[dict[Outcome, str]] = {
    "reported": "report mode: request would have been rejected (%s); %d more since the last warning",
    "refused": "request rejected (%s); %d more since the last warning",
    "unavailable": "request failed with 503 because tokens cannot be verified (%s); %d more since the last warning",
}


class VerificationRecorder:
    """Record an authenticator's verifications. Safe to share between threads.

    Each request that is not accepted is logged at the DEBUG level. For each reason, at most one warning per minute is
    logged.

    Args:
        mode: The verification mode. In ``report`` mode, a request that would not be accepted counts as reported.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._counter = LazyCounter(COUNTER_NAME, "{request}", "Requests, by the result of their token verification.")
        self._warnings = RateLimit(1, WARNING_SECONDS)
        # Keyed by reason, or by outcome for a request without a reason. Both are closed sets, and each reason has
        # exactly one outcome.
        self._attributes: dict[str, dict[str, str]] = {}

    def prepare(self) -> None:
        """Create the counter now, so that no request has to create it. Never raises."""
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
        """Count a request and, if there is a *reason* not to accept it, log it. Never raises.

        Args:
            outcome: The result.
            reason: Why the request is not accepted; ``None`` if it is.
            cause: Returns what is wrong, in one line that contains no values from the request. This function is called
                only if the decision log is on.
            claim: The claim that violates a rule.
            details: Returns what was expected and what the token contains, in one line without any part of the raw
                token. This function is called only if the decision log may contain values.
        """
        if reason is not None and self._mode == "report":
            outcome = "reported"
        attributes = self._attributes.get(reason or outcome) or self._build_attributes(outcome, reason)
        try:
            counter = self._counter.created or self._counter.create()
            counter.add(1, attributes)
        except Exception:  # an error in the application's meter must not change the result
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
        with suppress(Exception):  # an error in the application's logging must not change the result either
            _logger.debug(message, *args)


def _write(
    log: DecisionLog, outcome: Outcome, reason: str | None, claim: str | None, cause: Callable[[], str] | None
) -> None:
    with suppress(Exception):  # an error in the application's span must not change the result
        trace_id = trace.get_current_span().get_span_context().trace_id
        log.write(
            verification=outcome,
            reason=reason,
            claim=claim,
            trace_id=trace.format_trace_id(trace_id) if trace_id else None,
            cause=cause,  # last, because a long line is truncated
        )
