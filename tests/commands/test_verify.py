"""Tests for ``otel-token-relay verify``: its output, its exit status, and what it must never print."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_token_relay import cli
from otel_token_relay.commands import NO_RESPONSE, verify
from otel_token_relay.verification.http_client import FetchFailed
from tests.support.issuers import Issuer, issuing, wait_until
from tests.support.processes import unused_port
from tests.support.tokens import AUDIENCE, b64, claims, make_token, public_jwk
from tests.verification.test_concealment import runs_of

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"
AGREE = "  The issuer's clock and this machine's clock agree.\n"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return an environment in which the issuer's tokens are verified."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in environment_of(issuer).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def environment_of(issuer: Issuer) -> dict[str, str]:
    return {f"{PREFIX}VERIFY": "enforce", f"{PREFIX}ISSUERS": issuer.url, f"{PREFIX}AUDIENCE": AUDIENCE}


def run(token: str, *arguments: str) -> tuple[int, str, str]:
    """Return the command's exit status, output, and errors."""
    output, errors = io.StringIO(), io.StringIO()
    original = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(token.encode("utf-8", "surrogatepass")))
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = cli.main(["verify", *arguments])
    finally:
        sys.stdin = original
    assert "Traceback" not in output.getvalue() + errors.getvalue()
    return status, output.getvalue(), errors.getvalue()


def run_json(token: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    status, output, errors = run(token, "--json", *arguments)
    assert errors == ""
    assert output.count("\n") == 1
    return status, json.loads(output)


# Accepted and rejected tokens


def test_an_accepted_token(issuer: Issuer) -> None:
    """For an accepted token, the command prints the result on the first line and exits with 0."""
    now = int(time.time())

    status, output, errors = run(make_token(claims(issuer.url, exp=now + 3600)))

    assert (status, errors) == (0, "")
    lines = output.splitlines(keepends=True)
    assert lines[0] == "accepted\n"
    assert lines[1].startswith(f"  exp: {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now + 3600))}, 3")
    assert lines[1].endswith(" s from now\n")
    assert lines[2:] == [AGREE]


def test_a_rejected_token(issuer: Issuer) -> None:
    """For a rejected token, the command prints the result, the cause, the clocks, and advice, in this order."""
    status, output, errors = run(make_token(claims(issuer.url, aud=["billing", "account"])))

    assert (status, errors) == (1, "")
    assert output == (
        "rejected: wrong_audience\n"
        "  aud: expected profile-service; the token has billing, account\n"
        f"{AGREE}"
        "  What to do: If this is one of this service's names, add it to OTEL_PYTHON_TOKEN_RELAY_AUDIENCE. Otherwise,"
        " the caller must request a token for this service.\n"
    )


@pytest.mark.parametrize(
    ("token", "reason", "cause"),
    [
        ("opaque", "malformed", "form: the token has one part;"),
        (b64({"alg": "RS256"}), "malformed", "form: the token has one part;"),
        ("a" * 16_385, "too_long", "length: expected at most 16384 characters; the token has 16385"),
    ],
)
def test_a_token_without_an_issuer_is_rejected_without_asking(
    issuer: Issuer, token: str, reason: str, cause: str
) -> None:
    """A token without a recognizable issuer is rejected without contacting an issuer."""
    status, output, _ = run(token)

    assert status == 1
    assert output.startswith(f"rejected: {reason}\n  {cause}")
    assert issuer.hits == []
    assert "clock" not in output


def test_the_settings_of_the_service_apply(issuer: Issuer, environment: pytest.MonkeyPatch) -> None:
    """The command verifies a token with the service's profile, algorithms, and maximum length."""
    token = make_token(claims(issuer.url), typ="JWT")
    assert run(token)[0] == 1

    environment.setenv(f"{PREFIX}PROFILE", "generic")
    assert run(token)[0] == 0
    environment.setenv(f"{PREFIX}MAX_LENGTH", "20")
    assert run(token)[1].startswith("rejected: too_long")
    environment.setenv(f"{PREFIX}MAX_LENGTH", "2000")
    environment.setenv(f"{PREFIX}ALGORITHMS", "ES256")
    assert "  alg: expected ES256; the token has RS256\n" in run(token)[1]


def test_all_sources_of_settings_are_read(issuer: Issuer, environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """OpenTelemetry's configuration file takes precedence over environment variables."""
    file = tmp_path / "otel.yaml"
    section = {"instrumentation/development": {"python": {"token_relay": {"audience": "billing"}}}}
    file.write_text(json.dumps({"file_format": "1.0"} | section), "utf-8")
    environment.setenv("OTEL_CONFIG_FILE", str(file))

    status, output, _ = run(make_token(claims(issuer.url, aud="billing")))

    assert status == 0, output


# Clocks


@pytest.mark.parametrize(
    ("ahead", "changes", "reason", "clock", "advice"),
    [
        pytest.param(
            312,
            {"iat": 312},
            "not_yet_valid",
            "The issuer's clock is 31",
            "Synchronize the clocks of the issuer and this machine.",
            id="issuer ahead",
        ),
        pytest.param(
            -312,
            {"exp": -100},
            "expired",
            "The issuer's clock is 31",
            "Synchronize the clocks of the issuer and this machine.",
            id="issuer behind",
        ),
        pytest.param(
            0,
            {"nbf": 312},
            "not_yet_valid",
            "The issuer's clock and",
            "The issuer has issued the token for later use.",
            id="later",
        ),
        pytest.param(
            0, {"exp": -100}, "expired", "The issuer's clock and", "The caller must get a new token.", id="expired"
        ),
        pytest.param(312, {"exp": -100}, "expired", "The issuer's", "The caller must get a new token.", id="both"),
    ],
)
def test_the_clocks_are_compared(
    issuer: Issuer, ahead: int, changes: dict[str, int], reason: str, clock: str, advice: str
) -> None:
    """The command compares the issuer's clock with the local clock and gives matching advice."""
    now = int(time.time())

    def behave(handler: BaseHTTPRequestHandler, path: str) -> bool:
        handler.date_time_string = lambda timestamp=None: _date(now + ahead)  # type: ignore[method-assign]
        return False

    issuer.behave = behave
    status, output, _ = run(make_token(claims(issuer.url, **{name: now + by for name, by in changes.items()})))

    assert status == 1
    assert output.startswith(f"rejected: {reason}\n")
    assert f"  {clock}" in output
    assert f"  What to do: {advice}" in output
    if ahead:
        assert f" s {'ahead of' if ahead > 0 else 'behind'} this machine's clock.\n" in output


def _date(seconds: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


def test_only_the_issuer_of_the_token_is_asked(issuer: Issuer, environment: pytest.MonkeyPatch) -> None:
    """Only the issuer of the token is contacted, because other issuers might be unavailable."""
    environment.setenv(f"{PREFIX}ISSUERS", f"http://127.0.0.1:{unused_port()},{issuer.url}")

    status, document = run_json(make_token(claims(issuer.url)))

    assert status == 0
    assert [one["issuer"] for one in document["issuers"]] == [issuer.url]
    assert document["clock_difference"] is not None


def test_all_issuers_are_asked_about_a_token_of_an_unknown_issuer(
    issuer: Issuer, environment: pytest.MonkeyPatch
) -> None:
    """An unknown issuer's token is rejected even if an issuer is unavailable, and no clocks are compared."""
    other = f"http://127.0.0.1:{unused_port()}"
    environment.setenv(f"{PREFIX}ISSUERS", f"{other},{issuer.url}")

    status, document = run_json(make_token(claims(f"{issuer.url}/")))

    assert (status, document["reason"]) == (1, "unknown_issuer")
    assert document["cause"]["problem"].endswith("(an extra trailing slash)")
    assert [(one["issuer"], one["state"]) for one in document["issuers"]] == [
        (other, "no_response"),
        (issuer.url, "ok"),
    ]
    assert document["clock_difference"] is None


# Unavailable endpoints


@pytest.mark.parametrize(
    ("fault", "result", "advice"),
    [
        pytest.param("down", "connection refused", "can reach the issuer", id="down"),
        pytest.param("fail", "status 503", "Correct the endpoint", id="503"),
        pytest.param("keys", "the key set is empty", "Correct the endpoint", id="no keys"),
        pytest.param("metadata", "the document specifies a different issuer", "Correct the endpoint", id="metadata"),
    ],
)
def test_without_keys_the_status_is_3(
    issuer: Issuer, environment: pytest.MonkeyPatch, fault: str, result: str, advice: str
) -> None:
    """If no keys are available, the exit status is 3, and the result for each endpoint is printed."""
    url = issuer.url
    if fault == "down":
        url = f"http://127.0.0.1:{unused_port()}"
        environment.setenv(f"{PREFIX}ISSUERS", url)
    elif fault == "fail":
        issuer.behave = issuer.fail
    elif fault == "keys":
        issuer.keys = []
    else:
        issuer.metadata["issuer"] = "https://secret.example"

    status, output, errors = run(make_token(claims(url)))

    assert (status, errors) == (3, "")
    assert output.startswith("unavailable\n  The issuer's keys are not available, so no token can be verified.\n")
    assert f"  metadata {url}/.well-known/openid-configuration: " in output
    assert f": {result} (0." in output
    assert advice in output
    assert "secret" not in output
    assert run_json(make_token(claims(url)))[1]["result"] == "unavailable"


# Claims


def test_claims_of_an_accepted_token(issuer: Issuer) -> None:
    """A string claim is printed as plain text and any other claim as JSON, with special characters escaped."""
    values = {"sub": "a\u00e9b", "roles": ["a", "\x1b[31m"], "admin": False, "nothing": None, "https://a/org": {"x": 1}}
    token = make_token(claims(issuer.url, exp=2_000_000_000, **values))

    status, output, _ = run(token, "--claims", *values, "exp", "absent")

    assert status == 0
    assert output.endswith(
        f"{AGREE}"
        "  sub: a\\xe9b\n"
        '  roles: ["a", "\\u001b[31m"]\n'
        "  admin: false\n"
        "  nothing: null\n"
        '  https://a/org: {"x": 1}\n'
        "  exp: 2000000000\n"
        "  absent: (absent)\n"
    )


def test_a_nested_claim(issuer: Issuer) -> None:
    """A dot in a claim's name separates the names of nested members, as in the settings."""
    token = make_token(claims(issuer.url, realm_access={"roles": ["reader"]}))

    assert '  realm_access.roles: ["reader"]\n' in run(token, "--claims", "realm_access.roles")[1]


def test_claims_of_a_rejected_token_are_marked(issuer: Issuer) -> None:
    """Claims of a rejected token are marked as unverified, because an attacker can choose their values."""
    token = make_token(claims(issuer.url), name="second")

    status, output, _ = run(token, "--claims", "sub")

    assert status == 1
    assert output.startswith("rejected: bad_signature\n")
    assert output.endswith("\n  unverified claims:\n    sub: alice\n")
    assert run_json(token, "--claims", "sub")[1]["claims_verified"] is False


def test_claims_that_cannot_be_read_are_absent() -> None:
    """Claims of a malformed token are printed as absent."""
    assert run("a.b.c", "--claims", "sub")[1].endswith("  unverified claims:\n    sub: (absent)\n")


# JSON


def test_the_document_of_an_accepted_token(issuer: Issuer) -> None:
    """The JSON for an accepted token has documented keys, and numbers and constants keep their types."""
    status, document = run_json(
        make_token(claims(issuer.url, exp=2_000_000_000, a=None)), "--claims", "sub", "exp", "a", "b"
    )

    (one,) = document.pop("issuers")
    assert status == 0
    assert abs(document.pop("clock_difference")) < 2
    assert document == {
        "result": "accepted",
        "reason": None,
        "cause": None,
        "claims": {"sub": "alice", "exp": 2_000_000_000, "a": None},
        "claims_verified": True,
        "advice": None,
        "problems": [],
        "notes": [],
    }
    assert (one["issuer"], one["state"]) == (issuer.url, "ok")
    assert [(e["kind"], e["state"]) for e in one["endpoints"]] == [
        ("metadata", "ok"),
        ("metadata", "unused"),
        ("key set", "ok"),
    ]


def test_the_document_of_a_rejected_token(issuer: Issuer) -> None:
    """The JSON for a rejected token contains the cause as structured data."""
    status, document = run_json(make_token(claims(issuer.url, aud="billing")))

    assert status == 1
    assert (document["result"], document["reason"]) == ("rejected", "wrong_audience")
    assert document["cause"] == {
        "check": "aud",
        "problem": "expected profile-service; the token has billing",
        "expected": ["profile-service"],
        "actual": ["billing"],
        "advice": document["advice"],
    }


# Settings


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        (["ISSUERS"], "Set OTEL_PYTHON_TOKEN_RELAY_ISSUERS."),
        (["AUDIENCE"], "Set OTEL_PYTHON_TOKEN_RELAY_AUDIENCE."),
        (["ISSUERS", "AUDIENCE"], "Set OTEL_PYTHON_TOKEN_RELAY_ISSUERS and OTEL_PYTHON_TOKEN_RELAY_AUDIENCE."),
    ],
)
def test_what_is_not_configured_is_named(
    missing: list[str], advice: str, environment: pytest.MonkeyPatch, issuer: Issuer
) -> None:
    """The command reports missing settings, without which the service rejects every token."""
    for name in missing:
        environment.delenv(f"{PREFIX}{name}")

    status, output, _ = run(make_token(claims(issuer.url)))

    assert status == 1
    assert output == (
        "not configured\n  Verification is not configured, so no token can be verified.\n"
        f"  What to do: {advice}\n"
        f"  problem: {PREFIX}VERIFY: verification cannot start, because {advice[4:-1]}"
        f" {'has' if len(missing) == 1 else 'have'} no valid value; until this is corrected,"
        " requests receive a 503 response\n"
    )
    assert run_json("x")[1]["result"] == "not_configured"


def test_invalid_settings_are_named(environment: pytest.MonkeyPatch) -> None:
    """Invalid settings, which the service replaces with strict values, are reported."""
    environment.setenv(f"{PREFIX}ALGORITHMS", "HS256")

    status, output, _ = run("x")

    assert status == 1
    assert f"  What to do: Set {PREFIX}ALGORITHMS.\n" in output
    assert f"  problem: {PREFIX}ALGORITHMS: expected one or more of RS256," in output


def test_verification_that_is_switched_off_is_named(environment: pytest.MonkeyPatch, issuer: Issuer) -> None:
    """If verification is disabled, a note states that the service does not verify tokens."""
    environment.delenv(f"{PREFIX}VERIFY")

    status, output, _ = run(make_token(claims(issuer.url)))

    assert status == 0
    assert output.endswith(f"  note: {PREFIX}VERIFY is off, so the service does not verify any request.\n")


def test_without_the_extra_it_is_named(environment: pytest.MonkeyPatch) -> None:
    """If PyJWT, which is optional, is missing, the command names the extra to install."""
    for name in [n for n in sys.modules if n.split(".")[0] == "jwt" or n.startswith("otel_token_relay.verification.")]:
        environment.delitem(sys.modules, name)
    environment.setitem(sys.modules, "jwt", None)

    status, output, _ = run("x")

    assert status == 1
    assert "pip install 'otel-token-relay[verify]'" in output


def test_the_command_line_does_not_import_pyjwt() -> None:
    """The command line does not import PyJWT until a command requires it."""
    code = "import sys; from otel_token_relay import cli; sys.exit('jwt' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Input


def test_bearer_is_removed_with_a_note(issuer: Issuer) -> None:
    """A copied Authorization header is accepted, and a note states that its prefix was removed."""
    status, output, _ = run(f"Authorization: Bearer {make_token(claims(issuer.url))}\n")

    assert status == 0
    assert output.endswith('  note: The "Bearer" prefix was removed from the input.\n')


def test_empty_input_is_a_usage_error() -> None:
    """Empty input is a usage error, whose status differs from the status for a rejected token."""
    status, output, errors = run(" \n")

    assert (status, output) == (2, "")
    assert errors.startswith(
        "otel-token-relay verify: error: standard input contains no token; pass a token, for example: "
    )


@pytest.mark.parametrize("name", ["the token", "Bearer x", "a" * 201])
def test_a_claim_that_looks_like_a_token_is_refused(name: str, issuer: Issuer) -> None:
    """A claim name that looks like a token is rejected without repeating it or contacting the issuer."""
    token = make_token(claims(issuer.url))
    name = token if name == "the token" else name

    status, output, errors = run(token, "--claims", "sub", name)

    assert (status, output) == (2, "")
    assert errors.startswith("otel-token-relay verify: error: argument 2 of --claims looks like a token;")
    assert name not in errors
    assert issuer.hits == []


def test_an_unexpected_error_is_not_a_traceback(environment: pytest.MonkeyPatch, issuer: Issuer) -> None:
    """An unexpected error prints neither a traceback nor its own message, which might contain the token."""
    token = make_token(claims(issuer.url))

    def fail(*arguments: object) -> None:
        raise FetchFailed(token)

    environment.setattr(verify, "_verify", fail)
    status, output, errors = run(token)

    assert (status, output) == (1, "")
    assert errors == "otel-token-relay verify: error: the token could not be verified: FetchFailed\n"


def test_the_settings_of_a_process(issuer: Issuer, environment: pytest.MonkeyPatch) -> None:
    """With ``--pid``, the command uses the environment with which that process was started."""
    token = make_token(claims(issuer.url))
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], env=environment_of(issuer), stdin=subprocess.PIPE
    ) as other:
        environment.setenv(f"{PREFIX}AUDIENCE", "another-service")
        try:
            wait_until(lambda: Path(f"/proc/{other.pid}/environ").read_bytes() != b"")
            with_pid = run(token, "--pid", str(other.pid))
            without = run(token)
        finally:
            other.kill()

    assert (with_pid[0], with_pid[1].splitlines()[0]) == (0, "accepted")
    assert (without[0], without[1].splitlines()[0]) == (1, "rejected: wrong_audience")


def test_a_process_that_cannot_be_read(issuer: Issuer) -> None:
    """A process that cannot be read causes a usage error that contains the process ID."""
    status, output, errors = run(make_token(claims(issuer.url)), "--pid", "999999999")

    assert (status, output) == (2, "")
    assert errors.startswith("otel-token-relay verify: error: ")
    assert "process 999999999 does not exist" in errors


def test_a_terminal_is_asked_and_does_not_show_the_token(issuer: Issuer) -> None:
    """The prompt is written to the terminal without echoing the token, and the result to standard output."""
    token = make_token(claims(issuer.url))
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "otel_token_relay", "verify"],
        env=os.environ | environment_of(issuer),
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        shown = os.read(controller, 1000)
        os.write(controller, token.encode() + b"\n")
        output, _ = process.communicate(timeout=60)
        with contextlib.suppress(OSError):
            while data := os.read(controller, 1000):
                shown += data
    os.close(controller)

    assert process.returncode == 0
    assert shown.startswith(b"Token (not shown): ")
    assert runs_of(token, shown.decode()) == []
    assert output.startswith("accepted\n")


def test_warnings_are_not_printed_twice(issuer: Issuer) -> None:
    """A warning in the output is not printed a second time as a log record."""
    issuer.behave = issuer.fail

    ran = subprocess.run(
        [sys.executable, "-m", "otel_token_relay", "verify"],
        env=os.environ | environment_of(issuer),
        input=make_token(claims(issuer.url)),
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (3, "")


def heed_interrupts() -> None:
    """Restore the default handler for SIGINT, which a shell disables for a background job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt_verify(issuer: Issuer) -> tuple[int, bytes, bytes]:
    """Interrupt the command while it waits for the issuer, and return its exit status, output, and errors."""
    before = len(issuer.hits)
    with subprocess.Popen(
        [sys.executable, "-m", "otel_token_relay", "verify"],
        env=os.environ | environment_of(issuer),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(make_token(claims(issuer.url)).encode())
        process.stdin.close()
        wait_until(lambda: len(issuer.hits) > before, 60)
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
        assert process.stdout is not None
        assert process.stderr is not None
        return status, process.stdout.read(), process.stderr.read()


def test_ctrl_c_while_an_issuer_hangs_ends_quietly(issuer: Issuer) -> None:
    """Pressing Ctrl-C while an issuer hangs ends the process without any output.

    On a busy machine, the command might stop waiting before the signal arrives, so the test makes three attempts.
    """
    issuer.behave = issuer.hang
    results = (interrupt_verify(issuer) for _ in range(3))

    assert next(result for result in results if result[0] != NO_RESPONSE) == (130, b"", b"")


# Output that must never be printed


def test_a_terminal_cannot_be_controlled(issuer: Issuer) -> None:
    """Control sequences, line breaks, and directional marks are escaped in every printed value."""
    hostile = "\x1b]0;owned\x07\x1b[2J\r\nrejected\u202e\x9b1m"
    token = make_token(claims(issuer.url, aud=hostile, sub=hostile, x=[hostile]), kid=None)

    _, output, _ = run(token, "--claims", "aud", "sub", "x")

    assert all(c == "\n" or " " <= c <= "~" for c in output)
    assert "owned" in output
    assert [line for line in output.splitlines() if line.startswith("rejected")] == [output.splitlines()[0]]


def test_a_copy_of_the_token_in_its_claims_is_masked(issuer: Issuer) -> None:
    """A token's own header and other tokens are masked in the printed claims."""
    other = make_token(claims("https://other.example"))
    header = b64({"alg": "RS256", "typ": "at+jwt", "kid": "k1"})
    token = make_token(claims(issuer.url, aud=[header, other], sub=other), kid="k1")

    for arguments in ((), ("--claims", "aud", "sub", "iss"), ("--json", "--claims", "aud", "sub")):
        _, output, _ = run(token, *arguments)

        assert runs_of(token, output) == []
        assert runs_of(other.rpartition(".")[2], output) == []
        assert "[REDACTED]" in output


SIGNATURE = "c2lnbmF0dXJlLXdpdGgtbWFueS1jaGFyYWN0ZXJzLWFuZC1ub3RoaW5nLWVsc2U"
PIECES = st.builds(lambda at, size: SIGNATURE[at : at + size], st.integers(0, 60), st.integers(5, 60))
VALUES = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=5).map("".join)


@settings(max_examples=25)
@given(st.dictionaries(st.sampled_from(["aud", "sub", "scope", "jti", "typ"]), VALUES), VALUES, st.booleans())
def test_no_part_of_any_token_is_printed(changes: dict[str, str], kid: str, as_json: bool) -> None:
    """For any claims and any key, the output never contains 17 consecutive characters of the token."""
    with issuing(public_jwk("RS256", kid)) as issuer, pytest.MonkeyPatch.context() as environment:
        for name, value in environment_of(issuer).items():
            environment.setenv(name, value)
        header = b64({"alg": "RS256", "typ": "at+jwt", "kid": kid})
        token = f"{header}.{b64(claims(issuer.url, **changes))}.{SIGNATURE}"
        _, output, errors = run(
            token, *(["--json"] if as_json else []), "--claims", "aud", "sub", "scope", "jti", "typ"
        )

    assert runs_of(token, output + errors) == []
    assert all(c == "\n" or " " <= c <= "~" for c in output + errors)


@settings(max_examples=50)
@given(st.text(st.characters(codec=None), min_size=1))
def test_any_input_has_a_result(text: str) -> None:
    """Arbitrary input is never repeated and never causes an internal error."""
    status, output, errors = run(text)

    assert status in (1, 2)
    assert "could not be verified" not in errors
    assert all(c == "\n" or " " <= c <= "~" for c in output + errors)
    assert runs_of(text, output) == []


def test_an_opaque_token_is_introspected(issuer: Issuer, environment: pytest.MonkeyPatch) -> None:
    """The introspection endpoint alone verifies an opaque token, and its failure is reported."""
    environment.delenv(f"{PREFIX}ISSUERS")
    environment.setenv(f"{PREFIX}INTROSPECTION_ENDPOINT", f"{issuer.url}/introspect")
    environment.setenv(f"{PREFIX}CLIENT_ID", "me")
    environment.setenv(f"{PREFIX}CLIENT_SECRET", "s3cr3t-of-this-service")
    issuer.introspect = lambda token: {"active": token == "opaque-token", "aud": AUDIENCE, "sub": "alice"}
    status, output, errors = run("opaque-token")
    assert (status, output.splitlines()[0]) == (0, "accepted")

    issuer.behave = issuer.fail
    status, output, errors = run("opaque-token")
    assert status == NO_RESPONSE
    assert "The issuer's keys or its introspection endpoint are not available" in output
    assert f"introspection {issuer.url}/introspect: status 503" in output
    assert "s3cr3t-of-this-service" not in output + errors


def test_an_issuer_that_is_a_name_is_verified_with_its_keys(issuer: Issuer, environment: pytest.MonkeyPatch) -> None:
    """If the issuer is a plain name, only the key set is requested."""
    environment.setenv(f"{PREFIX}ISSUERS", "acme.com")
    environment.setenv(f"{PREFIX}JWKS_URI", f"{issuer.url}/jwks")

    assert run(make_token(claims("acme.com")))[0] == 0
    assert set(issuer.hits) == {"/jwks"}


def test_settings_that_contradict_each_other_are_named(environment: pytest.MonkeyPatch) -> None:
    """Contradictory settings, with which verification cannot start, are reported."""
    environment.setenv(f"{PREFIX}AUDIENCE_CLAIM", "client_id")
    status, output, _ = run(make_token(claims("https://idp.example")))

    assert status == 1
    assert f"{PREFIX}AUDIENCE_CLAIM requires {PREFIX}PROFILE=generic" in output
