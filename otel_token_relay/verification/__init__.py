"""The receiving side: verify every token that comes in. Needs the extra ``verify``."""

from otel_token_relay.errors import KeysUnavailable, RejectReason, TokenRejected
from otel_token_relay.verification.verifier import AsyncTokenVerifier, TokenVerifier, VerifiedToken

__all__ = [
    "AsyncTokenVerifier",
    "KeysUnavailable",
    "RejectReason",
    "TokenRejected",
    "TokenVerifier",
    "VerifiedToken",
]
