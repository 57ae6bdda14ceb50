"""The token for fetching an issuer's metadata and keys. The Kubernetes API server requires such a token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from otel_token_relay.issuers import TrustedIssuer
from otel_token_relay.origin import Origin
from otel_token_relay.token import is_b64token
from otel_token_relay.verification.fetch_failures import FetchFailed

_MAX_BYTES: Final = 64 * 1024


class KeyCredential:
    """A bearer token that is stored in a file.

    The file is read for each request, because the token is replaced long before it expires. The overhead is small,
    because keys are rarely fetched.

    Args:
        path: The path to the file. If the path is empty, requests are sent without a token.
        urls: The URLs that an operator has configured. The token is sent only to the origins of these URLs, and only
            over HTTPS. This restriction prevents an issuer's metadata from redirecting the token to a different server.
    """

    def __init__(self, path: str, urls: Iterable[str | None] = ()) -> None:
        self._path = path
        origins = {Origin.parse(url) for url in urls if url is not None}
        self._origins = frozenset(origin for origin in origins if origin is not None and origin.scheme == "https")

    @classmethod
    def of(cls, issuer: TrustedIssuer | None) -> KeyCredential:
        """Return the credential for fetching the issuer's keys."""
        return cls("") if issuer is None else cls(issuer.jwks_token_file, (issuer.issuer, issuer.jwks_uri))

    def header_for(self, url: str) -> str | None:
        """Return the value of the ``Authorization`` header for a request to *url*, or ``None`` to omit the header.

        Raises:
            FetchFailed: The file cannot be read or does not contain a token.
        """
        if not self._path or Origin.parse(url) not in self._origins:
            return None
        try:
            with open(self._path, "rb") as file:
                token = file.read(_MAX_BYTES).decode("ascii").strip()
        except (OSError, ValueError):
            token = ""
        if not is_b64token(token):
            raise FetchFailed(
                "the file in jwks_token_file cannot be read or does not contain a token", "not_configured"
            )
        return f"Bearer {token}"
