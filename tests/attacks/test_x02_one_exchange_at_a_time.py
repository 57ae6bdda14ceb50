"""x02: equal exchanges share a single request, even if one of them ends just before another caller joins."""

from __future__ import annotations

import threading
from typing import Any

from otel_token_relay.exchange.engine import ExchangeEngine
from tests.support.token_endpoint import serving, verified


def test_an_exchange_that_ends_between_the_lookup_and_the_request() -> None:
    """A caller whose cache lookup fails just before an equal exchange completes does not repeat the exchange."""
    with serving() as endpoint:
        exchanger = endpoint.exchanger()
        engine: ExchangeEngine = exchanger._engine
        get, seen = engine._cache.get, threading.local()

        def late(key: bytes) -> Any:
            found = get(key)
            if found is None and not hasattr(seen, "once"):
                seen.once = True
                thread = threading.Thread(target=ask)
                thread.start()
                thread.join()
            return found

        def ask() -> None:
            seen.once = True
            exchanger.exchange(verified("alice-has-this-token"), audience="billing")

        engine._cache.get = late  # type: ignore[method-assign]
        exchanger.exchange(verified("alice-has-this-token"), audience="billing")
        assert len(endpoint.forms) == 1
