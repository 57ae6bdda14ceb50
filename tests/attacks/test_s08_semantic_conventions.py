"""s08: binding the first token does not determine the semantic conventions of the application's instrumentation."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from opentelemetry.instrumentation import _semconv
from otel_token_relay import install, use_token

stability = _semconv._OpenTelemetrySemanticConventionStability
if sys.argv[1] == "chosen before":
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http/dup"
    stability._initialize()
install()
with use_token("callers-token"):
    pass
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
stability._initialize()  # what the first instrumentor of the application does
print(stability._get_opentelemetry_stability_opt_in_mode(_semconv._OpenTelemetryStabilitySignalType.HTTP).value)
"""


@pytest.mark.parametrize(("order", "expected"), [("chosen after", "http"), ("chosen before", "http/dup")])
def test_s08_the_application_chooses_the_conventions_after_a_token_was_bound(order: str, expected: str) -> None:
    """The application can choose its semantic conventions both before and after a token is bound."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, order], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == expected
