"""This service's own credential for an authorization server, and the forms that the credential takes in a request.

`ClientCredential` contains the configured values. A request presents the credential in one of four ways: as a secret in
the header or the form, as an assertion that this service signs, as an assertion that a platform issues, or as a TLS
client certificate.

A secret is never printed: `Secret` shows only that a secret is set, and no error message contains the secret.
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

# This name is not in `environment_variables`, because the names in that module become launcher flags, and every user on
# a machine can read the flags of all processes.
SECRET_VARIABLE: Final = "OTEL_PYTHON_TOKEN_RELAY_CLIENT_SECRET"

_MAX_ASSERTION_LENGTH: Final = 64 * 1024

_SECRET_METHODS: Final[tuple[ClientAuth, ...]] = (
    "client_secret_basic",
    "client_secret_basic_plain",
    "client_secret_post",
)

# The sets of values that form a credential, each with the methods that can send it, starting with the default method.
# An assertion that is sent as is has no method.
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
    """A secret that shows its value only if `reveal` is called."""

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
        cert_file: A PEM file that contains the certificate and, optionally, the CA certificates in its chain.
        key_file: A PEM file that contains the private key; ``None`` if *cert_file* contains the key.
        versions: The versions of the files. A connection that was opened with one version is not used with a different
            version.
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
        """Make *context* present this certificate.

        Raises:
            CredentialUnavailable: The files cannot be used.
        """

        import ssl  # not at the top: gevent must patch it before it is imported

        def refuse() -> NoReturn:  # otherwise, OpenSSL would prompt for a password on the terminal
            raise ValueError

        problem = "cannot be read"
        try:
            context.load_cert_chain(self.cert_file, self.key_file, password=refuse)
        except ssl.SSLError as error:
            problem = "must contain a certificate and its private key in PEM, without a password"
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = "contain a certificate and a private key that do not belong together"
        except ValueError:
            problem = "contain a key that is encrypted with a password, which is not supported"
        except OSError:
            pass
        else:
            return
        raise CredentialUnavailable(f"the files in client_cert_file and client_key_file {problem}")


class Authentication(NamedTuple):
    """The parts of a request that identify this service.

    Attributes:
        authorization: The value of the ``Authorization`` header; ``None`` to omit the header.
        form: Fields to add to the form.
        certificate: The TLS client certificate; ``None`` to present none.
    """

    authorization: str | None = None
    form: tuple[tuple[str, str], ...] = ()
    certificate: ClientCertificate | None = None

    def __repr__(self) -> str:
        return f"Authentication({', '.join(name for name, _ in self.form) or 'no form'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredential:
    """A client ID and the proof that this service is that client.

    The proof is a secret, a key, an assertion, or a certificate. Each file is read again when it changes. A callable
    takes no arguments, must return quickly, and runs in a worker thread without the caller's context.

    Attributes:
        client_id: The client ID.
        secret: The secret, or a callable that returns it.
        secret_file: A file that contains the secret; trailing line breaks are ignored.
        key_file: A file that contains the private key for signing assertions (RSA, P-256, P-384, P-521, or Ed25519), in
            PEM format or as a JWK. With ``tls_client_auth``, the file contains the certificate's private key in PEM
            format.
        key_id: The assertions' ``kid``; ``None`` to use the JWK's own ``kid``, if it has one.
        assertion: A callable that returns an assertion to send as is.
        assertion_file: A file that contains an assertion to send as is, such as a projected Kubernetes token.
        cert_file: A file that contains a certificate in PEM format. With ``private_key_jwt_rfc7523``, the assertions
            include the certificate's thumbprint.
        method: How the credential is sent; ``None`` for the default for that kind of credential. For a secret:
            ``client_secret_basic`` (RFC 6749, section 2.3.1, with form-encoded parts), ``client_secret_basic_plain``
            for servers that do not decode the parts, or ``client_secret_post``. For a key: ``private_key_jwt``, whose
            assertions are for the issuer (draft-ietf-oauth-rfc7523bis), or ``private_key_jwt_rfc7523``, whose
            assertions are for the endpoint (RFC 7523), as Microsoft Entra requires. For a TLS client certificate, which
            is presented only to this credential's endpoints: ``tls_client_auth`` (RFC 8705).

    Raises:
        ConfigurationError: The client ID is empty, or the parts contradict each other; the error identifies one of
            them.
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
            raise ConfigurationError("client_id", "expected the name of this service at the authorization server")
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
            raise ConfigurationError("client_key_id", "expected a key in client_key_file that signs assertions")

    def check_use(self, issuer: str | None, endpoint: str) -> None:
        """Raise an exception unless the credential can be sent to an endpoint.

        Args:
            issuer: The issuer that the endpoint belongs to; ``None`` if unknown.
            endpoint: The URL.

        Raises:
            ConfigurationError: The method cannot be used with this issuer or endpoint.
        """
        # A multitenant issuer's name is a pattern.
        if self.method == "private_key_jwt" and (issuer is None or "{" in issuer):
            raise ConfigurationError(
                "client_auth",
                "private_key_jwt requires exactly one issuer, for which the assertion is meant; without one, use"
                " private_key_jwt_rfc7523",
            )
        if self.method == "tls_client_auth" and not endpoint.lower().startswith("https:"):
            raise ConfigurationError("client_auth", "tls_client_auth requires an https endpoint")

    def authenticate(self, issuer: str | None, endpoint: str) -> Authentication:
        """Return what a request must contain to authenticate. Each call may read files and may sign a new assertion.

        Args:
            issuer: The issuer that the endpoint belongs to; ``None`` if unknown.
            endpoint: The URL to which the request is sent.

        Raises:
            CredentialUnavailable: A file or a callable is currently unusable.
        """
        if self.method in _SECRET_METHODS:
            return self._with_secret()
        if self.method == "tls_client_auth":
            return self._with_certificate()
        if self.method is None:
            return self._with_assertion()
        return self._with_signature(endpoint if self.method == "private_key_jwt_rfc7523" else issuer)

    def _with_secret(self) -> Authentication:
        """Return the secret, in the header or the form (RFC 6749, section 2.3.1)."""
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
        """Return an assertion that this service signs (RFC 7523, section 2.2)."""
        if audience is None:
            raise CredentialUnavailable("private_key_jwt requires an issuer")
        key = read_file(str(self.key_file), "client_key_file", parse_private_key)
        thumbprint = None
        if self.cert_file is not None:
            certificate = read_file(self.cert_file, "client_cert_file", parse_certificate)
            if certificate.public != key.public:
                raise CredentialUnavailable("the files in client_cert_file and client_key_file do not belong together")
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
        """Return a platform's assertion, which is sent as is (RFC 7521, section 4.2)."""
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
    """Raise an exception unless the certificate can be presented. Only successful checks are cached."""
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
    """Return the credential; ``None`` if *client_id* is missing. The arguments are as in `ClientCredential`.

    Raises:
        ConfigurationError: A part is missing, or the parts contradict each other; the error identifies one of them.
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
    """Return the value of the ``Authorization`` header.

    Args:
        client_id: The client ID.
        client_secret: The client's secret.
        is_plain: Whether to omit the form encoding that RFC 6749, section 2.3.1, requires.
    """
    # Encode spaces as %20, which is understood both by form decoders and by servers that decode only percent escapes.
    parts = (client_id, client_secret) if is_plain else (quote(client_id, safe=""), quote(client_secret, safe=""))
    return "Basic " + base64.b64encode(":".join(parts).encode("utf-8")).decode("ascii")


def _problem_with(given: tuple[str, ...]) -> str:
    """Return the reason that these parts do not form a credential."""
    *most, last = (f"client_{name}" for name in given or _PARTS)
    if not given:
        return f"expected one of {', '.join(most)} and {last}"
    return f"{', '.join(most)} and {last} cannot be combined"


def _check_source(setting: str, source: object) -> None:
    """Raise an exception unless *source* is a secret, a callable that is not a coroutine function, or ``None``."""
    if source is None or (isinstance(source, Secret) and setting == "client_secret"):
        return
    if not callable(source) or inspect.iscoroutinefunction(source):
        raise ConfigurationError(setting, "expected a callable that returns text and is not a coroutine function")


def _call(source: object, setting: str, is_usable: Callable[[str], bool]) -> str:
    """Return what the application's callable returns.

    The callable runs in an empty context, because a request that it sends must not carry a caller's token.

    Raises:
        CredentialUnavailable: The callable raises an exception (whose message may contain a secret) or does not return
            usable text.
    """
    problem = "did not return usable text"
    try:
        found: object = contextvars.Context().run(source)  # type: ignore[arg-type]  # `_check_source` has checked it
        if isinstance(found, str) and found and is_usable(found):
            return found
    except Exception as error:
        problem = f"raised {type(error).__name__}"
    # This exception is raised outside the handler, so that the callable's exception is not attached to it.
    raise CredentialUnavailable(f"the callable in {setting} {problem}")


def _is_assertion(text: str) -> bool:
    return len(text) <= _MAX_ASSERTION_LENGTH and is_b64token(text)


def _parse_assertion(content: bytes) -> str:
    text = read_text(content.strip())
    if not _is_assertion(text):
        raise FileUnusable("contains no token")
    return text


def _identify(client_id: str, assertion: str) -> Authentication:
    """Return what a request must contain to identify the client with an assertion (RFC 7521, section 4.2)."""
    members = (
        ("client_id", client_id),
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", assertion),
    )
    return Authentication(form=members)
