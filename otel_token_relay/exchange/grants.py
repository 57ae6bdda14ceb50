"""The parameters of exchange requests for each grant type. This module performs no I/O and does not read any settings.

* ``token-exchange``: Token exchange according to RFC 8693, section 2.1. Both the subject token and the issued token are
  access tokens.
* ``on-behalf-of``: Microsoft Entra's grant, which uses a JWT bearer assertion (RFC 7523, section 2.1) and the
  ``requested_token_use`` parameter.
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
    """The parameters of a request for a token.

    Attributes:
        grant: The grant type. With ``client-credentials``, the service obtains its own token and does not require a
            caller's token.
        audience: The logical name of the service that will receive the issued token; ``None`` to omit the parameter.
        resource: The URI of the service that will receive the issued token; ``None`` to omit the parameter.
        scope: A space-separated list of the requested scopes; ``None`` to omit the parameter.
        expected: Audiences of the issued token that are acceptable in addition to the requested audience.
        has_actor: Whether the request identifies this service as the actor.
        claims: The requested claims, in JSON format. Only Microsoft Entra supports this parameter.
    """

    grant: Grant | Literal["client-credentials"] = "token-exchange"
    audience: str | None = None
    resource: str | None = None
    scope: str | None = None
    expected: tuple[str, ...] = ()
    has_actor: bool = False
    claims: str | None = field(default=None, repr=False)  # the claims can identify the user

    def of_client(self) -> Request:
        """Return a request for the service's own token for the same destination."""
        if self.grant == "on-behalf-of":
            return Request("client-credentials", scope=self._entra_scope(), expected=self.expected)
        return replace(self, grant="client-credentials", has_actor=False)

    @property
    def audiences(self) -> frozenset[str]:
        """The acceptable audiences of an issued JWT; empty if all audiences are acceptable."""
        asked = [name for name in (self.audience, self.resource) if name is not None]
        return frozenset([*asked, *self.expected]) if asked else frozenset()

    def form(self, subject: str | None, actor: str | None = None) -> Form:
        """Return the parameters of the request, excluding this service's credential.

        Args:
            subject: The caller's token; ``None`` for ``client-credentials``.
            actor: This service's own token (RFC 8693, section 2.1). Only ``token-exchange`` supports this parameter.
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
            raise ValueError("a token exchange requires a subject token")
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
        """Return the requested scopes or, if there are none, the scope for all permissions.

        In Entra, the scope contains the audience.
        """
        return self.scope or f"{self.audience or self.resource or ''}/.default"
