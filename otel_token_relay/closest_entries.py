"""Find the allow-list entry that is closest to an origin, to explain why the origin gets no token.

Comparisons are slow, so `ClosestEntries` caches the results for a limited number of origins. An explanation must not
affect a request, so the methods of `ClosestEntries` do not raise exceptions.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache, partial
from itertools import islice
from typing import Final, NamedTuple

from otel_token_relay.origin import ANY_HOST, ANY_PORT, DEFAULT_PORTS, Origin, OriginPattern, address_of
from otel_token_relay.policy import RelayPolicy
from otel_token_relay.spelling import resembles

# Redirects can introduce any number of origins, so the cache size is limited.
_CACHED_ORIGINS: Final = 1024
# The maximum number of entries that are compared with each unlisted origin. Spelling comparisons are slower, so their
# limit is lower.
_MAX_COMPARED: Final = 200
_MAX_SPELLED: Final = 100
# Labels that are shorter than this minimum and differ by two edits are probably unrelated.
_MIN_LENGTH: Final = 4

_LOOPBACK: Final = "{} and {} are different origins, even if both refer to this machine"


class ClosestEntry(NamedTuple):
    """The entry that is closest to an origin.

    Attributes:
        entry: The entry as a string.
        difference: A clause that describes the difference or explains why a matching entry does not apply.
        is_deliberate: Whether the entry matches and has ``;never``.
        is_skipped: Whether the entry matches but is skipped.
    """

    entry: str
    difference: str
    is_deliberate: bool = False
    is_skipped: bool = False

    def __str__(self) -> str:
        return f"{self.entry}; {self.difference}"


class ClosestEntries:
    """A thread-safe cache of the closest entry for each origin that gets no token.

    Args:
        policy: The policy whose entries are compared.
    """

    def __init__(self, policy: RelayPolicy) -> None:
        self._remembered = lru_cache(maxsize=_CACHED_ORIGINS)(partial(closest_entry, policy=policy))

    def find(self, scheme: str, host: str, port: int | None) -> ClosestEntry | None:
        """Return the closest entry, or ``None`` if no entry is close.

        The result is also ``None`` if a matching entry allows the token to be relayed. For the arguments, see
        `Origin.of`.
        """
        try:
            origin = Origin.of(scheme, host, port)
            return None if origin is None else self._remembered(origin)
        except Exception:  # clients can pass arbitrary objects
            return None


def closest_entry(origin: Origin, policy: RelayPolicy) -> ClosestEntry | None:
    """Return the entry closest to *origin*, or ``None`` if no entry is close.

    The result is also ``None`` if a matching entry allows the token to be relayed. The order of the entries does not
    affect the result. For hops, use `ClosestEntries`, which caches the results.
    """
    pattern = policy.deciding_pattern(origin)
    if pattern is not None:
        return _withheld_by(pattern, policy)
    candidates = (
        (*difference, str(destination))
        for number, destination in enumerate(islice(policy.entries.values(), _MAX_COMPARED))
        if not destination.never
        and (difference := _difference(origin, destination.pattern, is_spelled=number < _MAX_SPELLED)) is not None
    )
    best = min(candidates, default=None)
    return None if best is None else ClosestEntry(best[2], best[1])


def _withheld_by(pattern: OriginPattern, policy: RelayPolicy) -> ClosestEntry | None:
    """Return the entry with the matching *pattern*, or ``None`` if it allows the token to be relayed."""
    if pattern in policy.refused:
        difference = "the entry is skipped because it is invalid or contradicts another entry"
        return ClosestEntry(str(pattern), difference, is_skipped=True)
    destination = policy.entries[pattern]
    return ClosestEntry(str(destination), "the entry has ;never", is_deliberate=True) if destination.never else None


def _difference(origin: Origin, pattern: OriginPattern, *, is_spelled: bool) -> tuple[int, str] | None:
    """Return the rank and description of the difference, or ``None`` if the pattern is not close.

    A closer pattern has a lower rank.
    """
    scheme = f"the scheme differs: {origin.scheme}, not {pattern.scheme}" if origin.scheme != pattern.scheme else ""
    port = _port_difference(origin, pattern)
    if _covers(pattern.host, origin.host):
        if pattern.host == ANY_HOST and scheme and port:
            return None
        return (3 if scheme and port else 2 if scheme else 1) + 3 * pattern.host.startswith("*"), _join(scheme, port)
    rank, host = _host_difference(origin.host, pattern.host) or (0, "")
    if not host and is_spelled and _is_misspelled(origin.host, name := pattern.host.removeprefix("*.")):
        rank, host = 16, f"the host differs: {origin.host}; did you mean {name}?"
    if not host:
        return None
    return rank + bool(scheme) + bool(port), _join(host, scheme, port)


def _join(*differences: str) -> str:
    """Join the clauses, and move a suggestion (which ends with a question mark) to the end."""
    return "; ".join(sorted(filter(None, differences), key=lambda text: text.endswith("?")))


def _port_difference(origin: Origin, pattern: OriginPattern) -> str:
    if pattern.port in (ANY_PORT, origin.port):
        return ""
    # If both ports are default ports, they differ only because the schemes differ, and the message already mentions the
    # schemes.
    if origin.port == DEFAULT_PORTS[origin.scheme] and pattern.port == DEFAULT_PORTS[pattern.scheme]:
        return ""
    return f"the port differs: {origin.port}, not {pattern.port}"


def _covers(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and not _is_address(host)
    return pattern in (ANY_HOST, host)


def _host_difference(host: str, pattern: str) -> tuple[int, str] | None:
    """Return the rank and description of the difference between two hosts, or ``None`` if the hosts are not close."""
    name = pattern.removeprefix("*.")
    if pattern.startswith("*."):
        if host == name:
            return 10, f"{pattern} does not match {host} itself"
        if host.endswith(name):
            return 12, f"{pattern} matches whole labels only, so it does not match {host}"
    if _is_local(host) and _is_local(name):
        return 11, _LOOPBACK.format(host, name)
    if _is_address(host) or _is_address(name):
        return None
    if host.endswith(f".{name}"):
        return 14, f"the host differs: {host} is a subdomain of {name}, which does not match subdomains"
    if name.startswith(f"{host}.") or host.startswith(f"{name}."):
        return 13, f"the host differs: {host}, not {name}"
    if _to_unicode(host) != host or _to_unicode(name) != name:
        readable, meant = _to_unicode(host), _to_unicode(name)
        if _without_accents(readable) == _without_accents(meant):
            return 15, f"the host differs: {host} and {name} are different names (IDNA)"
    return None


def _is_misspelled(host: str, name: str) -> bool:
    """Return whether the names differ in only one label and by at most two edits."""
    if _is_address(host) or _is_address(name):
        return False
    labels, meant = host.split("."), name.split(".")
    if len(labels) != len(meant):
        return False
    different = [(label, other) for label, other in zip(labels, meant, strict=True) if label != other]
    if len(different) != 1:
        return False
    label, other = different[0]
    # One edit adds at most one distinct letter and removes at most one. Counting letters is faster than computing the
    # edit distance.
    return min(len(label), len(other)) >= _MIN_LENGTH and len(set(label) ^ set(other)) <= 4 and resembles(label, other)


def _is_address(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdigit()


def _is_local(host: str) -> bool:
    # Programs that listen on all interfaces print URLs with the unspecified address, and operators copy these URLs.
    address = address_of(host)
    return OriginPattern("http", host, ANY_PORT).is_loopback or (address is not None and address.is_unspecified)


def _to_unicode(host: str) -> str:
    """Decode the A-labels in *host*, or return *host* unchanged if decoding fails."""
    if "xn--" not in host:
        return host
    import idna

    try:
        return idna.decode(host)
    except (idna.IDNAError, UnicodeError):
        return host


def _without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
