"""The tests on the page about testing pass unchanged in a separate test suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.test_pages import blocks_of

pytest_plugins = "pytester"

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def test_the_tests_of_the_page_pass(pytester: pytest.Pytester) -> None:
    """Each block that contains tests passes as a separate file."""
    files = [block for block in blocks_of(PAGE) if "\ndef test_" in block.text]
    assert len(files) >= 9
    for block in files:
        pytester.path.joinpath(f"test_line_{block.line}.py").write_text(block.text, "utf-8")
    pytester.makefile(".ini", pytest="[pytest]\nstrict = true\naddopts = -p no:cacheprovider -p no:xdist\n")

    result = pytester.runpytest_subprocess("-W", "error", timeout=180)

    result.assert_outcomes(passed=len(files))


def test_every_fixture_is_on_the_page() -> None:
    """The table contains every fixture of the plug-in."""
    from otel_token_relay import pytest_plugin

    page = PAGE.read_text("utf-8").partition("| fixture |")[2].partition("\n\n")[0]

    assert sorted(line.split("`")[1] for line in page.splitlines() if line.startswith("| `")) == sorted(
        pytest_plugin.__all__
    )
