"""The OpenTelemetry propagator for the caller's token.

``extract`` binds a request's token to the context. ``inject`` writes the token only if the application specifies a
destination with `to_destination` and the policy allows it. Instrumentation for HTTP clients, message brokers, and
serverless functions calls ``inject(carrier)`` without a destination, and such a call writes nothing. For supported HTTP
clients, hooks write the token instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, Final, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    DefaultGetter,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from otel_token_relay import context as binding
from otel_token_relay import runtime
from otel_token_relay.boundary import BOUNDARY_KEY, Boundary, RequestLease
from otel_token_relay.configured_exchange import build_token_source
from otel_token_relay.context import (
    DESTINATION_KEY,
    UNUSED_KEY,
    NamedUrl,
    bind,
    bind_not_found,
    bound_token,
    is_refused,
    unused_watchers,
    with_token,
    with_unused,
)
from otel_token_relay.credentials import Credentials, find, read
from otel_token_relay.event_loops import running_loop
from otel_token_relay.origin import Target
from otel_token_relay.otel import get_current
from otel_token_relay.reasons import Reason
from otel_token_relay.relay import Exchange, HasHeader, Relay
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken
from otel_token_relay.unused_credentials import UnusedCredentials, find_unused, may_have_unused

_logger = logging.getLogger("otel_token_relay")


class TokenRelayPropagator(TextMapPropagator):
    """A propagator that carries the caller's bearer token in the OpenTelemetry context.

    Args:
        settings: ``None`` to use the installed settings or, if there are none, the environment variables.
        relay: The relay that makes decisions about outgoing requests; ``None`` to create a relay with *settings* or, if
            *settings* is also ``None``, to use the installed relay.
    """

    def __init__(self, settings: Settings | None = None, *, relay: Relay | None = None) -> None:
        self._relay = Relay(settings, build_token_source(settings)) if relay is None and settings is not None else relay
        self._relay_of_environment: Relay | None = None
        self._has_warned = False

    @property
    def relay(self) -> Relay:
        """The relay that makes decisions about outgoing requests."""
        if self._relay is not None:
            return self._relay
        if (installed := runtime.installed) is not None:
            return installed.relay
        if self._relay_of_environment is None:
            settings = Settings.load()
            self._relay_of_environment = Relay(settings, build_token_source(settings))
        return self._relay_of_environment

    @property
    def fields(self) -> set[str]:
        """The name of the header that ``inject`` writes."""
        return {self.relay.settings.header}

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """Bind the carrier's token, or bind ``None`` if the carrier does not contain one.

        This method always sets the context key to ensure that no token from a different request remains. Within a
        server boundary, these rules apply:

        * An ASGI scope or WSGI environ is not read again, because the boundary has already read the credentials.
        * If the carrier contains the request's own token, the binding and its lease do not change.
        * If the carrier contains no credentials, the binding does not change in the request's own thread and asyncio
          task. As a result, a job that runs within the request has the caller's token. A background consumer that the
          request starts does not have the token.
        * If the boundary has rejected the request's credentials, no token is bound.

        If a message without credentials is received outside a server boundary, the service can still act on its own
        behalf (see `is_unserved`). An HTTP request without credentials is treated as a request from an anonymous
        caller.

        Args:
            context: The context to extend; ``None`` to extend an empty context.
        """
        if context is None:
            context = Context()
        current = get_current()
        if UNUSED_KEY in current:  # redaction masks these credentials until the request ends
            context = Context(context | {UNUSED_KEY: current[UNUSED_KEY]})
        boundary: object = carrier.get(BOUNDARY_KEY) if isinstance(carrier, dict) else None
        if isinstance(boundary, Boundary) and boundary.encloses(carrier):
            # Do not report the token to redaction again. Redaction already has the token and looks up the trace when
            # the span starts.
            return bind(boundary.token, context)
        if is_refused(current):
            return bind(None, context)
        is_request = not binding.has_served and _is_request(carrier)
        words: tuple[str, ...] = ()
        try:
            settings, values_of = self.relay.settings, partial(_read, getter, carrier)
            source = find(values_of, settings)
            credentials = read(source, settings)
            token = credentials if isinstance(credentials, BearerToken) else None
            if may_have_unused(settings, is_present=source is not None, token=token) and unused_watchers:
                words = find_unused(values_of, settings, token)
        except Exception:  # `extract` must not raise an exception, and the carrier can be any object
            _logger.debug("cannot read the carrier", exc_info=True)
            credentials, token = Reason.MALFORMED, None
        bound = bound_token(current)
        if bound is not None and bound.is_usable and _keeps(bound, credentials):
            return bind(bound, context)
        if words and UNUSED_KEY not in context:
            context = with_unused(UnusedCredentials(words, None), context)
        if is_request:
            binding.has_served = True
        may_be_message = credentials is Reason.ABSENT and not binding.has_served
        is_message = may_be_message and not _has_host(getter, carrier)
        return bind_not_found(context) if is_message else with_token(token, context)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Write the token if *context* specifies a destination that may receive it; see `to_destination`.

        A destination in the *current* context is ignored, even if *context* inherits it. Some instrumentation passes a
        context that is derived from the current context. Without this rule, every broker and third party would receive
        the token.
        """
        if context is None or DESTINATION_KEY not in context:
            self._warn_once(context)
            return
        destination = cast("NamedUrl", context[DESTINATION_KEY])
        if destination is otel_context.get_current().get(DESTINATION_KEY):
            return
        value = self.relay.decide((carrier, destination), _target_of, _has_header, context, may_block=False)
        if isinstance(value, Exchange):
            # Running the exchange would block the event loop, so give up if an event loop is running.
            value = value.run() if running_loop() is None else value.give_up()
        if value is None or (self.relay.settings.on_conflict == "replace" and not _drop(carrier, self.relay.header)):
            return
        setter.set(carrier, self.relay.settings.header, value)

    def _warn_once(self, context: Context | None) -> None:
        if self._has_warned or ((installed := runtime.installed) is not None and installed.clients_are_hooked):
            return
        if bound_token(otel_context.get_current() if context is None else context) is None:
            return
        self._has_warned = True
        _logger.warning(
            "the token_relay propagator has bound a token, but no HTTP client is hooked, so no token is relayed."
            " Call otel_token_relay.install(), or add token_relay to OTEL_PROPAGATORS."
        )


def _read(getter: Getter[Any], carrier: Any, name: str) -> Sequence[str]:
    """Return every value of a header, even if a case-sensitive carrier capitalizes its name."""
    if _is_default(type(getter)):
        values: list[str] = []
        for key in getter.keys(carrier):
            # The client controls the keys, so convert only keys of the right length to lowercase.
            if isinstance(key, str) and len(key) == len(name) and key.lower() == name:
                values += getter.get(carrier, key) or ()
        return values
    return getter.get(carrier, name) or getter.get(carrier, name.title()) or ()


def _is_request(carrier: object) -> bool:
    """Return whether a carrier is a WSGI environ or an ASGI scope."""
    # Check for values that are not strings, because message headers contain only strings.
    return isinstance(carrier, dict) and (
        hasattr(carrier.get("wsgi.input"), "read") or isinstance(carrier.get("asgi"), dict)
    )


def _has_host(getter: Getter[Any], carrier: Any) -> bool:
    """Return whether a carrier, such as an AWS Lambda event, contains HTTP request headers.

    Anyone can send an HTTP request, so the service must not act on its own behalf. Messages from a broker do not
    contain HTTP request headers.
    """
    try:
        # The client controls the keys, so convert only keys of the right length to lowercase.
        names = (key for key in getter.keys(carrier) if isinstance(key, str) and len(key) in _LENGTHS)
        return any(name.lower() in _HTTP_HEADERS for name in names)
    except Exception:  # a carrier can be any object
        return True


_HTTP_HEADERS: Final = frozenset({"host", "user-agent", ":authority"})
_LENGTHS: Final = frozenset(map(len, _HTTP_HEADERS))


def _keeps(bound: BearerToken, credentials: Credentials) -> bool:
    """Return whether *bound*, the current token, remains bound for a carrier with *credentials*."""
    lease = bound.lease
    if credentials is Reason.ABSENT:
        return isinstance(lease, RequestLease) and lease.is_here
    return lease is not None and credentials == bound


@lru_cache(maxsize=32)
def _is_default(getter_class: type) -> bool:
    # The result is cached, because calling `issubclass` with an abstract class takes as long as reading the header.
    return issubclass(getter_class, DefaultGetter)


def _target_of(target: tuple[Any, NamedUrl]) -> Target:
    origin = target[1].origin
    if origin is None:
        raise ValueError("the URL passed to to_destination() does not specify a destination")
    return origin


def _names(carrier: Any) -> Iterable[object]:
    """Return the header names in a mapping or a sequence of pairs, such as gRPC metadata or ASGI headers."""
    return carrier.keys() if hasattr(carrier, "keys") else (pair[0] for pair in carrier)


def _is_header(key: object, name: str) -> bool:
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    return isinstance(key, str) and key.lower() == name


def _has_header(target: tuple[Any, NamedUrl], name: str) -> HasHeader:
    if target[1].is_signed:
        return "fixed"
    try:
        return any(_is_header(key, name) for key in _names(target[0]))
    except Exception:  # an unreadable carrier might already contain a credential
        return True


def _drop(carrier: Any, name: str) -> bool:
    """Remove a header, regardless of case, to prevent duplicate headers. Return whether the removal succeeded."""
    try:
        for key in [key for key in _names(carrier) if _is_header(key, name)]:
            del carrier[key]
    except Exception:
        _logger.debug("cannot remove a header from the carrier, so the token is not written", exc_info=True)
        return False
    return True
