"""Parse URLs as HTTP clients do in order to explain decisions without sending requests.

At each hop, the HTTP client parses the URL and passes the result to the relay. The functions in this module predict
that result and describe the differences between clients. The functions were tested with httpx 0.28, requests 2.34,
urllib3 2.8, aiohttp 3.14, and Python 3.13's urllib.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from otel_token_relay.origin import Origin
from otel_token_relay.signed_urls import is_signed
from otel_token_relay.spelling import resembles

# User info ends at the first `@` and cannot contain `/`, `?`, or `#` (RFC 3986, section 3.2.1).
_split_user_info: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/?#@\s\\]*)@(.*)", re.DOTALL).fullmatch
_split_authority: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#\s\\]+)([/?#].*|)", re.DOTALL).fullmatch
_scheme_of: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL).fullmatch
_without_slashes: Final = re.compile(r"(https?):/?([^/\s].*)", re.DOTALL | re.IGNORECASE).fullmatch
_starts_like_host: Final = re.compile(r"(?://)?[A-Za-z0-9_*\[][^\s@\\]*", re.DOTALL).fullmatch
_starts_with_port: Final = re.compile(r"[0-9]{1,5}(?:[/?#]|$)").match

_USER_INFO: Final = (
    "Most clients send the user info in an Authorization: Basic header, but requests does so only if the user info"
    " contains a password. urllib3 ignores the user info, so the relay treats its request as if the URL had no user"
    " info. urllib rejects the URL."
)
_SIGNED: Final = (
    "The query authenticates the request, because it contains a signature or a token. No token is added, because most"
    " servers would reject a request with two credentials."
)
_BLANK_AROUND: Final = (
    "Clients handle spaces around a URL differently. httpx and urllib3 reject leading spaces, but requests, aiohttp,"
    " and urllib remove them. Trailing spaces are sent as %20, but requests and urllib3 can reject the URL."
    " Remove the spaces."
)
_BLANK_INSIDE: Final = "Most clients send the space in this URL as %20, but urllib rejects the URL."
_MISSING: Final = "httpx, requests, and urllib reject a URL without a scheme, but urllib3 uses http"


class ReadUrl(NamedTuple):
    """The components of a URL, as most HTTP clients interpret them.

    Attributes:
        origin: The URL's origin; ``None`` if clients reject the URL or interpret it in different ways.
        has_credential: Whether the URL contains user info, which most clients send as a credential.
        problem: The reason why the URL has no origin, and a suggested correction; empty if the URL has an origin.
        is_signed: Whether the query authenticates the request.
        note: An explanation of how clients handle unusual parts of the URL; empty if the URL has no unusual parts.
        shown: The URL, with its user info, query, and fragment replaced with ``***``.
    """

    origin: Origin | None
    has_credential: bool
    is_signed: bool
    problem: str
    note: str
    shown: str


def read_url(url: str) -> ReadUrl:
    """Parse *url*.

    This function never raises an exception. The strings in the result never contain the user info, the query, or the
    fragment.
    """
    text = url.strip(" ")
    user_info, bare = _without_user_info(text)
    shown = show_url(text)
    origin = Origin.parse(bare)
    note = _BLANK_AROUND if text != url else ""
    if origin is None and (parts := _split_authority(bare)) and not re.search(r"[\x00-\x1f\x7f]", parts[2]):
        origin = Origin.parse(parts[1])
        note = note or _BLANK_INSIDE * (" " in parts[2])
    signed = is_signed(bare)
    if user_info:
        note = f"{_USER_INFO} {note}".strip()
    if signed:
        note = f"{_SIGNED} {note}".strip()
    problem = "" if origin else _find_problem(bare, shown)
    return ReadUrl(origin, bool(user_info), signed, problem, note, shown)


def show_url(url: str) -> str:
    """Return *url* with its user info, query, and fragment replaced with ``***``."""
    user_info, bare = _without_user_info(url)
    mask = "***@" if user_info else ""
    if "@" in bare and Origin.parse(bare) is None:
        # A password can contain characters, such as slashes, that should have been percent-encoded.
        bare, mask = bare.rpartition("@")[2], "***@"
    scheme, separator, rest = bare.partition("://") if not mask or user_info else ("", "", bare)
    bare = f"{scheme}{separator}{mask}{rest}" if separator else f"{mask}{bare}"
    end = min((bare.find(mark) for mark in "?#" if mark in bare), default=len(bare))
    return bare if end == len(bare) else f"{bare[: end + 1]}***"


def _without_user_info(url: str) -> tuple[str, str]:
    found = _split_user_info(url)
    return (found[2], found[1] + found[3]) if found else ("", url)


def _find_problem(bare: str, shown: str) -> str:
    """Return the reason why clients reject a URL or interpret it in different ways."""
    text = re.split(r"[?#]", shown.removeprefix("***@"), maxsplit=1)[0]
    if not text:
        return "the URL is empty"
    if found := _without_slashes(text):
        return f'expected "://" after the scheme{_propose(f"{found[1].lower()}://{found[2]}")}'
    scheme = _scheme_of(text)
    if scheme and scheme[2].startswith("//"):
        return _problem_of_scheme(scheme[1].lower(), scheme[2])
    if "***@" in shown and "://" in bare:
        return (
            "the user info contains characters that must be percent-encoded, so clients interpret the URL differently"
        )
    if _starts_like_host(text) and (scheme is None or _starts_with_port(scheme[2])):
        return f"the URL has no scheme{_propose('https://' + text.removeprefix('//'))} ({_MISSING})"
    return f"{_wrong_characters(text)}expected scheme://host[:port]/path"


def _problem_of_scheme(name: str, rest: str) -> str:
    if name not in ("http", "https", "ws", "wss"):
        meant = next((known for known in ("https", "http") if resembles(name, known) and name[:1] == "h"), None)
        proposal = _propose(f"{meant}:{rest}") if meant else ""
        return f"the scheme must be http or https, not {name[:60]}{proposal}"
    host = rest[2:].partition("/")[0]
    if not host or host.startswith(":"):
        return (
            f"the host is missing{_propose(f'{name}://' + rest.lstrip('/')) or '; expected scheme://host[:port]/path'}"
        )
    if Origin.parse(f"{name}://{host}") is not None:
        return f"{_wrong_characters(rest)}clients interpret this URL differently"
    return f"{_wrong_characters(host)}the host or the port is invalid; expected scheme://host[:port]/path"


def _propose(url: str) -> str:
    return f": did you mean {url}?" if Origin.parse(url) else ""


def _wrong_characters(text: str) -> str:
    found = dict.fromkeys(c for c in text if c <= " " or c in '\\%|"<>^`{}\x7f')
    names = ", ".join("a space" if c == " " else f'"{c}"' if c > " " else ascii(c)[1:-1] for c in found)
    return f"unexpected characters: {names}; " if found else ""
