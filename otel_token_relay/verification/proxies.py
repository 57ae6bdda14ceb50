"""Determine from environment variables which proxy to use for a request.

Only HTTPS requests use a proxy, so this module reads only ``https_proxy`` and ``no_proxy``. Plain HTTP is used only for
loopback addresses and for hosts that an operator has listed.

The lowercase variable names take precedence over the uppercase names, as in curl and Python.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from otel_token_relay.origin import Origin, address_of, normalize_host

_PORTS: Final = {"http": 80, "https": 443}


class Proxy(NamedTuple):
    """A proxy server.

    Attributes:
        scheme: ``https`` if connections to the proxy use TLS; otherwise, ``http``.
        host: The host name or address, without brackets.
        port: The port.
        headers: The headers of the CONNECT request, which can contain the proxy password.
    """

    scheme: str
    host: str
    port: int
    headers: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"Proxy({self.scheme}://{self.host}:{self.port})"


def proxy_for(origin: Origin, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for requests to *origin*, or ``None`` to connect directly.

    Raises:
        ValueError: The proxy URL is invalid. The scheme is the only part of the URL that the message can contain.
    """
    if origin.scheme != "https" or origin.is_loopback:
        return None
    url = _read(environ, "https_proxy")
    if not url or is_excluded(origin.host, origin.port, _read(environ, "no_proxy")):
        return None
    return _parse(url)


def is_excluded(host: str, port: int, no_proxy: str) -> bool:
    """Return whether *no_proxy* excludes the host from proxying.

    Args:
        host: The normalized host of an `Origin`.
        port: The port.
        no_proxy: A comma-separated list of entries. An entry is ``*``, a host name with an optional leading dot, an IP
            address, or a network in CIDR notation. A host name also matches all of its subdomains. A host name or an
            address can include a port. Addresses and networks match only hosts that are addresses, because host names
            are not resolved.
    """
    return any(_covers(entry.strip().lower(), host, port) for entry in no_proxy.split(","))


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = address_of(host)
    if "/" in entry:
        try:
            return address is not None and address in ip_network(entry, strict=False)
        except ValueError:
            return False
    name, wanted = _split_port(entry)
    name = normalize_host(name.removeprefix("*").lstrip(".")) or ""
    is_covered = host == name or (address is None and host.endswith(f".{name}"))
    return name != "" and wanted in (None, str(port)) and is_covered


def _split_port(entry: str) -> tuple[str, str | None]:
    if entry.startswith("["):
        name, _, port = entry[1:].partition("]")
        return name, port.removeprefix(":") or None
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, None


def _read(environ: Mapping[str, str], name: str) -> str:
    # An empty lowercase variable also overrides the uppercase variable.
    return (environ[name] if name in environ else environ.get(name.upper(), "")).strip()


def _parse(url: str) -> Proxy:
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower() if separator else "http"
    if scheme not in _PORTS:
        shown = scheme if scheme.isascii() and scheme.isalnum() and len(scheme) < 12 else "unknown"
        raise ValueError(f"https_proxy has the scheme {shown}; only http and https proxies are supported")
    try:
        parts = urlsplit(url if separator else f"http://{url}")
        host, port = normalize_host(parts.hostname or ""), parts.port
        user, password = parts.username, parts.password
    except ValueError:  # the error message might quote a password
        host, port, user, password = None, None, None, None
    if host is None:
        raise ValueError("the URL in https_proxy is invalid")
    headers: tuple[tuple[str, str], ...] = ()
    if user is not None:
        pair = f"{unquote(user)}:{unquote(password or '')}".encode()
        headers = (("Proxy-Authorization", "Basic " + base64.b64encode(pair).decode("ascii")),)
    return Proxy(scheme, host, port or _PORTS[scheme], headers)
