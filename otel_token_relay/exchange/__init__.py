"""Exchange the caller's token for a token that is intended for a single destination (RFC 8693).

`TokenExchanger` and `AsyncTokenExchanger` require the ``exchange`` extra. Both classes are imported on first access so
that applications can import `TokenUnavailable` without the extra. A request to a ``;required`` destination can raise
`TokenUnavailable` even if no token exchange is configured.
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
