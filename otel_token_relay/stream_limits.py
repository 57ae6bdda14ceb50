"""End a long-lived response when the caller's token expires."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from otel_token_relay.authentication import Authenticator
from otel_token_relay.boundary import Boundary
from otel_token_relay.event_loops import running_loop
from otel_token_relay.settings import Settings
from otel_token_relay.token import Clock

# The WebSocket close code for a policy violation (RFC 6455, section 7.4.1).
POLICY_VIOLATION: Final = 1008

EVENT_STREAM: Final = "text/event-stream"


def limits_streams(settings: Settings, authenticator: Authenticator | None) -> bool:
    """Return whether long-lived responses must end when the caller's token expires."""
    return authenticator is not None and settings.verify_streams == "exp"


def seconds_left(boundary: Boundary, settings: Settings, now: Clock = time.time) -> float | None:
    """Return the number of seconds until the response must end; ``None`` if the response has no time limit.

    Only a verified token limits the response's duration. A request without a verified token is accepted only if no
    token is required.
    """
    verification = None if boundary.token is None else boundary.token.verification
    expires_at = getattr(verification, "expires_at", None)
    return None if expires_at is None else max(0.0, expires_at + settings.leeway - now())


def is_event_stream(content_type: str | None) -> bool:
    """Return whether the content type is that of an event stream (HTML standard, section 9.2.5)."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() == EVENT_STREAM


class Limit:
    """A time limit after which a call in asyncio or trio is canceled. The limit has no effect until `start` is called.

    Args:
        seconds: The number of seconds from the creation of this object until the call is canceled.
    """

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds
        self._scope: Any = None

    def start(self) -> None:
        """Activate the limit. Any task on the same event loop can call this method."""
        seconds = max(0.0, self._ends_at - time.monotonic())
        if self._is_trio:
            import trio

            self._scope.deadline = trio.current_time() + seconds
        elif self._scope.when() is None:
            import asyncio

            self._scope.reschedule(asyncio.get_running_loop().time() + seconds)

    def stop(self) -> None:
        """Deactivate the limit. Call this method when the response is complete."""
        if self._is_trio:
            self._scope.deadline = float("inf")
        elif not self._scope.expired():
            self._scope.reschedule(None)

    async def run(self, call: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
        """Run *call*.

        Returns:
            Whether *call* was canceled, and its result. If *call* was canceled, its errors are ignored.
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
