"""The public API as users call it, read by the type checkers and never run."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, assert_type

from opentelemetry.context import Context

from otel_token_relay import (
    BearerToken,
    Decision,
    Destination,
    Reason,
    Settings,
    TokenRelayPropagator,
    carry,
    current_token,
    install,
    to_destination,
    uninstall,
    use_token,
)
from otel_token_relay.redaction import RedactingFilter, RedactingSpanProcessor
from otel_token_relay.servers.asgi import TokenRelayMiddleware
from otel_token_relay.servers.wsgi import TokenRelayMiddleware as WsgiMiddleware
from otel_token_relay.testing import (
    Caller,
    InstalledRelay,
    RecordedDecision,
    RecordedDecisions,
    ThirdParty,
    assert_never_leaked,
    installed_relay,
    recording,
    running_authorization_server,
    third_party,
)
from otel_token_relay.verification import AsyncTokenVerifier, TokenVerifier, VerifiedToken
from otel_token_relay.verification.asgi import BearerAuthMiddleware, Principal, principal_of

settings = Settings(destinations=("https://profile-service", Destination.parse("https://billing;required")), max_age=60)
assert_type(settings, Settings)
assert_type(Settings.from_env({"OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": "https://a"}), Settings)
assert_type(settings.problems, tuple[str, ...])
install()
install(settings)
assert_type(uninstall(), None)

assert_type(current_token(), BearerToken | None)
assert_type(current_token(Context()), BearerToken | None)
assert_type(to_destination("https://profile-service"), Context)
with use_token("token") as bound:
    assert_type(bound, BearerToken | None)
    if bound is not None:
        assert_type(bound.reveal(), str)
        assert_type(bound.expires_at, float | None)


def job(name: str) -> int:
    """Work that returns a number."""
    return len(name)


async def coroutine_job(name: str) -> int:
    """The same, awaited."""
    return len(name)


async def rows() -> AsyncGenerator[str, None]:
    """Work that yields."""
    yield ""


carried: Callable[[str], int] = carry(job)
assert_type(carry(job, seconds=60)("x"), int)
carried_coroutine: Callable[[str], Coroutine[Any, Any, int]] = carry(coroutine_job)
assert_type(carry(rows()), AsyncGenerator[str, None])

decision = Decision(Reason.RELAYED)
assert_type(decision.reason, Reason)
assert_type(decision.reason.advice, str)
assert_type(TokenRelayPropagator(settings).fields, set[str])


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application."""


def wsgi_app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """A WSGI application."""
    return []


TokenRelayMiddleware(asgi_app)
WsgiMiddleware(wsgi_app, settings)
verifier = TokenVerifier(["https://idp.example"], "profile-service")
assert_type(verifier.verify("token"), VerifiedToken)
BearerAuthMiddleware(asgi_app, verifier, required_scopes=("profiles:read",), exclude=("/healthz",))
assert_type(principal_of({}), Principal)


async def verify(asynchronous: AsyncTokenVerifier) -> None:
    """Verify on an event loop."""
    assert_type(await asynchronous.verify("token"), VerifiedToken)


logging.StreamHandler().addFilter(RedactingFilter())


def pipeline(processor: Any) -> RedactingSpanProcessor:
    """Build a pipeline by hand."""
    return RedactingSpanProcessor(processor, settings)


with third_party() as outsider:
    assert_type(outsider, ThirdParty)
with installed_relay(destinations=[outsider.url]) as relay, recording() as decisions:
    assert_type(relay, InstalledRelay)
    assert_type(relay(settings), Settings)
    assert_type(decisions, RecordedDecisions)
    assert_type(decisions[0], RecordedDecision)
    assert_type(decisions.reasons("https://profile-service"), list[str])
with running_authorization_server() as server, Caller("alice", server.token_for("alice")) as caller:
    assert_type(server.token_for("bob"), BearerToken)
    assert_type(caller, Caller)
    assert_type(caller.headers["Authorization"], str)
    assert_type(outsider.requests[0].authorization, str | None)
    outsider.assert_saw_no("token")
assert_never_leaked("token", "text", [b"bytes"])
