"""Implement the ``check`` command, which reports whether the configuration works."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from otel_token_relay.client_credentials import ClientCredential, CredentialUnavailable
from otel_token_relay.commands import NO_RESPONSE, OK, PROBLEM
from otel_token_relay.commands.activation import context_problem, relay_problem
from otel_token_relay.commands.arguments import conceal
from otel_token_relay.commands.coverage import (
    KINDS,
    NOT_COVERED,
    Kind,
    Library,
    has_module,
    installed_caches,
    installed_libraries,
    missing_packages,
    try_caches,
    try_hooks,
    try_redaction,
)
from otel_token_relay.commands.exchanging import ask_token_endpoints
from otel_token_relay.commands.output import emphasize, escape, say
from otel_token_relay.commands.processes import environment_of
from otel_token_relay.extras import unmet
from otel_token_relay.installation import CONTEXT_PROBLEM, install
from otel_token_relay.otel import keeps_unknown_keys
from otel_token_relay.settings import RELAY_SETTINGS, VARIABLES, Settings, load_sources
from otel_token_relay.sources import are_given, describe_overridden

if TYPE_CHECKING:
    from otel_token_relay.verification.issuer_endpoints import IssuerReport

PARTS: Final = ("relay", "verify")

_EXAMPLES = """\
exit status:
  0  the configuration works
  1  something does not work, nothing is configured, or a required part is off
  2  usage error
  3  an endpoint does not respond (with --online)

examples:
  otel-token-relay check
  otel-token-relay check --pid "$(pgrep -o gunicorn)"
  otel-token-relay check --online --require relay,verify --strict
"""


@dataclass(slots=True)
class Setting:
    """A setting that differs from its default.

    Attributes:
        name: The name of the environment variable.
        value: The effective value.
        source: The source of the value, which is ``environment`` or a path in the configuration file.
        is_replaced: Whether the configured value is invalid and has been replaced with the strict value.
    """

    name: str
    value: str
    source: str
    is_replaced: bool


@dataclass(slots=True)
class Report:
    """The results of the ``check`` command.

    Attributes:
        relay: Whether the relay is on.
        verify: The effective value of the ``OTEL_PYTHON_TOKEN_RELAY_VERIFY`` variable.
        problems: A sentence for each problem that prevents the configuration from working.
        warnings: A one-sentence warning for each likely mistake in a working configuration.
        libraries: The installed clients, servers, and frameworks.
        settings: The settings that differ from their defaults.
        issuers: The results from the issuers' endpoints; empty unless the user specifies ``--online``.
    """

    relay: bool
    verify: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    libraries: list[Library] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    issuers: list[IssuerReport] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report in the JSON format that ``docs/command-line.md`` describes."""
        return asdict(replace(self, issuers=[])) | {"issuers": [issuer.as_dict() for issuer in self.issuers]}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``check`` command to the command-line parser."""
    summary = "report whether the configuration works"
    parser = commands.add_parser(
        "check",
        help=summary,
        description=summary.capitalize() + ".",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--online", action="store_true", help="fetch the issuers' metadata and keys, and look up a token"
    )
    parser.add_argument("--pid", type=int, metavar="N", help="use the environment of process N (Linux)")
    parser.add_argument(
        "--require", type=_parts, default=(), metavar="PARTS", help="fail if a listed part (relay or verify) is off"
    )
    parser.add_argument("--strict", action="store_true", help="fail if there are warnings")
    parser.add_argument("--all", action="store_true", help="import every installed library and try its hooks")
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")
    parser.set_defaults(run=run)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if not set(parts) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"expected one or more of {','.join(PARTS)}")
    return parts


def run(options: argparse.Namespace) -> int:
    """Run the ``check`` command and return its exit status."""
    # Without this handler, Python would also log the printed problems to stderr.
    logging.getLogger("otel_token_relay").addHandler(logging.NullHandler())
    report = build_report(environment_of(options.pid), options)
    status = _status(report, options)
    if options.json:
        print(json.dumps({"ok": status == OK} | report.as_dict()))
    else:
        _print(report, options)
    return status


def _status(report: Report, options: argparse.Namespace) -> int:
    if report.problems or (options.strict and report.warnings):
        return PROBLEM
    return NO_RESPONSE if _unreachable(report) else OK


def _unreachable(report: Report) -> list[str]:
    """Return the issuers that did not respond."""
    return [escape(issuer.issuer) for issuer in report.issuers if issuer.state == "no_response"]


def build_report(environ: Mapping[str, str], options: argparse.Namespace) -> Report:
    """Check the settings in *environ* and the libraries installed in this Python environment."""
    settings = Settings.load(environ)
    report = Report(relay=relay_problem(environ) is None, verify=settings.verify)
    report.settings = list(_differing(environ, settings))
    report.problems += map(conceal, settings.problems)
    if options.all:
        report.problems += _install_hooks()
        report.libraries = try_hooks()
    else:
        report.libraries = installed_libraries()
    if settings.destinations and settings.protect_caches:
        report.libraries = [*report.libraries, *try_caches()]
    if settings.redaction:
        report.libraries += try_redaction(settings)
    report.problems += _problems(environ, settings, report, options)
    if options.online:
        report.issuers = _ask_issuers(settings, report) + _ask_token_endpoints(settings, report)
    report.warnings = [*settings.warnings, *_warnings(environ, settings, report, options)]
    return report


def _ask_issuers(settings: Settings, report: Report) -> list[IssuerReport]:
    """Query the issuers, and report a problem for each unusable response."""
    if settings.verification_problem is not None or missing_packages():
        return []
    # These imports are local because PyJWT is optional and takes 60 ms to import.
    from otel_token_relay.verification.authenticator import client_from
    from otel_token_relay.verification.endpoints import describe_clock
    from otel_token_relay.verification.issuer_endpoints import ask_issuers

    issuers = ask_issuers(
        settings.issuers,
        settings.algorithms,
        jwks_uri=settings.jwks_uri,
        jwks_token_file=settings.jwks_token_file,
        introspection_endpoint=settings.introspection_endpoint,
        client=settings.client_credential,
        http=client_from(settings),
    )
    report.problems += _failures(issuers, "this issuer's tokens cannot be verified")
    report.problems += [
        f"{issuer.issuer}: {describe_clock(issuer.clock_difference)} If the clocks differ by more than"
        f" {settings.leeway:g} s, valid tokens are rejected: synchronize them"
        for issuer in issuers
        if abs(issuer.clock_difference or 0.0) > settings.leeway
    ]
    return [*issuers]


def _ask_token_endpoints(settings: Settings, report: Report) -> list[IssuerReport]:
    """Query the token endpoints if a destination requires an exchange.

    Report a problem for each unusable response.
    """
    exchanges = any(entry.needs_exchange for entry in settings.entries)
    if not exchanges or settings.exchange_problem is not None or missing_packages():
        return []
    endpoints = ask_token_endpoints(settings)
    report.problems += _failures(endpoints, "tokens cannot be exchanged")
    return endpoints


def _failures(issuers: Iterable[IssuerReport], effect: str) -> Iterator[str]:
    """Yield a problem for each issuer that returned an unusable response."""
    for issuer in issuers:
        if issuer.state == "problem":
            failed = _results([issuer], ("no_response", "problem"))
            yield f"{escape(issuer.issuer)}: {effect}: {'; '.join(failed)}"


def _results(issuers: Iterable[IssuerReport], states: Collection[str] | None = None) -> list[str]:
    endpoints = [endpoint for issuer in issuers for endpoint in issuer.endpoints]
    return [f"{e.kind} {escape(e.url)}: {e.result}" for e in endpoints if states is None or e.state in states]


def _differing(environ: Mapping[str, str], settings: Settings) -> Iterator[Setting]:
    sources, default = load_sources(environ), Settings()
    for name, variable in VARIABLES.items():
        value = getattr(settings, name)
        found = [source for source in sources if name in source.values]
        # For a protective setting, the strictest value takes effect, even if its source has a lower precedence.
        source = next((source for source in found if source.values[name] == value), found[0] if found else None)
        if source is not None and (value != getattr(default, name) or name in source.invalid):
            yield Setting(variable.name, conceal(_shown(value)), source.name, name in source.invalid)


def _install_hooks() -> list[str]:
    """Install the hooks, and return any problems.

    The installation also loads the propagators in OTEL_PROPAGATORS, as an application does at startup.
    """
    try:
        install(Settings())
    except Exception as error:  # A propagator from another package can raise any exception.
        return [f"OTEL_PROPAGATORS cannot be loaded, so the application would not start: {error}"]
    return []


def _problems(
    environ: Mapping[str, str], settings: Settings, report: Report, options: argparse.Namespace
) -> Iterator[str]:
    relay_off = relay_problem(environ)
    is_configured = any(setting.name == VARIABLES[name].name for setting in report.settings for name in RELAY_SETTINGS)
    if relay_off is not None and ("relay" in options.require or is_configured):
        yield relay_off
    if relay_off is None and not settings.destinations:
        yield (
            "no valid destination remains, so no tokens are relayed; see the problems above"
            if settings.problems and are_given("destinations", load_sources(environ))
            else f"no destination is listed, so no tokens are relayed: set {VARIABLES['destinations'].name}"
        )
    if "verify" in options.require and settings.verify != "enforce":
        yield f"requests without a valid token are not refused: set {VARIABLES['verify'].name}=enforce"
    if relay_off is not None and not is_configured and settings.verify == "off" and not settings.problems:
        yield (
            "nothing is configured: to relay tokens, set OTEL_PROPAGATORS=tracecontext,baggage,token_relay and"
            f" {VARIABLES['destinations'].name}; to verify them, set {VARIABLES['verify'].name}=enforce"
        )
    yield from _problems_of_environment(environ, settings, report, options)


def _problems_of_environment(
    environ: Mapping[str, str], settings: Settings, report: Report, options: argparse.Namespace
) -> Iterator[str]:
    """Yield the problems with the installed packages."""
    if settings.verify != "off" and (missing := missing_packages()):
        yield f"requests cannot be verified because {missing} is missing: pip install 'otel-token-relay[verify]'"
    elif settings.verify != "off" and (clauses := unmet("verify")):
        yield f"verification requires different versions of its packages: {'; '.join(clauses)}"
    context = context_problem(environ)
    if context is None and options.pid is None and not keeps_unknown_keys():
        context = CONTEXT_PROBLEM
    if context is not None:
        yield context
    if (report.relay or settings.verify != "off") and not any(
        library.is_covered and library.version is not None and library.kind not in ("cache", "signal")
        for library in report.libraries
    ):
        yield (
            "apart from Python's standard library, this environment has no client, server, or framework that can be"
            " hooked: run this command in the service's environment"
        )
    for library in report.libraries:
        if not library.is_covered and library.state != NOT_COVERED:
            yield str(library)
    exchanging = [entry for entry in settings.entries if entry.needs_exchange]
    problem = settings.exchange_problem
    if problem is None and not has_module("urllib3"):
        problem = "urllib3 is missing: pip install 'otel-token-relay[exchange]'"
    if exchanging and problem is not None:
        yield f"no token can be exchanged for {', '.join(map(str, exchanging))}, because {problem}"


def _warnings(
    environ: Mapping[str, str], settings: Settings, report: Report, options: argparse.Namespace
) -> Iterator[str]:
    if settings.verify != "off" and options.pid is None and not has_module("_otel_token_relay_startup"):
        yield (
            "requests are verified only if OpenTelemetry starts, because the package is not installed in site-packages,"
            " where Python would read otel_token_relay.pth"
        )
    if settings.require_verified and settings.verify == "off":
        yield (
            f"tokens are relayed only if the application verifies them in code: set {VARIABLES['verify'].name}=enforce,"
            " or use BearerAuthMiddleware"
        )
    if settings.destinations and not settings.protect_caches and (caches := installed_caches()):
        names = ", ".join(caches)
        yield f"{VARIABLES['protect_caches'].name} is off, so {names} may serve one user's response to another"
    if any(entry.needs_exchange for entry in settings.entries):
        if settings.exchange_unverified:
            yield (
                f"{VARIABLES['exchange_unverified'].name} is set, so anyone can make this service send requests with"
                " its credential"
            )
        elif settings.verify == "off":
            yield (
                "tokens are exchanged only if the application verifies them in code: set"
                f" {VARIABLES['verify'].name}=enforce, or use BearerAuthMiddleware"
            )
    if options.pid is None and not options.online:  # A different process might have access to different files.
        yield from _credential_problems(settings)
    yield from describe_overridden(load_sources(environ), VARIABLES)
    if settings.verify == "report":
        yield "requests without a valid token are reported, but not refused"
    if settings.verify == "optional":
        yield "requests without a token are served"


def _credential_problems(settings: Settings) -> Iterator[str]:
    """Yield a warning for each unusable service credential, without sending any requests."""
    exchanges = any(entry.needs_exchange for entry in settings.entries)
    if settings.verification_problem is not None and not (exchanges and settings.exchange_problem is None):
        return
    uses: list[tuple[str | None, str | None, ClientCredential | None]] = [
        (issuer.issuer, issuer.introspection_endpoint or (issuer.issuer if exchanges else None), issuer.client)
        for issuer in settings.trusted_issuers
    ]
    lone = settings.introspection_endpoint or (settings.token_endpoint if exchanges else None)
    for issuer, endpoint, client in uses or [(None, lone, settings.client_credential)]:
        if endpoint is None or client is None:
            continue
        try:
            client.authenticate(issuer, endpoint)
        except CredentialUnavailable as error:
            yield f"the credential of the client {conceal(client.client_id)} cannot be used: {error}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "(empty)"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value) or "(empty)"


def _print(report: Report, options: argparse.Namespace) -> None:
    print(emphasize(_verdict(report, options)))
    _print_list("Problems", report.problems)
    _print_list("Warnings", report.warnings)
    _print_list("Endpoints", _results(report.issuers))
    covered = [library for library in report.libraries if library.is_covered]
    title = "Hooked" if options.all else "Can be hooked (to try the hooks, add --all)"
    lines = [_line_of(kind, covered) for kind in KINDS if options.all or kind != "signal"]
    _print_list(title, [line for line in lines if line])
    _print_list("Not covered", [str(library) for library in report.libraries if not library.is_covered])
    _print_list(
        "Settings that differ from their defaults",
        [f"{setting.name} = {setting.value} ({_origin(setting)})" for setting in report.settings],
    )


def _line_of(kind: Kind, covered: Sequence[Library]) -> str:
    """Return a line that lists the libraries of one kind, or an empty string if there are none."""
    names = [f"{library.name} {library.version or '(standard library)'}" for library in covered if library.kind == kind]
    return f"{KINDS[kind]}: {', '.join(names)}" if names else ""


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        print()
        say(title)
        for line in lines:
            say(line, indent=2)


def _origin(setting: Setting) -> str:
    return f"{setting.source}; the configured value is invalid" if setting.is_replaced else setting.source


def _verdict(report: Report, options: argparse.Namespace) -> str:
    state = (
        f"The relay is {'on' if report.relay else 'off'}; requests are"
        f" {'not verified' if report.verify == 'off' else f'verified ({report.verify})'}."
    )
    if report.problems:
        return f"{_count(report.problems, 'problem')} found. {state}"
    if options.strict and report.warnings:
        return f"{_count(report.warnings, 'warning')}, which --strict treats as problems. {state}"
    if unreachable := _unreachable(report):
        return f"No response from {', '.join(unreachable)}. {state}"
    return f"No problems found. {state}"


def _count(lines: Sequence[str], noun: str) -> str:
    return f"{len(lines)} {noun}{'s' * (len(lines) > 1)}"
