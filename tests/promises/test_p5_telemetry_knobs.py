"""P5: telemetry settings never affect authentication."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.util.http import ExcludeList

from otel_token_relay import Settings, install, use_token
from tests.support.apps import NONE
from tests.support.clients import CLIENTS, Client, Protocol, each_party, every_client
from tests.support.loopback import Party
from tests.support.processes import INSTRUMENT, ROOT
from tests.support.servers import SERVERS, Server, served

TOKEN = "p5-sample-token"
LINE = [f"Bearer {TOKEN}"]


TELEMETRY_SETTINGS = ["sampled", "always_off", "OTEL_SDK_DISABLED", "excluded"]


@pytest.mark.parametrize(
    ("client", "setting"),
    [
        pytest.param(client, setting, id=f"{client.name}-{setting}")
        for client in CLIENTS
        for setting in TELEMETRY_SETTINGS
        if client.exclusion is not None or setting != "excluded"
    ],
)
def test_a_telemetry_setting_does_not_change_what_is_relayed(
    client: Client, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions for listed and unlisted origins are the same with and without spans."""
    if setting == "OTEL_SDK_DISABLED":
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    options = {}
    if setting == "excluded" and client.exclusion is not None:
        monkeypatch.setenv(*client.exclusion)
        options["excluded_urls"] = ".*"  # some instrumentations read the variable when they are imported
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF) if setting == "always_off" else TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = client.instrumentor()
    instrumentor.instrument(tracer_provider=provider, **options)
    try:
        with client.party() as listed, client.party() as outsider:
            install(Settings(destinations=[listed.url]))
            with use_token(TOKEN):
                client.call(listed.url)
                client.call(outsider.url)
    finally:
        instrumentor.uninstrument()
        provider.shutdown()

    assert listed.lines() == [LINE]
    assert outsider.lines() == [[]]
    assert len(exporter.get_finished_spans()) == (2 if setting == "sampled" else 0)


@pytest.mark.parametrize("setting", TELEMETRY_SETTINGS)
@pytest.mark.parametrize(
    "server", [server for server in SERVERS if server.instrumentor is not None], ids=lambda server: server.name
)
def test_a_telemetry_setting_does_not_change_the_token_of_a_request(
    server: Server, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler has only its own caller's token, with and without spans."""
    if setting == "OTEL_SDK_DISABLED":
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    if setting == "excluded":
        monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", ".*")
        monkeypatch.setenv("OTEL_PYTHON_GRPC_EXCLUDED_SERVICES", "tests.Server")
        # Tornado's instrumentation reads the variable when it is imported.
        monkeypatch.setattr("opentelemetry.instrumentation.tornado._excluded_urls", ExcludeList([".*"]))
    provider = TracerProvider(sampler=ALWAYS_OFF) if setting == "always_off" else TracerProvider()
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with served(server, instrumentation={"tracer_provider": provider}) as one:
        assert [one.get("/token", token).text for token in (TOKEN, None)] == [TOKEN, NONE]
        provider.shutdown()

    assert bool(exporter.get_finished_spans()) == (setting == "sampled")


@every_client
def test_suppressed_http_spans_do_not_affect_the_relay(client: Client) -> None:
    """The token is relayed while `suppress_http_instrumentation` is set, as it is during instrumented calls."""
    with client.party() as one:
        install(Settings(destinations=[one.url]))
        with use_token(TOKEN), suppress_http_instrumentation():
            client.call(one.url)

    assert one.lines() == [LINE]


@every_client
def test_suppressed_instrumentation_relays_no_token(client: Client) -> None:
    """No tokens are relayed while `suppress_instrumentation` is set, as it is during an exporter's requests."""
    with client.party() as one:
        install(Settings(destinations=[one.url]))
        with use_token(TOKEN), suppress_instrumentation():
            client.call(one.url)

    assert one.lines() == [[]]


PROGRAM = """
import json, sys
if "no-sdk" in sys.argv:
    sys.modules["opentelemetry.sdk"] = None
from otel_token_relay import use_token
from tests.support.apps import NONE
from tests.support.clients import CLIENTS
import opentelemetry.propagate

if "no-sdk" in sys.argv:
    for client in CLIENTS:
        if not client.instrumentor().is_instrumented_by_opentelemetry:
            client.instrumentor().instrument()
with use_token(sys.argv[1]):
    for client in CLIENTS:
        for urls in map(json.loads, sys.argv[2:4]):
            assert client.call(f"{urls[client.protocol]}/tests.Party/{client.name}").status == 200
"""


def _urls(parties: Mapping[Protocol, Party]) -> str:
    return json.dumps({protocol: one.url for protocol, one in parties.items()})


LAUNCHER = [*INSTRUMENT, sys.executable]


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        pytest.param([sys.executable], {}, id="no SDK"),
        pytest.param(LAUNCHER, {"OTEL_TRACES_EXPORTER": "console"}, id="launcher, headers captured"),
    ],
)
def test_a_process_configured_by_the_environment_relays(command: list[str], setting: dict[str, str]) -> None:
    """The environment variables alone enable the relay for every client, with and without an SDK."""
    with each_party() as listed, each_party() as outsider:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            "PYTHONPATH": str(ROOT),
            "OTEL_PROPAGATORS": "tracecontext,baggage,token_relay",
            "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": ",".join(one.url for one in listed.values()),
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST": ".*",
            # Other tests cover server instrumentation, which is slow to start.
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asgi,celery,django,falcon,fastapi,flask,starlette,wsgi",
            **setting,
        }
        marker = [] if setting else ["no-sdk"]
        ran = subprocess.run(
            [*command, "-c", PROGRAM, TOKEN, *map(_urls, (listed, outsider)), *marker],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            env=environment,
        )

    assert ran.returncode == 0, ran.stderr.replace(TOKEN, "…")
    for protocol, one in listed.items():
        clients = [client for client in CLIENTS if client.protocol == protocol]
        assert [(r.target, r.authorization) for r in one.requests] == [
            (f"/tests.Party/{client.name}", f"Bearer {TOKEN}") for client in clients
        ]
        assert outsider[protocol].lines() == [[]] * len(clients)
    assert TOKEN not in ran.stdout + ran.stderr
    assert ran.stdout.count("SpanKind.CLIENT") >= (2 * len(CLIENTS) if "OTEL_TRACES_EXPORTER" in setting else 0)
