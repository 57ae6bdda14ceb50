"""A small authorization server on Authlib and Flask, as a process of its own.

Code with PKCE and client credentials, JWT access tokens by RFC 9068 (opaque ones for the scope
``opaque``), introspection, revocation, rotation of keys, and an outage on demand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AUDIENCE = "profile-service"
REDIRECT = "http://127.0.0.1:9/callback"


class AuthorizationServer:
    """How tests speak to it."""

    def __init__(self, issuer: str) -> None:
        import httpx

        self.issuer = issuer
        self.http = httpx.Client(base_url=issuer, auth=("web", "web:secret"))

    def log_in(self, user: str, scope: str = "profiles:read") -> str:
        """The user flow: authorization code with PKCE; gives the access token."""
        from authlib.common.security import generate_token
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        verifier = generate_token(48)
        answer = self.http.get(
            "/authorize",
            params={
                "response_type": "code",
                "client_id": "web",
                "redirect_uri": REDIRECT,
                "scope": scope,
                "login_hint": user,
                "code_challenge": create_s256_code_challenge(verifier),
                "code_challenge_method": "S256",
            },
        )
        code = re.search(r"code=([^&]+)", answer.headers["location"])
        assert code
        form = {"grant_type": "authorization_code", "code": code[1], "redirect_uri": REDIRECT}
        return str(self.http.post("/token", data=form | {"code_verifier": verifier}).json()["access_token"])

    def revoke(self, token: str) -> None:
        """RFC 7009."""
        assert self.http.post("/revoke", data={"token": token}).status_code == 200

    def rotate(self) -> None:
        """Sign with a new key, and forget the old one."""
        assert self.http.post("/admin/rotate").status_code == 200

    def set_down(self, down: bool) -> None:
        """Answer 503 to everything but this."""
        assert self.http.post("/admin/down", data={"down": "1" if down else ""}).status_code == 200


@contextmanager
def authorizing() -> Iterator[AuthorizationServer]:
    """Run the server on a free port of loopback for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "AUTHLIB_INSECURE_TRANSPORT": "1", "PYTHONWARNINGS": "ignore"},
    )
    try:
        assert process.stdout is not None
        issuer = process.stdout.readline().strip()
        assert issuer.startswith("http://127.0.0.1:"), "the authorization server did not start"
        server = AuthorizationServer(issuer)
        with server.http:
            yield server
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def build(issuer: str) -> Any:
    """Build the Flask application."""
    import flask
    from authlib.common.security import generate_token
    from authlib.integrations.flask_oauth2 import AuthorizationServer as Authlib
    from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, ClientCredentialsGrant
    from authlib.oauth2.rfc7009 import RevocationEndpoint
    from authlib.oauth2.rfc7636 import CodeChallenge
    from authlib.oauth2.rfc7662 import IntrospectionEndpoint
    from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
    from joserfc.jwk import KeySet, RSAKey

    class Client:
        def __init__(self, client_id: str, secret: str) -> None:
            self.client_id, self.secret = client_id, secret

        def get_client_id(self) -> str:
            return self.client_id

        def get_default_redirect_uri(self) -> str:
            return REDIRECT

        def get_allowed_scope(self, scope: str) -> str:
            return scope or ""

        def check_redirect_uri(self, uri: str) -> bool:
            return uri == REDIRECT

        def check_client_secret(self, secret: str) -> bool:
            return secret == self.secret

        def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
            return method == "client_secret_basic"

        def check_response_type(self, response_type: str) -> bool:
            return response_type == "code"

        def check_grant_type(self, grant_type: str) -> bool:
            return grant_type in ("authorization_code", "client_credentials")

    class User:
        def __init__(self, name: str) -> None:
            self.name = name

        def get_user_id(self) -> str:
            return self.name

    class Code:
        def __init__(self, request: Any) -> None:
            payload = request.payload
            self.redirect_uri, self.scope = payload.redirect_uri, payload.scope
            self.user = request.user
            self.code_challenge = payload.data.get("code_challenge")
            self.code_challenge_method = payload.data.get("code_challenge_method")

        def get_redirect_uri(self) -> str:
            return self.redirect_uri

        def get_scope(self) -> str:
            return self.scope

    class Token:
        def __init__(self, token: dict[str, Any], request: Any) -> None:
            self.scope = token.get("scope", "")
            self.client_id = request.client.client_id
            self.subject = request.user.name if request.user else request.client.client_id
            self.expires_at = int(time.time()) + token["expires_in"]
            self.revoked = False

        def check_client(self, client: Any) -> bool:
            return client.client_id == self.client_id

        def is_expired(self) -> bool:
            return time.time() >= self.expires_at

        def is_revoked(self) -> bool:
            return self.revoked

    clients = {"web": Client("web", "web:secret"), "profiles": Client("profiles", "s3cret & more")}
    codes: dict[str, Code] = {}
    tokens: dict[str, Token] = {}
    state: dict[str, Any] = {"down": False}

    def rotate() -> None:
        state["key"] = RSAKey.generate_key(2048, {"kid": generate_token(8), "use": "sig", "alg": "RS256"}, private=True)

    rotate()

    class Generator(JWTBearerTokenGenerator):
        def get_jwks(self) -> Any:
            return KeySet([state["key"]])

        def get_audiences(self, client: Any, user: Any, scope: str) -> list[str]:
            return [AUDIENCE]

        def access_token_generator(self, client: Any, grant_type: str, user: Any, scope: str) -> str:
            if "opaque" in (scope or "").split():
                return str(generate_token(40))
            return str(super().access_token_generator(client, grant_type, user, scope))

    class CodeGrant(AuthorizationCodeGrant):
        TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

        def save_authorization_code(self, code: str, request: Any) -> Any:
            codes[code] = Code(request)

        def query_authorization_code(self, code: str, client: Any) -> Code | None:
            return codes.get(code)

        def delete_authorization_code(self, authorization_code: Code) -> None:
            for name, code in list(codes.items()):
                if code is authorization_code:
                    del codes[name]

        def authenticate_user(self, authorization_code: Code) -> Any:
            return authorization_code.user

    class Introspection(IntrospectionEndpoint):
        def check_permission(self, token: Any, client: Any, request: Any) -> bool:
            return client.client_id == "profiles"

        def query_token(self, token_string: str, token_type_hint: str | None) -> Token | None:
            return tokens.get(token_string)

        def introspect_token(self, token: Token) -> dict[str, Any]:
            return {
                "active": True,
                "client_id": token.client_id,
                "token_type": "Bearer",
                "scope": token.scope,
                "sub": token.subject,
                "aud": [AUDIENCE],
                "iss": issuer,
                "exp": token.expires_at,
            }

    class Revocation(RevocationEndpoint):
        def query_token(self, token_string: str, token_type_hint: str | None) -> Token | None:
            return tokens.get(token_string)

        def revoke_token(self, token: Token, request: Any) -> None:
            token.revoked = True

    app = flask.Flask("authorization-server")
    server = Authlib(
        app,
        query_client=clients.get,
        save_token=lambda token, request: tokens.update({token["access_token"]: Token(token, request)}),
    )
    server.register_token_generator("default", Generator(issuer))
    server.register_grant(CodeGrant, [CodeChallenge(required=True)])
    server.register_grant(ClientCredentialsGrant)
    server.register_endpoint(Introspection)
    server.register_endpoint(Revocation)

    @app.before_request
    def stop() -> Any:
        if state["down"] and not flask.request.path.startswith("/admin/"):
            return "down", 503
        return None

    @app.get("/.well-known/openid-configuration")
    def metadata() -> Any:
        return {"issuer": issuer, "jwks_uri": f"{issuer}/jwks", "token_endpoint": f"{issuer}/token"}

    @app.get("/jwks")
    def jwks() -> Any:
        return KeySet([state["key"]]).as_dict(private=False)

    @app.get("/authorize")
    def authorize() -> Any:
        user = User(flask.request.args["login_hint"])
        grant = server.get_consent_grant(end_user=user)
        return server.create_authorization_response(grant_user=user, grant=grant)

    @app.post("/token")
    def token() -> Any:
        return server.create_token_response()

    @app.post("/introspect")
    def introspect() -> Any:
        return server.create_endpoint_response("introspection")

    @app.post("/revoke")
    def revoke() -> Any:
        return server.create_endpoint_response("revocation")

    @app.post("/admin/rotate")
    def admin_rotate() -> Any:
        rotate()
        return {}

    @app.post("/admin/down")
    def admin_down() -> Any:
        state["down"] = bool(flask.request.form["down"])
        return {}

    return app


def main() -> None:
    """Serve until killed; the first line on standard output is the issuer."""
    import socket

    from werkzeug.serving import make_server

    with socket.create_server(("127.0.0.1", 0)) as listener:
        issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = make_server("127.0.0.1", 0, build(issuer), threaded=True, fd=listener.fileno())
        print(issuer, flush=True)  # noqa: T201  # how the parent learns the port
        server.serve_forever()


if __name__ == "__main__":
    main()
