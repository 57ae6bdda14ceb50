"""Implement the ``explain`` command, which prints the decision for each URL, the reason, and the closest entry."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from otel_token_relay.commands import NO_RESPONSE, OK, PROBLEM, UsageError
from otel_token_relay.commands.activation import context_problem, relay_problem
from otel_token_relay.commands.arguments import conceal, looks_like_token
from otel_token_relay.commands.coverage import missing_packages
from otel_token_relay.commands.exchanging import Attempt, try_exchange
from otel_token_relay.commands.netrc_files import describe_netrc
from otel_token_relay.commands.output import emphasize, escape, say
from otel_token_relay.commands.processes import environment_of
from otel_token_relay.commands.token_input import read_token
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.decisions import Decision
from otel_token_relay.environment_variables import OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS as DESTINATIONS
from otel_token_relay.environment_variables import OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS as SOURCE_HEADERS
from otel_token_relay.installation import CONTEXT_PROBLEM
from otel_token_relay.reasons import Reason
from otel_token_relay.relay import Explanation, Relay
from otel_token_relay.settings import VARIABLES, Settings, load_sources
from otel_token_relay.sources import are_given, describe_overridden
from otel_token_relay.urls import ReadUrl, read_url

_EPILOG: Final = """\
The settings come from this shell's environment or, with --pid, from the environment in which a running process was
started. In a shell, enclose URLs and entries with parameters in single quotes, because an unquoted ; ends the command.

examples:
  export OTEL_PROPAGATORS=tracecontext,baggage,token_relay
  export OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS='https://profile-service;required,https://*.internal'
  otel-token-relay explain 'https://profile-service/v1/me' 'https://billing.internal/invoices?year=2026'
  otel-token-relay explain --online https://billing/invoices < token.txt
  otel-token-relay explain --pid "$(pgrep -o gunicorn)" https://profile-service/v1/me
"""

NOT_VERIFIABLE: Final = (
    "every request gets a 503 response, because verification cannot start: otel-token-relay check reports the reason"
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``explain`` command to the command-line parser."""
    parser = commands.add_parser(
        "explain",
        help="print whether the token would be relayed to a URL; exit with status 1 if not",
        description="Print the decision for a request to each URL, assuming that the caller's token is valid.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("urls", metavar="URL", nargs="+", help="a URL as the application passes it to its client")
    parser.add_argument(
        "--without-user",
        action="store_true",
        help="explain a call that the service makes while it is not handling a request",
    )
    parser.add_argument(
        "--online",
        action="store_true",
        help="exchange a token from standard input for each destination that requires its own token",
    )
    parser.add_argument("--pid", type=int, metavar="N", help="use the environment of process N (Linux)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line for each URL")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the ``explain`` command and return its exit status."""
    if any("://" not in url and looks_like_token(url) for url in options.urls):
        raise UsageError("expected URLs; one argument looks like a token")
    return explain(
        options.urls,
        environment_of(options.pid),
        pid=options.pid,
        without_user=options.without_user,
        as_json=options.json,
        is_online=options.online,
    )


def explain(
    urls: Sequence[str],
    environ: Mapping[str, str],
    *,
    pid: int | None = None,
    without_user: bool = False,
    as_json: bool = False,
    is_online: bool = False,
) -> int:
    """Print the decision for each URL, along with the reason.

    Args:
        urls: The URLs that the application passes to its client.
        environ: The environment variables that contain the settings.
        pid: The ID of the process to which *environ* belongs, or ``None`` for the current process.
        without_user: Whether to explain calls that the service makes while it is not handling a request.
        as_json: Whether to print JSON.
        is_online: Whether to obtain tokens from the authorization server, in exchange for a token from standard input
            if necessary.

    Returns:
        The exit status: 0 if a token would be sent to every URL, 1 if a token would be withheld from at least one URL,
        or 3 if the only problem is an authorization server that does not respond.

    Raises:
        NoToken: Standard input contains no usable token.
    """
    settings = Settings.load(environ)
    relay = Relay(settings, build_token_source(settings) if settings.exchange_problem is None else None)
    off, unset = _relay_off(environ, settings), None if settings.entries else _no_destinations(environ, settings, pid)
    results = [
        _Result(
            _read(url, environ, pid),
            relay.explain(url, without_user=without_user),
            off,
            unset,
            settings.exchange_problem,
        )
        for url in urls
    ]
    if is_online:
        results = _exchange(settings, results, without_user=without_user)
    problems = list(map(conceal, settings.problems))
    for number, result in enumerate(results):
        if as_json:
            print(json.dumps(result.as_json() | {"problems": problems}))
        else:
            if number:
                say()
            result.print(with_url=len(results) > 1)
    if not as_json:
        for problem in problems:
            say(f"problem: {problem}", indent=2)
        for note in describe_overridden(load_sources(environ), VARIABLES):
            say(f"note: {note}", indent=2)
    withheld = [result for result in results if result.is_withheld]
    if withheld and all(result.attempt is not None and result.attempt.has_no_response for result in withheld):
        return NO_RESPONSE
    return PROBLEM if withheld else OK


def _exchange(settings: Settings, results: list[_Result], *, without_user: bool) -> list[_Result]:
    """Obtain a token for each result whose destination requires its own token."""
    tried = [result.may_exchange for result in results]
    token = read_token("otel-token-relay explain --online URL")[0] if any(tried) and not without_user else None
    # This handler keeps Python from printing the package's warnings, which are less detailed than the result.
    logging.getLogger("otel_token_relay").addHandler(logging.NullHandler())
    return [
        replace(result, attempt=try_exchange(settings, result.explanation.entry, token))
        if is_tried and result.explanation.entry is not None
        else result
        for result, is_tried in zip(results, tried, strict=True)
    ]


def _relay_off(environ: Mapping[str, str], settings: Settings) -> str | None:
    """Return the reason that no tokens are relayed, or ``None`` if the relay is on."""
    context = context_problem(environ)
    # If no package provides the context implementation, OpenTelemetry uses its default, so the relay stays on.
    off = relay_problem(environ) or (context if context == CONTEXT_PROBLEM else None)
    cannot_verify = settings.rejects and bool(settings.missing_to_verify or missing_packages())
    return off or (NOT_VERIFIABLE if cannot_verify else None)


def _read(url: str, environ: Mapping[str, str], pid: int | None) -> ReadUrl:
    """Parse *url*, and add a note if a netrc entry exists for the URL's host."""
    read = read_url(url)
    netrc_note = "" if read.origin is None else describe_netrc(read.origin.host, environ, pid)
    note = f"{read.note} {netrc_note}".strip()
    return read._replace(note=note, shown=conceal(read.shown), problem=conceal(read.problem))


def _no_destinations(environ: Mapping[str, str], settings: Settings, pid: int | None) -> str:
    """Return the most likely reason that no destinations are set."""
    if are_given("destinations", load_sources(environ)):
        if settings.problems:
            return "Correct the settings. The problem is described below."
        return f"{DESTINATIONS} is empty."
    if pid is not None:
        return f"{DESTINATIONS} is not set in the environment of process {pid}."
    return (
        f"{DESTINATIONS} is not set in this environment. explain reads this shell's environment: use --pid with"
        " the process ID of the running service, or export the service's variables first."
    )


@dataclass(frozen=True, slots=True)
class _Result:
    """The result for one URL.

    Attributes:
        url: The URL.
        explanation: The relay's decision.
        relay_problem: Why the relay is off and how to turn it on, or ``None`` if it is on.
        unset: The most likely reason that no destinations are set, or ``None`` if at least one destination is set.
        exchange_problem: The reason that tokens cannot be exchanged, or ``None`` if the exchange settings are complete.
        attempt: The result of the exchange, or ``None`` if no exchange was attempted.
    """

    url: ReadUrl
    explanation: Explanation
    relay_problem: str | None
    unset: str | None
    exchange_problem: str | None
    attempt: Attempt | None = None

    @property
    def may_exchange(self) -> bool:
        """Whether a hop would request a token for this destination from the authorization server."""
        reason = self.explanation.decision.reason
        return self.relay_problem is None and reason in (Reason.EXCHANGED, Reason.OWN)

    @property
    def is_withheld(self) -> bool:
        has_failed = self.attempt is not None and self.attempt.error is not None
        return has_failed or self.relay_problem is not None or self.explanation.decision.outcome == "withheld"

    @property
    def advice(self) -> str:
        """The recommended action, in one or two sentences."""
        if self.relay_problem is not None:
            return f"{_sentence(self.relay_problem)} {self.unset or ''}".strip()
        if self.attempt is not None and self.attempt.advice is not None:
            return self.attempt.advice
        if self.url.problem:
            return _sentence(self.url.problem)
        if self.explanation.decision.reason is Reason.EXCHANGE_FAILED and self.exchange_problem is not None:
            return f"Correct the settings: {self.exchange_problem}."
        if self.explanation.decision.reason is Reason.NO_TOKEN:
            return f"Correct {SOURCE_HEADERS}. Until then, no token is read from any request."
        closest = self.explanation.closest
        if closest is not None and closest.is_deliberate:
            return "Nothing, if this is intended. Otherwise, remove the entry or its ;never parameter."
        if closest is not None and closest.is_skipped:
            return "Correct the entry. The problem is described below."
        if self.unset is not None:
            return self.unset
        if closest is not None and self.explanation.decision.reason is Reason.DESTINATION_NOT_LISTED:
            return "Correct the URL or the entry, or add the origin if it may receive the caller's token."
        return _plain(self.explanation.decision.reason.advice)

    def as_json(self) -> dict[str, object]:
        """Return the JSON object that ``docs/command-line.md`` describes, without the ``problems`` key."""
        explanation = self.explanation
        return {
            "url": self.url.shown,
            "decision": "withheld" if self.is_withheld else explanation.decision.outcome,
            "reason": self._reason.value if self.relay_problem is None else None,
            "relay_off": self.relay_problem,
            "entry": None if explanation.entry is None else str(explanation.entry),
            "closest_entry": None if explanation.closest is None else explanation.closest.entry,
            "difference": None if explanation.closest is None else explanation.closest.difference,
            "raises": explanation.fails and self.relay_problem is None,
            "advice": self.advice,
            "note": self.url.note or None,
            "exchange": None if self.attempt is None else self.attempt.as_dict(),
        }

    @property
    def _reason(self) -> Reason:
        if self.attempt is None or self.attempt.error is None:
            return self.explanation.decision.reason
        return Reason.NOT_VERIFIED if self.attempt.error == "rejected" else Reason.EXCHANGE_FAILED

    def print(self, *, with_url: bool) -> None:
        """Print the decision, the reason, and the recommended action."""
        reason = self._reason
        off = "requests get 503" if self.relay_problem == NOT_VERIFIABLE else "the relay is off"
        headline = _verdict(reason) if self.relay_problem is None else f"withheld: {off}"
        print(emphasize(escape(f"{headline} ({self.url.shown})" if with_url else headline)))
        if self.relay_problem is None:
            say(_MEANINGS.get(reason) or _plain(reason.meaning), indent=2)
            if self.attempt is not None:
                failed = f"Error: {self.attempt.error}" + (f" ({self.attempt.detail})" if self.attempt.detail else "")
                say(self.attempt.detail if self.attempt.error is None else failed, indent=2)
            if self.explanation.fails:
                say("The entry has ;required, so the call raises TokenUnavailable and sends nothing.", indent=2)
        self._print_entry()
        if self.is_withheld:
            say(f"What to do: {self.advice}", indent=2)
        if self.relay_problem not in (None, NOT_VERIFIABLE):
            say(f"With the relay on: {_verdict(self.explanation.decision.reason)}", indent=2)
        if self.url.note:
            say(f"note: {self.url.note}", indent=2)

    def _print_entry(self) -> None:
        if self.explanation.entry is not None:
            is_never = self.explanation.entry.never
            say(f"entry: {self.explanation.entry}{', so this origin never gets a token' * is_never}", indent=2)
        elif self.explanation.closest is not None:
            say(f"closest entry: {self.explanation.closest}", indent=2)


def _verdict(reason: Reason) -> str:
    outcome = Decision(reason).outcome
    return f"withheld: {reason}" if outcome == "withheld" else outcome


# These sentences describe future requests, whereas `Reason.meaning` describes requests that have already been sent.
_MEANINGS: Final = {
    Reason.EXCHANGED: "If an outgoing request is sent while the caller's request is being served and has no credential"
    " of its own, it carries a token that the service obtains in exchange for the caller's token.",
    Reason.OWN: "A request that the service sends while it is not handling a request carries the service's own token.",
    Reason.RELAYED: "An outgoing request carries the token if it is sent while the caller's request is being served"
    " and has no credential of its own.",
}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _plain(markdown: str) -> str:
    return markdown.replace("`", "").replace("\N{HORIZONTAL ELLIPSIS}", "...")
