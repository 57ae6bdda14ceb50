"""Tests for ``otel-token-relay explain``: the decision, the closest entry, advice, and what must never be printed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otel_token_relay import cli
from otel_token_relay.commands.explain import explain
from tests.commands.test_check import run
from tests.support.token_endpoint import SECRET, Endpoint

DESTINATIONS = "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS"
ON = {"OTEL_PROPAGATORS": "tracecontext,baggage,token_relay"}
LIST = "https://profile-service,https://*.internal,https://pay.internal;never,https://billing;audience=billing,https://a;required"


class Explained:
    """The result of one command: its exit status, text, and JSON."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *urls: str, environ: dict[str, str], **options: Any) -> None:
        self.status = explain(urls, environ, **options)
        self.text = capsys.readouterr().out
        assert explain(urls, environ, as_json=True, **options) == self.status
        self.json = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(self.json) == len(urls)
        assert self.status == any(result["decision"] == "withheld" for result in self.json)

    def __contains__(self, words: str) -> bool:
        return words in self.text

    @property
    def verdict(self) -> str:
        return self.text.splitlines()[0]


def explained(capsys: pytest.CaptureFixture[str], url: str, entries: str = LIST, **options: Any) -> Explained:
    return Explained(capsys, url, environ=ON | {DESTINATIONS: entries}, **options)


@pytest.mark.parametrize(
    ("url", "status", "decision", "reason", "entry"),
    [
        ("https://profile-service/me", 0, "relayed", "relayed", "https://profile-service"),
        ("https://PROFILE-service.:443", 0, "relayed", "relayed", "https://profile-service"),
        ("https://profile-service/a b", 0, "relayed", "relayed", "https://profile-service"),
        (" https://profile-service", 0, "relayed", "relayed", "https://profile-service"),
        ("https://@profile-service", 0, "relayed", "relayed", "https://profile-service"),
        ("https://me:pw@profile-service", 1, "withheld", "explicit_credential", "https://profile-service"),
        ("https://profile-service/?sv=1&sp=r&sig=x", 1, "withheld", "explicit_credential", "https://profile-service"),
        ("https://profile-service/?sv=1&sig=x", 0, "relayed", "relayed", "https://profile-service"),
        ("https://elsewhere/?X-Amz-Signature=x", 1, "withheld", "destination_not_listed", None),
        ("https://me:pw@elsewhere", 1, "withheld", "destination_not_listed", None),
        ("https://profile-service:8443/me", 1, "withheld", "destination_not_listed", None),
        ("http://profile-service/me", 1, "withheld", "destination_not_listed", None),
        ("https://elsewhere.example/profile-service", 1, "withheld", "destination_not_listed", None),
        ("https://pay.internal/", 1, "withheld", "destination_not_listed", "https://pay.internal;never"),
        ("https://x.internal/", 0, "relayed", "relayed", "https://*.internal"),
        ("https://billing/", 1, "withheld", "exchange_failed", "https://billing;audience=billing"),
        ("profile-service/me", 1, "withheld", "destination_unknown", None),
        ("https://good\\@evil/", 1, "withheld", "destination_unknown", None),
        ("ftp://profile-service/", 1, "withheld", "destination_unknown", None),
        ("", 1, "withheld", "destination_unknown", None),
    ],
)
def test_the_decision_is_printed(
    url: str, status: int, decision: str, reason: str, entry: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status, the text, and the JSON contain the same decision."""
    result = explained(capsys, url)
    (found,) = result.json

    assert result.status == status
    assert result.verdict == ("relayed" if decision == "relayed" else f"{decision}: {reason}")
    assert (found["decision"], found["reason"], found["entry"]) == (decision, reason, entry)
    assert (f"  entry: {entry}" in result) == (entry is not None)
    assert (found["relay_off"], found["raises"], found["problems"]) == (None, False, [])
    assert ("What to do: " in result) == (decision == "withheld")


@pytest.mark.parametrize(
    ("url", "closest", "advice"),
    [
        ("http://profile-service/", "https://profile-service; the scheme differs: http, not https", "Correct the URL"),
        ("https://profile-service:1/", "https://profile-service; the port differs: 1, not 443", "Correct the URL"),
        ("https://profile-servic/", "https://profile-service; the host differs: profile-servic; did you", "Correct"),
        ("https://internal/", "https://*.internal; *.internal does not match internal itself", "Correct the URL"),
        ("https://elsewhere.example", None, "Add the origin"),
    ],
)
def test_the_closest_entry_is_printed(
    url: str, closest: str | None, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The closest entry is printed together with its difference from the URL."""
    result = explained(capsys, url)
    (found,) = result.json

    assert ("closest entry: " in result) == (closest is not None)
    assert closest is None or f"\n  closest entry: {closest}" in result
    assert closest is None or f"{found['closest_entry']}; {found['difference']}".startswith(closest)
    assert f"\n  What to do: {advice}" in result


def test_an_excluded_origin_is_not_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """An origin with ``;never`` gets no token even if a wider entry exists, and is not reported as a mistake."""
    result = explained(capsys, "https://pay.internal")

    assert "  entry: https://pay.internal;never, so this origin never gets a token\n" in result
    assert "What to do: Nothing, if this is intended." in result
    assert result.json[0]["difference"] == "the entry has ;never"
    assert "problem" not in result


@pytest.mark.parametrize("entries", ["https://a/api", '"https://a', "https://*,https://a;requird", "https://a:443:443"])
def test_a_skipped_entry_is_named(entries: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A skipped entry for the origin is reported as the likely cause, followed by its problem."""
    result = explained(capsys, "https://a/api", entries)

    assert result.status == 1
    assert "\n  closest entry: https://a; the entry is skipped" in result
    assert "\n  What to do: Correct the entry. The problem is described below.\n" in result
    assert f"\n  problem: {result.json[0]['problems'][0]}\n" in result
    assert result.json[0]["problems"][0].startswith(f"{DESTINATIONS}: the entry ")


def test_several_urls(capsys: pytest.CaptureFixture[str]) -> None:
    """Each URL has its own result, problems are printed once, and the status is 1 if any token is withheld."""
    urls = ("https://a", "https://b?s3cret", "https://a/x")
    result = Explained(capsys, *urls, environ=ON | {DESTINATIONS: "https://a,https://c/"})

    verdicts = [line for line in result.text.splitlines() if line and not line.startswith(" ")]
    assert verdicts == [
        "relayed (https://a)",
        "withheld: destination_not_listed (https://b?***)",
        "relayed (https://a/x)",
    ]
    assert result.text.count("problem: ") == 1
    assert [found["url"] for found in result.json] == ["https://a", "https://b?***", "https://a/x"]
    assert result.status == 1
    assert Explained(capsys, "https://a", "https://a/x", environ=ON | {DESTINATIONS: "a"}).status == 0


def test_the_keys_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The documentation describes every key in the JSON, and no other key."""
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text("utf-8")
    section = page.partition("## explain\n")[2].partition("\n## ")[0].partition("### JSON\n")[2]
    documented = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]

    assert list(explained(capsys, "https://a").json[0]) == documented


# Calls outside a request


@pytest.mark.parametrize(
    ("url", "reason", "raises"),
    [
        ("https://profile-service", "no_boundary", False),
        ("https://a", "no_boundary", True),
        ("https://elsewhere", "no_boundary", False),
        ("https://me:pw@a", "explicit_credential", False),
    ],
)
def test_a_call_while_no_request_is_served(
    url: str, reason: str, raises: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside a request, a call to a required destination fails unless the call has its own credential."""
    result = explained(capsys, url, without_user=True)

    assert (result.status, result.json[0]["reason"], result.json[0]["raises"]) == (1, reason, raises)
    assert ("the call raises TokenUnavailable" in result) == raises


def test_verification(capsys: pytest.CaptureFixture[str]) -> None:
    """If only verified tokens are relayed but verification is disabled, a listed destination gets no token."""
    required = ON | {DESTINATIONS: "a,b;required", "OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED": "true"}
    result = Explained(capsys, "https://a", "https://b", environ=required)
    verifying = required | {
        "OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce",
        "OTEL_PYTHON_TOKEN_RELAY_ISSUERS": "https://issuer.example",
        "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": "a",
    }

    assert [(found["reason"], found["raises"]) for found in result.json] == [
        ("not_verified", False),
        ("not_verified", True),
    ]
    assert Explained(capsys, "https://a", environ=verifying).verdict == "relayed"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ON_CONFLICT", "replace", "relayed"),
        ("ON_CONFLICT", "keep", "explicit_credential"),
        ("HEADER", "Txn-Token", "relayed"),
    ],
)
def test_user_info_is_a_credential_in_one_header(
    variable: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """User info in the URL is treated as an explicit credential, and a note lists the clients that send it."""
    environ = ON | {DESTINATIONS: "https://a", f"OTEL_PYTHON_TOKEN_RELAY_{variable}": value}
    result = Explained(capsys, "https://me:s3cret@a", environ=environ)

    assert result.json[0]["reason"] == reason
    assert "note: Most clients send the user info in an Authorization: Basic header" in result


def test_verification_that_cannot_start_verifies_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    """If verification cannot start, a request in report mode is still served, but its token is never relayed."""
    names = {"REQUIRE_VERIFIED": "true", "VERIFY": "report"}
    environ = ON | {DESTINATIONS: "a"} | {f"OTEL_PYTHON_TOKEN_RELAY_{name}": value for name, value in names.items()}

    assert Explained(capsys, "https://a", environ=environ).verdict == "withheld: not_verified"


def test_a_service_that_reads_no_token_relays_none(capsys: pytest.CaptureFixture[str]) -> None:
    """If the list of source headers is invalid, the service reads no token and relays none."""
    environ = ON | {DESTINATIONS: "a", "OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS": "a:b"}
    result = Explained(capsys, "https://a", environ=environ)

    assert result.verdict == "withheld: no_token"
    assert "What to do: Correct OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS" in result


# Disabled relay


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is not set"),
        ("tracecontext,baggage", "does not contain token_relay"),
        ("token-relay", "contains token-relay"),
        ("tracecontext,zipkin9,token_relay", "contains zipkin9"),
        ("none,token_relay", "contains none before"),
    ],
)
def test_the_relay_is_off(value: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If the relay is disabled, the token is withheld, and the command prints what to set."""
    result = Explained(capsys, "https://a", environ={"OTEL_PROPAGATORS": value, DESTINATIONS: "a;required"})
    (found,) = result.json

    assert (result.status, result.verdict) == (1, "withheld: the relay is off")
    assert (found["decision"], found["reason"], found["raises"]) == ("withheld", None, False)
    assert words in found["relay_off"]
    assert f"What to do: {found['relay_off'][0].upper()}{found['relay_off'][1:]}." in result
    assert "set OTEL_PROPAGATORS=" in result
    assert "With the relay on: relayed\n" in result


def test_no_destination_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    """If no destination is set, the advice suggests explaining the environment of the service."""
    shell = Explained(capsys, "https://a", environ=ON)
    nothing = Explained(capsys, "https://a", environ={})
    process = Explained(capsys, "https://a", environ=ON, pid=7)

    assert f"What to do: {DESTINATIONS} is not set in this environment." in shell
    assert "--pid with the process ID of the running service, or export" in shell
    assert f"{DESTINATIONS} is not set in this environment." in nothing
    assert "set OTEL_PROPAGATORS=tracecontext,baggage,token_relay" in nothing
    assert f"{DESTINATIONS} is not set in the environment of process 7." in process


def test_destinations_that_are_all_skipped_are_set(capsys: pytest.CaptureFixture[str]) -> None:
    """A destination that is set but skipped is not reported as unset."""
    assert "is not set" not in explained(capsys, "https://b", "https://a/").text


# Environments of other processes


@contextmanager
def process(**environ: str) -> Iterator[int]:
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environ)
    try:
        yield running.pid
    finally:
        running.communicate(b"\n", timeout=30)


def test_the_environment_of_a_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--pid``, the command ignores the variables of the current shell."""
    monkeypatch.setenv(DESTINATIONS, "https://shell")
    with process(**ON, **{DESTINATIONS: "https://process"}) as pid:
        statuses = [cli.main(["explain", "--pid", str(pid), f"https://{name}"]) for name in ("process", "shell")]

    assert statuses == [0, 1]
    assert capsys.readouterr().out.startswith("relayed\n")


@pytest.mark.parametrize("pid", ["99999999", "-1"])
def test_a_process_that_does_not_exist_is_a_usage_error(pid: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If the process does not exist, the command reports a usage error and explains nothing."""
    assert cli.main(["explain", "--pid", pid, "https://a"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert f"process {pid} does not exist" in output.err


# Command-line usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["explain"], "URL", id="no URL"),
        pytest.param(["explain", "https://a", "--yaml"], "--yaml", id="no such flag"),
        pytest.param(["explain", "https://a", "--pid", "x"], "--pid", id="no number"),
    ],
)
def test_a_usage_error_exits_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error exits with 2, which differs from the status for a withheld token."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)

    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_quotes_its_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """The help text quotes its examples, because the shell interprets an unquoted semicolon."""
    with pytest.raises(SystemExit):
        cli.main(["explain", "--help"])

    output = capsys.readouterr().out
    examples = [line for line in output.splitlines() if ";" in line and line.startswith("  ")]
    assert "an unquoted ; ends the command" in output
    assert examples
    assert all("'" in line.partition(";")[0] for line in examples)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:s3cret@a.example/",
        "https://user:s3cret?x@a.example/",
        "https://user:s3cret/x@a.example/",
        "user:s3cret@a.example",
        "https://a.example/?access_token=s3cret",
        "https://a.example/#access_token=s3cret",
        "a.example?access_token=s3cret",
        "https:/a.example?access_token=s3cret",
        " https://user:s3cret@a.example/x y?s3cret",
        "https://user:s3cret@a .example/",
    ],
)
@pytest.mark.parametrize("relay", [ON, {}], ids=["on", "off"])
def test_secrets_of_the_url_are_not_shown(url: str, relay: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The user info, the query, and the fragment of a URL are never printed."""
    result = Explained(capsys, url, url, environ=relay | {DESTINATIONS: "https://user"})

    assert result.status == 1
    assert "s3cret" not in result.text + str(result.json)


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Terminal control sequences in a URL or a variable are escaped."""
    result = Explained(capsys, "https://a/\x1b[31m", "https://\x1b]0;x\x07", environ=ON | {DESTINATIONS: "b\x1b[31m"})

    assert result.text.replace("\n", "").isprintable()
    assert result.text.isascii()


def test_the_command_reads_the_environment() -> None:
    """The command reads its settings from the environment and exits with the status of the result."""
    assert run("explain", "https://a", "https://a/x", **{DESTINATIONS: "a"})[0] == 0
    assert run("explain", "https://a", OTEL_PROPAGATORS="tracecontext", **{DESTINATIONS: "a"})[0] == 1


def test_all_sources_of_settings_are_read(tmp_path: Path) -> None:
    """The command reads the configuration file that the explained environment specifies."""
    path = tmp_path / "otel.json"
    path.write_text('{"propagator": {"composite": [{"token_relay": {"destinations": ["https://from-a-file"]}}]}}')

    assert explain(["https://from-a-file"], {"OTEL_CONFIG_FILE": str(path)}) == 0
    assert explain(["https://from-a-file"], ON) == 1


def test_online_makes_an_exchange_for_the_destinations_that_need_one(
    capsys: pytest.CaptureFixture[str], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token on standard input is exchanged once, and a destination that gets the caller's token needs nothing."""
    environ = ON | {
        DESTINATIONS: "https://profile-service,https://billing;audience=billing",
        "OTEL_PYTHON_TOKEN_RELAY_TOKEN_ENDPOINT": endpoint.url,
        "OTEL_PYTHON_TOKEN_RELAY_CLIENT_ID": "user-service",
        "OTEL_PYTHON_TOKEN_RELAY_CLIENT_SECRET": SECRET,
        "OTEL_PYTHON_TOKEN_RELAY_EXCHANGE_UNVERIFIED": "true",
    }
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the-callers-token")))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["explain", "--online", "https://profile-service", "https://billing"]) == 0

    assert [form["subject_token"] for form in endpoint.forms] == ["the-callers-token"]
    output = capsys.readouterr().out
    assert output.count("The server issued") == 1
    assert "the-callers-token" not in output
