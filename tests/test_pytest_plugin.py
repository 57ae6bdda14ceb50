"""The pytest plug-in works in applications' test suites."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from otel_token_relay.testing import AuthorizationServer

pytest_plugins = "pytester"

# The inner runs would otherwise import these modules again, and native code cannot be imported twice.
for _name in ("jwt", "requests", "responses", "starlette.testclient", "otel_token_relay.exchange"):
    importlib.import_module(_name)
for _name in ("exchange.tokens", "verification.authenticator", "installation", "redaction.spans"):
    importlib.import_module(f"otel_token_relay.{_name}")

# These options are as strict as a suite can be. Without these plug-ins, a run starts in half the time.
INI = """
[pytest]
strict = true
filterwarnings = error
addopts = -p no:cacheprovider -p no:faker -p no:hypothesispytest -p no:xdist -p no:platformdirs
"""

LISTED = "https://profile-service"
PRELUDE = f"""
import pathlib, unittest
import pytest, requests, responses
from otel_token_relay import current_token, use_token
from otel_token_relay.installation import hook_states

LISTED = {LISTED!r}

def called():
    responses.get(LISTED)
    requests.get(LISTED)
    return responses.calls[-1].request.headers.get("Authorization")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """An application's test suite, without tests."""
    pytester.makefile(".ini", pytest=INI)
    return pytester


@pytest.fixture
def issuing_suite(suite: pytest.Pytester, authorization_server: AuthorizationServer) -> pytest.Pytester:
    """An application's test suite with a running authorization server, which the plug-in of the outer run provides."""
    suite.makeconftest(
        f"""
import pytest

@pytest.fixture(scope="session")
def authorization_server():
    from otel_token_relay.testing import AuthorizationServer
    return AuthorizationServer({authorization_server.issuer!r})
"""
    )
    return suite


def run(suite: pytest.Pytester, test: str, *arguments: str) -> pytest.RunResult:
    suite.makepyfile(PRELUDE + test)
    return suite.runpytest_inprocess(*arguments)


# Loading


def test_loading_the_plugin_imports_nothing(tmp_path: Path) -> None:
    """Loading the plug-in without using a fixture does not import OpenTelemetry or any other module of this package."""
    (tmp_path / "test_it.py").write_text(
        "import json, sys\n"
        "def test_it(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.has_plugin('token_relay')\n"
        "    print(json.dumps([n for n in sys.modules if n.startswith(('opentelemetry', 'otel_token_relay'))]))\n"
    )
    (tmp_path / "pytest.ini").write_text(INI)
    command = [sys.executable, "-m", "pytest", "-qs", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    loaded = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("[")))
    assert loaded == ["otel_token_relay", "otel_token_relay.pytest_plugin"]


def test_the_plugin_can_be_disabled(suite: pytest.Pytester) -> None:
    """`-p no:token_relay` removes the plug-in's fixtures and marker."""
    result = run(suite, "def test_it(token_relay): ...", "-p", "no:token_relay")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("*fixture 'token_relay' not found*")


def test_the_fixtures_and_the_marker_are_described(suite: pytest.Pytester) -> None:
    """`--fixtures` and `--markers` describe the plug-in's fixtures and marker."""
    fixtures = suite.runpytest_inprocess("--fixtures").stdout.str()
    markers = suite.runpytest_inprocess("--markers").stdout.str()

    for name in ("as_caller", "authorization_server [session scope]", "recorded_decisions", "third_party"):
        assert f"\n{name} -- " in fixtures
    assert "@pytest.mark.token_relay(**fields): install the relay" in markers


# Settings


def test_markers_and_calls_give_the_settings(suite: pytest.Pytester) -> None:
    """The closest marker that contains a field takes precedence, and a call replaces all markers."""
    result = run(
        suite,
        """
pytestmark = pytest.mark.token_relay(destinations=[LISTED], max_age=60)

@pytest.mark.token_relay(max_age=30)
class TestIt:
    @pytest.mark.token_relay(min_ttl=5)
    def test_markers(self, token_relay):
        settings = token_relay.settings
        assert ([*map(str, settings.entries)], settings.max_age, settings.min_ttl) == ([LISTED], 30, 5)
        assert repr(token_relay) == f"<InstalledRelay to {LISTED}>"

    def test_call(self, token_relay):
        assert token_relay(destinations=["https://b"]).max_age == 300
        assert [*map(str, token_relay.settings.entries)] == ["https://b"]

@responses.activate
def test_marker_without_the_fixture():
    with use_token("alices-token"):
        assert called() == "Bearer alices-token"

@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.token_relay(max_age=9))])
def test_parameter(number, request):
    assert "token_relay" in request.fixturenames
""",
    )

    result.assert_outcomes(passed=5)


def test_a_marker_of_one_parameter_applies_to_that_parameter(suite: pytest.Pytester) -> None:
    """A marker on one parameter applies only to that parameter, and other tests run without the relay."""
    result = run(
        suite,
        """
@pytest.mark.parametrize("on", [False, pytest.param(True, marks=pytest.mark.token_relay(destinations=[LISTED]))])
def test_it(on):
    assert bool(hook_states()) == on

def test_without():
    assert hook_states() == {}

class TestOfUnittest(unittest.TestCase):
    @pytest.mark.token_relay(destinations=[LISTED])
    def test_with(self):
        self.assertTrue(hook_states())

    def test_without(self):
        self.assertEqual(hook_states(), {})
""",
    )

    result.assert_outcomes(passed=5)


def test_wrong_settings_are_errors(suite: pytest.Pytester) -> None:
    """A misspelled field or an invalid value is an error instead of a test without the relay."""
    result = run(
        suite,
        """
@pytest.mark.token_relay(destination=[LISTED])
def test_misspelled(): ...

@pytest.mark.token_relay(destinations=["profile service"])
def test_invalid(): ...

@pytest.mark.token_relay([LISTED])
def test_positional(): ...

def test_call(token_relay):
    with pytest.raises(TypeError):
        token_relay()
    with pytest.raises(TypeError):
        token_relay(token_relay.settings, max_age=3)
    assert hook_states()
""",
    )

    result.assert_outcomes(errors=3, passed=1)
    result.stdout.fnmatch_lines(["*unexpected keyword argument 'destination'*"])
    result.stdout.fnmatch_lines(["*destinations*"])
    result.stdout.fnmatch_lines(["*accepts only keyword arguments for Settings fields*"])


# Isolation


def test_nothing_reaches_the_next_test(issuing_suite: pytest.Pytester) -> None:
    """The next test starts clean after a test that fails, binds a token, installs, uninstalls, or patches."""
    result = run(
        issuing_suite,
        """
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from otel_token_relay import BearerToken, Settings, install, uninstall, context
import opentelemetry.context

textmap = get_global_textmap()

def assert_clean():
    assert hook_states() == {}
    assert get_global_textmap() is textmap
    assert current_token() is None
    assert context.TOKEN_KEY not in opentelemetry.context.get_current()
    assert (context.has_bound, context.has_served) == before

before = context.has_bound, context.has_served

@pytest.mark.token_relay(destinations=[LISTED])
def test_fails():
    opentelemetry.context.attach(context.with_token(BearerToken("leaked-token")))
    raise ValueError("fails inside")

def test_after_failure():
    assert_clean()

def test_uninstalls(token_relay, recorded_decisions):
    uninstall()
    set_global_textmap(None)
    with pytest.raises(RuntimeError, match="not installed"):
        token_relay.settings

def test_after_uninstall():
    assert_clean()

@pytest.mark.token_relay(destinations=[LISTED], log="debug")
def test_installs_and_serves(recorded_decisions, as_caller):
    install(Settings(destinations=["https://other"], log="decisions"))
    with as_caller("alice"):
        assert current_token() is not None
    assert (context.has_bound, context.has_served) == (True, True)

def test_after_install():
    from otel_token_relay import operator_log
    assert operator_log.decisions is None
    assert operator_log.follow.__module__ == "otel_token_relay.operator_log"
    assert operator_log.follow.__name__ == "follow"
    assert_clean()

@responses.activate
@pytest.mark.token_relay(destinations=["https://other"])
def test_with_other_settings():
    with use_token("alices-token"):
        assert called() is None

@responses.activate
def test_without_the_relay():
    with use_token("alices-token"):
        assert called() is None
""",
    )

    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines("*ValueError: fails inside")


def test_an_installation_of_wider_scope_is_restored(suite: pytest.Pytester) -> None:
    """A test that changes the settings of a wider-scoped `installed_relay` affects only itself."""
    result = run(
        suite,
        """
from otel_token_relay.testing import installed_relay

@pytest.fixture(scope="module", autouse=True)
def relay_of_module():
    with installed_relay(destinations=[LISTED]) as relay:
        yield relay

@responses.activate
def test_of_module():
    with use_token("alices-token"):
        assert called() == "Bearer alices-token"

@responses.activate
@pytest.mark.token_relay(destinations=["https://other"])
def test_of_its_own():
    with use_token("alices-token"):
        assert called() is None

def test_keeps_settings_of_the_application(token_relay):
    assert repr(token_relay) == f"<InstalledRelay to {LISTED}>"

test_again = test_of_module
""",
    )

    result.assert_outcomes(passed=4)


def test_parallel_workers(issuing_suite: pytest.Pytester) -> None:
    """Each xdist worker has its own relay."""
    issuing_suite.makefile(".ini", pytest=INI.replace("-p no:xdist", "-n 2"))
    issuing_suite.makepyfile(
        PRELUDE
        + """
@pytest.mark.parametrize("number", range(6))
@responses.activate
def test_it(number, token_relay, as_caller):
    token_relay(destinations=[LISTED if number % 2 else "https://other"])
    with as_caller("alice") as alice:
        assert called() == (alice.headers["Authorization"] if number % 2 else None)
"""
    )
    result = issuing_suite.runpytest_subprocess(timeout=180)

    result.assert_outcomes(passed=6)


# Callers


def test_callers_are_requests(issuing_suite: pytest.Pytester) -> None:
    """A caller's block is like a request: verified, exchanged, without the token afterward, and separate from a
    concurrent block.
    """
    result = run(
        issuing_suite,
        """
import asyncio, contextvars, threading
import httpx
from otel_token_relay.testing import CallerRefused, assert_never_leaked

def test_relayed_and_verified(token_relay, as_caller, authorization_server, third_party, recorded_decisions):
    listed, outsider = third_party(), third_party()
    token_relay(destinations=[listed.url], require_verified=True, **authorization_server.verifying())
    with as_caller("alice") as alice, httpx.Client(follow_redirects=True) as client:
        client.get(listed.redirecting_to(outsider.url))
        bound = current_token()
    httpx.get(listed.url)

    first, second = listed.requests
    assert (first.authorization, second.authorization) == (alice.headers["Authorization"], None)
    outsider.assert_saw_no(alice.token.reveal())
    assert not bound.is_usable
    assert recorded_decisions.reasons(listed.url) == ["relayed", "no_boundary"]
    assert [one.outcome for one in recorded_decisions.verifications] == ["accepted"]

def test_exchanged(token_relay, as_caller, authorization_server, third_party, recorded_decisions):
    billing = third_party()
    token_relay(destinations=[f"{billing.url};audience=billing-service"], **authorization_server.exchanging())
    with as_caller("bob") as bob:
        httpx.get(billing.url)

    recorded_decisions.assert_sent(billing.url)
    assert recorded_decisions.reasons(billing.url) == ["exchanged"]
    assert billing.requests[0].authorization not in (None, bob.headers["Authorization"])

def test_refused(token_relay, as_caller, authorization_server, recorded_decisions):
    token_relay(**authorization_server.verifying("profile-service"))
    for _ in range(2):
        with pytest.raises(CallerRefused, match="alice's token is not accepted: wrong_audience, claim aud"):
            as_caller("alice", audience="billing-service").__enter__()
    assert current_token() is None
    assert recorded_decisions.verifications[0].claim == "aud"

def test_unknown_names(as_caller, authorization_server):
    with pytest.raises(ValueError, match="alice or bob"):
        as_caller("mallory")
    with pytest.raises(ValueError, match="user-service"):
        authorization_server.exchanging("unknown")

def test_revocation(as_caller, token_relay, authorization_server):
    token_relay(
        **authorization_server.exchanging(), introspection_endpoint=f"{authorization_server.issuer}/introspect"
    )
    alice = as_caller("alice")
    authorization_server.revoke(alice.token)
    with pytest.raises(CallerRefused, match="inactive"), alice:
        pass

@pytest.mark.anyio
async def test_asynchronous(token_relay, as_caller, authorization_server, third_party, anyio_backend_name):
    import anyio
    listed = third_party()
    token_relay(destinations=[listed.url], **authorization_server.verifying())
    alice, bob = as_caller("alice"), as_caller("bob")

    async def call(caller):
        async with caller, httpx.AsyncClient() as client:
            for _ in range(3):
                await client.get(listed.url, headers={"Caller": caller.name})
                await anyio.sleep(0)

    async with anyio.create_task_group() as group:
        for caller in (alice, bob, alice):
            group.start_soon(call, caller)

    tokens = {caller.name: caller.headers["Authorization"] for caller in (alice, bob)}
    assert len(listed.requests) == 9
    for request in listed.requests:
        assert request.authorization == tokens[request.header_lines("Caller")[0]]

def test_requests_of_a_client(token_relay, as_caller, third_party, recorded_decisions):
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    listed = third_party()
    token_relay(destinations=[listed.url])
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse(httpx.get(listed.url).text))])
    alice = as_caller("alice")
    with TestClient(app) as client:
        client.get("/", headers=alice.headers)
    assert [request.authorization for request in listed.requests] == [alice.headers["Authorization"]]
    assert_never_leaked(alice.token.reveal(), repr(alice), repr(alice.headers), recorded_decisions)
""",
    )

    result.assert_outcomes(passed=8)


def test_callers_need_a_relay(issuing_suite: pytest.Pytester) -> None:
    """A caller's block without a relay is an error, because it would test nothing."""
    result = run(
        issuing_suite,
        """
from otel_token_relay import uninstall

def test_it(as_caller):
    alice = as_caller("alice")
    uninstall()
    with pytest.raises(RuntimeError, match="use the token_relay fixture"), alice:
        pass
""",
    )

    result.assert_outcomes(passed=1)


def test_a_missing_extra_is_named(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the fixture that requires the `demo` extra contains the extra's name."""
    monkeypatch.setitem(sys.modules, "authlib", None)
    result = run(suite, "def test_it(authorization_server): ...")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("*pip install 'otel-token-relay?demo?' (authlib is missing)*")


# Failures


def test_failures_show_decisions_and_no_token(issuing_suite: pytest.Pytester) -> None:
    """A failed assertion lists the decisions without exposing the token."""
    result = run(
        issuing_suite,
        """
pytestmark = pytest.mark.token_relay(destinations=[LISTED])

@pytest.fixture
def alice(as_caller):
    caller = as_caller("alice")
    with pathlib.Path("tokens").open("a") as tokens:
        print(caller.token.reveal(), file=tokens)
    return caller

@responses.activate
def test_helper(alice, recorded_decisions):
    headers = alice.headers
    with alice:
        called()
        responses.get("https://profile-service:8443")
        requests.get("https://profile-service:8443")
    recorded_decisions.assert_sent("https://profile-service:8443")

@responses.activate
def test_comparison(alice, recorded_decisions):
    with alice:
        called()
    assert recorded_decisions.reasons(LISTED) == ["no_token"]

def test_refusal(alice, token_relay, authorization_server):
    token_relay(**authorization_server.verifying("billing-service"))
    with alice:
        pass

def test_none(recorded_decisions):
    recorded_decisions.assert_withheld(LISTED, "no_token")
""",
        "--tb=long",
        "--showlocals",
        "-vv",
    )

    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: expected each request to https://profile-service:8443 to carry a token. Recorded*:",
            "E *https://profile-service: relayed",
            "E *https://profile-service:8443: withheld (destination_not_listed); closest entry: https://profile-service;*",
        ]
    )
    result.stdout.fnmatch_lines("E *'relayed' != 'no_token'*")
    result.stdout.fnmatch_lines("*CallerRefused: alice's token is not accepted: wrong_audience, claim aud*")
    result.stdout.fnmatch_lines("E *none. Either no request was sent, or a mock*")
    tokens = (issuing_suite.path / "tokens").read_text().split()
    shown = result.stdout.str() + result.stderr.str()
    assert len(tokens) == 3
    for token in tokens:
        assert token not in shown
        assert token.rpartition(".")[2] not in shown
