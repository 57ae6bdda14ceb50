"""The allow-list of destinations that can receive tokens.

A lookup checks the exact host and, if the list contains wildcards, one pattern for each label in the host. The lookup
time does not depend on the number of entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from otel_token_relay.destinations import Destination
from otel_token_relay.origin import ANY_HOST, ANY_PORT, Origin, OriginPattern

# Redirects can introduce arbitrary origins, so the number and length of cached origins are limited.
_CACHED_ORIGINS: Final = 4096
# The longest host has 253 characters plus a trailing dot (RFC 1035, section 2.3.4), and the longest scheme is https.
_MAX_LENGTH: Final = 260


class RelayPolicy:
    """An allow-list that finds the entry for an origin. Instances are immutable and thread-safe.

    If multiple entries match, the most specific entry applies. An exact host takes precedence over wildcards, a longer
    wildcard takes precedence over a shorter one, and ``*`` has the lowest precedence. For the same host, an entry for a
    specific port takes precedence over an entry for any port. If the most specific entry has ``;never``, tokens are not
    sent to the origin.

    Args:
        destinations: The allow-list entries.
        refused: Patterns for origins that must not receive tokens, even if a broader entry matches.

    Attributes:
        entries: The entries, keyed by pattern, including entries with ``;never``.
        refused: The refused patterns.
        is_empty: Whether no origin is allowed to receive a token.
        has_required: Whether any entry has ``;required``.
        has_exchanged: Whether any entry requires a token exchange.
        has_retry: Whether any entry allows requests to be retried.
        has_own: Whether any entry allows the service's own token to be sent.
    """

    def __init__(self, destinations: Iterable[Destination], refused: Iterable[OriginPattern] = ()) -> None:
        self.entries: Mapping[OriginPattern, Destination] = {d.pattern: d for d in destinations}
        self.refused: frozenset[OriginPattern] = frozenset(refused)
        relayed = {pattern: None if d.never else d for pattern, d in self.entries.items()}
        self._by_pattern: Mapping[OriginPattern, Destination | None] = {**relayed, **dict.fromkeys(self.refused)}
        self._has_wildcards = any(pattern.host.startswith("*") for pattern in self._by_pattern)
        self.is_empty: bool = not any(self._by_pattern.values())
        self.has_required: bool = any(d.required for d in self.entries.values())
        self.has_exchanged: bool = any(d.needs_exchange for d in self.entries.values())
        self.has_retry: bool = any(d.retry == "idempotent" for d in self.entries.values())
        self.has_own: bool = any(d.without_user is not None for d in self.entries.values())
        # A client passes the same scheme, host, and port for every hop to the same server.
        self._remembered = lru_cache(maxsize=_CACHED_ORIGINS)(self._find)

    def find(self, scheme: str, host: str, port: int | None) -> Destination | None:
        """Return the entry for the server to which a client will connect, or ``None``; see `Origin.of`."""
        return None if len(scheme) + len(host) > _MAX_LENGTH else self._remembered(scheme, host, port)

    def _find(self, scheme: str, host: str, port: int | None) -> Destination | None:
        origin = Origin.of(scheme, host, port)
        return None if origin is None else self.match(origin)

    def match(self, origin: Origin) -> Destination | None:
        """Return the entry that allows a token to be sent to *origin*, or ``None`` if no token may be sent."""
        pattern = self.deciding_pattern(origin)
        return None if pattern is None else self._by_pattern[pattern]

    def deciding_entry(self, origin: Origin) -> Destination | None:
        """Return the most specific entry that matches *origin*. Entries with ``;never`` are included."""
        pattern = self.deciding_pattern(origin)
        return None if pattern is None or pattern in self.refused else self.entries[pattern]

    def deciding_pattern(self, origin: Origin) -> OriginPattern | None:
        """Return the most specific pattern that matches *origin*.

        The pattern might belong to an entry with ``;never`` or to a skipped entry.
        """
        for host in self._host_patterns(origin.host):
            for port in (origin.port, ANY_PORT):
                pattern = OriginPattern(origin.scheme, host, port)
                if pattern in self._by_pattern:
                    return pattern
        return None

    def _host_patterns(self, host: str) -> Iterable[str]:
        yield host
        if not self._has_wildcards:
            return
        is_address = ":" in host or host.rpartition(".")[2].isdigit()
        parent = "" if is_address else host.partition(".")[2]
        while parent:
            yield f"*.{parent}"
            parent = parent.partition(".")[2]
        yield ANY_HOST
