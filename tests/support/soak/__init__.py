"""Three services that call each other in every way and check that each token belongs to the expected user.

The query string names the user and the way. No service derives them from the token.
"""

from __future__ import annotations

import threading

ANONYMOUS = "0"


def token_of(user: str) -> str | None:
    """Return the token that a user's requests carry."""
    return None if user == ANONYMOUS else f"user-{user}-token-of-this-soak"


class Tally:
    """The calls that one service has seen. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = {"calls": 0, "wrong": 0, "after_lease": 0}

    def check(self, user: str, authorization: str | None, *, late: bool) -> bool:
        """Record one call, and return whether its token is the user's.

        A late call comes from work that outlives its request. It must not have any token.
        """
        token = authorization and authorization.removeprefix("Bearer ")
        with self._lock:
            self.counts["calls"] += 1
            self.counts["wrong"] += token is not None and token != token_of(user)
            self.counts["after_lease"] += late and token is not None
        return token == token_of(user)
