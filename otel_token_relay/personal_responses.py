"""The rule for caches between the application and its client.

A response to a request with a token is personal: it is for one caller. Clients add the token below every cache, so a
cache sees equal requests of different callers, and the server's ``private`` or ``Vary: Authorization`` cannot help it.
Therefore:

1. The client marks each personal response and sets its ``Cache-Control`` to ``no-store`` (RFC 9111, section 5.2.2.5).
   This is all that a cache needs that follows the RFC, whether we know it or not.
2. The hook of a cache that we know stores no marked response, whatever its headers contain. It answers no request that
   may be sent with a token, not even from an entry that is not personal.
3. If only the client's own code is above such a cache, its hook also restores ``Cache-Control``. In any other case, an
   unknown cache may be above it, so ``no-store`` remains.

This module knows no library: a header mapping of requests or urllib3 is any object with the same methods.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

_logger = logging.getLogger("otel_token_relay")

CACHE_CONTROL: Final = "Cache-Control"
NO_STORE: Final = "no-store"

_RAW_NAME: Final = b"cache-control"

MARK: Final = "_token_relay_cache_control"
"""The attribute, or the extension of httpx, that marks a personal response. It contains what is necessary to restore the headers."""


def marker(protects: bool, mark: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function that a client applies to each personal response, and that returns the response."""
    if not protects:
        return lambda response: response

    def mark_safely(response: Any) -> Any:
        try:
            return mark(response)
        except Exception as error:  # the application gets its response
            kind = type(response).__qualname__
            _logger.error("token relay: a cache may store a %s, because of a %s", kind, type(error).__name__)
            return response

    return mark_safely


def mark_urllib3(response: Any) -> Any:
    """Mark a response of urllib3, and return it."""
    if getattr(response, MARK, None) is None:
        headers = response.headers
        values = headers.getlist(CACHE_CONTROL)
        # An application that prints the headers sees the name as it was received.
        name = CACHE_CONTROL if not values else next(name for name in headers if name.lower() == "cache-control")
        headers[name] = NO_STORE
        setattr(response, MARK, (name, values))
    return response


def mark_httpx(response: Any) -> Any:
    """Mark a response of httpx or httpx2, and return it."""
    extensions = response.extensions
    if MARK not in extensions:
        lines = [line for line in response.headers.raw if line[0].lower() == _RAW_NAME]
        response.headers[lines[0][0].decode("ascii") if lines else CACHE_CONTROL] = NO_STORE
        extensions[MARK] = lines
    return response


def is_personal_httpx(response: Any) -> bool:
    """Return whether a response of httpx or httpx2 is marked."""
    return MARK in response.extensions


def restore_httpx(response: Any) -> Any:
    """Restore the headers of a response of httpx or httpx2 if it is marked, and return it."""
    lines = response.extensions.get(MARK)
    if lines is not None and response.headers.get(CACHE_CONTROL) == NO_STORE:
        restored = []
        for line in response.headers.raw:
            restored += lines if line[0].lower() == _RAW_NAME else [line]
        response.headers = type(response.headers)(restored)
    return response


def is_personal(response: Any) -> bool:
    """Return whether a response of urllib3, requests or aiohttp, or a redirect that led to it, is marked."""
    return any(_mark_of(one) is not None for one in (response, *(getattr(response, "history", None) or ())))


def restore(response: Any) -> Any:
    """Restore the headers of a response of urllib3 or requests, and of the redirects that led to it. Return it."""
    for one in (response, *(getattr(response, "history", None) or ())):
        if (mark := _mark_of(one)) is not None:
            name, values = mark
            for holder in (one, getattr(one, "raw", None)):
                if (headers := getattr(holder, "headers", None)) is not None:
                    _restore_header(headers, name, values)
    return response


def hide(response: Any) -> Any:
    """Undo `restore` for a marked response of requests, and return it."""
    for one in (response, *response.history):
        if (mark := _mark_of(one)) is not None:
            one.headers[mark[0]] = one.raw.headers[mark[0]] = NO_STORE
    return response


def is_called_by(modules: tuple[str, ...], depth: int) -> bool:
    """Return whether the code *depth* frames above the caller belongs to one of *modules*."""
    return sys._getframe(depth + 1).f_globals.get("__name__") in modules


def _mark_of(response: Any) -> Any:
    mark = getattr(response, MARK, None)
    return mark if mark is not None else getattr(getattr(response, "raw", None), MARK, None)


def _restore_header(headers: Any, name: str, values: Sequence[str]) -> None:
    if headers.get(name) != NO_STORE:  # a layer in between has set another value
        return
    if not values:
        del headers[name]
    elif hasattr(headers, "add"):
        headers[name] = values[0]
        for value in values[1:]:
            headers.add(name, value)
    else:
        headers[name] = ", ".join(values)
