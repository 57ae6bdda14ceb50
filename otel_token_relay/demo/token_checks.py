"""Try profile-service with tokens good and bad, and judge what it does with each."""

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
class Trial:
    """One request to profile-service, with nobody in between.

    Attributes:
        what: The token in words.
        call: By whom it is, and by which trace it is found again.
        token: ``None`` to bring none.
        reason: Why it must be refused; empty where it must be let in.
    """

    what: str
    call: Call
    token: BearerToken | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a trial.

    Attributes:
        error: The code in the challenge (RFC 6750, section 3.1), empty where there is none.
        name: Whom profile-service took the caller for, empty where it refused.
        reason: What it has written into its log about a refusal.
    """

    trial: Trial
    status: int
    error: str = ""
    name: str = ""
    reason: str = ""


def perform(trial: Trial, client: httpx.Client, log: Path) -> Outcome:
    """Call profile-service.

    Args:
        client: Its base URL is profile-service's.
        log: Where profile-service writes its log, always before it answers.
    """
    headers = {"traceparent": trial.call.traceparent()}
    if trial.token is not None:
        headers["authorization"] = f"Bearer {trial.token.reveal()}"
    before = log.stat().st_size
    answer = client.get("/profile", headers=headers)
    with log.open("rb") as written:
        written.seek(before)
        reasons = _find_reasons(written.read().decode())
    error = _find_error(answer.headers.get("www-authenticate", ""))
    return Outcome(
        trial=trial,
        status=answer.status_code,
        error=error[1] if error else "",
        name=(answer.json()["name"] or "") if answer.is_success else "",
        reason=", ".join(reasons),
    )


def find_fault(outcome: Outcome) -> str | None:
    """Say in words what is wrong, if anything is."""
    trial = outcome.trial
    got = (outcome.status, outcome.error, outcome.name, outcome.reason)
    if not trial.reason:
        due = (200, "", trial.call.user, "")
    else:
        # RFC 6750, section 3.1: no error code for who brought no token.
        due = (401, "invalid_token" if trial.token else "", "", trial.reason)
    if got == due:
        return None
    shown = " ".join(str(part) for part in got if part)
    wanted = " ".join(str(part) for part in due if part)
    return f'profile-service, token "{trial.what}": {shown} instead of {wanted}'


def tamper(token: str) -> str:
    """Change one letter of the signature; everything else stays as it was signed."""
    head, _, signature = token.rpartition(".")
    return f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
