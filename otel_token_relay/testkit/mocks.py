"""Make the relay's header visible to mocks that replace the code in which the relay adds it.

``responses`` and ``requests-mock`` replace the Requests library's transport adapter. The adapter calls urllib3,
which the relay hooks, so mocked requests do not reach the hook. Within `visible_to_mocks`, the installed relay makes a
decision about each mocked request, according to the same rules as for any other hop. The mock receives a copy of the
request with the header. As in production, the application's own request does not contain the header. If the mock passes
the request to the real adapter, the relay discards the decision, and the urllib3 hook makes a new decision.

This module wraps only the libraries' public methods, and only until the block ends.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final, NamedTuple

from otel_token_relay import runtime
from otel_token_relay.clients.headers import lower
from otel_token_relay.import_hooks import ImportHooks
from otel_token_relay.origin import Target
from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import HasHeader, Relay
from otel_token_relay.signed_urls import is_signed


class _MockHook(NamedTuple):
    module: str
    patch: Callable[[ModuleType, Patches], None]


class _Sent:
    """A request that a mock receives in place of the application's own request.

    Attributes:
        original: The application's request.
        shown: The request that the mock receives.
        is_passed_on: Whether the mock has passed the request to the real adapter.
    """

    def __init__(self, original: Any, shown: Any) -> None:
        self.original = original
        self.shown = shown
        self.is_passed_on = False


_sent: ContextVar[_Sent | None] = ContextVar("otel_token_relay_sent_to_mock", default=None)


def _patch_responses(module: ModuleType, patches: Patches) -> None:
    """Wrap the function that each `responses.RequestsMock` uses in place of ``HTTPAdapter.send``."""
    adapters: Any = sys.modules["requests.adapters"]

    def build_send(original: Function) -> Function:
        def send(adapter: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            return _decide(lambda shown: original(adapter, shown, *args, **kwargs), request)

        return send

    def build_unbound(original: Function) -> Function:
        def unbound_on_send(self: Any) -> Any:
            return build_send(original(self))

        return unbound_on_send

    def build_add_headers(original: Function) -> Function:
        def add_headers(self: Any, request: Any, **kwargs: Any) -> Any:
            # The real adapter calls this method before it sends a request that the mock has passed to it.
            sent = _sent.get()
            if sent is not None and sent.shown is request:
                sent.is_passed_on = True
                request.headers = sent.original.headers.copy()
            return original(self, request, **kwargs)

        return add_headers

    patches.wrap(module.RequestsMock, "unbound_on_send", build_unbound)
    patches.wrap(adapters.HTTPAdapter, "add_headers", build_add_headers)
    # A mock that has already started has replaced ``send``.
    if adapters.HTTPAdapter.send.__module__ == module.__name__:
        patches.wrap(adapters.HTTPAdapter, "send", build_send)


def _patch_requests_mock(module: ModuleType, patches: Patches) -> None:
    """Wrap the ``send`` method of `requests_mock.Adapter`."""

    def build(original: Function) -> Function:
        def send(self: Any, request: Any, **kwargs: Any) -> Any:
            def respond(shown: Any) -> Any:
                try:
                    return original(self, shown, **kwargs)
                except Exception as error:
                    # The error indicates that no response is registered or that the real adapter must send the request.
                    # If the real adapter must send a request, the mocker sends the application's own request.
                    sent = _sent.get()
                    if sent is not None and type(error).__module__.partition(".")[0] == "requests_mock":
                        sent.is_passed_on = True
                    raise

            return _decide(respond, request)

        return send

    patches.wrap(module.Adapter, "send", build)


def _decide(respond: Callable[[Any], Any], request: Any) -> Any:
    """Pass the mock a copy of the request to which the relay can add the header, and return the mock's response.

    Args:
        respond: A callable that passes a request to the mock.
        request: The application's `requests.PreparedRequest`, which does not receive the header.
    """
    current = runtime.installed
    if current is None or not current.clients_are_hooked:
        return respond(request)
    relay, records = _recording_later(current.relay)
    sent = _Sent(request, request)
    token = _sent.set(sent)
    try:
        value = relay.decide(request, _target_of, _has_header)
        if value is not None:
            sent.shown = request.copy()
            sent.shown.headers[current.settings.header] = value
        response = respond(sent.shown)
    except Exception as error:
        if sent.shown is not request and getattr(error, "request", None) is not None:
            error.request = request  # type: ignore[attr-defined]  # the exceptions of requests have this attribute
        raise
    finally:
        _sent.reset(token)
        if not sent.is_passed_on:
            for record in records:
                current.relay._record(*record)
        current.relay._has_warned |= relay._has_warned
    if sent.shown is not request:
        response.request = request
        # Copy attributes that mocks add for tests, such as `params`, and the body, which mocks can replace.
        for name, value in vars(sent.shown).items():
            if name == "body" or name not in vars(request):
                setattr(request, name, value)
    return response


def _recording_later(relay: Relay) -> tuple[Relay, list[tuple[Any, ...]]]:
    """Return a copy of the relay that collects its records in a list, and also return that list."""
    records: list[tuple[Any, ...]] = []
    later: Any = copy.copy(relay)
    later._record = lambda *record: records.append(record)
    return later, records


def _target_of(request: Any) -> Target:
    from urllib3.util import parse_url  # Requests depends on urllib3 and uses this parser.

    url = parse_url(request.url)
    if url.scheme is None or url.host is None:
        raise ValueError("the URL has no scheme or no host")
    return url.scheme, url.host, url.port


def _has_header(request: Any, name: str) -> HasHeader:
    return "fixed" if is_signed(request.url) else name in map(lower, request.headers)


def _warn(hook: _MockHook, error: Exception) -> None:
    message = f"mocks of {hook.module} do not receive the header that the relay adds: {error}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _patch(hook: _MockHook, module: ModuleType, patches: Patches) -> str:
    hook.patch(module, patches)
    return "hooked"


_HOOKS: Final = (
    _MockHook("responses", _patch_responses),
    _MockHook("requests_mock.adapter", _patch_requests_mock),
)
_hooks: Final[ImportHooks[_MockHook]] = ImportHooks(_patch, _warn)
_depth = 0


@contextmanager
def visible_to_mocks() -> Generator[None, None, None]:
    """Make the header visible to ``responses`` and ``requests-mock`` until the block ends.

    The mocks can start before or within the block.
    """
    global _depth
    _depth += 1
    if _depth == 1:
        _hooks.switch_on(_HOOKS)
        _hooks.watch()
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _hooks.switch_off()
