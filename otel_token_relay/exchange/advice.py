"""Advice for each exchange error, as printed by `explain --online` and listed in ``docs/exchange.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from otel_token_relay.errors import ExchangeError

ADVICE: Final[Mapping[ExchangeError, str]] = {
    "invalid_request": "Compare the entry's parameters with the server's documentation. Some servers support only one"
    " of `audience`, `resource`, and `scope`, and some report an unacceptable token with this error.",
    "invalid_client": "Compare this service's client ID, its secret or key, and its authentication method"
    " (`CLIENT_AUTH`) with the server's configuration.",
    "invalid_grant": "The server does not accept the caller's token. The token might have been revoked or issued by a"
    " different server, or its audience might not include this service.",
    "invalid_scope": "Request only scopes that the server grants to this service for this destination.",
    "invalid_target": "The server does not recognize the audience or resource, or does not allow this service to"
    " request it.",
    "unauthorized_client": "Allow this service to exchange tokens in the server's configuration.",
    "unsupported_grant_type": "Enable token exchange on the server, or set `EXCHANGE_GRANT=on-behalf-of` for Microsoft"
    " Entra.",
    "interaction_required": "The user must sign in again or give consent. Return the claims challenge to the caller.",
    "unavailable": "Check whether this process can connect to the token endpoint. Check name resolution, the proxy,"
    " and the certificate authorities.",
    "timeout": "The token endpoint did not respond in time. Check the network connection and the server's load.",
    "bad_response": "The response was not sent by a token endpoint, or the issued token is not a plain bearer token.",
    "wrong_audience": "The server issued a token for an audience that was not requested. If that audience is another"
    " name for the destination, add it to the entry as `;expect=`.",
}
