"""Measure the cost of ``extract`` from an ASGI scope, called as contrib's instrumentation calls it."""

from __future__ import annotations

from collections.abc import Iterator

from opentelemetry.instrumentation.asgi import asgi_getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from benchmarks.figures import Figure, figure
from benchmarks.measure import Effort, side_by_side, statement
from benchmarks.samples import DESTINATION, jwt, scope
from otel_token_relay import Settings, TokenRelayPropagator

YARDSTICK = "TraceContext.extract, same scope"
TARGET = 0.6
CODE = "extract(scope, getter=getter)"


def measure_extract(effort: Effort) -> Iterator[Figure]:
    """Yield two figures: with a 900-character token and without a token."""
    ours = TokenRelayPropagator(Settings(destinations=(DESTINATION,))).extract
    theirs = TraceContextTextMapPropagator().extract
    for name, authorization in (("with a 900-character token", f"Bearer {jwt()}"), ("without Authorization", None)):
        given = scope(authorization=authorization)
        timings = {
            "ours": statement(CODE, {"extract": ours, "scope": given, "getter": asgi_getter}),
            "theirs": statement(CODE, {"extract": theirs, "scope": given, "getter": asgi_getter}),
        }
        yield figure(
            side_by_side(timings, effort),
            lambda one: one["ours"],
            lambda one: one["theirs"],
            group="extract from an ASGI scope",
            name=name,
            yardstick=YARDSTICK,
            target=TARGET,
        )
