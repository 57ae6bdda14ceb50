"""The example of a circuit breaker, as its README runs it: three services, three processes."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

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
            "TIME_LIMIT": "1",
            "RESET_TIMEOUT": "600",
        }
        self.user = stack.enter_context(
            service(*INSTRUMENT, *uvicorn("user_service:app"), cwd=EXAMPLE, environ=environ)
        )

    def ask(self, caller: str | None) -> httpx.Response:
        headers = {} if caller is None else {"Authorization": f"Bearer {caller}-demo-token"}
        return httpx.get(f"{self.user.url}/users/me", headers=headers, timeout=30)

    def let_profile(self, behaviour: str) -> None:
        httpx.put(f"{self.profile.url}/behaviour/{behaviour}").raise_for_status()

    def callers(self, of: str = "profile") -> list[str | None]:
        return httpx.get(f"{getattr(self, of).url}/callers").json()


@pytest.fixture(scope="module")
def services():
    """Started, and stopped whatever happens."""
    with ExitStack() as stack:
        yield Services(stack)


def test_users_do_not_meet_in_the_executor(services):
    """Many at once, on the same threads."""
    wrong = []

    def ask(caller):
        for _ in range(10):
            answer = services.ask(caller).json()
            if answer != {"source": "profile-service", "name": caller}:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(caller,)) for caller in ("alice", "bob") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_the_token_takes_every_way_through_the_breaker(services):
    """Call, retry, fallback; an open breaker sends nothing; a call that is too late has no token."""
    before = len(services.callers())

    def callers():
        return services.callers()[before:]

    assert services.ask("alice").json() == {"source": "profile-service", "name": "alice"}
    assert services.ask("bob").json() == {"source": "profile-service", "name": "bob"}
    assert services.ask(None).status_code == 500
    assert callers() == ["alice", "bob", None]
    assert services.callers("archive") == [None]

    services.let_profile("fail")
    assert services.ask("bob").json() == {"source": "archive", "name": "bob"}
    assert callers()[3:] == ["bob", "bob"]
    assert services.callers("archive")[1:] == ["bob"]

    services.let_profile("hang")
    assert services.ask("alice").json() == {"source": "archive", "name": "alice"}
    assert callers()[5:] == ["alice"]
    services.let_profile("fail")
    # The thread goes on with its retry, when alice has had her response.
    deadline = time.monotonic() + 30
    while len(callers()) < 7 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert callers()[5:] == ["alice", None]

    services.let_profile("well")
    assert services.ask("bob").json() == {"source": "archive", "name": "bob"}, "the breaker is open"
    assert callers()[7:] == []
