"""The main job on one machine: two services, a third party and an authorization server on loopback.

Everything is real but the users: processes, HTTP, OpenTelemetry, an OAuth server and its signed
tokens. Importing this package loads none of it.
"""

from __future__ import annotations

import importlib.util
from typing import Final

# One module for each package of the extra, so that what is missing is said before anything starts.
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
    "uvicorn",
)


def run() -> int:
    """Run the demo and give its exit status.

    Returns:
        0 where every token was seen by nobody but those it was meant for and every bad one was
        refused, 1 where not or where something did not start, 130 after Ctrl-C.

    Raises:
        ModuleNotFoundError: A package of the extra ``demo`` is missing.
    """
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    from otel_token_relay.demo.runner import play

    return play()
