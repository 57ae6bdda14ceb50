"""The pages that a reader follows from beginning to end, and the program that follows them."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.processes import instrumentations
from tools.quickstarts import ROOT, Follower, PageIsWrong, blocks_of, clean_environ, followed_pages

BIN = Path(sys.executable).parent
NAMES = ("aiohttp-client", "aiohttp-server", "django", "fastapi", "flask", "grpc_client", "grpc_server")
USED = (*NAMES, "httpx", "requests")
PAGES = followed_pages()
# What an installation on the page provides besides the packages of the development environment. If one of them is
# missing, `nox -s quickstarts` follows the page; see noxfile.py.
NEEDS = {"agents.md": ("fastmcp", "mcp"), "observability-vendors.md": ("ddtrace", "logfire", "sentry_sdk")}


def follower(folder: Path) -> Follower:
    if shutil.which("curl") is None:
        pytest.skip("the pages use curl, which is not installed")
    return Follower(folder, clean_environ(BIN) | instrumentations(*USED), installs=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_works_as_written(page: Path, tmp_path: Path) -> None:
    """Every command on the page works, and every output that it quotes is the real one."""
    for module in NEEDS.get(page.name, ()):
        if find_spec(module) is None:
            pytest.skip(f"needs {module}")

    assert follower(tmp_path).follow(page) >= 4


def test_the_followed_pages_are_known() -> None:
    """The five-minute page and all quickstarts are followed."""
    quickstarts = (ROOT / "docs" / "quickstarts").glob("*.md")

    assert {page.name for page in PAGES} >= {"five-minutes.md", *(page.name for page in quickstarts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_of_a_followed_page_is_found(page: Path) -> None:
    """No block has a form that is skipped silently, and each Python block is a file."""
    text = page.read_text("utf-8")
    blocks = blocks_of(page)

    assert len(re.findall(r"^\s*(```|~~~)", text, re.MULTILINE)) == 2 * len(blocks)
    assert all(block.title for block in blocks if block.language in ("python", "text"))
    assert all(f"`{block.title}`" in text for block in blocks if block.language == "python")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```console\n$ echo one\ntwo\n```\n", "expected\ntwo"),
        ("```console\n$ echo one\n```\n", "one"),
        ("```console\n$ echo one\none\n$ false; echo $?\n0\n```\n", "expected\n0"),
        ("```sh\nfalse\n```\n", "false"),
        ('```python title="server.py"\nraise SystemExit("port 8001")\n```\n\n'
         '```sh title="Terminal 1"\npython server.py\n```\n', "nothing listens"),
        ("```ini\n```\n", "unknown kind"),
    ],
    ids=["other output", "output that is not shown", "status", "failing command", "server that ends", "language"],
)  # fmt: skip
def test_a_wrong_page_is_found(text: str, message: str, tmp_path: Path) -> None:
    """A command with another output, a failing command, a server that does not start and unknown blocks are errors."""
    page = tmp_path / "page.md"
    page.write_text(text, "utf-8")

    with pytest.raises(PageIsWrong, match=re.escape(message)):
        follower(tmp_path).follow(page)
