"""Follow a page as a reader would: write its files, run its commands, and compare their output with the page.

    python tools/quickstarts.py [PAGE ...]

If no pages are given, the program follows those that have a title on a fenced block. Each page gets a new directory
and a new virtual environment outside the checkout. `pip install` runs there as on the page, except that it installs
this checkout's wheel as otel-token-relay. The program prints one line for each page, and exits with status 1 if a
page is wrong.

The first word after a fence is the language. A block's title determines its purpose:

- `python title="NAME.py"`: a file
- `sh title="Terminal N"`: commands that start a server, which runs until the page ends
- `text title="Terminal N"`: lines that this terminal printed, in this order
- `sh` and `console` without a title: commands that end, where each line that starts with `$` is followed by its output

Ports are replaced with free ones, both in the commands and in the expected output.
"""

from __future__ import annotations

import argparse
import contextlib
import doctest
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS_TO_START = 180  # time limits, not measurements
SECONDS_TO_RUN = 600
PORTS = re.compile(r"(?<![\w.])(8000|8001|8002|9400|50051)(?!\w)")

_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"\n]+)\")?[ ]*\n(.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)
_MARK = "--- end of the command ---"
# Output that differs between two runs: a line's time and trace, and a request's duration.
_VARIES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z|(?<=trace_id=)[0-9a-f]{32}")


class PageIsWrong(Exception):
    """A failed command, or output that differs from the page."""


class Block(NamedTuple):
    """One fenced block."""

    language: str
    title: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks on a page."""
    return [Block(m[1], m[2] or "", m[3]) for m in _FENCE.finditer(page.read_text("utf-8"))]


def followed_pages() -> list[Path]:
    """Return the pages that have a file or a terminal."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return [page for page in pages if any(block.title for block in blocks_of(page))]


def sessions_of(text: str) -> list[tuple[str, str]]:
    """Return each command in a console block with its output on the page."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    if parts[0]:
        raise PageIsWrong(f"a console block must start with a command: {parts[0]!r}")
    return list(zip(parts[1::2], parts[2::2], strict=True))


def clean_environ(bin_folder: Path) -> dict[str, str]:
    """Return a plain shell's environment in which the virtual environment is active."""
    ours = ("OTEL_", "PYTHON", "VIRTUAL_ENV", "COVERAGE")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return environ | {"PATH": f"{bin_folder}{os.pathsep}{environ['PATH']}", "PYTHONUNBUFFERED": "1"}


class Follower:
    """A reader of one page, with a directory and a shell environment.

    Args:
        folder: An empty directory for the page's files.
        environ: The environment for each command.
        installs: Whether to run `pip install`.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str], *, installs: bool) -> None:
        self._folder = folder
        self._environ = dict(environ)
        self._installs = installs
        self._ports: dict[str, str] = {}
        self._files: dict[str, str] = {}
        self._logs: dict[str, Path] = {}

    def follow(self, page: Path) -> int:
        """Follow the page, and return the number of blocks.

        Raises:
            PageIsWrong: A command or an output differs from the page.
        """
        blocks = blocks_of(page)
        text = page.read_text("utf-8")
        self._ports = {port: _unused_port() for port in sorted(set(PORTS.findall(text)))}
        with ExitStack() as stack:
            for block in blocks:
                self._do(block, stack)
        return len(blocks)

    def _do(self, block: Block, stack: ExitStack) -> None:
        if block.language == "python":
            if block.title:
                self._files[block.title] = block.text
                (self._folder / block.title).write_text(self._with_free_ports(block.text), "utf-8")
        elif block.language == "text":
            self._compare_log(block)
        elif block.title:
            stack.enter_context(self._server(block))
        elif block.language == "sh":
            commands = [line for line in _joined(block.text) if self._installs or not line.startswith("pip install ")]
            self._run([(command, None) for command in commands])
        elif block.language == "console":
            self._run([(command, shown) for command, shown in sessions_of(block.text)])
        else:
            raise PageIsWrong(f"unknown kind of block: {block.language}")

    @contextlib.contextmanager
    def _server(self, block: Block) -> Iterator[None]:
        log = self._logs[block.title] = self._folder / f"{block.title}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-ec", self._with_free_ports(block.text)],
                cwd=self._folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            named = "".join(text for name, text in self._files.items() if name in block.text)
            for port in sorted(set(PORTS.findall(block.text + named))):
                _wait_until_listening(int(self._ports[port]), process, log)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

    def _run(self, commands: list[tuple[str, str | None]]) -> None:
        """Run commands in one shell, and compare their output; ``None`` means that the page contains no output."""
        lines = (f"{command}\nstatus=$?; echo '{_MARK}'; (exit $status)\n" for command, _ in commands)
        process = subprocess.Popen(
            ["bash", "-c", self._with_free_ports("".join(lines))],
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=SECONDS_TO_RUN)
        except subprocess.TimeoutExpired:
            raise PageIsWrong(f"did not finish within {SECONDS_TO_RUN} seconds: {commands[0][0]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        outputs = self._with_ports_of_page(output).split(f"{_MARK}\n")
        for (command, shown), got in zip(commands, outputs, strict=False):
            if shown is None:
                if process.returncode:
                    raise PageIsWrong(f"$ {command}\n{output[-3000:]}")
            elif not _same(shown, got if got.endswith("\n") or not got else f"{got}\n"):
                raise PageIsWrong(f"$ {command}\n{got}\nexpected\n{shown}\n{self._all_logs()}")

    def _compare_log(self, block: Block) -> None:
        """Find each line of the block in the log, in this order. The program can write the line a moment later."""
        wanted = [_VARIES.sub("...", line) for line in block.text.splitlines()]
        deadline = time.monotonic() + 30
        while True:
            log = self._with_ports_of_page(self._logs[block.title].read_text("utf-8"))
            lines = iter(log.splitlines())
            missing = [line for line in wanted if not any(_same(line, _VARIES.sub("...", got)) for got in lines)]
            if not missing:
                return
            if time.monotonic() > deadline:
                raise PageIsWrong(f"{block.title} did not print\n{missing[0]}\n{self._all_logs()}")
            time.sleep(0.1)

    def _all_logs(self) -> str:
        return "".join(f"== {title}\n{log.read_text('utf-8')[-3000:]}" for title, log in self._logs.items())

    def _with_free_ports(self, text: str) -> str:
        return PORTS.sub(lambda match: self._ports[match[1]], text)

    def _with_ports_of_page(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"(?<!\w){free}(?!\w)", port, text)
        return text


def _joined(text: str) -> list[str]:
    """Return a block's lines, with continued lines joined."""
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def _same(shown: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(shown, got, doctest.ELLIPSIS)


def _unused_port() -> str:
    # These ports are below the range that the system uses for outgoing connections.
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return str(port)


def _wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise PageIsWrong(f"nothing listens on the port:\n{log.read_text('utf-8')[-3000:]}")


def build_wheel(target: Path) -> Path:
    """Build this checkout's wheel and return its path."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = target.glob("otel_token_relay-*.whl")
    return wheel


def _find_uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _files_in(record: str) -> set[str]:
    """Return the lines in a RECORD file that describe modules of the package."""
    return {line for line in record.splitlines() if line.startswith("otel_token_relay/") and ".py," in line}


def follow_in_new_environment(page: Path, wheel: Path) -> int:
    """Follow a page in a new virtual environment, and return the number of blocks."""
    with tempfile.TemporaryDirectory(prefix="quickstart-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        uv = _find_uv()
        venv.create(folder / "venv", with_pip=uv is None)
        environ = clean_environ(folder / "venv" / "bin") | {"PIP_QUIET": "1", "UV_FIND_LINKS": str(wheel.parent)}
        environ["PIP_FIND_LINKS"] = f"{environ.get('PIP_FIND_LINKS', '')} {wheel.parent}".strip()
        if uv is not None:  # the same command, but many times faster
            pip = folder / "venv" / "bin" / "pip"
            pip.write_text(f'#!/bin/sh\nexec {shlex.quote(uv)} pip "$@" --quiet --python "$(dirname "$0")/python"\n')
            pip.chmod(0o755)
        work = folder / "work"
        work.mkdir()
        count = Follower(work, environ, installs=True).follow(page)
        (installed,) = (folder / "venv").glob("lib/python*/site-packages/otel_token_relay-*.dist-info/RECORD")
        with zipfile.ZipFile(wheel) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
            wanted = _files_in(archive.read(record).decode())
        if not wanted <= _files_in(installed.read_text("utf-8")):
            raise PageIsWrong("the installed release of otel-token-relay is not this checkout's")
        return count


def main(arguments: list[str]) -> int:
    """Follow the pages and print the results."""
    parser = argparse.ArgumentParser(prog="python tools/quickstarts.py", description="Follow pages as a reader would.")
    parser.add_argument("pages", nargs="*", type=Path)
    pages = [page.resolve() for page in parser.parse_args(arguments).pages] or followed_pages()
    if shutil.which("curl") is None:
        parser.error("the pages use curl, which is not installed")
    wrong = 0
    with tempfile.TemporaryDirectory() as dist:
        wheel = build_wheel(Path(dist))
        for page in pages:
            try:
                print(f"{page.name}: {follow_in_new_environment(page, wheel)} blocks are correct", flush=True)
            except PageIsWrong as error:
                wrong += 1
                print(f"{page.name}: {error}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
