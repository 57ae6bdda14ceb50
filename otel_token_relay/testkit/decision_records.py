"""Record the relay's decisions and verification results for test assertions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import overload

from otel_token_relay import operator_log
from otel_token_relay.operator_log import DecisionLog
from otel_token_relay.origin import Origin


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A record of the decision for a hop. The record contains no tokens.

    Attributes:
        outcome: ``relayed``, ``exchanged``, ``own``, or ``withheld``.
        reason: The value of the decision's `Reason`.
        origin: The destination's origin, such as ``https://profile-service``, or ``unknown`` if the origin cannot be
            determined.
        entry: The matching entry, or ``None`` if no entry matches.
        closest_entry: The most similar entry and how it differs from the destination, or ``None`` if an entry matches
            or no entry is similar.
    """

    outcome: str
    reason: str
    origin: str
    entry: str | None = None
    closest_entry: str | None = None

    def __str__(self) -> str:
        why = "" if self.reason == self.outcome else f" ({self.reason})"
        near = f"; closest entry: {self.closest_entry}" if self.closest_entry else ""
        return f"{self.origin}: {self.outcome}{why}{near}"


@dataclass(frozen=True, slots=True)
class RecordedVerification:
    """A record of the verification of an incoming request. The record contains no tokens.

    Attributes:
        outcome: ``accepted``, ``reported``, ``refused``, ``unavailable``, or ``excluded``.
        reason: The reason that the request was not accepted, or ``None`` if it was accepted.
        claim: The claim that violates a rule, if exactly one claim does; otherwise, ``None``.
    """

    outcome: str
    reason: str | None = None
    claim: str | None = None


class RecordedDecisions(Sequence[RecordedDecision]):
    """A thread-safe sequence of the recorded decisions, in chronological order.

    Attributes:
        verifications: The verification results in chronological order.
    """

    def __init__(self) -> None:
        self._decisions: list[RecordedDecision] = []
        self.verifications: list[RecordedVerification] = []

    @overload
    def __getitem__(self, index: int) -> RecordedDecision: ...

    @overload
    def __getitem__(self, index: slice) -> list[RecordedDecision]: ...

    def __getitem__(self, index: int | slice) -> RecordedDecision | list[RecordedDecision]:
        return self._decisions[index]

    def __len__(self) -> int:
        return len(self._decisions)

    def __iter__(self) -> Iterator[RecordedDecision]:
        return iter([*self._decisions])

    def __repr__(self) -> str:
        return f"<RecordedDecisions: {'; '.join(map(str, self)) or 'none'}>"

    def clear(self) -> None:
        """Remove all recorded decisions and verification results."""
        self._decisions.clear()
        self.verifications.clear()

    def reasons(self, url: str) -> list[str]:
        """Return the reasons for all decisions about *url*'s origin, in chronological order.

        Raises:
            ValueError: *url* has no origin, or HTTP clients disagree about how to parse it.
        """
        return [decision.reason for decision in self._of(url)]

    def assert_sent(self, url: str) -> None:
        """Fail unless at least one request was sent to *url*'s origin and each of those requests carried a token.

        Raises:
            ValueError: *url* has no origin, or HTTP clients disagree about how to parse it.
        """
        __tracebackhide__ = True
        found = self._of(url)
        if not found or any(decision.outcome == "withheld" for decision in found):
            raise AssertionError(self._explain(f"expected each request to {_shown(url)} to carry a token"))

    def assert_withheld(self, url: str, reason: str | None = None) -> None:
        """Fail unless at least one request was sent to *url*'s origin and none of those requests carried a token.

        Args:
            url: A URL with the destination's origin.
            reason: The expected reason, or ``None`` to accept any reason.

        Raises:
            ValueError: *url* has no origin, or HTTP clients disagree about how to parse it.
        """
        __tracebackhide__ = True
        found = self._of(url)
        if not found or any(one.outcome != "withheld" or reason not in (None, one.reason) for one in found):
            why = "" if reason is None else f" ({reason})"
            raise AssertionError(
                self._explain(f"expected the token to be withheld from each request to {_shown(url)}{why}")
            )

    def _of(self, url: str) -> list[RecordedDecision]:
        shown = _shown(url)
        return [decision for decision in self if decision.origin == shown]

    def _explain(self, expected: str) -> str:
        lines = [f"  {decision}" for decision in self] or [
            "  none. Either no request was sent, or a mock or a plug-in replaces the code that adds the header; see"
            " docs/testing.md."
        ]
        return "\n".join([f"{expected}. Recorded decisions:", *lines])


def _shown(url: str) -> str:
    origin = Origin.parse(url)
    if origin is None:
        raise ValueError("expected a URL with a scheme and a host, without user info")
    return str(origin)


class _Log(DecisionLog):
    """A decision log that records each line's fields and forwards them to the previous log."""

    def __init__(self, records: RecordedDecisions) -> None:
        super().__init__()
        self._records = records
        self.next: DecisionLog | None = None

    def write(self, **fields: str | Callable[[], str | None] | None) -> None:
        """Record one log line. This method never raises an exception."""
        values = {name: value() if callable(value) else value for name, value in fields.items()}
        reason = values.get("reason")
        if (outcome := values.get("decision")) is not None:
            decision = RecordedDecision(
                outcome, reason or "", values.get("origin") or "", values.get("entry"), values.get("closest_entry")
            )
            self._records._decisions.append(decision)
        elif (outcome := values.get("verification")) is not None:
            self._records.verifications.append(RecordedVerification(outcome, reason, values.get("claim")))
        if self.next is not None:
            self.next.write(**values)


@contextmanager
def recording() -> Generator[RecordedDecisions, None, None]:
    """Record decisions until the block ends, even if the relay is installed or replaced within the block."""
    records = RecordedDecisions()
    log = _Log(records)
    follow = operator_log.follow

    def attach() -> None:
        log.next, operator_log.decisions = operator_log.decisions, log

    def follow_and_record(mode: str) -> None:
        operator_log.decisions = log.next
        follow(mode)
        attach()

    operator_log.follow = follow_and_record
    attach()
    try:
        yield records
    finally:
        operator_log.follow = follow
        operator_log.decisions = log.next
