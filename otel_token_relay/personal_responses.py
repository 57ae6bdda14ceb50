"""The rule for caches between the application and its client.

A response to a request that carries a token is personal: the response is intended for one caller. Clients add the token
below every cache, so a cache sees identical requests from different callers, and the server's ``private`` or ``Vary:
Authorization`` does not help. Therefore:

1. The client marks each personal response and sets its ``Cache-Control`` to ``no-store`` (RFC 9111, section 5.2.2.5).
   This is sufficient for every cache that follows the RFC, whether or not the relay has a hook for that cache.
2. The hook for a known cache prevents the cache from storing marked responses, regardless of their headers. If a
   request may be sent with a token, the cache does not respond to it, even with an entry that is not personal.
3. If only the client's own code is above a known cache, the hook also restores ``Cache-Control``. In all other cases,
   an unknown cache may be above the known one, so ``no-store`` remains.

This module does not depend on any library: any object that has the methods of a requests or urllib3 header mapping is
treated as one.
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
"""The attribute, or the httpx extension, that marks a personal response. The mark contains what is needed to restore
the headers: for urllib3, the ``Cache-Control`` header's name and values; for httpx, its lines; for aiohttp, all
headers.
"""

_KEY: Final = "cache-control"
_RAW_KEY: Final = b"cache-control"
_NO_STORE_LINE: Final = b"Cache-Control", _RAW_KEY, b"no-store"
_lower_name_of: Final = itemgetter(1)

Marker = Callable[[Any], Any]


def marker(protects: bool, mark: Callable[[Any], None]) -> Marker:
    """Return a function that marks and returns a response. Clients apply the function to each personal response."""

    def mark_safely(response: Any) -> Any:
        try:
            mark(response)
        except Exception as error:  # the application must still get its response
            kind = type(response).__qualname__
            _logger.error("token relay: a cache may store a %s, because of a %s", kind, type(error).__name__)
        return response

    return mark_safely if protects else _leave


def _leave(response: Any) -> Any:
    return response


def mark_urllib3(response: Any) -> None:
    """Mark a urllib3 response."""
    if MARK in response.__dict__:
        return
    headers = response.headers
    try:  # this takes one-fifth of the time that the methods take
        lines = headers._container
        mark = lines.get(_KEY, ())
        lines[_KEY] = [CACHE_CONTROL, NO_STORE]
    except AttributeError:
        if hasattr(headers, "get_all"):  # http.client's response, which urllib3 1.26 puts into its own later
            values = headers.get_all(CACHE_CONTROL, [])
            del headers[CACHE_CONTROL]
        else:
            values = headers.getlist(CACHE_CONTROL)
        mark = [CACHE_CONTROL, *values] if values else ()
        headers[CACHE_CONTROL] = NO_STORE
    response.__dict__[MARK] = mark


def mark_httpx(response: Any) -> None:
    """Mark an httpx or httpx2 response."""
    extensions = response.extensions
    if MARK not in extensions:
        extensions[MARK] = [line for line in response.headers.raw if line[0].lower() == _RAW_KEY]
        response.headers[CACHE_CONTROL] = NO_STORE


def mark_plain_httpx(response: Any) -> None:
    """Do the same as `mark_httpx` in a fraction of the time, for headers that consist of plain lines."""
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
    """Return whether an httpx or httpx2 response is marked."""
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
    """Return whether a urllib3, requests, or aiohttp response, or a redirect that led to it, is marked."""
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
    """Undo `restore` for a requests response if it is marked, and return the response."""
    for one in _with_history(response):
        if _mark_of(one) is not None:
            one.headers[CACHE_CONTROL] = one.raw.headers[CACHE_CONTROL] = NO_STORE
    return response


def is_called_by(clients: Mapping[str, Sequence[str]], depth: int) -> bool:
    """Return whether a method of a client's own class is running *depth* frames above the calling function.

    An application's subclass of the client does not count: it may be a cache.

    Args:
        clients: The modules with the methods. For each, the packages whose classes count.
        depth: The number of frames.
    """
    frame = sys._getframe(depth + 1)
    return is_class_of(clients.get(frame.f_globals.get("__name__", ""), ()), frame.f_locals.get("self"))


def is_class_of(packages: Sequence[str], instance: object) -> bool:
    """Return whether the class of *instance* is from one of *packages*."""
    return type(instance).__module__.partition(".")[0] in packages


def _with_history(response: Any) -> tuple[Any, ...]:
    return (response, *(getattr(response, "history", None) or ()))


def _mark_of(response: Any) -> Any:
    for one in (response, getattr(response, "raw", None)):
        for holder in (one, getattr(one, "_original_response", None)):  # the latter for urllib3 1.26
            if (mark := getattr(holder, MARK, None)) is not None:
                return mark
    return None


def _restore_header(headers: Any, mark: Sequence[str]) -> None:
    if headers.get(CACHE_CONTROL) != NO_STORE:  # a layer in between has set a different value
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
