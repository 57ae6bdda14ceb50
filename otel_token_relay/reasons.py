"""The closed set of reasons for a decision. The strings are stable: users alert on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Reason(Enum):
    """Why a token was or was not relayed, or why none was accepted at the door."""

    # Something was sent.
    RELAYED = "relayed"
    EXCHANGED = "exchanged"
    # Nothing was sent.
    NO_TOKEN = "no_token"
    DESTINATION_UNKNOWN = "destination_unknown"
    DESTINATION_NOT_LISTED = "destination_not_listed"
    EXPLICIT_CREDENTIAL = "explicit_credential"
    EXPIRED = "expired"
    TOO_OLD = "too_old"
    LEASE_ENDED = "lease_ended"
    OTHER_PROCESS = "other_process"
    SENDER_CONSTRAINED = "sender_constrained"
    NOT_VERIFIED = "not_verified"
    EXCHANGE_FAILED = "exchange_failed"
    SUPPRESSED = "suppressed"
    # At the door: the incoming request gave no token.
    ABSENT = "absent"
    MALFORMED = "malformed"
    AMBIGUOUS = "ambiguous"
    TOO_LONG = "too_long"

    # Members are single, so identity will do. Enum's own is a Python function, and every hop looks up its reason.
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self.value


Outcome = Literal["relayed", "exchanged", "withheld"]

_SENT: dict[Reason, Outcome] = {Reason.RELAYED: "relayed", Reason.EXCHANGED: "exchanged"}


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided for one hop, and why. It never holds a token.

    Attributes:
        reason: One of the closed set.
        outcome: ``relayed`` or ``exchanged`` if a token went out, ``withheld`` if none did.
    """

    reason: Reason

    @property
    def outcome(self) -> Outcome:
        return _SENT.get(self.reason, "withheld")
