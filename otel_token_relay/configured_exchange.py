"""Set up token exchange based on the settings so that applications can exchange tokens without code changes.

If the setup fails, for example, because the extra is not installed, no tokens are sent to destinations that require an
exchanged token. The reason for the failure is logged once and is included in the output of `otel-token-relay check`.
The functions in this module do not raise exceptions.
"""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache

from otel_token_relay.errors import RelayError
from otel_token_relay.extras import with_unmet
from otel_token_relay.relay import TokenSource
from otel_token_relay.settings import Settings

_logger = logging.getLogger("otel_token_relay")


@lru_cache(maxsize=8)
def build_token_source(settings: Settings) -> TokenSource | None:
    """Return the source of exchanged tokens; ``None`` if no destination requires them or the source cannot be built.

    Calls with equal settings return the same source so that all relays in a process share its cache.
    """
    if not any(entry.needs_exchange for entry in settings.entries):
        return None
    try:
        # The source's module is imported here because it requires an extra and depends on the relay.
        tokens: TokenSource = importlib.import_module("otel_token_relay.exchange.tokens").DestinationTokens(settings)
        return tokens
    except (RelayError, ImportError) as error:
        _logger.error("token relay: no token can be exchanged: %s", with_unmet(error, "exchange"))
    return None
