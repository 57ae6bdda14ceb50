"""Each section of "Troubleshooting a 401" describes the actual fault and a fix that works."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.test_pages import Block, assert_shows, blocks_of, plain_environment, sessions_of
from tests.support.issuers import wait_until
from tests.support.processes import end, start
from tools.faults.planted import FAULTS, PROFILE_SERVICE, USER_SERVICE, Fault
from tools.faults.running import ROOT, Running

PAGE = ROOT / "docs" / "troubleshooting.md"
TEXT = PAGE.read_text("utf-8")
FIND = "Find the section"


def headings() -> dict[str, int]:
    """Return each heading on the page together with its line number."""
    return {m[1]: TEXT.count("\n", 0, m.start()) + 1 for m in re.finditer(r"^## (.*)$", TEXT, re.MULTILINE)}


def blocks_in(section: str, language: str) -> list[Block]:
    lines = headings()
    first = lines[section]
    last = min((line for line in lines.values() if line > first), default=sys.maxsize)
    return [block for block in blocks_of(PAGE) if block.language == language and first < block.line < last]


class Reader:
    """A reader who replaces the page's addresses and process IDs with those of the running services."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.seen: list[str] = []
        hosts = {
            "127.0.0.1:8000": urlsplit(running.urls[USER_SERVICE]).netloc,
            "127.0.0.1:8001": urlsplit(running.urls[PROFILE_SERVICE]).netloc,
            "127.0.0.1:9400": urlsplit(running.issuer.url).netloc,
        }
        pids = {"4100": str(running.pids[USER_SERVICE]), "4200": str(running.pids[PROFILE_SERVICE])}
        self._replaced = hosts | {f"--pid {pid}": f"--pid {real}" for pid, real in pids.items()}
        self._shown = {real: page for page, real in hosts.items()} | {str(running.folder): "/home/app"}

    def run(self, command: str) -> str:
        """Run a command from the page, and return its output with the page's addresses."""
        command = replace(command, self._replaced)
        output = self._curl(command) if command.startswith("curl ") else self._bash(command)
        self.seen.append(output)
        return replace(output, self._shown)

    def exports(self, block: Block) -> dict[str, str]:
        """Return the variables that a block exports."""
        words = shlex.split(replace(block.text, self._replaced))
        return {name: value for name, equals, value in (word.partition("=") for word in words) if equals}

    def _bash(self, command: str) -> str:
        ran = subprocess.run(
            ["bash", "-c", command],
            env=plain_environment(),
            cwd=self._running.folder,
            timeout=60,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return ran.stdout

    def _curl(self, command: str) -> str:
        words = shlex.split(command)
        assert words[-3:-1] == ["-H", "@header.txt"]
        url = urlsplit(words[-1])
        assert url.netloc == urlsplit(self._running.urls[USER_SERVICE]).netloc
        return f"{self._running.request(words[words.index('-X') + 1] if '-X' in words else 'GET', url.path)}\n"


def replace(text: str, words: dict[str, str]) -> str:
    pattern = "|".join(rf"{re.escape(word)}(?!\d)" for word in words)
    return re.sub(pattern, lambda match: words[match[0]], text)


def correct(running: Running, reader: Reader) -> None:
    """Apply the fix that the fault's section describes."""
    fault = running.fault
    exports = [reader.exports(block) for block in blocks_in(fault.section, "sh")]
    if fault.issuer_is_down:
        assert exports == []
        running.issuer.start()
    elif fault.issuer.get("clock_error"):
        assert exports == []
        running.issuer.clock_error = 0
        running.sign_in()
    else:
        (variables,) = exports
        running.restart(fault.at, variables)


def assert_commands_show(reader: Reader, section: str) -> None:
    sessions = [session for block in blocks_in(section, "console") for session in sessions_of(block)]
    assert sessions
    for command, shown in sessions:
        assert_shows(command, shown, reader.run(command))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.section)
def test_a_section_shows_the_fault_and_its_fix(fault: Fault) -> None:
    """The commands print the output on the page, the fix makes the request succeed, and the token is never printed."""
    with Running(fault) as running:
        reader = Reader(running)
        token = running.token_file.read_text().strip()

        assert running.send().status == fault.status
        assert_commands_show(reader, fault.section)
        logs = [running.log_file(name).read_text() for name in running.urls]
        correct(running, reader)
        # Verification contacts the issuer again ten seconds after a failure.
        wait_until(lambda: running.send().status == 200, seconds=30)

        logs += [running.log_file(name).read_text() for name in running.urls]
        for secret in (token, token.rpartition(".")[2], "nightly-job"):
            assert not any(secret in text for text in (*logs, *reader.seen))


def test_the_procedure_leads_to_a_section() -> None:
    """The commands at the beginning of the page print the output on the page."""
    (fault,) = (fault for fault in FAULTS.values() if fault.section == "The relay is off")
    with Running(fault) as running:
        assert_commands_show(Reader(running), FIND)


def test_every_section_is_tested() -> None:
    """The page has one section for each of the ten faults."""
    assert sorted(headings()) == sorted([FIND, *(fault.section for fault in FAULTS.values())])
    assert sorted(FAULTS) == list(range(1, 11))


def test_the_table_leads_to_every_section() -> None:
    """The table of symptoms contains each section, and each link within the page has a target."""
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings()}
    table = TEXT.partition("| user-service | profile-service | section |")[2].partition("\n\n")[0]

    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
    assert set(re.findall(r"\]\(#([^)]+)\)", table)) == anchors - {"find-the-section"}


def test_the_program_ends_with_its_services() -> None:
    """The program prints the request, the process IDs, and the logs, but no token, and ends cleanly on Ctrl-C."""
    process = start(
        [sys.executable, "-m", "tools.faults", "5"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        lines = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline().decode())
            assert lines[-1], "".join(lines)
        text = "".join(lines)
        pids = [int(pid) for pid in re.findall(r"pid (\d+)", text)]
        logs = [Path(name) for name in re.findall(r"log (\S+)", text)]
        (token_file,) = re.findall(r"token: (\S+)", text)
        assert len(pids) == len(logs) == 2
        assert all(log.exists() for log in logs)
        assert Path(token_file).read_text().strip() not in text

        os.kill(process.pid, signal.SIGINT)

        assert process.wait(30) == 0
        assert process.stdout.read() == b""
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        assert not any(log.exists() for log in logs)
    finally:
        end(process)
        if process.stdout is not None:
            process.stdout.close()


def test_the_program_checks_a_fault() -> None:
    """With ``--check``, the program sends the request once and exits with 0 if the fault occurs."""
    ran = subprocess.run(
        [sys.executable, "-m", "tools.faults", "1", "--check"],
        cwd=ROOT,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("HTTP/1.1 401 Unauthorized\n")
    assert ran.stdout.endswith('\n\n{"error":"invalid_token"}\n')
