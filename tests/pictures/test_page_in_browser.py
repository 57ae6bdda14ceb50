"""The page works in Chromium with a keyboard and a screen reader, and makes no requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_token_relay.pictures.page import MAX_HOPS, write_page
from otel_token_relay.pictures.runs import build_run
from otel_token_relay.pictures.spans import read_recording
from otel_token_relay.reasons import Reason
from tests.pictures.test_page import with_texts
from tests.support.browser import THEMES, WIDTHS, browser, faults_of, opened, run_axe
from tests.support.otlp_json import decided, every_outcome, lines_of, make_span, request_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]

WITHHELD = "2 frontend to 7 weather.example withheld: destination_not_listed"


def write(folder: Path, text: str) -> str:
    path = folder / "page.html"
    path.write_text(write_page(build_run(read_recording(text), max_hops=MAX_HOPS)), "ascii")
    return path.as_uri()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_page_is_accessible_and_fits(browser: Browser, tmp_path: Path, theme, width: int) -> None:
    """The page has no accessibility problem, error, horizontal scrolling, or request in any theme or width."""
    requested: list[str] = []
    url = write(tmp_path, every_outcome())
    with opened(browser, url, theme=theme, width=width) as (page, faults):
        page.on("request", lambda request: requested.append(request.url))
        for button in page.get_by_role("button").all():
            button.click()

        assert run_axe(page) == []
        assert faults_of(page, faults) == []
        assert requested == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # Each kind of hop has a distinct arrow, so the page does not rely on color.
        forms = page.eval_on_selector_all(
            "ol > li",
            """items => items.map(item => {
                const style = getComputedStyle(item.querySelector(".hop"));
                const tip = getComputedStyle(item.querySelector(".tip"));
                return [style.strokeDasharray, style.strokeWidth, tip.fill === "none"].join();
            })""",
        )
        assert len(forms) == 7
        assert len(set(forms)) == 6  # two hops are withheld
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[theme]


@pytest.mark.parametrize("use", ["click", "Enter", "Space"])
def test_the_reason_is_shown_on_demand(browser: Browser, tmp_path: Path, use: str) -> None:
    """Clicking a hop, or pressing Enter or the space bar, displays or hides its reason, meaning, and origin."""
    with opened(browser, write(tmp_path, every_outcome())) as (page, faults):
        button = page.get_by_role("button", name=WITHHELD)
        meaning = page.get_by_text(Reason.DESTINATION_NOT_LISTED.meaning)

        def toggle() -> None:
            if use == "click":
                button.click()
                return
            page.keyboard.press("Tab")
            while not button.evaluate("button => button === document.activeElement"):
                page.keyboard.press("Tab")
            assert button.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
            page.keyboard.press(use)

        assert button.get_attribute("aria-expanded") == "false"
        toggle()
        assert button.get_attribute("aria-expanded") == "true"
        assert meaning.is_visible()
        assert page.get_by_text("https://weather.example", exact=True).is_visible()
        assert page.get_by_text("5,000.0 ms after the start of the trace, for 1,000.0 ms").is_visible()
        toggle()
        assert button.get_attribute("aria-expanded") == "false"
        assert not meaning.is_visible()
        assert faults_of(page, faults) == []


def test_what_a_screen_reader_gets(browser: Browser, tmp_path: Path) -> None:
    """The page has a heading, a region for each trace, and buttons with descriptive names."""
    with opened(browser, write(tmp_path, every_outcome())) as (page, _):
        region = page.get_by_role("region", name="Trace 1 of 1")

        assert page.get_by_role("heading", level=1).inner_text() == "Where the token went"
        assert region.get_by_role("list", name="Hops").get_by_role("listitem").count() == 7
        assert region.get_by_role("button", name=WITHHELD, exact=True).count() == 1
        assert page.get_by_role("list", name="Services").get_by_role("listitem").count() == 8
        assert page.get_by_role("list", name="Legend").get_by_role("listitem").count() == 6


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>window.attacked = 1</script>",
        "<img src=x onerror='window.attacked = 1'>",
        "javascript:window.attacked=1//",
        "\u202eeciv\u2066",
        "服务 👩‍👩‍👧 خدمة",
        "__proto__",
        "word" * 60,
    ],
    ids=["script", "image", "link", "reordered", "scripts", "prototype", "long"],
)
def test_malicious_names_are_text(browser: Browser, tmp_path: Path, text: str) -> None:
    """A malicious name in a recording is displayed as text, without executing or loading anything."""
    with opened(browser, write(tmp_path, with_texts(text)), width=360) as (page, faults):
        for button in page.get_by_role("button").all():
            button.click()

        assert page.evaluate("window.attacked") is None
        assert page.locator("img, a, iframe").count() == 0
        assert page.locator("script").count() == 2
        assert page.get_by_role("button").count() == 3
        assert faults_of(page, faults) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_many_hops_and_services(browser: Browser, tmp_path: Path) -> None:
    """With 2,000 hops to 100 services, every hop is drawn, and the page fits the width of the screen."""
    spans = [
        make_span(f"{n:x}", at=n, peer__service=f"service-{n % 100}", **decided("relayed")) for n in range(1, 10_001)
    ]
    with opened(browser, write(tmp_path, lines_of(request_of("a", *spans))), width=360) as (page, faults):
        assert page.get_by_role("button").count() == 2000
        assert page.get_by_text("Shown: 2,000 of 10,000 hops, 1 of 1 trace.").is_visible()
        assert faults_of(page, faults) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360
