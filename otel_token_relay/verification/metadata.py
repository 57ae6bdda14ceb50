"""Issuer metadata: where to find it, which parts of it to trust, and how long a response stays fresh. No I/O.

Source: OpenID Connect Discovery 1.0, section 4; RFC 8414, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from otel_token_relay.differences import describe_difference
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.issuers import TENANT, is_issuer
from otel_token_relay.origin import Origin, is_trustworthy

# The tenant placeholder in Microsoft Entra's metadata and in the ``issuer`` member of its keys.
TENANT_IN_METADATA: Final = "{tenantid}"

# How long keys stay fresh if the response does not specify a lifetime, and the limits for a specified lifetime.
DEFAULT_FRESH_SECONDS: Final = 300.0
MIN_FRESH_SECONDS: Final = 30.0
MAX_FRESH_SECONDS: Final = 24 * 3600.0

_max_age = re.compile(r"(?:^|[\s,])max-age=\"?([0-9]{1,10})", re.IGNORECASE).search
_forbids_reuse = re.compile(r"(?:^|[\s,])no-(?:store|cache)(?:$|[\s,=])", re.IGNORECASE).search


def check_issuer(issuer: object, plaintext_hosts: Collection[str] = ()) -> str:
    """Return *issuer* if it is a URL for which metadata can be fetched.

    Args:
        issuer: The issuer.
        plaintext_hosts: The hosts, each with an optional port, to which plain http is allowed.

    Raises:
        ConfigurationError: The issuer is neither an https URL nor an http URL on loopback or on such a host, or it has
            a query or a fragment.
    """
    if not isinstance(issuer, str) or not is_issuer(issuer.replace(TENANT, "common"), plaintext_hosts):
        raise ConfigurationError(
            "issuers",
            "expected an https URL without a query, or an http URL whose host is loopback or in plaintext_issuers",
        )
    return issuer


def metadata_urls(issuer: str) -> tuple[str, str]:
    """Return both possible metadata URLs.

    OpenID Connect appends the well-known path to the issuer's path; RFC 8414 inserts the well-known path before it.

    For an issuer that accepts any Microsoft Entra tenant, the ``common`` endpoint's URLs are returned.
    """
    parts = urlsplit(issuer.replace(TENANT, "common"))
    path = parts.path.rstrip("/")
    base = f"{parts.scheme}://{parts.netloc}"
    return (
        f"{base}{path}/.well-known/openid-configuration",
        f"{base}/.well-known/oauth-authorization-server{path}",
    )


def describe_status(status: int) -> str:
    """Describe a status other than 200 for use in a message."""
    return f"status {status}{'; redirects are not followed' if 300 <= status < 400 else ''}"


def problem_with_metadata(
    document: Mapping[str, Any], issuer: str, plaintext_hosts: Collection[str] = (), name: str = "jwks_uri"
) -> str | None:
    """Return why the document, or the URL in it, cannot be trusted; ``None`` if both can be trusted.

    RFC 8414, section 3.3: the issuer in the document must be identical to the configured issuer. Otherwise, an attacker
    who controls a different path on that host could make this service trust the attacker's keys. The returned text does
    not quote the document.

    Args:
        document: The document.
        issuer: The issuer, as configured.
        plaintext_hosts: The hosts, each with an optional port, to which plain http is allowed. A document may contain a
            plain-http URL on such a host only if the URL's origin is the issuer's own.
        name: The member that contains the URL.
    """
    problem = _problem_with_name(document, issuer)
    if problem is not None:
        return problem
    url = document.get(name)
    if not isinstance(url, str):
        return f"the document has no {name}"
    return None if _is_secure(url, issuer, plaintext_hosts) else f"the document's {name} is not an https URL"


def _problem_with_name(document: Mapping[str, Any], issuer: str) -> str | None:
    named = document.get("issuer")
    if not isinstance(named, str):
        return "the document does not name an issuer"
    # The metadata from the endpoint for any tenant contains a placeholder (Microsoft: OpenID Connect on the Microsoft
    # identity platform).
    if named != issuer.replace(TENANT, TENANT_IN_METADATA):
        difference = describe_difference(issuer, named)
        return "the document names another issuer" + (f" ({difference})" if difference else "")
    return None


def _is_secure(url: str, issuer: str, plaintext_hosts: Collection[str]) -> bool:
    own, named = Origin.parse(issuer.replace(TENANT, "common")), Origin.parse(url)
    is_secure = is_trustworthy(url, plaintext_hosts if own == named else ())
    return own is not None and named is not None and is_secure and (own.scheme, named.scheme) != ("https", "http")


def fresh_seconds(headers: Mapping[str, str]) -> float:
    """Return the number of seconds for which a response is fresh, within bounds (RFC 9111, sections 4.2 and 5.2.2)."""
    control = headers.get("cache-control", "")
    if _forbids_reuse(control):
        return MIN_FRESH_SECONDS
    match = _max_age(control)
    if match is None:
        return DEFAULT_FRESH_SECONDS
    age = headers.get("age", "0")
    fresh = float(match[1]) - (float(age) if age.isascii() and age.isdigit() and len(age) < 10 else 0.0)
    return min(max(fresh, MIN_FRESH_SECONDS), MAX_FRESH_SECONDS)
