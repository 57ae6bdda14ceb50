"""The closed set of reasons for decisions. The values must not change, because operators base alerts on them."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING


class Reason(Enum):
    """The reason why a token was relayed or withheld, or why an incoming request does not have a usable token.

    Attributes:
        meaning: A description of what happened.
        advice: The recommended action for the operator.
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

    # A token was sent.
    RELAYED = (
        "relayed",
        "The caller's token was sent.",
        "Nothing. If the destination still responds with 401, it rejected this token: compare the token's audience"
        " and issuer with those the destination expects.",
    )
    EXCHANGED = (
        "exchanged",
        "The caller's token was exchanged for a token for this destination, and the new token was sent.",
        "Nothing. If the destination still responds with 401 or 403, compare the token's audience and scopes with those"
        " the destination expects.",
    )
    OWN = (
        "own",
        "No request is being served, and the service's own token was sent, as `;without-user=client` permits.",
        "Nothing. If the call belongs to a request, the request's context was lost before the server had accepted any"
        " request.",
    )
    # No token was sent.
    NO_TOKEN = (
        "no_token",
        "The request being served has no usable token, or `use_token(None)` hides the token.",
        "Check that the caller sends `Authorization: Bearer …`.",
    )
    NO_BOUNDARY = (
        "no_boundary",
        "The call was made outside any request, without a server boundary or `use_token`.",
        "If the call belongs to a request, check that `otel-token-relay check` reports the server as hooked and that"
        " work in other threads runs in the request's context. Otherwise, bind a token with `use_token`.",
    )
    DESTINATION_UNKNOWN = (
        "destination_unknown",
        "The server that would receive the request is unknown: the URL is ambiguous or not an http or https URL, or"
        " the client does not open the TCP connection itself.",
        "Write the URL as scheme://host[:port]/path, without a username, backslash, or white space. The token is never"
        " sent over a Unix socket or by a connection class that opens its own connection.",
    )
    DESTINATION_NOT_LISTED = (
        "destination_not_listed",
        "No entry in OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS allows this scheme, host, and port.",
        "Add the origin if it may receive the caller's token. A different scheme or port is a different origin.",
    )
    EXPLICIT_CREDENTIAL = (
        "explicit_credential",
        "The request already has a credential of its own, which takes precedence.",
        "Nothing, if this is intended. Otherwise, look for the credential in a header, `auth=`, a session default, a"
        " netrc entry, or the URL (a username, signature, or token).",
    )
    EXPIRED = (
        "expired",
        "The token has expired or will expire in less than OTEL_PYTHON_TOKEN_RELAY_MIN_TTL seconds.",
        "The caller must send a new token. If the token was new, compare the machines' clocks.",
    )
    TOO_OLD = (
        "too_old",
        "The token has no lease and was received more than OTEL_PYTHON_TOKEN_RELAY_MAX_AGE seconds ago.",
        "Do the work sooner, or specify how long the token is needed: `carry(work, seconds=…)`.",
    )
    LEASE_ENDED = (
        "lease_ended",
        "The request that carried the token has ended.",
        "Pass the token on explicitly with `carry`, or set OTEL_PYTHON_TOKEN_RELAY_LINGER. A worker that serves many"
        " requests needs each job's own token, not the token of the request that started the worker.",
    )
    OTHER_PROCESS = (
        "other_process",
        "This process was forked from the process that received the token.",
        "Make the call in the process that serves the request.",
    )
    SENDER_CONSTRAINED = (
        "sender_constrained",
        "The token is bound to its sender's key (`cnf`: DPoP or mutual TLS), which this service does not have.",
        "Use a credential of your own for this call, or configure the authorization server to issue unbound tokens.",
    )
    NOT_VERIFIED = (
        "not_verified",
        "This service has not verified the token during this request, and OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED or"
        " the exchange requires it.",
        "Verify tokens in this service with `OTEL_PYTHON_TOKEN_RELAY_VERIFY` or `BearerAuthMiddleware`. Otherwise,"
        " unset the variable or, for an exchange, set OTEL_PYTHON_TOKEN_RELAY_EXCHANGE_UNVERIFIED.",
    )
    EXCHANGE_FAILED = (
        "exchange_failed",
        "The entry requires a token for this destination (`;audience=`, `;scope=`, or `;resource=`), and no such token"
        " could be obtained. The caller's own token was not sent instead.",
        "Look for the `token exchange failed` warning in the log, which includes the authorization server's error, or"
        " pass a caller's token to `otel-token-relay explain --online URL`.",
    )
    SUPPRESSED = (
        "suppressed",
        "Instrumentation is suppressed for this call; exporters suppress it for their own requests. Such a call gets no"
        " token and is not recorded.",
        "Nothing.",
    )
    # The request being served does not have a usable token.
    ABSENT = (
        "absent",
        "The request has none of the source headers, or the header's scheme is not Bearer.",
        "Nothing, if the request is meant to be anonymous. Behind mod_wsgi, set `WSGIPassAuthorization On`.",
    )
    MALFORMED = (
        "malformed",
        "The scheme is Bearer, but the value is not a valid token (RFC 6750, section 2.1).",
        "Check what the caller sends: a token must not contain quotes, white space, or line breaks.",
    )
    AMBIGUOUS = (
        "ambiguous",
        "The request has more than one line for the source header, or the header's value contains a comma.",
        "Find the proxy or client that adds a second value.",
    )
    TOO_LONG = (
        "too_long",
        "The token is longer than OTEL_PYTHON_TOKEN_RELAY_MAX_LENGTH characters, or the header line exceeds that limit"
        " by more than seven characters.",
        "Raise the limit if the token is genuine. Proxies between the services might have their own limits.",
    )

    # Members are singletons, so hashing by identity is sufficient. Enum's own `__hash__` is a slow Python function, and
    # the relay looks up each hop's reason in a dictionary.
    if TYPE_CHECKING:

        def __hash__(self) -> int: ...
    else:
        __hash__ = object.__hash__

    def __str__(self) -> str:
        return str(self.value)
