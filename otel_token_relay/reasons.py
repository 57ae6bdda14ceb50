"""The closed set of reasons for a decision. The strings are stable: users alert on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Reason(Enum):
    """Why a token was or was not relayed, or why none was accepted at the door.

    Attributes:
        meaning: What happened, in one sentence.
        advice: What to do about it, in one or two.
    """

    _value_: str
    meaning: str
    advice: str

    def __new__(cls, value: str, meaning: str, advice: str) -> Reason:
        member = object.__new__(cls)
        member._value_ = value
        member.meaning = meaning
        member.advice = advice
        return member

    # Something was sent.
    RELAYED = (
        "relayed",
        "The caller's token was sent.",
        "Nothing. Where the destination still answers 401, it refuses this very token: compare the audience and the"
        " issuer that it expects.",
    )
    EXCHANGED = (
        "exchanged",
        "A token that was made for this destination from the caller's token was sent.",
        "Nothing. This version exchanges no token, so this does not occur yet.",
    )
    # Nothing was sent.
    NO_TOKEN = (
        "no_token",
        "The request being served brought no usable token, or the call was made outside of any request.",
        "Check that the caller sends `Authorization: Bearer …`, that `otel-token-relay check` shows the server as"
        " hooked, and that work on another thread was started with the context.",
    )
    DESTINATION_UNKNOWN = (
        "destination_unknown",
        "It is not certain where the request goes: two programs could read the URL or the target differently, the URL"
        " is not http(s), or the connection is not a TCP connection that the client opened itself.",
        "Write the URL as scheme://host[:port]/path, without user name, backslash or white space. A Unix socket or a"
        " connection class that connects by itself never gets the token.",
    )
    DESTINATION_NOT_LISTED = (
        "destination_not_listed",
        "No entry of OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS names this scheme, host and port.",
        "Add the origin if the caller's token belongs there. http and https, and every port, are different origins.",
    )
    EXPLICIT_CREDENTIAL = (
        "explicit_credential",
        "The request already carries a credential of its own, and that wins.",
        "Nothing if that is meant. Otherwise look for a header, `auth=`, a session default, a netrc entry or a user"
        " name in the URL.",
    )
    EXPIRED = (
        "expired",
        "The token's `exp` has passed, or is nearer than OTEL_PYTHON_TOKEN_RELAY_MIN_TTL.",
        "The caller has to bring a fresh token. Compare the clocks of the machines.",
    )
    TOO_OLD = (
        "too_old",
        "The token has no lease and came in more than OTEL_PYTHON_TOKEN_RELAY_MAX_AGE seconds ago.",
        "Do the work sooner, or say how long the token is needed: `carry(work, seconds=…)`.",
    )
    LEASE_ENDED = (
        "lease_ended",
        "The request that brought the token has ended.",
        "Take the token along on purpose with `carry`, or set OTEL_PYTHON_TOKEN_RELAY_LINGER. A worker that serves"
        " many requests needs the token of each job, not of the request that started it.",
    )
    OTHER_PROCESS = (
        "other_process",
        "This process is a fork of the one that received the token.",
        "Make the call in the process that serves the request.",
    )
    SENDER_CONSTRAINED = (
        "sender_constrained",
        "The token is bound to the key of its sender (`cnf`: DPoP or mutual TLS), which this service does not have.",
        "Call with a credential of your own there, or have the authorization server issue unbound tokens.",
    )
    NOT_VERIFIED = (
        "not_verified",
        "OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED is set, and this service has not verified the token.",
        "Have this service verify its tokens, by `OTEL_PYTHON_TOKEN_RELAY_VERIFY` or `BearerAuthMiddleware`, or unset"
        " the variable.",
    )
    EXCHANGE_FAILED = (
        "exchange_failed",
        "The entry asks for an exchanged token (`;audience=`, `;scope=` or `;resource=`), and there is none.",
        "This version exchanges no token. Without these parameters the caller's own token is relayed, if that is what"
        " the destination is meant to see.",
    )
    SUPPRESSED = (
        "suppressed",
        "Instrumentation is suppressed around this call, as exporters do around theirs. Such a call gets no token and"
        " is not recorded.",
        "Nothing.",
    )
    # At the door: the incoming request gave no token.
    ABSENT = (
        "absent",
        "The request has none of the source headers, or a scheme other than Bearer.",
        "Nothing for anonymous requests. Behind mod_wsgi, set `WSGIPassAuthorization On`.",
    )
    MALFORMED = (
        "malformed",
        "The header says Bearer, and what follows is no token (RFC 6750, section 2.1).",
        "Look at what the caller sends: quotes, white space and line breaks have no place in a token.",
    )
    AMBIGUOUS = (
        "ambiguous",
        "The header came twice, or with a comma in it.",
        "Find the proxy that adds a second one.",
    )
    TOO_LONG = (
        "too_long",
        "The token has more characters than OTEL_PYTHON_TOKEN_RELAY_MAX_LENGTH, or the whole header line, whatever it"
        " contains, has more than seven beyond that.",
        "Raise the limit if the token is genuine; every proxy on the way has a limit of its own.",
    )

    # Members are single, so identity will do. Enum's own is a Python function, and every hop looks up its reason.
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return str(self.value)


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
