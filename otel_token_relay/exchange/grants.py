"""The form of an exchange request for each grant. This module performs no I/O and reads no settings.

* ``token-exchange``: RFC 8693, section 2.1. The subject and the result are access tokens.
* ``on-behalf-of``: Microsoft Entra's grant, which is a JWT bearer assertion (RFC 7523, section 2.1) with
  ``requested_token_use``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from otel_token_relay.entry_syntax import Grant

ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"

Form = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What is requested in exchange for a caller's token.

    Attributes:
        grant: The grant to use; ``client-credentials`` to obtain the service's own token without a caller's token.
        audience: The logical name of the service that will receive the result; ``None`` to send none.
        resource: The URI of that service; ``None`` to send none.
        scope: The scopes of the result, separated by spaces; ``None`` to send none.
        expected: Audiences that the result may have instead of the requested one.
        has_actor: Whether to identify this service as the actor.
        claims: The claims that the result must have, as JSON text. Only Entra supports this parameter.
    """

    grant: Grant | Literal["client-credentials"] = "token-exchange"
    audience: str | None = None
    resource: str | None = None
    scope: str | None = None
    expected: tuple[str, ...] = ()
    has_actor: bool = False
    claims: str | None = field(default=None, repr=False)  # it may identify the user

    def of_client(self) -> Request:
        """Return the request for the service's own token for the same destination."""
        if self.grant == "on-behalf-of":
            return Request("client-credentials", scope=self._entra_scope(), expected=self.expected)
        return replace(self, grant="client-credentials", has_actor=False)

    @property
    def audiences(self) -> frozenset[str]:
        """The audiences, one of which a JWT result must contain; empty if any audience is acceptable."""
        asked = [name for name in (self.audience, self.resource) if name is not None]
        return frozenset([*asked, *self.expected]) if asked else frozenset()

    def form(self, subject: str | None, actor: str | None = None) -> Form:
        """Return the request parameters without the client's credentials.

        Args:
            subject: The caller's token; ``None`` for ``client-credentials``.
            actor: This service's own token (RFC 8693, section 2.1), which only ``token-exchange`` can send.
        """
        if self.grant == "client-credentials":
            own = (
                ("grant_type", "client_credentials"),
                ("audience", self.audience),
                ("resource", self.resource),
                ("scope", self.scope),
                ("claims", self.claims),
            )
            return tuple((name, value) for name, value in own if value is not None)
        if subject is None:
            raise ValueError("an exchange needs a subject token")
        if self.grant == "on-behalf-of":
            return (
                ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
                ("assertion", subject),
                ("requested_token_use", "on_behalf_of"),
                ("scope", self._entra_scope()),
                *((("claims", self.claims),) if self.claims is not None else ()),
            )
        parameters = (
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", subject),
            ("subject_token_type", ACCESS_TOKEN),
            ("requested_token_type", ACCESS_TOKEN),
            ("actor_token", actor),
            ("actor_token_type", None if actor is None else ACCESS_TOKEN),
            ("audience", self.audience),
            ("resource", self.resource),
            ("scope", self.scope),
        )
        return tuple((name, value) for name, value in parameters if value is not None)

    def _entra_scope(self) -> str:
        """Return the scopes, or else all permissions at the audience: Entra accepts audiences only within scopes."""
        return self.scope or f"{self.audience or self.resource or ''}/.default"
