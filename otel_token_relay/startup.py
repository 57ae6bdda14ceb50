"""Install the server hooks when requests must be verified, even if OpenTelemetry does not start.

OpenTelemetry does not load this package if an exporter or the configuration file is missing, or if Python is started
with ``-I``. Therefore, the wheel contains ``otel_token_relay.pth``, which Python reads whenever it starts. The ``.pth``
file imports this module under the name ``_otel_token_relay_startup`` in the following cases:

* The ``OTEL_PYTHON_TOKEN_RELAY_VERIFY`` variable, or a variable with a similar name, is set.
* The ``OTEL_CONFIG_FILE`` variable is set. The configuration file can contain this package's settings.

This package is not loaded until the process imports a server or a web framework.

Python reads ``.pth`` files only in site-packages directories and ignores them if it is started with ``-S``.
"""

from __future__ import annotations

import sys

# The server and framework packages for which hooks exist. This module cannot import the hook table, which requires
# OpenTelemetry, so it contains its own list.
TRIGGERS = frozenset(
    {
        "aiohttp",
        "bottle",
        "cheroot",
        "daphne",
        "django",
        "falcon",
        "fastapi",
        "flask",
        "gevent",
        "granian",
        "grpc",
        "gunicorn",
        "hypercorn",
        "litestar",
        "pyramid",
        "quart",
        "sanic",
        "starlette",
        "tornado",
        "uvicorn",
        "waitress",
        "werkzeug",
        "wsgiref",
    }
)


class ServerFinder:
    """An import finder that starts this package just before the first server or web framework is imported.

    The finder does not find any modules.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Install the required hooks just before the first package in `TRIGGERS` is imported."""
        if name not in TRIGGERS or self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        try:
            from otel_token_relay.installation import start_before_servers

            start_before_servers()
        except Exception as error:  # an error must not prevent the application from importing its server
            _report(f"otel-token-relay: requests are NOT verified: {type(error).__name__}: {error}\n")


def _report(message: str) -> None:
    try:
        sys.stderr.write(message)
    except Exception:  # standard error might be closed or missing
        return


if __name__ == "_otel_token_relay_startup":
    sys.meta_path.insert(0, ServerFinder())
