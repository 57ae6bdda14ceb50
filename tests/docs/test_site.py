"""The site's links have targets, its resources are local, and its pages work in Chromium in both themes."""

from __future__ import annotations

import fcntl
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from tests.support.browser import THEMES, browser, faults_of, opened, run_axe  # noqa: F401 (browser is a fixture)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "zensical.toml"
# These pages contain long tables, code in files and terminals, and docstrings.
REPRESENTATIVE = ("configuration", "docstrings", "quickstarts/agents")
ORDER = ["What it is", "Five minutes", "Quickstarts", "How-to guides", "Reference", "Explanation"]
LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("use", "href"), ("object", "data")}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once for all test workers, and return its folder."""
    if find_spec("zensical") is None:
        pytest.skip("needs zensical")
    # The folder of each worker is in the folder of the whole test run.
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "site"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(ROOT / "docs", folder / "docs")
            shutil.copy(CONFIGURATION, folder)
            ran = subprocess.run(
                [Path(sys.executable).parent / "zensical", "build", "--strict"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
            assert ran.returncode == 0, "\n".join(re.findall(r"\w+\.md:\d+:\d+", ran.stdout + ran.stderr))
            (folder / "built").touch()
    return folder / "build" / "site"


class Links(HTMLParser):
    """A parser that collects a page's anchors, links, and loaded resources."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") != "canonical" and "href" in values:
            self.loaded.append(values["href"])
        self.loaded += [values[name] for name in values if (tag, name) in LOADED]


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Links]:
    return {path.relative_to(site).as_posix(): Links(path) for path in site.rglob("*.html")}


def test_every_page_is_in_the_site(pages: dict[str, Links]) -> None:
    """The site contains each page in docs/."""
    sources = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    expected = {source.with_suffix(".html").as_posix() for source in sources if source.parts[0] != "changes"}

    assert expected | {"404.html"} == set(pages)


def test_every_link_has_a_target(pages: dict[str, Links], site: Path) -> None:
    """Each link within the site leads to an existing file and, if it has a fragment, to an existing element."""
    broken = set()
    for name, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme or link.startswith(("//", "/")) or name == "404.html":
                continue  # the error page uses absolute links
            target = urlsplit(urljoin(name, link))
            path, anchor = unquote(target.path) or name, unquote(target.fragment)
            if path.endswith("/"):
                path += "index.html"
            is_missing = path not in pages and not (site / path).is_file()
            if is_missing or (anchor and path in pages and anchor not in pages[path].anchors):
                broken.add((name, link))

    assert broken == set()
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, Links], site: Path) -> None:
    """All scripts, styles, fonts, and images are files on the site."""
    loaded = {(name, url) for name, page in pages.items() for url in page.loaded}
    styles = {url for path in site.rglob("*.css") for url in re.findall(r"url\(([^)]+)\)", path.read_text("utf-8"))}

    assert {(name, url) for name, url in loaded if urlsplit(url).netloc} == set()
    assert {url for url in styles if re.match(r"[\"']?(https?:)?//", url)} == set()
    assert len(loaded) > 100


def navigation() -> list[dict[str, Any]]:
    nav: list[dict[str, Any]] = tomllib.loads(CONFIGURATION.read_text("utf-8"))["project"]["nav"]
    return nav


def pages_of(items: list[dict[str, Any]]) -> Iterator[str]:
    for item in items:
        for value in item.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_the_navigation_has_the_order_of_a_first_visit() -> None:
    """The navigation is in the order in which a new reader needs the pages."""
    assert [title for item in navigation() for title in item] == ORDER


def test_every_page_is_in_the_navigation_once() -> None:
    """Each page appears in the navigation exactly once."""
    linked = sorted(pages_of(navigation()))
    sources = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    expected = {source.as_posix() for source in sources if source.parts[0] != "changes"}

    assert len(linked) == len(set(linked))
    assert set(linked) == expected


# Browser tests


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    """Serve the site and return its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def wait_until_complete(page: Page) -> None:
    """Wait until the theme's scripts have added their elements, because axe-core does not wait for them."""
    page.wait_for_load_state("networkidle")
    page.evaluate(
        """new Promise(done => {
            let timer;
            const wait = () => { clearTimeout(timer); timer = setTimeout(done, 500); };
            new MutationObserver(wait).observe(document, {subtree: true, childList: true, attributes: true});
            wait();
        })"""
    )


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("theme", THEMES)
def test_representative_pages_have_no_barriers(browser: Browser, url: str, theme: Any) -> None:  # noqa: F811
    """In both themes, axe-core finds no serious problem, the console has no error, and no other origin is contacted."""
    findings = {}
    requested: set[str] = set()
    for name in REPRESENTATIVE:
        with opened(browser, "about:blank", theme=theme) as (page, faults):
            page.on("request", lambda request: requested.add(urlsplit(request.url).netloc))
            page.goto(f"{url}/{name}.html")
            wait_until_complete(page)
            findings[name] = run_axe(page) + faults_of(page, faults)

    assert findings == {name: [] for name in REPRESENTATIVE}
    assert requested == {urlsplit(url).netloc}


def search(page: Page, words: str) -> None:
    page.keyboard.press("/")
    page.keyboard.type(words)


@pytest.mark.parametrize("from_disk", [False, True], ids=["from a server", "from disk"])
def test_search_finds_a_setting(browser: Browser, url: str, site: Path, from_disk: bool) -> None:  # noqa: F811
    """Searching for a setting finds the configuration page, with and without a server."""
    start = (site / "index.html").as_uri() if from_disk else f"{url}/index.html"
    with opened(browser, start) as (page, faults):
        page.wait_for_load_state("networkidle")
        search(page, "OTEL_PYTHON_TOKEN_RELAY_LEEWAY")
        page.wait_for_selector('a[href*="configuration.html"]:visible:has-text("onfiguration")')
        found = faults_of(page, faults)

    assert found == []


def test_the_reader_can_switch_the_theme(browser: Browser, url: str) -> None:  # noqa: F811
    """The switch in the header selects the light theme and then the dark theme, and the choice is stored."""
    with opened(browser, f"{url}/index.html") as (page, faults):
        page.wait_for_load_state("networkidle")
        colors = []
        for switch in ("__palette_1", "__palette_2"):
            page.locator(f'label[for="{switch}"]:visible').click()
            colors.append(background(page))
        page.goto(f"{url}/why.html")
        kept = background(page)
        found = faults_of(page, faults)

    assert colors[0] != colors[1] == kept
    assert found == []
