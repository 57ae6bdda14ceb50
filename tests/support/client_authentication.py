"""An authorization server that authenticates clients with and without TLS, and the clients' keys and certificates."""

from __future__ import annotations

import datetime
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from otel_token_relay.exchange import TokenExchanger
from otel_token_relay.token import BearerToken
from otel_token_relay.verification import TokenVerifier
from tests.support.introspection import active
from tests.support.loopback import certificate
from tests.support.tokens import AUDIENCE, private_key

CLIENT = "orders"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True)
class Seen:
    """A request that the server received.

    Attributes:
        peer: The serial number of the client's TLS certificate.
    """

    path: str
    form: dict[str, str]
    authorization: str | None
    peer: int | None


class Server:
    """The server's requests and its settings for client authentication.

    Attributes:
        url: The issuer.
        public_key: The key that verifies assertions; with ``None``, the server does not verify them.
        algorithm: The only algorithm that the server accepts.
        is_rfc7523: Whether assertions must follow RFC 7523.
        problems: The reasons for rejected assertions.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.public_key: Any = None
        self.algorithm = ""
        self.is_rfc7523 = False
        self.requests: list[Seen] = []
        self.problems: list[str] = []
        self.headers: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []

    @property
    def forms(self) -> list[dict[str, str]]:
        return [request.form for request in self.requests]

    def expect(self, key: Any, algorithm: str, *, is_rfc7523: bool = False) -> None:
        """Accept only assertions that *key*, a private key, signed."""
        self.public_key, self.algorithm, self.is_rfc7523 = key.public_key(), algorithm, is_rfc7523

    def respond(self, seen: Seen) -> tuple[int, Any]:
        self.requests.append(seen)
        if seen.path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/jwks",
                "token_endpoint": f"{self.url}/token",
            }
        if seen.path not in ("/introspect", "/token"):
            return 404, {}
        if self.public_key is not None:
            try:
                self._check(seen)
            except (AssertionError, KeyError, jwt.InvalidTokenError) as error:
                self.problems.append(repr(error))
                return 401, {"error": "invalid_client"}
        if seen.path == "/introspect":
            return 200, active()
        issued = f"issued.for.{seen.form.get('subject_token') or seen.form['assertion']}"
        return 200, {"access_token": issued, "issued_token_type": ACCESS_TOKEN, "token_type": "Bearer"}

    def _check(self, seen: Seen) -> None:
        assertion = seen.form["client_assertion"]
        assert seen.form["client_assertion_type"] == ASSERTION_TYPE
        header = jwt.get_unverified_header(assertion)
        claims = jwt.decode(
            assertion,
            self.public_key,
            algorithms=[self.algorithm],
            audience=self.url + seen.path if self.is_rfc7523 else self.url,
            issuer=CLIENT,
            subject=CLIENT,
            options={"require": ["iss", "sub", "aud", "exp", "iat", "jti"], "strict_aud": True},
        )
        assert header["typ"] == ("JWT" if self.is_rfc7523 else "client-authentication+jwt")
        assert seen.form["client_id"] == CLIENT
        assert seen.authorization is None
        assert claims["jti"] not in [earlier["jti"] for earlier in self.claims], "used twice"
        assert claims["exp"] - claims["iat"] <= 60
        assert abs(claims["iat"] - time.time()) < 15
        self.headers.append(header)
        self.claims.append(claims)

    def introspect(self, token: str = "opaque-token-1", **credential: Any) -> None:
        """Verify a token with a new verifier that has only this credential."""
        self.verifier(**credential).verify(token)

    def verifier(self, **credential: Any) -> TokenVerifier:
        endpoint = f"{self.url}/introspect"
        return TokenVerifier(self.url, AUDIENCE, introspection_endpoint=endpoint, client_id=CLIENT, **credential)

    def exchange(self, token: str = "token-1", **credential: Any) -> str:
        """Exchange a token with a new exchanger."""
        exchanger = TokenExchanger(
            token_endpoint=f"{self.url}/token", client_id=CLIENT, issuer=self.url, allow_unverified=True, **credential
        )
        return exchanger.exchange(BearerToken(token), audience="billing").reveal()

    def use(self, how: str, number: int = 1, **credential: Any) -> None:
        """Introspect or exchange a token."""
        getattr(self, how)(f"opaque-token-{number}", **credential)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run the server on a free loopback port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            found = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
            peer = int(str(found["serialNumber"]), 16) if found else None
            seen = Seen(self.path, dict(parse_qsl(body)), self.headers["Authorization"], peer)
            status, document = server.respond(seen)
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            """Do not log errors from clients without a certificate."""

    listener = Listener(("127.0.0.1", 0), Handler)
    if tls is not None:
        listener.socket = tls.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    server = Server(f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join(5)


def mutual_tls(*clients: Path, is_required: bool = True) -> ssl.SSLContext:
    """Return the TLS context of a server that accepts these clients' certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate())
    context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
    for client in clients:
        context.load_verify_locations(client)
    return context


def pem_of(key: Any, password: bytes | None = None) -> bytes:
    """Return a private key in PEM format."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    found: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return found


def public_pem_of(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


def certify(key: Any, serial: int = 1) -> x509.Certificate:
    """Return a self-signed certificate for a client."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{CLIENT}-{serial}")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def write_certificate(folder: Path, serial: int = 1, algorithm: str = "ES256") -> tuple[Path, Path]:
    """Write a new client certificate and its key, and return their paths."""
    key = private_key(algorithm, f"client-{serial}")
    paths = folder / f"cert-{serial}.pem", folder / f"key-{serial}.pem"
    paths[0].write_bytes(certify(key, serial).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(pem_of(key))
    return paths


def replace_file(path: Path, content: bytes | str) -> None:
    """Replace a file atomically, as the kubelet does."""
    new = path.with_suffix(".new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.replace(path)
