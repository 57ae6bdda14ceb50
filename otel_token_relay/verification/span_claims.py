"""Record the selected claims from verified tokens as attributes of the SERVER span.

Middleware in the application runs within the SERVER span, but the server boundary runs before the span starts. If the
span already exists when a token is verified, the claims are recorded immediately. Otherwise, the claims are recorded
when the span starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from otel_token_relay.context import current_token
from otel_token_relay.runtime import SettingsInForce
from otel_token_relay.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Span, SpanProcessor

    from otel_token_relay.token import Verification


class SpanClaimsInForce:
    """The claims that are selected in the current settings.

    Args:
        settings: A callable that returns the current settings. The settings can be installed after the instance is
            created.
    """

    def __init__(self, settings: SettingsInForce) -> None:
        self._settings = settings
        self._known: tuple[Settings | None, SpanClaims | None] = None, None

    def __call__(self) -> SpanClaims | None:
        """Return the selected claims, or ``None`` if no claims are selected."""
        settings = self._settings()
        known, claims = self._known
        if settings is not known:
            claims = SpanClaims.of(settings)
            self._known = settings, claims
        return claims


_MAX_ACTORS: Final = 10


def actors_of(claims: Mapping[str, Any]) -> list[str]:
    """Return the identifiers of up to ten actors that act on behalf of the subject, starting with the current actor.

    An actor is identified by ``sub`` or, if ``sub`` is missing, by ``client_id``. The list ends before the first actor
    without an identifier.

    Source: RFC 8693, section 4.1.
    """
    actors: list[str] = []
    actor = claims.get("act")
    while isinstance(actor, Mapping) and len(actors) < _MAX_ACTORS:
        name = actor.get("sub", actor.get("client_id"))
        if not isinstance(name, str):
            break
        actors.append(name)
        actor = actor.get("act")
    return actors


class SpanClaims:
    """The claims to record, and the attribute name for each claim.

    Args:
        pairs: Strings in the format ``claim:attribute``, such as ``sub:enduser.id``.
    """

    def __init__(self, pairs: Sequence[str]) -> None:
        self._names = dict(pair.split(":", 1) for pair in pairs)
        self.is_on = True
        self._attached_to: object = None

    @classmethod
    def of(cls, settings: Settings) -> SpanClaims | None:
        """Build an instance from the settings, or return ``None`` if no claims are selected."""
        return cls(settings.span_claims) if settings.span_claims else None

    def describe(self, verification: Verification, span: trace.Span) -> None:
        """Record the selected claims in *span*, and skip claims whose values are not valid attribute values.

        The ``act`` claim is recorded as a list of actors. See `actors_of`.
        """
        claims: Mapping[str, Any] = verification.claims
        for claim, attribute in self._names.items():
            value = actors_of(claims) if claim == "act" else claims.get(claim)
            if isinstance(value, (str, bool, int, float)) or (
                isinstance(value, list) and value and all(isinstance(entry, str) for entry in value)
            ):
                span.set_attribute(attribute, value)

    def describe_current(self, verification: Verification) -> None:
        """Record the selected claims in the current span if it is a SERVER span."""
        span = trace.get_current_span()
        if span.is_recording() and getattr(span, "kind", None) is trace.SpanKind.SERVER:
            self.describe(verification, span)

    def attach(self) -> None:
        """Add the span processor to the current tracer provider if it supports span processors."""
        provider = trace.get_tracer_provider()
        add = getattr(provider, "add_span_processor", None)
        if add is not None and provider is not self._attached_to:
            self._attached_to = provider
            add(self.processor())

    def processor(self) -> SpanProcessor:
        """Build a span processor that records the selected claims when a SERVER span starts."""
        # This import must not be at the top of the file, because the SDK might not be installed.
        from opentelemetry.sdk.trace import SpanProcessor

        chosen = self

        class ClaimsSpanProcessor(SpanProcessor):
            def on_start(self, span: Span, parent_context: Context | None = None) -> None:
                if not chosen.is_on or span.kind is not trace.SpanKind.SERVER:
                    return
                token = current_token(otel_context.get_current() if parent_context is None else parent_context)
                if token is not None and token.verification is not None:
                    chosen.describe(token.verification, span)

        return ClaimsSpanProcessor()
