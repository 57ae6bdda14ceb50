"""Protected resource metadata, which clients use to find a resource's authorization servers.

Source: RFC 9728, sections 2, 3, and 5.1. The Model Context Protocol's authorization specification requires this
metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from otel_token_relay.authentication import ErrorResponse, RequestPath
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.settings import RESOURCE_RULE, is_resource

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"

# The document is public, and browser-based clients fetch it with a custom header.
_FOR_BROWSERS: Final = (("Access-Control-Allow-Origin", "*"),)
_FOR_PREFLIGHT: Final = (
    *_FOR_BROWSERS,
    ("Access-Control-Allow-Methods", "GET, HEAD"),
    ("Access-Control-Allow-Headers", "*"),
)


class ProtectedResource:
    """A resource's metadata document and the paths at which it is served.

    Args:
        identifier: The URL that clients use for the resource, such as ``https://mcp.example/mcp``.
        authorization_servers: The issuers of the resource's tokens.
        scopes: The scopes that the metadata lists as supported.

    Raises:
        ConfigurationError: The identifier has a query or a fragment, or is not an HTTPS URL. An HTTP URL is also
            accepted if its host is a loopback address.
    """

    def __init__(self, identifier: object, authorization_servers: Sequence[str], scopes: Sequence[str]) -> None:
        if not isinstance(identifier, str) or not is_resource(identifier):
            raise ConfigurationError("resource_metadata", RESOURCE_RULE)
        parts = urlsplit(identifier)
        path = "" if parts.path == "/" else parts.path
        self.url: str = f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{path}"
        """The document's URL, which contains the well-known path before the resource's path."""
        self._paths = frozenset((f"{WELL_KNOWN}{path}", f"{WELL_KNOWN}{unquote(path)}"))
        document: dict[str, object] = {"resource": identifier, "bearer_methods_supported": ["header"]}
        # An issuer with a tenant placeholder is not a valid authorization server URL.
        servers = [server for server in authorization_servers if "{" not in server]
        if servers:
            document["authorization_servers"] = servers
        if scopes:
            document["scopes_supported"] = list(scopes)
        body = json.dumps(document).encode("ascii")
        length = ("Content-Length", str(len(body)))
        self._document = ErrorResponse(
            200,
            "",
            (("Content-Type", "application/json"), length, ("Cache-Control", "max-age=300"), *_FOR_BROWSERS),
            body,
        )
        self._preflight = ErrorResponse(204, "", _FOR_PREFLIGHT, b"")

    def respond(self, path: RequestPath) -> ErrorResponse | None:
        """Return the response to a request for the document, or ``None`` for any other request."""
        if path.routed not in self._paths and path.whole not in self._paths:
            return None
        if path.method in ("GET", "HEAD"):
            return self._document
        return self._preflight if path.is_preflight else None
