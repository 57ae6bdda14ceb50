"""Error responses for rejected requests. Most responses are built at startup.

A response never contains any part of the request, such as the token, its claims, or the path.

Source: RFC 6750, section 3; RFC 9728, section 5.1; RFC 9470, section 3; RFC 9110, section 15.5.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from otel_token_relay.authentication import ErrorResponse
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.reasons import Reason

# RFC 6750, section 3, allows %x20-21 / %x23-5B / %x5D-7E, which excludes quotes and backslashes. According to RFC 6749,
# section 3.3, a scope must not contain spaces.
_is_quotable = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+", re.ASCII).fullmatch
_is_scope = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+", re.ASCII).fullmatch


def _check_words(setting: str, words: Sequence[str]) -> None:
    if isinstance(words, str) or not all(isinstance(word, str) and _is_scope(word) for word in words):
        raise ConfigurationError(setting, "expected a sequence of words without spaces, quotes, or backslashes")


class Challenges:
    """The error responses for one protected resource.

    Args:
        realm: The realm to include in every challenge. The ``Bearer`` scheme alone is not a valid challenge (RFC 6750,
            section 3).
        required_scopes: The scopes that a token must have. The challenge includes these scopes so that the client can
            request them.
        any_scopes: A list of scopes. A token needs only one of these scopes, but the challenge lists all of them,
            because a challenge cannot express alternatives.
        resource_metadata: The URL of this resource's metadata (RFC 9728), or ``None`` to omit it.
        acr_values: The accepted authentication context class references (RFC 9470).
        max_age: The maximum time, in seconds, since the user authenticated (RFC 9470).

    Raises:
        ConfigurationError: A value contains a character that is not allowed in a challenge.
    """

    def __init__(
        self,
        *,
        realm: str,
        required_scopes: Sequence[str] = (),
        any_scopes: Sequence[str] = (),
        resource_metadata: str | None = None,
        acr_values: Sequence[str] = (),
        max_age: float | None = None,
    ) -> None:
        for name, text in (("realm", realm), ("resource_metadata", resource_metadata)):
            if text is not None and not (isinstance(text, str) and _is_quotable(text)):
                raise ConfigurationError(name, "expected non-empty ASCII text without quotes or backslashes")
        _check_words("required_scopes", required_scopes)
        _check_words("any_scopes", any_scopes)
        _check_words("acr_values", acr_values)
        self._start = [("realm", realm)]
        self._end = [] if resource_metadata is None else [("resource_metadata", resource_metadata)]
        scopes = tuple(dict.fromkeys((*required_scopes, *any_scopes)))
        scope = [("scope", " ".join(scopes))] if scopes else []
        # According to RFC 6750, section 3.1, the response must not include an error code if the request contains no
        # token.
        self.unauthenticated: ErrorResponse = self._challenge(401, None, "unauthenticated", *scope)
        self.invalid_request: ErrorResponse = self._challenge(400, "invalid_request", "invalid_request")
        self.invalid_token: ErrorResponse = self._challenge(401, "invalid_token", "invalid_token", *scope)
        step_up = [("acr_values", " ".join(acr_values))] if acr_values else []
        step_up += [] if max_age is None else [("max_age", str(int(max_age)))]
        error = "insufficient_user_authentication"
        self.insufficient_authentication: ErrorResponse = self._challenge(401, error, error, *step_up)
        self.insufficient_scope: ErrorResponse = self.build_insufficient_scope(scopes)

    def build_insufficient_scope(self, scopes: Sequence[str]) -> ErrorResponse:
        """Build the error response for a valid token that lacks a required scope.

        Raises:
            ConfigurationError: A scope contains a character that is not allowed in a challenge.
        """
        _check_words("scopes", scopes)
        error = "insufficient_scope"
        return self._challenge(403, error, error, *([("scope", " ".join(scopes))] if scopes else []))

    def without_token(self, reason: Reason) -> ErrorResponse:
        """Return the error response for a request whose headers do not contain a usable token."""
        if reason is Reason.ABSENT:
            return self.unauthenticated
        return self.invalid_token if reason is Reason.TOO_LONG else self.invalid_request

    def unavailable(self, retry_after: float) -> ErrorResponse:
        """Build the error response for an unavailable issuer (RFC 9110, section 10.2.3)."""
        seconds = min(max(1, math.ceil(retry_after)), 3600) if math.isfinite(retry_after) else 3600
        return ErrorResponse.build(503, "temporarily_unavailable", ("Retry-After", str(seconds)))

    def _challenge(self, status: int, error: str | None, body: str, *attributes: tuple[str, str]) -> ErrorResponse:
        named = [] if error is None else [("error", error)]
        text = ", ".join(f'{name}="{value}"' for name, value in (*self._start, *named, *attributes, *self._end))
        return ErrorResponse.build(status, body, ("WWW-Authenticate", f"Bearer {text}"))
