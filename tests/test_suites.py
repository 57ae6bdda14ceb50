"""Other projects' test suites are compared, and unexpected differences are reported. These tests run no suite."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from otel_token_relay import Settings
from otel_token_relay.policy import RelayPolicy
from tools.suites import (
    CONFIGURATION,
    Difference,
    Expected,
    Outcome,
    Suite,
    compare,
    constraints,
    counts_of,
    describe,
    read_configuration,
    read_outcomes,
    read_pins,
    reason_for,
)
from tools.suites_plugin import EVERYWHERE, Outcomes, outcome_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contributing" / "suites.md"


def lines(*reports: tuple[str, str, str]) -> list[str]:
    return [json.dumps(report) for report in reports]


@pytest.mark.parametrize(
    ("off", "on", "expected"),
    [
        pytest.param("passed", "passed", None, id="the same"),
        pytest.param("failed", "failed", None, id="failed in both"),
        pytest.param("passed", "failed", ("passed", "failed"), id="fails only with the relay"),
        pytest.param("failed", "passed", ("failed", "passed"), id="fails only without the relay"),
        pytest.param("passed", None, ("passed", "absent"), id="not run with the relay"),
        pytest.param(None, "error", ("absent", "error"), id="not run without the relay"),
    ],
)
def test_a_test_differs_if_its_outcomes_do(off: str | None, on: str | None, expected: tuple[str, str] | None) -> None:
    """A test differs if its outcomes differ or if it exists in only one mode."""
    before, after = (
        {} if outcome is None else {"test": Outcome(outcome, message)}
        for outcome, message in ((off, "one message"), (on, "another message"))
    )
    found = [(one.off, one.on) for one in compare(before, after)]

    assert found == ([] if expected is None else [expected])


def test_differences_are_sorted_by_name() -> None:
    """Differences are sorted by name, regardless of the order in which the tests ran."""
    found = compare({"b": Outcome("passed", ""), "a": Outcome("passed", "")}, {})

    assert [one.test for one in found] == ["a", "b"]


def test_a_test_has_the_worst_of_its_outcomes() -> None:
    """A test has its worst outcome, so a failed subtest or teardown is a failure even if a later report passes."""
    found = read_outcomes(
        lines(("a", "failed", "wrong"), ("a", "passed", ""), ("b", "passed", ""), ("b", "error", "teardown"))
    )

    assert found == {"a": Outcome("failed", "wrong"), "b": Outcome("error", "teardown")}


def test_addresses_in_the_names_of_tests_are_ignored() -> None:
    """Memory addresses in default parameter names are ignored, because they change in each run."""
    off = read_outcomes(lines(("test[<object at 0x7f5c80>]", "passed", "")))
    on = read_outcomes(lines(("test[<object at 0x7faa10>]", "passed", "")))

    assert len(off) == 1
    assert compare(off, on) == []


@pytest.mark.parametrize(
    ("suite", "mode", "test", "is_expected"),
    [
        pytest.param("flask", "bound", "tests/test_a.py::test_b[x]", True, id="matches"),
        pytest.param("flask", "listed", "tests/test_a.py::test_b[x]", False, id="another mode"),
        pytest.param("starlette", "bound", "tests/test_a.py::test_b[x]", False, id="another suite"),
        pytest.param("flask", "bound", "tests/test_a.py::test_c[x]", False, id="another test"),
        pytest.param("flask", "bound", "tests/test_a.py::test_b", False, id="shorter than the pattern"),
    ],
)
def test_an_entry_is_about_the_tests_that_it_names(suite: str, mode: str, test: str, is_expected: bool) -> None:
    """An entry applies to the tests with its name, in which only the asterisk is special and brackets need no
    escape.
    """
    entry = Expected(
        "flask", ("tests/test_z.py::*", "tests/test_a.py::test_b[*]"), "It compares all headers.", ("bound",)
    )
    found = reason_for([entry], suite, mode, Difference(test, "passed", "failed", ""))

    assert found is (entry if is_expected else None)


def test_expected_differences_take_one_line_per_entry() -> None:
    """Expected differences take one line per entry, and each unexpected difference is listed with its error."""
    entry = Expected("flask", ("tests/test_a.py::*",), "It compares all headers.", ("bound",))
    reasons = {
        Difference("tests/test_a.py::a", "passed", "failed", "headers differ"): entry,
        Difference("tests/test_a.py::b", "passed", "failed", "headers differ"): entry,
        Difference("tests/test_b.py::a", "passed", "failed", "KeyError: 'a'"): None,
        Difference("tests/test_b.py::b", "passed", "failed", ""): None,
    }

    assert list(describe(reasons, {"tests/test_b.py::a"})) == [
        "    expected    2 of tests/test_a.py::*: It compares all headers.",
        "    UNEXPECTED  tests/test_b.py::a: passed → failed (KeyError: 'a')",
        "    unstable    tests/test_b.py::b: passed → failed",
    ]


def test_suites_and_expected_differences_are_read() -> None:
    """Lists in the configuration become tuples, and an entry without modes applies to all modes."""
    suites, expected = read_configuration(
        """
        [[suite]]
        name = "flask"
        requires = ["asgiref"]

        [[expected]]
        suite = "flask"
        tests = ["tests/test_a.py::*"]
        reason = "It compares all headers."
        """
    )

    assert suites == {"flask": Suite(name="flask", requires=("asgiref",))}
    assert expected == [Expected("flask", ("tests/test_a.py::*",), "It compares all headers.", ("listed", "bound"))]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('[[suite]]\nname = "flask"\nrequire = []', id="unknown key of a suite"),
        pytest.param('[[expected]]\nsuite = "flask"\ntests = ["*"]\nreason = "…"', id="unknown suite"),
        pytest.param('[[suite]]\nname = "flask"\n[[expected]]\nsuite = "flask"\ntests = ["*"]', id="no reason"),
        pytest.param("[[suites]]\nname = 'flask'", id="unknown table"),
    ],
)
def test_a_mistake_in_the_configuration_is_an_error(text: str) -> None:
    """A mistake in the configuration, such as a misspelled entry, is an error."""
    with pytest.raises(ValueError, match=r"suites\.toml"):
        read_configuration(text)


def test_pins_are_read_from_a_requirements_file() -> None:
    """Versions are read from a requirements file without hashes, markers, and comments."""
    text = "# comment\nflask==3.1.3 \\\n    --hash=sha256:00\ncolorama==0.4.6 ; sys_platform == 'win32'\n"

    assert read_pins(text) == {"flask": "3.1.3", "colorama": "0.4.6"}


def test_a_required_version_overrides_the_pin() -> None:
    """A suite's own version requirement overrides the project's pinned version."""
    pins = {"flask": "3.1.3", "pytest": "9.2.0", "rich": "15.0.0", "trio": "0.34.0"}

    assert constraints(pins, ["flask[async]==3.1.2", "pytest<9", "trio", "pytest-timeout"]) == [
        "rich==15.0.0",
        "trio==0.34.0",
    ]


def test_counts_name_every_outcome() -> None:
    """The counts list every outcome, and the most frequent outcome comes first."""
    outcomes = {"a": Outcome("passed", ""), "b": Outcome("skipped", ""), "c": Outcome("passed", "")}

    assert counts_of(outcomes) == "2 passed, 1 skipped"


def report(outcome: str, when: str, **attributes: str) -> pytest.TestReport:
    made = pytest.TestReport("test", ("file", 1, "test"), {}, outcome, None, when)  # type: ignore[arg-type]
    vars(made).update(attributes)
    return made


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(report("passed", "call"), "passed", id="passed"),
        pytest.param(report("failed", "call"), "failed", id="failed"),
        pytest.param(report("failed", "teardown"), "error", id="teardown failed"),
        pytest.param(report("skipped", "setup"), "skipped", id="skipped"),
        pytest.param(report("skipped", "call", wasxfail="reason"), "xfailed", id="failed as expected"),
        pytest.param(report("passed", "call", wasxfail="reason"), "xpassed", id="passed unexpectedly"),
    ],
)
def test_the_plugin_names_the_outcome(given: pytest.TestReport, expected: str) -> None:
    """The plug-in uses the outcome names of pytest's summary."""
    assert outcome_of(given) == expected


def test_the_plugin_writes_what_the_comparison_reads(tmp_path: Path) -> None:
    """The plug-in writes each report immediately, except for a passed setup, so the comparison can read it."""
    path = tmp_path / "outcomes.jsonl"
    with path.open("w", encoding="utf-8") as file:
        plugin = Outcomes(file)
        plugin.pytest_runtest_logreport(report("passed", "setup"))
        plugin.pytest_runtest_logreport(report("passed", "call"))

        assert read_outcomes(path.read_text(encoding="utf-8").splitlines()) == {"test": Outcome("passed", "")}


def test_the_mode_lists_every_host() -> None:
    """The mode lists every host on every port, because suites use loopback servers and replaced connections to real
    hosts.
    """
    policy = RelayPolicy(Settings(destinations=EVERYWHERE).entries)

    for scheme, host, port in (("http", "127.0.0.1", 8000), ("https", "example.org", 443), ("http", "localhost", 80)):
        assert policy.find(scheme, host, port) is not None


def test_the_page_lists_every_expected_difference() -> None:
    """The page has a row with the same reason for each expected difference."""
    _, expected = read_configuration(CONFIGURATION.read_text(encoding="utf-8"))
    rows = re.findall(r"^\| `([^`]+)` \| (`.+`) \| ([a-z, ]+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)

    assert rows == [
        (one.suite, ", ".join(f"`{test}`" for test in one.tests), ", ".join(one.modes), one.reason) for one in expected
    ]
