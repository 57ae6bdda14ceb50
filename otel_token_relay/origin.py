"""Origins and origin patterns, based on the hosts and ports to which clients connect.

An `Origin` consists of a scheme, a host, and a port (RFC 6454, section 4). Host names are stored in lowercase, with
A-labels (RFC 5890), and without a trailing dot. IP addresses are stored in canonical form, without brackets.

Attackers exploit URLs that two parsers interpret differently, such as ``http://good\\@evil/``. For this reason,
`Origin.of` accepts only targets that a client has already parsed and will connect to. `Origin.parse` accepts URLs that
no client has parsed, but rejects ambiguous URLs.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

# The scheme, host, and port of a request's target.
Target = tuple[str, str, int | None]

DEFAULT_PORTS = {"http": 80, "https": 443}
ANY_HOST = "*"
ANY_PORT: None = None

# WebSocket URLs use the same default ports as HTTP URLs (RFC 6455, section 3), and a WebSocket connection starts with
# an HTTP request.
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}

# A label in a host name. RFC 952 does not allow underscores, but container networks assign names with underscores, and
# all clients accept them.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII).fullmatch

# If the last label of a host looks like a number, the host must be an IPv4 address (WHATWG URL, section 3.5). Clients
# disagree on how to interpret 127.1 and 0x7f000001, so only canonical IPv4 addresses are accepted.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII).fullmatch

_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\\\s%]+)(?::(?P<port>\*|[0-9]{1,5}))?").fullmatch
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL).fullmatch


def normalize_host(host: str) -> str | None:
    """Return *host* in canonical form, or ``None`` if it is invalid.

    Args:
        host: A host name or IP address in ASCII. Brackets around an IPv6 address are optional.
    """
    if not host.isascii():
        return None
    host = host.lower()
    if ":" in host or host.startswith("["):
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        # Reject zone IDs (RFC 6874). A zone ID identifies a local network interface, and clients disagree on its
        # syntax.
        address = None if "%" in bare or ":" not in bare else address_of(bare)
        return None if address is None else str(address)
    host = host.removesuffix(".")
    labels = host.split(".")
    if not host or len(host) > 253 or not all(map(_LABEL, labels)):
        return None
    if _NUMERIC_LABEL(labels[-1]):
        return None if address_of(host) is None else host
    return host


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Parse *host* as an IP address without brackets. Return ``None`` if it is not an IP address."""
    try:
        return IPv6Address(host) if ":" in host else IPv4Address(host)
    except AddressValueError:
        return None


def _to_ascii(host: str) -> str | None:
    """Return *host* with Unicode labels encoded as A-labels, or ``None`` if it cannot be encoded."""
    if host.isascii():
        return host
    # Import idna only when needed. The import takes 10 ms and uses 2 MB of memory, and most deployments have no Unicode
    # hosts.
    import idna

    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return None


class Origin(NamedTuple):
    """The origin of a request's target, such as ``("https", "profile-service", 443)``."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, scheme: str, host: str, port: int | None) -> Origin | None:
        """Return the origin of a target that a client has parsed and will connect to.

        Args:
            scheme: ``http``, ``https``, ``ws``, or ``wss`` (case-insensitive).
            host: The ASCII host name or IP address that the client passes to the resolver. Unicode names are rejected.
                Clients encode such names according to different standards (IDNA 2003, IDNA 2008, or UTS 46), so only
                the client's own encoding is reliable.
            port: The port; ``None`` for the scheme's default port.

        Returns:
            The origin, or ``None`` if the target does not have a valid HTTP origin.
        """
        wire_scheme = _SCHEMES.get(scheme.lower())
        wire_host = normalize_host(host)
        if wire_scheme is None or wire_host is None:
            return None
        wire_port = DEFAULT_PORTS[wire_scheme] if port is None else port
        return cls(wire_scheme, wire_host, wire_port) if 0 < wire_port < 65536 else None

    @classmethod
    def parse(cls, url: str) -> Origin | None:
        """Return the origin of a URL that no client has parsed.

        Returns:
            The origin, or ``None`` if the URL is ambiguous or its scheme is missing or unsupported. A URL is ambiguous
            if it contains user info, a backslash, white space, a control character, or a percent sign in the host.
        """
        match = _SCHEME(url)
        if match is None or any(c <= " " or c in "\\\x7f" for c in url):
            return None
        scheme, rest = match.groups()
        authority = _AUTHORITY(re.split(r"[/?#]", rest, maxsplit=1)[0])
        if authority is None or authority["port"] == "*":
            return None
        host = _to_ascii(authority["host"])
        port = int(authority["port"]) if authority["port"] else None
        return None if host is None else cls.of(scheme, host, port)

    @property
    def is_loopback(self) -> bool:
        """Whether the host refers to this machine (RFC 6761, section 6.3)."""
        return OriginPattern(*self).is_loopback

    @property
    def is_secure(self) -> bool:
        """Whether traffic is protected from network attackers, either by HTTPS or because it stays on this machine."""
        return self.scheme == "https" or self.is_loopback

    def __str__(self) -> str:
        return str(OriginPattern(*self))


def is_trustworthy(url: str, plaintext_hosts: Collection[str] = ()) -> bool:
    """Return whether responses from *url* can be trusted.

    Args:
        url: The URL.
        plaintext_hosts: The hosts, each with an optional port, for which the operator allows plain HTTP.
    """
    origin = Origin.parse(url)
    return (
        origin is not None
        and (origin.is_secure or is_listed(origin, plaintext_hosts))
        and url.isascii()
        and "#" not in url
    )


def is_listed(origin: Origin | OriginPattern, hosts: Collection[str]) -> bool:
    """Return whether *hosts* contains the origin's host, with or without the origin's port. Subdomains do not match.

    For a pattern that matches any port, *hosts* must contain the host without a port.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return host in hosts or f"{host}:{origin.port}" in hosts


def origin_of_proxied(url: str) -> Target:
    """Return the origin of a URL that a forward proxy parses instead of the client.

    Raises:
        ValueError: The URL is ambiguous or is not an http or https URL. The error message does not contain the URL.
    """
    origin = Origin.parse(url)
    if origin is None:
        raise ValueError("expected an unambiguous http or https URL")
    return origin


class OriginPattern(NamedTuple):
    """A pattern that matches whole origins, with optional wildcards for the host and port.

    Attributes:
        scheme: ``http`` or ``https``.
        host: A host, ``*.`` followed by a parent domain, or ``*`` for any host. The ``*.`` wildcard matches one or more
            whole labels, so the parent domain itself does not match.
        port: The port; ``None`` for any port.
    """

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> OriginPattern:
        """Parse a pattern, such as ``https://*.svc.cluster.local:8443``. The default scheme is ``https``.

        Raises:
            ValueError: The pattern is invalid. The error message describes the problem without revealing user info.
        """
        scheme, rest = "https", text
        if match := _SCHEME(text):
            scheme, rest = match[1].lower(), match[2]
        if scheme not in DEFAULT_PORTS:
            raise ValueError("the scheme must be http or https")
        if "@" in rest:
            raise ValueError("an origin must not contain a user name or password")
        if any(c in rest for c in "/?#"):
            raise ValueError("an origin must not contain a path, query, or fragment: remove everything after the port")
        authority = _AUTHORITY(rest)
        if authority is None:
            raise ValueError("expected scheme://host[:port]")
        if (port_text := authority["port"]) is None:
            port: int | None = DEFAULT_PORTS[scheme]
        elif port_text == "*":
            port = ANY_PORT
        elif not 0 < (port := int(port_text)) < 65536:
            raise ValueError("the port must be between 1 and 65535")
        return cls(scheme, _parse_host_pattern(authority["host"]), port)

    @classmethod
    def find(cls, text: str) -> OriginPattern | None:
        """Parse a pattern, or return ``None`` if it is invalid."""
        with suppress(ValueError):
            return cls.parse(text)
        return None

    @property
    def is_loopback(self) -> bool:
        """Whether every matching origin is on this machine (RFC 6761, section 6.3)."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        address = address_of(self.host)
        return address is not None and address.is_loopback

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port == DEFAULT_PORTS.get(self.scheme):
            return f"{self.scheme}://{host}"
        return f"{self.scheme}://{host}:{'*' if self.port is ANY_PORT else self.port}"


def _parse_host_pattern(text: str) -> str:
    if text == ANY_HOST:
        return ANY_HOST
    wildcard = text.startswith("*.")
    name = text[2:] if wildcard else text
    if "*" in name:
        raise ValueError("a * must be the whole host or its first label, as in *.example.com")
    ascii_name = _to_ascii(name)
    host = None if ascii_name is None else normalize_host(ascii_name)
    if host is None:
        raise ValueError("expected a host name, or an IP address in canonical form")
    if wildcard and (":" in host or _NUMERIC_LABEL(host.rpartition(".")[2])):
        raise ValueError("a * must not be combined with an IP address")
    return f"*.{host}" if wildcard else host
