"""The demo succeeds when a user runs it, and reports faults."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import otel_token_relay
from otel_token_relay import cli
from otel_token_relay.pictures.runs import build_run
from otel_token_relay.pictures.spans import read_recording
from tools import pictures

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
COMMAND = [sys.executable, "-m", "otel_token_relay", "demo"]
START = "Starting an authorization server, three services, and a third party on loopback."


def find_processes(mark):
    """Return the IDs of processes whose environment, which child processes inherit, contains *mark*."""
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
    """Return a function that starts the demo with settings that must not affect it, and end all processes afterward."""
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

    def start(cwd=None, command=COMMAND, **changes):
        process = subprocess.Popen(
            command, env=environment | changes, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


RESTORED = """
import signal, sys
from otel_token_relay.cli import main
before = signal.getsignal(signal.SIGINT)
status = main(["demo", *sys.argv[1:]])
assert signal.getsignal(signal.SIGINT) is before
sys.exit(status)
"""


def assert_shows_the_sample(output):
    """Assert that the output contains the lines of the sample in the README, in the same order."""
    sample = re.search(r"^\$ otel-token-relay demo\n(.*?)^```", README, re.DOTALL | re.MULTILINE)[1].splitlines()
    lines = iter(line.rstrip() for line in output.splitlines())

    assert len(sample) > 10
    assert [line for line in sample if line != "..." and line not in lines] == []


def test_demo_shows_every_hop_and_succeeds(start, tmp_path):
    """The demo prints a line for each hop without revealing a token, and exits with 0 without leaving anything behind.

    With --record, the demo also writes a recording that `picture` can draw. One test covers both, because a run takes
    seconds.
    """
    process, survivors = start(command=[sys.executable, "-c", RESTORED, "--record", str(tmp_path / "run.json")])

    output, _ = process.communicate(timeout=120)

    assert process.returncode == 0, output
    lines = [tuple(line.split()) for line in output.splitlines()]
    listed = "user-service", "profile-service", "httpx"
    unlisted = "httpx", "withheld", "destination_not_listed", "none"
    of = {
        user: [
            (user, *listed, "relayed", "relayed", user),
            (user, "user-service", "billing-service", "httpx", "exchanged", "exchanged", user),
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
        ("anon", "user-service", "billing-service", "httpx", *no_token),
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
        ("alice's", "", "401 invalid_token wrong_audience"),
    ]
    assert re.findall(r"^(\S+-service) +alice +(.*?) *$", output, re.MULTILINE) == [
        ("profile-service", "user-service, profile-service"),
        ("billing-service", "billing-service"),
    ]
    assert "✓ billing-service accepted exchanged tokens and rejected alice's original token." in output
    assert "✓ profile-service accepted every valid token and rejected every invalid token." in output
    assert "✓ No service received a token that it must not receive." in output
    assert "20 hops. 6 carried the calling user's token." in output
    assert "3 carried a token that was exchanged for billing-service." in output
    assert "third-party received 8 requests, all without a token." in output
    assert_shows_the_sample(output)
    shown = [line.rstrip() for line in pictures.plain(pictures.RECORDING.read_text("utf-8")).splitlines()[1:]]
    lines = iter(line.rstrip() for line in output.splitlines())
    assert [line for line in shown if line not in lines] == []  # run tools/pictures.py --record if this assertion fails
    assert "✗" not in output
    assert "eyJ" not in output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80
    assert survivors() == []
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]
    recorded = (tmp_path / "run.json").read_text("utf-8")
    assert "eyJ" not in recorded
    run = build_run(read_recording(recorded), max_hops=100)
    assert [trace.user for trace in run.traces][:2] == ["alice", "an anonymous caller"]
    assert sorted(trace.user for trace in run.traces[2:]) == ["alice", "bob"]
    assert [(hop.sender, hop.receiver, hop.outcome, hop.reason) for hop in run.traces[0].hops] == [
        ("caller", "user-service", "incoming", ""),
        ("user-service", "profile-service", "relayed", "relayed"),
        ("user-service", "billing-service", "exchanged", "exchanged"),
        ("user-service", "third-party", "withheld", "destination_not_listed"),
        ("user-service", "profile-service", "relayed", "relayed"),
        ("user-service", "third-party", "withheld", "destination_not_listed"),
    ]
    assert run.summary() == "24 hops in 4 traces."
    assert cli.main(["picture", str(tmp_path / "run.json"), "-o", str(tmp_path / "run.html")]) == 0
    assert "eyJ" not in (tmp_path / "run.html").read_text("ascii")


def test_recording_to_a_place_that_cannot_be_written(start, tmp_path):
    """If the recording cannot be written, the demo reports the error and exits with 1 before starting any program."""
    process, survivors = start(command=[*COMMAND, "--record", str(tmp_path / "no" / "run.json")])

    output, _ = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "otel-token-relay: error: cannot write the output: No such file or directory" in output
    assert "alice" not in output
    assert survivors() == []


def faults_of(output):
    return [line.strip() for line in re.findall(r"✗ (.*)", output)]


@pytest.fixture
def change(tmp_path):
    """Return a function that makes the demo run a modified copy of the package."""
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


def test_demo_reports_every_fault(start, change):
    """The demo reports every fault and exits with 1.

    The faults are accepted invalid tokens, a rejected new key, and a token in a service's output. One test covers all
    of them, because a run takes seconds.
    """
    leak = 'print(__import__("otel_token_relay").current_token().reveal(), flush=True)'
    broken = change(
        claims={
            'raise TokenRejected("expired", "exp")': "pass",
            'raise TokenRejected("wrong_audience", claim)': "pass",
        },
        verifier={
            'raise TokenRejected("bad_signature")': "pass",
            'raise TokenRejected("inactive", "active")': "return {}",
            "wait = source.wait_for_unknown()": "wait = None",
        },
        profile_service={"await asyncio.sleep(0.05)": leak},
    )

    process, survivors = start(**broken)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 1, output
    checks = [line.split('": ') for line in faults_of(output) if '": ' in line]
    assert [end for _, end in checks] == [
        *(
            f"expected 401 invalid_token {reason}, received 200 alice"
            for reason in ("expired", "wrong_audience", "bad_signature", "inactive")
        ),
        "expected 200 bob, received 401 invalid_token unknown_key",
        "expected 401 invalid_token wrong_audience, received 200 alice",
    ]
    assert [start for start, _ in checks[-2:]] == [
        "profile-service, token \"bob's, signed with the new key",
        "billing-service, token \"alice's",
    ]
    assert [line for line in faults_of(output) if '": ' not in line] == [
        f"profile-service.out contains {user}'s token" for user in ("alice", "bob")
    ]
    assert "eyJ" not in output
    assert "✓" not in output
    assert survivors() == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "terminate"]
)
def test_interrupted_demo_leaves_nothing(start, tmp_path, number, status):
    """If the demo is interrupted during startup, its programs end and its files are removed."""
    process, survivors = start()
    wait_until(lambda: len(survivors()) > 4, process)

    process.send_signal(number)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == status
    assert "Traceback" not in output
    assert survivors() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("programs", [1, 10], ids=["while it starts", "while it runs"])
def test_killed_demo_leaves_no_process(start, programs):
    """If the demo is killed, all its programs and their guards end."""
    process, survivors = start()
    wait_until(lambda: len(survivors()) > programs, process)

    process.kill()
    process.wait()

    wait_until(lambda: survivors() == [])


def wait_until(condition, process=None):
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_demo_runs_without_standard_streams(start, tmp_path):
    """The demo succeeds without standard streams, as in a cron job, and in a read-only folder."""
    command = ["sh", "-c", '"$@" <&- 2>&-', "sh", *COMMAND]

    process, survivors = start(cwd="/proc", command=command)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 0, output
    assert "✓ No service received a token that it must not receive." in output
    assert survivors() == []
    assert list(tmp_path.iterdir()) == []


def test_demo_without_standard_output_succeeds(start, tmp_path):
    """Without standard output, the demo still succeeds and exits with 0."""
    process, survivors = start(command=["sh", "-c", '"$@" >&-', "sh", *COMMAND])
    output, _ = process.communicate(timeout=120)

    assert (process.returncode, output) == (0, "")
    assert survivors() == []
    assert list(tmp_path.iterdir()) == []


def test_demo_ends_if_its_output_is_not_read(start, tmp_path):
    """If its output is not read, the demo exits with 1, prints no traceback, and leaves nothing behind."""
    process, survivors = start(command=["sh", "-c", '{ "$@"; echo "status $?" >&2; } | head -n 1', "sh", *COMMAND])
    output, _ = process.communicate(timeout=120)

    assert output.splitlines() == [START, "status 1"]
    assert survivors() == []
    assert list(tmp_path.iterdir()) == []


NOT_YET = """
import sys
from importlib.abc import MetaPathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "otel_token_relay.demo.runner":
            raise SystemExit(f"imported: {sorted({'fastapi', 'httpx', 'rich'} & sys.modules.keys())}")

from otel_token_relay.cli import main
sys.meta_path.insert(0, Finder())
sys.exit(main(["demo"]))
"""


def test_demo_says_at_once_that_it_starts(start):
    """The demo prints its first line before it imports slow modules."""
    process, _ = start(command=[sys.executable, "-c", NOT_YET])
    output, _ = process.communicate(timeout=60)

    assert output.splitlines() == [START, "imported: []"]


def test_interrupt_while_modules_are_imported_prints_no_traceback(start):
    """Pressing Ctrl-C during the imports prints no traceback and exits with the status for SIGINT."""
    code = re.sub(r"raise SystemExit\(.*\)", "raise KeyboardInterrupt", NOT_YET)
    process, _ = start(command=[sys.executable, "-c", code])
    output, _ = process.communicate(timeout=60)

    assert (process.returncode, output.splitlines()) == (130, [START])


def test_program_that_does_not_start_is_named(start, tmp_path):
    """If a program fails to start, the demo prints the program's log, ends the other programs, and exits with 1."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "joserfc.py").write_text("raise RuntimeError('broken on purpose')")

    process, survivors = start(PYTHONPATH=str(broken))
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "✗ authorization-server exited with status 1" in output
    assert "broken on purpose" in output
    assert survivors() == []
    assert list(tmp_path.iterdir()) == [broken]


def test_missing_extra_is_named():
    """If a package of the demo's extra is missing, the command prints what to install and starts nothing."""
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
    """Importing the command line or the demo package does not import libraries that only the demo requires."""
    code = (
        "import sys, otel_token_relay.cli, otel_token_relay.demo\n"
        "print({'rich', 'httpx', 'flask', 'authlib', 'fastapi', 'uvicorn'} & sys.modules.keys())"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.strip() == "set()"
