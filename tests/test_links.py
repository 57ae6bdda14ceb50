"""The program checks the links between pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import links


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What is found", "what-is-found"),
        ("`otel_token_relay.testing`", "otel_token_relaytesting"),
        ("A [link](page.md) in it", "a-link-in-it"),
        ("Verify in the mesh, in the service, or in both", "verify-in-the-mesh-in-the-service-or-in-both"),
        ("Entra & Okta", "entra--okta"),
    ],
)
def test_anchors_are_those_of_github(heading: str, anchor: str) -> None:
    """Anchors follow GitHub's rules: punctuation is removed, each space becomes a hyphen, and underscores remain."""
    assert links.anchor_of(heading) == anchor


@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ("other.md", False),
        ("other.md#a-heading", False),
        ("other.md#a-heading-1", False),
        ("#here", False),
        ("https://elsewhere.example/missing", False),
        ("https://github.com/otel-token-relay/otel-token-relay/blob/main/README.md", False),
        ("missing.md", True),
        ("other.md#missing", True),
        ("other.md#in-code", True),
        ("#missing", True),
        ("https://github.com/otel-token-relay/otel-token-relay/blob/main/missing.md", True),
    ],
)
def test_broken_links_are_found(tmp_path: Path, link: str, is_broken: bool) -> None:
    """A link is broken unless its file exists and its anchor is a heading outside of code."""
    other = "# A heading\n\n## A heading\n\n```sh\n# in code\n```\n"
    (tmp_path / "other.md").write_text(other, "utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n```sh\n[code](missing.md)\n```\n\n[a link]({link})\n", "utf-8")

    assert list(links.broken_links(page)) == ([(7, link)] if is_broken else [])


def test_the_program_names_the_page_and_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program prints one line with the page and line number of each broken link, and exits with status 1."""
    page = tmp_path / "page.md"
    page.write_text("[a link](missing.md)\n", "utf-8")

    assert links.main([str(page)]) == 1
    assert capsys.readouterr().out.endswith(f"{page.name}:1: no target: missing.md\n")
