"""s1: a hop during an export never calls the meter provider, which might hold its lock.

Each test case runs in its own process, because a process has only one global meter provider and a deadlocked thread
cannot be stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# This timeout is long enough for a busy machine. A process that hangs never ends by itself.
PATIENCE = 60

COMMON = """
import sys
import threading
from types import SimpleNamespace

import httpx
import requests
import urllib3
from opentelemetry import context, metrics
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader

from otel_token_relay import Settings, install, use_token
from otel_token_relay.testing import third_party


class LockingProvider(MeterProvider):
    # A plain lock around flushing and requesting a meter, as in logfire's provider.
    def __init__(self, *args, **kwargs):
        self.guard = threading.Lock()
        super().__init__(*args, **kwargs)

    def get_meter(self, *args, **kwargs):
        with self.guard:
            return super().get_meter(*args, **kwargs)

    def force_flush(self, *args, **kwargs):
        with self.guard:
            return super().force_flush(*args, **kwargs)


class Session:
    # The methods of a requests session that the exporter needs, on another client.
    def __init__(self, send):
        self.headers = {}
        self.send = send

    def request(self, method, url, *, data, headers, **_):
        return SimpleNamespace(status_code=self.send(method, url, data, headers), reason="", content=b"", text="")

    def close(self):
        pass


SESSIONS = {
    "requests": requests.Session,
    "urllib3": lambda: Session(lambda m, u, d, h: urllib3.request(m, u, body=d, headers=h, retries=False).status),
    "httpx": lambda: Session(lambda m, u, d, h: httpx.request(m, u, content=d, headers=h, trust_env=False).status_code),
}


class Unsuppressed(OTLPMetricExporter):
    # An exporter without the mark for telemetry's own calls, like one that exports in its own threads.
    def export(self, *args, **kwargs):
        attached = context.attach(Context())
        try:
            return super().export(*args, **kwargs)
        finally:
            context.detach(attached)


def provide(exporter):
    memory = InMemoryMetricReader()
    periodic = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = LockingProvider([memory, periodic], shutdown_on_exit=False)
    provider.get_meter("application").create_counter("orders").add(1)
    metrics.set_meter_provider(provider)
    return provider, memory


def counted(memory, name="token_relay.decisions"):
    data = memory.get_metrics_data()
    return sum(
        point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    )
"""


def run(code: str, *arguments: str, **variables: str) -> list[str]:
    """Run a program, fail if the program hangs, and return the words that the program prints."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", COMMON + code, *arguments],
        cwd=ROOT,
        env=environ | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


FIRST_HOP_IS_AN_EXPORT = """
session, start = sys.argv[1:]
if start == "install first":
    install(Settings())
with third_party() as collector:
    provider, memory = provide(OTLPMetricExporter(collector.url, session=SESSIONS[session]()))
    if start == "install last":
        install(Settings())
    elif start == "propagator":
        import opentelemetry.propagate
    print(provider.force_flush(), len(collector.requests), counted(memory))
    httpx.get(collector.url, trust_env=False)
    print(provider.force_flush(), len(collector.requests), counted(memory))
    provider.shutdown()
"""


@pytest.mark.parametrize(
    ("session", "start"),
    [
        ("requests", "propagator"),
        ("requests", "install first"),
        ("urllib3", "install last"),
        ("httpx", "propagator"),
    ],
)
def test_s01_the_first_hop_of_a_process_is_an_export(session: str, start: str) -> None:
    """If a process's first hop is an export, the export completes, and the application's next request is counted."""
    words = run(FIRST_HOP_IS_AN_EXPORT, session, start, OTEL_PROPAGATORS="tracecontext,token_relay")

    assert words == ["True", "1", "0", "True", "3", "1"]


@pytest.mark.parametrize("parameters", ["", ";required"])
def test_s01_a_suppressed_hop_to_a_listed_destination_requests_no_meter(parameters: str) -> None:
    """A listed collector gets no token, and the export neither fails nor hangs, even with `;required`."""
    words = run(
        """
with third_party() as collector:
    provider, memory = provide(OTLPMetricExporter(collector.url))
    install(Settings(destinations=[collector.url + sys.argv[1]]))
    with use_token("s01-callers-token"):
        print(provider.force_flush(), counted(memory))
    print(len(collector.requests), collector.requests[0].holds("s01-callers-token"))
    provider.shutdown()
""",
        parameters,
    )

    assert words == ["True", "0", "1", "False"]


@pytest.mark.parametrize("start", ["before the provider", "after the provider"])
def test_s01_the_counter_exists_before_an_export_that_is_not_suppressed(start: str) -> None:
    """The counter is created by `install`, so even an exporter without a suppression mark does not hang."""
    words = run(
        """
if sys.argv[1] == "before the provider":
    install(Settings())
with third_party() as collector:
    provider, memory = provide(Unsuppressed(collector.url))
    install(Settings())
    print(provider.force_flush(), len(collector.requests), counted(memory))
    provider.shutdown()
""",
        start,
    )

    assert words == ["True", "1", "1"]


def test_s01_the_counter_exists_after_a_zero_code_start() -> None:
    """In a zero-code start, `pre_instrument` creates the counter before the application runs."""
    words = run(
        """
import opentelemetry.propagate
from otel_token_relay.installation import pre_instrument

with third_party() as collector:
    provider, memory = provide(Unsuppressed(collector.url))
    pre_instrument()
    print(provider.force_flush(), len(collector.requests), counted(memory))
    provider.shutdown()
""",
        OTEL_PROPAGATORS="tracecontext,token_relay",
    )

    assert words == ["True", "1", "1"]


def test_s01_the_counter_exists_before_a_verification_during_a_flush() -> None:
    """A request that arrives during a flush, while the provider is locked, is verified and counted."""
    words = run(
        """
from otel_token_relay.authentication import RequestPath
from otel_token_relay.reasons import Reason

provider, memory = provide(OTLPMetricExporter("http://127.0.0.1:9"))
install(Settings(verify="enforce", issuers=("https://issuer.example",), audience=("orders",)))
authenticator = sys.modules["otel_token_relay.installation"]._installed.runtime.terms.authenticator
with provider.guard:
    refusal = authenticator.check(Reason.ABSENT, RequestPath("/", "/"))
print(refusal.status, counted(memory, "token_relay.verifications"))
"""
    )

    assert words == ["401", "1"]


def test_s01_a_suppressed_verification_is_decided_and_not_counted() -> None:
    """A suppressed request is verified as usual, but it is not counted and creates no counter."""
    words = run(
        """
from opentelemetry.instrumentation.utils import suppress_instrumentation
from otel_token_relay.authentication import RequestPath
from otel_token_relay.reasons import Reason
from otel_token_relay.verification.authenticator import authenticator_from

provider, memory = provide(OTLPMetricExporter("http://127.0.0.1:9"))
settings = Settings(verify="enforce", issuers=("https://issuer.example",), audience=("orders",))
authenticator = authenticator_from(settings)
with suppress_instrumentation(), provider.guard:
    refusal = authenticator.check(Reason.ABSENT, RequestPath("/", "/"))
print(refusal.status, counted(memory, "token_relay.verifications"))
"""
    )

    assert words == ["401", "0"]
