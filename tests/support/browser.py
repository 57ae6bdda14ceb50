"""Headless Chromium for page tests, from Debian's package, with Playwright and axe-core.

Import the `browser` fixture into a test module. While a browser is open, Playwright runs an event loop in the
worker's main thread. The fixture's scope is the module, so modules that use the fixture cannot contain asynchronous
tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.support.installed import axe, clean_environ

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REQUIRED = "REQUIRE_CHROMIUM"
"""If this variable is set, a test fails instead of being skipped when the browser is missing."""
WIDTHS = (360, 768, 1280)
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

_ARGUMENTS = (
    "--no-sandbox",  # tests can run as root, and the browser loads only pages that the tests wrote
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Chromium reports blocked content to the page, even when it writes nothing to the console.
_COUNT_VIOLATIONS = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", event => {
        window.violations.push(`${event.violatedDirective} blocked ${event.blockedURI}`);
    });
"""
_SERIOUS = ("serious", "critical")


def find_chromium() -> str:
    """Return the program. Skip the test if Chromium is not installed, unless it is required."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        reason = "needs Chromium: apt-get install --no-install-recommends chromium"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that has no open pages."""
    program = find_chromium()
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=_ARGUMENTS, env=clean_environ())
        yield running
        running.close()


@contextmanager
def opened(
    browser: Browser, url: str, *, theme: Literal["light", "dark"] = "light", width: int = 1280, height: int = 800
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page.

    Yields: The page, and a list of its console errors and warnings, exceptions, failed requests, and violations of
        the content security policy. `faults_of` reads the violations.
    """
    context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": height})
    context.add_init_script(_COUNT_VIOLATIONS)
    page = context.new_page()
    faults: list[str] = []

    def note_message(message: Any) -> None:
        if message.type in ("error", "warning"):
            faults.append(f"console {message.type}: {message.text}")

    page.on("console", note_message)
    page.on("pageerror", lambda error: faults.append(f"exception: {error}"))
    page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    try:
        page.goto(url)
        yield page, faults
    finally:
        context.close()


def faults_of(page: Page, faults: list[str]) -> list[str]:
    """Return all faults of a page that `opened` yielded."""
    return [*faults, *page.evaluate("window.violations")]


def run_axe(page: Page) -> list[str]:
    """Return axe-core's serious and critical findings for a page, with one line for each element."""
    # The page's policy blocks additional scripts, except those from the developer tools.
    page.evaluate(axe().read_text("utf-8"))
    results = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{found['impact']}: {found['id']}: {found['help']}: {node['html'][:200]}"
        for found in results["violations"]
        if found["impact"] in _SERIOUS
        for node in found["nodes"]
    ]
