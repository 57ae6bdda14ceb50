"""Run an in-memory authorization server, built with Authlib and Flask, for the demo and for tests.

The server has two users, alice and bob, but no login page. The server assumes that the user in ``login_hint`` has
signed in and given consent, so it listens only on the loopback interface. The server signs access tokens with RS256 and
stores nothing on disk.

    python -m otel_token_relay.demo.authorization_server --port 9400

Sources: RFC 6749 (authorization code, refresh token, and client credentials), RFC 7636 (PKCE, S256 only), RFC 9068 (JWT
access tokens), RFC 8707 (``resource`` specifies the audience), RFC 8693 (token exchange), RFC 7662 (introspection), RFC
7009 (revocation), and RFC 8414 (metadata).
"""

# Authlib has no type hints, and its documented types differ from the types that pyright infers.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import argparse
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc6749.errors import InvalidRequestError, UnauthorizedClientError
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from flask import Flask, Response, jsonify, request
from joserfc.jwk import KeySet, RSAKey
from werkzeug.serving import WSGIRequestHandler, make_server

from otel_token_relay.demo import token_exchange
from otel_token_relay.demo.sign_in import CLIENT_ID, REDIRECT_URI

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

USERS: Final = ("alice", "bob")
SCOPES: Final = ("profile", "email")
DEFAULT_AUDIENCE: Final = "profile-service"


@dataclass(frozen=True, slots=True)
class Client(ClientMixin):
    """A registered client. A client without a secret is public and must use PKCE.

    Attributes:
        lifetime: The lifetime of the client's access tokens, in seconds, or ``None`` for the server's default.
    """

    client_id: str
    grant_types: tuple[str, ...]
    secret: str | None = None
    lifetime: int | None = None

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        return REDIRECT_URI

    def get_allowed_scope(self, scope: str | None) -> str:
        return " ".join(name for name in (scope or "").split() if name in SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == REDIRECT_URI

    def check_client_secret(self, client_secret: str) -> bool:
        return self.secret is not None and secrets.compare_digest(self.secret.encode(), client_secret.encode())

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == ("none" if self.secret is None else "client_secret_basic")

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and "authorization_code" in self.grant_types

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.grant_types


WEB: Final = Client(CLIENT_ID, ("authorization_code", "refresh_token"))
KIOSK: Final = Client("kiosk", ("authorization_code",), lifetime=1)
"""A client for a public terminal. The client's tokens must expire before the next user arrives."""
SERVICES: Final = tuple(
    Client(name, ("client_credentials", token_exchange.GRANT_TYPE), f"{name}-secret")
    for name in ("user-service", "profile-service", "billing-service")
)
CLIENTS: Final = {client.client_id: client for client in (WEB, KIOSK, *SERVICES)}


@dataclass(frozen=True, slots=True)
class User:
    """A registered user. Each of the user's tokens contains the user's name in the ``sub`` claim.

    Attributes:
        actor: The ``act`` claim, which identifies the service that acts for the user, or ``None`` if the user
            acts directly.
    """

    name: str
    actor: Mapping[str, Any] | None = None

    def get_user_id(self) -> str:
        return self.name


@dataclass(slots=True)
class Code(AuthorizationCodeMixin):
    """A single-use authorization code that expires after one minute."""

    code: str
    client_id: str
    user: User
    redirect_uri: str | None
    scope: str
    code_challenge: str
    code_challenge_method: str
    expires_at: float = field(default_factory=lambda: time.time() + 60)

    def get_redirect_uri(self) -> str | None:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass(slots=True)
class Grant(TokenMixin):
    """An access token and the optional refresh token that was issued with it."""

    client_id: str
    user: User | None
    access_token: str
    refresh_token: str | None
    scope: str
    audience: str | list[str]
    issued_at: int
    lifetime: int
    revoked: bool = False

    @property
    def subject(self) -> str:
        return self.client_id if self.user is None else self.user.name

    @property
    def actor(self) -> Mapping[str, Any] | None:
        return None if self.user is None else self.user.actor

    def check_client(self, client: Client) -> bool:
        return client.client_id == self.client_id

    def get_scope(self) -> str:
        return self.scope

    def is_expired(self) -> bool:
        return time.time() >= self.issued_at + self.lifetime

    def is_revoked(self) -> bool:
        return self.revoked


class Keys:
    """The signing keys. Only the newest key signs tokens, but older keys can remain in the key set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = [_new_key()]

    @property
    def signing(self) -> KeySet:
        return KeySet([self._keys[0]])

    @property
    def public(self) -> dict[str, Any]:
        return {"keys": [key.as_dict(private=False) for key in self._keys]}

    def rotate(self, *, keep: bool) -> str:
        """Create a new signing key.

        Args:
            keep: Whether to keep the old keys in the key set so that existing tokens can still be verified.

        Returns:
            The new key's ``kid``.
        """
        key = _new_key()
        with self._lock:
            self._keys = [key, *(self._keys if keep else [])]
        return str(key.kid)


def _new_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": secrets.token_hex(8), "use": "sig", "alg": "RS256"})


class Store:
    """A thread-safe store for the issued codes and tokens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: dict[str, Code] = {}
        self._grants: list[Grant] = []

    def add_code(self, code: Code) -> None:
        with self._lock:
            self._codes[code.code] = code

    def take_code(self, code: str) -> Code | None:
        """Remove and return a code, which a client must not use more than once (RFC 6749, section 4.1.2)."""
        with self._lock:
            found = self._codes.pop(code, None)
        return found if found is not None and time.time() < found.expires_at else None

    def add_grant(self, grant: Grant) -> None:
        with self._lock:
            self._grants.append(grant)

    def find_grant(self, token: str) -> Grant | None:
        with self._lock:
            return next((g for g in self._grants if token in (g.access_token, g.refresh_token)), None)

    def find_access_token(self, token: str) -> Grant | None:
        grant = self.find_grant(token)
        return grant if grant is not None and grant.access_token == token else None

    def find_valid_token(self, token: str) -> Grant | None:
        """Return an access token's grant, or ``None`` if the token is unknown, expired, or revoked."""
        grant = self.find_access_token(token)
        return grant if grant is not None and not (grant.is_expired() or grant.is_revoked()) else None


class Tokens(JWTBearerTokenGenerator):
    """The server's token generator.

    Args:
        lifetime: The default lifetime of access tokens, in seconds.
    """

    def __init__(self, issuer: str, keys: Keys, lifetime: int) -> None:
        super().__init__(
            issuer,
            refresh_token_generator=lambda **_: secrets.token_urlsafe(32),
            expires_generator=lambda client, grant_type: lifetime if client.lifetime is None else client.lifetime,
        )
        self._keys = keys

    def get_jwks(self) -> KeySet:
        return self._keys.signing

    def get_audiences(self, client: Client, user: User | None, scope: str) -> str | list[str]:
        return _audience()

    def get_extra_claims(self, client: Client, grant_type: str, user: User | None, scope: str) -> dict[str, Any]:
        return {} if user is None or user.actor is None else {"act": user.actor}


def _requested_audiences() -> list[str]:
    """Return the services for which the client requests a token (RFC 8707, section 2; RFC 8693, section 2.1)."""
    return [*request.form.getlist("resource"), *request.form.getlist("audience")]


def _audience() -> str | list[str]:
    audiences = _requested_audiences() or [DEFAULT_AUDIENCE]
    return audiences[0] if len(audiences) == 1 else audiences


class _AuthorizationCode(grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("none", "client_secret_basic")

    def save_authorization_code(self, code: str, request: Any) -> None:
        payload = request.payload
        parameters = payload.data
        _store(self).add_code(
            Code(
                code,
                request.client.client_id,
                request.user,
                payload.redirect_uri,
                request.client.get_allowed_scope(payload.scope),
                parameters.get("code_challenge", ""),
                parameters.get("code_challenge_method", ""),
            )
        )

    def query_authorization_code(self, code: str, client: Client) -> Code | None:
        found = _store(self).take_code(code)
        return found if found is not None and found.client_id == client.client_id else None

    def delete_authorization_code(self, authorization_code: Code) -> None:
        """Do nothing, because `query_authorization_code` has already removed the code."""

    def authenticate_user(self, authorization_code: Code) -> User:
        return authorization_code.user


class _Pkce(CodeChallenge):
    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        super().validate_code_challenge(grant, redirect_uri)
        # The "plain" method reveals the verifier in the authorization request (RFC 9700, section 2.1.1).
        if grant.request.payload.data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("'code_challenge_method' must be S256")


class _RefreshToken(grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("none", "client_secret_basic")
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Grant | None:
        grant = _store(self).find_grant(refresh_token)
        return grant if grant is not None and grant.refresh_token == refresh_token and not grant.revoked else None

    def authenticate_user(self, refresh_token: Grant) -> User | None:
        return refresh_token.user

    def revoke_old_credential(self, refresh_token: Grant) -> None:
        refresh_token.revoked = True


class _ClientCredentials(grants.ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)


class _TokenExchange(grants.BaseGrant, grants.TokenEndpointMixin):
    GRANT_TYPE = token_exchange.GRANT_TYPE
    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

    def validate_token_request(self) -> None:
        client: Any = self.authenticate_token_endpoint_client()
        if not client.check_grant_type(token_exchange.GRANT_TYPE):
            raise UnauthorizedClientError("The client may not exchange tokens.")
        self.request.client = client
        self._exchange = token_exchange.read_exchange(
            request.form,
            client_id=client.client_id,
            audiences=_requested_audiences(),
            services=self.server.services,
            find_token=_store(self).find_valid_token,
        )
        self.request.user = User(self._exchange.subject, self._exchange.actor)

    def create_token_response(self) -> tuple[int, dict[str, Any], Any]:
        token = self.generate_token(user=self.request.user, scope=self._exchange.scope, include_refresh_token=False)
        self.save_token(token)
        return 200, {**token, "issued_token_type": token_exchange.ACCESS_TOKEN}, self.TOKEN_RESPONSE_HEADER


class _Introspection(IntrospectionEndpoint):
    def query_token(self, token_string: str, token_type_hint: str | None) -> Grant | None:
        # Ignore refresh tokens, because a resource server must not accept a refresh token as an access token.
        return _store(self).find_access_token(token_string)

    def check_permission(self, token: Grant, client: Client, request: Any) -> bool:
        return client.secret is not None

    def introspect_token(self, token: Grant) -> dict[str, Any]:
        return {
            "active": True,
            "token_type": "Bearer",
            "iss": self.server.issuer,
            "sub": token.subject,
            "aud": token.audience,
            "client_id": token.client_id,
            "scope": token.scope,
            "iat": token.issued_at,
            "exp": token.issued_at + token.lifetime,
            **({} if token.actor is None else {"act": token.actor}),
        }


class _Revocation(RevocationEndpoint):
    CLIENT_AUTH_METHODS = ("none", "client_secret_basic")

    def query_token(self, token_string: str, token_type_hint: str | None) -> Grant | None:
        return _store(self).find_grant(token_string)

    def revoke_token(self, token: Grant, request: Any) -> None:
        token.revoked = True


def _store(part: Any) -> Store:
    store = part.server.store
    assert isinstance(store, Store)  # noqa: S101
    return store


class Server(AuthorizationServer):
    """The authorization server. The `create_app` function adds the routes.

    Args:
        issuer: The server's URL, without a trailing slash.
        clients: The registered clients, keyed by ``client_id``.
        lifetime: The default lifetime of access tokens, in seconds.
    """

    def __init__(self, issuer: str, *, clients: Mapping[str, Client] = CLIENTS, lifetime: int = 300) -> None:
        super().__init__(query_client=clients.get, save_token=self._save)
        self.issuer = issuer
        self.services: frozenset[str] = frozenset(name for name, client in clients.items() if client.secret is not None)
        self.keys: Keys = Keys()
        self.store: Store = Store()
        self.register_token_generator("default", Tokens(issuer, self.keys, lifetime))
        self.register_grant(_AuthorizationCode, [_Pkce(required=True)])
        self.register_grant(_RefreshToken)
        self.register_grant(_ClientCredentials)
        self.register_grant(_TokenExchange)
        self.register_endpoint(_Introspection)
        self.register_endpoint(_Revocation)

    def _save(self, token: dict[str, Any], request: Any) -> None:
        self.store.add_grant(
            Grant(
                client_id=request.client.client_id,
                user=request.user,
                access_token=token["access_token"],
                refresh_token=token.get("refresh_token"),
                scope=token.get("scope", ""),
                audience=_audience(),
                issued_at=int(time.time()),
                lifetime=token["expires_in"],
            )
        )


def create_app(server: Server) -> Flask:
    """Return a Flask application with *server*'s endpoints."""
    app = Flask("authorization_server")

    @app.get("/.well-known/openid-configuration")
    @app.get("/.well-known/oauth-authorization-server")
    def metadata() -> Response:
        return jsonify(_metadata(server.issuer))

    @app.get("/jwks")
    def jwks() -> Response:
        return jsonify(server.keys.public)

    @app.get("/authorize")
    def authorize() -> Any:
        name = request.args.get("login_hint", "")
        try:
            grant = server.get_consent_grant(end_user=None)
        except OAuth2Error as error:
            return server.handle_error_response(server.create_oauth2_request(None), error)
        user = User(name) if name in USERS else None
        return server.create_authorization_response(grant=grant, grant_user=user)

    @app.post("/token")
    def token() -> Any:
        return server.create_token_response()

    @app.post("/introspect")
    def introspect() -> Any:
        return server.create_endpoint_response("introspection")

    @app.post("/revoke")
    def revoke() -> Any:
        return server.create_endpoint_response("revocation")

    @app.post("/keys/rotate")
    def rotate() -> Response:
        return jsonify(kid=server.keys.rotate(keep=request.form.get("keep", "true") == "true"))

    return app


def _metadata(issuer: str) -> dict[str, Any]:
    return {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/jwks",
        "introspection_endpoint": f"{issuer}/introspect",
        "revocation_endpoint": f"{issuer}/revoke",
        "scopes_supported": list(SCOPES),
        "response_types_supported": ["code"],
        "grant_types_supported": [
            "authorization_code",
            "refresh_token",
            "client_credentials",
            token_exchange.GRANT_TYPE,
        ],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
        "subject_types_supported": ["public"],
    }


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing, because a request's URL can contain a user name or an authorization code."""


def serve(build: Callable[[str], WSGIApplication], *, port: int = 0, fd: int | None = None) -> None:
    """Print ``ready`` and the server's URL, and then serve requests on the loopback interface.

    Args:
        build: A callable that accepts the server's URL and returns the application.
        port: The port to listen on, or 0 for any free port.
        fd: The file descriptor of a listening socket to use instead of the port.
    """
    server = make_server("127.0.0.1", port, Flask(""), threaded=True, request_handler=_QuietHandler, fd=fd)
    # The issuer URL contains the port, which is unknown until the socket is bound.
    issuer = f"http://127.0.0.1:{server.port}"
    server.app = build(issuer)
    print(f"ready {issuer}", flush=True)  # noqa: T201
    server.serve_forever()


def main() -> None:
    """Parse the command-line options, and run the authorization server."""
    parser = argparse.ArgumentParser(prog="python -m otel_token_relay.demo.authorization_server")
    parser.add_argument("--port", type=int, default=0, help="the port to listen on (default: any free port)")
    parser.add_argument("--fd", type=int, help="the file descriptor of a listening socket to use instead of a port")
    parser.add_argument("--lifetime", type=int, default=300, metavar="SECONDS", help="the lifetime of access tokens")
    options = parser.parse_args()
    serve(lambda issuer: create_app(Server(issuer, lifetime=options.lifetime)), port=options.port, fd=options.fd)


if __name__ == "__main__":
    main()
