"""P4: a signed URL is a credential, and object stores reject a request with a second credential."""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import botocore.config
import botocore.session
import pytest
import requests

from otel_token_relay import Settings, TokenRelayPropagator, install, to_destination, use_token
from otel_token_relay.signed_urls import is_signed
from tests.support.clients import CLIENTS, Client, rows
from tests.support.loopback import Status, party

TOKEN = "p4-sample-token-of-a-caller"
KEY = b"secret-key-of-the-store"


class Store(BaseHTTPRequestHandler):
    """A server that accepts either a signature in the query or an Authorization header, but not both, as S3 does."""

    protocol_version = "HTTP/1.1"
    paths: list[str]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.paths.append(self.path)
        count = is_signed(self.path) + len(self.headers.get_all("Authorization", []))
        self.send_response({0: 403, 1: 200}.get(count, 400))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_GET

    def log_message(self, *args: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, list[str]]]:
    """Run an object store, and return its URL and the list of requested paths."""
    paths: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundStore", (Store,), {"paths": paths}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()


def s3(store: str, version: str) -> str:
    session = botocore.session.Session()
    client: Any = session.create_client(
        "s3",
        region_name="eu-central-1",
        endpoint_url=store,
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key=KEY.decode(),
        config=botocore.config.Config(signature_version=version, s3={"addressing_style": "path"}),
    )
    url: str = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "a key"})
    return url


def signature(text: str, digest: str) -> str:
    return base64.b64encode(hmac.new(KEY, text.encode(), digest).digest()).decode()


def google_v4(store: str) -> str:
    query = urlencode(
        {
            "X-Goog-Algorithm": "GOOG4-HMAC-SHA256",
            "X-Goog-Credential": "GOOGEXAMPLE/20261127/auto/storage/goog4_request",
            "X-Goog-Date": "20261127T120000Z",
            "X-Goog-Expires": "900",
            "X-Goog-SignedHeaders": "host",
        }
    )
    signed = hmac.new(KEY, f"GET\n/bucket/object\n{query}".encode(), hashlib.sha256).hexdigest()
    return f"{store}/bucket/object?{query}&X-Goog-Signature={signed}"


def google_v2(store: str) -> str:
    signed = quote(signature("GET\n\n\n1795780800\n/bucket/object", "sha256"), safe="")
    return f"{store}/bucket/object?GoogleAccessId=example@example.iam&Expires=1795780800&Signature={signed}"


def azure(store: str) -> str:
    fields = {"sv": "2024-11-04", "sr": "b", "se": "2026-11-28T00:00:00Z", "sp": "r"}
    return f"{store}/container/blob?{urlencode({**fields, 'sig': signature('r' + str(fields), 'sha256')})}"


def bearer(store: str) -> str:
    return f"{store}/resource?access_token=mF_9.B5f-4.1JqM"


PROVIDERS: dict[str, Callable[[str], str]] = {
    "s3v4": lambda store: s3(store, "s3v4"),
    "s3v2": lambda store: s3(store, "s3"),
    "google-v4": google_v4,
    "google-v2": google_v2,
    "azure": azure,
    "rfc6750": bearer,
}
HTTP_CLIENTS = [client for client in CLIENTS if client.protocol == "http"]


@pytest.mark.parametrize("on_conflict", ["keep", "replace"])
@rows(HTTP_CLIENTS)
def test_a_signed_url_succeeds_under_a_wildcard(client: Client, on_conflict: Any, store: tuple[str, list[str]]) -> None:
    """Every client sends every kind of signed URL unchanged and without the token, and other URLs with the token."""
    url, paths = store
    install(Settings(destinations=("http://127.0.0.1:*",), on_conflict=on_conflict))

    with use_token(TOKEN):
        assert client.call(f"{url}/plain?sig=1&signature=2&version=3").status == 200
        for name, sign in PROVIDERS.items():
            signed = sign(url)
            answer = client.call(signed)

            assert answer.status == 200, name
            parts = urlsplit(paths[-1])
            assert is_signed(paths[-1]), name
            assert parts.path.replace("%20", " ") == urlsplit(signed).path.replace("%20", " ")


def test_each_hop_of_a_redirect_is_decided_by_its_own_url(store: tuple[str, list[str]]) -> None:
    """After a redirect from an API that requires the token, the object store gets no token."""
    url, _ = store
    with party() as api:
        install(Settings(destinations=("http://127.0.0.1:*",)))
        api.answers.append(Status(302, (("Location", azure(url)),)))
        with use_token(TOKEN):
            answer = requests.get(f"{api.url}/download", timeout=5)

        assert answer.status_code == 200
        assert api.lines() == [[f"Bearer {TOKEN}"]]


def test_a_presigned_upload_of_the_sdks_user_succeeds(store: tuple[str, list[str]]) -> None:
    """An upload to a signed URL succeeds, because the request is sent just as without this package."""
    install(Settings(destinations=("http://127.0.0.1:*",)))

    with use_token(TOKEN):
        assert requests.put(s3(store[0], "s3v4"), data=b"content", timeout=5).status_code == 200


@pytest.mark.parametrize("on_conflict", ["keep", "replace"])
def test_inject_for_a_signed_url_writes_nothing(on_conflict: Any) -> None:
    """For a signed URL, which `to_destination` recognizes by its query, `inject` writes nothing."""
    propagator = TokenRelayPropagator(Settings(destinations=("https://store",), on_conflict=on_conflict))
    signed: dict[str, str] = {}
    plain: dict[str, str] = {}

    with use_token(TOKEN):
        propagator.inject(signed, to_destination(azure("https://store")))
        propagator.inject(plain, to_destination("https://store/?sig=1"))

    assert signed == {}
    assert list(plain.values()) == [f"Bearer {TOKEN}"]
