"""The examples, run with the commands that their READMEs print."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import httpx
import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "fastapi_httpx"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
PORTS = ("8001", "8002")
USED = {"fastapi", "httpx", "threading"}


def blocks(language):
    """Give the fenced blocks of that language in the README."""
    return [block for found, block in re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL) if found == language]


def sessions():
    """Give each command and its output out of the README's terminals."""
    found = re.findall(r"^ *\$ (.+)\n((?: *[^\s$`].*\n)+)", "\n".join(blocks("console")), re.MULTILINE)
    return [(shlex.split(command), output.strip()) for command, output in found]


@pytest.fixture(scope="module")
def ports():
    """Free ports in place of those in the README; they are held, and can be listened on all the same."""
    holders = [socket.socket() for _ in PORTS]
    try:
        for holder in holders:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
        yield {port: str(holder.getsockname()[1]) for port, holder in zip(PORTS, holders, strict=True)}
    finally:
        for holder in holders:
            holder.close()


@pytest.fixture(scope="module")
def environment(ports):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    unused = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")} - USED
    return clean | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PROFILE_SERVICE": f"http://127.0.0.1:{ports['8002']}",
        # Only to start faster: this environment has many libraries that the example does not use.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(unused),
    }


@pytest.fixture
def run(ports, environment):
    """Run a command of the README in a shell of its own, in the folder of the example."""
    started = []

    def run(script, answers_at):
        for port, free in ports.items():
            script = script.replace(port, free)
        shell = subprocess.Popen(
            ["sh", "-e", "-c", script],
            cwd=FOLDER,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(shell)
        wait_for(f"http://127.0.0.1:{ports[answers_at]}/", shell)
        return shell

    yield run

    for shell in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        shell.stdout.close()


def wait_for(url, shell):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert shell.poll() is None, shell.stdout.read()
        try:
            httpx.get(url, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("no answer")


def end(shell):
    """Press Ctrl-C, and give what was printed; OpenTelemetry exports its last spans then."""
    os.killpg(shell.pid, signal.SIGINT)
    output, _ = shell.communicate(timeout=60)
    return output


def curl(command, ports):
    """Do what the README does with curl, which is not on every machine."""
    headers = {}
    if command[1] == "-H":
        name, _, value = command[2].partition(": ")
        headers[name] = value
    response = httpx.get(command[-1].replace("8001", ports["8001"]), headers=headers, trust_env=False)
    return response.text


def test_readme_of_fastapi_httpx_keeps_its_word(run, ports):
    """With the commands of the README Alice is known to profile-service and nobody is not."""
    profile_service, user_service = blocks("sh")
    run(profile_service, "8002")
    shell = run(user_service, "8001")

    calls = [(command, output) for command, output in sessions() if command[0] == "curl"]
    assert [curl(command, ports) for command, _ in calls] == [output for _, output in calls]
    printed = end(shell)

    assert len(calls) == 2
    promised = re.findall(r'"token_relay\.\w+": "\w+"', "".join(blocks("json")))
    assert len(promised) == 2
    for line in promised:
        assert line in printed
    assert '"token_relay.reason": "no_token"' in printed
    assert "token-of-alice" not in printed


def test_without_destinations_alice_is_nobody(run, ports):
    """What the README suggests to try: no destination, no token, and the reason it gives."""
    profile_service, user_service = blocks("sh")
    lines = user_service.splitlines(keepends=True)
    without = "".join(line for line in lines if "DESTINATIONS" not in line)
    assert without != user_service
    run(profile_service, "8002")
    shell = run(without, "8001")

    (alice, _), (_, unknown) = [session for session in sessions() if session[0][0] == "curl"]
    answer = curl(alice, ports)
    printed = end(shell)

    assert answer == unknown
    assert '"token_relay.reason": "destination_not_listed"' in printed
    assert "token-of-alice" not in printed


def test_explain_answers_as_the_readme_says(environment):
    """The answers of ``otel-token-relay explain`` stand in the README as they are printed."""
    exports = "".join(line for line in blocks("sh")[1].splitlines(keepends=True) if line.startswith("export"))
    asked = [(command, output) for command, output in sessions() if command[0] == "otel-token-relay"]

    answers = [
        subprocess.run(
            ["sh", "-e", "-c", exports + shlex.join(command)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        for command, _ in asked
    ]

    assert len(asked) == 2
    assert [answer.splitlines()[0] for answer in answers] == [output for _, output in asked]
