"""Measure token exchange: a hop whose token is cached, and the first exchange of a caller's token.

python -m benchmarks.exchange

A cached hop is compared with a hop that relays the caller's verified token on the same client. The first exchange
is compared with a POST of the same form to the same server over an open urllib3 connection.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from statistics import median
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import httpx
import requests
import urllib3
from opentelemetry import context as otel_context

from benchmarks.hops import httpx_timing, urllib3_timing
from benchmarks.measure import FULL, QUICK, Effort, Round, side_by_side
from benchmarks.samples import DESTINATION, OUTGOING, jwt
from otel_token_relay import Settings
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.context import with_token
from otel_token_relay.destinations import Destination
from otel_token_relay.exchange.grants import Request
from otel_token_relay.relay import Relay
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.verification.http_client import shared_client

Figure = tuple[str, float, float]

CACHED_TARGET = 1.5
FIRST_TARGET_SECONDS = 0.0005
PAIRS = 200
SECRET = "a-secret"


class _Verified:
    """A verification that is always valid."""

    claims: Mapping[str, object] = MappingProxyType({})
    expires_at: float | None = None

    def is_still_valid(self) -> bool:
        return True


def figures(quick: bool) -> list[Figure]:
    """Return each figure's name, ratio, and target; the ratio should not exceed the target."""
    with token_server() as url:
        found = list(_cached_hops(url, QUICK if quick else FULL))
        found.append(_first_exchange(url, 5 if quick else PAIRS))
    return found


def _settings(url: str, *destinations: str) -> Settings:
    return Settings(destinations=destinations, token_endpoint=url, client_id="me", client_secret=SECRET)


def _caller(value: str) -> BearerToken:
    token = BearerToken(value, lease=Lease())
    token.mark_verified(_Verified())
    return token


def _cached_hops(url: str, effort: Effort) -> Iterator[Figure]:
    caller = _caller(jwt())
    holding = with_token(caller, otel_context.Context())
    settings = _settings(url, f"{DESTINATION};audience=billing")
    issuer = build_token_source(settings)
    assert issuer is not None
    issuer.obtain(caller, settings.entries[0])
    relays = {"relayed": Relay(Settings(destinations=(DESTINATION,))), "exchanged": Relay(settings, issuer)}
    as_sent = requests.Request("GET", DESTINATION, headers=OUTGOING).prepare().headers
    clients: dict[str, Callable[[Relay | None], Any]] = {
        "httpx": lambda relay: httpx_timing(httpx, relay, holding),
        "urllib3 under requests": lambda relay: urllib3_timing(as_sent, relay, holding),
    }
    for name, timing in clients.items():
        timings = {"bare": timing(None), **{kind: timing(relay) for kind, relay in relays.items()}}
        rounds = side_by_side(timings, effort)
        yield f"{name}: a cached hop, relative to a relayed one", median(map(_ratio, rounds)), CACHED_TARGET


def _ratio(one: Round) -> float:
    return (one["exchanged"] - one["bare"]) / (one["relayed"] - one["bare"])


def _first_exchange(url: str, pairs: int) -> Figure:
    """Return the median of the pairs' differences, relative to the target."""
    settings = _settings(url, f"{DESTINATION};audience=billing")
    destination: Destination = settings.entries[0]
    issuer = build_token_source(settings)
    assert issuer is not None
    pool = urllib3.PoolManager()
    form = urlencode(Request(audience="billing").form(jwt()))
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Authorization": requests.auth._basic_auth_str("me", SECRET),
    }

    def bare(_: int) -> None:
        assert pool.request("POST", url, body=form, headers=headers).json()["access_token"]

    def ours(number: int) -> None:
        issuer.obtain(_caller(f"{number}.{jwt()}".replace("0.", "a", 1)), destination)

    differences = []
    for number in range(-10, pairs):  # the first exchanges open the connections and start the workers
        took = []
        for call in (bare, ours) if number % 2 else (ours, bare):
            started = time.perf_counter()
            call(number + 20)
            took.append((call, time.perf_counter() - started))
        seconds = dict(took)
        if number >= 0:
            differences.append(seconds[ours] - seconds[bare])
    pool.clear()
    shared_client().close()
    name = "first exchange above a bare POST, in half milliseconds"
    return name, median(differences) / FIRST_TARGET_SECONDS, 1.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(
            {
                "access_token": f"issued-{time.time_ns()}",
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "token_type": "Bearer",
                "expires_in": 3600,
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Do not log requests."""


def _serve(ready: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    ready.send(server.server_port)
    server.serve_forever()


@contextmanager
def token_server() -> Iterator[str]:
    """Run a token endpoint in a separate process, and yield its URL."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}/token"
    finally:
        process.terminate()
        process.join()


def main() -> None:
    """Measure and print the figures."""
    for name, ratio, target in figures("--quick" in sys.argv[1:]):
        print(f"  {name:60} {ratio:8.3f}   target {target:.3f}{'' if ratio <= target else '  (missed)'}")


if __name__ == "__main__":
    main()
