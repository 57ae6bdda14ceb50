"""Verification without a line of code: the gate that the settings ask for.

Where they ask for `enforce` and a gate cannot be built (no issuer, the extra is missing), everybody
is refused with 503: a service that was told to verify must not serve without. The reason is in
the log, once, and `otel-token-relay check` says it too. Nothing here raises.
"""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache

from otel_token_relay.authentication import Gate, Refusal, RequestPath
from otel_token_relay.credentials import Reading
from otel_token_relay.errors import RelayError
from otel_token_relay.settings import Settings

_logger = logging.getLogger("otel_token_relay")


@lru_cache(maxsize=8)
def build_gate(settings: Settings) -> Gate | None:
    """Build what checks each request at the boundary; ``None`` where nothing does.

    The same settings give the same gate, so that all boundaries of a process share its keys.
    """
    if settings.verify == "off":
        return None
    try:
        # By name: it is an extra, it stands above this module, and PyJWT takes 60 ms to import.
        gate: Gate = importlib.import_module("otel_token_relay.verification.authenticator").gate_from(settings)
        return gate
    except (RelayError, ImportError) as error:
        _logger.error("token relay: verification cannot start: %s", error)
    return None if settings.verify == "report" else ClosedGate(settings)


class ClosedGate:
    """Refuse everybody but on the excluded paths."""

    def __init__(self, settings: Settings) -> None:
        self._exclude = frozenset(settings.verify_exclude)
        self._refusal = Refusal.build(503, "temporarily_unavailable", ("Retry-After", "60"))

    def check(self, reading: Reading, path: RequestPath) -> Refusal | None:
        """Give the one answer there is."""
        return None if path.is_one_of(self._exclude) else self._refusal

    async def check_async(self, reading: Reading, path: RequestPath) -> Refusal | None:
        """The same as `check`."""
        return self.check(reading, path)

    def prepare(self) -> None:
        """There is nothing to prepare."""
