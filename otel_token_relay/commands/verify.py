"""Implement the ``verify`` command, which reports whether this service accepts a token from standard input.

The output never contains any part of the encoded token. Claim values are masked, escaped, and truncated.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from otel_token_relay.commands import NO_RESPONSE, OK, PROBLEM, UsageError
from otel_token_relay.commands.arguments import looks_like_token
from otel_token_relay.commands.output import say
from otel_token_relay.commands.processes import environment_of
from otel_token_relay.commands.token_input import read_token
from otel_token_relay.errors import ConfigurationError, KeysUnavailable, TokenRejected
from otel_token_relay.printable import escape
from otel_token_relay.settings import VARIABLES, Settings
from otel_token_relay.verification.causes import Cause, describe_time
from otel_token_relay.verification.claims import look_up
from otel_token_relay.verification.concealment import Concealment
from otel_token_relay.verification.malformations import read_unverified

if TYPE_CHECKING:  # These modules require PyJWT, which might not be installed.
    from otel_token_relay.verification.issuer_endpoints import InThread, IssuerReport
    from otel_token_relay.verification.verifier import TokenVerifier

Result = Literal["accepted", "rejected", "unavailable", "not_configured"]

NO_ARGUMENTS: Final = (
    "the token is read from standard input, because other users of this machine can read command-line arguments;"
    " for example: otel-token-relay verify < token.txt"
)
_EXAMPLES: Final = """\
examples:
  otel-token-relay verify --claims sub scope < token.txt
  otel-token-relay verify --pid "$(pgrep -o gunicorn)" < token.txt
"""
MAX_CLAIM_LENGTH: Final = 2000
_MAX_NAME_LENGTH: Final = 200
_STATUS: Final[dict[Result, int]] = {
    "accepted": OK,
    "rejected": PROBLEM,
    "unavailable": NO_RESPONSE,
    "not_configured": PROBLEM,
}
_WITHOUT_EXTRA: Final = "tokens cannot be verified because PyJWT is missing: pip install 'otel-token-relay[verify]'"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``verify`` command to the command-line parser."""
    parser = commands.add_parser(
        "verify",
        help="report whether this service accepts a token from standard input; exit with status 1 if not",
        description="Read a token from standard input, and verify it with the settings in this environment.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--claims", nargs="+", metavar="NAME", default=[], help="print the values of these claims")
    parser.add_argument("--pid", type=int, metavar="N", help="use the environment of process N (Linux)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    parser.set_defaults(run=run, takes_no_arguments=NO_ARGUMENTS)


def run(options: argparse.Namespace) -> int:
    """Run the ``verify`` command and return its exit status."""
    options.claims = [name for names in options.claims for name in names.split(",") if name]
    if (position := _find_token(options.claims)) is not None:
        raise UsageError(f"argument {position} of --claims looks like a token; {NO_ARGUMENTS}")
    # This handler keeps Python from printing the package's warnings, which are less detailed than the result.
    logging.getLogger("otel_token_relay").addHandler(logging.NullHandler())
    try:
        outcome = _verify(environment_of(options.pid), options.claims)
    except UsageError:
        raise
    except Exception as error:  # A traceback or an error message could contain the token.
        message = f"the token could not be verified: {type(error).__name__}"
        print(f"otel-token-relay verify: error: {message}", file=sys.stderr)
        return PROBLEM
    if options.json:
        print(json.dumps(outcome.as_dict()))
    else:
        outcome.print()
    return _STATUS[outcome.result]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of the ``verify`` command. All strings contain only printable ASCII characters.

    Attributes:
        result: ``accepted``, ``rejected``, ``unavailable``, or ``not_configured``.
        reason: The reason for the rejection; see `TokenRejected.reason`.
        summary: Additional information about the result; can be empty.
        cause: The cause of the rejection, with the expected and actual values.
        asked: The names of the claims to print.
        claims: The values of the requested claims that are present in the token.
        issuers: The responses from the issuers' endpoints.
        clock_difference: The number of seconds by which the issuer's clock is ahead of this machine's clock; ``None``
            if the issuer or its time is unknown.
        advice: The recommended action.
        problems: Problems in the settings.
        notes: Notes about the input and the settings.
    """

    result: Result
    reason: str | None = None
    summary: tuple[str, ...] = ()
    cause: Cause | None = None
    asked: tuple[str, ...] = ()
    claims: dict[str, Any] = field(default_factory=dict)
    issuers: Sequence[IssuerReport] = ()
    clock_difference: float | None = None
    advice: str | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome in the JSON format that ``docs/command-line.md`` describes."""
        return {
            "result": self.result,
            "reason": self.reason,
            "cause": None if self.cause is None else asdict(self.cause),
            "claims": self.claims,
            "claims_verified": self.result == "accepted",
            "clock_difference": self.clock_difference,
            "issuers": [report.as_dict() for report in self.issuers],
            "advice": self.advice,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }

    def print(self) -> None:
        """Print the outcome as text."""
        say(self.result.replace("_", " ") if self.reason is None else f"{self.result}: {self.reason}")
        for line in (*self.summary, *([] if self.cause is None else [str(self.cause)])):
            say(line, indent=2)
        self._print_endpoints()
        if self.advice is not None:
            say(f"What to do: {self.advice}", indent=2)
        self._print_claims()
        for title, lines in (("problem", self.problems), ("note", self.notes)):
            for line in lines:
                say(f"{title}: {line}", indent=2)

    def _print_endpoints(self) -> None:
        from otel_token_relay.verification.endpoints import describe_clock

        clock = describe_clock(self.clock_difference)
        if clock is not None:
            say(clock, indent=2)
        if self.result == "unavailable":
            for endpoint in (endpoint for report in self.issuers for endpoint in report.endpoints):
                say(str(endpoint), indent=2)

    def _print_claims(self) -> None:
        if not self.asked or self.result == "not_configured":
            return
        indent = 2 if self.result == "accepted" else 4
        if self.result != "accepted":
            say("unverified claims:", indent=2)
        for name in self.asked:
            value = self.claims.get(name, "(absent)")
            say(f"{name}: {value if isinstance(value, str) else json.dumps(value)}", indent=indent)


def _verify(environ: Mapping[str, str], names: Sequence[str]) -> Outcome:
    settings = Settings.load(environ)
    problems = tuple(map(escape, settings.problems))
    missing = [VARIABLES[name].name for name in settings.missing_to_verify]
    if missing:
        return _not_configured(f"Set {' and '.join(missing)}.", problems)
    if settings.verification_problem is not None:
        return _not_configured(f"Correct this: {escape(settings.verification_problem)}.", problems)
    try:
        from otel_token_relay.verification.authenticator import verifier_from
    except ImportError:
        return _not_configured(_WITHOUT_EXTRA, problems)
    try:
        verifier = verifier_from(settings)
    except ConfigurationError as error:
        return _not_configured(escape(str(error)), problems)
    token, notes = read_token("otel-token-relay verify")
    if settings.verify == "off":
        notes.append(f"{VARIABLES['verify'].name} is off, so the service does not verify any request.")
    return _Verification(settings, verifier, token, tuple(names)).run(problems, tuple(notes))


def _not_configured(advice: str, problems: tuple[str, ...]) -> Outcome:
    summary = ("Verification is not configured, so no token can be verified.",)
    return Outcome(result="not_configured", summary=summary, advice=advice, problems=problems)


def _find_token(names: Sequence[str]) -> int | None:
    """Return the 1-based position of the first name that looks like a token, or ``None`` if no name does."""
    return next(
        (at for at, name in enumerate(names, 1) if len(name) > _MAX_NAME_LENGTH or looks_like_token(name)), None
    )


class _Verification:
    """The verification of one token and the queries to its issuer's endpoints."""

    def __init__(self, settings: Settings, verifier: TokenVerifier, token: str, names: tuple[str, ...]) -> None:
        self._settings = settings
        self._verifier = verifier
        self._token = token
        self._names = names
        self._concealment = Concealment(token)
        read = read_unverified(token) if len(token) <= settings.max_length else None
        self._claims = {} if read is None else read[1]

    def run(self, problems: tuple[str, ...], notes: tuple[str, ...]) -> Outcome:
        asking = self._ask_issuers()
        result, reason, cause, summary = self._verify()
        issuers = () if asking is None else asking.result(time.monotonic() + 60.0) or ()
        difference = issuers[0].clock_difference if len(issuers) == 1 else None
        return Outcome(
            result=result,
            reason=reason,
            summary=summary,
            cause=cause,
            asked=tuple(map(self._conceal_name, self._names)),
            claims=self._read_claims(),
            issuers=tuple(map(self._conceal_report, issuers)),
            clock_difference=difference,
            advice=_advise(result, reason, cause, issuers, difference),
            problems=problems,
            notes=notes,
        )

    def _verify(self) -> tuple[Result, str | None, Cause | None, tuple[str, ...]]:
        try:
            verified = self._verifier.verify(self._token)
        except TokenRejected as error:
            return "rejected", error.reason, self._verifier.explain(self._token, error.reason), ()
        except KeysUnavailable:
            missing = "keys or its introspection endpoint" if self._introspects else "keys"
            return (
                "unavailable",
                None,
                None,
                (f"The issuer's {missing} are not available, so no token can be verified.",),
            )
        expires = verified.expires_at
        if expires is None:
            return "accepted", None, None, ()
        return "accepted", None, None, (f"exp: {describe_time(expires)}, {expires - time.time():.0f} s from now",)

    def _ask_issuers(self) -> InThread[tuple[IssuerReport, ...]] | None:
        """Query the token's issuer, or all trusted issuers if that issuer is not trusted.

        Only introspection can verify a token that does not identify its issuer. If the token does not identify its
        issuer, query the issuers only if an introspection endpoint is configured.
        """
        from otel_token_relay.verification.authenticator import client_from
        from otel_token_relay.verification.issuer_endpoints import InThread, ask_issuers

        settings, trusted = self._settings, self._settings.trusted_issuers
        endpoint = None if trusted else settings.introspection_endpoint
        if "iss" not in self._claims and not self._introspects:
            return None
        issuers = [issuer for issuer in trusted if issuer.issuer == self._claims.get("iss")] or trusted
        client = None if endpoint is None else settings.client_credential
        http = client_from(settings)
        return InThread(
            lambda: ask_issuers(issuers, settings.algorithms, introspection_endpoint=endpoint, client=client, http=http)
        )

    @property
    def _introspects(self) -> bool:
        endpoints = (issuer.introspection_endpoint for issuer in self._settings.trusted_issuers)
        return self._settings.introspection_endpoint is not None or any(endpoints)

    def _read_claims(self) -> dict[str, Any]:
        found = {}
        for name in self._names:
            is_present, value = look_up(self._claims, name)
            if is_present:
                found[self._conceal_name(name)] = self._conceal(value)
        return found

    def _conceal_report(self, report: IssuerReport) -> IssuerReport:
        # The results can contain the issuer's key IDs. A forged token can repeat one of these IDs in its signature, so
        # the results must also be concealed.
        endpoints = [
            replace(endpoint, result=self._concealment.text(endpoint.result, MAX_CLAIM_LENGTH))
            for endpoint in report.endpoints
        ]
        return replace(report, endpoints=tuple(endpoints))

    def _conceal_name(self, name: str) -> str:
        return self._concealment.text(name, _MAX_NAME_LENGTH)

    def _conceal(self, value: Any) -> Any:
        """Return a claim's value as text in which credentials are masked. Return a number, Boolean, or ``None``
        unchanged if nothing in it has to be masked.
        """
        shown = self._concealment.value(value, MAX_CLAIM_LENGTH)
        is_plain = value is None or isinstance(value, (bool, int, float))
        return value if is_plain and shown == json.dumps(value) else shown


def _advise(
    result: Result,
    reason: str | None,
    cause: Cause | None,
    issuers: Sequence[IssuerReport],
    clock_difference: float | None,
) -> str | None:
    if result == "accepted":
        return None
    if cause is not None:
        return _advise_about_clocks(reason, clock_difference) or cause.advice
    if any(report.state == "problem" for report in issuers):
        return "Correct the endpoint that has a problem; until then, every request fails with 503."
    return "Make sure that this machine can reach the issuer; until then, every request fails with 503."


def _advise_about_clocks(reason: str | None, difference: float | None) -> str | None:
    """Return advice for a token that has expired or is not yet valid, based on the measured clock difference.

    Return ``None`` if clock skew did not cause the rejection.
    """
    from otel_token_relay.verification.endpoints import MIN_CLOCK_DIFFERENCE

    if difference is None or reason not in ("expired", "not_yet_valid"):
        return None
    is_ahead, is_behind = difference >= MIN_CLOCK_DIFFERENCE, difference <= -MIN_CLOCK_DIFFERENCE
    if is_ahead if reason == "not_yet_valid" else is_behind:
        return "Synchronize the clocks of the issuer and this machine."
    if reason == "not_yet_valid":
        return "The issuer has issued the token for later use. The caller must wait, or get another token."
    return None
