"""Verify incoming tokens. This package requires the ``verify`` extra.

The package does not import PyJWT until a class such as `TokenVerifier` or `BearerAuthenticator` is first accessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_token_relay.client_credentials import ClientCredential, Secret
from otel_token_relay.errors import KeysUnavailable, RejectReason, TokenRejected
from otel_token_relay.issuers import TrustedIssuer

if TYPE_CHECKING:
    from otel_token_relay.verification.authenticator import BearerAuthenticator
    from otel_token_relay.verification.http_client import HttpClient
    from otel_token_relay.verification.verifier import AsyncTokenVerifier, TokenVerifier, VerifiedToken

__all__ = [
    "AsyncTokenVerifier",
    "BearerAuthenticator",
    "ClientCredential",
    "HttpClient",
    "KeysUnavailable",
    "RejectReason",
    "Secret",
    "TokenRejected",
    "TokenVerifier",
    "TrustedIssuer",
    "VerifiedToken",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from otel_token_relay.verification import authenticator, http_client, verifier

    places: dict[str, Any] = {"BearerAuthenticator": authenticator, "HttpClient": http_client}
    return getattr(places.get(name, verifier), name)
