"""A service with OpenTelemetry's Prometheus exporter that relays, withholds, exchanges, accepts, and rejects tokens.

The program prints the exporter's address and sends requests to itself until it is stopped.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import prometheus_client
import urllib3
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider

from otel_token_relay import Settings, install
from tests.support import tokens
from tests.support.issuers import bearer, issuing
from tests.support.loopback import party
from tests.support.token_endpoint import SECRET, serving


class Quiet(WSGIRequestHandler):
    """A request handler that writes no access log."""

    def log_message(self, format: str, *args: Any) -> None: ...


def main() -> None:
    """Serve until the process is stopped."""
    metrics.set_meter_provider(MeterProvider(metric_readers=[PrometheusMetricReader()]))
    exporter, _ = prometheus_client.start_http_server(0, "127.0.0.1")
    key = tokens.public_jwk("RS256", "k1")
    with party() as listed, party() as unlisted, party() as billing, party() as broken, contextlib.ExitStack() as stack:
        issuer = stack.enter_context(issuing(key))
        endpoint = stack.enter_context(serving())
        issue = endpoint.respond
        endpoint.respond = lambda form: (
            (400, {"error": "invalid_target"}) if form.get("audience") == "broken" else issue(form)
        )
        install(
            Settings(
                destinations=[listed.url, f"{billing.url};audience=billing", f"{broken.url};audience=broken"],
                verify="enforce",
                issuers=[issuer.url],
                audience=[tokens.AUDIENCE],
                verify_exclude=["/healthz", "/metrics"],  # the exporter runs in the same process
                token_endpoint=endpoint.url,
                client_id="user-service",
                client_secret=SECRET,
            )
        )
        pool = urllib3.PoolManager()

        def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            for destination in (listed, unlisted, billing, broken):
                pool.request("GET", destination.url)
            start_response("200 OK", [])
            return [b""]

        server = make_server("127.0.0.1", 0, application, handler_class=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        sys.stdout.write(f"http://127.0.0.1:{exporter.server_port}\n")
        sys.stdout.flush()
        while True:
            for headers in (bearer(issuer), bearer(issuer, aud="another-service"), {}):
                pool.request("GET", url, headers=headers)
            pool.request("GET", f"{url}/healthz")
            time.sleep(0.2)


if __name__ == "__main__":
    main()
