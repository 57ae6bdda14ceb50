"""The current token, for the tests of the context and of `carry`."""

from otel_token_relay import current_token

ALICE = "alice-token-0001"
BOB = "bob-token-0000001"


def shown():
    """Return the current token's value."""
    token = current_token()
    return token and token.reveal()
