"""P4: a request's own credential takes precedence over the token, however the credential was passed."""

from __future__ import annotations

import base64
import copy
import os
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import httpx
import httpx2
import pytest
import requests
import requests.auth
import urllib3
from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from otel_token_relay import Settings, install, use_token
from otel_token_relay.clients.grpc import _replace
from tests.support.clients import CLIENTS, PARTIES, Client, Protocol, every_client, in_loop, rows
from tests.support.loopback import Party, Status, trust

TOKEN = "p4-sample-token"
OWN = "Basic " + base64.b64encode(b"u:p").decode()
SPELLINGS = ("Authorization", "aUTHORIZATION")

Send = Callable[[str], Any]


@dataclass(frozen=True)
class Form:
    """A way to pass a credential.

    Attributes:
        send: A function that sends one request to a URL with the credential `OWN`.
        is_challenged: Whether the credential is sent only after a 401 response.
        is_hidden: Whether the library writes the credential where no other code can read or remove it.
    """

    name: str
    send: Send
    protocol: Protocol = "http"
    is_challenged: bool = False
    is_hidden: bool = False

    @property
    def party(self) -> Callable[..., AbstractContextManager[Party]]:
        """Return a context manager that runs a server for this way of passing a credential."""
        return PARTIES[self.protocol]


FORMS: list[Form] = []


def form(name: str, **others: Any) -> Callable[[Send], Send]:
    """Return a decorator that registers a way to pass a credential."""

    def add(send: Send) -> Send:
        FORMS.append(Form(name, send, **others))
        return send

    return add


def each(forms: Sequence[Form]) -> pytest.MarkDecorator:
    """Return a decorator that runs a test with each way of passing a credential."""
    return pytest.mark.parametrize("form", forms, ids=lambda form: form.name)


def with_userinfo(url: str) -> str:
    return url.replace("://", "://u:p@")


def _add_httpx_forms(module: Any, label: str) -> None:
    def get(url: str, *, make: dict[str, Any] | None = None, **options: Any) -> None:
        with module.Client(trust_env=False, verify=trust(), **(make or {})) as client:
            client.get(url, **options)

    def aget(url: str, *, make: dict[str, Any] | None = None, **options: Any) -> None:
        async def run() -> None:
            async with module.AsyncClient(trust_env=False, verify=trust(), **(make or {})) as client:
                await client.get(url, **options)

        in_loop(run())

    def hook(request: Any) -> None:
        request.headers["Authorization"] = OWN

    async def ahook(request: Any) -> None:
        hook(request)

    class OwnAuth(module.Auth):  # type: ignore[misc,name-defined]
        def auth_flow(self, request: Any) -> Any:
            hook(request)
            yield request

    for spelling in SPELLINGS:
        form(f"{label} header {spelling}")(lambda url, s=spelling: get(url, headers={s: OWN}))  # type: ignore[misc]
    form(f"{label} bytes header")(lambda url: get(url, headers=[(b"Authorization", OWN.encode())]))
    form(f"{label} client headers")(lambda url: get(url, make={"headers": {"AUTHORIZATION": OWN}}))
    form(f"{label} userinfo")(lambda url: get(with_userinfo(url)))
    form(f"{label} event hook")(lambda url: get(url, make={"event_hooks": {"request": [hook]}}))
    form(f"{label} async event hook")(lambda url: aget(url, make={"event_hooks": {"request": [ahook]}}))
    for kind, send in (("", get), ("async ", aget)):
        form(f"{label} {kind}auth=")(lambda url, s=send: s(url, auth=("u", "p")))  # type: ignore[misc]
        form(f"{label} {kind}client auth")(lambda url, s=send: s(url, make={"auth": ("u", "p")}))  # type: ignore[misc]
        form(f"{label} {kind}auth flow")(lambda url, s=send: s(url, auth=OwnAuth()))  # type: ignore[misc]
        form(f"{label} {kind}netrc")(lambda url, s=send: s(url, auth=module.NetRCAuth(netrc_file())))  # type: ignore[misc]


_add_httpx_forms(httpx, "httpx")
_add_httpx_forms(httpx2, "httpx2")


def netrc_file() -> str:
    return os.environ["NETRC"]


def _requests_get(url: str, *, session: Callable[[requests.Session], object] = lambda s: None, **options: Any) -> None:
    with requests.Session() as one:
        one.trust_env = options.pop("trust_env", False)
        session(one)
        one.get(url, **options)


def _requests_own(request: requests.PreparedRequest) -> requests.PreparedRequest:
    request.headers["authorization"] = OWN
    return request


class _AddsHeaders(requests.adapters.HTTPAdapter):
    def add_headers(self, request: requests.PreparedRequest, **kwargs: object) -> None:
        request.headers["AUTHORIZATION"] = OWN


for _spelling in SPELLINGS:
    form(f"requests header {_spelling}")(lambda url, s=_spelling: _requests_get(url, headers={s: OWN}))  # type: ignore[misc]
form("requests bytes header")(lambda url: _requests_get(url, headers={b"Authorization": OWN.encode()}))
form("requests session headers")(
    lambda url: _requests_get(url, session=lambda s: s.headers.update({"authorization": OWN}))
)
form("requests session auth")(lambda url: _requests_get(url, session=lambda s: setattr(s, "auth", ("u", "p"))))
form("requests auth=")(lambda url: _requests_get(url, auth=("u", "p")))
form("requests auth callable")(lambda url: _requests_get(url, auth=_requests_own))
form("requests netrc")(lambda url: _requests_get(url, trust_env=True))
form("requests userinfo")(lambda url: _requests_get(with_userinfo(url)))
form("requests adapter")(lambda url: _requests_get(url, session=lambda s: s.mount("http://", _AddsHeaders())))


def _urllib3_get(url: str, *, make: dict[str, Any] | None = None, **options: Any) -> None:
    with urllib3.PoolManager(**(make or {})) as manager:
        manager.request("GET", url, **options)


for _spelling in SPELLINGS:
    form(f"urllib3 header {_spelling}")(lambda url, s=_spelling: _urllib3_get(url, headers={s: OWN}))  # type: ignore[misc]
form("urllib3 HTTPHeaderDict")(lambda url: _urllib3_get(url, headers=urllib3.HTTPHeaderDict({"AUTHORIZATION": OWN})))
form("urllib3 bytes header")(lambda url: _urllib3_get(url, headers={b"authorization": OWN}))
form("urllib3 make_headers")(lambda url: _urllib3_get(url, headers=urllib3.make_headers(basic_auth="u:p")))
form("urllib3 manager headers")(lambda url: _urllib3_get(url, make={"headers": {"authorization": OWN}}))


@form("urllib3 pool headers")
def _pool_headers(url: str) -> None:
    with urllib3.connectionpool.connection_from_url(url, headers={"AUTHORIZATION": OWN}) as pool:
        pool.urlopen("GET", "/")


def _urllib_get(
    url: str,
    *handlers: urllib.request.BaseHandler,
    request: Callable[[urllib.request.Request], object] = lambda r: None,
    opener: Callable[[urllib.request.OpenerDirector], object] = lambda o: None,
) -> None:
    sent, director = (
        urllib.request.Request(url),
        urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust()), *handlers
        ),
    )
    request(sent)
    opener(director)
    with director.open(sent, timeout=10) as response:
        response.read()


def _password(url: str, manager: Any, **options: Any) -> urllib.request.HTTPBasicAuthHandler:
    manager.add_password(None, url, "u", "p", **options)
    return urllib.request.HTTPBasicAuthHandler(manager)


for _spelling in SPELLINGS:
    form(f"urllib header {_spelling}")(
        lambda url, s=_spelling: _urllib_get(url, request=lambda r: r.add_header(s, OWN))  # type: ignore[misc]
    )
form("urllib bytes header")(
    lambda url: _urllib_get(url, request=lambda r: r.add_header(b"authorization", OWN))  # type: ignore[arg-type]
)
form("urllib unredirected header")(
    lambda url: _urllib_get(url, request=lambda r: r.add_unredirected_header("Authorization", OWN))
)
form("urllib opener.addheaders")(
    lambda url: _urllib_get(url, opener=lambda o: o.addheaders.append(("authorization", OWN)))
)
form("urllib prior auth")(
    lambda url: _urllib_get(url, _password(url, urllib.request.HTTPPasswordMgrWithPriorAuth(), is_authenticated=True))
)
form("urllib basic challenge", is_challenged=True)(
    lambda url: _urllib_get(url, _password(url, urllib.request.HTTPPasswordMgrWithDefaultRealm()))
)


def _aiohttp_get(url: str, *, make: dict[str, Any] | None = None, **options: Any) -> None:
    async def run() -> None:
        async with aiohttp.ClientSession(**(make or {})) as session, session.get(url, **options) as response:
            await response.read()

    in_loop(run())


async def _own_middleware(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
    request.headers["authorization"] = OWN
    response: aiohttp.ClientResponse = await handler(request)
    return response


for _spelling in SPELLINGS:
    form(f"aiohttp header {_spelling}")(lambda url, s=_spelling: _aiohttp_get(url, headers={s: OWN}))  # type: ignore[misc]
form("aiohttp session headers")(lambda url: _aiohttp_get(url, make={"headers": {"AUTHORIZATION": OWN}}))
form("aiohttp auth=")(lambda url: _aiohttp_get(url, auth=aiohttp.BasicAuth("u", "p")))
form("aiohttp session auth")(lambda url: _aiohttp_get(url, make={"auth": aiohttp.BasicAuth("u", "p")}))
form("aiohttp userinfo")(lambda url: _aiohttp_get(with_userinfo(url)))
form("aiohttp netrc")(lambda url: _aiohttp_get(url, make={"trust_env": True}))
if hasattr(aiohttp, "ClientHandlerType"):  # aiohttp 3.12 and later
    form("aiohttp middleware")(lambda url: _aiohttp_get(url, make={"middlewares": (_own_middleware,)}))


def _tornado_get(url: str, *, make: dict[str, Any] | None = None, **options: Any) -> None:
    async def run() -> None:
        client = SimpleAsyncHTTPClient(force_instance=True, defaults=make)
        await client.fetch(HTTPRequest(url, **options))
        client.close()

    in_loop(run())


for _spelling in SPELLINGS:
    form(f"tornado header {_spelling}")(lambda url, s=_spelling: _tornado_get(url, headers={s: OWN}))  # type: ignore[misc]
form("tornado HTTPHeaders")(lambda url: _tornado_get(url, headers=HTTPHeaders({"AUTHORIZATION": OWN})))
form("tornado auth=")(lambda url: _tornado_get(url, auth_username="u", auth_password="p"))
form("tornado client defaults")(lambda url: _tornado_get(url, make={"auth_username": "u", "auth_password": "p"}))
form("tornado userinfo")(lambda url: _tornado_get(with_userinfo(url)))


class _WritesOwn(grpc.AuthMetadataPlugin):  # type: ignore[misc]  # grpc has no types
    def __call__(self, context: Any, callback: Any) -> None:
        callback((("authorization", OWN),), None)


class _AddsMetadata(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc has no types
    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(_replace(details, [("authorization", OWN)]), request)


class _AddsMetadataAio(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc has no types
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        details.metadata.add("authorization", OWN)
        return await continuation(details, request)


def _grpc_get(url: str, *, channel: Any = None, interceptors: Sequence[Any] = (), **options: Any) -> None:
    target = url.removeprefix("http://")
    with grpc.secure_channel(target, channel) if channel else grpc.insecure_channel(target) as opened:
        intercepted = grpc.intercept_channel(opened, *interceptors)
        intercepted.unary_unary("/tests.Party/call")(b"", timeout=10, **options)


def _grpc_aio_get(url: str, *, channel: Any = None, interceptors: Sequence[Any] = (), **options: Any) -> None:
    target = url.removeprefix("http://")

    async def run() -> None:
        async with (
            grpc.aio.secure_channel(target, channel, interceptors=interceptors)
            if channel
            else grpc.aio.insecure_channel(target, interceptors=interceptors)
        ) as opened:
            await opened.unary_unary("/tests.Party/call")(b"", timeout=10, **options)

    in_loop(run())


def _add_grpc_forms(label: str, get: Callable[..., None], interceptor: Any) -> None:
    local, own = grpc.local_channel_credentials(), grpc.metadata_call_credentials(_WritesOwn())
    composite = grpc.composite_channel_credentials(local, own)
    form(f"{label} metadata", protocol="grpc")(lambda url: get(url, metadata=[("authorization", OWN)]))
    form(f"{label} interceptor", protocol="grpc")(lambda url: get(url, interceptors=[interceptor]))
    form(f"{label} channel credentials", protocol="grpc", is_hidden=True)(lambda url: get(url, channel=composite))
    form(f"{label} call credentials", protocol="grpc", is_hidden=True)(
        lambda url: get(url, channel=local, credentials=own)
    )


_add_grpc_forms("grpc", _grpc_get, _AddsMetadata())
_add_grpc_forms("grpc-aio", _grpc_aio_get, _AddsMetadataAio())


@pytest.fixture
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Write a netrc file that contains a password for loopback."""
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login u password p\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))


# aiohttp's auth= parameter is deprecated, but it must be respected until it is removed.
every_form = pytest.mark.filterwarnings("ignore:(BasicAuth|The 'auth' parameter) is deprecated")


def both_schemes(url: str) -> list[str]:
    """Return the URL with both schemes, because a gRPC channel with unknown credentials might use TLS."""
    return [url, url.replace("http:", "https:")]


CHALLENGE = Status(401, (("WWW-Authenticate", 'Basic realm="r"'),))


@every_form
@pytest.mark.usefixtures("netrc")
@each(FORMS)
def test_an_explicit_credential_wins(form: Form, one: Party) -> None:
    """The application's own credential is sent alone, without the token."""
    install(Settings(destinations=both_schemes(one.url)))
    if form.is_challenged:
        one.answers.append(CHALLENGE)
    with use_token(TOKEN):
        form.send(one.url)

    assert one.lines()[-1] == [OWN]
    # The first attempt has no credential yet, so it carries the token.
    assert one.lines()[:-1] == ([[f"Bearer {TOKEN}"]] if form.is_challenged else [])


@every_form
@pytest.mark.usefixtures("netrc")
@each([form for form in FORMS if not form.is_challenged])
def test_replace_sends_the_token_alone(form: Form, one: Party) -> None:
    """With ON_CONFLICT=replace, the token is sent alone; without a token, the application's credential is sent.

    A credential that cannot be removed is sent alone, never together with the token.
    """
    install(Settings(destinations=both_schemes(one.url), on_conflict="replace"))
    with use_token(TOKEN):
        form.send(one.url)
    form.send(one.url)

    assert one.lines() == [[OWN] if form.is_hidden else [f"Bearer {TOKEN}"], [OWN]]


@each(
    [
        form
        for form in FORMS
        if form.name in ("httpx auth=", "aiohttp session headers", "tornado auth=", "grpc metadata")
    ]
)
def test_replace_does_not_affect_other_destinations(form: Form, one: Party) -> None:
    """If the token is not relayed, the application's credential is kept."""
    install(Settings(destinations=["http://elsewhere.example"], on_conflict="replace"))
    with use_token(TOKEN):
        form.send(one.url)

    assert one.lines() == [[OWN]]


DIGEST = Status(401, (("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'),))


def _digest_aiohttp(url: str) -> None:
    _aiohttp_get(url, make={"middlewares": (aiohttp.DigestAuthMiddleware("u", "p"),)})


DIGESTS: dict[str, Send] = {
    "httpx": lambda url: httpx.get(url, auth=httpx.DigestAuth("u", "p"), trust_env=False, verify=trust()),
    "httpx2": lambda url: httpx2.get(url, auth=httpx2.DigestAuth("u", "p"), trust_env=False, verify=trust()),
    "requests": lambda url: requests.get(url, auth=requests.auth.HTTPDigestAuth("u", "p"), timeout=10),
    "urllib": lambda url: _urllib_get(
        url,
        urllib.request.HTTPDigestAuthHandler(_password(url, urllib.request.HTTPPasswordMgrWithDefaultRealm()).passwd),
    ),
}
if hasattr(aiohttp, "DigestAuthMiddleware"):  # aiohttp 3.12 and later
    DIGESTS["aiohttp"] = _digest_aiohttp


@pytest.mark.parametrize("send", DIGESTS.values(), ids=DIGESTS)
def test_a_digest_response_is_not_replaced(send: Send, one: Party) -> None:
    """The token does not replace the response to a Digest challenge, and no request has two Authorization lines."""
    install(Settings(destinations=[one.url]))
    one.answers.append(DIGEST)
    with use_token(TOKEN):
        send(one.url)

    assert [len(lines) for lines in one.lines()] == [1, 1]
    assert one.lines()[1][0].startswith("Digest ")


def test_two_explicit_lines_are_not_changed(one: Party) -> None:
    """A request that already has two Authorization lines is sent unchanged."""
    install(Settings(destinations=[one.url]))
    with use_token(TOKEN):
        httpx.get(
            one.url, headers=[("Authorization", "Own a"), ("authorization", "Own b")], trust_env=False, verify=trust()
        )

    assert one.lines() == [["Own a", "Own b"]]


@every_client
def test_a_custom_header_conflicts_only_with_itself(client: Client, one: Party) -> None:
    """With a custom header, only an explicit header of the same name takes precedence over the token."""
    install(Settings(destinations=[one.url], header="Txn-Token"))
    with use_token(TOKEN):
        client.call(one.url, headers={"TXN-token": "own"})
        client.call(one.url, headers={"Authorization": OWN})

    assert one.lines("txn-token") == [["own"], [TOKEN]]
    assert one.lines() == [[], [OWN]]


def _httpx_objects(module: Any) -> Callable[[str], tuple[list[Any], Callable[[], object]]]:
    def build(url: str) -> tuple[list[Any], Callable[[], object]]:
        client = module.Client(trust_env=False, verify=trust())
        request = client.build_request("POST", url, headers={"x-own": "1"}, content=b"body")

        def send() -> None:
            with client:
                assert client.send(request).request is request

        return [request.headers, client.headers], send

    return build


def _requests_objects(url: str) -> tuple[list[Any], Callable[[], object]]:
    session = requests.Session()
    prepared = session.prepare_request(requests.Request("POST", url, headers={"x-own": "1"}, data=b"body"))

    def send() -> None:
        with session:
            assert session.send(prepared).request is prepared

    return [prepared.headers, session.headers], send


def _urllib_objects(url: str) -> tuple[list[Any], Callable[[], object]]:
    request = urllib.request.Request(url, data=b"body", headers={"X-own": "1"})
    request.add_unredirected_header("X-other", "2")
    urllib_own = [request.headers]

    def send() -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            response.read()
        assert not [name for name, _ in request.header_items() if name.lower() == "authorization"]

    return urllib_own, send


def _urllib3_objects(url: str) -> tuple[list[Any], Callable[[], object]]:
    headers, shared = {"x-own": "1"}, urllib3.HTTPHeaderDict({"x-shared": "1"})

    def send() -> None:
        with urllib3.PoolManager(headers=shared) as manager:
            manager.request("POST", url, headers=headers, body=b"body")
            manager.request("POST", url, body=b"body")

    return [headers, shared], send


def _aiohttp_objects(url: str) -> tuple[list[Any], Callable[[], object]]:
    headers, shared = {"x-own": "1"}, {"x-shared": "1"}
    return [headers, shared], lambda: _aiohttp_get(url, make={"headers": shared}, headers=headers)


def _tornado_objects(url: str) -> tuple[list[Any], Callable[[], object]]:
    request = HTTPRequest(url, method="POST", headers={"x-own": "1"}, body=b"body")

    async def run() -> None:
        client = SimpleAsyncHTTPClient(force_instance=True)
        response = await client.fetch(request)
        client.close()
        assert "authorization" not in response.request.headers

    return [request.headers], lambda: in_loop(run())


def _grpc_objects(get: Callable[..., None]) -> Callable[[str], tuple[list[Any], Callable[[], object]]]:
    def build(url: str) -> tuple[list[Any], Callable[[], object]]:
        metadata = [("x-own", "1")]
        return [metadata], lambda: get(url, metadata=metadata)

    return build


OBJECTS = {
    "httpx": _httpx_objects(httpx),
    "httpx2": _httpx_objects(httpx2),
    "requests": _requests_objects,
    "urllib": _urllib_objects,
    "urllib3": _urllib3_objects,
    "aiohttp": _aiohttp_objects,
    "tornado": _tornado_objects,
    "grpc": _grpc_objects(_grpc_get),
    "grpc-aio": _grpc_objects(_grpc_aio_get),
}


@rows([client for client in CLIENTS if client.name in OBJECTS])
@pytest.mark.parametrize("on_conflict", ["keep", "replace"])
def test_the_callers_objects_are_not_modified(client: Client, on_conflict: Any, one: Party) -> None:
    """A call does not modify the caller's request, session, or headers."""
    install(Settings(destinations=[one.url], on_conflict=on_conflict))
    held, send = OBJECTS[client.name](one.url)
    before = copy.deepcopy([dict(headers) for headers in held])
    with use_token(TOKEN):
        send()

    assert all(lines == [f"Bearer {TOKEN}"] for lines in one.lines())
    after = [{k: v for k, v in dict(headers).items() if k not in ADDED_BY_URLLIB} for headers in held]
    assert after == before


# urllib itself adds these headers to the caller's request.
ADDED_BY_URLLIB = {"Content-type", "Content-length"}


BODY = [b"first " * 3000, b"", b"\x00\xff middle", b"last " * 3000]


@every_client
def test_a_streamed_body_is_complete(client: Client, one: Party) -> None:
    """A streamed body is read once, and the server receives the complete body and the token."""
    install(Settings(destinations=[one.url]))
    body = [chunk for chunk in BODY if chunk]
    with use_token(TOKEN):
        client.call(one.url, method="POST", body=body)

    assert one.requests[0].body == b"".join(body)
    assert one.requests[0].authorization == f"Bearer {TOKEN}"


def _form() -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("file", b"content" * 500, filename="f.bin")
    return data


FILES = {"file": ("f.bin", b"content" * 500)}
MULTIPARTS: dict[str, Send] = {
    "httpx": lambda url: httpx.post(url, files=FILES, trust_env=False, verify=trust()),
    "httpx2": lambda url: httpx2.post(url, files=FILES, trust_env=False, verify=trust()),
    "requests": lambda url: requests.post(url, files=FILES, timeout=10),
    "urllib3": lambda url: urllib3.request("POST", url, fields=FILES),
    "aiohttp": lambda url: _aiohttp_post(url),
}


def _aiohttp_post(url: str) -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, data=_form()) as response:
            await response.read()

    in_loop(run())


@pytest.mark.parametrize("send", MULTIPARTS.values(), ids=MULTIPARTS)
def test_a_multipart_body_is_complete(send: Send, one: Party) -> None:
    """The server receives the complete uploaded file and the token."""
    install(Settings(destinations=[one.url]))
    with use_token(TOKEN):
        send(one.url)

    assert b"content" * 500 in one.requests[0].body
    assert one.requests[0].authorization == f"Bearer {TOKEN}"
