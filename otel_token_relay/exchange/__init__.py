"""Exchange the caller's token for one that is intended for a single destination (RFC 8693).

`TokenExchanger` and `AsyncTokenExchanger` require the ``exchange`` extra. These classes are imported on first access,
because `TokenUnavailable`, which a call to a ``;required`` destination raises, must be available even without that
extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_token_relay.errors import ExchangeFailed, TokenUnavailable

if TYPE_CHECKING:
    from otel_token_relay.exchange.exchanger import AsyncTokenExchanger, TokenExchanger

__all__ = ["AsyncTokenExchanger", "ExchangeFailed", "TokenExchanger", "TokenUnavailable"]


def __getattr__(name: str) -> Any:
    if name not in ("AsyncTokenExchanger", "TokenExchanger"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from otel_token_relay.exchange import exchanger

    return getattr(exchanger, name)
