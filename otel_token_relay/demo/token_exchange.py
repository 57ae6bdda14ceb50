"""Implement token exchange (RFC 8693), which Authlib does not support, for the demo's authorization server.

In a token exchange, a service sends an access token that it has received and obtains a token with a different audience.
Both tokens have the same subject. If the service sends its own access token as ``actor_token``, the issued token's
``act`` claim identifies the service.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple, Protocol

from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749.errors import InvalidRequestError, InvalidScopeError

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
_TYPES: Final = (ACCESS_TOKEN, "urn:ietf:params:oauth:token-type:jwt")


class InvalidTargetError(OAuth2Error):
    """An error raised if a request specifies an unknown service (RFC 8693, section 2.2.2)."""

    error: str | None = "invalid_target"


class IssuedToken(Protocol):
    """The properties of an issued access token that an exchange requires."""

    @property
    def client_id(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def actor(self) -> Mapping[str, Any] | None: ...


class Exchange(NamedTuple):
    """The properties of the token to issue.

    Attributes:
        subject: The ``sub`` claim.
        actor: The ``act`` claim, or ``None`` to omit it.
        scope: The space-separated scopes.
    """

    subject: str
    actor: Mapping[str, Any] | None
    scope: str


def read_exchange(
    form: Mapping[str, str],
    *,
    client_id: str,
    audiences: Collection[str],
    services: Collection[str],
    find_token: Callable[[str], IssuedToken | None],
) -> Exchange:
    """Validate a token exchange request, and return the properties of the token to issue.

    Args:
        form: The request's parameters.
        client_id: The authenticated client.
        audiences: The values of the ``audience`` and ``resource`` parameters.
        services: The names of the services for which tokens can be issued. A service's URI is ``https://`` followed by
            its name.
        find_token: A callable that returns the issued access token with a given value, or ``None`` if the token is
            invalid.

    Raises:
        OAuth2Error: The request is invalid.

    Source: RFC 8693, sections 2.1 and 2.2.2.
    """
    if form.get("requested_token_type", ACCESS_TOKEN) not in _TYPES:
        raise InvalidRequestError("'requested_token_type' must be an access token type")
    subject = _find_token(form, "subject_token", find_token)
    if subject is None:
        raise InvalidRequestError("Missing 'subject_token' in request.")
    actor = _find_token(form, "actor_token", find_token)
    if actor is not None and actor.client_id != client_id:
        raise InvalidRequestError("'actor_token' was issued to a different client")
    if any(audience.removeprefix("https://") not in services for audience in audiences):
        raise InvalidTargetError("The requested service is unknown.")
    scope = form.get("scope") or subject.scope
    if not set(scope.split()) <= set(subject.scope.split()):
        raise InvalidScopeError("The requested scope exceeds the subject token's scope.")
    return Exchange(subject.subject, _actor_claim(subject, actor), scope)


def _find_token(
    form: Mapping[str, str], name: str, find_token: Callable[[str], IssuedToken | None]
) -> IssuedToken | None:
    """Return the token in a request parameter, or ``None`` if the parameter is missing."""
    if name not in form:
        return None
    if form.get(f"{name}_type") not in _TYPES:
        raise InvalidRequestError(f"'{name}_type' must be an access token type")
    found = find_token(form[name])
    if found is None:
        # RFC 8693, section 2.2.2, requires this error rather than invalid_grant.
        raise InvalidRequestError(f"'{name}' is invalid or has expired")
    return found


def _actor_claim(subject: IssuedToken, actor: IssuedToken | None) -> Mapping[str, Any] | None:
    """Return the ``act`` claim, in which earlier actors are nested (RFC 8693, section 4.1)."""
    if actor is None:
        return subject.actor
    return {"sub": actor.subject} | ({} if subject.actor is None else {"act": subject.actor})
