"""The demo authorization server's rules for token exchange (RFC 8693), which Authlib does not implement.

A service exchanges an access token that it has received for one that is intended for another service. The subject
stays the same. If the service sends its own access token as ``actor_token``, the issued token's ``act`` claim
identifies the service.
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
    """The token is requested for an unknown service (RFC 8693, section 2.2.2)."""

    error: str | None = "invalid_target"


class IssuedToken(Protocol):
    """What these rules need to know about an access token that the server has issued."""

    @property
    def client_id(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def actor(self) -> Mapping[str, Any] | None: ...


class Exchange(NamedTuple):
    """The token that the server must issue.

    Attributes:
        subject: The ``sub`` claim.
        actor: The ``act`` claim; ``None`` to omit it.
        scope: The scopes, separated by spaces.
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
    """Check a request to the token endpoint, and return the token that it requests.

    Args:
        form: The request's parameters.
        client_id: The authenticated client.
        audiences: The values of the ``audience`` and ``resource`` parameters.
        services: The names of the services that tokens are issued for. A service's URI is ``https://`` plus its name.
        find_token: Returns a valid access token that the server has issued; ``None`` if there is none.

    Raises:
        OAuth2Error: The request is not acceptable.

    Source: RFC 8693, sections 2.1 and 2.2.2.
    """
    if form.get("requested_token_type", ACCESS_TOKEN) not in _TYPES:
        raise InvalidRequestError("'requested_token_type' must be that of an access token")
    subject = _find_token(form, "subject_token", find_token)
    if subject is None:
        raise InvalidRequestError("Missing 'subject_token' in request.")
    actor = _find_token(form, "actor_token", find_token)
    if actor is not None and actor.client_id != client_id:
        raise InvalidRequestError("'actor_token' was issued to another client")
    if any(audience.removeprefix("https://") not in services for audience in audiences):
        raise InvalidTargetError("The requested service is unknown.")
    scope = form.get("scope") or subject.scope
    if not set(scope.split()) <= set(subject.scope.split()):
        raise InvalidScopeError("The requested scope exceeds that of the subject token.")
    return Exchange(subject.subject, _actor_claim(subject, actor), scope)


def _find_token(
    form: Mapping[str, str], name: str, find_token: Callable[[str], IssuedToken | None]
) -> IssuedToken | None:
    """Return the token in a parameter; ``None`` if the parameter is missing."""
    if name not in form:
        return None
    if form.get(f"{name}_type") not in _TYPES:
        raise InvalidRequestError(f"'{name}_type' must be that of an access token")
    found = find_token(form[name])
    if found is None:
        # RFC 8693, section 2.2.2, requires this error, not invalid_grant.
        raise InvalidRequestError(f"'{name}' is invalid or has expired")
    return found


def _actor_claim(subject: IssuedToken, actor: IssuedToken | None) -> Mapping[str, Any] | None:
    """Return the ``act`` claim, in which earlier actors are nested (RFC 8693, section 4.1)."""
    if actor is None:
        return subject.actor
    return {"sub": actor.subject} | ({} if subject.actor is None else {"act": subject.actor})
