"""A demonstration on loopback: three services, a third party, and an authorization server.

Everything except the users is real: processes, HTTP, OpenTelemetry, an OAuth server, and its signed
tokens. The servers listen only on loopback, because the authorization server has fixed client secrets
and no login page. Importing this package does not load any of the servers.
"""

from __future__ import annotations

import importlib.util
import signal
from typing import Final

# One module for each package in the extra, so that a missing package is reported before anything starts.
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

_START: Final = "Starting an authorization server, three services and a third party on loopback."


def run(record: str | None = None) -> int:
    """Run the demo and return its exit status.

    Args:
        record: The file to write the calls' spans to; ``None`` to write no file.

    Returns:
        0 if every token reached only services that may receive it and every invalid token was rejected;
        130 after Ctrl-C; 1 otherwise, including if a process did not start.

    Raises:
        ModuleNotFoundError: A package from the ``demo`` extra is missing.
    """
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    try:
        from otel_token_relay.demo.processes import keep_standard_streams_open

        keep_standard_streams_open()
        # Importing the rest takes a second, so first show the user what is happening.
        print(_START, flush=True)  # noqa: T201
        from otel_token_relay.demo.runner import run_demo

        return run_demo(record)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
