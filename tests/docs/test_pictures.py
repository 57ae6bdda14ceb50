"""The documentation's pictures are legible in both themes, self-contained, and described on their pages."""

from __future__ import annotations

import html
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from otel_token_relay.errors import RejectReason
from otel_token_relay.reasons import Reason
from tests.support.browser import THEMES, browser, faults_of, opened
from tools import drawing, pictures

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))

# Find text that extends outside the picture, overlaps other text, or crosses the edge of a box.
FIND_FAULTS = """
    () => {
        const inside = (a, b) => a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom;
        const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
        // The boxes of texts include the space between lines.
        const rectangle = element => {
            const {left, right, top, bottom} = element.getBoundingClientRect();
            const margin = element.tagName === "text" ? 2 : 0;
            return {left, right, top: top + margin, bottom: bottom - margin};
        };
        const picture = rectangle(document.documentElement);
        const texts = [...document.querySelectorAll("text")].map(t => [t.textContent, rectangle(t)]);
        const boxes = [...document.querySelectorAll("rect:not(.paper)")].map(rectangle);
        const faults = [];
        texts.forEach(([text, place], number) => {
            if (!inside(place, picture)) faults.push(`${text} leaves the picture`);
            for (const [other, there] of texts.slice(number + 1)) {
                if (!apart(place, there)) faults.push(`${text} overlaps ${other}`);
            }
            for (const box of boxes) {
                if (!apart(place, box) && !inside(place, box) && !inside(box, place)) {
                    faults.push(`${text} crosses the edge of a box`);
                }
            }
        });
        return faults;
    }
"""


def luminance(color: str) -> float:
    """Return the relative luminance as defined in WCAG 2.2."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_pictures_are_current() -> None:
    """Each picture file is the current output of tools/pictures.py, and no other file exists."""
    assert pictures.main(["--check"]) == 0
    assert [file.stem for file in FILES] == sorted(pictures.PICTURES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("theme", THEMES)
def test_texts_do_not_overlap(browser: Browser, file: Path, theme) -> None:
    """With the installed font, no text is truncated, overlaps other text, or crosses a box."""
    with opened(browser, file.as_uri(), theme=theme, width=720, height=640) as (page, faults):
        assert page.evaluate(FIND_FAULTS) == []
        assert faults_of(page, faults) == []
        color = page.evaluate("getComputedStyle(document.querySelector('.paper')).fill")
        expected = file.stem.partition("demo-")[2] or theme
        assert color == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[expected]


@pytest.mark.parametrize("colors", [drawing.LIGHT, drawing.DARK], ids=["light", "dark"])
def test_texts_have_enough_contrast(colors: dict[str, str]) -> None:
    """Every text color has the contrast that WCAG requires for normal text, both on the picture and in boxes."""
    for text, ground in itertools.product(("ink", *drawing.COLORED), ("paper", "panel")):
        assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_pictures_load_nothing(file: Path) -> None:
    """A picture contains no font, script, link, or embedded image."""
    text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")

    assert not re.search(r"@import|@font-face|url\(|<script|href|<image|\bon\w+=", text)


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_are_on_a_page_with_a_description(name: str) -> None:
    """Each picture is used once and has a text alternative."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages)

    used = re.findall(rf'(?:!\[([^\]]+)\]\(|src(?:set)?=")[^)"]*pictures/{name}\.svg', text)
    assert len(used) == 1
    assert len(used[0]) > 20 or name.startswith("demo")


def test_the_decision_tree_has_real_reasons() -> None:
    """The decision tree contains only reasons that the log can contain."""
    reasons = {reason.value for reason in Reason} | {*get_args(RejectReason)}
    named = {word for reason, _ in pictures.CAUSES for word in reason.split(", ")}

    assert named - reasons == {"no line", "another reason"}


def test_the_terminal_shows_what_the_demo_has_printed() -> None:
    """The picture contains every word of the recorded output in the same order."""
    recorded = pictures.plain(pictures.RECORDING.read_text("utf-8")).split()

    drawn = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", (pictures.FOLDER / "demo-dark.svg").read_text("utf-8")))

    assert html.unescape(drawn).split() == recorded
