"""Build an authenticator from the settings so that applications can verify tokens without code changes.

The authenticator cannot be built if, for example, the issuer is not set or the extra is not installed. In `enforce`
mode, requests are rejected with a 503 error if the authenticator cannot be built, because a service that is configured
to verify tokens must not accept unverified requests. The reason for the failure is logged once and is included in the
output of `otel-token-relay check`. The functions in this module do not raise exceptions.
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

# The reason recorded for each request that is rejected because verification cannot start.
CANNOT_START: Final = "cannot_start"


@lru_cache(maxsize=8)
def build_authenticator(settings: Settings) -> Authenticator | None:
    """Return the authenticator for server boundaries, or ``None`` if requests are not verified.

    Calls with equal settings return the same authenticator so that all boundaries in a process share signing keys.
    """
    if settings.verify == "off":
        return None
    try:
        # The authenticator's module is imported here because it requires an extra and depends on this module. Importing
        # PyJWT takes 60 ms.
        authenticator: Authenticator = importlib.import_module(
            "otel_token_relay.verification.authenticator"
        ).authenticator_from(settings)
        return authenticator
    except (RelayError, ImportError) as error:
        _logger.error("token relay: verification cannot start: %s", with_unmet(error, "verify"))
    return None if settings.verify == "report" else DenyAll(settings)


class DenyAll:
    """An authenticator that rejects every request except requests to excluded paths and CORS preflight requests."""

    def __init__(self, settings: Settings) -> None:
        self._exclude = Exclusions(settings.verify_exclude)
        self._error_response = CANNOT_VERIFY.because(CANNOT_START)
        self._recorder = VerificationRecorder("enforce")

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Return an error response, or ``None`` if the request needs no token."""
        if needs_no_token(credentials, path, self._exclude):
            self._recorder.record("excluded")
            return None
        self._recorder.record("unavailable", CANNOT_START)
        return self._error_response

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        """Call `check`, which does not block."""
        return self.check(credentials, path)

    def prepare(self) -> None:
        """Create the counter; see `otel_token_relay.authentication.Authenticator`."""
        self._recorder.prepare()
