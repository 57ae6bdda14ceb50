"""Key sets are discovered and rotated correctly, even with faulty issuers."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import anyio
import pytest
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.instrumentation.urllib import URLLibInstrumentor

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.testing import third_party
from otel_token_relay.verification import AsyncTokenVerifier, KeysUnavailable, TokenRejected, TokenVerifier
from otel_token_relay.verification.jwks_client import KeySource
from otel_token_relay.verification.verifier import VerifierCore
from tests.support.clocks import ShiftedClock
from tests.support.issuers import Issuer, issuing, wait_until
from tests.support.processes import unused_port
from tests.support.tokens import AUDIENCE, claims, make_token, public_jwk, rsa_key

BACKENDS = ["asyncio", "trio"]


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(public_jwk("RS256", "k1")) as running:
        yield running


def verifier_of(issuer: Issuer, **options: Any) -> TokenVerifier:
    return TokenVerifier([issuer.url], AUDIENCE, **options)


def token_of(issuer: Issuer, kid: str = "k1", name: str = "first", **changes: Any) -> str:
    return make_token(claims(issuer.url, **changes), kid=kid, name=name)


def source_of(verifier: VerifierCore) -> KeySource:
    return next(iter(verifier._sources.values()))


def flood(verifier: TokenVerifier, issuer: Issuer, count: int = 50) -> None:
    """Send tokens with unknown key IDs from several threads simultaneously."""

    def attack(number: int) -> None:
        for i in range(count // 5):
            with pytest.raises((TokenRejected, KeysUnavailable)):
                verifier.verify(token_of(issuer, kid=f"forged-{number}-{i}"))

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def test_keys_are_found_by_openid_discovery_and_fetched_once(issuer: Issuer) -> None:
    """The metadata contains the key set's URL, and many requests share one fetch of each document."""
    verifier = verifier_of(issuer, cache_size=0)
    results: list[str | None] = []

    def request() -> None:
        results.append(verifier.verify(token_of(issuer)).subject)

    threads = [threading.Thread(target=request) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert results == ["alice"] * 20
    assert issuer.hits == ["/.well-known/openid-configuration", "/jwks"]


def test_keys_are_found_by_rfc8414_where_openid_does_not_answer(issuer: Issuer) -> None:
    """The keys of an OAuth server that has no OpenID configuration are found through RFC 8414."""
    issuer.metadata_path = "/.well-known/oauth-authorization-server"

    assert verifier_of(issuer).verify(token_of(issuer)).subject == "alice"


def test_start_page_in_place_of_metadata_is_passed_over(issuer: Issuer) -> None:
    """A web application that responds to unknown metadata paths with 200 and HTML is skipped."""
    issuer.metadata_path = "/.well-known/oauth-authorization-server"
    page = answering(200, b"<!doctype html>")
    issuer.behave = lambda handler, path: path.endswith("openid-configuration") and page(handler, path)

    assert verifier_of(issuer).verify(token_of(issuer)).subject == "alice"


def test_jwks_uri_is_taken_where_it_is_given(issuer: Issuer) -> None:
    """With a *jwks_uri*, the metadata is not fetched."""
    verifier = verifier_of(issuer, jwks_uri=f"{issuer.url}/jwks")

    verifier.verify(token_of(issuer))

    assert issuer.hits == ["/jwks"]


def test_metadata_of_another_issuer_is_not_believed(issuer: Issuer) -> None:
    """Metadata with a different issuer is not trusted (RFC 8414, section 3.3)."""
    issuer.metadata["issuer"] = "https://evil.example"

    with pytest.raises(KeysUnavailable):
        verifier_of(issuer).verify(token_of(issuer))
    assert issuer.fetches == 0


def test_rotation_is_noticed_by_the_first_token_under_the_new_key(issuer: Issuer) -> None:
    """An unknown key ID is fetched immediately, and tokens from the withdrawn key are rejected."""
    verifier = verifier_of(issuer)
    old = token_of(issuer)
    verifier.verify(old)
    issuer.keys = [public_jwk("RS256", "k2", name="second")]

    assert verifier.verify(token_of(issuer, "k2", "second")).subject == "alice"
    with pytest.raises(TokenRejected, match="unknown_key"):
        verifier.verify(old)
    assert issuer.fetches == 2


def test_same_keys_after_a_refresh_keep_what_is_remembered(issuer: Issuer) -> None:
    """Only changed keys invalidate cached verifications."""
    verifier = verifier_of(issuer)
    verifier.verify(token_of(issuer))
    source = next(iter(verifier._sources.values()))
    before = source.current()
    with pytest.raises(TokenRejected):
        verifier.verify(token_of(issuer, "forged"))

    assert issuer.fetches == 2
    assert source.current() is before


def test_flood_of_unknown_kids_costs_one_fetch_for_each_cooldown(issuer: Issuer) -> None:
    """A flood of forged key IDs costs the issuer one fetch for each cooldown."""
    clock = ShiftedClock()
    verifier = verifier_of(issuer, monotonic=clock.monotonic)
    verifier.verify(token_of(issuer))

    flood(verifier, issuer)
    assert issuer.fetches == 2
    clock.ahead = 10.0
    flood(verifier, issuer)
    assert issuer.fetches == 3


@pytest.mark.parametrize("fault", ["fail", "hang"])
def test_flood_against_a_failing_endpoint_costs_one_fetch_and_delays_no_known_key(issuer: Issuer, fault: str) -> None:
    """A flood of tokens costs a failing endpoint one fetch, and does not delay requests with a known key."""
    verifier = verifier_of(issuer, cache_size=0, timeout=1.0)
    known = token_of(issuer)
    verifier.verify(known)
    issuer.behave = getattr(issuer, fault)
    done = threading.Event()
    attacker = threading.Thread(target=lambda: (flood(verifier, issuer), done.set()))
    attacker.start()
    wait_until(lambda: issuer.fetches == 2)

    answered_during = 0
    while not done.is_set() and answered_during < 20:
        assert verifier.verify(known).subject == "alice"
        answered_during += 1
    attacker.join(30)

    assert answered_during >= (20 if fault == "hang" else 0)
    assert issuer.fetches == 2


def test_forged_kids_against_a_hanging_endpoint_leave_the_threads_to_known_keys(issuer: Issuer) -> None:
    """Forged tokens do not occupy the two threads of a server, which still serves requests with known keys."""
    verifier = verifier_of(issuer, cache_size=0, timeout=10.0)
    known = token_of(issuer)
    verifier.verify(known)
    issuer.behave = issuer.hang
    forged = [token_of(issuer, kid=f"forged-{number}") for number in range(40)]

    def request(token: str) -> str | None:
        try:
            return verifier.verify(token).subject
        except (TokenRejected, KeysUnavailable) as error:
            return type(error).__name__

    started = time.monotonic()
    with ThreadPoolExecutor(2) as server:
        attack = [server.submit(request, token) for token in forged]
        assert server.submit(request, known).result(20) == "alice"
        waited = time.monotonic() - started

    # The fetch might return the key, so the token is not reported as invalid.
    assert {future.result() for future in attack} == {"KeysUnavailable"}
    assert waited < 5.0  # the fetch takes ten seconds
    assert issuer.fetches == 2


def test_rotation_serves_all_requests_while_the_new_keys_are_fetched(issuer: Issuer) -> None:
    """Several valid requests with the new key share the one fetch that returns it."""
    verifier = verifier_of(issuer, cache_size=0)
    verifier.verify(token_of(issuer))
    issuer.keys = [public_jwk("RS256", "k2", name="second")]
    issuer.behave = lambda handler, path: bool(time.sleep(0.1))
    token = token_of(issuer, "k2", "second")

    with ThreadPoolExecutor(20) as server:
        found = list(server.map(lambda _: verifier.verify(token).subject, range(20)))

    assert found == ["alice"] * 20
    assert issuer.fetches == 2


def test_rotation_at_a_slow_endpoint_is_served_at_the_second_attempt(issuer: Issuer) -> None:
    """The first caller with a new key is asked to retry without occupying a thread, and is then accepted."""
    release = threading.Event()
    verifier = verifier_of(issuer)
    verifier.verify(token_of(issuer))
    issuer.keys = [public_jwk("RS256", "k2", name="second")]
    issuer.behave = lambda handler, path: not release.wait(10)
    token = token_of(issuer, "k2", "second")
    with pytest.raises(KeysUnavailable) as outage:
        verifier.verify(token)
    assert outage.value.retry_after == 1.0

    started = time.monotonic()
    with pytest.raises(KeysUnavailable):
        verifier.verify(token)
    assert time.monotonic() - started < 0.5

    release.set()
    wait_until(lambda: source_of(verifier)._flight is None)
    assert verifier.verify(token).subject == "alice"
    assert issuer.fetches == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_that_wait_for_an_unknown_key_are_limited(
    issuer: Issuer, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting tasks use memory, so beyond a limit the next request is immediately asked to retry."""
    monkeypatch.setattr("otel_token_relay.verification.jwks_client.MAX_WAITING", 3)
    verifier = AsyncTokenVerifier([issuer.url], AUDIENCE)
    waited: list[bool] = []

    async def request(number: int) -> None:
        started = time.monotonic()
        with pytest.raises(KeysUnavailable):
            await verifier.verify(token_of(issuer, kid=f"forged-{number}"))
        waited.append(time.monotonic() - started > 0.5)

    async def main() -> None:
        await verifier.verify(token_of(issuer))
        issuer.behave = issuer.hang
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(request, number)

    anyio.run(main, backend=backend)

    assert sorted(waited) == [False] * 7 + [True] * 3


def test_issuer_that_stays_down_blocks_no_request_for_long(issuer: Issuer) -> None:
    """Only the first token of an issuer that stays down waits for the whole timeout; later requests do not block
    threads.
    """
    clock = ShiftedClock()
    issuer.behave = issuer.hang
    verifier = verifier_of(issuer, timeout=4.0, monotonic=clock.monotonic)
    with pytest.raises(KeysUnavailable):
        verifier.verify(token_of(issuer))
    wait_until(lambda: source_of(verifier)._flight is None)

    clock.ahead = 20.0
    started = time.monotonic()
    for _ in range(10):
        with pytest.raises(KeysUnavailable):
            verifier.verify(token_of(issuer))
    assert time.monotonic() - started < 3.0


def test_stale_keys_are_used_while_the_issuer_is_down_but_not_forever(issuer: Issuer) -> None:
    """While the issuer is down, expired keys are used for at most *max_stale*."""
    clock = ShiftedClock()
    issuer.headers["Cache-Control"] = "max-age=60"
    verifier = verifier_of(issuer, monotonic=clock.monotonic, max_stale=600.0, cooldown=1.0)
    verifier.verify(token_of(issuer))
    issuer.behave = issuer.fail

    clock.ahead = 650.0
    assert verifier.verify(token_of(issuer)).subject == "alice"
    wait_until(lambda: len(issuer.hits) >= 3)
    clock.ahead = 661.0
    with pytest.raises(KeysUnavailable):
        verifier.verify(token_of(issuer))

    issuer.behave = None
    clock.ahead = 670.0
    assert verifier.verify(token_of(issuer)).subject == "alice"


def test_cached_verification_ends_with_the_keys(issuer: Issuer) -> None:
    """A cached verification ends when its keys are too old."""
    clock = ShiftedClock()
    verifier = verifier_of(issuer, monotonic=clock.monotonic, max_stale=0.0, cache_seconds=1e6)
    token = token_of(issuer, exp=int(time.time()) + 10**6)
    verifier.verify(token)
    issuer.behave = issuer.fail

    clock.ahead = 400.0
    with pytest.raises(KeysUnavailable):
        verifier.verify(token)


def test_keys_are_refreshed_ahead_in_the_background(issuer: Issuer) -> None:
    """Shortly before the keys expire, a request starts the refresh and continues with the current keys."""
    clock = ShiftedClock()
    issuer.headers["Cache-Control"] = "public, max-age=100"
    verifier = verifier_of(issuer, monotonic=clock.monotonic, cache_size=0)
    verifier.verify(token_of(issuer))
    clock.ahead = 69.0
    verifier.verify(token_of(issuer))
    assert issuer.fetches == 1

    clock.ahead = 95.0
    issuer.behave = issuer.hang
    verifier.verify(token_of(issuer))

    wait_until(lambda: issuer.fetches == 2)


def test_missing_keys_fail_in_time_and_are_not_fetched_again_at_once(issuer: Issuer) -> None:
    """If the issuer hangs, only the first request waits for the timeout."""
    issuer.behave = issuer.hang
    verifier = verifier_of(issuer, timeout=0.3)

    for _ in range(5):
        with pytest.raises(KeysUnavailable) as outage:
            verifier.verify(token_of(issuer))
        wait_until(lambda: next(iter(verifier._sources.values()))._flight is None)
    assert 0 < outage.value.retry_after <= 10.0
    assert len(issuer.hits) == 1


def endless(handler: BaseHTTPRequestHandler, path: str) -> bool:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(800):  # 50 MB if the response were read to the end
        handler.wfile.write(b" " * 65536)
    return True


def padded(handler: BaseHTTPRequestHandler, path: str) -> bool:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(GOOD_SET + b" " * 600_000)
    return True


def large(handler: BaseHTTPRequestHandler, path: str) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", str(50 * 1024 * 1024))
    handler.end_headers()
    return True


def dripping(handler: BaseHTTPRequestHandler, path: str) -> bool:
    """Send each byte within the socket's timeout, in a response that never ends."""
    for _ in range(200):
        handler.wfile.write(b"H")
        time.sleep(0.05)
    return True


def answering(status: int, body: bytes, **headers: str) -> Any:
    def behave(handler: BaseHTTPRequestHandler, path: str) -> bool:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return behave


GOOD_SET = json.dumps({"keys": [public_jwk("RS256", "k1")]}).encode()


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(large, id="50 MB announced"),
        pytest.param(endless, id="50 MB unannounced"),
        pytest.param(padded, id="good and too large"),
        pytest.param(dripping, id="a byte now and then"),
        pytest.param(answering(404, GOOD_SET), id="404"),
        pytest.param(answering(204, b""), id="204"),
        pytest.param(answering(200, b""), id="empty"),
        pytest.param(answering(200, b"<html>"), id="html"),
        pytest.param(answering(200, b"[]"), id="a list"),
        pytest.param(answering(200, b"{}"), id="no keys member"),
        pytest.param(answering(200, b'{"keys": {}}'), id="keys an object"),
        pytest.param(answering(200, b'{"keys": 1}'), id="keys a number"),
        pytest.param(answering(200, b'{"keys": []}'), id="no keys"),
        pytest.param(answering(200, b"[" * 100_000), id="nested"),
        pytest.param(answering(200, GOOD_SET, Content_Encoding="gzip"), id="encoded"),
    ],
)
def test_bad_response_is_a_failure_and_keeps_the_present_keys(issuer: Issuer, behave: Any) -> None:
    """An invalid response is a failure, after which a verifier keeps the keys that it already has."""
    warm = verifier_of(issuer, jwks_uri=f"{issuer.url}/jwks", timeout=1.0)
    warm.verify(token_of(issuer))
    issuer.behave = behave

    with pytest.raises(KeysUnavailable):
        verifier_of(issuer, jwks_uri=f"{issuer.url}/jwks", timeout=1.0).verify(token_of(issuer))
    with pytest.raises((TokenRejected, KeysUnavailable)):
        warm.verify(token_of(issuer, "forged"))
    wait_until(lambda: source_of(warm)._flight is None)
    with pytest.raises(TokenRejected, match="unknown_key"):
        warm.verify(token_of(issuer, "forged"))
    assert warm.verify(token_of(issuer, sub="bob")).subject == "bob"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(issuer: Issuer, status: int) -> None:
    """Redirects are not followed, because the keys' location is configured."""
    with third_party() as outsider:
        issuer.behave = answering(status, b"", Location=f"{outsider.url}/jwks")

        with pytest.raises(KeysUnavailable):
            verifier_of(issuer, jwks_uri=f"{issuer.url}/jwks").verify(token_of(issuer))

        assert outsider.requests == []


def test_keys_without_kid_and_alg_are_tried(issuer: Issuer) -> None:
    """Keys without `kid` and `alg` are tried if the issuer has one or two, even after a rotation."""
    issuer.keys = [public_jwk("RS256", alg=None), public_jwk("RS256", name="second", alg=None)]
    verifier = verifier_of(issuer)

    for name in ("first", "second"):
        verifier.verify(make_token(claims(issuer.url), kid=None, name=name))
    issuer.keys = [public_jwk("RS256", name="third", alg=None)]
    verifier.verify(make_token(claims(issuer.url), kid=None, name="third"))
    with pytest.raises(TokenRejected, match="bad_signature"):
        verifier.verify(make_token(claims(issuer.url), kid=None, name="first"))


def test_keys_of_one_issuer_do_not_verify_tokens_of_another(issuer: Issuer) -> None:
    """The `iss` claim selects the keys, so one trusted issuer cannot sign for a different issuer."""
    with issuing(public_jwk("RS256", "k1", name="second")) as other:
        verifier = TokenVerifier([issuer.url, other.url], AUDIENCE)
        assert verifier.verify(token_of(issuer)).issuer == issuer.url
        assert verifier.verify(token_of(other, name="second")).issuer == other.url

        with pytest.raises(TokenRejected, match="bad_signature"):
            verifier.verify(make_token(claims(issuer.url), name="second"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_async_verifier_shares_one_fetch_and_leaves_the_loop_alone(issuer: Issuer, backend: str) -> None:
    """While the issuer is slow, other tasks run, and ten waiting requests cost one fetch."""
    release = threading.Event()

    def slowly(handler: BaseHTTPRequestHandler, path: str) -> bool:
        release.wait(10)
        return False

    issuer.behave = slowly
    results: list[str | None] = []

    async def main() -> None:
        verifier = AsyncTokenVerifier([issuer.url], AUDIENCE)

        async def request() -> None:
            results.append((await verifier.verify(token_of(issuer))).subject)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(request)
            while not issuer.hits:
                await anyio.sleep(0.01)
            assert results == []
            release.set()

    anyio.run(main, backend=backend)

    assert results == ["alice"] * 10
    assert issuer.fetches == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_request_leaves_the_fetch_to_the_others(issuer: Issuer, backend: str) -> None:
    """Canceling the request that started a fetch does not cancel the fetch."""
    release = threading.Event()

    def slowly(handler: BaseHTTPRequestHandler, path: str) -> bool:
        release.wait(10)
        return False

    issuer.behave = slowly

    async def main() -> None:
        verifier = AsyncTokenVerifier([issuer.url], AUDIENCE)
        with anyio.move_on_after(0.2):
            await verifier.verify(token_of(issuer))
        release.set()
        assert (await verifier.verify(token_of(issuer))).subject == "alice"

    anyio.run(main, backend=backend)

    assert issuer.fetches == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_async_verifier_fails_in_time(issuer: Issuer, backend: str) -> None:
    """On an event loop, an issuer that hangs raises the same exception as in threads."""
    issuer.behave = issuer.hang

    async def main() -> None:
        verifier = AsyncTokenVerifier([issuer.url], AUDIENCE, timeout=0.3)
        with pytest.raises(KeysUnavailable):
            await verifier.verify(token_of(issuer))

    anyio.run(main, backend=backend)


def test_event_loop_that_has_gone_does_not_disturb_the_fetch(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """An event loop that ends before the response arrives does not disturb the other callers."""
    release = threading.Event()

    def slowly(handler: BaseHTTPRequestHandler, path: str) -> bool:
        release.wait(10)
        return False

    issuer.behave = slowly
    verifier = AsyncTokenVerifier([issuer.url], AUDIENCE)

    async def impatient() -> None:
        with anyio.move_on_after(0.1):
            await verifier.verify(token_of(issuer))

    for backend in BACKENDS:
        anyio.run(impatient, backend=backend)
    release.set()
    source = next(iter(verifier._sources.values()))
    wait_until(lambda: source.current() is not None and source._flight is None)

    assert issuer.fetches == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_forked_child_fetches_for_itself(issuer: Issuer) -> None:
    """A fetch that was running in the parent does not block a forked child."""
    release = threading.Event()

    def slowly(handler: BaseHTTPRequestHandler, path: str) -> bool:
        if len(issuer.hits) == 1:
            release.wait(10)
        return False

    issuer.behave = slowly
    verifier = verifier_of(issuer, timeout=5.0)
    parent = threading.Thread(target=verifier.verify, args=(token_of(issuer),))
    parent.start()
    wait_until(lambda: len(issuer.hits) == 1)

    child = fork()
    if child == 0:
        try:
            verifier.verify(token_of(issuer))
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    release.set()
    parent.join(10)

    assert os.waitstatus_to_exitcode(status) == 0


def fork() -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this test forks a process with threads on purpose
        return os.fork()


def test_requests_to_the_issuer_carry_no_token(issuer: Issuer) -> None:
    """Requests to the issuer contain no token, even with all hooks and the issuer as a destination."""
    instrumentors = [ThreadingInstrumentor(), URLLibInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument()
    install(Settings(destinations=(issuer.url,)))
    try:
        with use_token("the-callers-own-token"):
            urllib.request.urlopen(f"{issuer.url}/jwks").close()
            assert "the-callers-own-token" in issuer.seen.pop()
            verifier_of(issuer).verify(token_of(issuer))
            with pytest.raises(TokenRejected, match="inactive"):
                TokenVerifier(introspection_endpoint=f"{issuer.url}/introspect").verify("opaque")
    finally:
        uninstall()
        for instrumentor in instrumentors:
            instrumentor.uninstrument()

    assert len(issuer.seen) == 3
    assert not any("the-callers-own-token" in text or "authorization" in text.lower() for text in issuer.seen)
    assert not any("traceparent" in text.lower() for text in issuer.seen)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        pytest.param("down", "connection refused", id="down"),
        pytest.param(
            "metadata",
            "no usable jwks_uri in the issuer's metadata ({url}/.well-known/openid-configuration: the document"
            " specifies a different issuer (an extra trailing slash);"
            " {url}/.well-known/oauth-authorization-server: status 404)",
            id="another issuer",
        ),
        pytest.param(
            "start page",
            "no usable jwks_uri in the issuer's metadata ({url}/.well-known/openid-configuration: the response is not"
            " a JSON object; {url}/.well-known/oauth-authorization-server: status 404)",
            id="start page",
        ),
        pytest.param(
            "plain http",
            "no usable jwks_uri in the issuer's metadata ({url}/.well-known/openid-configuration: the document's"
            " jwks_uri is not an https URL; {url}/.well-known/oauth-authorization-server: status 404)",
            id="plain http",
        ),
        pytest.param(
            "redirect",
            "no usable jwks_uri in the issuer's metadata ({url}/.well-known/openid-configuration: status 301; redirects"
            " are not followed; {url}/.well-known/oauth-authorization-server: status 404)",
            id="redirect",
        ),
        pytest.param(
            "unusable keys",
            "no key in the key set can be used: 2 not for signatures, 1 too short",
            id="keys that cannot be used",
        ),
        pytest.param("keys", "the key set is empty", id="no keys"),
        pytest.param("no list", "the response is not a key set", id="not a key set"),
        pytest.param("sign-in page", "key set: the response is not a JSON object", id="sign-in page"),
    ],
)
def test_the_log_names_the_issuer_and_the_cause(
    issuer: Issuer, fault: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log contains the issuer and the cause of a failure without quoting the response."""
    url = f"http://127.0.0.1:{unused_port()}" if fault == "down" else issuer.url
    if fault == "metadata":
        issuer.metadata["issuer"] += "/"
    elif fault == "start page":
        issuer.metadata = b"<html>secret</html>"  # type: ignore[assignment]
    elif fault == "plain http":
        issuer.metadata["jwks_uri"] = "http://keys.example"
    elif fault == "redirect":
        issuer.answer = lambda path, body, answer=issuer.answer: (  # type: ignore[method-assign]
            (301, {}) if path.endswith("openid-configuration") else answer(path, body)
        )
    elif fault == "unusable keys":
        encrypts = public_jwk("RS256", "e1", use="enc")
        issuer.keys = [public_jwk("RS256", "k1", key=rsa_key(1024)), encrypts, encrypts | {"kid": "e2"}]
    elif fault == "keys":
        issuer.keys = []
    elif fault == "no list":
        issuer.keys = "secret"
    elif fault == "sign-in page":
        issuer.answer = lambda path, body, answer=issuer.answer: (  # type: ignore[method-assign]
            (200, b"<html>secret</html>") if path == "/jwks" else answer(path, body)
        )

    with pytest.raises(KeysUnavailable):
        TokenVerifier([url], AUDIENCE).verify(make_token(claims(url)))

    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"the keys of {url} could not be refreshed: {cause.format(url=url)}"
    ]


def test_unusable_keys_are_one_warning(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """Unusable keys cause one warning, which is repeated only if other keys cannot be used."""
    weak = public_jwk("RS256", "k3", key=rsa_key(1024))
    same = [public_jwk("RS256", "k4"), public_jwk("RS256", "k4", name="second")]
    issuer.keys = [public_jwk("RS256", "k1"), public_jwk("RS256", "k2", use="enc"), weak, *same, {"kty": "AKP"}]
    issuer.headers["Cache-Control"] = "max-age=30"
    clock = [0.0]
    verifier = TokenVerifier([issuer.url], AUDIENCE, monotonic=lambda: clock[0])
    source = verifier._sources[issuer.url]

    for fetches in (1, 2):
        assert verifier.verify(make_token(claims(issuer.url, jti=str(clock[0])))).subject == "alice"
        clock[0] += 31
        source.current()
        # The fetch must also have ended; otherwise, it would use the clock of the next round.
        wait_until(lambda fetches=fetches: issuer.fetches > fetches and source._flight is None)  # type: ignore[misc]

    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"5 keys from {issuer.url} cannot be used: 1 not for signatures, 1 not an RSA, EC, or OKP key,"
        " 1 too short, 2 duplicate kid"
    ]


def test_keys_for_encryption_are_no_warning(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """An encryption key, such as the one in each Keycloak key set, causes no warning."""
    issuer.keys = [public_jwk("RS256", "k1"), public_jwk("RS256", "k2", use="enc")]

    assert TokenVerifier([issuer.url], AUDIENCE).verify(make_token(claims(issuer.url))).subject == "alice"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_key_set_without_a_usable_key_is_an_outage(issuer: Issuer) -> None:
    """A key set without a usable key is an outage, during which the earlier keys remain in use."""
    good, weak = public_jwk("RS256", "k1"), public_jwk("RS256", "k1", key=rsa_key(1024))
    issuer.keys = [weak]
    with pytest.raises(KeysUnavailable):
        TokenVerifier([issuer.url], AUDIENCE).verify(make_token(claims(issuer.url)))

    clock = [0.0]
    verifier = TokenVerifier([issuer.url], AUDIENCE, monotonic=lambda: clock[0], cooldown=0.0)
    issuer.keys = [good]
    assert verifier.verify(make_token(claims(issuer.url))).subject == "alice"
    issuer.keys = [weak]
    clock[0] += 400
    before = issuer.fetches
    verifier._sources[issuer.url].current()
    wait_until(lambda: issuer.fetches > before)
    assert verifier.verify(make_token(claims(issuer.url, jti="2"))).subject == "alice"
