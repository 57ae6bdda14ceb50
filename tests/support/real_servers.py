"""Three authorization servers, each in a separate process: the demo's, oidc-provider, and authgent-server.

oidc-provider and authgent-server are third-party servers, so they determine what their tokens and responses
contain. One class for each server hides how users sign in and how keys are rotated, and all other operations follow
the same standards.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from otel_token_relay.demo.sign_in import REDIRECT_URI, code_challenge
from tests.support import installed
from tests.support.authorization_server import INTROSPECTS, authorizing
from tests.support.processes import end, start

TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
SERVICE = "profile-service"


@dataclass(frozen=True, slots=True)
class Client:
    """A client that authenticates with a secret, which can contain any characters."""

    client_id: str
    secret: str


class Tokens(NamedTuple):
    """The tokens that a user's client receives."""

    access: str
    refresh: str | None
    id: str | None


class RealServer(ABC):
    """A running server.

    Attributes:
        issuer: The server's issuer identifier.
        service: The client that this service uses to introspect and exchange tokens.
        web: The public client that users use to sign in.
        profile: The profile of the server's access tokens.
        can_drop_keys: Whether a rotation can withdraw the old keys immediately.
    """

    issuer: str
    service: Client
    web: str
    profile = "rfc9068"
    can_drop_keys = True

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.issuer, trust_env=False, timeout=60)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/.well-known/openid-configuration").json()
        return found

    def resource(self, service: str, kind: str) -> str:
        """Return the ``resource`` parameter for a token of that kind, for a service whose name is its audience."""
        return service

    def subject(self, user: str) -> str:
        """Return the ``sub`` claim of a user's tokens."""
        return user

    def sign_in(self, user: str, kind: str, *, service: str = SERVICE, scope: str = "profile") -> Tokens:
        """Run the authorization code flow with PKCE as a user."""
        verifier = secrets.token_urlsafe(48)
        resource = self.resource(service, kind)
        client_id = self._web_client(kind)
        request = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": REDIRECT_URI,
            "scope": scope,
            "state": "s",
            "login_hint": user,
            "resource": resource,
            "code_challenge": code_challenge(verifier),
            "code_challenge_method": "S256",
        }
        with httpx.Client(trust_env=False, timeout=60) as browser:
            response = browser.get(self.metadata["authorization_endpoint"], params=request)
            for _ in range(4):  # one or more redirects within the server
                if response.headers["location"].startswith(REDIRECT_URI):
                    break
                assert response.next_request is not None
                response = browser.send(response.next_request)
        result = parse_qs(urlsplit(response.headers["location"]).query)
        assert result["state"] == ["s"]
        return _tokens(
            self.http.post(
                self.metadata["token_endpoint"],
                data={
                    "grant_type": "authorization_code",
                    "client_id": client_id,
                    "redirect_uri": REDIRECT_URI,
                    "code": result["code"][0],
                    "code_verifier": verifier,
                    "resource": resource,
                },
            )
        )

    def _web_client(self, kind: str) -> str:
        return self.web

    def own_token(self, kind: str, *, service: str = SERVICE) -> str:
        """Return a token for the service itself."""
        form = {"grant_type": "client_credentials", "resource": self.resource(service, kind), "scope": "profile"}
        return _tokens(self._post("token_endpoint", form)).access

    def revoke(self, token: str, kind: str) -> None:
        """Revoke a token of the client that users use to sign in (RFC 7009)."""
        response = self.http.post(
            self.metadata["revocation_endpoint"], data={"token": token, "client_id": self._web_client(kind)}
        )
        assert response.status_code == 200

    def introspect(self, token: str) -> dict[str, Any]:
        """Return the server's introspection response (RFC 7662)."""
        found: dict[str, Any] = self._post("introspection_endpoint", {"token": token}).json()
        return found

    def _post(self, endpoint: str, form: dict[str, str]) -> httpx.Response:
        # Encode the client ID and the secret before they become Basic credentials (RFC 6749, section 2.3.1).
        credential = httpx.BasicAuth(quote(self.service.client_id, safe=""), quote(self.service.secret, safe=""))
        return self.http.post(self.metadata[endpoint], data=form, auth=credential)

    @abstractmethod
    def rotate(self, *, keep: bool) -> None:
        """Sign with new keys, and keep the old keys published only if *keep* is set."""


class _Demo(RealServer):
    service = Client(*INTROSPECTS)
    web = "web"

    def _web_client(self, kind: str) -> str:
        return "opaque" if kind == "opaque" else "web"

    def rotate(self, *, keep: bool) -> None:
        self.http.post("/keys/rotate", data={"keep": str(keep).lower()}).raise_for_status()


class _OidcProvider(RealServer):
    service = Client("profile service", "s3cret & more: 100%")
    web = "web"

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())

    def resource(self, service: str, kind: str) -> str:
        return f"https://{kind.lower()}.{service}.test"

    def rotate(self, *, keep: bool) -> None:
        self.http.post("/keys/rotate", params={"keep": str(keep).lower()}).raise_for_status()

    @property
    def clients(self) -> list[dict[str, Any]]:
        """Return the clients' metadata (OpenID Connect Dynamic Client Registration, section 2)."""
        machine = {"redirect_uris": [], "response_types": []}
        grants = ["client_credentials", TOKEN_EXCHANGE]
        return [
            {
                "client_id": "web",
                "token_endpoint_auth_method": "none",
                "application_type": "native",
                "redirect_uris": [REDIRECT_URI],
                "grant_types": ["authorization_code", "refresh_token"],
            },
            {
                "client_id": self.service.client_id,
                "client_secret": self.service.secret,
                "grant_types": grants,
                **machine,
            },
            {
                "client_id": "with-post",
                "client_secret": "another secret",
                "token_endpoint_auth_method": "client_secret_post",
                "grant_types": grants,
                **machine,
            },
            {
                "client_id": "with-key",
                "token_endpoint_auth_method": "private_key_jwt",
                "jwks": {"keys": [ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True) | {"alg": "ES256"}]},
                "grant_types": grants,
                **machine,
            },
            {
                "client_id": "without-exchange",
                "client_secret": "a third secret",
                "grant_types": ["client_credentials"],
                **machine,
            },
        ]

    def write_key(self, path: Path) -> str:
        """Write the ``with-key`` client's private key to *path*, and return the path."""
        encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(self.key.private_bytes(encoding, kind, serialization.NoEncryption()))
        return str(path)


class _Authgent(RealServer):
    # RFC 9068 requires a type that this server's access tokens do not have.
    profile = "generic"
    can_drop_keys = False

    def __init__(self, directory: Path, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self._directory = directory

    @property
    def environ(self) -> dict[str, str]:
        own = {
            "SECRET_KEY": "only-for-tests",
            "DATABASE_URL": f"sqlite+aiosqlite:///{self._directory}/authgent.db",
            "SERVER_URL": self.issuer,
            "TOKEN_RATE_LIMIT": "1000000",
            "REGISTER_RATE_LIMIT": "1000000",
            "TELEMETRY": "0",
        }
        return installed.clean_environ() | {f"AUTHGENT_{name}": value for name, value in own.items()}

    def register(self) -> None:
        """Register this test's clients (RFC 7591)."""
        web = self._register("web", ["authorization_code", "refresh_token"], redirect_uris=[REDIRECT_URI])
        self.web, self._web_secret = web.client_id, web.secret
        self.service = self._register(SERVICE, ["client_credentials", TOKEN_EXCHANGE])

    def _register(self, name: str, grants: list[str], **more: Any) -> Client:
        document = {"client_name": name, "grant_types": grants, "scope": "profile email", **more}
        response = self.http.post("/register", json=document)
        assert response.status_code == 201, response.text
        return Client(response.json()["client_id"], response.json()["client_secret"])

    def sign_in(self, user: str, kind: str, *, service: str = SERVICE, scope: str = "profile") -> Tokens:
        if user == "alice":
            return super().sign_in(user, kind, service=service, scope=scope)
        # This server has only one human user. The second user is a machine.
        return Tokens(self.own_token(kind, service=service), None, None)

    def subject(self, user: str) -> str:
        return "auto_approved_user" if user == "alice" else f"client:{self.service.client_id}"

    def revoke(self, token: str, kind: str) -> None:
        form = {"token": token, "client_id": self.web, "client_secret": self._web_secret}
        assert self.http.post("/revoke", data=form).status_code == 200

    def rotate(self, *, keep: bool) -> None:
        assert keep
        self.http.post("/keys/rotate").raise_for_status()


def _tokens(response: httpx.Response) -> Tokens:
    assert response.status_code == 200, response.json().get("error")
    found = response.json()
    return Tokens(found["access_token"], found.get("refresh_token"), found.get("id_token"))


@contextmanager
def _demo() -> Iterator[RealServer]:
    with authorizing() as running:
        server = _Demo()
        server.issuer = running.issuer
        yield server


@contextmanager
def _oidc_provider() -> Iterator[RealServer]:
    directory = installed.oidc_provider()
    server = _OidcProvider()
    process = start(
        ["node", "server.mjs"],
        cwd=directory,
        env=installed.clean_environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as clients:
            json.dump(server.clients, clients)
        ready, _, server.issuer = process.stdout.readline().strip().partition(" ")
        assert ready == "ready", "oidc-provider did not start"
        yield server
    finally:
        end(process)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def _authgent() -> Iterator[RealServer]:
    programs = installed.authgent()
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Authgent(Path(directory), listener.getsockname()[1])
        command = [str(programs / "uvicorn"), "program:create_app", "--factory", "--log-level", "warning"]
        process = start(
            [*command, "--app-dir", str(installed.SUPPORT / "authgent"), "--fd", str(listener.fileno())],
            pass_fds=(listener.fileno(),),
            cwd=directory,
            env=server.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            server.register()
            yield server
        finally:
            end(process)


_SERVERS = {"demo": _demo, "oidc-provider": _oidc_provider, "authgent": _authgent}


class RealServers:
    """The servers, each of which starts on first use."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._running: dict[str, RealServer] = {}

    def __getitem__(self, name: str) -> RealServer:
        if name not in self._running:
            server = self._stack.enter_context(_SERVERS[name]())
            self._stack.callback(server.http.close)
            self._running[name] = server
        return self._running[name]

    def close(self) -> None:
        self._stack.close()
