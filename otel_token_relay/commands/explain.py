"""``otel-token-relay explain``: print the decision for a URL."""

from __future__ import annotations

import argparse
import json
import os

from otel_token_relay.commands import OK, PROBLEM
from otel_token_relay.commands.activation import relay_problem
from otel_token_relay.decisions import Decision
from otel_token_relay.origin import Origin
from otel_token_relay.reasons import Reason
from otel_token_relay.relay import Relay
from otel_token_relay.settings import Settings


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "explain", help="print whether the token would be relayed to a URL; exit with 1 if not"
    )
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command with its parsed *options*."""
    return explain(options.url, as_json=options.json)


def explain(url: str, *, as_json: bool) -> int:
    """Print the decision for a URL in the current environment and the reason for it.

    Returns:
        0 if a valid bearer token would be relayed, 1 if it would be withheld.
    """
    settings = Settings.load()
    decision, destination = Relay(settings).explain(url)
    entry = None if destination is None else str(destination)
    off = relay_problem(os.environ)
    warnings = [] if off is None else [off]
    if as_json:
        explanation = {
            "url": _without_secrets(url),
            "decision": decision.outcome,
            "reason": decision.reason.value,
            "destination": entry,
            "problems": list(settings.problems),
            "warnings": warnings,
        }
        print(json.dumps(explanation))
    else:
        _print_explanation(decision, entry)
        print(*(f"  warning: {warning}" for warning in warnings), sep="\n", end="\n" * bool(warnings))
        print(*(f"  problem: {problem}" for problem in settings.problems), sep="\n", end="\n" * bool(settings.problems))
    return OK if decision.outcome != "withheld" else PROBLEM


def _print_explanation(decision: Decision, entry: str | None) -> None:
    if decision.reason is Reason.RELAYED:
        print("relayed")
        print("  A request there carries the caller's token, unless it has a credential of its own.")
    else:
        print(f"{decision.outcome}: {decision.reason}")
        print(f"  {decision.reason.meaning}")
        print(f"  What to do: {decision.reason.advice}")
    if entry is not None:
        print(f"  entry: {entry}")


def _without_secrets(url: str) -> str:
    """Return the URL without its user info and query."""
    if Origin.parse(url) is None and "@" in url:
        url = "***@" + url.rpartition("@")[2]
    path, mark, _ = url.partition("?")
    return f"{path}?***" if mark else path
