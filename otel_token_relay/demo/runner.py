"""The play itself: start everything, call the services as people do and as they should not, show what happened."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import tempfile
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
from otel_token_relay.demo import recorder as witness
from otel_token_relay.demo.console import Report
from otel_token_relay.demo.hops import Call, Hop, find_faults, join_hops, read_spans
from otel_token_relay.demo.processes import Processes, Signals, StartFailed, listen
from otel_token_relay.demo.sign_in import sign_in, sign_out
from otel_token_relay.demo.token_checks import Trial, find_fault, perform, tamper

AUTHORIZATION_SERVER: Final = "authorization-server"
USER_SERVICE: Final = "user-service"
PROFILE_SERVICE: Final = "profile-service"
THIRD_PARTY: Final = "third-party"

# What the script of that name does, wherever pip has put it.
_OPENTELEMETRY_INSTRUMENT: Final = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"

_INSTRUMENTED: Final = frozenset({"fastapi", "httpx", "threading"})

# What a visitor's own shell says of OpenTelemetry, of proxies or of uvicorn is not for the demo.
_FOREIGN: Final = ("OTEL_", "DEMO_", "UVICORN_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def play() -> int:
    """Run the demo on standard output; see `otel_token_relay.demo.run`."""
    report = Report(console := Console())
    if os.name != "posix":
        report.print_failure("the demo hands open sockets to its processes, which needs Linux or macOS")
        return 1
    try:
        with (
            Signals() as signals,
            tempfile.TemporaryDirectory(prefix="otel-token-relay-") as name,
            Processes(folder := Path(name), signals) as processes,
        ):
            return Stage(folder, processes, report, console).play()
    except StartFailed as failure:
        report.print_failure(str(failure))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class Stage:
    """The processes, the people and what they have done so far.

    Args:
        folder: For the outputs and the notes; it goes when the demo ends.
    """

    def __init__(self, folder: Path, processes: Processes, report: Report, console: Console) -> None:
        self._notes = folder / "notes"
        self._folder = folder
        self._processes = processes
        self._report = report
        self._console = console
        self._urls: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        # Every token that there was, and whose: none of them may be found where the services write.
        self._known: list[tuple[str, str]] = []
        self._calls: list[Call] = []

    def play(self) -> int:
        """Show everything and give the exit status."""
        with self._console.status("Starting four processes on loopback …"):
            settings = self._start()
        self._report.print_opening(settings, {url: name for name, url in self._urls.items()})
        faults = asyncio.run(self._perform())
        faults += self._try_tokens()
        faults += find_faults(self._calls, self._report.hops, self._read_notes(), listed=frozenset({PROFILE_SERVICE}))
        faults += self._find_leaks()
        self._report.print_verdict(faults, outsider=THIRD_PARTY)
        return 1 if faults else 0

    def _start(self) -> dict[str, str]:
        """Start all four and sign alice and bob in.

        Returns:
            The variables that are about the relay.
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
            self._processes.wait_until(name, lambda url=self._urls[name]: _answers(url))  # type: ignore[misc]
        for user in ("alice", "bob"):
            self._tokens[user] = self._sign_in(user)
        return settings

    def _start_authorization_server(self, listener: socket.socket) -> None:
        command = [sys.executable, "-m", "otel_token_relay.demo.authorization_server", "--fd", str(listener.fileno())]
        self._processes.start(AUTHORIZATION_SERVER, command, _environment(), listener)

    def _start_application(self, name: str, listener: socket.socket, settings: Mapping[str, str] | None = None) -> None:
        """Start one of our applications, under OpenTelemetry if it is given settings for the relay."""
        command = [sys.executable, "-m", "uvicorn", "--fd", str(listener.fileno()), "--timeout-keep-alive", "60"]
        command += ["--factory", "otel_token_relay.demo.recorder:build"]
        environment = _environment() | {
            "ISSUER": self._urls[AUTHORIZATION_SERVER],
            "PROFILE_SERVICE": self._urls[PROFILE_SERVICE],
            "THIRD_PARTY": self._urls[THIRD_PARTY],
            witness.APP_VARIABLE: f"otel_token_relay.demo.{name.replace('-', '_')}:app",
            witness.NAME_VARIABLE: name,
            witness.NOTES_VARIABLE: str(self._notes),
        }
        if settings is not None:
            command = [sys.executable, "-c", _OPENTELEMETRY_INSTRUMENT, *command]
            environment |= {"CLIENT_SECRET": f"{name}-secret", "OTEL_SERVICE_NAME": name, **_telemetry(), **settings}
        self._processes.start(name, command, environment, listener)

    async def _perform(self) -> list[str]:
        """Let the callers call, show each act, and give what was wrong."""
        acts: tuple[tuple[str, list[str | None]], ...] = (
            ("alice calls with her token", ["alice"]),
            ("somebody calls without one, over the connection that alice has just used", [None]),
            ("alice and bob call at the same time", ["alice", "bob"]),
        )
        faults: list[str] = []
        async with httpx.AsyncClient(base_url=self._urls[USER_SERVICE], trust_env=False, timeout=20) as connection:
            for number, (title, users) in enumerate(acts):
                act = [self._prepare(user, self._tokens.get(user or "")) for user in users]
                answers = await asyncio.gather(*(self._call(connection, call) for call in act))
                faults += [fault for fault in answers if fault]
                self._report.print_part(title, await self._watch(act), has_header=number == 0)
        return faults

    def _try_tokens(self) -> list[str]:
        """Call profile-service directly with tokens good and bad, show each, and give what was wrong."""
        issuer = self._urls[AUTHORIZATION_SERVER]
        short_lived = self._sign_in("alice", client_id="kiosk")
        expires_at = BearerToken(short_lived).expires_at or 0
        for_another = self._sign_in("alice", resource="billing-service")
        revoked = self._sign_in("alice")
        sign_out(issuer, revoked)
        alice = self._tokens["alice"]
        tampered = tamper(alice)
        self._known.append(("alice", tampered))
        time.sleep(max(0, expires_at - time.time()))
        self._show_trials(
            "profile-service verifies: called directly, with tokens good and bad",
            self._prepare_trial("alice's", "alice", alice),
            self._prepare_trial("alice's from a kiosk, where it lived for 1 s", "alice", short_lived, "expired"),
            self._prepare_trial("alice's, made for billing-service", "alice", for_another, "wrong_audience"),
            self._prepare_trial("alice's, a letter of its signature changed", "alice", tampered, "bad_signature"),
            self._prepare_trial("alice's, revoked when she signed out", "alice", revoked, "inactive"),
            self._prepare_trial("none", None, None, "absent"),
            has_header=True,
        )
        httpx.post(f"{issuer}/keys/rotate", trust_env=False, timeout=10).raise_for_status()
        bob = self._sign_in("bob")
        self._show_trials(
            "the authorization server now signs with a new key, and still publishes the old",
            self._prepare_trial("bob's, signed with the new key", "bob", bob),
            self._prepare_trial("alice's, signed with the old key", "alice", alice),
        )
        return [fault for fault in map(find_fault, self._report.outcomes) if fault]

    def _prepare_trial(self, what: str, user: str | None, token: str | None, reason: str = "") -> Trial:
        bearer = None if token is None else BearerToken(token)
        return Trial(what=what, call=self._prepare(user, token), token=bearer, reason=reason)

    def _show_trials(self, title: str, *trials: Trial, has_header: bool = False) -> None:
        log = self._processes.log(PROFILE_SERVICE)
        with httpx.Client(base_url=self._urls[PROFILE_SERVICE], trust_env=False, timeout=20) as client:
            outcomes = [perform(trial, client, log) for trial in trials]
        self._report.print_trials(title, outcomes, has_header=has_header)

    def _sign_in(self, user: str, **options: str) -> str:
        token = sign_in(self._urls[AUTHORIZATION_SERVER], user, **options)
        self._known.append((user, token))
        return token

    def _prepare(self, user: str | None, token: str | None) -> Call:
        seen = None if token is None else witness.digest(token.encode())
        call = Call(trace_id=secrets.token_hex(16), user=user, token=seen)
        self._calls.append(call)
        return call

    async def _call(self, connection: httpx.AsyncClient, call: Call) -> str | None:
        """Call as that user and give what was wrong with the answer."""
        headers = {"traceparent": call.traceparent()}
        if call.user is not None:
            headers["authorization"] = f"Bearer {self._tokens[call.user]}"
        answer = await connection.get("/me", headers=headers)
        if answer.status_code != 200:
            return f"user-service answered {call.user or 'nobody'} with status {answer.status_code}"
        name = answer.json()["name"]
        return None if name == call.user else f"user-service took {call.user or 'nobody'} for {name or 'nobody'}"

    async def _watch(self, act: Sequence[Call]) -> list[Hop]:
        """Wait until the spans have come out, and give the hops."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            spans = [span for name in (USER_SERVICE, PROFILE_SERVICE) for span in read_spans(self._read_output(name))]
            hops = join_hops(act, spans, self._read_notes())
            if hops is not None:
                return hops
            await asyncio.sleep(0.03)
        raise StartFailed("the services have written no spans: is another distribution of OpenTelemetry installed?")

    def _read_output(self, name: str) -> str:
        return self._processes.output(name).read_text()

    def _read_notes(self) -> list[witness.Note]:
        return [witness.Note.from_json(line) for line in self._notes.read_text().splitlines()]

    def _find_leaks(self) -> list[str]:
        """Look for a token in everything that was written: spans, logs and notes."""
        found = (
            f"a token of {user} stands in {path.name}"
            for path in sorted(self._folder.iterdir())
            for user, token in self._known
            if token in path.read_text(errors="replace")
        )
        return list(dict.fromkeys(found))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(_FOREIGN)}


def _telemetry() -> dict[str, str]:
    """Give the variables that send the spans to where we can read them, and nothing anywhere else."""
    others = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")} - _INSTRUMENTED
    return {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        # Each would import a library that the demo does not use: seconds, where many are installed.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(sorted(others)),
    }


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=1).status_code > 0
    except httpx.TransportError:
        return False
