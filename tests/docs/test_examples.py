"""Each example works with the commands in its README."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.processes import instrumentations

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "fastapi_httpx"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
PORTS = ("8001", "8002")


def blocks(language):
    """Return the README's fenced code blocks in the given language."""
    return [block for found, block in re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL) if found == language]


def sessions():
    """Return each command in the README's console blocks together with its output."""
    found = re.findall(r"^ *\$ (.+)\n((?: *[^\s$`].*\n)+)", "\n".join(blocks("console")), re.MULTILINE)
    return [(shlex.split(command), output.strip()) for command, output in found]


@pytest.fixture(scope="module")
def ports():
    """Reserve free ports that replace the README's ports and on which the services can still listen."""
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
    return clean | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PROFILE_SERVICE": f"http://127.0.0.1:{ports['8002']}",
        **instrumentations("fastapi", "httpx"),
    }


@pytest.fixture
def run(ports, environment):
    """Return a function that runs a README command in a shell, in the example's folder."""
    started = []

    def run(script, port):
        for original, free in ports.items():
            script = script.replace(original, free)
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
        wait_for(f"http://127.0.0.1:{ports[port]}/", shell)
        return shell

    yield run

    for shell in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        shell.stdout.close()


def wait_for(url, shell):
    deadline = time.monotonic() + 60
    with httpx.Client(trust_env=False) as client:  # creating a client takes as long as many requests
        while time.monotonic() < deadline:
            assert shell.poll() is None, shell.stdout.read()
            try:
                client.get(url)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return
    raise AssertionError(f"no response from {url}")


def end(shell):
    """Send Ctrl-C, on which OpenTelemetry exports its last spans, and return the output."""
    os.killpg(shell.pid, signal.SIGINT)
    output, _ = shell.communicate(timeout=60)
    return output


def curl(command, ports):
    """Return the response to a curl command from the README without requiring curl."""
    headers = {}
    if command[1] == "-H":
        name, _, value = command[2].partition(": ")
        headers[name] = value
    response = httpx.get(command[-1].replace("8001", ports["8001"]), headers=headers, trust_env=False)
    return response.text


def test_readme_of_fastapi_httpx_is_correct(run, ports):
    """With the README's commands, profile-service identifies Alice and rejects an anonymous caller."""
    profile_service, user_service = blocks("sh")
    run(profile_service, "8002")
    shell = run(user_service, "8001")

    calls = [(command, output) for command, output in sessions() if command[0] == "curl"]
    assert [curl(command, ports) for command, _ in calls] == [output for _, output in calls]
    printed = end(shell)

    assert len(calls) == 2
    documented = re.findall(r'"token_relay\.\w+": "\w+"', "".join(blocks("json")))
    assert len(documented) == 2
    for line in documented:
        assert line in printed
    assert '"token_relay.reason": "no_token"' in printed
    assert "token-of-alice" not in printed


def test_without_destinations_alice_is_anonymous(run, ports):
    """Without a destination, no tokens are relayed, for the reason that the README states."""
    profile_service, user_service = blocks("sh")
    lines = user_service.splitlines(keepends=True)
    without = "".join(line for line in lines if "DESTINATIONS" not in line)
    assert without != user_service
    run(profile_service, "8002")
    shell = run(without, "8001")

    (alice, _), (_, unknown) = [session for session in sessions() if session[0][0] == "curl"]
    response = curl(alice, ports)
    printed = end(shell)

    assert response == unknown
    assert '"token_relay.reason": "destination_not_listed"' in printed
    assert "token-of-alice" not in printed


def test_explain_prints_what_the_readme_shows(environment):
    """``otel-token-relay explain`` prints the output in the README."""
    exports = "".join(line for line in blocks("sh")[1].splitlines(keepends=True) if line.startswith("export"))
    expected = [(command, output) for command, output in sessions() if command[0] == "otel-token-relay"]

    outputs = [
        subprocess.run(
            ["sh", "-e", "-c", exports + shlex.join(command)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        for command, _ in expected
    ]

    assert len(expected) == 2
    assert [output.splitlines()[0] for output in outputs] == [output for _, output in expected]


def test_index_lists_every_example():
    """Every example is a folder that contains a README, and the index links to it."""
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((\w+)/README\.md\)", index)

    assert sorted(linked) == sorted(
        path.name for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__")
    )
    assert all((EXAMPLES / name / "README.md").is_file() for name in linked)
