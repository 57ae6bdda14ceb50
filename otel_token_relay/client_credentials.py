"""The credential with which this service authenticates to an authorization server.

`ClientCredential` contains the configured values. This service can authenticate with a secret in a header or a form
field, with an assertion that it signs, with an assertion that the platform issues, or with a TLS client certificate.

Secrets are never printed. The value of ``repr(Secret(...))`` is always ``set``, and error messages do not contain
secrets.
"""

from __future__ import annotations

import base64
import contextvars
import hmac
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, NoReturn, get_args
from urllib.parse import quote

from otel_token_relay.client_assertions import (
    ASSERTION_TYPE,
    parse_certificate,
    parse_private_key,
    sign_assertion,
)
from otel_token_relay.credential_files import (
    CredentialUnavailable,
    FileUnusable,
    FileVersion,
    read_file,
    read_text,
    use_file,
    version_of,
)
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.token import is_b64token

if TYPE_CHECKING:
    import ssl

__all__ = [
    "CLIENT_AUTH_METHODS",
    "SECRET_VARIABLE",
    "Authentication",
    "ClientAuth",
    "ClientCertificate",
    "ClientCredential",
    "CredentialUnavailable",
    "Secret",
    "basic_credentials",
    "make_credential",
]

ClientAuth = Literal[
    "client_secret_basic",
    "client_secret_basic_plain",
    "client_secret_post",
    "private_key_jwt",
    "private_key_jwt_rfc7523",
    "tls_client_auth",
]
CLIENT_AUTH_METHODS: Final[tuple[ClientAuth, ...]] = get_args(ClientAuth)

# The `opentelemetry-instrument` launcher creates a command-line flag for each name in `environment_variables`. All
# users of a machine can read command-line flags, so the secret's variable is defined here instead.
SECRET_VARIABLE: Final = "OTEL_PYTHON_TOKEN_RELAY_CLIENT_SECRET"

_MAX_ASSERTION_LENGTH: Final = 64 * 1024

_SECRET_METHODS: Final[tuple[ClientAuth, ...]] = (
    "client_secret_basic",
    "client_secret_basic_plain",
    "client_secret_post",
)

# The valid combinations of values, each with the methods that it supports. If a credential has only one value,
# the first method is the default. Assertions that the platform issues have no method.
_METHODS: Final[Mapping[tuple[str, ...], tuple[ClientAuth, ...]]] = {
    ("secret",): _SECRET_METHODS,
    ("secret_file",): _SECRET_METHODS,
    ("key_file",): ("private_key_jwt", "private_key_jwt_rfc7523"),
    ("assertion",): (),
    ("assertion_file",): (),
    ("cert_file",): ("tls_client_auth",),
    ("key_file", "cert_file"): ("private_key_jwt_rfc7523", "tls_client_auth"),
}
_PARTS: Final = ("secret", "secret_file", "key_file", "assertion", "assertion_file", "cert_file")


class Secret:
    """A secret whose value is available only through `reveal`."""

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


class ClientCertificate(NamedTuple):
    """The current version of a TLS client certificate (RFC 8705, section 2.1).

    Attributes:
        cert_file: A PEM file that contains the certificate and, optionally, its chain of CA certificates.
        key_file: A PEM file that contains the private key; ``None`` if *cert_file* contains the key.
        versions: The versions of the files. A connection is not reused after a file changes.
    """

    cert_file: str
    key_file: str | None
    versions: tuple[FileVersion, ...]

    @classmethod
    def read(cls, cert_file: str, key_file: str | None) -> ClientCertificate:
        """Return the certificate that the files currently contain.

        Raises:
            CredentialUnavailable: The files cannot be used.
        """
        versions = [use_file("client_cert_file", partial(version_of, cert_file))]
        if key_file is not None:
            versions.append(use_file("client_key_file", partial(version_of, key_file)))
        return cls(cert_file, key_file, tuple(versions))

    def load_into(self, context: ssl.SSLContext) -> None:
        """Configure *context* to present this certificate.

        Raises:
            CredentialUnavailable: The files cannot be used.
        """

        import ssl  # imported late, because gevent must patch `ssl` first

        def refuse() -> NoReturn:  # without this callback, OpenSSL would prompt for a password on the terminal
            raise ValueError

        problem = "cannot be read"
        try:
            context.load_cert_chain(self.cert_file, self.key_file, password=refuse)
        except ssl.SSLError as error:
            problem = "must contain a certificate and an unencrypted private key in PEM format"
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = "contain a certificate and a private key that do not match"
        except ValueError:
            problem = "contain a password-protected private key, which is not supported"
        except OSError:
            pass
        else:
            return
        raise CredentialUnavailable(f"the files in client_cert_file and client_key_file {problem}")


class Authentication(NamedTuple):
    """The parts of a request that authenticate this service.

    Attributes:
        authorization: The value of the ``Authorization`` header; ``None`` to omit the header.
        form: Additional form fields.
        certificate: The TLS client certificate; ``None`` if the request does not use a certificate.
    """

    authorization: str | None = None
    form: tuple[tuple[str, str], ...] = ()
    certificate: ClientCertificate | None = None

    def __repr__(self) -> str:
        return f"Authentication({', '.join(name for name, _ in self.form) or 'no form'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredential:
    """A client ID and a secret, key, assertion, or certificate for that client.

    Files are read again when they change. Callables are called without arguments in a worker thread, outside the
    caller's context, and must return quickly.

    Attributes:
        client_id: The client ID.
        secret: The client secret, or a callable that returns the client secret.
        secret_file: A file that contains the secret; trailing line breaks are ignored.
        key_file: A file that contains the private key for signing assertions, in PEM or JWK format. The key can be an
            RSA, P-256, P-384, P-521, or Ed25519 key. With ``tls_client_auth``, the file contains the certificate's
            private key in PEM format.
        key_id: The ``kid`` of assertions that this service signs; ``None`` to use the JWK's own ``kid``, if present.
        assertion: A callable that returns an assertion issued by the platform.
        assertion_file: A file that contains an assertion issued by the platform, such as a projected Kubernetes token.
        cert_file: A file that contains a certificate in PEM format. With ``private_key_jwt_rfc7523``, the assertions
            include the certificate's thumbprint.
        method: The authentication method; ``None`` to use the default for this type of credential. A secret can be sent
            with ``client_secret_basic`` (RFC 6749, section 2.3.1, with form-encoded values),
            ``client_secret_basic_plain`` (for servers that do not decode the values), or ``client_secret_post``. A key
            can be used with ``private_key_jwt`` or ``private_key_jwt_rfc7523``. With ``private_key_jwt``, the audience
            of the assertions is the issuer (draft-ietf-oauth-rfc7523bis). With ``private_key_jwt_rfc7523``, the
            audience is the endpoint (RFC 7523), as Microsoft Entra requires. A TLS client certificate requires
            ``tls_client_auth`` (RFC 8705) and is presented only to this credential's endpoints.

    Raises:
        ConfigurationError: The client ID is empty, or the other values cannot be combined. The error identifies one
            invalid value.
    """

    client_id: str
    secret: Secret | str | Callable[[], str] | None = field(default=None, repr=False)
    secret_file: str | None = None
    key_file: str | None = None
    key_id: str | None = None
    assertion: Callable[[], str] | None = field(default=None, repr=False)
    assertion_file: str | None = None
    cert_file: str | None = None
    method: ClientAuth | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.client_id, str) or not self.client_id:
            raise ConfigurationError("client_id", "expected this service's client ID at the authorization server")
        if isinstance(self.secret, str):
            object.__setattr__(self, "secret", Secret(self.secret))
        for name in ("secret", "assertion"):
            _check_source(f"client_{name}", getattr(self, name))
        given = tuple(name for name in _PARTS if getattr(self, name) is not None)
        methods = _METHODS.get(given)
        if methods is None:
            raise ConfigurationError(f"client_{given[0] if given else 'secret'}", _problem_with(given))
        if self.method is None and len(given) == 1 and methods:
            object.__setattr__(self, "method", methods[0])
        elif self.method not in (methods or (None,)):
            what = " and ".join(f"client_{name}" for name in given)
            raise ConfigurationError(
                "client_auth", f"expected {' or '.join(methods) or 'no method'}, because the credential is {what}"
            )
        if self.key_id is not None and (self.key_file is None or self.method == "tls_client_auth"):
            raise ConfigurationError("client_key_id", "expected a client_key_file with a signing key")

    def check_use(self, issuer: str | None, endpoint: str) -> None:
        """Check that the credential can be sent to an endpoint.

        Args:
            issuer: The endpoint's issuer; ``None`` if unknown.
            endpoint: The endpoint's URL.

        Raises:
            ConfigurationError: The authentication method cannot be used with this issuer or endpoint.
        """
        # A multitenant issuer contains a placeholder in braces.
        if self.method == "private_key_jwt" and (issuer is None or "{" in issuer):
            raise ConfigurationError(
                "client_auth",
                "private_key_jwt requires exactly one issuer as the audience of its assertions; otherwise, use"
                " private_key_jwt_rfc7523",
            )
        if self.method == "tls_client_auth" and not endpoint.lower().startswith("https:"):
            raise ConfigurationError("client_auth", "tls_client_auth requires an https endpoint")

    def authenticate(self, issuer: str | None, endpoint: str) -> Authentication:
        """Return the parts of a request that authenticate this service.

        Each call might read files or sign an assertion.

        Args:
            issuer: The endpoint's issuer; ``None`` if unknown.
            endpoint: The URL to which the request is sent.

        Raises:
            CredentialUnavailable: A file or callable cannot currently be used.
        """
        if self.method in _SECRET_METHODS:
            return self._with_secret()
        if self.method == "tls_client_auth":
            return self._with_certificate()
        if self.method is None:
            return self._with_assertion()
        return self._with_signature(endpoint if self.method == "private_key_jwt_rfc7523" else issuer)

    def _with_secret(self) -> Authentication:
        """Return the secret in a header or in form fields (RFC 6749, section 2.3.1)."""
        if self.secret_file is not None:
            secret = read_file(self.secret_file, "client_secret_file", read_text)
        elif isinstance(self.secret, Secret):
            secret = self.secret.reveal()
        else:
            secret = _call(self.secret, "client_secret", str.isprintable)
        if self.method == "client_secret_post":
            return Authentication(form=(("client_id", self.client_id), ("client_secret", secret)))
        is_plain = self.method == "client_secret_basic_plain"
        return Authentication(basic_credentials(self.client_id, secret, is_plain=is_plain))

    def _with_signature(self, audience: str | None) -> Authentication:
        """Return form fields with an assertion that this service signs (RFC 7523, section 2.2)."""
        if audience is None:
            raise CredentialUnavailable("private_key_jwt requires an issuer")
        key = read_file(str(self.key_file), "client_key_file", parse_private_key)
        thumbprint = None
        if self.cert_file is not None:
            certificate = read_file(self.cert_file, "client_cert_file", parse_certificate)
            if certificate.public != key.public:
                raise CredentialUnavailable("the files in client_cert_file and client_key_file do not match")
            thumbprint = certificate.thumbprint
        assertion = sign_assertion(
            key,
            self.client_id,
            audience,
            now=time.time(),
            is_rfc7523=self.method == "private_key_jwt_rfc7523",
            key_id=self.key_id,
            thumbprint=thumbprint,
        )
        return _identify(self.client_id, assertion)

    def _with_assertion(self) -> Authentication:
        """Return form fields with an assertion that the platform issued (RFC 7521, section 4.2)."""
        if self.assertion_file is not None:
            assertion = read_file(self.assertion_file, "client_assertion_file", _parse_assertion)
        else:
            assertion = _call(self.assertion, "client_assertion", _is_assertion)
        return _identify(self.client_id, assertion)

    def _with_certificate(self) -> Authentication:
        """Return a TLS client certificate (RFC 8705, section 2.1)."""
        certificate = ClientCertificate.read(str(self.cert_file), self.key_file)
        _check_loadable(certificate)
        return Authentication(form=(("client_id", self.client_id),), certificate=certificate)


@lru_cache(maxsize=16)
def _check_loadable(certificate: ClientCertificate) -> None:
    """Check that OpenSSL can load the certificate. Failed checks are not cached."""
    import ssl

    certificate.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def make_credential(
    client_id: str | None,
    secret: Secret | str | Callable[[], str] | None = None,
    secret_file: str | None = None,
    method: ClientAuth | None = None,
    *,
    key_file: str | None = None,
    key_id: str | None = None,
    assertion: Callable[[], str] | None = None,
    assertion_file: str | None = None,
    cert_file: str | None = None,
) -> ClientCredential | None:
    """Return a credential, or ``None`` if *client_id* is ``None``. For the arguments, see `ClientCredential`.

    Raises:
        ConfigurationError: A value is missing, or the values cannot be combined. The error identifies one of the
            values.
    """
    if client_id is None:
        parts = (secret, secret_file, key_file, assertion, assertion_file, cert_file)
        for name, part in zip(_PARTS, parts, strict=True):
            if part is not None:
                raise ConfigurationError(f"client_{name}", f"expected both client_id and client_{name}, or neither")
        return None
    return ClientCredential(
        client_id=client_id,
        secret=secret,
        secret_file=secret_file,
        key_file=key_file,
        key_id=key_id,
        assertion=assertion,
        assertion_file=assertion_file,
        cert_file=cert_file,
        method=method,
    )


def basic_credentials(client_id: str, client_secret: str, *, is_plain: bool = False) -> str:
    """Return the value of the ``Authorization`` header for HTTP Basic authentication.

    Args:
        client_id: The client ID.
        client_secret: The client secret.
        is_plain: Whether to omit the form encoding that RFC 6749, section 2.3.1, requires.
    """
    # Spaces are encoded as %20, because some servers decode only percent-encoding. Form decoders also support %20.
    parts = (client_id, client_secret) if is_plain else (quote(client_id, safe=""), quote(client_secret, safe=""))
    return "Basic " + base64.b64encode(":".join(parts).encode("utf-8")).decode("ascii")


def _problem_with(given: tuple[str, ...]) -> str:
    """Return an error message for values that cannot be combined into a credential."""
    *most, last = (f"client_{name}" for name in given or _PARTS)
    if not given:
        return f"expected one of {', '.join(most)}, or {last}"
    return f"{', '.join(most)} and {last} cannot be combined"


def _check_source(setting: str, source: object) -> None:
    """Check that *source* is a secret, ``None``, or a callable that is not a coroutine function."""
    if source is None or (isinstance(source, Secret) and setting == "client_secret"):
        return
    if not callable(source) or inspect.iscoroutinefunction(source):
        raise ConfigurationError(setting, "expected a synchronous callable that returns a string")


def _call(source: object, setting: str, is_usable: Callable[[str], bool]) -> str:
    """Call the application's callable and return the result.

    The callable runs in an empty context, because its own requests must not carry a caller's token.

    Raises:
        CredentialUnavailable: The callable raises an exception or does not return a usable string. The exception's
            message is omitted, because it might contain a secret.
    """
    problem = "did not return a usable string"
    try:
        found: object = contextvars.Context().run(source)  # type: ignore[arg-type]  # `_check_source` has checked it
        if isinstance(found, str) and found and is_usable(found):
            return found
    except Exception as error:
        problem = f"raised {type(error).__name__}"
    # Raise the error outside the handler so that it is not chained to the callable's exception.
    raise CredentialUnavailable(f"the callable in {setting} {problem}")


def _is_assertion(text: str) -> bool:
    return len(text) <= _MAX_ASSERTION_LENGTH and is_b64token(text)


def _parse_assertion(content: bytes) -> str:
    text = read_text(content.strip())
    if not _is_assertion(text):
        raise FileUnusable("contains no token")
    return text


def _identify(client_id: str, assertion: str) -> Authentication:
    """Return the form fields that authenticate the client with an assertion (RFC 7521, section 4.2)."""
    members = (
        ("client_id", client_id),
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", assertion),
    )
    return Authentication(form=members)
