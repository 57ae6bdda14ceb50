"""Check that each link between Markdown pages has a target file and, if the link contains an anchor, a target heading.

    python tools/links.py [PAGE ...]

The program sends no requests, so links to other sites are not checked, except those to this repository's files on
GitHub. Headings have the same anchors as on GitHub, and the site is configured to use them too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"  # pages on the site use GitHub addresses to link to files outside the site
FILES = re.compile(r"https://github\.com/otel-token-relay/otel-token-relay/(?:blob|tree)/main/")

_LINK = re.compile(r"(?<!`)\[(?:[^\]\n]|\](?!\())*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.*?)[ #]*$", re.MULTILINE)
_ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")


def without_code(text: str) -> str:
    """Return a page's text without its fenced blocks, and keep the line numbers."""
    return re.sub(r"^ *```.*?^ *```", lambda match: "\n" * match[0].count("\n"), text, flags=re.M | re.S)


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub assigns to a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # replace a link with its text
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Return all anchors on a page. Repeated headings are numbered."""
    text = without_code(page.read_text("utf-8"))
    seen: Counter[str] = Counter()
    anchors = set(_ANCHOR.findall(text))
    for heading in _HEADING.findall(text):
        anchor = anchor_of(heading)
        anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return frozenset(anchors)


def broken_links(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the target of each broken link on a page."""
    text = without_code(page.read_text("utf-8"))
    for match in _LINK.finditer(text):
        target = match[1]
        base = page.parent
        if repository := FILES.match(target):
            target, base = target[repository.end() :], ROOT
        elif re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (base / unquote(path)).resolve() if path else page
        leaves_the_site = base != ROOT and DOCS in page.parents and DOCS not in file.parents
        if (
            leaves_the_site
            or not file.exists()
            or (anchor and file.suffix == ".md" and unquote(anchor) not in anchors_of(file))
        ):
            yield text.count("\n", 0, match.start()) + 1, match[1]


def main(arguments: list[str]) -> int:
    """Print the broken links, and return 1 if there are any."""
    if arguments:
        pages = [Path(argument).resolve() for argument in arguments]
    else:
        command = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
        pages = [ROOT / name for name in listed if (ROOT / name).exists()]
    broken = [(page, *found) for page in pages for found in broken_links(page)]
    for page, line, target in broken:
        print(f"{page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}:{line}: no target: {target}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
