"""Call a service with valid and invalid tokens, and compare each response with the expected response."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from otel_token_relay import BearerToken
from otel_token_relay.demo.hops import Call

_find_error = re.compile(r'error="(\w+)"').search
_find_reasons = re.compile(r"request rejected: (\w+)").findall


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCheck:
    """A request to send directly to a service, and the expected result.

    Attributes:
        what: A description of the token.
        call: The service to call, the user, and the trace ID.
        token: The token to send, or ``None`` to send a request without a token.
        reason: The expected reason for the rejection, or an empty string if the service must accept the token.
    """

    what: str
    call: Call
    token: BearerToken | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a token check.

    Attributes:
        error: The error code in the challenge (RFC 6750, section 3.1); empty if the challenge has no error code.
        name: The user whom the service identified, or an empty string if the service rejected the request.
        reason: The reason for the rejection, from the service's log.
    """

    check: TokenCheck
    status: int
    error: str = ""
    name: str = ""
    reason: str = ""


def run_check(check: TokenCheck, client: httpx.Client, log: Path, path: str = "/profile") -> Outcome:
    """Call the service and return the outcome.

    Args:
        client: A client whose base URL is the service's URL.
        log: The service's log file, to which the service writes the reason before it responds.
        path: A path that requires a token.
    """
    headers = {"traceparent": check.call.traceparent()}
    if check.token is not None:
        headers["authorization"] = f"Bearer {check.token.reveal()}"
    before = log.stat().st_size
    response = client.get(path, headers=headers)
    with log.open("rb") as written:
        written.seek(before)
        reasons = _find_reasons(written.read().decode())
    error = _find_error(response.headers.get("www-authenticate", ""))
    return Outcome(
        check=check,
        status=response.status_code,
        error=error[1] if error else "",
        name=(response.json()["name"] or "") if response.is_success else "",
        reason=", ".join(reasons),
    )


def find_fault(outcome: Outcome) -> str | None:
    """Return a description of any difference from the expected outcome, or ``None`` if the outcome is correct."""
    check = outcome.check
    actual = (outcome.status, outcome.error, outcome.name, outcome.reason)
    if not check.reason:
        expected = (200, "", check.call.user, "")
    else:
        # The response to a request without a token contains no error code (RFC 6750, section 3.1).
        expected = (401, "invalid_token" if check.token else "", "", check.reason)
    if actual == expected:
        return None
    return f'{check.call.receiver}, token "{check.what}": expected {_join(expected)}, received {_join(actual)}'


def _join(parts: tuple[object, ...]) -> str:
    return " ".join(str(part) for part in parts if part)


def tamper(token: str) -> str:
    """Change the first character of a token's signature, and return the invalid token."""
    head, _, signature = token.rpartition(".")
    return f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
