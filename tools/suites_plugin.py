"""The pytest plug-in that ``tools/suites.py`` loads into third-party test suites.

The plug-in runs in the suites' environments, so it uses only pytest, the standard library, and, unless the mode is
``off``, the package. The SUITES_MODE variable is the mode, and SUITES_OUTCOMES is the file for the outcomes. If the
run ends early, the file contains the outcomes so far.
"""

from __future__ import annotations

import json
import os
from typing import Any, TextIO

import pytest

# Every host, with every port, over both schemes.
EVERYWHERE = ("https://*:*", "http://*:*")
TOKEN = (
    "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJhdCtqd3QifQ.eyJzdWIiOiJzdWl0ZXMiLCJleHAiOjQ4NzAwMDAwMDB9."
    "c2lnbmF0dXJlLW9mLXRoZS10b2tlbi1vZi1hbGwtdGVzdHM"
)


def switch_on(mode: str) -> None:
    """Install the relay, and in the ``bound`` mode, bind a token to the context of the whole process."""
    if mode == "off":
        return
    from otel_token_relay import Settings, install, use_token

    install(Settings(destinations=EVERYWHERE))
    if mode == "bound":
        global _bound
        _bound = use_token(TOKEN)  # a released context manager would also release the token
        _bound.__enter__()


_bound: Any = None


class Outcomes:
    """Write one line of JSON for each report: the test, its outcome, and the first line of the error."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the outcome of the test, and of its setup or teardown if they do not pass."""
        if report.when == "call" or not report.passed:
            self._write(report.nodeid, outcome_of(report), report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write the outcome of a module that cannot be collected or is skipped."""
        if not report.passed:
            self._write(report.nodeid, "error" if report.failed else "skipped", report)

    def _write(self, test: str, outcome: str, report: Any) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        message = str(getattr(crash, "message", "")).partition("\n")[0] if outcome in ("failed", "error") else ""
        print(json.dumps([test, outcome, message[:300]]), file=self._file, flush=True)


def outcome_of(report: pytest.TestReport) -> str:
    """Return the outcome: passed, failed, error, skipped, xfailed, or xpassed."""
    if report.failed:
        return "failed" if report.when == "call" else "error"
    if hasattr(report, "wasxfail"):
        return "xpassed" if report.passed else "xfailed"
    return str(report.outcome)


def pytest_configure(config: pytest.Config) -> None:
    """Start writing the outcomes."""
    path = os.environ.get("SUITES_OUTCOMES")
    if path is not None:
        config.pluginmanager.register(Outcomes(open(path, "a", encoding="utf-8")))  # noqa: SIM115 - open until the end


# This runs on import, before the import of any module of the suite or its conftest.py.
switch_on(os.environ.get("SUITES_MODE", "off"))
