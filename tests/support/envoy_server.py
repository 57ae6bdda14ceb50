"""Envoy in front of a service, with the ``jwt_authn`` filter that verifies tokens."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from tests.support import installed
from tests.support.processes import end, start

_TYPES = "type.googleapis.com/envoy.extensions"
_FILTERS = f"{_TYPES}.filters"


@contextmanager
def protecting(http: str, grpc: str, *, issuer: str, audience: str) -> Iterator[str]:
    """Run Envoy on a free loopback port until the block ends, and yield its URL.

    Args:
        http: The service behind Envoy that receives HTTP requests.
        grpc: The service behind Envoy that receives gRPC calls.
        issuer: The only issuer whose tokens Envoy accepts. The issuer's keys are at ``/jwks``.
        audience: The only audience that Envoy accepts.
    """
    program = installed.envoy()
    config = _config(http, grpc, issuer=issuer, audience=audience)
    with tempfile.TemporaryDirectory() as directory:
        address, log = Path(directory, "admin"), Path(directory, "log")
        with log.open("wb") as output:
            process = start(
                [
                    *(str(program), "--config-yaml", json.dumps(config), "--admin-address-path", str(address)),
                    # Without this option, Envoy processes on one machine share memory.
                    *("--disable-hot-restart", "--concurrency", "1", "--log-level", "error"),
                ],
                env=installed.clean_environ(),
                stdout=output,
                stderr=output,
            )
        try:
            yield _wait(process, address, log)
        finally:
            end(process)


def _wait(process: subprocess.Popen[Any], address: Path, log: Path) -> str:
    """Wait until Envoy accepts requests, and return its URL."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if address.exists() and (admin := address.read_text()):
            listeners = _read(f"http://{admin}/listeners?format=json").get("listener_statuses", [])
            if listeners and _read(f"http://{admin}/server_info")["state"] == "LIVE":
                return f"http://127.0.0.1:{listeners[0]['local_address']['socket_address']['port_value']}"
        time.sleep(0.02)
    raise AssertionError(f"Envoy does not serve:\n{log.read_text()}")


def _read(url: str) -> dict[str, Any]:
    with build_opener(ProxyHandler({})).open(url, timeout=10) as response:
        found: dict[str, Any] = json.load(response)
        return found


def _config(http: str, grpc: str, *, issuer: str, audience: str) -> dict[str, Any]:
    jwks = {"uri": f"{issuer}/jwks", "cluster": "issuer", "timeout": "20s"}
    jwt_authn = {
        "@type": f"{_FILTERS}.http.jwt_authn.v3.JwtAuthentication",
        "providers": {
            "issuer": {
                "issuer": issuer,
                "audiences": [audience],
                "remote_jwks": {"http_uri": jwks},
                "forward": True,  # keep the token in the request for the service behind Envoy
            }
        },
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "issuer"}}],
    }
    routes = [
        {"match": {"prefix": "/", "grpc": {}}, "route": {"cluster": "grpc"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "http"}},
    ]
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "billing",
        "codec_type": "AUTO",  # HTTP/1.1, or HTTP/2 without TLS for gRPC
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "jwt_authn", "typed_config": jwt_authn},
            {"name": "router", "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"}},
        ],
    }
    return {
        "admin": {"address": _address("127.0.0.1", 0)},
        "static_resources": {
            "listeners": [
                {
                    "name": "billing",
                    "address": _address("127.0.0.1", 0),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [_cluster("issuer", issuer), _cluster("http", http), _cluster("grpc", grpc, is_http2=True)],
        },
    }


def _cluster(name: str, url: str, *, is_http2: bool = False) -> dict[str, Any]:
    parts = urlsplit(url)
    endpoint = {"endpoint": {"address": _address(str(parts.hostname), parts.port)}}
    cluster: dict[str, Any] = {
        "name": name,
        "connect_timeout": "20s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if is_http2:
        options = {
            "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    return cluster


def _address(host: str, port: int | None) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
