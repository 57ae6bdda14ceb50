"""h12: a token is usable only in the process that received it, even if another process has the same ID."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from otel_token_relay import Reason, Settings, current_token, use_token
from otel_token_relay.context import with_token
from otel_token_relay.relay import Relay
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.verification import TokenVerifier
from tests.support import forks
from tests.support.carrying import PATIENCE
from tests.support.forks import ALICE, BOB
from tests.support.issuers import issuing, wait_until
from tests.support.tokens import AUDIENCE, claims, make_token, public_jwk

NOTHING = "nothing"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def run(ways, url, *options):
    """Run a program that forks in each of the ways, and return the header that each child sent."""
    done = subprocess.run(
        [sys.executable, forks.__file__, ",".join(ways), url, *options],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    if done.returncode == forks.NOT_PERMITTED:
        pytest.skip(f"this process may not create a PID namespace ({done.stderr})")
    assert done.returncode == 0, done.stderr
    return dict(zip(ways, done.stdout.splitlines(), strict=True))


# The child inherits the request's context.
FORKS = ("fork", "double_fork", "fork_from_thread", "thread_of_child", "carried", "kept_context", "process")


def test_h12_a_child_with_its_parents_process_id_has_no_token(echo):
    """A child with its parent's process ID sends no token."""
    ways = ("here", *FORKS, "process_pool", "pool")

    assert run(ways, echo, "same_pid") == {**dict.fromkeys(ways, NOTHING), "here": ALICE}


def test_h12_only_the_check_of_the_process_stops_the_child(echo):
    """Without the process check, the child sends the token."""
    assert run(FORKS, echo, "same_pid", "unguarded") == dict.fromkeys(FORKS, ALICE)


def test_h12_a_child_in_its_own_pid_namespace_has_no_token(echo):
    """A child in its own PID namespace sends no token."""
    way = "new_namespace"

    assert run([way], echo, "unguarded") == {way: ALICE}
    assert run([way], echo) == {way: NOTHING}


@pytest.mark.parametrize("options", [(), ("same_pid",)])
def test_h12_a_child_relays_the_tokens_of_its_own_requests(options, echo):
    """A child relays the tokens of its own requests and jobs, and nothing else."""
    way = "requests_of_child"

    assert run([way], echo, *options)[way].split(",") == [NOTHING, BOB, BOB, ALICE, NOTHING, NOTHING]


def fork(work):
    """Run *work* in a child with this process's ID, and return whether *work* returned ``True``."""
    pid = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the warning is about forking a process with threads
        child = os.fork()
    if child == 0:
        try:
            os.getpid = lambda: pid
            os._exit(0 if work() is True else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: BearerToken(ALICE, lease=Lease()), id="constructor"),
        pytest.param(lambda: BearerToken(ALICE), id="without a lease"),
        pytest.param(lambda: BearerToken.from_parsed(ALICE, lease=Lease()), id="from_parsed"),
        pytest.param(lambda: BearerToken(ALICE).rebind(lease=None), id="rebound"),
    ],
)
def test_h12_every_token_is_usable_only_in_its_own_process(make):
    """Every token is usable only in the process that created it, whichever constructor created it."""
    token = make()

    def child():
        return not token.is_own_process and not token.is_usable and make().is_own_process and make().is_usable

    assert fork(child)
    assert token.is_own_process
    assert token.is_usable


def test_h12_the_reason_is_other_process(echo):
    """A token from another process is withheld for the reason ``other_process``."""
    settings = Settings(destinations=(echo,))
    reasons = []

    def child():
        relay = Relay(settings)
        relay._record = lambda reason, *_: reasons.append(reason)
        host, port = echo.removeprefix("http://").split(":")
        header = relay.decide(None, lambda _: ("http", host, int(port)), lambda *_: False)
        return header is None and reasons == [Reason.OTHER_PROCESS] and current_token() is None

    with use_token(ALICE):
        assert fork(child)
        assert current_token().reveal() == ALICE


def test_h12_a_fork_without_pythons_hooks_is_recognized_by_its_process_id(monkeypatch):
    """A process that was forked in C, without Python's hooks, is recognized by its process ID."""
    token = BearerToken(ALICE, lease=Lease())

    monkeypatch.setattr("os.getpid", lambda: token.pid + 1)

    assert not token.is_own_process
    assert current_token(with_token(token)) is None


def test_h12_a_child_finds_a_new_key_although_the_parents_fetch_was_running():
    """A child fetches new keys immediately, even if a fetch was running in its parent."""
    release = threading.Event()
    with issuing(public_jwk("RS256", "k1")) as issuer:
        verifier = TokenVerifier([issuer.url], AUDIENCE, timeout=PATIENCE)
        verifier.verify(make_token(claims(issuer.url), kid="k1"))
        issuer.keys = [public_jwk("RS256", "k2")]
        issuer.behave = lambda handler, path: issuer.fetches == 2 and not release.wait(PATIENCE)
        token = make_token(claims(issuer.url), kid="k2")
        parent = threading.Thread(target=verifier.verify, args=(token,))
        parent.start()
        wait_until(lambda: issuer.fetches == 2)

        found = fork(lambda: verifier.verify(token).subject == "alice")
        release.set()
        parent.join(PATIENCE)

    assert found
