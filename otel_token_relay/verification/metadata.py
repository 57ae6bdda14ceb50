"""Build metadata URLs, validate an issuer's metadata, and determine a response's freshness lifetime.

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

# The tenant placeholder in Microsoft Entra's metadata and in the ``issuer`` member of Entra's keys.
TENANT_IN_METADATA: Final = "{tenantid}"

# The default freshness lifetime for keys, and the limits for the lifetime that a response specifies.
DEFAULT_FRESH_SECONDS: Final = 300.0
MIN_FRESH_SECONDS: Final = 30.0
MAX_FRESH_SECONDS: Final = 24 * 3600.0

_max_age = re.compile(r"(?:^|[\s,])max-age=\"?([0-9]{1,10})", re.IGNORECASE).search
_forbids_reuse = re.compile(r"(?:^|[\s,])no-(?:store|cache)(?:$|[\s,=])", re.IGNORECASE).search


def check_issuer(issuer: object, plaintext_hosts: Collection[str] = ()) -> str:
    """Check that *issuer* is a valid URL for fetching metadata, and return *issuer*.

    Args:
        issuer: The issuer.
        plaintext_hosts: The hosts, each with an optional port, for which plain HTTP is allowed.

    Raises:
        ConfigurationError: The issuer has a query or a fragment, or is not an HTTPS URL. An HTTP URL is also accepted
            if its host is a loopback address or is included in *plaintext_hosts*.
    """
    if not isinstance(issuer, str) or not is_issuer(issuer.replace(TENANT, "common"), plaintext_hosts):
        raise ConfigurationError(
            "issuers",
            "expected an https URL without a query, or an http URL whose host is loopback or in plaintext_issuers",
        )
    return issuer


def metadata_urls(issuer: str) -> tuple[str, str]:
    """Return the two possible metadata URLs for an issuer.

    OpenID Connect appends the well-known path to the issuer's path. RFC 8414 inserts the well-known path before the
    issuer's path.

    If the issuer contains a placeholder for the Microsoft Entra tenant, this function returns the URLs of the
    ``common`` endpoint.
    """
    parts = urlsplit(issuer.replace(TENANT, "common"))
    path = parts.path.rstrip("/")
    base = f"{parts.scheme}://{parts.netloc}"
    return (
        f"{base}{path}/.well-known/openid-configuration",
        f"{base}/.well-known/oauth-authorization-server{path}",
    )


def describe_status(status: int) -> str:
    """Format a status other than 200 for a message."""
    return f"status {status}{'; redirects are not followed' if 300 <= status < 400 else ''}"


def problem_with_metadata(
    document: Mapping[str, Any], issuer: str, plaintext_hosts: Collection[str] = (), name: str = "jwks_uri"
) -> str | None:
    """Return the reason why the metadata or the URL in the metadata cannot be trusted, or ``None`` if both can be
    trusted.

    The issuer in the document must be identical to the configured issuer (RFC 8414, section 3.3). Otherwise, an
    attacker who controls a different path on the issuer's host could make this service trust the attacker's keys. The
    returned reason does not quote the document.

    Args:
        document: The metadata document.
        issuer: The issuer, as configured.
        plaintext_hosts: The hosts, each with an optional port, for which plain HTTP is allowed. A plain HTTP URL on one
            of these hosts is trusted only if it has the same origin as the issuer.
        name: The name of the member that contains the URL.
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
        return "the document does not specify an issuer"
    # The metadata for the ``common`` endpoint contains a placeholder for the tenant. Source: Microsoft, "OpenID Connect
    # on the Microsoft identity platform".
    if named != issuer.replace(TENANT, TENANT_IN_METADATA):
        difference = describe_difference(issuer, named)
        return "the document specifies a different issuer" + (f" ({difference})" if difference else "")
    return None


def _is_secure(url: str, issuer: str, plaintext_hosts: Collection[str]) -> bool:
    own, named = Origin.parse(issuer.replace(TENANT, "common")), Origin.parse(url)
    is_secure = is_trustworthy(url, plaintext_hosts if own == named else ())
    return own is not None and named is not None and is_secure and (own.scheme, named.scheme) != ("https", "http")


def fresh_seconds(headers: Mapping[str, str]) -> float:
    """Return a response's freshness lifetime in seconds, within a fixed range (RFC 9111, sections 4.2 and 5.2.2)."""
    control = headers.get("cache-control", "")
    if _forbids_reuse(control):
        return MIN_FRESH_SECONDS
    match = _max_age(control)
    if match is None:
        return DEFAULT_FRESH_SECONDS
    age = headers.get("age", "0")
    fresh = float(match[1]) - (float(age) if age.isascii() and age.isdigit() and len(age) < 10 else 0.0)
    return min(max(fresh, MIN_FRESH_SECONDS), MAX_FRESH_SECONDS)
