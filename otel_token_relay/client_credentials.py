"""This service's own credential at an authorization server, and how it appears in a request.

A secret is never printed: `Secret` shows only that it is set, and no error message contains it.
"""

from __future__ import annotations

import base64
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args
from urllib.parse import quote

from otel_token_relay.errors import ConfigurationError

ClientAuth = Literal["client_secret_basic", "client_secret_basic_plain", "client_secret_post"]
CLIENT_AUTH_METHODS: Final[tuple[ClientAuth, ...]] = get_args(ClientAuth)

# Not in `environment_variables`, whose names become flags of the launcher. Every user of a machine can read the flags
# of its processes.
SECRET_VARIABLE: Final = "OTEL_PYTHON_TOKEN_RELAY_CLIENT_SECRET"

_MAX_SECRET_BYTES: Final = 64 * 1024


class Secret:
    """A secret that shows its value only if asked for it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value."""
        return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode("utf-8"), other._value.encode("utf-8"))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return "set"


class Authentication(NamedTuple):
    """What a request contains to identify this service.

    Attributes:
        authorization: The value of the header ``Authorization``; ``None`` for no header.
        form: Members to add to the form.
    """

    authorization: str | None
    form: tuple[tuple[str, str], ...] = ()


class CredentialUnavailable(Exception):
    """The credential cannot be read now. The message does not contain it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredential:
    """A client ID, and the secret that belongs to it.

    Attributes:
        client_id: The client ID.
        secret: The secret; requires that *secret_file* is ``None``.
        secret_file: A file that contains the secret. It is read again when it changes; line breaks at its end do not
            count.
        method: How the secret is sent: ``client_secret_basic`` (RFC 6749, section 2.3.1, with form-encoded parts),
            ``client_secret_basic_plain`` for servers that do not decode them, or ``client_secret_post``.

    Raises:
        ConfigurationError: The client ID is empty, or there is not exactly one secret.
    """

    client_id: str
    secret: Secret | None = field(default=None, repr=False)
    secret_file: str | None = None
    method: ClientAuth = "client_secret_basic"

    def __post_init__(self) -> None:
        if not isinstance(self.client_id, str) or not self.client_id:
            raise ConfigurationError("client_id", "expected the name of this service at the authorization server")
        if (self.secret is None) == (self.secret_file is None):
            raise ConfigurationError("client_secret", "expected a secret or a file that contains it, but not both")
        if self.method not in CLIENT_AUTH_METHODS:
            raise ConfigurationError("client_auth", f"expected one of {', '.join(CLIENT_AUTH_METHODS)}")

    def authenticate(self) -> Authentication:
        """Return what a request must contain.

        Raises:
            CredentialUnavailable: The file cannot be read.
        """
        secret = self.secret.reveal() if self.secret is not None else _read_secret(str(self.secret_file))
        if self.method == "client_secret_post":
            return Authentication(None, (("client_id", self.client_id), ("client_secret", secret)))
        return Authentication(basic_credentials(self.client_id, secret, is_plain=self.method.endswith("_plain")))


def make_credential(
    client_id: str | None,
    secret: Secret | str | None,
    secret_file: str | None = None,
    method: ClientAuth = "client_secret_basic",
) -> ClientCredential | None:
    """Return the credential; ``None`` if there is no client ID.

    Raises:
        ConfigurationError: A part is missing; the error names it.
    """
    if client_id is None:
        if secret is not None or secret_file is not None:
            raise ConfigurationError("client_secret", "expected both client_id and client_secret, or neither")
        return None
    if isinstance(secret, str):
        secret = Secret(secret)
    return ClientCredential(client_id=client_id, secret=secret, secret_file=secret_file, method=method)


def basic_credentials(client_id: str, client_secret: str, *, is_plain: bool = False) -> str:
    """Return the value of ``Authorization``.

    Args:
        client_id: The client ID.
        client_secret: The client's secret.
        is_plain: Whether to omit the form encoding, which RFC 6749, section 2.3.1, requires.
    """
    # Encode a space as %20, which is accepted both by form decoders and by servers that decode only percent escapes.
    parts = (client_id, client_secret) if is_plain else (quote(client_id, safe=""), quote(client_secret, safe=""))
    return "Basic " + base64.b64encode(":".join(parts).encode("utf-8")).decode("ascii")


class _Version(NamedTuple):
    modified: int
    size: int
    inode: int


_files: dict[str, tuple[_Version, str]] = {}


def _read_secret(path: str) -> str:
    """Return the content of the file, which is read again if it has changed."""
    try:
        status = os.stat(path)
        version = _Version(status.st_mtime_ns, status.st_size, status.st_ino)
        known = _files.get(path)
        if known is None or known[0] != version:
            if status.st_size > _MAX_SECRET_BYTES:
                raise CredentialUnavailable("the file with the client secret is too large")
            known = _files[path] = version, Path(path).read_text("utf-8").rstrip("\r\n")
    except (OSError, ValueError):
        raise CredentialUnavailable("the file with the client secret cannot be read") from None
    if not known[1]:
        raise CredentialUnavailable("the file with the client secret is empty")
    return known[1]
