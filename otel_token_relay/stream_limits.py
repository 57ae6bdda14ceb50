"""End long-lived responses when the caller's token expires."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from otel_token_relay.authentication import Authenticator
from otel_token_relay.boundary import Boundary
from otel_token_relay.event_loops import running_loop
from otel_token_relay.settings import Settings
from otel_token_relay.token import Clock

# RFC 6455, section 7.4.1: a message violates the server's policy.
POLICY_VIOLATION: Final = 1008

EVENT_STREAM: Final = "text/event-stream"


def limits_streams(settings: Settings, authenticator: Authenticator | None) -> bool:
    """Return whether responses may have to end when their tokens expire."""
    return authenticator is not None and settings.verify_streams == "exp"


def seconds_left(boundary: Boundary, settings: Settings, now: Clock = time.time) -> float | None:
    """Return the number of seconds until the response must end; ``None`` if the token does not limit the response.

    Only a verified token matters: a request without one is served because it does not require a token.
    """
    verification = None if boundary.token is None else boundary.token.verification
    expires_at = getattr(verification, "expires_at", None)
    return None if expires_at is None else max(0.0, expires_at + settings.leeway - now())


def is_event_stream(content_type: str | None) -> bool:
    """Return whether this is the content type of a long-lived event stream (HTML standard, section 9.2.5)."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() == EVENT_STREAM


class Limit:
    """Cancels a call when its time is up, provided that `start` has been called. Supports asyncio and trio.

    Args:
        seconds: The number of seconds from now until the call is canceled, regardless of when `start` is called.
    """

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds
        self._scope: Any = None

    def start(self) -> None:
        """Arm the limit, so that the call is canceled when its time is up. Any task on the same loop may call this."""
        seconds = max(0.0, self._ends_at - time.monotonic())
        if self._is_trio:
            import trio

            self._scope.deadline = trio.current_time() + seconds
        elif self._scope.when() is None:
            import asyncio

            self._scope.reschedule(asyncio.get_running_loop().time() + seconds)

    def stop(self) -> None:
        """Disarm the limit after the response is complete."""
        if self._is_trio:
            self._scope.deadline = float("inf")
        elif not self._scope.expired():
            self._scope.reschedule(None)

    async def run(self, call: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
        """Run *call*.

        Returns:
            Whether *call* was canceled, and its result if it was not. Errors from a canceled call are ignored.
        """
        self._is_trio = running_loop() == "trio"
        if self._is_trio:
            import trio

            with trio.CancelScope() as self._scope:
                return False, await call()
            return True, None
        import asyncio

        result = None
        self._scope = asyncio.timeout(None)
        try:
            async with self._scope:
                result = await call()
        except Exception:
            if not self._scope.expired():
                raise
        return self._scope.expired(), result
