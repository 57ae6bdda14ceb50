"""Verified claims as attributes of the SERVER span: only those that were chosen, only once verified.

A middleware in the application runs within the SERVER span, the boundary runs before there is
one. So a claim is written where the token is verified, if the span is there, and where the span
starts, if the token was verified before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from otel_token_relay.context import current_token
from otel_token_relay.in_force import SettingsInForce
from otel_token_relay.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Span, SpanProcessor

    from otel_token_relay.token import Verification


class SpanClaimsInForce:
    """The chosen claims under settings that may be installed later.

    Args:
        settings: Returns the settings that apply now.
    """

    def __init__(self, settings: SettingsInForce) -> None:
        self._settings = settings
        self._known: tuple[Settings | None, SpanClaims | None] = None, None

    def __call__(self) -> SpanClaims | None:
        """Return the chosen claims; ``None`` if there are none."""
        settings = self._settings()
        known, claims = self._known
        if settings is not known:
            claims = SpanClaims.of(settings)
            self._known = settings, claims
        return claims


class SpanClaims:
    """Which claims go onto the span, and under what name.

    Args:
        pairs: ``claim:attribute`` each, such as ``sub:enduser.id``.
    """

    def __init__(self, pairs: Sequence[str]) -> None:
        self._names = dict(pair.split(":", 1) for pair in pairs)
        self.is_on = True
        self._attached_to: object = None

    @classmethod
    def of(cls, settings: Settings) -> SpanClaims | None:
        """Build it from the settings; ``None`` where no claim is chosen."""
        return cls(settings.span_claims) if settings.span_claims else None

    def describe(self, verification: Verification, span: trace.Span) -> None:
        """Write the chosen claims onto *span*; those that are no attribute value are left out."""
        claims: Mapping[str, Any] = verification.claims
        for claim, attribute in self._names.items():
            value = claims.get(claim)
            if isinstance(value, (str, bool, int, float)) or (
                isinstance(value, list) and value and all(isinstance(entry, str) for entry in value)
            ):
                span.set_attribute(attribute, value)

    def describe_current(self, verification: Verification) -> None:
        """Write onto the current span, if it is the SERVER span."""
        span = trace.get_current_span()
        if span.is_recording() and getattr(span, "kind", None) is trace.SpanKind.SERVER:
            self.describe(verification, span)

    def attach(self) -> None:
        """Write onto the spans of the tracer provider as it is now, if it is one of the SDK."""
        provider = trace.get_tracer_provider()
        add = getattr(provider, "add_span_processor", None)
        if add is not None and provider is not self._attached_to:
            self._attached_to = provider
            add(self.processor())

    def processor(self) -> SpanProcessor:
        """Build what writes claims onto SERVER spans as they start."""
        # Only who has the SDK has spans to write on.
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
