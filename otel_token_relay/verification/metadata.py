"""Issuer metadata: where it is, what in it can be trusted, and how long a response stays fresh. No I/O.

Source: OpenID Connect Discovery 1.0, section 4; RFC 8414, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import Origin
from otel_token_relay.settings import is_issuer
from otel_token_relay.verification.http_client import is_trustworthy

# How long keys count as fresh where the answer does not say, and the bounds for what it says.
DEFAULT_FRESH_SECONDS: Final = 300.0
MIN_FRESH_SECONDS: Final = 30.0
MAX_FRESH_SECONDS: Final = 24 * 3600.0

_max_age = re.compile(r"(?:^|[\s,])max-age=\"?([0-9]{1,10})", re.IGNORECASE).search
_forbids_reuse = re.compile(r"(?:^|[\s,])no-(?:store|cache)(?:$|[\s,=])", re.IGNORECASE).search


def check_issuer(issuer: object) -> str:
    """Give *issuer* if its metadata can be asked for.

    Raises:
        ConfigurationError: It is no https URL, or has a query or a fragment.
    """
    if not isinstance(issuer, str) or not is_issuer(issuer):
        raise ConfigurationError("issuers", "an issuer is an https URL without a query, or an http one on loopback")
    return issuer


def metadata_urls(issuer: str) -> tuple[str, str]:
    """Give where the metadata may be: OpenID appends to the path, RFC 8414 puts itself before it."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    base = f"{parts.scheme}://{parts.netloc}"
    return (
        f"{base}{path}/.well-known/openid-configuration",
        f"{base}/.well-known/oauth-authorization-server{path}",
    )


def read_metadata(document: Mapping[str, Any], issuer: str) -> str | None:
    """Give the ``jwks_uri`` of a document, or ``None`` if it is not to be believed.

    RFC 8414, section 3.3: the issuer in it must be identical to ours, or whoever can answer for
    another path of that host could have its keys trusted as ours.
    """
    jwks_uri = document.get("jwks_uri")
    if document.get("issuer") != issuer or not isinstance(jwks_uri, str) or not is_trustworthy(jwks_uri):
        return None
    ours, theirs = Origin.parse(issuer), Origin.parse(jwks_uri)
    if ours is None or theirs is None or (ours.scheme == "https" and theirs.scheme != "https"):
        return None
    return jwks_uri


def fresh_seconds(headers: Mapping[str, str]) -> float:
    """Give how long an answer counts as fresh, within our bounds (RFC 9111, sections 4.2 and 5.2.2)."""
    control = headers.get("cache-control", "")
    if _forbids_reuse(control):
        return MIN_FRESH_SECONDS
    match = _max_age(control)
    if match is None:
        return DEFAULT_FRESH_SECONDS
    age = headers.get("age", "0")
    fresh = float(match[1]) - (float(age) if age.isascii() and age.isdigit() and len(age) < 10 else 0.0)
    return min(max(fresh, MIN_FRESH_SECONDS), MAX_FRESH_SECONDS)
