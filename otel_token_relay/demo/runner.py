"""Start the demo's processes, call the services with and without valid tokens, and print the results."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console

from otel_token_relay import BearerToken
from otel_token_relay import environment_variables as env
from otel_token_relay.demo import recorder
from otel_token_relay.demo.console import Report
from otel_token_relay.demo.hops import ANONYMOUS, Call, Hop, find_faults, join_hops, read_spans
from otel_token_relay.demo.processes import Processes, Signals, StartFailed, listen, temporary_folder
from otel_token_relay.demo.recording import write_recording
from otel_token_relay.demo.sign_in import sign_in, sign_out
from otel_token_relay.demo.token_checks import TokenCheck, find_fault, run_check, tamper

AUTHORIZATION_SERVER: Final = "authorization-server"
USER_SERVICE: Final = "user-service"
PROFILE_SERVICE: Final = "profile-service"
BILLING_SERVICE: Final = "billing-service"
THIRD_PARTY: Final = "third-party"

# This program is equivalent to ``opentelemetry-instrument uvicorn``, but it starts only one Python interpreter.
_INSTRUMENTED_UVICORN: Final = (
    "from opentelemetry.instrumentation.auto_instrumentation import initialize; initialize(); "
    "from uvicorn import main; main()"
)

# The paths that require a token, keyed by service.
_PATHS: Final = {PROFILE_SERVICE: "/profile", BILLING_SERVICE: "/invoices"}

_INSTRUMENTED: Final = frozenset({"fastapi", "httpx", "threading"})

# Environment variables with these prefixes must not affect the demo.
_FOREIGN: Final = ("OTEL_", "DEMO_", "UVICORN_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def run_demo(record: str | None = None) -> int:
    """Run the demo, and print the results to standard output; see `otel_token_relay.demo.run`."""
    report = Report(console := Console())
    if os.name != "posix":
        report.print_failure("the demo passes open sockets to its processes, which requires Linux or macOS")
        return 1
    try:
        with (
            Signals() as signals,
            temporary_folder(signals) as folder,
            Processes(folder, signals) as processes,
        ):
            if record is not None:
                open(record, "a").close()  # Detect an unusable path before the demo runs.
            runner = Runner(folder, processes, report, console)
            status = runner.run()
            if record is not None and not runner.has_leaked:
                Path(record).write_text(runner.recording(), "utf-8")
            return status
    except StartFailed as failure:
        report.print_failure(str(failure))
        return 1


class Runner:
    """A single run of the demo.

    Args:
        folder: The temporary folder for the services' output and the recorders' notes.
    """

    def __init__(self, folder: Path, processes: Processes, report: Report, console: Console) -> None:
        self._notes = folder / "notes"
        self._folder = folder
        self._secret = folder / f"{USER_SERVICE}-secret"
        self._processes = processes
        self._report = report
        self._console = console
        self._urls: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        # Each pair contains a user and one of the user's tokens. These tokens must not appear in the services' output.
        self._known: list[tuple[str, str]] = []
        self._calls: list[Call] = []
        self.has_leaked: bool = False

    def run(self) -> int:
        """Run all steps and return the exit status."""
        with self._console.status("Waiting for the processes to respond …"):
            settings = self._start()
        self._report.print_introduction(settings, {url: name for name, url in self._urls.items()})
        faults = asyncio.run(self._relay_tokens())
        faults += self._check_tokens()
        faults += find_faults(
            self._calls,
            self._report.hops,
            self._read_notes(),
            listed=frozenset({PROFILE_SERVICE}),
            exchanged=frozenset({BILLING_SERVICE}),
        )
        leaks = self._find_leaks()
        self.has_leaked = bool(leaks)
        faults += leaks
        self._report.print_result(faults, exchanged=BILLING_SERVICE, unlisted=THIRD_PARTY)
        return 1 if faults else 0

    def _start(self) -> dict[str, str]:
        """Start the five processes, and then sign in alice and bob.

        Returns:
            The environment variables that configure user-service, with a shortened path to the client secret.
        """
        with ExitStack() as ours:
            listeners = {}
            for name in (AUTHORIZATION_SERVER, USER_SERVICE, PROFILE_SERVICE, BILLING_SERVICE, THIRD_PARTY):
                listeners[name], self._urls[name] = listen()
                ours.enter_context(listeners[name])
            propagators = {"OTEL_PROPAGATORS": "tracecontext,baggage,token_relay"}
            settings = propagators | self._exchange_settings()
            self._start_authorization_server(listeners[AUTHORIZATION_SERVER])
            self._start_application(USER_SERVICE, listeners[USER_SERVICE], settings)
            self._start_application(PROFILE_SERVICE, listeners[PROFILE_SERVICE], propagators)
            self._start_application(BILLING_SERVICE, listeners[BILLING_SERVICE])
            self._start_application(THIRD_PARTY, listeners[THIRD_PARTY])
        for name in listeners:
            self._processes.wait_until(name, lambda url=self._urls[name]: _is_ready(url))  # type: ignore[misc]
        for user in ("alice", "bob"):
            self._tokens[user] = self._sign_in(user, resource=(USER_SERVICE, PROFILE_SERVICE))
        return settings | {env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_SECRET_FILE: f"…/{self._secret.name}"}

    def _exchange_settings(self) -> dict[str, str]:
        """Write user-service's client secret to a file, and return the settings for relaying and exchanging tokens."""
        self._secret.touch(mode=0o600)
        self._secret.write_text(f"{USER_SERVICE}-secret\n")
        profile_service, billing_service = self._urls[PROFILE_SERVICE], self._urls[BILLING_SERVICE]
        return {
            env.OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS: f"{profile_service},{billing_service};audience={BILLING_SERVICE}",
            env.OTEL_PYTHON_TOKEN_RELAY_VERIFY: "optional",
            env.OTEL_PYTHON_TOKEN_RELAY_ISSUERS: self._urls[AUTHORIZATION_SERVER],
            env.OTEL_PYTHON_TOKEN_RELAY_AUDIENCE: USER_SERVICE,
            env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_ID: USER_SERVICE,
            env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_SECRET_FILE: str(self._secret),
        }

    def _start_authorization_server(self, listener: socket.socket) -> None:
        command = [sys.executable, "-m", "otel_token_relay.demo.authorization_server", "--fd", str(listener.fileno())]
        self._processes.start(AUTHORIZATION_SERVER, command, _environment(), listener)

    def _start_application(self, name: str, listener: socket.socket, settings: Mapping[str, str] | None = None) -> None:
        """Start an application, with OpenTelemetry instrumentation if it has relay settings."""
        program = ["-m", "uvicorn"] if settings is None else ["-c", _INSTRUMENTED_UVICORN]
        command = [sys.executable, *program, "--fd", str(listener.fileno()), "--timeout-keep-alive", "60"]
        command += ["--factory", "otel_token_relay.demo.recorder:build"]
        environment = _environment() | {
            "ISSUER": self._urls[AUTHORIZATION_SERVER],
            "PROFILE_SERVICE": self._urls[PROFILE_SERVICE],
            "BILLING_SERVICE": self._urls[BILLING_SERVICE],
            "THIRD_PARTY": self._urls[THIRD_PARTY],
            recorder.APP_VARIABLE: f"otel_token_relay.demo.{name.replace('-', '_')}:app",
            recorder.NAME_VARIABLE: name,
            recorder.NOTES_VARIABLE: str(self._notes),
        }
        if settings is not None:
            environment |= {"OTEL_SERVICE_NAME": name, **_telemetry(), **settings}
        if name == PROFILE_SERVICE:
            environment["CLIENT_SECRET"] = f"{name}-secret"
        self._processes.start(name, command, environment, listener)

    async def _relay_tokens(self) -> list[str]:
        """Call user-service in several steps, print each step's hops, and return the faults."""
        steps: tuple[tuple[str, list[str | None]], ...] = (
            ("alice calls with her token", ["alice"]),
            ("an anonymous caller uses the connection that alice has just used", [None]),
            ("alice and bob call at the same time", ["alice", "bob"]),
        )
        faults: list[str] = []
        async with httpx.AsyncClient(base_url=self._urls[USER_SERVICE], trust_env=False, timeout=20) as connection:
            for number, (title, users) in enumerate(steps):
                calls = [self._prepare(user, self._tokens.get(user or "")) for user in users]
                results = await asyncio.gather(*(self._call(connection, call) for call in calls))
                faults += [fault for fault in results if fault]
                self._report.print_part(title, await self._wait_for_hops(calls), has_header=number == 0)
        self._report.print_tokens("alice's tokens: billing-service receives an exchanged token", "alice")
        return faults

    def _check_tokens(self) -> list[str]:
        """Call the services directly with valid and invalid tokens, print each outcome, and return the faults."""
        issuer = self._urls[AUTHORIZATION_SERVER]
        short_lived = self._sign_in("alice", client_id="kiosk")
        expires_at = BearerToken(short_lived).expires_at or 0
        for_billing = self._sign_in("alice", resource="billing-service")
        revoked = self._sign_in("alice")
        sign_out(issuer, revoked)
        alice = self._tokens["alice"]
        tampered = tamper(alice)
        self._known.append(("alice", tampered))
        time.sleep(max(0, expires_at - time.time()))
        self._run_checks(
            "profile-service verifies tokens: direct calls with valid and invalid tokens",
            self._prepare_check("alice's", "alice", alice),
            self._prepare_check("alice's, expired 1 s after it was issued", "alice", short_lived, "expired"),
            self._prepare_check("alice's, issued for billing-service", "alice", for_billing, "wrong_audience"),
            self._prepare_check("alice's, with a changed signature", "alice", tampered, "bad_signature"),
            self._prepare_check("alice's, revoked when she signed out", "alice", revoked, "inactive"),
            self._prepare_check("none", None, None, "absent"),
            has_header=True,
        )
        httpx.post(f"{issuer}/keys/rotate", trust_env=False, timeout=10).raise_for_status()
        bob = self._sign_in("bob")
        self._run_checks(
            "the authorization server signs with a new key and still publishes the old key",
            self._prepare_check("bob's, signed with the new key", "bob", bob),
            self._prepare_check("alice's, signed with the old key", "alice", alice),
        )
        self._run_checks(
            "billing-service refuses the token that alice sends to user-service",
            self._prepare_check("alice's", "alice", alice, "wrong_audience", service=BILLING_SERVICE),
        )
        return [fault for fault in map(find_fault, self._report.outcomes) if fault]

    def _prepare_check(
        self, what: str, user: str | None, token: str | None, reason: str = "", service: str = PROFILE_SERVICE
    ) -> TokenCheck:
        bearer = None if token is None else BearerToken(token)
        return TokenCheck(what=what, call=self._prepare(user, token, service), token=bearer, reason=reason)

    def _run_checks(self, title: str, *checks: TokenCheck, has_header: bool = False) -> None:
        service = checks[0].call.receiver
        log, path = self._processes.log(service), _PATHS[service]
        with httpx.Client(base_url=self._urls[service], trust_env=False, timeout=20) as client:
            outcomes = [run_check(check, client, log, path) for check in checks]
        self._report.print_checks(title, outcomes, has_header=has_header)

    def _sign_in(self, user: str, **options: Any) -> str:
        token = sign_in(self._urls[AUTHORIZATION_SERVER], user, **options)
        self._known.append((user, token))
        return token

    def _prepare(self, user: str | None, token: str | None, receiver: str = USER_SERVICE) -> Call:
        seen = None if token is None else recorder.digest(token.encode())
        call = Call(trace_id=secrets.token_hex(16), user=user, token=seen, receiver=receiver)
        self._calls.append(call)
        return call

    async def _call(self, connection: httpx.AsyncClient, call: Call) -> str | None:
        """Call user-service as *call*'s user, and return a description of any fault."""
        headers = {"traceparent": call.traceparent()}
        if call.user is not None:
            headers["authorization"] = f"Bearer {self._tokens[call.user]}"
        response = await connection.get("/me", headers=headers)
        caller = call.user or ANONYMOUS
        if response.status_code != 200:
            return f"user-service responded to {caller} with status {response.status_code}"
        identified = response.json()
        for service, member in ((PROFILE_SERVICE, "name"), (BILLING_SERVICE, "billed")):
            if identified[member] != call.user:
                return f"{service} identified {caller} as {identified[member] or ANONYMOUS}"
        return None

    async def _wait_for_hops(self, calls: Sequence[Call]) -> list[Hop]:
        """Wait until the services have exported the calls' spans, and then return the hops."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            hops = join_hops(calls, self._read_spans(), self._read_notes())
            if hops is not None:
                return hops
            await asyncio.sleep(0.03)
        raise StartFailed(
            "the services exported no spans: check whether another OpenTelemetry distribution is installed"
        )

    def recording(self) -> str:
        """Return the spans of the calls to user-service as OTLP JSON."""
        calls = [call for call in self._calls if call.receiver == USER_SERVICE]
        return write_recording(calls, self._read_spans(), self._read_notes())

    def _read_spans(self) -> list[dict[str, Any]]:
        names = (USER_SERVICE, PROFILE_SERVICE)
        return [span for name in names for span in read_spans(self._processes.output(name).read_text())]

    def _read_notes(self) -> list[recorder.Note]:
        return [recorder.Note.from_json(line) for line in self._notes.read_text().splitlines()]

    def _find_leaks(self) -> list[str]:
        """Search the files of spans, logs, and notes, and return a fault for each user's token in each file."""
        faults = []
        for path in sorted(self._folder.iterdir()):
            content = path.read_bytes()
            users = [user for user, token in self._known if token.encode() in content]
            # The runner does not have the exchanged tokens, so search for anything that looks like a token.
            users += [recorder.read_token(token).subject for token in recorder.find_tokens(content)]
            faults += [f"{path.name} contains {user}'s token" for user in dict.fromkeys(users)]
        return faults


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(_FOREIGN)}


def _telemetry() -> dict[str, str]:
    """Return the environment variables that direct spans to standard output and disable the other exporters."""
    others = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")} - _INSTRUMENTED
    return {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        # These instrumentation packages would spend several seconds importing libraries that the demo does not use.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(sorted(others)),
    }


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=1).status_code > 0
    except httpx.TransportError:
        return False
