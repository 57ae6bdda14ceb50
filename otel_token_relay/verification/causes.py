"""Types that describe the cause of a rejection and what a verifier accepts. Pure values: no I/O and no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from otel_token_relay.algorithms import DEFAULT_ALGORITHMS
from otel_token_relay.errors import RejectReason
from otel_token_relay.printable import escape, shorten
from otel_token_relay.token import DEFAULT_MAX_LENGTH
from otel_token_relay.verification.claims import Rules

ExplainedReason = RejectReason | Literal["insufficient_scope", "insufficient_user_authentication"]

MAX_VALUE_LENGTH: Final = 100
MAX_VALUES: Final = 5
MAX_LINE_LENGTH: Final = 500

_LAST_DATE: Final = 253_402_300_799  # 9999-12-31T23:59:59Z, the latest time that `datetime` supports


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a token was rejected. All text is printable ASCII.

    Attributes:
        check: What was checked: a claim, a header member, ``signature``, ``form``, or ``length``.
        problem: What was expected and what the token contains, in one sentence.
        expected: The accepted values; empty if the rule does not list them.
        actual: The token's values; empty if it has none.
        advice: What to do, in one or two sentences.
    """

    check: str
    problem: str
    expected: tuple[str, ...] = ()
    actual: tuple[str, ...] = ()
    advice: str

    def __str__(self) -> str:
        return f"{self.check}: {self.problem}"

    def line(self, limit: int = MAX_LINE_LENGTH) -> str:
        """Return the cause without the advice, as one line of at most *limit* bytes."""
        return shorten(str(self), limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """What a verifier accepts.

    Attributes:
        rules: The claim rules.
        issuers: The trusted issuers.
        tenants: The accepted Microsoft Entra tenants; empty to accept any tenant.
        algorithms: The accepted values of ``alg``.
        max_length: The maximum token length in characters.
        required_scopes: The scopes that every request requires.
        keys: The ``kid`` and ``alg`` of each of the issuer's keys; ``None`` if the keys are not known.
        unusable_keys: The ``kid`` of each unusable key in the key set, and the problem with the key.
    """

    rules: Rules
    issuers: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    max_length: int = DEFAULT_MAX_LENGTH
    required_scopes: tuple[str, ...] = ()
    keys: tuple[tuple[str | None, str], ...] | None = None
    unusable_keys: tuple[tuple[str | None, str], ...] = ()


def join_names(names: Iterable[str]) -> str:
    """Return the names as a printable list, truncated to this module's limits."""
    names = list(names)
    shown = [shorten(escape(name), MAX_VALUE_LENGTH) for name in names[:MAX_VALUES]]
    return ", ".join([*shown, f"{len(names) - MAX_VALUES} more"] if len(names) > MAX_VALUES else shown)


def describe_time(seconds: float) -> str:
    """Return a UTC time in RFC 3339 format, or the number itself if it is later than the year 9999."""
    if not 0 <= seconds <= _LAST_DATE:
        return f"{seconds:.0f}"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
