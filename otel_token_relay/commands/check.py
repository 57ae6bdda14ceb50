"""``otel-token-relay check``: report what is configured, and whether it works."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Sequence

from otel_token_relay.commands import OK, PROBLEM
from otel_token_relay.hooks import CLIENT_HOOKS, SERVER_HOOKS, Hook
from otel_token_relay.installation import CONTEXT_PROBLEM, hook_states, install
from otel_token_relay.otel import keeps_unknown_keys
from otel_token_relay.reasons import Reason
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.settings import VARIABLES, Settings

# Clients that send requests themselves and are not hooked: use `to_destination` with them. Libraries built on
# a hooked client are not listed. `docs/servers-and-clients.md` contains the same list.
UNCOVERED_CLIENTS = (
    "curl_cffi",
    "geventhttpclient",
    "grpclib",
    "httplib2",
    "niquests",
    "primp",
    "pycurl",
    "pyreqwest",
    "Twisted",
    "websocket-client",
    "websockets",
)

_NOT_COVERED = "not covered; name the destination yourself with to_destination()"

_HOW_TO_SWITCH_ON = (
    "OTEL_PROPAGATORS does not contain token_relay, so no token is relayed unless the application calls install()"
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "check", help="print the settings and the hooked libraries; exit with 1 if there is a problem"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command with its parsed *options*."""
    return check()


def check() -> int:
    """Print the settings, the hooked libraries, the warnings and the problems.

    Returns:
        1 if a setting is invalid or an installed library cannot be hooked, otherwise 0.
    """
    # Without this handler, the hooks and settings would also log to stderr what is printed here.
    logging.getLogger("otel_token_relay").addHandler(logging.NullHandler())
    settings = Settings.from_env()
    _print_settings(settings)
    problems = [*settings.problems, *_install_hooks()]
    if settings.verify != "off" and importlib.util.find_spec("jwt") is None:
        problems.append("requests cannot be verified because PyJWT is missing: pip install 'otel-token-relay[verify]'")
    if not keeps_unknown_keys():
        problems.append(CONTEXT_PROBLEM)
    problems += _check_hooks("Clients", CLIENT_HOOKS)
    for name in UNCOVERED_CLIENTS:
        if (version := _version(name)) is not None:
            print(f"  {name} {version}: {_NOT_COVERED}")
    print(f"  http.client (standard library), used directly: {_NOT_COVERED}")
    problems += _check_hooks("Servers", SERVER_HOOKS)
    problems += _check_redaction(settings)
    for title, lines in (("Warnings", _risks(settings)), ("Problems", problems)):
        if lines:
            print(title, *(f"  {line}" for line in lines), sep="\n")
    print("No problems found." if not problems else f"{len(problems)} problem{'s' * (len(problems) > 1)} found.")
    return PROBLEM if problems else OK


def _print_settings(settings: Settings) -> None:
    print("Settings")
    print(f"  OTEL_PROPAGATORS = {os.environ.get('OTEL_PROPAGATORS') or '(empty)'}")
    for name, variable in VARIABLES.items():
        origin = "set" if os.environ.get(variable.name, "").strip() else "default"
        if any(problem.startswith(f"{variable.name}:") for problem in settings.problems):
            origin = "invalid value replaced, see Problems"
        print(f"  {variable.name} = {_shown(getattr(settings, name))}  ({origin})")


def _risks(settings: Settings) -> list[str]:
    warnings = list(settings.warnings)
    if not _is_switched_on():
        warnings.append(_HOW_TO_SWITCH_ON)
    if not settings.destinations:
        warnings.append("no destination is listed, so no token is relayed")
    if settings.verify != "off" and not _has_module("_otel_token_relay_startup"):
        warnings.append(
            "requests are verified only if OpenTelemetry starts, because the package is not installed in site-packages,"
            " where Python would read otel_token_relay.pth"
        )
    if settings.require_verified and settings.verify == "off":
        warnings.append(f"no token is relayed: {_plain(Reason.NOT_VERIFIED.advice)}")
    warnings += [
        f"the destination {entry} receives no token: it requires an exchanged one, which this version cannot obtain"
        for entry in settings.entries
        if entry.needs_exchange
    ]
    return warnings


def _is_switched_on() -> bool:
    return "token_relay" in [name.strip() for name in os.environ.get("OTEL_PROPAGATORS", "").split(",")]


def _install_hooks() -> list[str]:
    """Install the hooks, which also loads the propagators in OTEL_PROPAGATORS as an application does at startup."""
    try:
        install(Settings())
    except Exception as error:  # OTEL_PROPAGATORS may contain a propagator from any package
        return [f"OTEL_PROPAGATORS cannot be loaded, so the application would not start: {error}"]
    return []


def _check_hooks(title: str, hooks: Sequence[Hook]) -> list[str]:
    """Import each installed library so that its hook runs, print the results and return the problems."""
    print(title)
    problems = []
    for hook in hooks:
        version = None if hook.distribution is None else _version(hook.distribution)
        label = "standard library" if hook.distribution is None else f"{hook.distribution} {version}"
        if hook.distribution is not None and version is None:
            print(f"  {hook.module}: not installed")
            continue
        if not _has_module(hook.module):
            print(f"  {hook.module}: not in {label}")
            continue
        try:
            importlib.import_module(hook.module)
        except ModuleNotFoundError as error:  # an optional part of the library
            print(f"  {hook.module} ({label}): requires {error.name}, which is not installed")
            continue
        except Exception as error:  # importing a library may raise any exception
            print(f"  {hook.module} ({label}): cannot be imported: {type(error).__name__}")
            continue
        states = hook_states()
        state = states.get(hook.module, "not tried")  # if the hooks could not be installed
        print(f"  {hook.module} ({label}): {state}")
        if states and state != "hooked":
            problems.append(f"{hook.module} cannot be hooked: {state}")
    return problems


def _check_redaction(settings: Settings) -> list[str]:
    """Install redaction in the SDK, print the results and return the problems."""
    redaction.start(settings)
    for signal in redaction.SIGNALS:
        with contextlib.suppress(ImportError):
            importlib.import_module(signal.module)
    states = redaction.states()
    print("Redaction")
    for name, state in states.items():
        print(f"  {name}: {state if settings.redaction else 'switched off'}")
    return [f"{name} cannot be redacted: {state}" for name, state in states.items() if state.startswith("NOT ")]


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
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
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(markdown: str) -> str:
    return markdown.replace("`", "")
