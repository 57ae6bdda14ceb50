"""Immutable types for the cause of a rejection and the acceptance criteria of a verifier."""

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
    """The reason for a token's rejection. All strings are printable ASCII.

    Attributes:
        check: The name of the failed check (for example, ``signature``, ``length``, or the name of a claim or header
            member).
        problem: One sentence that states what was expected and what the token contains.
        expected: The accepted values. The tuple is empty if the rule does not list any values.
        actual: The values in the token. The tuple is empty if the token does not contain any values.
        advice: The recommended action, in one or two sentences.
    """

    check: str
    problem: str
    expected: tuple[str, ...] = ()
    actual: tuple[str, ...] = ()
    advice: str

    def __str__(self) -> str:
        return f"{self.check}: {self.problem}"

    def line(self, limit: int = MAX_LINE_LENGTH) -> str:
        """Return the cause as a single line of at most *limit* bytes. The line does not include the advice."""
        return shorten(str(self), limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """A verifier's acceptance criteria.

    Attributes:
        rules: The claim rules.
        issuers: The trusted issuers.
        tenants: The accepted Microsoft Entra tenants. If the tuple is empty, any tenant is accepted.
        algorithms: The accepted values of ``alg``.
        max_length: The maximum number of characters in a token.
        required_scopes: The scopes that every token must have.
        keys: The ``kid`` and ``alg`` of each of the issuer's keys, or ``None`` if the keys are unknown.
        unusable_keys: The ``kid`` of each unusable key in the key set and the reason that the key cannot be used.
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
    """Join the names into a printable list. Omit or shorten names that exceed this module's limits."""
    names = list(names)
    shown = [shorten(escape(name), MAX_VALUE_LENGTH) for name in names[:MAX_VALUES]]
    return ", ".join([*shown, f"{len(names) - MAX_VALUES} more"] if len(names) > MAX_VALUES else shown)


def describe_time(seconds: float) -> str:
    """Format a UTC time as specified by RFC 3339, or as seconds since the epoch if it is before 1970 or after 9999."""
    if not 0 <= seconds <= _LAST_DATE:
        return f"{seconds:.0f}"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
