"""The command line: its output, what it must never print, and its exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import propagate

from otel_token_relay import cli, uninstall
from otel_token_relay.commands import check
from otel_token_relay.hooks import CLIENT_HOOKS, SERVER_HOOKS, Hook
from otel_token_relay.settings import VARIABLES, Settings

DESTINATIONS = "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS"
SWITCHED_ON = {"OTEL_PROPAGATORS": "tracecontext,baggage,token_relay"}


# `check` without libraries: importing all of them takes seconds.
WITHOUT_LIBRARIES = (
    "from otel_token_relay import cli; from otel_token_relay.commands import check;"
    " check.CLIENT_HOOKS = check.SERVER_HOOKS = (); raise SystemExit(cli.main())"
)


def run(*arguments: str, program: tuple[str, ...] = ("-m", "otel_token_relay"), **environment: str) -> tuple[int, str]:
    """Return the exit status and the combined output of the command."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, *program, *arguments],
        env=clean | SWITCHED_ON | environment,
        timeout=120,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert "Traceback" not in ran.stdout
    return ran.returncode, ran.stdout


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return an environment with the relay switched on and no other OpenTelemetry variable."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_PROPAGATORS", SWITCHED_ON["OTEL_PROPAGATORS"])
    return monkeypatch


@pytest.fixture
def without_hooks(environment: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Return the environment for a check in this process that skips the libraries, which take seconds."""
    environment.setattr(check, "CLIENT_HOOKS", ())
    environment.setattr(check, "SERVER_HOOKS", ())
    environment.setattr(check, "UNCOVERED_CLIENTS", ())
    textmap = propagate.get_global_textmap()
    yield environment
    uninstall()
    propagate.set_global_textmap(textmap)


# check


def test_check_shows_every_setting_and_every_hook() -> None:
    """Without a problem, check prints the defaults and each hooked module, and exits with 0."""
    status, output = run("check", **{DESTINATIONS: "https://profile-service"})

    assert status == 0
    assert output.endswith("\nNo problems found.\n")
    assert "Warnings" not in output
    for variable in VARIABLES.values():
        shown = (
            "https://profile-service  (set)"
            if variable.name == DESTINATIONS
            else f"{variable.default.replace(',', ', ') or '(empty)'}  (default)"
        )
        assert f"  {variable.name} = {shown}\n" in output
    for hook in CLIENT_HOOKS + SERVER_HOOKS:
        shown = rf"^  {re.escape(hook.module)}( \(.*\): (hooked|requires zttp, .*)|: not i.*)$"
        assert re.search(shown, output, re.MULTILINE)
    assert re.search(r"^  httpx \(httpx [0-9.]+\): hooked$", output, re.MULTILINE)
    assert "  urllib.request (standard library): hooked\n" in output
    not_covered = "not covered; name the destination yourself with to_destination()"
    assert f"  websockets {version('websockets')}: {not_covered}\n" in output
    assert f"  http.client (standard library), used directly: {not_covered}\n" in output


def test_the_page_names_the_same_clients_as_check() -> None:
    """The page lists each client that check reports as not covered, with the alternative."""
    page = (Path(__file__).parents[2] / "docs" / "servers-and-clients.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| ") and line.endswith("| `to_destination` |")]

    assert [name for name in (*check.UNCOVERED_CLIENTS, "http.client") if name not in row] == []


@pytest.mark.parametrize(
    ("name", "value", "used"),
    [
        pytest.param(DESTINATIONS, "https://a,https://b/path", "https://a", id="destination with a path"),
        pytest.param(DESTINATIONS, "https://a,https://b,b;required", "https://a", id="contradicting destinations"),
        pytest.param("OTEL_PYTHON_TOKEN_RELAY_MAX_AGE", "soon", "0", id="not a number"),
        pytest.param("OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED", "maybe", "true", id="neither true nor false"),
    ],
)
def test_check_names_invalid_settings(
    name: str, value: str, used: str, without_hooks: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An invalid value is a problem, the strict value is printed, and check exits with 1."""
    without_hooks.setenv(name, value)

    status = cli.main(["check"])

    output = capfd.readouterr().out
    assert status == 1
    assert f"  {name} = {used}  (invalid value replaced, see Problems)\n" in output
    assert re.search(rf"^Problems\n  {name}: .+\n1 problem found\.\n\Z", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("environment_variables", "warning"),
    [
        pytest.param({"OTEL_PROPAGATORS": "tracecontext"}, "OTEL_PROPAGATORS does not contain", id="not switched on"),
        pytest.param({DESTINATIONS: ""}, "no destination is listed", id="no destination"),
        pytest.param({DESTINATIONS: "http://a"}, "http://a sends tokens unencrypted", id="plain http"),
        pytest.param({DESTINATIONS: "https://*"}, "https://* sends every caller's token to any host", id="any host"),
        pytest.param({DESTINATIONS: "a;audience=a"}, "requires an exchanged one", id="exchange"),
        pytest.param(
            {"OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED": "true"},
            "no token is relayed: Verify tokens in this service",
            id="verified",
        ),
    ],
)
def test_check_warns_of_risky_settings(
    environment_variables: dict[str, str],
    warning: str,
    without_hooks: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A valid setting that is probably a mistake is a warning; check still exits with 0."""
    for name, value in ({DESTINATIONS: "https://a"} | environment_variables).items():
        without_hooks.setenv(name, value)

    status = cli.main(["check"])

    output = capfd.readouterr().out
    assert status == 0
    assert warning in output.partition("Warnings\n")[2]


def test_check_says_when_the_application_would_not_start() -> None:
    """check reports a propagator that is not installed: with it no instrumented application starts."""
    variables = {"OTEL_PROPAGATORS": "tracecontext,token_rely", DESTINATIONS: "https://a"}
    status, output = run("check", **variables)

    assert status == 1
    assert "OTEL_PROPAGATORS cannot be loaded, so the application would not start" in output
    assert "token_rely" in output.partition("Problems")[2]
    assert "httpx (httpx" in output


def test_check_fails_if_a_library_cannot_be_hooked() -> None:
    """A release without the method that we hook is a problem: its requests would have no token."""
    program = "import sys, httpx, otel_token_relay.cli as cli; del httpx.HTTPTransport; sys.exit(cli.main(['check']))"

    status, output = run(program=("-c", program), **{DESTINATIONS: "https://a"})

    assert status == 1
    assert "httpx cannot be hooked: AttributeError" in output.partition("Problems")[2]
    assert re.search(r"^  httpx2 \(.*\): hooked$", output, re.MULTILINE)


def test_check_continues_without_libraries(
    tmp_path: Path, without_hooks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library that is missing, older than the hooked module or broken is named, but is not a problem."""
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('secret')\n")
    without_hooks.syspath_prepend(tmp_path)
    hooks = (
        Hook("missing_library", lambda *_: None, "missing-library"),
        Hook("pytest.no_such_module", lambda *_: None, "pytest"),
        Hook("broken_library", lambda *_: None, "pytest"),
    )
    without_hooks.setattr(check, "SERVER_HOOKS", hooks)
    without_hooks.setattr(check, "UNCOVERED_CLIENTS", ("pytest", "missing-library"))

    status = cli.main(["check"])

    output = capsys.readouterr().out
    assert status == 0
    assert "  missing_library: not installed\n" in output
    assert f"  pytest.no_such_module: not in pytest {pytest.__version__}\n" in output
    assert f"  broken_library (pytest {pytest.__version__}): cannot be imported: RuntimeError\n" in output
    assert (
        f"  pytest {pytest.__version__}: not covered; name the destination yourself with to_destination()\n" in output
    )
    assert "secret" not in output


# Secrets


@pytest.mark.parametrize("command", [["check"], ["explain", "https://a"], ["explain", "--json", "https://a"]], ids=str)
@pytest.mark.parametrize(
    "entry",
    [
        pytest.param("https://user:s3cret@a.example", id="userinfo"),
        pytest.param("user:s3cret@a.example", id="userinfo without a scheme"),
        pytest.param("https://user:s3cret/x@a.example", id="slash in the password"),
        pytest.param("https://user:x//s3cret@a.example", id="two slashes in the password"),
        pytest.param("https://user:x@s3cret@a.example", id="at sign in the password"),
        pytest.param("https://user:s3cret;x@a.example", id="semicolon in the password"),
        pytest.param("https://user:s3cret,x@a.example", id="comma in the password"),
        pytest.param("https://user:x,s3cret@a.example", id="comma before the end of the password"),
        pytest.param("user:s3cret://x@a.example", id="colon and slashes in the password"),
    ],
)
def test_passwords_of_entries_are_not_shown(
    command: list[str], entry: str, without_hooks: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An entry with a user name and a password is a problem, whose message contains neither."""
    without_hooks.setenv(DESTINATIONS, entry)

    assert cli.main(command) == 1
    output = "".join(capfd.readouterr())

    assert "is skipped" in output
    assert "s3cret" not in output


AROUND = st.text(alphabet="a1:/@;?#[].* ", max_size=8)  # a comma ends an entry in any case


@settings(deadline=None)
@given(st.sampled_from(["", "http://", "https://"]), AROUND, AROUND)
def test_no_part_of_a_password_is_shown(scheme: str, before: str, after: str) -> None:
    """The message about an entry never contains a part of its user info."""
    read = Settings.from_env({DESTINATIONS: f"{scheme}user:{before}s3cret{after}@a.example"})

    assert read.destinations == ()
    assert "s3cret" not in "".join(read.problems)


# The command itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "print the settings", id="no command"),
        pytest.param(["chek"], "chek", id="no such command"),
        pytest.param(["check", "--yaml"], "--yaml", id="no such flag"),
    ],
)
def test_a_usage_error_exits_with_2(arguments: list[str], message: str) -> None:
    """A usage error prints the usage and exits with 2, which differs from the status for a problem."""
    status, output = run(*arguments)

    assert status == 2
    assert output.startswith("usage: otel-token-relay")
    assert message in output


def test_demo_without_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo names the extra that it requires if one of its libraries is missing."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delitem(sys.modules, "otel_token_relay.demo.console", raising=False)
    monkeypatch.delitem(sys.modules, "otel_token_relay.demo.runner", raising=False)

    assert cli.main(["demo"]) == 2
    assert "pip install 'otel-token-relay[demo]'" in capsys.readouterr().err


def test_output_to_a_closed_pipe_is_not_an_error() -> None:
    """``otel-token-relay check | head -1`` ends without an error message."""
    reader = f"{sys.executable} -c '{WITHOUT_LIBRARIES}' check | head -1"

    ran = subprocess.run(["bash", "-c", reader], timeout=120, capture_output=True, text=True, check=True)

    assert (ran.stdout, ran.stderr) == ("Settings\n", "")


def test_output_to_a_terminal_with_another_encoding() -> None:
    """Characters that the terminal does not support are escaped."""
    variables = {"OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher"}

    program = ("-c", WITHOUT_LIBRARIES)
    _, output = run("check", program=program, PYTHONIOENCODING="ascii", PYTHONUTF8="1", **variables)

    assert r"OTEL_PYTHON_TOKEN_RELAY_AUDIENCE = b\xfccher" in output
