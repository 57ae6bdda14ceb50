"""The answers to requests that are not let in, fixed at start-up. Pure.

Nothing of the request is ever in them: not the token, not a claim, not the path.

Source: RFC 6750, section 3; RFC 9728, section 5.1; RFC 9470, section 3; RFC 9110, section 15.5.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from otel_token_relay.door import Refusal
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.reasons import Reason

# RFC 6750, section 3: %x20-21 / %x23-5B / %x5D-7E, so no quote and no backslash; a scope has
# no space either (RFC 6749, section 3.3).
_is_quotable = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+", re.ASCII).fullmatch
_is_scope = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+", re.ASCII).fullmatch


def _check_words(setting: str, words: Sequence[str]) -> None:
    if isinstance(words, str) or not all(isinstance(word, str) and _is_scope(word) for word in words):
        raise ConfigurationError(setting, "this must be a sequence of words without spaces, quotes and backslashes")


class Challenges:
    """The answers of one protected resource.

    Args:
        realm: Always sent: ``Bearer`` alone is no challenge (RFC 6750, section 3).
        required_scopes: Named in the challenge, so that a client knows what to ask for.
        resource_metadata: The URL of this resource's metadata (RFC 9728); ``None`` to leave it out.
        acr_values: How a user must have been authenticated (RFC 9470).
        max_age: Seconds since then, at most.

    Raises:
        ConfigurationError: A value cannot stand in a challenge.
    """

    def __init__(
        self,
        *,
        realm: str,
        required_scopes: Sequence[str] = (),
        resource_metadata: str | None = None,
        acr_values: Sequence[str] = (),
        max_age: float | None = None,
    ) -> None:
        for name, text in (("realm", realm), ("resource_metadata", resource_metadata)):
            if text is not None and not (isinstance(text, str) and _is_quotable(text)):
                raise ConfigurationError(name, "this must be plain ASCII without quotes and backslashes, and not empty")
        _check_words("required_scopes", required_scopes)
        _check_words("acr_values", acr_values)
        self._start = [("realm", realm)]
        self._end = [] if resource_metadata is None else [("resource_metadata", resource_metadata)]
        scope = [("scope", " ".join(required_scopes))] if required_scopes else []
        # RFC 6750, section 3.1: no error code where no token was brought.
        self.unauthenticated = self._challenge(401, None, "unauthenticated", *scope)
        self.invalid_request = self._challenge(400, "invalid_request", "invalid_request")
        self.invalid_token = self._challenge(401, "invalid_token", "invalid_token", *scope)
        step_up = [("acr_values", " ".join(acr_values))] if acr_values else []
        step_up += [] if max_age is None else [("max_age", str(int(max_age)))]
        error = "insufficient_user_authentication"
        self.insufficient_authentication = self._challenge(401, error, error, *step_up)
        self.insufficient_scope = self.build_insufficient_scope(required_scopes)

    def build_insufficient_scope(self, scopes: Sequence[str]) -> Refusal:
        """Build the answer to a valid token that does not allow this.

        Raises:
            ConfigurationError: A scope cannot stand in a challenge.
        """
        _check_words("scopes", scopes)
        error = "insufficient_scope"
        return self._challenge(403, error, error, *([("scope", " ".join(scopes))] if scopes else []))

    def at_the_door(self, reason: Reason) -> Refusal:
        """Give the answer to a request whose header gives no token."""
        if reason is Reason.ABSENT:
            return self.unauthenticated
        return self.invalid_token if reason is Reason.TOO_LONG else self.invalid_request

    def unavailable(self, retry_after: float) -> Refusal:
        """Build the answer for an outage of ours (RFC 9110, section 10.2.3)."""
        seconds = min(max(1, math.ceil(retry_after)), 3600) if math.isfinite(retry_after) else 3600
        return Refusal.build(503, "temporarily_unavailable", ("Retry-After", str(seconds)))

    def _challenge(self, status: int, error: str | None, body: str, *attributes: tuple[str, str]) -> Refusal:
        named = [] if error is None else [("error", error)]
        text = ", ".join(f'{name}="{value}"' for name, value in (*self._start, *named, *attributes, *self._end))
        return Refusal.build(status, body, ("WWW-Authenticate", f"Bearer {text}"))
