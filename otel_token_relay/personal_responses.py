"""Rules for caches between the application and its HTTP client.

A response is personal if its request carries a token, because the response is intended for a single caller. Clients add
the token after every cache has processed the request, so caches see identical requests for different callers. A
``Cache-Control: private`` or ``Vary: Authorization`` header from the server does not help, because caches never see the
token. To prevent caches from sharing personal responses among callers, the relay applies these rules:

1. The client's hook marks each personal response and sets its ``Cache-Control`` header to ``no-store`` (RFC 9111,
   section 5.2.2.5). This header is sufficient for every cache that complies with the RFC, whether or not the relay has
   a hook for that cache.
2. The hook for a supported cache prevents the cache from storing marked responses, regardless of their headers. If a
   request might be sent with a token, the hook also prevents the cache from returning any stored response, even one
   that is not personal.
3. If the client's own code calls a supported cache directly, the hook also restores the original ``Cache-Control``
   header. Otherwise, the calling code might be an unsupported cache, so the header remains ``no-store``.

This module does not import any client library. Any object with the methods of a requests or urllib3 header mapping is
treated as a header mapping.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

_logger = logging.getLogger("otel_token_relay")

CACHE_CONTROL: Final = "Cache-Control"
NO_STORE: Final = "no-store"

MARK: Final = "_token_relay_cache_control"
"""The attribute or httpx extension that marks a personal response. The mark contains the original headers: the name and
values of ``Cache-Control`` for urllib3, the ``Cache-Control`` lines for httpx, and all headers for aiohttp.
"""

_KEY: Final = "cache-control"
_RAW_KEY: Final = b"cache-control"
_NO_STORE_LINE: Final = b"Cache-Control", _RAW_KEY, b"no-store"
_lower_name_of: Final = itemgetter(1)

Marker = Callable[[Any], Any]


def marker(protects: bool, mark: Callable[[Any], None]) -> Marker:
    """Return a function that marks and returns a response. Clients call the returned function for each personal
    response.
    """

    def mark_safely(response: Any) -> Any:
        try:
            mark(response)
        except Exception as error:  # the application must still get its response
            kind = type(response).__qualname__
            _logger.error("token relay: a %s is not marked, so a cache might store it: %s", kind, type(error).__name__)
        return response

    return mark_safely if protects else _leave


def _leave(response: Any) -> Any:
    return response


def mark_urllib3(response: Any) -> None:
    """Mark a urllib3 response as personal."""
    if MARK in response.__dict__:
        return
    headers = response.headers
    try:  # reading `_container` is five times as fast as calling the methods
        lines = headers._container
        mark = lines.get(_KEY, ())
        lines[_KEY] = [CACHE_CONTROL, NO_STORE]
    except AttributeError:
        if hasattr(headers, "get_all"):  # an http.client response, which urllib3 1.26 wraps later
            values = headers.get_all(CACHE_CONTROL, [])
            del headers[CACHE_CONTROL]
        else:
            values = headers.getlist(CACHE_CONTROL)
        mark = [CACHE_CONTROL, *values] if values else ()
        headers[CACHE_CONTROL] = NO_STORE
    response.__dict__[MARK] = mark


def mark_httpx(response: Any) -> None:
    """Mark an httpx or httpx2 response as personal."""
    extensions = response.extensions
    if MARK not in extensions:
        extensions[MARK] = [line for line in response.headers.raw if line[0].lower() == _RAW_KEY]
        response.headers[CACHE_CONTROL] = NO_STORE


def mark_plain_httpx(response: Any) -> None:
    """Mark an httpx response whose headers are stored as plain lines. This function is much faster than
    `mark_httpx`.
    """
    extensions = response.extensions
    if MARK in extensions:
        return
    lines = response.headers._list
    names = [*map(_lower_name_of, lines)]
    if _RAW_KEY not in names:
        extensions[MARK] = []
        lines.append(_NO_STORE_LINE)
    elif names.count(_RAW_KEY) == 1:
        position = names.index(_RAW_KEY)
        name, _, value = lines[position]
        extensions[MARK] = [(name, value)]
        lines[position] = _NO_STORE_LINE
    else:
        mark_httpx(response)


def is_personal_httpx(response: Any) -> bool:
    """Return whether an httpx or httpx2 response is marked as personal."""
    return MARK in response.extensions


def restore_httpx(response: Any) -> Any:
    """Restore the headers of an httpx or httpx2 response if it is marked, and return the response."""
    lines = response.extensions.get(MARK)
    if lines is not None and response.headers.get(CACHE_CONTROL) == NO_STORE:
        restored: list[tuple[bytes, bytes]] = []
        for line in response.headers.raw:
            restored += lines if line[0].lower() == _RAW_KEY else [line]
        response.headers = type(response.headers)(restored)
    return response


def is_personal(response: Any) -> bool:
    """Return whether a urllib3, requests, or aiohttp response, or any of its preceding redirects, is marked."""
    return any(_mark_of(one) is not None for one in _with_history(response))


def restore(response: Any) -> Any:
    """Restore the headers of a urllib3 or requests response and its preceding redirects, and return the response."""
    for one in _with_history(response):
        if (mark := _mark_of(one)) is not None:
            for holder in (one, getattr(one, "raw", None)):
                if (headers := getattr(holder, "headers", None)) is not None:
                    _restore_header(headers, mark)
    return response


def hide(response: Any) -> Any:
    """Undo the effect of `restore` on a requests response, and return the response."""
    for one in _with_history(response):
        if _mark_of(one) is not None:
            one.headers[CACHE_CONTROL] = one.raw.headers[CACHE_CONTROL] = NO_STORE
    return response


def is_called_by(clients: Mapping[str, Sequence[str]], depth: int) -> bool:
    """Return whether the function *depth* frames above the calling function is a method of a client's own class.

    The application's own subclasses are excluded, because they might be caches.

    Args:
        clients: A mapping from the modules that define the methods to the packages that define the client's own
            classes.
        depth: The number of frames to go up.
    """
    frame = sys._getframe(depth + 1)
    return is_class_of(clients.get(frame.f_globals.get("__name__", ""), ()), frame.f_locals.get("self"))


def is_class_of(packages: Sequence[str], instance: object) -> bool:
    """Return whether the class of *instance* is defined in one of *packages*."""
    return type(instance).__module__.partition(".")[0] in packages


def _with_history(response: Any) -> tuple[Any, ...]:
    return (response, *(getattr(response, "history", None) or ()))


def _mark_of(response: Any) -> Any:
    for one in (response, getattr(response, "raw", None)):
        for holder in (one, getattr(one, "_original_response", None)):  # urllib3 1.26 uses `_original_response`
            if (mark := getattr(holder, MARK, None)) is not None:
                return mark
    return None


def _restore_header(headers: Any, mark: Sequence[str]) -> None:
    if headers.get(CACHE_CONTROL) != NO_STORE:  # an intermediate layer has set a different value
        return
    if not mark:
        del headers[CACHE_CONTROL]
        return
    name, *values = mark
    if not hasattr(headers, "add"):
        headers[name] = ", ".join(values)
        return
    headers[name] = values[0]
    for value in values[1:]:
        headers.add(name, value)
