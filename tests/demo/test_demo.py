"""The demo as users run it, and its detection of faults."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import otel_token_relay
from otel_token_relay import BearerToken
from otel_token_relay.demo.hops import Call, Hop, find_faults, join_hops, read_spans
from otel_token_relay.demo.processes import Signals
from otel_token_relay.demo.recorder import Note, digest, take_note
from otel_token_relay.demo.token_checks import Outcome, TokenCheck, find_fault, tamper

COMMAND = [sys.executable, "-m", "otel_token_relay", "demo"]
LISTED = frozenset({"profile-service"})


def find_processes(mark):
    """Return the processes that have *mark* in their environment, which children inherit."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the demo with settings that must not affect it. All processes are ended."""
    mark = f"MARK={tmp_path}".encode()
    environment = os.environ | {
        "MARK": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": "http://*",
        "OTEL_SDK_DISABLED": "true",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "80",
    }
    started = []

    def start(cwd=None, **changes):
        process = subprocess.Popen(
            COMMAND, env=environment | changes, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process, lambda: find_processes(mark)

    yield start

    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    for number in find_processes(mark):
        os.kill(number, signal.SIGKILL)


def test_demo_shows_every_hop_and_succeeds(start, tmp_path):
    """The demo prints one line for each hop, without a token, exits with 0 and leaves nothing behind."""
    process, survivors = start()

    output, _ = process.communicate(timeout=120)

    assert process.returncode == 0, output
    lines = [tuple(line.split()) for line in output.splitlines()]
    listed = "user-service", "profile-service", "httpx"
    unlisted = "httpx", "withheld", "destination_not_listed", "none"
    of = {
        user: [
            (user, *listed, "relayed", "relayed", user),
            (user, "user-service", "third-party", *unlisted),
            (user, *listed, "relayed", "relayed", user),
            (user, "user-service", "↪", "third-party", *unlisted),
        ]
        for user in ("alice", "bob")
    }
    no_token = "withheld", "no_token", "none"
    assert [line for line in lines if line[:2] == ("alice", "user-service")] == of["alice"] * 2
    assert [line for line in lines if line[:2] == ("bob", "user-service")] == of["bob"]
    assert [line for line in lines if line[:2] == ("anon", "user-service")] == [
        ("anon", *listed, *no_token),
        ("anon", "user-service", "third-party", "httpx", *no_token),
        ("anon", *listed, *no_token),
        ("anon", "user-service", "↪", "third-party", "httpx", *no_token),
    ]
    checks = output[output.index("profile-service verifies") : output.index("✓")]
    assert re.findall(r"^(alice's|bob's|none)(.*?) +(\d{3}.*?) *$", checks, re.MULTILINE) == [
        ("alice's", "", "200 alice"),
        ("alice's", ", expired 1 s after it was issued", "401 invalid_token expired"),
        ("alice's", ", issued for billing-service", "401 invalid_token wrong_audience"),
        ("alice's", ", with a changed signature", "401 invalid_token bad_signature"),
        ("alice's", ", revoked when she signed out", "401 invalid_token inactive"),
        ("none", "", "401               absent"),
        ("bob's", ", signed with the new key", "200 bob"),
        ("alice's", ", signed with the old key", "200 alice"),
    ]
    assert "✓ profile-service accepted every valid token and rejected every other one." in output
    assert "✓ No service received a token that it must not have." in output
    assert "16 hops. 6 had a token" in output
    assert "eyJ" not in output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80
    assert survivors() == []
    assert list(tmp_path.iterdir()) == []


def faults_of(output):
    return [line.strip() for line in re.findall(r"✗ (.*)", output)]


@pytest.fixture
def change(tmp_path):
    """Return a function that makes the demo run a copy of the package with some lines replaced."""
    folder = tmp_path / "broken"
    shutil.copytree(Path(otel_token_relay.__file__).parent, folder / "otel_token_relay")

    def change(**lines):
        for name, changes in lines.items():
            (module,) = (folder / "otel_token_relay").glob(f"*/{name}.py")
            text = module.read_text("utf-8")
            for line, replacement in changes.items():
                assert text.count(line) == 1
                text = text.replace(line, replacement)
            module.write_text(text, "utf-8")
        return {"cwd": folder, "PYTHONPATH": str(folder), "COLUMNS": "200"}

    return change


def test_demo_reports_accepted_invalid_tokens(start, change):
    """The demo exits with 1 and reports each invalid token that was accepted."""
    broken = change(
        claims={'raise TokenRejected("expired")': "pass", 'raise TokenRejected("wrong_audience")': "pass"},
        verifier={'raise TokenRejected("bad_signature")': "pass", 'raise TokenRejected("inactive")': "return {}"},
    )

    process, survivors = start(**broken)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 1, output
    faults = [line.split('": ') for line in faults_of(output)]
    assert [end for _, end in faults] == [
        f"expected 401 invalid_token {reason}, received 200 alice"
        for reason in ("expired", "wrong_audience", "bad_signature", "inactive")
    ]
    assert "eyJ" not in output
    assert "✓" not in output
    assert survivors() == []


def test_demo_reports_a_missed_key_rotation(start, change):
    """The demo exits with 1 if a token signed with the new key is not accepted immediately."""
    broken = change(verifier={"wait = source.wait_for_unknown()": "wait = None"})

    process, _ = start(**broken)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 1, output
    assert faults_of(output) == [
        'profile-service, token "bob\'s, signed with the new key": '
        "expected 200 bob, received 401 invalid_token unknown_key"
    ]


def test_demo_reports_a_token_in_the_output_of_a_service(start, change):
    """The demo exits with 1 if a service printed a token, and names the file and the user."""
    leak = 'print(__import__("otel_token_relay").current_token().reveal(), flush=True)'
    broken = change(profile_service={"await asyncio.sleep(0.05)": leak})

    process, _ = start(**broken)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 1, output
    assert faults_of(output) == [f"profile-service.out contains {user}'s token" for user in ("alice", "bob")]
    assert "eyJ" not in output


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "terminate"]
)
def test_interrupted_demo_leaves_nothing(start, tmp_path, number, status):
    """If the demo is interrupted while its programs start, they are ended and its files are removed."""
    process, survivors = start()
    deadline = time.monotonic() + 60
    while len(survivors()) < 4:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)

    process.send_signal(number)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == status
    assert "Traceback" not in output
    assert survivors() == []
    assert list(tmp_path.iterdir()) == []


def test_signal_is_postponed_while_held():
    """A signal in a held block takes effect at the end of the block, not before."""
    reached = []

    def start_something():
        with Signals() as signals, signals.held():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        start_something()

    assert reached == ["the end of the block"]


def test_second_signal_does_not_interrupt_the_cleanup():
    """Only the first signal raises, with the exit status of a shell; the previous handlers are restored."""
    before = signal.getsignal(signal.SIGTERM)

    def end_twice():
        with Signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as ended:
        end_twice()

    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_program_that_does_not_start_is_named(start, tmp_path):
    """The demo exits with 1, names the program that ended and prints its log; it ends the other programs."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "joserfc.py").write_text("raise RuntimeError('broken on purpose')")

    process, survivors = start(PYTHONPATH=str(broken))
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 1
    assert re.search(r"✗ \S+ ended with status 1", output)
    assert "broken on purpose" in output
    assert survivors() == []


def test_missing_extra_is_named():
    """If a package of the extra is missing, the command says what to install and starts nothing."""
    code = (
        "import importlib.util as util, sys\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'flask' else find(name, package)\n"
        "from otel_token_relay.cli import main\n"
        "sys.exit(main(['demo']))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 2
    assert "pip install 'otel-token-relay[demo]' (flask is missing)" in result.stderr


def test_importing_the_package_loads_nothing_heavy():
    """Neither the command line nor the package of the demo imports libraries that only the demo needs."""
    code = (
        "import sys, otel_token_relay.cli, otel_token_relay.demo\n"
        "print({'rich', 'httpx', 'flask', 'authlib', 'fastapi', 'uvicorn'} & sys.modules.keys())"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.strip() == "set()"


ALICE = Call(trace_id="a" * 32, user="alice", token="digest of alice's")
ANONYMOUS = Call(trace_id="b" * 32, user=None, token=None)


def note_of(receiver, call, *tokens, **changes):
    values = {"span_id": "1" * 16, "client": "python-httpx/0", "credentials": len(tokens)} | changes
    return Note(receiver=receiver, trace_id=call.trace_id, tokens=tokens, **values)


def hop_of(call, note, decision="withheld"):
    return Hop(call=call, sender="user-service", decision=decision, reason="…", redirected=False, note=note)


OWN = ("digest of alice's", "alice")
OTHER = ("digest of bob's", "bob")


def faults_in(*hops):
    return find_faults([ALICE, ANONYMOUS], hops, [hop.note for hop in hops], listed=LISTED)


def test_expected_hops_are_not_faults():
    """It is not a fault if only the listed service received the caller's token."""
    assert (
        faults_in(
            hop_of(ALICE, note_of("profile-service", ALICE, OWN), "relayed"),
            hop_of(ALICE, note_of("third-party", ALICE)),
            hop_of(ANONYMOUS, note_of("profile-service", ANONYMOUS)),
        )
        == []
    )


@pytest.mark.parametrize(
    ("hop", "words"),
    [
        (hop_of(ALICE, note_of("third-party", ALICE, OWN), "relayed"), "third-party received alice's token"),
        (hop_of(ALICE, note_of("profile-service", ALICE, OTHER), "relayed"), "bob's token in a request from alice"),
        (
            hop_of(ANONYMOUS, note_of("profile-service", ANONYMOUS, OWN), "relayed"),
            "alice's token in a request from anonymous",
        ),
        (hop_of(ALICE, note_of("profile-service", ALICE)), "was not received"),
        (hop_of(ALICE, note_of("profile-service", ALICE, OWN)), "the decision was withheld"),
        (hop_of(ANONYMOUS, note_of("profile-service", ANONYMOUS), "relayed"), "the decision was relayed"),
        (hop_of(ALICE, note_of("profile-service", ALICE, OWN, credentials=2), "relayed"), "2 Authorization lines"),
    ],
    ids=["third party", "another user", "anonymous", "missing", "unreported", "only reported", "two lines"],
)
def test_wrong_token_is_a_fault(hop, words):
    """A token that was received by mistake, or that is missing, is reported."""
    faults = faults_in(hop)

    assert faults
    assert any(words in fault for fault in faults)


def test_token_in_a_request_of_no_call_is_a_fault():
    """A token in a request that is not one of the demo's calls is reported."""
    stray = replace(note_of("profile-service", ALICE, OWN), trace_id="")

    assert find_faults([ALICE], [], [stray], listed=LISTED) == [
        "profile-service received alice's token in a request from anonymous"
    ]


@pytest.mark.parametrize("place", ["header", "other header", "path", "query", "body"])
def test_recorder_finds_a_token_in_every_part_of_a_request(place):
    """The note contains the subject and the digest of each token, never the token."""
    token = b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2ln"
    headers = {"header": [(b"authorization", b"Bearer " + token)], "other header": [(b"x-copy", b"=" + token)]}
    scope = {
        "raw_path": b"/" + token if place == "path" else b"/",
        "query_string": b"t=" + token if place == "query" else b"",
        "headers": headers.get(place, []),
    }

    note = take_note("third-party", scope, b'{"t": "' + token + b'"}' if place == "body" else b"")

    assert note.tokens == ((digest(token), "alice"),)
    assert token.decode() not in repr(note)


def span_of(call, span_id, start, status=200, **attributes):
    return {
        "kind": "SpanKind.CLIENT",
        "context": {"trace_id": f"0x{call.trace_id}", "span_id": f"0x{span_id}"},
        "start_time": start,
        "attributes": {"http.status_code": status, **attributes},
        "resource": {"attributes": {"service.name": "user-service"}},
    }


def test_hops_are_joined_when_both_halves_are_there():
    """Spans and notes are joined by span id, in the order of the spans; the result is ``None`` until both exist."""
    first, second = "1" * 16, "2" * 16
    spans = [
        span_of(ALICE, second, "2026-01-01T00:00:01Z"),
        span_of(ALICE, first, "2026-01-01T00:00:00Z", 307, **{"token_relay.decision": "relayed"}),
    ]
    notes = [
        note_of("user-service", ALICE, span_id="0" * 16),
        note_of("profile-service", ALICE, span_id=first),
        note_of("third-party", ALICE, span_id=second),
    ]

    hops = join_hops([ALICE], spans, notes)

    assert [(hop.note.receiver, hop.decision, hop.redirected) for hop in hops] == [
        ("profile-service", "relayed", False),
        ("third-party", "?", True),
    ]
    assert join_hops([ALICE], spans[1:], notes) is None
    assert join_hops([ALICE], spans, notes[:2]) is None
    assert join_hops([ALICE], spans, notes[1:]) is None


def test_spans_are_read_while_they_are_written():
    """Other text between the spans is skipped, and so is an incomplete last span."""
    text = 'a line of a log\n{\n "n": 1\n}\n{"n": {"m": 2}}\n{"n":'

    assert [json.dumps(span) for span in read_spans(text)] == ['{"n": 1}', '{"n": {"m": 2}}']


VALID = TokenCheck(what="alice's", call=ALICE, token=BearerToken("eyJ.e30.c2ln"))
INVALID = replace(VALID, reason="expired")
NONE = TokenCheck(what="none", call=ANONYMOUS, token=None, reason="absent")


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(check=VALID, status=200, name="alice"),
        Outcome(check=INVALID, status=401, error="invalid_token", reason="expired"),
        Outcome(check=NONE, status=401, reason="absent"),
    ],
    ids=["accepted", "rejected", "no token"],
)
def test_expected_outcome_is_not_a_fault(outcome):
    """A caller who is identified correctly, or rejected for the expected reason, is not a fault."""
    assert find_fault(outcome) is None


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome(check=VALID, status=401, error="invalid_token", reason="unknown_key"), "expected 200 alice"),
        (Outcome(check=VALID, status=503, reason="unavailable"), "expected 200 alice, received 503 unavailable"),
        (Outcome(check=VALID, status=200, name="bob"), "expected 200 alice, received 200 bob"),
        (Outcome(check=INVALID, status=200, name="alice"), "expected 401 invalid_token expired, received 200 alice"),
        (
            Outcome(check=INVALID, status=401, error="invalid_token", reason="bad_signature"),
            "received 401 invalid_token bad_signature",
        ),
        (
            Outcome(check=INVALID, status=401, reason="expired"),
            "expected 401 invalid_token expired, received 401 expired",
        ),
        (Outcome(check=NONE, status=401, error="invalid_token", reason="absent"), "expected 401 absent"),
    ],
    ids=[
        "rejected",
        "unavailable",
        "another user",
        "accepted",
        "another reason",
        "no error code",
        "error without token",
    ],
)
def test_unexpected_outcome_is_a_fault(outcome, words):
    """Any other outcome is reported, without the token."""
    fault = find_fault(outcome)

    assert fault is not None
    assert words in fault
    assert "eyJ" not in fault + repr(outcome)


@pytest.mark.parametrize("signature", ["Abc", "Bbc", "-bc"])
def test_tampered_token_differs_in_one_character_of_its_signature(signature):
    """The signed part and the length stay the same."""
    head, _, changed = tamper(f"eyJ.e30.{signature}").rpartition(".")

    assert head == "eyJ.e30"
    assert changed != signature
    assert changed[1:] == signature[1:]
