"""Only configured claims are written to the SERVER span."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as OtelAsgi
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.context import with_token
from otel_token_relay.runtime import SettingsInForce
from otel_token_relay.token import BearerToken
from otel_token_relay.verification import TokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware
from otel_token_relay.verification.span_claims import SpanClaims, SpanClaimsInForce, actors_of
from tests.support.issuers import Issuer
from tests.support.tokens import AUDIENCE, claims, make_token

Spans = tuple[TracerProvider, InMemorySpanExporter]


class Verified:
    """The result of a verifier."""

    expires_at = None

    def __init__(self, **claims: object) -> None:
        self.claims = claims

    def is_still_valid(self) -> bool:
        return True


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def verifying_without_code(issuer: Issuer, **options: Any) -> Iterator[None]:
    install(Settings(verify="enforce", issuers=(issuer.url,), audience=(AUDIENCE,), **options))
    try:
        yield
    finally:
        uninstall()


def hello_app() -> Starlette:
    return Starlette(routes=[Route("/", lambda request: JSONResponse({}))])


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


def server_span(exporter: InMemorySpanExporter) -> dict[str, Any]:
    found = [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]
    others = [span for span in exporter.get_finished_spans() if span.kind.name != "SERVER"]
    assert not any("enduser.id" in (span.attributes or {}) for span in others)
    assert len(found) == 1
    return dict(found[0].attributes or {})


def test_chosen_claims_are_written_by_a_middleware_within_the_span(issuer: Issuer, spans: Spans) -> None:
    """A middleware writes the configured claims to the SERVER span, which exists before the token is verified."""
    provider, exporter = spans
    app = BearerAuthMiddleware(
        hello_app(),
        TokenVerifier([issuer.url], AUDIENCE),
        settings=Settings(span_claims=("sub:enduser.id", "client_id:client.id", "act:act", "roles:roles")),
    )
    token = make_token(claims(issuer.url, act={"sub": "b"}, roles=["a", "b"]))
    TestClient(OtelAsgi(app, tracer_provider=provider)).get("/", headers=bearer(token))

    attributes = server_span(exporter)
    assert attributes["enduser.id"] == "alice"
    assert attributes["client.id"] == "web"
    assert attributes["roles"] == ("a", "b")
    assert attributes["act"] == ("b",)


def test_chosen_claims_are_written_by_the_boundary_before_the_span(
    issuer: Issuer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boundary verifies the token first, and the configured claims are written when the SERVER span starts."""
    provider, exporter = spans
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    with verifying_without_code(issuer, span_claims=("sub:enduser.id",)):
        app = hello_app()
        app.add_middleware(OtelAsgi, tracer_provider=provider)
        TestClient(app).get("/", headers=bearer(make_token(claims(issuer.url))))
        TestClient(app).get("/", headers=bearer(make_token(claims(issuer.url, exp=1))))
    # The rejected request also has a span.
    claimed = [(span.attributes or {}).get("enduser.id") for span in exporter.get_finished_spans()]
    assert sorted(filter(None, claimed)) == ["alice"]

    exporter.clear()
    with verifying_without_code(issuer):
        app = hello_app()
        app.add_middleware(OtelAsgi, tracer_provider=provider)
        TestClient(app).get("/", headers=bearer(make_token(claims(issuer.url))))
    assert "enduser.id" not in server_span(exporter)


def test_no_claim_is_written_by_default(issuer: Issuer, spans: Spans) -> None:
    """By default, no claim is written, because claims are personal data."""
    provider, exporter = spans
    app = BearerAuthMiddleware(hello_app(), TokenVerifier([issuer.url], AUDIENCE), settings=Settings())
    TestClient(OtelAsgi(app, tracer_provider=provider)).get("/", headers=bearer(make_token(claims(issuer.url))))

    assert "alice" not in str(server_span(exporter))
    assert SpanClaims.of(Settings()) is None


def test_only_values_that_an_attribute_can_have_are_written(spans: Spans) -> None:
    """A claim is written under its attribute's name, unless the claim is absent or an object."""
    provider, exporter = spans
    chosen = SpanClaims([f"{claim}:a.{claim}" for claim in ("s", "n", "f", "t", "l", "o", "e", "m", "z", "absent")])
    verified = Verified(s="Åsa", n=1, f=1.5, t=True, l=["a", "b"], o={"a": 1}, e=[], m=["a", 1], z=None, other="x")
    with provider.get_tracer("test").start_as_current_span("a") as span:
        chosen.describe(verified, span)

    (exported,) = exporter.get_finished_spans()
    assert dict(exported.attributes or {}) == {"a.s": "Åsa", "a.n": 1, "a.f": 1.5, "a.t": True, "a.l": ("a", "b")}


def test_an_attribute_name_may_contain_a_colon(spans: Spans) -> None:
    """The claim's name ends at the first colon, so an attribute's name can contain a colon."""
    provider, exporter = spans
    with provider.get_tracer("test").start_as_current_span("a") as span:
        SpanClaims(["sub:user:name"]).describe(Verified(sub="alice"), span)

    assert dict(exporter.get_finished_spans()[0].attributes or {}) == {"user:name": "alice"}


@pytest.mark.parametrize("kind", SpanKind)
def test_only_the_server_span_gets_claims(spans: Spans, kind: SpanKind) -> None:
    """Only the SERVER span gets claims, because code that must not see the caller might export other spans."""
    provider, exporter = spans
    chosen = SpanClaims(["sub:enduser.id"])
    provider.add_span_processor(chosen.processor())
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("current", kind=kind):
        chosen.describe_current(Verified(sub="alice"))
    with use_token("opaque") as token:
        assert token is not None
        token.mark_verified(Verified(sub="alice"))
        tracer.start_span("started", kind=kind).end()

    expected = {"enduser.id": "alice"} if kind is SpanKind.SERVER else {}
    assert [dict(span.attributes or {}) for span in exporter.get_finished_spans()] == [expected] * 2


def test_without_a_span_nothing_is_written() -> None:
    """Without a span, no claim is written, and the token is still verified."""
    SpanClaims(["sub:enduser.id"]).describe_current(Verified(sub="alice"))

    assert not trace.get_current_span().is_recording()


def test_a_span_gets_the_claims_of_its_own_request(spans: Spans) -> None:
    """A span gets its own request's claims from the parent context, unless the processor is disabled."""
    provider, exporter = spans
    chosen = SpanClaims(["sub:enduser.id"])
    provider.add_span_processor(chosen.processor())
    tracer = provider.get_tracer("test")
    alice, unverified = BearerToken("alice-token"), BearerToken("unverified-token")
    alice.mark_verified(Verified(sub="alice"))
    with use_token("bob-token") as bob:
        assert bob is not None
        bob.mark_verified(Verified(sub="bob"))
        for parent in (with_token(alice), with_token(unverified), with_token(None), None):
            tracer.start_span("a", context=parent, kind=SpanKind.SERVER).end()
        chosen.is_on = False
        tracer.start_span("off", kind=SpanKind.SERVER).end()

    found = [(span.attributes or {}).get("enduser.id") for span in exporter.get_finished_spans()]
    assert found == ["alice", None, None, "bob", None]


def test_the_processor_is_added_once_to_each_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor is added once to each SDK provider, and other providers are left unchanged."""
    added: list[object] = []

    class Provider:
        def add_span_processor(self, processor: object) -> None:
            added.append((self, processor))

    chosen = SpanClaims(["sub:enduser.id"])
    first, second = Provider(), Provider()
    for provider in (trace.ProxyTracerProvider(), first, first, second):
        monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda provider=provider: provider)
        chosen.attach()

    assert [provider for provider, _ in added] == [first, second]  # type: ignore[misc]


def test_the_choice_follows_the_installed_settings() -> None:
    """The choice of claims follows the installed settings and is built once for equal settings."""
    in_force = SpanClaimsInForce(SettingsInForce(None))
    install(Settings())
    assert in_force() is None
    uninstall()
    install(Settings(span_claims=("sub:enduser.id",)))
    chosen = in_force()

    assert chosen is not None
    assert in_force() is chosen
    uninstall()
    install(Settings())
    assert in_force() is None


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        pytest.param({"sub": "a"}, ["a"], id="one"),
        pytest.param({"sub": "a", "act": {"sub": "b", "act": {"client_id": "c"}}}, ["a", "b", "c"], id="chain"),
        pytest.param({"sub": "a", "act": {"act": {"sub": "c"}}}, ["a"], id="an actor without a name"),
        pytest.param({"sub": 1}, [], id="a number"),
        pytest.param("a", [], id="text"),
        pytest.param(None, [], id="none"),
        pytest.param(["a"], [], id="a list"),
    ],
)
def test_the_chain_of_actors_begins_with_the_current_one(act: object, expected: list[str]) -> None:
    """The chain of actors starts with the current actor, which is the outermost one (RFC 8693, section 4.1)."""
    assert actors_of({"act": act}) == expected


def test_at_most_ten_actors_are_written() -> None:
    """At most ten actors are written, because the issuer can nest any number of them."""
    act: dict[str, object] = {"sub": "0"}
    for number in range(1, 30):
        act = {"sub": str(number), "act": act}
    assert actors_of({"act": act}) == [str(number) for number in range(29, 19, -1)]
