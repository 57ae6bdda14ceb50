"""Demonstrate the relay with three services, a third party, and an authorization server.

The demo simulates only the users. The processes, HTTP requests, OpenTelemetry instrumentation, OAuth server, and signed
tokens are real. The servers listen only on the loopback interface, because the authorization server has hard-coded
client secrets and no login page. Importing this package does not load any of the servers.
"""

from __future__ import annotations

import importlib.util
import signal
from typing import Final

# These modules come from the packages in the ``demo`` extra. The demo checks for these modules before it starts.
_NEEDED: Final = (
    "authlib",
    "cryptography",
    "fastapi",
    "flask",
    "httpx",
    "joserfc",
    "jwt",
    "opentelemetry.distro",
    "opentelemetry.instrumentation.fastapi",
    "opentelemetry.instrumentation.httpx",
    "opentelemetry.sdk",
    "rich",
    "urllib3",
    "uvicorn",
)

_START: Final = "Starting an authorization server, three services, and a third party on loopback."


def run(record: str | None = None) -> int:
    """Run the demo and return its exit status.

    Args:
        record: The path of the file to which the demo writes the calls' spans, or ``None`` to omit the recording.

    Returns:
        0 if the demo found no faults, 130 if the user pressed Ctrl+C, or 1 if the demo found a fault or could not run.

    Raises:
        ModuleNotFoundError: A package from the ``demo`` extra is missing.
    """
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    try:
        from otel_token_relay.demo.processes import keep_standard_streams_open

        keep_standard_streams_open()
        # Print a message first, because importing the other modules takes about a second.
        print(_START, flush=True)  # noqa: T201
        from otel_token_relay.demo.runner import run_demo

        return run_demo(record)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
