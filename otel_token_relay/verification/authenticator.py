"""The gate behind the door: verify the token of each request, and answer in the application's place.

One gate serves every kind of server, a middleware in code and the zero-code boundary alike. It takes what
the boundary has read of the header and reads nothing itself.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, cast

from opentelemetry import metrics

from otel_token_relay.door import Reading, Refusal, RequestPath
from otel_token_relay.errors import ConfigurationError, KeysUnavailable, TokenRejected
from otel_token_relay.in_force import SettingsInForce
from otel_token_relay.reasons import Reason
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Clock
from otel_token_relay.verification.challenges import Challenges
from otel_token_relay.verification.drivers import drive, drive_async
from otel_token_relay.verification.span_claims import SpanClaims, SpanClaimsInForce
from otel_token_relay.verification.verifier import TokenVerifier, VerifiedToken, VerifierCore

_logger = logging.getLogger("otel_token_relay")

DEFAULT_REALM: Final = "api"

COUNTER_NAME: Final = "token_relay.verifications"
OUTCOME_ATTRIBUTE: Final = "token_relay.verification"
REASON_ATTRIBUTE: Final = "token_relay.reason"

# In `report` mode each reason is logged once in so many seconds, with how often it came up.
REPORT_SECONDS: Final = 60.0

Mode = Literal["report", "enforce"]
Outcome = Literal["accepted", "refused", "unavailable"]


class Verifier(Protocol):
    """What a gate asks: one of ours, or anything with such a method, also an asynchronous one."""

    def verify(self, token: str) -> VerifiedToken | Awaitable[VerifiedToken]:
        """Give the verified token, or raise `TokenRejected` or `KeysUnavailable`."""
        ...


class BearerGate:
    """Let in whoever brings a valid token with the required scopes.

    Args:
        verifier: A `TokenVerifier` or an `AsyncTokenVerifier`; either does for either kind of server.
        realm: Sent with each challenge; ``None`` for ``api``.
        required_scopes: The token must allow all of them.
        exclude: Paths that need no token, exactly as they are: ``/healthz`` is neither
            ``/healthz/`` nor ``/healthz/deep``. For gRPC full method names, ``/package.Service/Method``.
        resource_metadata: The URL of this resource's metadata (RFC 9728).
        acr_values: The token's ``acr`` must be one of these (RFC 9470).
        max_age: Seconds since the token's ``auth_time``, at most (RFC 9470).
        mode: ``report`` lets everybody in, and only counts and logs.
        span_claims: Returns which claims become attributes of the SERVER span.
        now: Seconds since the epoch.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        realm: str | None = None,
        required_scopes: Sequence[str] = (),
        exclude: Sequence[str] = (),
        resource_metadata: str | None = None,
        acr_values: Sequence[str] = (),
        max_age: float | None = None,
        mode: Mode = "enforce",
        span_claims: Callable[[], SpanClaims | None] | None = None,
        now: Clock = time.time,
    ) -> None:
        if isinstance(exclude, str) or not all(isinstance(path, str) and path.startswith("/") for path in exclude):
            raise ConfigurationError("exclude", "this must be a sequence of paths, each with a / in front")
        self.challenges = Challenges(
            realm=DEFAULT_REALM if realm is None else realm,
            required_scopes=required_scopes,
            resource_metadata=resource_metadata,
            acr_values=acr_values,
            max_age=max_age,
        )
        self._verifier = verifier
        self._required_scopes = frozenset(required_scopes)
        self._exclude = frozenset(exclude)
        self._acr_values = frozenset(acr_values)
        self._max_age = max_age
        self._mode = mode
        self._span_claims = span_claims
        self._now = now
        self._recorder = _Recorder(mode)

    def check(self, reading: Reading, path: RequestPath) -> Refusal | None:
        """Give the answer to a request that is not let in; see `otel_token_relay.door.Gate`."""
        if path.is_one_of(self._exclude):
            return None
        if isinstance(reading, Reason):
            return self._refuse(self.challenges.at_the_door(reading), reading.value)
        try:
            verifier, token = self._verifier, reading.reveal()
            if isinstance(verifier, VerifierCore):
                verified = verifier.remembered(token)
                return self._judge(reading, drive(verifier.steps(token)) if verified is None else verified)
            return self._judge(reading, cast("VerifiedToken", verifier.verify(token)))
        except Exception as error:  # noqa: BLE001  # whatever a verifier raises, nobody gets in by it
            return self._refuse_on(error)

    async def check_async(self, reading: Reading, path: RequestPath) -> Refusal | None:
        """The same as `check`, awaited."""
        if path.is_one_of(self._exclude):
            return None
        if isinstance(reading, Reason):
            return self._refuse(self.challenges.at_the_door(reading), reading.value)
        try:
            verifier, token = self._verifier, reading.reveal()
            if isinstance(verifier, VerifierCore):
                verified = verifier.remembered(token)
                return self._judge(reading, await drive_async(verifier.steps(token)) if verified is None else verified)
            found = verifier.verify(token)
            return self._judge(reading, await found if inspect.isawaitable(found) else found)
        except Exception as error:  # noqa: BLE001
            return self._refuse_on(error)

    def _judge(self, token: BearerToken, verified: VerifiedToken) -> Refusal | None:
        if not self._required_scopes <= verified.scopes:
            return self._refuse(self.challenges.insufficient_scope, "insufficient_scope")
        if not self._is_fresh_enough(verified.claims if self._acr_values or self._max_age is not None else {}):
            return self._refuse(self.challenges.insufficient_authentication, "insufficient_user_authentication")
        token.mark_verified(verified)
        if self._span_claims is not None and (claims := self._span_claims()) is not None:
            claims.describe_current(verified)
        self._recorder.record("accepted", None)
        return None

    def _is_fresh_enough(self, claims: Mapping[str, Any]) -> bool:
        if self._acr_values and claims.get("acr") not in self._acr_values:
            return False
        if self._max_age is None:
            return True
        authenticated_at = claims.get("auth_time")
        return type(authenticated_at) in (int, float) and self._now() - authenticated_at <= self._max_age  # type: ignore[operator]

    def _refuse_on(self, error: Exception) -> Refusal | None:
        if isinstance(error, TokenRejected):
            return self._refuse(self.challenges.invalid_token, error.reason)
        if not isinstance(error, KeysUnavailable):
            # Only the type: the text of an error that is not ours may quote the token.
            _logger.error("a verifier failed: %s", type(error).__name__)
        retry_after = error.retry_after if isinstance(error, KeysUnavailable) else 1.0
        return self._refuse(self.challenges.unavailable(retry_after), "unavailable", "unavailable")

    def _refuse(self, refusal: Refusal, reason: str, outcome: Outcome = "refused") -> Refusal | None:
        self._recorder.record(outcome, reason)
        return refusal if self._mode == "enforce" else None


def gate_from(settings: Settings) -> BearerGate:
    """Build the gate of the boundary, for a service that has no middleware in its code.

    Raises:
        ConfigurationError: The settings do not say enough to verify anything.
    """
    verifier = TokenVerifier(
        settings.issuers, settings.audience, settings.algorithms, settings.profile, max_length=settings.max_length
    )
    return BearerGate(
        verifier,
        exclude=settings.verify_exclude,
        mode="report" if settings.verify == "report" else "enforce",
        span_claims=SpanClaimsInForce(SettingsInForce(settings)),
    )


class _Recorder:
    """Count every check, and say in the log what `report` would have refused."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._counter: metrics.Counter | None = None
        self._seen: dict[str, tuple[float, int]] = {}

    def record(self, outcome: Outcome, reason: str | None) -> None:
        try:
            counter = self._counter or self._create_counter()
            attributes = {OUTCOME_ATTRIBUTE: outcome} | ({} if reason is None else {REASON_ATTRIBUTE: reason})
            counter.add(1, attributes)
        except Exception:  # noqa: BLE001  # somebody's meter; the verdict stands
            _logger.debug("a verification could not be counted")
        if reason is None:
            return
        if self._mode == "report":
            self._report(reason)
        elif _logger.isEnabledFor(logging.DEBUG):
            _logger.debug("request not let in: %s", reason)

    def _create_counter(self) -> metrics.Counter:
        self._counter = metrics.get_meter("otel_token_relay").create_counter(
            COUNTER_NAME, unit="{request}", description="Requests by what came of verifying their token."
        )
        return self._counter

    def _report(self, reason: str) -> None:
        # The reasons are a closed set, so this stays small.
        now = time.monotonic()
        since, count = self._seen.get(reason, (float("-inf"), 0))
        if now - since < REPORT_SECONDS:
            self._seen[reason] = since, count + 1
            return
        self._seen[reason] = now, 0
        _logger.warning("with enforcement, this request would not be let in: %s (and %d before it)", reason, count)
