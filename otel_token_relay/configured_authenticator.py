"""Verification without a line of code: the gate that the settings ask for.

Where they ask for `enforce` and a gate cannot be built (no issuer, the extra is missing), everybody
is refused with 503: a service that was told to verify must not serve without. The reason is in
the log, once, and `otel-token-relay check` says it too. Nothing here raises.
"""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache

from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.credentials import Credentials
from otel_token_relay.errors import RelayError
from otel_token_relay.settings import Settings

_logger = logging.getLogger("otel_token_relay")


@lru_cache(maxsize=8)
def build_authenticator(settings: Settings) -> Authenticator | None:
    """Build what checks each request at the boundary; ``None`` where nothing does.

    The same settings give the same gate, so that all boundaries of a process share its keys.
    """
    if settings.verify == "off":
        return None
    try:
        # By name: it is an extra, it stands above this module, and PyJWT takes 60 ms to import.
        authenticator: Authenticator = importlib.import_module(
            "otel_token_relay.verification.authenticator"
        ).authenticator_from(settings)
        return authenticator
    except (RelayError, ImportError) as error:
        _logger.error("token relay: verification cannot start: %s", error)
    return None if settings.verify == "report" else DenyAll(settings)


class DenyAll:
    """Refuse everybody but on the excluded paths."""

    def __init__(self, settings: Settings) -> None:
        self._exclude = frozenset(settings.verify_exclude)
        self._error_response = ErrorResponse.build(503, "temporarily_unavailable", ("Retry-After", "60"))

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Give the one answer there is."""
        return None if path.is_one_of(self._exclude) else self._error_response

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """The same as `check`."""
        return self.check(credentials, path)

    def prepare(self) -> None:
        """There is nothing to prepare."""
