"""Record the relay's decisions and verification results, for assertions in tests."""

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
    """The decision for one hop. It contains no token.

    Attributes:
        outcome: ``relayed``, ``exchanged``, ``own``, or ``withheld``.
        reason: The `Reason`, as text.
        origin: The request's destination, such as ``https://profile-service``; ``unknown`` if it is not known.
        entry: The matching entry; ``None`` if no entry matches.
        closest_entry: If no entry matches, the entry that differs least and how it differs; otherwise, or if there is
            no such entry, ``None``.
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
    """The result of verifying one incoming request. It contains no token.

    Attributes:
        outcome: ``accepted``, ``reported``, ``refused``, ``unavailable``, or ``excluded``.
        reason: Why the request was not accepted; ``None`` if it was.
        claim: The claim that violates a rule; ``None`` unless there is exactly one.
    """

    outcome: str
    reason: str | None = None
    claim: str | None = None


class RecordedDecisions(Sequence[RecordedDecision]):
    """The decisions so far, oldest first. Safe to share between threads.

    Attributes:
        verifications: The verification results, oldest first.
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
        """Forget all decisions and verifications."""
        self._decisions.clear()
        self.verifications.clear()

    def reasons(self, url: str) -> list[str]:
        """Return the reasons for all decisions about *url*'s origin, oldest first.

        Raises:
            ValueError: *url* has no origin, or different clients parse it differently.
        """
        return [decision.reason for decision in self._of(url)]

    def assert_sent(self, url: str) -> None:
        """Fail unless at least one request was sent to *url*'s origin and every such request carried a token.

        Raises:
            ValueError: *url* has no origin, or different clients parse it differently.
        """
        __tracebackhide__ = True
        found = self._of(url)
        if not found or any(decision.outcome == "withheld" for decision in found):
            raise AssertionError(self._explain(f"expected each request to {_shown(url)} to carry a token"))

    def assert_withheld(self, url: str, reason: str | None = None) -> None:
        """Fail unless at least one request was sent to *url*'s origin and no such request carried a token.

        Args:
            url: Any URL at the destination.
            reason: The expected reason; ``None`` for any reason.

        Raises:
            ValueError: *url* has no origin, or different clients parse it differently.
        """
        __tracebackhide__ = True
        found = self._of(url)
        if not found or any(one.outcome != "withheld" or reason not in (None, one.reason) for one in found):
            why = "" if reason is None else f" ({reason})"
            raise AssertionError(self._explain(f"expected each request to {_shown(url)} to be withheld{why}"))

    def _of(self, url: str) -> list[RecordedDecision]:
        shown = _shown(url)
        return [decision for decision in self if decision.origin == shown]

    def _explain(self, expected: str) -> str:
        lines = [f"  {decision}" for decision in self] or [
            "  none. Either no request was sent, or a mock or a plug-in replaces the place where the relay adds the"
            " header; see docs/testing.md."
        ]
        return "\n".join([f"{expected}. Recorded decisions:", *lines])


def _shown(url: str) -> str:
    origin = Origin.parse(url)
    if origin is None:
        raise ValueError("expected a URL with a scheme and a host, without user info")
    return str(origin)


class _Log(DecisionLog):
    """Record what the decision log receives, and pass it on if the log is enabled."""

    def __init__(self, records: RecordedDecisions) -> None:
        super().__init__()
        self._records = records
        self.next: DecisionLog | None = None

    def write(self, **fields: str | Callable[[], str | None] | None) -> None:
        """Record one line. Never raises."""
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
    """Record decisions until the block ends, even if the relay is installed or replaced within it."""
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
