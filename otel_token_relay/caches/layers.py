"""Functions that multiple cache hooks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from otel_token_relay.patching import Function
from otel_token_relay.personal_responses import hide, is_called_by

_CLIENTS: Final = {"requests.sessions": ("requests",)}


def build_send(original: Function) -> Function:
    """Wrap a requests adapter's ``send`` method to hide a personal response's headers from unknown calling code.

    Only the requests library's own session class gets the original headers, because any other class might be a cache.
    """

    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        is_outermost = is_called_by(_CLIENTS, 1)
        response = original(self, request, *args, **kwargs)
        return response if is_outermost else hide(response)

    return send


def has_led_to(found: Any, may_send: Callable[[str, Callable[[str], bool]], bool]) -> bool:
    """Return whether a request to any URL in a cached response's redirect chain might carry a token.

    If an unlisted host redirects a request to a listed host, the cache stores the response under the unlisted host's
    URL. The result is ``False`` if there were no redirects.

    Args:
        found: The cached response from requests or aiohttp.
        may_send: `otel_token_relay.relay.Relay.may_send`.
    """
    return bool(found.history) and any(may_send(str(one.url), _has_no_header) for one in (found, *found.history))


def _has_no_header(_: str) -> bool:
    return False
