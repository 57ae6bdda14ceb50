"""Test the rows of `tests/vectors/providers.json` against issuers with their real names, over TLS on loopback.

This file runs as a program in a separate process, because the certificate authority and the proxy apply to the
whole process. The environment's proxy is a loopback server that terminates TLS and serves every host. For each row,
the program writes the decisions of the synchronous and the asynchronous verifier to standard output, as JSON.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import socketserver
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.tokens import make_token, public_jwk

VECTORS = Path(__file__).parent.parent / "vectors" / "providers.json"
PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"


def load_rows() -> list[dict[str, Any]]:
    """Return the rows in the file."""
    rows: list[dict[str, Any]] = json.loads(VECTORS.read_text("utf-8"))["rows"]
    return rows


def name_of(row: dict[str, Any]) -> str:
    """Return a row's unique name."""
    return f"{row['provider']}: {row['token']}"


def issuer_of(row: dict[str, Any]) -> str:
    """Return the issuer whose metadata the row needs, or an empty string."""
    return str(row["settings"].get("ISSUERS", ""))


def responses_of(row: dict[str, Any]) -> dict[str, tuple[int, Any]]:
    """Return the hosts' responses, which by default are the issuer's metadata and its keys."""
    issuer = issuer_of(row)
    jwks_url = row.get("jwks_url") or f"{issuer.rstrip('/')}/jwks"
    documents = row.get("documents")
    if documents is None:
        documents = {f"{issuer.rstrip('/')}/.well-known/openid-configuration": {"issuer": issuer, "jwks_uri": jwks_url}}
    alg = row.get("alg", "RS256")
    # Publish an encryption key too, as Keycloak does.
    keys = [public_jwk(alg, "k1", **row.get("key", {})), public_jwk("RS256", "enc", use="enc", alg="RSA-OAEP-256")]
    status = row.get("status", 200)
    responses = {url: (status, document) for url, document in documents.items()}
    responses[jwks_url] = (status, {"keys": keys})
    if "introspection_url" in row:
        responses[row["introspection_url"]] = (200, row["introspection"])
    return responses


def token_of(row: dict[str, Any]) -> str:
    """Return a token that is signed with the key that the row's issuer publishes."""
    if "raw" in row:
        return str(row["raw"])
    now = int(time.time())
    header = {"typ": ...} | row["header"]
    token = make_token({"iat": now, "exp": now + 600} | row["claims"], row.get("alg", "RS256"), **header)
    return token[:-8] + "AAAAAAAA" if row.get("break_signature") else token


class Hosts:
    """A proxy that itself responds for every host.

    Attributes:
        responses: The status and the document for each URL.
        bearer: The token that each request must have, or ``None``.
        requests: The requested URLs, each with its body.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.responses: dict[str, tuple[int, Any]] = {}
        self.bearer: str | None = None
        self.requests: list[tuple[str, str]] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                target = self.rfile.readline().split()[1].decode()
                while self.rfile.readline().strip():
                    pass
                self.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                try:
                    with context.wrap_socket(self.connection, server_side=True) as tls, tls.makefile("rb") as file:
                        outer.respond(target, file, tls.sendall)
                except OSError:
                    pass  # the client has disconnected

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def respond(self, target: str, file: Any, send: Callable[[bytes], object]) -> None:
        path = file.readline().split()[1].decode()
        headers = dict(line.decode().rstrip().split(": ", 1) for line in iter(file.readline, b"\r\n"))
        body = file.read(int(headers.get("Content-Length", 0))).decode()
        url = f"https://{target.removesuffix(':443')}{path}"
        self.requests.append((url, body))
        status, document = self.responses.get(url, (404, {}))
        if self.bearer is not None and headers.get("Authorization") != f"Bearer {self.bearer}":
            status, document = 403, {}
        text = json.dumps(document).encode()
        send(f"HTTP/1.1 {status} x\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text)


def certify(hosts: set[str], folder: Path) -> tuple[ssl.SSLContext, str]:
    """Return a context with a certificate for all *hosts*, and the path of that certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "identity providers")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(host)) if host.replace(".", "").isdigit() else x509.DNSName(host)
        for host in sorted(hosts)
    ]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, str(file)


def decide(row: dict[str, Any], hosts: Hosts, certificate: str) -> dict[str, Any]:
    """Return both verifiers' decisions about the row's token, with the settings as environment variables.

    The files in the settings are paths in a pod. Equivalent local files replace them here.
    """
    from otel_token_relay.settings import Settings
    from otel_token_relay.verification import AsyncTokenVerifier, KeysUnavailable, TokenRejected, TokenVerifier
    from otel_token_relay.verification.authenticator import verifier_from

    hosts.bearer = row.get("bearer")
    token_file = Path(certificate).with_name("token")
    token_file.write_text(f"{hosts.bearer}\n")
    files = {"CA_FILE": certificate, "JWKS_TOKEN_FILE": str(token_file)}
    environ = {PREFIX + name: files.get(name, value) for name, value in row["settings"].items()}
    environ |= {f"{PREFIX}VERIFY": "enforce"}
    settings = Settings.from_env(environ)
    hosts.responses, hosts.requests = responses_of(row), []
    token, found = token_of(row), {}

    async def verify_async(verifier: AsyncTokenVerifier) -> Any:
        return await verifier.verify(token)

    for kind in (TokenVerifier, AsyncTokenVerifier):
        verifier: Any = verifier_from(settings, kind)
        name = "sync" if kind is TokenVerifier else "async"
        try:
            verified = verifier.verify(token) if name == "sync" else asyncio.run(verify_async(verifier))
        except TokenRejected as error:
            found[name] = {"result": error.reason, "claim": error.claim}
        except KeysUnavailable:
            found[name] = {"result": "unavailable"}
        else:
            found[name] = {
                "result": "accepted",
                "subject": verified.subject,
                "identity": verified.identity,
                "client_id": verified.client_id,
                "scopes": sorted(verified.scopes),
            }
        explained = verifier.explain(token, found[name]["result"])
        found[name] |= {"cause": str(explained), "advice": explained.advice}
    return found | {"problems": list(settings.problems), "requests": [url for url, _ in hosts.requests]}


def main() -> None:
    """Run all rows."""
    rows = load_rows()
    names = {urlsplit(url).hostname or "" for row in rows for url in responses_of(row)} - {""}
    with tempfile.TemporaryDirectory() as folder:
        context, certificate = certify(names, Path(folder))
        hosts = Hosts(context)
        os.environ["SSL_CERT_FILE"] = certificate
        os.environ["https_proxy"] = f"http://127.0.0.1:{hosts.server.server_address[1]}"
        for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY", "SSL_CERT_DIR"):
            os.environ.pop(name, None)
        json.dump({name_of(row): decide(row, hosts, certificate) for row in rows}, sys.stdout)


if __name__ == "__main__":
    main()
