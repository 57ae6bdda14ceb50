"""h08: a request whose TLS name differs from the host in its URL carries no token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
import grpc.aio
import httpx
import httpx2
import pytest
import urllib3

from otel_token_relay import Settings, install, use_token
from tests.support.clients import in_loop
from tests.support.loopback import certificate, grpc_party, party, trust

TOKEN = "h08-canary-token-0001"
LINE = [f"Bearer {TOKEN}"]


def _tls_httpx(url: str, name: str) -> None:
    with httpx.Client(verify=trust(), trust_env=False) as client:
        client.get(url, extensions={"sni_hostname": name})


def _tls_httpx2(url: str, name: str) -> None:
    with httpx2.Client(verify=trust(), trust_env=False) as client:
        client.get(url, extensions={"sni_hostname": name})


def _tls_httpx_async(url: str, name: str) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(verify=trust(), trust_env=False) as client:
            await client.get(url, extensions={"sni_hostname": name})

    in_loop(run())


def _tls_urllib3(url: str, name: str) -> None:
    with urllib3.PoolManager(ssl_context=trust(), server_hostname=name) as manager:
        manager.request("GET", url)


def _tls_aiohttp(url: str, name: str) -> None:
    async def run() -> None:
        connector = aiohttp.TCPConnector(ssl=trust())
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url, server_hostname=name):
            pass

    in_loop(run())


def _tls_grpc(url: str, name: str) -> None:
    credentials = grpc.ssl_channel_credentials(Path(certificate()).read_bytes())
    options = [("grpc.ssl_target_name_override", name)]
    with grpc.secure_channel(urlsplit(url).netloc, credentials, options=options) as channel:
        channel.unary_unary("/tests.Party/call")(b"", timeout=10)


def _tls_grpc_authority(url: str, name: str) -> None:
    async def run() -> None:
        with open(certificate(), "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        # The options are an iterator, which gRPC must still be able to read after the relay has read it.
        options = iter([("grpc.default_authority", f"{name}:{urlsplit(url).port}")])
        async with grpc.aio.secure_channel(urlsplit(url).netloc, credentials, options) as channel:
            await channel.unary_unary("/tests.Party/call")(b"", timeout=10)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("send", "run"),
    [
        pytest.param(_tls_httpx, party, id="httpx"),
        pytest.param(_tls_httpx_async, party, id="httpx-async"),
        pytest.param(_tls_httpx2, party, id="httpx2"),
        pytest.param(_tls_urllib3, party, id="urllib3"),
        pytest.param(_tls_aiohttp, party, id="aiohttp"),
        pytest.param(_tls_grpc, grpc_party, id="grpc"),
        pytest.param(_tls_grpc_authority, grpc_party, id="grpc-aio"),
    ],
)
def test_h08_a_request_with_another_tls_name_gets_no_token(send: Callable[[str, str], None], run: Any) -> None:
    """A request carries the token only if its TLS name and the host in its URL are the same."""
    with ExitStack() as stack:
        one = stack.enter_context(run(tls=True))
        by_name = f"https://localhost:{one.port}"
        install(Settings(destinations=[one.url, by_name]))
        with use_token(TOKEN):
            send(one.url, "localhost")
            send(by_name, "127.0.0.1")
            send(by_name, "LocalHost")

    assert one.lines() == [[], [], LINE]
