"""The command line: ``otel-token-relay check | explain URL | demo``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Sequence

from otel_token_relay.install import CLIENT_HOOKS, SERVER_HOOKS, Hook, hook_states, install
from otel_token_relay.reasons import Decision, Reason
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.relay import Relay
from otel_token_relay.settings import VARIABLES, Settings

# Installed often, sending by themselves, and not hooked: `to_destination` is the way there.
UNCOVERED_CLIENTS = ("pycurl", "httplib2", "tornado", "grpcio", "niquests")

_MEANINGS = {
    Reason.RELAYED: "a request there carries the caller's token",
    Reason.DESTINATION_UNKNOWN: "two programs could read this URL differently, or it is not http(s); nothing is sent",
    Reason.DESTINATION_NOT_LISTED: "no entry of OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS names this scheme, host and port",
    Reason.NOT_VERIFIED: "OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED is set, and this service verifies no token",
    Reason.EXCHANGE_FAILED: "the entry asks for an exchanged token, and no token endpoint is configured",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and give its exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "check":
        return check()
    if options.command == "explain":
        return explain(options.url, as_json=options.json)
    return demo()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-token-relay", description="Carry the caller's bearer token to the destinations you named."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="show the settings as read and what is hooked; exit 1 on a problem")
    explained = commands.add_parser("explain", help="say whether a URL would get the token; exit 1 if not")
    explained.add_argument("url", metavar="URL")
    explained.add_argument("--json", action="store_true", help="one JSON object on one line")
    commands.add_parser("demo", help="two services, a third party and an authorization server on loopback")
    return parser


def check() -> int:
    """Print what is set, what is hooked and what is risky.

    Returns:
        1 where a setting cannot be read or a library that is here cannot be hooked.
    """
    settings = Settings.from_env()
    print("Settings")
    for name, variable in VARIABLES.items():
        origin = "set" if os.environ.get(variable.name) else "default"
        print(f"  {variable.name} = {_shown(getattr(settings, name))}  ({origin})")
    problems = list(settings.problems)
    warnings = list(settings.warnings)
    propagators = [name.strip() for name in os.environ.get("OTEL_PROPAGATORS", "").split(",")]
    if "token_relay" not in propagators:
        warnings.append(
            "OTEL_PROPAGATORS does not name token_relay: unless the application calls install(), no token is relayed"
        )
    if not settings.destinations:
        warnings.append("no destination is listed: no token is relayed")
    warnings += [
        f"the destination {entry} asks for an exchanged token and no token endpoint is configured: it gets nothing"
        for entry in settings.entries
        if entry.needs_exchange
    ]
    problems += _check_hooks("Clients", CLIENT_HOOKS)
    for name in UNCOVERED_CLIENTS:
        if (version := _version(name)) is not None:
            print(f"  {name} {version}: not covered, name the destination by hand (to_destination)")
    problems += _check_hooks("Servers", SERVER_HOOKS)
    problems += _check_redaction(settings)
    for title, lines in (("Warnings", warnings), ("Problems", problems)):
        if lines:
            print(title, *(f"  {line}" for line in lines), sep="\n")
    print("No problem found." if not problems else f"{len(problems)} problem(s) found.")
    return 1 if problems else 0


def _check_hooks(title: str, hooks: Sequence[Hook]) -> list[str]:
    """Import each library that is here, so that its hook runs, and say how that went."""
    logging.getLogger("otel_token_relay").addHandler(logging.NullHandler())
    install(Settings())
    print(title)
    problems = []
    for hook in hooks:
        label = hook.module if hook.distribution is None else f"{hook.distribution} {_version(hook.distribution)}"
        if not _is_installed(hook):
            print(f"  {hook.module}: not installed")
            continue
        try:
            importlib.import_module(hook.module)
        except Exception as error:  # noqa: BLE001  # whatever a library does when it is imported
            print(f"  {hook.module} ({label}): cannot be imported: {type(error).__name__}")
            continue
        state = hook_states()[hook.module]
        print(f"  {hook.module} ({label}): {state}")
        if state != "hooked":
            problems.append(f"{hook.module} cannot be hooked: {state}")
    return problems


def _check_redaction(settings: Settings) -> list[str]:
    """Redact, with the SDK that is here, and say how that goes."""
    redaction.start(settings)
    for signal in redaction.SIGNALS:
        with contextlib.suppress(ImportError):
            importlib.import_module(signal.module)
    states = redaction.states()
    print("Redaction")
    for name, state in states.items():
        print(f"  {name}: {state if settings.redaction else 'switched off'}")
    return [f"{name} cannot be redacted: {state}" for name, state in states.items() if state.startswith("NOT ")]


def _is_installed(hook: Hook) -> bool:
    if hook.distribution is not None and _version(hook.distribution) is None:
        return False
    try:
        return importlib.util.find_spec(hook.module) is not None
    except (ImportError, ValueError):
        return False


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(empty)"
    return str(value).lower() if isinstance(value, bool) else str(value)


def explain(url: str, *, as_json: bool) -> int:
    """Print the decision for a URL under the current environment, and why.

    Returns:
        0 where a plain, living token would be relayed, 1 where it would be withheld.
    """
    settings = Settings.from_env()
    decision, destination = Relay(settings).explain(url)
    entry = None if destination is None else str(destination)
    if as_json:
        answer = {
            "url": url,
            "decision": decision.outcome,
            "reason": decision.reason.value,
            "destination": entry,
            "problems": list(settings.problems),
        }
        print(json.dumps(answer))
    else:
        _print_explanation(decision, entry, settings)
    return 0 if decision.outcome != "withheld" else 1


def _print_explanation(decision: Decision, entry: str | None, settings: Settings) -> None:
    print(f"{decision.outcome}: {decision.reason}")
    print(f"  {_MEANINGS[decision.reason]}")
    if entry is not None:
        print(f"  entry: {entry}")
    for problem in settings.problems:
        print(f"  problem: {problem}")


def demo() -> int:
    """Run the demo, which needs the extra of that name."""
    try:
        from otel_token_relay.demo import run
    except ImportError as error:
        print(
            f"the demo needs its extra: pip install 'otel-token-relay[demo]' ({error.name} is missing)", file=sys.stderr
        )
        return 2
    return run()
