"""Run the demo: start the processes, call the services with and without valid tokens, and print the results."""

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
from typing import Final

import httpx
from rich.console import Console

from otel_token_relay import BearerToken
from otel_token_relay import environment_variables as env
from otel_token_relay.demo import recorder
from otel_token_relay.demo.console import Report
from otel_token_relay.demo.hops import ANONYMOUS, Call, Hop, find_faults, join_hops, read_spans
from otel_token_relay.demo.processes import Processes, Signals, StartFailed, listen, temporary_folder
from otel_token_relay.demo.sign_in import sign_in, sign_out
from otel_token_relay.demo.token_checks import TokenCheck, find_fault, run_check, tamper

AUTHORIZATION_SERVER: Final = "authorization-server"
USER_SERVICE: Final = "user-service"
PROFILE_SERVICE: Final = "profile-service"
THIRD_PARTY: Final = "third-party"

# This does the same as ``opentelemetry-instrument uvicorn``, but starts Python only once.
_INSTRUMENTED_UVICORN: Final = (
    "from opentelemetry.instrumentation.auto_instrumentation import initialize; initialize(); "
    "from uvicorn import main; main()"
)

_INSTRUMENTED: Final = frozenset({"fastapi", "httpx", "threading"})

# Prefixes of variables in the user's shell that must not affect the demo.
_FOREIGN: Final = ("OTEL_", "DEMO_", "UVICORN_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def run_demo() -> int:
    """Run the demo on standard output; see `otel_token_relay.demo.run`."""
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
            return Runner(folder, processes, report, console).run()
    except StartFailed as failure:
        report.print_failure(str(failure))
        return 1


class Runner:
    """One run of the demo: its processes, users and calls.

    Args:
        folder: The folder for output and notes, which is removed when the demo ends.
    """

    def __init__(self, folder: Path, processes: Processes, report: Report, console: Console) -> None:
        self._notes = folder / "notes"
        self._folder = folder
        self._processes = processes
        self._report = report
        self._console = console
        self._urls: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        # The user and value of every token. None of the tokens may appear in the services' output.
        self._known: list[tuple[str, str]] = []
        self._calls: list[Call] = []

    def run(self) -> int:
        """Run all steps and return the exit status."""
        with self._console.status("Waiting until the processes respond …"):
            settings = self._start()
        self._report.print_introduction(settings, {url: name for name, url in self._urls.items()})
        faults = asyncio.run(self._relay_tokens())
        faults += self._check_tokens()
        faults += find_faults(self._calls, self._report.hops, self._read_notes(), listed=frozenset({PROFILE_SERVICE}))
        faults += self._find_leaks()
        self._report.print_result(faults, unlisted=THIRD_PARTY)
        return 1 if faults else 0

    def _start(self) -> dict[str, str]:
        """Start the four processes, then sign in alice and bob.

        Returns:
            The variables that configure the relay.
        """
        with ExitStack() as ours:
            listeners = {}
            for name in (AUTHORIZATION_SERVER, USER_SERVICE, PROFILE_SERVICE, THIRD_PARTY):
                listeners[name], self._urls[name] = listen()
                ours.enter_context(listeners[name])
            settings = {
                "OTEL_PROPAGATORS": "tracecontext,baggage,token_relay",
                env.OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS: self._urls[PROFILE_SERVICE],
            }
            self._start_authorization_server(listeners[AUTHORIZATION_SERVER])
            self._start_application(THIRD_PARTY, listeners[THIRD_PARTY])
            self._start_application(USER_SERVICE, listeners[USER_SERVICE], settings)
            self._start_application(PROFILE_SERVICE, listeners[PROFILE_SERVICE], settings)
        for name in listeners:
            self._processes.wait_until(name, lambda url=self._urls[name]: _is_ready(url))  # type: ignore[misc]
        for user in ("alice", "bob"):
            self._tokens[user] = self._sign_in(user)
        return settings

    def _start_authorization_server(self, listener: socket.socket) -> None:
        command = [sys.executable, "-m", "otel_token_relay.demo.authorization_server", "--fd", str(listener.fileno())]
        self._processes.start(AUTHORIZATION_SERVER, command, _environment(), listener)

    def _start_application(self, name: str, listener: socket.socket, settings: Mapping[str, str] | None = None) -> None:
        """Start an application, and run it under OpenTelemetry if it has relay settings."""
        program = ["-m", "uvicorn"] if settings is None else ["-c", _INSTRUMENTED_UVICORN]
        command = [sys.executable, *program, "--fd", str(listener.fileno()), "--timeout-keep-alive", "60"]
        command += ["--factory", "otel_token_relay.demo.recorder:build"]
        environment = _environment() | {
            "ISSUER": self._urls[AUTHORIZATION_SERVER],
            "PROFILE_SERVICE": self._urls[PROFILE_SERVICE],
            "THIRD_PARTY": self._urls[THIRD_PARTY],
            recorder.APP_VARIABLE: f"otel_token_relay.demo.{name.replace('-', '_')}:app",
            recorder.NAME_VARIABLE: name,
            recorder.NOTES_VARIABLE: str(self._notes),
        }
        if settings is not None:
            environment |= {"CLIENT_SECRET": f"{name}-secret", "OTEL_SERVICE_NAME": name, **_telemetry(), **settings}
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
        return faults

    def _check_tokens(self) -> list[str]:
        """Call profile-service directly with valid and invalid tokens, print each outcome, and return the faults."""
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
            "profile-service verifies tokens: direct calls with valid and invalid ones",
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
            "the authorization server signs with a new key and still publishes the old one",
            self._prepare_check("bob's, signed with the new key", "bob", bob),
            self._prepare_check("alice's, signed with the old key", "alice", alice),
        )
        return [fault for fault in map(find_fault, self._report.outcomes) if fault]

    def _prepare_check(self, what: str, user: str | None, token: str | None, reason: str = "") -> TokenCheck:
        bearer = None if token is None else BearerToken(token)
        return TokenCheck(what=what, call=self._prepare(user, token), token=bearer, reason=reason)

    def _run_checks(self, title: str, *checks: TokenCheck, has_header: bool = False) -> None:
        log = self._processes.log(PROFILE_SERVICE)
        with httpx.Client(base_url=self._urls[PROFILE_SERVICE], trust_env=False, timeout=20) as client:
            outcomes = [run_check(check, client, log) for check in checks]
        self._report.print_checks(title, outcomes, has_header=has_header)

    def _sign_in(self, user: str, **options: str) -> str:
        token = sign_in(self._urls[AUTHORIZATION_SERVER], user, **options)
        self._known.append((user, token))
        return token

    def _prepare(self, user: str | None, token: str | None) -> Call:
        seen = None if token is None else recorder.digest(token.encode())
        call = Call(trace_id=secrets.token_hex(16), user=user, token=seen)
        self._calls.append(call)
        return call

    async def _call(self, connection: httpx.AsyncClient, call: Call) -> str | None:
        """Call user-service as the user of *call*, and return the fault, if there is one."""
        headers = {"traceparent": call.traceparent()}
        if call.user is not None:
            headers["authorization"] = f"Bearer {self._tokens[call.user]}"
        response = await connection.get("/me", headers=headers)
        caller = call.user or ANONYMOUS
        if response.status_code != 200:
            return f"user-service responded to {caller} with status {response.status_code}"
        name = response.json()["name"]
        return None if name == call.user else f"user-service identified {caller} as {name or ANONYMOUS}"

    async def _wait_for_hops(self, calls: Sequence[Call]) -> list[Hop]:
        """Wait until the calls' spans have been exported, then return the hops."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            spans = [span for name in (USER_SERVICE, PROFILE_SERVICE) for span in read_spans(self._read_output(name))]
            hops = join_hops(calls, spans, self._read_notes())
            if hops is not None:
                return hops
            await asyncio.sleep(0.03)
        raise StartFailed(
            "the services exported no spans: check whether another OpenTelemetry distribution is installed"
        )

    def _read_output(self, name: str) -> str:
        return self._processes.output(name).read_text()

    def _read_notes(self) -> list[recorder.Note]:
        return [recorder.Note.from_json(line) for line in self._notes.read_text().splitlines()]

    def _find_leaks(self) -> list[str]:
        """Return a fault for each file that contains a token among its spans, logs or notes."""
        found = (
            f"{path.name} contains {user}'s token"
            for path in sorted(self._folder.iterdir())
            for user, token in self._known
            if token in path.read_text(errors="replace")
        )
        return list(dict.fromkeys(found))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(_FOREIGN)}


def _telemetry() -> dict[str, str]:
    """Return the variables that send spans to standard output and switch off the other exporters."""
    others = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")} - _INSTRUMENTED
    return {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        # Each of these would import a library that the demo does not use. If many are installed, this takes seconds.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(sorted(others)),
    }


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=1).status_code > 0
    except httpx.TransportError:
        return False
