"""A demo run in this process has the expected result, environment, and faults."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from rich.console import Console

from otel_token_relay import demo
from otel_token_relay.demo import runner
from otel_token_relay.demo.console import Report
from otel_token_relay.demo.hops import Call
from otel_token_relay.demo.processes import Processes, Signals
from otel_token_relay.demo.runner import Runner
from tests.support.loopback import Status, party
from tests.support.servers import serve_wsgi

EXCHANGED = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJjYXJvbCJ9.c2ln"
ALICE = Call(trace_id="a" * 32, user="alice", token="digest")
ANONYMOUS = Call(trace_id="b" * 32, user=None, token=None)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that replaces the folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Runner]:
    """Return a runner that has not started any program."""
    console = Console(file=io.StringIO())
    with Signals() as signals, Processes(tmp_path, signals) as processes:
        yield Runner(tmp_path, processes, Report(console), console)


START = "Starting an authorization server, three services, and a third party on loopback.\n"


def run() -> tuple[int, str]:
    """Run the demo, and return its exit status and its output after the first line."""
    with redirect_stdout(io.StringIO()) as printed:
        status = demo.run()
    assert printed.getvalue().startswith(START)
    return status, printed.getvalue().removeprefix(START)


def test_a_run_finds_no_fault_and_records_the_calls_to_user_service(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run signs in two users, relays and exchanges their tokens, checks invalid tokens, and writes a recording.

    One test covers all steps, because a run takes seconds.
    """
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS", "http://*")
    record = tmp_path / "run.json"
    with redirect_stdout(io.StringIO()) as printed:
        status = demo.run(str(record))
    output, recording = printed.getvalue(), record.read_text("utf-8")

    assert status == 0, output
    assert list(files.iterdir()) == []
    assert not any("eyJ" in text or "✗" in text for text in (output, recording))
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for user, decision in (("alice", "relayed relayed alice"), ("bob", "relayed relayed bob")):
        assert f"{user} user-service profile-service httpx {decision}" in lines
        assert f"{user} user-service billing-service httpx exchanged exchanged {user}" in lines
        assert f"{user} user-service third-party httpx withheld destination_not_listed none" in lines
    assert "anon user-service profile-service httpx withheld no_token none" in lines
    for outcome in (
        "alice's 200 alice",
        "alice's, revoked when she signed out 401 invalid_token inactive",
        "bob's, signed with the new key 200 bob",
        "alice's 401 invalid_token wrong_audience",
        "user-service-secret",
    ):
        assert any(line.endswith(outcome) for line in lines), outcome
    services = [json.loads(line)["resourceSpans"][0] for line in recording.splitlines()]
    names = [service["resource"]["attributes"][0]["value"]["stringValue"] for service in services]
    spans = [span for service in services for span in service["scopeSpans"][0]["spans"]]
    assert names == ["profile-service", "user-service"]
    assert len({span["traceId"] for span in spans}) == 4


def test_an_interrupted_demo_has_the_exit_status_of_a_shell(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressing Ctrl-C exits with the status for SIGINT, prints no traceback, and leaves no files behind."""
    monkeypatch.setattr(Runner, "run", lambda self: os.kill(os.getpid(), signal.SIGINT))

    assert run() == (130, "")
    assert list(files.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.EADDRINUSE, "no port is free"), (errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))],
    ids=["no free port", "no such address"],
)
def test_an_address_that_cannot_be_used_is_reported_in_one_sentence(
    files: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    """If no address can be used, the result is 1, and no program is started."""
    real, calls = socket.create_server, iter([True, False])

    def create_server(*args: Any, **kwargs: Any) -> socket.socket:
        if next(calls):
            return real(*args, **kwargs)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "create_server", create_server)
    monkeypatch.setattr(Processes, "start", lambda *args: pytest.fail("a program was started"))

    assert run() == (1, f"✗ The demo cannot listen on 127.0.0.1: {reason}.\n")
    assert list(files.iterdir()) == []


def test_a_missing_temporary_folder_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no temporary folder can be created, the error is a single sentence, and the result is 1."""
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    status, printed = run()

    assert status == 1
    assert printed == "✗ The demo cannot create a temporary folder: No such file or directory.\n"


def test_another_operating_system_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an unsupported operating system, the demo reports the supported systems."""
    monkeypatch.setattr(runner, "os", SimpleNamespace(name="nt"))
    status, printed = run()

    assert status == 1
    assert "requires Linux or macOS" in " ".join(printed.split())


def test_variables_of_the_shell_do_not_affect_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables for OpenTelemetry, uvicorn, and proxies are removed from the environment; other variables remain."""
    foreign = ("OTEL_PROPAGATORS", "DEMO_APP", "UVICORN_PORT", "HTTP_PROXY", "https_proxy", "ALL_PROXY")
    for name in (*foreign, "KEPT_VARIABLE"):
        monkeypatch.setenv(name, "x")

    environment = runner._environment()

    assert not environment.keys() & {*foreign}
    assert environment["KEPT_VARIABLE"] == "x"
    assert environment["PATH"] == os.environ["PATH"]


def test_only_the_instrumentation_of_the_demo_is_loaded() -> None:
    """Only the demo's instrumentation is enabled, and only the console exporter is used."""
    telemetry = runner._telemetry()
    disabled = telemetry["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"].split(",")

    assert telemetry["OTEL_TRACES_EXPORTER"] == "console"
    assert telemetry["OTEL_METRICS_EXPORTER"] == telemetry["OTEL_LOGS_EXPORTER"] == "none"
    assert "urllib3" in disabled
    assert not {"fastapi", "httpx", "threading"} & {*disabled}


def test_a_server_is_ready_when_it_responds() -> None:
    """A server is considered ready if it responds, even with an error."""
    with party() as one:
        assert runner._is_ready(one.url)
        one.answers.append(Status(503))
        assert runner._is_ready(one.url)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert not runner._is_ready(url)


def test_a_token_in_any_file_is_found(stopped: Runner, tmp_path: Path) -> None:
    """A token in any file is reported with the file and the user, but without the token.

    The demo does not have the tokens that user-service obtains, so it reports any JWT.
    """
    stopped._known += [("alice", "eyJ.first.x"), ("alice", "eyJ.second.x"), ("bob", "eyJ.third.x")]
    (tmp_path / "notes").write_text("nothing")
    (tmp_path / "user-service.out").write_bytes(b"\xff eyJ.first.x eyJ.second.x")
    (tmp_path / "third-party.err").write_text("aeyJ.third.xb")
    (tmp_path / "billing-service.out").write_text(f"a {EXCHANGED} b")

    assert stopped._find_leaks() == [
        "billing-service.out contains carol's token",
        "third-party.err contains bob's token",
        "user-service.out contains alice's token",
    ]


@pytest.mark.parametrize(
    ("call", "status", "name", "billed", "expected"),
    [
        (ALICE, "200 OK", "alice", "alice", None),
        (ANONYMOUS, "200 OK", None, None, None),
        (ALICE, "200 OK", "bob", "alice", "profile-service identified alice as bob"),
        (ALICE, "200 OK", None, "alice", "profile-service identified alice as anonymous"),
        (ANONYMOUS, "200 OK", "alice", None, "profile-service identified anonymous as alice"),
        (ALICE, "200 OK", "alice", "bob", "billing-service identified alice as bob"),
        (ALICE, "200 OK", "alice", None, "billing-service identified alice as anonymous"),
        (ALICE, "500 Error", "alice", "alice", "user-service responded to alice with status 500"),
    ],
    ids=[
        "expected",
        "anonymous",
        "another user",
        "no user",
        "unexpected user",
        "another customer",
        "no customer",
        "error",
    ],
)
def test_a_response_for_another_user_is_a_fault(
    stopped: Runner, call: Call, status: str, name: str | None, billed: str | None, expected: str | None
) -> None:
    """A user's call has that user's token, an anonymous call has none, and a wrong response is reported."""
    seen: list[tuple[str | None, str]] = []
    stopped._tokens["alice"] = "alice-sample-token"

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append((environ.get("HTTP_AUTHORIZATION"), environ["HTTP_TRACEPARENT"]))
        start_response(status, [])
        return [json.dumps({"name": name, "billed": billed}).encode()]

    async def send(port: int) -> str | None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as connection:
            return await stopped._call(connection, call)

    with serve_wsgi(app) as port:
        assert asyncio.run(send(port)) == expected

    ((authorization, traceparent),) = seen
    assert authorization == (None if call is ANONYMOUS else "Bearer alice-sample-token")
    assert call.trace_id in traceparent
