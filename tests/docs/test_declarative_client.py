"""The declarative client example works in three processes that are started with the README's commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from otel_token_relay.demo.sign_in import sign_in
from tests.support.processes import ROOT, Service, instrumentations, service

EXAMPLE = ROOT / "examples" / "declarative_client"
README = (EXAMPLE / "README.md").read_text("utf-8")
AUTHORIZATION_SERVER, PROFILE_SERVICE, USER_SERVICE = "9400", "8001", "8000"
CALL = 'curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8000/users/me'


def blocks(language: str) -> list[str]:
    """Return the README's fenced code blocks in the given language."""
    return [block for found, block in re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL) if found == language]


def sessions() -> list[tuple[str, str]]:
    """Return each command in the README's console blocks together with its output, which can be empty."""
    parts = re.split(r"^\$ (.*)\n", "".join(blocks("console")[1:]), flags=re.MULTILINE)
    return list(zip(parts[1::2], (output.strip() for output in parts[2::2]), strict=True))


class Services:
    """The example's running services, whose ports replace the ports in the README."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = folder
        self.by_port: dict[str, Service] = {}
        environ = {
            **instrumentations("fastapi", "requests"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TIME_LIMIT": "60",
            "RESET_TIMEOUT": "600",
        }
        ports = (AUTHORIZATION_SERVER, PROFILE_SERVICE, USER_SERVICE)
        for port, block in zip(ports, blocks("sh"), strict=True):
            assert f"--port {port}" in block
            command = self.replaced(block.replace(f"--port {port}", "--port 0"))
            running = stack.enter_context(service("sh", "-ec", command, cwd=folder, environ=environ))
            self.by_port[port] = running
            environ["PROFILE_URL"] = running.url
        self._http = stack.enter_context(httpx.Client(timeout=120, trust_env=False))
        self.token = ""
        self.calls = 0

    @property
    def user(self) -> Service:
        return self.by_port[USER_SERVICE]

    def replaced(self, text: str) -> str:
        """Return the text with the actual addresses of the services."""
        for port, running in self.by_port.items():
            text = text.replace(f"http://127.0.0.1:{port}", running.url)
        return text

    def run(self, command: str) -> str:
        """Run a command from the README without requiring curl, and return its output."""
        command = self.replaced(command)
        if command.startswith("TOKEN=$("):
            script = f'{command}\nprintf %s "$TOKEN"'
            environ = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            self.token = subprocess.check_output(["sh", "-ec", script], cwd=self.folder, env=environ, text=True)
            return ""
        assert command.startswith("curl ")
        header = {"Authorization": f"Bearer {self.token}"} if '-H "Authorization: Bearer $TOKEN"' in command else {}
        response = self._http.get(command.split()[-1], headers=header)
        self.calls += command.endswith("/users/me")
        return str(response.status_code) if "%{http_code}" in command else response.text

    def ask(self, token: str) -> dict[str, str]:
        response = self._http.get(f"{self.user.url}/users/me", headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 200, self.user.log[-5000:]
        profile: dict[str, str] = response.json()
        return profile

    def decisions(self) -> list[str]:
        """Wait until user-service has logged the last call, and return the decisions in its log."""
        deadline = time.monotonic() + 30
        while self.user.log.count('"GET /users/me') < self.calls and time.monotonic() < deadline:
            time.sleep(0.02)
        return re.findall(r" decision=(\w+)", self.user.log)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Run the example's services in a copy of its folder."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "example")
    with ExitStack() as stack:
        yield Services(stack, folder)


def test_the_example_works_as_its_readme_says(services: Services) -> None:
    """Each command prints the output in the README, and users do not share exchanged tokens.

    The log of user-service contains the decisions, and no log contains a token.
    """
    *calls, (last, fallback) = sessions()
    assert (len(calls), last) == (4, CALL)
    assert [services.run(command) for command, _ in calls] == [output for _, output in calls]
    assert services.decisions() == ["exchanged"]

    issuer = services.by_port[AUTHORIZATION_SERVER].url
    tokens = {user: sign_in(issuer, user, resource="user-service") for user in ("alice", "bob")}
    users = ["alice", "bob"] * 20
    with ThreadPoolExecutor(8) as pool:
        profiles = list(pool.map(lambda user: services.ask(tokens[user]), users))
    services.calls += len(users)
    assert profiles == [{"source": "profile-service", "name": user} for user in users]
    assert services.decisions() == ["exchanged"] * 41

    services.by_port[PROFILE_SERVICE].stop()
    made = []
    for _ in range(4):
        before = len(services.decisions())
        assert services.run(last) == fallback
        made.append(len(services.decisions()) - before)
    assert made == [1, 1, 1, 0]
    assert not re.search(r"eyJ[\w-]+\.", "".join(running.log for running in services.by_port.values()))
    assert (services.folder / "client-secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["user_service", "profile_service"])
def test_the_code_does_not_mention_tokens(name: str) -> None:
    """The example's code never mentions tokens, because all settings are in the environment."""
    source = (EXAMPLE / f"{name}.py").read_text("utf-8")
    code = re.sub(r'""".*?"""', "", source, flags=re.DOTALL).replace("otel_token_relay", "")

    assert not re.search(r"token|bearer|authorization|audience|exchange", code, re.IGNORECASE)
