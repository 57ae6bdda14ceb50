"""What to do about each error of an exchange, for `explain --online` and ``docs/exchange.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from otel_token_relay.errors import ExchangeError

ADVICE: Final[Mapping[ExchangeError, str]] = {
    "invalid_request": "Compare the parameters of the entry with what the server's documentation requires. Some servers"
    " support only one of `audience`, `resource` and `scope`, and some report an unacceptable token like this.",
    "invalid_client": "Check this service's credential at the server: its client ID, its secret or key, and how it is"
    " sent (`CLIENT_AUTH`).",
    "invalid_grant": "The server does not accept the caller's token. It may have been revoked or issued by another"
    " server, or its audience may not contain this service.",
    "invalid_scope": "Ask only for scopes that the server grants this service for this destination.",
    "invalid_target": "The server does not know this audience or resource, or this service may not ask for it.",
    "unauthorized_client": "Permit this service to exchange tokens at the server.",
    "unsupported_grant_type": "Switch token exchange on at the server, or set `EXCHANGE_GRANT=on-behalf-of` for"
    " Microsoft Entra.",
    "interaction_required": "The user must sign in again or consent. Return the claims challenge to the caller.",
    "unavailable": "Check that this process can reach the token endpoint: name resolution, proxy, certificate"
    " authorities.",
    "timeout": "The token endpoint did not respond in time. Check the network and the load of the server.",
    "bad_response": "The response is not that of a token endpoint, or the issued token is not a plain bearer token.",
    "wrong_audience": "The server issued a token for another audience than the one asked for. If that is the"
    " destination's other name, add it to the entry as `;expect=`.",
}
