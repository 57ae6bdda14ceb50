"""Hook servers if requests must be verified, even if OpenTelemetry does not start.

A missing exporter, a missing configuration file, or ``python -I`` prevents OpenTelemetry from calling this package.
Therefore, the wheel contains ``otel_token_relay.pth``, which imports this module when each process starts, under the
name ``_otel_token_relay_startup``. The file imports this module only if ``OTEL_PYTHON_TOKEN_RELAY_VERIFY`` may be set
(even under a misspelled name), or if ``OTEL_CONFIG_FILE`` is set, because that file may contain settings. Nothing else
is imported until the process imports a server or a web framework.

Python reads ``.pth`` files only in site-packages, and ignores them when started with ``python -S``.
"""

from __future__ import annotations

import sys

# The packages that contain servers and frameworks for which a hook exists. They are repeated here because the hook
# table cannot be imported without OpenTelemetry.
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
    """An import finder that finds nothing. It starts this package just before the first server is imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Start what the settings enable, if *name* is one of `TRIGGERS`."""
        if name not in TRIGGERS or self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        try:
            from otel_token_relay.installation import start_before_servers

            start_before_servers()
        except Exception as error:  # the application's import continues
            _report(f"otel-token-relay: requests are NOT verified: {type(error).__name__}: {error}\n")


def _report(message: str) -> None:
    try:
        sys.stderr.write(message)
    except Exception:  # standard error may be closed or missing
        return


if __name__ == "_otel_token_relay_startup":
    sys.meta_path.insert(0, ServerFinder())
