"""Run the two services and the issuer with one fault, until the block ends."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

from otel_token_relay.demo.lifeline import tie
from otel_token_relay.demo.processes import listen
from tools.faults.issuer import Issuer
from tools.faults.planted import PREFIX, PROFILE_SERVICE, RELAY, USER_SERVICE, VERIFICATION, Fault

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 120.0  # a time limit, not a measurement
# Variables in the user's shell that must not affect the services.
FOREIGN = ("OTEL_", "UVICORN_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NETRC")
INSTRUMENTED = frozenset({"requests", "threading"})
# ``opentelemetry-instrument`` has the same effect but starts Python twice.
INSTRUMENTED_UVICORN = """
from opentelemetry.instrumentation.auto_instrumentation import initialize
initialize()
from uvicorn import main
main()
"""


class Reply(NamedTuple):
    """A response from user-service."""

    status: int
    headers: Mapping[str, str]
    body: str

    def __str__(self) -> str:
        lines = [f"HTTP/1.1 {self.status} {http.client.responses[self.status]}"]
        return "\n".join([*lines, *(f"{name}: {value}" for name, value in self.headers.items()), "", self.body])


class Running:
    """The services and the issuer with one fault.

    Attributes:
        folder: The directory with the token and the logs, which is removed at the end.
        issuer: The issuer.
        urls: The origin of each service.
        pids: The process ID of each service.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.urls: dict[str, str] = {}
        self.issuer = Issuer(**fault.issuer)
        self._environments: dict[str, dict[str, str]] = {}
        self._listeners: dict[str, socket.socket] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Running:
        with self._stack:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
            self._lifeline, our_end = os.pipe()
            for number in (self._lifeline, our_end):
                self._stack.callback(os.close, number)
            self._stack.callback(self.issuer.stop)
            if not self.fault.issuer_is_down:
                self.issuer.start()
            self._start()
            self._keep = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._keep.close()

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    @property
    def token_file(self) -> Path:
        """The file with the user's token."""
        return self.folder / "token.txt"

    @property
    def header_file(self) -> Path:
        """The file with the same token as a header for curl."""
        return self.folder / "header.txt"

    @property
    def calls(self) -> list[tuple[str, str]]:
        """The method and the path of each request that reveals the fault. The last of these requests is the one that
        fails.
        """
        return [("POST", "/report"), ("GET", "/report")] if self.fault.in_background else [("GET", "/profile")]

    def log_file(self, name: str) -> Path:
        """Return the file with a service's output."""
        return self.folder / f"{name}.log"

    def send(self) -> Reply:
        """Send the requests and return the last response."""
        for method, path in self.calls:
            reply = self.request(method, path)
        return reply

    def request(self, method: str, path: str) -> Reply:
        """Send one request to user-service with the user's token."""
        name, _, value = self.header_file.read_text().strip().partition(": ")
        connection = http.client.HTTPConnection(urlsplit(self.urls[USER_SERVICE]).netloc, timeout=60)
        try:
            connection.request(method, path, headers={name: value})
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read().decode())
        finally:
            connection.close()

    def sign_in(self) -> None:
        """Get a new token for the user and write it to the files."""
        token = self.issuer.issue("alice", "profile-service")
        for path, text in ((self.token_file, token), (self.header_file, f"Authorization: Bearer {token}")):
            path.touch(0o600)
            path.write_text(f"{text}\n")

    def restart(self, name: str, changes: Mapping[str, str | None]) -> None:
        """Restart a service on the same port with *changes* to its environment; ``None`` removes a variable."""
        self._end(name)
        environment = {**self._environments[name], **changes}
        self._environments[name] = {key: value for key, value in environment.items() if value is not None}
        self._launch(name)
        self._wait(name)

    def _start(self) -> None:
        for name in (USER_SERVICE, PROFILE_SERVICE):
            self._listeners[name], self.urls[name] = listen()
            self._stack.enter_context(self._listeners[name])
        for name, text in self.fault.files.items():
            (self.folder / name).touch(0o600)
            (self.folder / name).write_text(text)
        self.sign_in()
        for name, settings in ((USER_SERVICE, RELAY), (PROFILE_SERVICE, VERIFICATION)):
            changes = self.fault.environment if name == self.fault.at else {}
            environment = {**_shell(), "PROFILE_SERVICE": self.urls[PROFILE_SERVICE], **settings, **changes}
            self._environments[name] = {
                key: self._fill(value) if key in settings or key in changes else value
                for key, value in environment.items()
                if value is not None
            }
            self._launch(name)
            self._stack.callback(self._end, name)
        for name in self.urls:
            self._wait(name)

    def _fill(self, value: str) -> str:
        url = self.urls[PROFILE_SERVICE]
        return value.format(
            profile_service=url, profile_host=urlsplit(url).netloc, issuer=self.issuer.url, folder=self.folder
        )

    def _launch(self, name: str) -> None:
        module = f"tools.faults.services.{name.replace('-', '_')}:app"
        command = [sys.executable, "-c", INSTRUMENTED_UVICORN, module, "--fd", str(self._listeners[name].fileno())]
        with self.log_file(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                tie([*command, "--lifespan", "off"], self._lifeline),
                env=self._environments[name],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self._lifeline, self._listeners[name].fileno()),
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        process = self._processes[name]
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _wait(self, name: str) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while "Uvicorn running" not in (log := self.log_file(name).read_text()):
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{log}")
            time.sleep(0.03)


def _shell() -> dict[str, str]:
    others = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")} - INSTRUMENTED
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN)} | {
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        # Each of these would import a library that the services do not use.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(sorted(others)),
        f"{PREFIX}LOG": "decisions",
        "PYTHONUNBUFFERED": "1",
    }
