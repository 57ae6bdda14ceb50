"""The circuit breaker example works in three processes, as described in its README."""

from __future__ import annotations

import importlib.util
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.support.processes import INSTRUMENT, RELAY, ROOT, instrumentations, service, uvicorn

EXAMPLE = ROOT / "examples" / "circuit_breaker"


class Services:
    """The example's three running services and a client."""

    def __init__(self, stack: ExitStack) -> None:
        self.profile, self.archive = (
            stack.enter_context(service(*uvicorn("profile_service:app"), cwd=EXAMPLE)) for _ in range(2)
        )
        environ = {
            **RELAY,
            **instrumentations("fastapi", "httpx"),
            "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": f"{self.profile.url},{self.archive.url}",
            "PROFILE_URL": self.profile.url,
            "ARCHIVE_URL": self.archive.url,
            # The limit is long enough that only one call exceeds it, even on a busy machine.
            "TIME_LIMIT": "4",
            "RESET_TIMEOUT": "600",
        }
        self.user = stack.enter_context(
            service(*INSTRUMENT, *uvicorn("user_service:app"), cwd=EXAMPLE, environ=environ)
        )
        # Keep-alive is disabled, because a server can close an idle connection while the next request is being sent.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = stack.enter_context(httpx.Client(timeout=60, limits=limits, verify=False))

    def get(self, caller: str | None) -> httpx.Response:
        headers = {} if caller is None else {"Authorization": f"Bearer {caller}-demo-token"}
        return self._http.get(f"{self.user.url}/users/me", headers=headers)

    def ask(self, caller: str) -> dict[str, str]:
        response = self.get(caller)
        assert response.status_code == 200, self.user.log.replace(f"{caller}-demo-token", "…")[-5000:]
        return response.json()

    def set_behavior(self, behavior: str) -> None:
        self._http.put(f"{self.profile.url}/behavior/{behavior}").raise_for_status()

    def callers(self, of: str = "profile") -> list[str | None]:
        return self._http.get(f"{getattr(self, of).url}/callers").json()


@pytest.fixture(scope="module")
def services():
    """Run the example's services."""
    with ExitStack() as stack:
        yield Services(stack)


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def from_profile(caller):
    return {"source": "profile-service", "name": caller}


def from_archive(caller):
    return {"source": "archive", "name": caller}


def test_users_do_not_share_tokens_in_the_executor(services):
    """Each concurrent call in the shared executor returns its own caller's profile."""
    callers = ["alice", "bob"] * 40
    with ThreadPoolExecutor(8) as pool:
        profiles = list(pool.map(services.ask, callers))

    assert profiles == [from_profile(caller) for caller in callers]


def test_a_hanging_call_does_not_block_other_callers(services):
    """While one call hangs, another caller's call succeeds, and both callers get their own profiles."""
    before = len(services.callers())
    services.set_behavior("hang")
    with ThreadPoolExecutor(2) as pool:
        profiles = pool.map(services.ask, ["alice", "bob"])
        wait_until(lambda: len(services.callers()) == before + 2)
        services.set_behavior("work")

        assert list(profiles) == [from_profile("alice"), from_profile("bob")]


def test_the_token_is_relayed_in_every_state_of_the_breaker(services):
    """The call, the retry, and the fallback carry the token, but a call after the response does not."""
    before = len(services.callers())

    def callers():
        return services.callers()[before:]

    assert services.ask("alice") == from_profile("alice")
    assert services.ask("bob") == from_profile("bob")
    assert services.get(None).status_code == 401
    assert callers() == ["alice", "bob", None]
    assert services.callers("archive") == []

    services.set_behavior("fail")
    for _ in range(2):
        assert services.ask("bob") == from_archive("bob")
    assert callers()[3:] == ["bob", "bob"] * 2
    assert services.callers("archive") == ["bob", "bob"]

    services.set_behavior("hang")
    assert services.ask("alice") == from_archive("alice")
    assert callers()[7:] == ["alice"]
    services.set_behavior("fail")
    # The thread continues its retry after Alice has received her response.
    wait_until(lambda: len(callers()) == 9)
    assert callers()[7:] == ["alice", None]

    services.set_behavior("work")
    assert services.ask("bob") == from_archive("bob"), "the breaker is open"
    assert callers()[9:] == []


@contextmanager
def forgetful_server():
    """Run a server that closes each connection when a second request arrives."""
    body = b'{"name": "alice"}'
    response = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def serve():
        while True:
            connection, _ = listener.accept()
            with connection:
                if not connection.recv(65536):
                    return
                connection.sendall(response)
                connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            socket.create_connection(listener.getsockname()).close()
            thread.join(10)


def test_an_idle_connection_closed_by_the_archive_is_not_a_failure(monkeypatch):
    """A request is repeated if the server closes the idle connection while the request is being sent."""
    with forgetful_server() as archive, socket.create_server(("127.0.0.1", 0)) as unused:
        monkeypatch.setenv("ARCHIVE_URL", archive)
        monkeypatch.setenv("PROFILE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        unused.close()
        spec = importlib.util.spec_from_file_location("user_service", EXAMPLE / "user_service.py")
        user_service = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(user_service)
        try:
            assert [user_service.read_me() for _ in range(2)] == [from_archive("alice")] * 2
        finally:
            user_service.client.close()
            user_service.executor.shutdown()
