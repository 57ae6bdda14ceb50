"""Advice for each exchange error, which `explain --online` and ``docs/exchange.md`` contain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from otel_token_relay.errors import ExchangeError

ADVICE: Final[Mapping[ExchangeError, str]] = {
    "invalid_request": "Compare the entry's parameters with what the server's documentation requires. Some servers"
    " support only one of `audience`, `resource`, and `scope`, and some report an unacceptable token with this error.",
    "invalid_client": "Check this service's credential at the server: its client ID, its secret or key, and how it is"
    " sent (`CLIENT_AUTH`).",
    "invalid_grant": "The server does not accept the caller's token. It may have been revoked or issued by a different"
    " server, or its audience may not contain this service.",
    "invalid_scope": "Request only scopes that the server grants this service for this destination.",
    "invalid_target": "The server does not recognize this audience or resource, or this service may not request it.",
    "unauthorized_client": "Permit this service to exchange tokens at the server.",
    "unsupported_grant_type": "Enable token exchange at the server, or set `EXCHANGE_GRANT=on-behalf-of` for"
    " Microsoft Entra.",
    "interaction_required": "The user must sign in again or consent. Return the claims challenge to the caller.",
    "unavailable": "Check that this process can reach the token endpoint: check name resolution, the proxy, and the"
    " certificate authorities.",
    "timeout": "The token endpoint did not respond in time. Check the network and the server's load.",
    "bad_response": "The response is not from a token endpoint, or the issued token is not a plain bearer token.",
    "wrong_audience": "The server issued a token for a different audience than the requested one. If that audience is"
    " another name for the destination, add it to the entry as `;expect=`.",
}
