"""The authenticator that the settings configure, so that the application needs no code to verify tokens.

If `enforce` is set but the authenticator cannot be built (no issuer is set, or the extra is missing), every request is
rejected with a 503 error, because a service that is configured to verify tokens must not accept unverified requests.
The reason is logged once, and `otel-token-relay check` prints it. Nothing in this module raises an exception.
"""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache
from typing import Final

from otel_token_relay.authentication import (
    CANNOT_VERIFY,
    Authenticator,
    ErrorResponse,
    Exclusions,
    RequestPath,
    needs_no_token,
)
from otel_token_relay.credentials import Credentials
from otel_token_relay.errors import RelayError
from otel_token_relay.extras import with_unmet
from otel_token_relay.settings import Settings
from otel_token_relay.verifications import VerificationRecorder

_logger = logging.getLogger("otel_token_relay")

# The reason recorded for every request that is refused because verification cannot start.
CANNOT_START: Final = "cannot_start"


@lru_cache(maxsize=8)
def build_authenticator(settings: Settings) -> Authenticator | None:
    """Build the authenticator for server boundaries; return ``None`` if requests are not verified.

    Equal settings yield the same authenticator, so all boundaries in a process share its keys.
    """
    if settings.verify == "off":
        return None
    try:
        # Imported dynamically: the module requires an extra and depends on this module, and PyJWT takes 60 ms to
        # import.
        authenticator: Authenticator = importlib.import_module(
            "otel_token_relay.verification.authenticator"
        ).authenticator_from(settings)
        return authenticator
    except (RelayError, ImportError) as error:
        _logger.error("token relay: verification cannot start: %s", with_unmet(error, "verify"))
    return None if settings.verify == "report" else DenyAll(settings)


class DenyAll:
    """Reject every request except requests to excluded paths and CORS preflight requests."""

    def __init__(self, settings: Settings) -> None:
        self._exclude = Exclusions(settings.verify_exclude)
        self._error_response = CANNOT_VERIFY.because(CANNOT_START)
        self._recorder = VerificationRecorder("enforce")

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Return the error response, or ``None`` for a request that needs no token."""
        if needs_no_token(credentials, path, self._exclude):
            self._recorder.record("excluded")
            return None
        self._recorder.record("unavailable", CANNOT_START)
        return self._error_response

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Do the same as `check`."""
        return self.check(credentials, path)

    def prepare(self) -> None:
        """Create the counter; see `otel_token_relay.authentication.Authenticator`."""
        self._recorder.prepare()
