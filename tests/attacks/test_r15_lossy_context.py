"""r15: a runtime context that keeps only known values, such as Datadog's, loses the token, which is reported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import RELAY

CONTEXT = """
from opentelemetry.context.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext


class SpansOnly(ContextVarsRuntimeContext):
    def attach(self, context):
        return super().attach(Context({key: value for key, value in context.items() if "span" in key}))
"""
SERVICE = """
from otel_token_relay import install, use_token, current_token
install()
with use_token("callers-token"):
    print(current_token())
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which a package's entry point provides a runtime context that loses tokens."""
    tmp_path.joinpath("spans_only.py").write_text(CONTEXT)
    metadata = tmp_path / "spans_only-1.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: spans-only\nVersion: 1\n")
    metadata.joinpath("entry_points.txt").write_text("[opentelemetry_context]\nspans_only = spans_only:SpansOnly\n")
    destinations = {"OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": "https://profile-service"}
    return {**os.environ, **RELAY, **destinations, "PYTHONPATH": str(tmp_path), "OTEL_PYTHON_CONTEXT": "spans_only"}


def run(*command: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


def test_r15_check_reports_a_context_that_loses_the_token(environ: dict[str, str]) -> None:
    """The `check` command reports a context that loses tokens as a problem and exits with 1."""
    done = run(sys.executable, "-m", "otel_token_relay", "check", environ=environ)
    assert done.returncode == 1
    assert "OTEL_PYTHON_CONTEXT" in done.stdout.partition("Problems")[2]


def test_r15_a_service_reports_it_once_when_it_starts(environ: dict[str, str]) -> None:
    """A service with a context that loses tokens logs a single error and relays no token."""
    done = run(sys.executable, "-c", SERVICE, environ=environ)
    assert done.stdout.strip() == "None", done.stderr
    assert done.stderr.count("OpenTelemetry's context does not keep tokens") == 1
    assert "DD_TRACE_OTEL_ENABLED" in done.stderr
