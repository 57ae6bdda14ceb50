"""Run code within a server boundary that has received a caller's token."""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_token_relay import runtime
from otel_token_relay.authentication import Authenticator, ErrorResponse, RequestPath
from otel_token_relay.boundary import Boundary
from otel_token_relay.token import BearerToken

# No verification exclusion matches this path.
_NO_PATH: Final = RequestPath(None, "")

# The open blocks in the current thread or task, each with the value that `attach` returned.
_open: Final[ContextVar[tuple[tuple[Boundary, Any], ...]]] = ContextVar("otel_token_relay_callers", default=())


class CallerRefused(AssertionError):
    """An error raised if the settings require a verified token and the caller's token is rejected."""

    def __init__(self, name: str, error_response: ErrorResponse) -> None:
        reason = error_response.reason or error_response.error
        claim = "" if error_response.claim is None else f", claim {error_response.claim}"
        super().__init__(f"{name}'s token is not accepted: {reason}{claim} (status {error_response.status})")


class Headers(dict[str, str]):
    """Headers whose ``repr`` omits the header values."""

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self)}>"


class Caller:
    """A user with a token.

    The code in a ``with`` or ``async with`` block runs as if it were handling a request from this caller. The installed
    relay reads the token, verifies it if the settings require verification, and ends its lease when the block ends.
    Multiple blocks can use the same `Caller`, including concurrent blocks in different threads or tasks.

    Attributes:
        name: The user's name.
        token: The user's token.
    """

    def __init__(self, name: str, token: BearerToken) -> None:
        self.name: str = name
        self.token: BearerToken = token

    @property
    def headers(self) -> Headers:
        """The ``Authorization`` header that a test client must send in a request from this caller."""
        return Headers({"Authorization": f"Bearer {self.token.reveal()}"})

    def __enter__(self) -> Caller:
        boundary, authenticator = self._arrive()
        self._attach(boundary, boundary.check(authenticator, _NO_PATH))
        return self

    async def __aenter__(self) -> Caller:
        boundary, authenticator = self._arrive()
        self._attach(boundary, await boundary.check_async(authenticator, _NO_PATH))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        *outer, (boundary, attached) = _open.get()
        _open.set(tuple(outer))
        boundary.close()
        otel_context.detach(attached)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _arrive(self) -> tuple[Boundary, Authenticator | None]:
        if runtime.installed is None:
            raise RuntimeError("no relay is installed: use the token_relay fixture or installed_relay()")
        settings, authenticator = runtime.installed.terms
        header = next(iter(settings.source_headers), "authorization")

        def values_of(name: str) -> tuple[str, ...]:
            return (f"Bearer {self.token.reveal()}",) if name == header else ()

        return Boundary.of(values_of, settings), authenticator

    def _attach(self, boundary: Boundary, error_response: ErrorResponse | None) -> None:
        __tracebackhide__ = True
        if error_response is not None:
            boundary.close()
            raise CallerRefused(self.name, error_response)
        _open.set((*_open.get(), (boundary, otel_context.attach(boundary.context()))))

    def __repr__(self) -> str:
        return f"<Caller {self.name}>"
