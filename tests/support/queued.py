"""A caller whose outgoing request waits for a connection, and the events that can affect the caller's
token meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import context as otel_context

import otel_token_relay.runtime
from otel_token_relay import Reason
from otel_token_relay.context import with_token
from otel_token_relay.relay import Relay
from otel_token_relay.token import BearerToken, Lease
from tests.support.tokens import unsigned

TOKEN = unsigned({"alg": "none"}, {"exp": 2**33}, "c2ln")
LINE = [f"Bearer {TOKEN}"]


@dataclass
class Revocable:
    """A verification that the test can revoke."""

    claims: dict[str, object] = field(default_factory=dict)
    expires_at: float | None = None
    is_valid: bool | None = True

    def is_still_valid(self) -> bool:
        if self.is_valid is None:
            raise RuntimeError("the check fails")
        return self.is_valid


class Caller:
    """A caller whose request is being served, with the recorded hops."""

    def __init__(self, *, has_lease: bool = True) -> None:
        self.lease = Lease()
        self.verification = Revocable()
        self.token = BearerToken(TOKEN, lease=self.lease if has_lease else None)
        self.token.mark_verified(self.verification)
        self.reasons: list[Reason] = []
        self.decided = threading.Event()
        runtime = otel_token_relay.runtime.installed
        assert runtime is not None
        self.relay = runtime.relay
        self._observe(self.relay)

    def _observe(self, relay: Relay) -> None:
        decide, record = relay.decide, relay._record

        def observed_decide(*args: Any, **kwargs: Any) -> Any:
            try:
                return decide(*args, **kwargs)
            finally:
                if otel_context.get_current().get("test-is-queued"):
                    self.decided.set()

        def observed_record(reason: Reason, *args: Any, **kwargs: Any) -> None:
            if otel_context.get_current().get("test-is-queued"):
                self.reasons.append(reason)
            record(reason, *args, **kwargs)

        relay.decide, relay._record = observed_decide, observed_record  # type: ignore[method-assign]

    @contextmanager
    def bound(self) -> Iterator[None]:
        context = otel_context.set_value("test-is-queued", True, with_token(self.token))
        attached = otel_context.attach(context)
        try:
            yield
        finally:
            otel_context.detach(attached)


def end_request(caller: Caller) -> None:
    caller.lease.end()


def let_it_expire(caller: Caller) -> None:
    caller.relay._now = lambda: 2**33


def revoke(caller: Caller) -> None:
    caller.verification.is_valid = False


def let_it_age(caller: Caller) -> None:
    caller.relay._monotonic = lambda: time.monotonic() + 10_000


def fail_to_check(caller: Caller) -> None:
    caller.verification.is_valid = None


def go_on(caller: Caller) -> None:
    """Simulate a caller that is still waiting for its response."""


Event = Callable[[Caller], None]
