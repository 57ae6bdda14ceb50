"""The example of a circuit breaker, as its README runs it: three services, three processes."""

from __future__ import annotations

import importlib.util
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.support.processes import INSTRUMENT, RELAY, ROOT, service, uvicorn

EXAMPLE = ROOT / "examples" / "circuit_breaker"


class Services:
    """The three of them."""

    def __init__(self, stack: ExitStack) -> None:
        self.profile, self.archive = (
            stack.enter_context(service(*uvicorn("profile_service:app"), cwd=EXAMPLE)) for _ in range(2)
        )
        environ = {
            **RELAY,
            "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": f"{self.profile.url},{self.archive.url}",
            "PROFILE_URL": self.profile.url,
            "ARCHIVE_URL": self.archive.url,
            # One call has to wait for it, and no other may come near it on a busy machine.
            "TIME_LIMIT": "4",
            "RESET_TIMEOUT": "600",
        }
        self.user = stack.enter_context(
            service(*INSTRUMENT, *uvicorn("user_service:app"), cwd=EXAMPLE, environ=environ)
        )
        # A connection for each request: none is kept, which a server might close just then.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = stack.enter_context(httpx.Client(timeout=60, limits=limits, verify=False))

    def get(self, caller: str | None) -> httpx.Response:
        headers = {} if caller is None else {"Authorization": f"Bearer {caller}-demo-token"}
        return self._http.get(f"{self.user.url}/users/me", headers=headers)

    def ask(self, caller: str) -> dict[str, str]:
        response = self.get(caller)
        assert response.status_code == 200, self.user.log.replace(f"{caller}-demo-token", "…")[-5000:]
        return response.json()

    def let_profile(self, behaviour: str) -> None:
        self._http.put(f"{self.profile.url}/behaviour/{behaviour}").raise_for_status()

    def callers(self, of: str = "profile") -> list[str | None]:
        return self._http.get(f"{getattr(self, of).url}/callers").json()


@pytest.fixture(scope="module")
def services():
    """Started, and stopped whatever happens."""
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


def test_users_do_not_meet_in_the_executor(services):
    """Many at once, on the same threads."""
    callers = ["alice", "bob"] * 40
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(services.ask, callers))

    assert answers == [from_profile(caller) for caller in callers]


def test_a_call_that_hangs_keeps_nobody_waiting(services):
    """The breaker lets the next caller in meanwhile, and both get their own profile from it."""
    before = len(services.callers())
    services.let_profile("hang")
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(services.ask, ["alice", "bob"])
        wait_until(lambda: len(services.callers()) == before + 2)
        services.let_profile("well")

        assert list(answers) == [from_profile("alice"), from_profile("bob")]


def test_the_token_takes_every_way_through_the_breaker(services):
    """Call, retry, fallback; an open breaker sends nothing; a call that is too late has no token."""
    before = len(services.callers())

    def callers():
        return services.callers()[before:]

    assert services.ask("alice") == from_profile("alice")
    assert services.ask("bob") == from_profile("bob")
    assert services.get(None).status_code == 401
    assert callers() == ["alice", "bob", None]
    assert services.callers("archive") == []

    services.let_profile("fail")
    for _ in range(2):
        assert services.ask("bob") == from_archive("bob")
    assert callers()[3:] == ["bob", "bob"] * 2
    assert services.callers("archive") == ["bob", "bob"]

    services.let_profile("hang")
    assert services.ask("alice") == from_archive("alice")
    assert callers()[7:] == ["alice"]
    services.let_profile("fail")
    # The thread goes on with its retry, when alice has had her response.
    wait_until(lambda: len(callers()) == 9)
    assert callers()[7:] == ["alice", None]

    services.let_profile("well")
    assert services.ask("bob") == from_archive("bob"), "the breaker is open"
    assert callers()[9:] == []


@contextmanager
def forgetful_server():
    """Run a server that answers the first request of each connection, and closes it on the second."""
    body = b'{"name": "alice"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def serve():
        while True:
            connection, _ = listener.accept()
            with connection:
                if not connection.recv(65536):
                    return
                connection.sendall(answer)
                connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            socket.create_connection(listener.getsockname()).close()
            thread.join(10)


def test_a_kept_connection_that_the_archive_closes_is_no_failure(monkeypatch):
    """Servers close idle connections, and one of them just when the next request is on its way."""
    with forgetful_server() as archive, socket.create_server(("127.0.0.1", 0)) as nobody:
        monkeypatch.setenv("ARCHIVE_URL", archive)
        monkeypatch.setenv("PROFILE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        nobody.close()
        spec = importlib.util.spec_from_file_location("user_service", EXAMPLE / "user_service.py")
        user_service = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(user_service)
        try:
            assert [user_service.read_me() for _ in range(2)] == [from_archive("alice")] * 2
        finally:
            user_service.client.close()
            user_service.executor.shutdown()
