"""Verifiers with an introspection endpoint, and the endpoint's responses."""

from __future__ import annotations

import time
from typing import Any

from otel_token_relay.verification import TokenVerifier
from tests.support.issuers import Issuer
from tests.support.tokens import AUDIENCE


def active(**changes: Any) -> dict[str, Any]:
    """Return an active introspection response; a change to ``...`` removes a member."""
    found = {"active": True, "sub": "alice", "aud": AUDIENCE, "scope": "profiles:read", "client_id": "web"}
    found |= {"exp": int(time.time()) + 600, "token_type": "Bearer"} | changes
    return {name: value for name, value in found.items() if value is not ...}


def opaque_verifier(issuer: Issuer, **options: Any) -> TokenVerifier:
    options = {"audience": AUDIENCE, "client_id": "profiles", "client_secret": "s3:cret &"} | options
    return TokenVerifier(introspection_endpoint=f"{issuer.url}/introspect", **options)


def both_verifier(issuer: Issuer, **options: Any) -> TokenVerifier:
    return TokenVerifier([issuer.url], AUDIENCE, introspection_endpoint=f"{issuer.url}/introspect", **options)


def asked(issuer: Issuer) -> int:
    return issuer.hits.count("/introspect")
