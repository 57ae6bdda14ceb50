"""A program follows the tutorial pages from beginning to end."""

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
# These modules are installed by commands on the page. If a module is missing from the development environment, `nox -s
# quickstarts` tests the page; see noxfile.py.
NEEDS = {"agents.md": ("fastmcp", "mcp"), "observability-vendors.md": ("ddtrace", "logfire", "sentry_sdk")}


def follower(folder: Path) -> Follower:
    if shutil.which("curl") is None:
        pytest.skip("the pages use curl, which is not installed")
    return Follower(folder, clean_environ(BIN) | instrumentations(*USED), installs=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_works_as_written(page: Path, tmp_path: Path) -> None:
    """Every command on the page succeeds and prints the output on the page."""
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
    """Every block on the page is found, and each Python block has a file name."""
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
    """An incorrect page, such as a page with a failing command, causes an error."""
    page = tmp_path / "page.md"
    page.write_text(text, "utf-8")

    with pytest.raises(PageIsWrong, match=re.escape(message)):
        follower(tmp_path).follow(page)
