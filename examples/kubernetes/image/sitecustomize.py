"""Start verification, then OpenTelemetry, then the relay, in each Python process of the pod.

The operator puts this file's directory at the beginning of PYTHONPATH, so Python runs it at each start. It replaces
the file of the same name in opentelemetry-instrumentation.
"""

import sys
from pathlib import Path

# At the end of the path: an application's own version of a package takes precedence over the image's.
sys.path.append(str(Path(__file__).parents[3] / "fallback"))

# Does what otel_token_relay.pth does in site-packages, and waits for the first server to be imported.
import _otel_token_relay_startup  # noqa: F401
from opentelemetry.instrumentation.auto_instrumentation import initialize

initialize()

# Loads the propagators that OTEL_PROPAGATORS names, even if `initialize` has failed because of an exporter.
import opentelemetry.propagate  # noqa: E402, F401
