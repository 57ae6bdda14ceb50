"""Start verification, then OpenTelemetry, and then the relay in each Python process of the pod.

The operator prepends this file's directory to PYTHONPATH, so Python runs the file at every start. This file
replaces the file with the same name in opentelemetry-instrumentation.
"""

import sys
from pathlib import Path

# At the end of the path, the image's packages do not replace the application's own versions.
sys.path.append(str(Path(__file__).parents[3] / "fallback"))

# Like otel_token_relay.pth in site-packages, wait for the import of the first server.
import _otel_token_relay_startup  # noqa: F401
from opentelemetry.instrumentation.auto_instrumentation import initialize

initialize()

# Load the propagators in OTEL_PROPAGATORS even if an exporter made `initialize` fail.
import opentelemetry.propagate  # noqa: E402, F401
