"""Tests for the command line: its output, its exit status, and what it must never print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import propagate

from otel_token_relay import cli, uninstall
from otel_token_relay.commands import check, coverage
from otel_token_relay.commands.coverage import version_of
from otel_token_relay.hooks import CLIENT_HOOKS, SERVER_HOOKS
from otel_token_relay.redaction import installation as redaction
from otel_token_relay.settings import Settings
from tests.support.client_authentication import pem_of
from tests.support.issuers import Issuer, issuing
from tests.support.tokens import private_key, public_jwk

DESTINATIONS = "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS"
SWITCHED_ON = {"OTEL_PROPAGATORS": "tracecontext,baggage,token_relay"}


def run(*arguments: str, program: tuple[str, ...] = ("-m", "otel_token_relay"), **environment: str) -> tuple[int, str]:
    """Return the command's exit status and combined output."""
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
    """Return an environment that enables the relay and contains no other OpenTelemetry variable."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_PROPAGATORS", SWITCHED_ON["OTEL_PROPAGATORS"])
    return monkeypatch


@pytest.fixture
def without_hooks(environment: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Return the environment for an in-process check that skips the libraries, whose import takes seconds."""
    environment.setattr(coverage, "UNCOVERED_CLIENTS", ())
    textmap = propagate.get_global_textmap()
    yield environment
    uninstall()
    propagate.set_global_textmap(textmap)


# check


def checked(*arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the JSON report of a check."""
    status, output = run("check", "--json", *arguments, **environment)
    return status, json.loads(output)


def test_check_begins_with_the_verdict_and_shows_only_what_differs() -> None:
    """The check begins with its result and does not claim that a library is hooked."""
    status, output = run("check", **{DESTINATIONS: "https://profile-service"})

    assert status == 0
    assert output.startswith("No problems found. The relay is on; requests are not verified.\n")
    assert "Problems" not in output
    assert "Warnings" not in output
    assert output.partition("Settings that differ from their defaults\n")[2] == (
        f"  {DESTINATIONS} = https://profile-service (environment)\n"
    )
    assert f"httpx {version('httpx')}" in output.partition("\nCan be hooked (to try the hooks, add --all)\n")[2]
    assert f"  websockets {version('websockets')}: no hook; specify the destination with to_destination()\n" in output


@pytest.mark.parametrize(
    ("missing", "expected"), [(("urllib3",), "urllib3 is"), (("jwt", "urllib3"), "PyJWT and urllib3 is"), ((), "")]
)
def test_check_names_the_packages_that_verification_needs(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: tuple[str, ...], expected: str
) -> None:
    """If verification is enabled, `check` reports the missing packages that verification requires."""
    variables = {"VERIFY": "enforce", "ISSUERS": "https://idp.example", "AUDIENCE": "a"}
    for name, value in variables.items():
        environment.setenv(f"OTEL_PYTHON_TOKEN_RELAY_{name}", value)
    for module in missing:
        environment.setitem(sys.modules, module, None)
    cli.main(["check"])

    assert ("requests cannot be verified because" in capsys.readouterr().out) is bool(expected)
    assert coverage.missing_packages() == expected.removesuffix(" is")


def test_check_names_packages_that_are_too_old(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The `check` command reports packages that are too old, which can occur in an injected directory."""
    for name, value in {"VERIFY": "enforce", "ISSUERS": "https://idp.example", "AUDIENCE": "a"}.items():
        environment.setenv(f"OTEL_PYTHON_TOKEN_RELAY_{name}", value)
    clause = "urllib3 1.26.18 is installed, but urllib3>=2.6.3 is required"
    environment.setattr(check, "unmet", lambda extra: [clause] if extra == "verify" else [])

    status = cli.main(["check"])

    assert status == 1
    assert f"verification requires different versions of its packages: {clause}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("destinations", "protects", "expected"),
    [
        ("", "true", []),
        ("https://a", "false", []),
        # A cache must be imported to determine whether it can be hooked, and a cache imports its client.
        ("https://a", "true", ["cachecontrol", "httpx", "requests"]),
    ],
    ids=["no destination", "caches are not protected", "a destination"],
)
def test_check_imports_no_library_but_caches(destinations: str, protects: str, expected: list[str]) -> None:
    """The `check` command imports only caches, because importing every library is slow and could fail."""
    names = "{'httpx', 'fastapi', 'django', 'grpc', 'requests', 'cachecontrol', 'opentelemetry.instrumentation'}"
    program = (
        f"import sys; from otel_token_relay import cli; cli.main(['check']); print(sorted({names} & set(sys.modules)))"
    )

    _, output = run(
        program=("-c", program),
        **{
            DESTINATIONS: destinations,
            "OTEL_PYTHON_TOKEN_RELAY_PROTECT_CACHES": protects,
            "OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce",
        },
    )

    assert output.endswith(f"\n{expected}\n")


def test_check_warns_of_caches_that_are_not_protected(
    without_hooks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The `check` command warns about unprotected caches only if a destination is listed."""
    without_hooks.setenv("OTEL_PYTHON_TOKEN_RELAY_PROTECT_CACHES", "false")
    without_hooks.setenv(DESTINATIONS, "https://a")

    assert cli.main(["check"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert (
        "OTEL_PYTHON_TOKEN_RELAY_PROTECT_CACHES is off, so CacheControl, requests-cache, aiohttp-client-cache, hishel"
        " may serve one user's response to another"
    ) in output
    assert cli.main(["check", "--strict"]) == 1
    capsys.readouterr()

    without_hooks.setenv(DESTINATIONS, "")
    cli.main(["check"])
    assert "response to another" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("--all",)])
def test_check_fails_if_a_signal_is_not_redacted_where_it_is_created(
    arguments: tuple[str, ...], without_hooks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The `check` command fails if a signal is not redacted where it is created, as with an unsupported SDK."""
    without_hooks.setenv(DESTINATIONS, "https://a")
    spans, *signals = redaction.SIGNALS
    without_hooks.setattr(redaction, "SIGNALS", (replace(spans, try_out=lambda: False), *signals))
    uninstall()

    status = cli.main(["check", "--json", *arguments])

    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert status == 1
    assert problem.startswith(f"spans {version('opentelemetry-sdk')}: redacted by wrapped processors and exporters (")


def test_check_all_imports_every_library_and_tries_its_hooks() -> None:
    """With ``--all``, `check` hooks every installed library and runs the self-test of each signal."""
    status, report = checked("--all", **{DESTINATIONS: "https://a"})

    assert (status, report["problems"]) == (0, [])
    states = {library["name"]: library["state"] for library in report["libraries"]}
    for hook in CLIENT_HOOKS + SERVER_HOOKS:
        name = hook.distribution or hook.module
        assert states.get(name) == ("hooked" if hook.distribution is None or version_of(name) else None), name
    assert {states[signal] for signal in ("spans", "logs", "metrics")} == {"redacted at the conversion point"}


def test_check_all_fails_if_a_library_cannot_be_hooked(
    without_hooks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``--all``, `check` fails if a library's release lacks a method that must be hooked."""
    import httpx

    uninstall()
    without_hooks.setenv(DESTINATIONS, "https://a")
    without_hooks.delattr(httpx, "HTTPTransport")
    for name in ("SERVER_HOOKS", "BOUNDARY_HOOKS", "FRAMEWORK_HOOKS"):
        without_hooks.setattr(coverage, name, ())
    without_hooks.setattr(coverage, "CLIENT_HOOKS", CLIENT_HOOKS[:2])

    assert cli.main(["check", "--all", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith(f"httpx {version('httpx')}: cannot be hooked: httpx: AttributeError")


def test_problems_are_printed_before_warnings_and_coverage(
    without_hooks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Problems are printed before warnings and coverage."""
    without_hooks.setenv(DESTINATIONS, "http://a,https://b/path")

    assert cli.main(["check"]) == 1
    output = capsys.readouterr().out
    titles = [line for line in output.splitlines() if line and not line.startswith(" ")]

    assert titles[0].startswith("1 problem found. ")
    assert titles[1:3] == ["Problems", "Warnings"]
    assert titles[-1] == "Settings that differ from their defaults"


def test_a_replaced_value_is_marked(without_hooks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The `check` command prints and marks the strict value that replaces an invalid one, even if it is the default."""
    without_hooks.setenv(DESTINATIONS, "https://a")
    without_hooks.setenv("OTEL_PYTHON_TOKEN_RELAY_MAX_AGE", "soon")
    without_hooks.setenv("OTEL_PYTHON_TOKEN_RELAY_LINGER", "long")

    assert cli.main(["check"]) == 1
    output = capsys.readouterr().out
    assert "  OTEL_PYTHON_TOKEN_RELAY_MAX_AGE = 0 (environment; the configured value is invalid)\n" in output
    assert "  OTEL_PYTHON_TOKEN_RELAY_LINGER = 0 (environment; the configured value is invalid)\n" in output


@pytest.mark.parametrize(
    ("arguments", "environment_variables", "status", "words"),
    [
        pytest.param([], {DESTINATIONS: ""}, 1, "no destination is listed", id="no destination"),
        pytest.param([], {DESTINATIONS: "", "OTEL_PROPAGATORS": ""}, 1, "nothing is configured", id="nothing"),
        pytest.param(
            [], {"OTEL_PROPAGATORS": "b"}, 1, "contains b, which no installed package", id="unknown propagator"
        ),
        pytest.param([], {"OTEL_PROPAGATORS": "tracecontext"}, 1, "the relay is off", id="destinations, relay off"),
        pytest.param(["--require", "relay"], {}, 0, "No problems found", id="relay is on"),
        pytest.param(["--require", "relay,verify"], {}, 1, "are not refused", id="verify is off"),
        pytest.param(["--strict"], {DESTINATIONS: "http://a"}, 1, "1 warning, which --strict", id="strict"),
        pytest.param([], {DESTINATIONS: "http://a"}, 0, "receives unencrypted tokens", id="warning"),
        pytest.param([], {DESTINATIONS: "https://*"}, 0, "to any host", id="any host"),
        pytest.param([], {DESTINATIONS: "https://a;audience=a"}, 1, "no token can be exchanged", id="exchange"),
        pytest.param(
            ["--strict"],
            {DESTINATIONS: "http://a", "OTEL_PYTHON_TOKEN_RELAY_PLAINTEXT_HOSTS": "a"},
            0,
            "No problems found",
            id="plaintext is deliberate",
        ),
        pytest.param(
            [],
            {"OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED": "true"},
            0,
            "only if the application verifies",
            id="require",
        ),
        pytest.param([], {"OTEL_PYTHON_CONTEXT": "datadog_context"}, 1, "uses its default context", id="context"),
        pytest.param(
            [], {"OTEL_PYTHON_TOKEN_RELAY_ISSUERS": "https://i"}, 0, "requests are not verified; set", id="issuers only"
        ),
    ],
)
def test_check_has_the_right_status(
    arguments: list[str],
    environment_variables: dict[str, str],
    status: int,
    words: str,
    without_hooks: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Errors are reported as problems, and risks as warnings, in both the text and the JSON."""
    for name, value in ({DESTINATIONS: "https://a"} | environment_variables).items():
        without_hooks.setenv(name, value)

    assert cli.main(["check", *arguments]) == status
    text = capfd.readouterr().out
    assert cli.main(["check", "--json", *arguments]) == status
    report = json.loads(capfd.readouterr().out)

    assert words in text
    assert report["ok"] == (status == 0)
    assert all(sentence in text for sentence in (*report["problems"], *report["warnings"]))
    assert ("No problems found" in text) == (status == 0)


def test_an_environment_without_libraries_is_a_problem(
    without_hooks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An environment without any supported library is reported as a problem."""
    without_hooks.setenv(DESTINATIONS, "https://a")
    without_hooks.setattr(check, "installed_libraries", lambda: [])

    assert cli.main(["check"]) == 1
    assert "run this command in the service's environment" in capsys.readouterr().out


def test_check_reads_the_environment_of_another_process(tmp_path: Path) -> None:
    """With ``--pid``, `check` uses the environment and the working directory of that process."""
    (tmp_path / "otel.json").write_text(
        json.dumps({"propagator": {"composite": [{"token_relay": {"destinations": ["https://a"], "max_age": "x"}}]}})
    )
    environ = {"OTEL_CONFIG_FILE": "otel.json"}
    with subprocess.Popen(["sleep", "60"], env=environ, cwd=tmp_path) as process:
        try:
            status, report = checked("--pid", str(process.pid), **{DESTINATIONS: "https://b", "OTEL_PROPAGATORS": ""})
        finally:
            process.kill()

    assert status == 1
    assert report["relay"]
    path = "propagator.composite[0].token_relay"
    assert [setting["source"] for setting in report["settings"]] == [path, path]
    assert report["problems"][0].startswith(f"{path}.max_age: expected a number of seconds")


@pytest.mark.parametrize("pid", ["999999999", "0", "-1"])
def test_a_process_that_cannot_be_read_is_a_usage_error(pid: str) -> None:
    """A process that cannot be read causes a usage error that contains the process ID."""
    status, output = run("check", "--pid", pid)

    assert status == 2
    assert output.startswith(f"otel-token-relay check: error: process {pid} does not exist")


@pytest.mark.parametrize("columns", ["40", "100"])
def test_lines_fit_the_terminal(columns: str) -> None:
    """Text is wrapped only on a terminal and contains escape sequences only if NO_COLOR is not set."""
    program = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, *sys.argv[1:]])))"
    arguments = ("-m", "otel_token_relay", "check")
    variables = {DESTINATIONS: "http://a", "COLUMNS": columns, "TERM": "xterm"}
    _, wide = run(program=("-c", program, *arguments), **variables)
    _, plain = run(program=("-c", program, *arguments), NO_COLOR="1", **variables)

    assert "\x1b[1m" in wide
    assert "\x1b" not in plain
    lines = plain.partition("Warnings")[2].splitlines()
    assert max(map(len, lines)) <= int(columns) or all(
        " " not in line.strip() for line in lines if len(line) > int(columns)
    )


# Online checks


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (None, 0, ["No problems found", "Endpoints", "/jwks: 1 usable key"]),
        ("metadata", 1, ["1 problem found", "this issuer's tokens cannot be verified", "a different issuer"]),
        ("keys", 1, ["this issuer's tokens cannot be verified: key set", "empty"]),
        ("down", 3, ["No response from http://127.0.0.1", "connection refused"]),
    ],
)
def test_check_asks_the_issuers(
    fault: str | None,
    status: int,
    words: list[str],
    without_hooks: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unusable response is a problem, and a missing response has a separate exit status."""
    with ExitStack() as stack:
        issuer = stack.enter_context(issuing(public_jwk("RS256", "k1")))
        if fault == "metadata":
            issuer.metadata["issuer"] = "https://other.example"
        elif fault == "keys":
            issuer.keys = []
        elif fault == "down":
            stack.close()
        for name, value in (("VERIFY", "enforce"), ("ISSUERS", issuer.url), ("AUDIENCE", "orders")):
            without_hooks.setenv(f"OTEL_PYTHON_TOKEN_RELAY_{name}", value)
        without_hooks.setenv(DESTINATIONS, "https://a")

        assert cli.main(["check", "--online"]) == status
        text = capsys.readouterr().out
        assert cli.main(["check", "--online", "--json"]) == status
        report = json.loads(capsys.readouterr().out)

    assert [word for word in words if word not in text] == []
    assert report["ok"] == (status == 0)
    assert [found["issuer"] for found in report["issuers"]] == [issuer.url]
    assert issuer.hits if fault != "down" else not issuer.hits


def test_without_online_no_issuer_is_asked(without_hooks: pytest.MonkeyPatch) -> None:
    """Without ``--online``, `check` sends no request."""
    with issuing(public_jwk("RS256", "k1")) as issuer:
        without_hooks.setenv("OTEL_PYTHON_TOKEN_RELAY_ISSUERS", issuer.url)
        cli.main(["check"])

        assert issuer.hits == []


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
    """An entry with a user name and a password is reported as a problem that contains neither."""
    without_hooks.setenv(DESTINATIONS, entry)

    assert cli.main(command) == 1
    output = "".join(capfd.readouterr())

    assert "is skipped" in output
    assert "s3cret" not in output


AROUND = st.text(alphabet="a1:/@;?#[].* ", max_size=8)  # a comma always ends an entry


@settings(deadline=None)
@given(st.sampled_from(["", "http://", "https://"]), AROUND, AROUND)
def test_no_part_of_a_password_is_shown(scheme: str, before: str, after: str) -> None:
    """A message about an entry never contains any part of the entry's user info."""
    read = Settings.from_env({DESTINATIONS: f"{scheme}user:{before}s3cret{after}@a.example"})

    assert read.destinations == ()
    assert "s3cret" not in "".join(read.problems)


# Command-line usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "report whether the configuration", id="no command"),
        pytest.param(["chek"], "chek", id="no such command"),
        pytest.param(["check", "--yaml"], "--yaml", id="no such flag"),
    ],
)
def test_a_usage_error_exits_with_2(arguments: list[str], message: str) -> None:
    """A usage error prints the usage and exits with 2, not with the status for a problem."""
    status, output = run(*arguments)

    assert status == 2
    assert output.startswith("usage: otel-token-relay")
    assert message in output


def test_demo_without_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """If a library of the demo is missing, the command names the extra to install."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delitem(sys.modules, "otel_token_relay.demo.console", raising=False)
    monkeypatch.delitem(sys.modules, "otel_token_relay.demo.runner", raising=False)

    assert cli.main(["demo"]) == 2
    assert "pip install 'otel-token-relay[demo]'" in capsys.readouterr().err


def test_output_to_a_closed_pipe_is_not_an_error() -> None:
    """``otel-token-relay check | head -1`` prints no error message."""
    reader = f"{sys.executable} -m otel_token_relay check | head -1"

    ran = subprocess.run(["bash", "-c", reader], timeout=120, capture_output=True, text=True, check=True)

    assert (ran.stdout, ran.stderr) == ("1 problem found. The relay is off; requests are not verified.\n", "")


def test_output_to_a_terminal_with_another_encoding() -> None:
    """Characters that the terminal's encoding does not support are escaped."""
    variables = {"OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher"}

    _, output = run("check", PYTHONIOENCODING="ascii", PYTHONUTF8="1", **variables)

    assert r"OTEL_PYTHON_TOKEN_RELAY_AUDIENCE = b\xfccher" in output


@pytest.mark.parametrize(("offset", "words"), [(-7200, "7200 s behind"), (60, "60 s ahead of"), (20, None)])
def test_clocks_that_differ_are_a_problem(
    offset: int,
    words: str | None,
    issuer: Issuer,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With ``--online``, `check` reports a problem if the issuer's clock differs from the local clock."""

    def respond(handler: BaseHTTPRequestHandler, path: str) -> bool:
        handler.date_time_string = lambda timestamp=None: formatdate(time.time() + offset, usegmt=True)  # type: ignore[method-assign]
        return False

    environment.setenv("OTEL_PYTHON_TOKEN_RELAY_VERIFY", "enforce")
    environment.setenv("OTEL_PYTHON_TOKEN_RELAY_ISSUERS", issuer.url)
    environment.setenv("OTEL_PYTHON_TOKEN_RELAY_AUDIENCE", "profile-service")
    environment.setenv("OTEL_PROPAGATORS", "tracecontext")
    environment.setattr(issuer, "behave", respond)

    status = cli.main(["check", "--online"])

    output = capsys.readouterr().out
    assert status == (words is not None)
    assert ("No problems found" in output) is (words is None)
    if words is not None:
        assert f"{issuer.url}: The issuer's clock is {words} this machine's clock. If the clocks differ" in output


def test_check_prints_no_secret_and_asks_the_introspection_endpoint() -> None:
    """The text and the JSON report that a secret is set without revealing its value."""
    with issuing(public_jwk("RS256", "k1")) as issuer:
        variables = {
            "VERIFY": "enforce",
            "ISSUERS": issuer.url,
            "AUDIENCE": "orders",
            "INTROSPECTION_ENDPOINT": f"{issuer.url}/introspect",
            "CLIENT_ID": "me",
            "CLIENT_SECRET": "s3cr3t-of-this-service",
        }
        environ = {f"OTEL_PYTHON_TOKEN_RELAY_{name}": value for name, value in variables.items()}
        environ[DESTINATIONS] = "https://a.example"
        status, output = run("check", "--online", **environ)
        _, document = run("check", "--online", "--json", **environ)

    assert status == 0, output
    assert "OTEL_PYTHON_TOKEN_RELAY_CLIENT_SECRET = set (environment)" in output
    assert f"introspection {issuer.url}/introspect: a random token is not active" in output
    assert "s3cr3t-of-this-service" not in output + document


@pytest.mark.parametrize("has_issuer", [True, False])
def test_check_warns_if_a_credential_cannot_be_used(
    without_hooks: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, has_issuer: bool
) -> None:
    """The `check` command warns about an unusable credential without sending it or quoting its file."""
    file = tmp_path / "key.pem"
    with issuing(public_jwk("RS256", "k1")) as issuer:
        variables = {
            "VERIFY": "enforce",
            "ISSUERS": issuer.url if has_issuer else "",
            "AUDIENCE": "orders",
            "INTROSPECTION_ENDPOINT": f"{issuer.url}/introspect",
            "CLIENT_ID": "me",
            "CLIENT_KEY_FILE": str(file),
            "CLIENT_AUTH": "private_key_jwt_rfc7523",
        }
        for name, value in variables.items():
            without_hooks.setenv(f"OTEL_PYTHON_TOKEN_RELAY_{name}", value)
        texts = []
        for content in (None, b"Hunter2", pem_of(private_key("ES256"))):
            if content is not None:
                file.write_bytes(content)
            cli.main(["check"])
            texts.append(capsys.readouterr().out)
        assert issuer.hits == []

    warning = "the credential of the client me cannot be used: the file in client_key_file"
    missing, unusable, usable = (" ".join(text.split()) for text in texts)
    assert f"{warning} cannot be read" in missing
    assert f"{warning} is not a private key" in unusable
    assert "Hunter2" not in unusable
    assert "cannot be used" not in usable
