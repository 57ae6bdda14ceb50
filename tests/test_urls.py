"""The package reads URLs as HTTP clients do, which is tested with the clients themselves."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
import warnings
from collections.abc import Callable

import aiohttp
import httpx
import pytest
import requests
import urllib3
from hypothesis import example, given
from hypothesis import strategies as st

from otel_token_relay import Settings, install, use_token
from otel_token_relay.origin import Origin
from otel_token_relay.relay import Relay
from otel_token_relay.urls import read_url, show_url
from tests.support.loopback import party

TOKEN = "token-of-the-caller"


async def _get(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url):
        pass


CLIENTS: dict[str, Callable[[str], object]] = {
    "httpx": lambda url: httpx.get(url, trust_env=False),
    "requests": lambda url: requests.get(url, timeout=10),
    "urllib3": lambda url: urllib3.PoolManager(retries=False).request("GET", url, retries=False),
    "aiohttp": lambda url: asyncio.run(_get(url)),
    "urllib": lambda url: urllib.request.urlopen(url, timeout=10),
}

# What each client sends to a listed destination: "token", "basic" (its own credential), or "error" (no request).
BEHAVIOR = [
    ("http://user:pw@{}/x", ["basic", "basic", "token", "basic", "error"]),
    ("http://user@{}/x", ["basic", "token", "token", "basic", "error"]),
    ("http://@{}/x", ["token", "token", "token", "token", "error"]),
    (" http://{}/x", ["error", "token", "error", "token", "token"]),
    ("http://{}/x ", ["token", "token", "token", "token", "token"]),
    ("http://{} ", ["token", "error", "error", "token", "token"]),
    ("http://{}/a b", ["token", "token", "token", "token", "error"]),
    ("http://{}/a\\b", ["token", "token", "token", "token", "token"]),
    ("{}/x", ["error", "error", "token", "error", "error"]),
    ("http:/{}/x", ["error", "error", "error", "error", "error"]),
    ("http:{}/x", ["error", "error", "error", "error", "error"]),
]


@pytest.mark.parametrize(("form", "expected"), BEHAVIOR, ids=[form for form, _ in BEHAVIOR])
def test_clients_behave_as_the_notes_say(form: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay decides about what each client sends, and `Relay.explain` agrees with most clients."""
    monkeypatch.setenv("NO_PROXY", "*")
    found = []
    with party() as one:
        url = form.format(f"127.0.0.1:{one.port}")
        settings = Settings(destinations=[one.url])
        install(settings)
        for call in CLIENTS.values():
            one.requests.clear()
            with use_token(TOKEN), warnings.catch_warnings(), contextlib.suppress(Exception):
                warnings.simplefilter("ignore")
                call(url)
            lines = [line for lines in one.lines() for line in lines]
            kinds = {"Bearer": "token", "Basic": "basic"}
            found.append(kinds[lines[0].split()[0]] if lines else "none" if one.requests else "error")
        reason = Relay(settings).explain(url).decision.reason.value

    assert found == expected
    majority = max(("token", "basic", "error"), key=found.count)
    assert reason == {"token": "relayed", "basic": "explicit_credential", "error": "destination_unknown"}[majority] or (
        form in ("http://user@{}/x",)
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("profile-service/v1", "the URL has no scheme: did you mean https://profile-service/v1?"),
        ("profile-service:8080/v1?x=secret", "did you mean https://profile-service:8080/v1?"),
        ("localhost:9000", "did you mean https://localhost:9000?"),
        ("//a/x", "did you mean https://a/x?"),
        ("me:secret@a/x", "did you mean https://a/x?"),
        ("https:/a/x", 'expected "://" after the scheme: did you mean https://a/x?'),
        ("https:a", "did you mean https://a?"),
        ("https:///a", "the host is missing: did you mean https://a?"),
        ("https://", "the host is missing"),
        ("https://:8080/x", "the host is missing"),
        ("htps://a/x", "not htps: did you mean https://a/x?"),
        ("ftp://a/x", "must be http or https, not ftp"),
        ("unix:///run/x", "must be http or https, not unix"),
        ("https://a\\b/x", '"\\"'),
        ("https://a b/x", "a space"),
        ("https://a\tb/x", "\\t"),
        ("https://a/x\ny", "\\n"),
        ("https://a%2eb/x", '"%"'),
        ("https://a:http/x", "the host or the port is invalid"),
        ("https://me:sec/ret@a/x", "percent-encoded"),
        ("", "empty"),
    ],
)
def test_the_problem_of_a_url_is_named(url: str, words: str) -> None:
    """A problematic URL has no origin, and the problem describes the correct form."""
    read = read_url(url)

    assert read.origin is None
    assert words in read.problem
    assert "secret" not in str(read)
    assert "ret@" not in str(read)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@a/x?secret#secret", "https://***@a/x?***"),
        ("https://me:se/secret@a/x", "***@a/x"),
        ("me:secret@a?x", "***@a?***"),
        ("https://a/x#secret", "https://a/x#***"),
        ("https://a/@scope/x", "https://a/@scope/x"),
        ("https://a", "https://a"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str, shown: str) -> None:
    """A printed URL masks user info, query, and fragment."""
    assert show_url(url) == shown


TEXT = st.lists(st.sampled_from([*"a1:/@;[]\\. %\n", "https://", "http:"]), max_size=8).map("".join)


@example("https://", "@", "/")
@given(st.sampled_from(["", "https://", "http:", "ftp://"]), TEXT, TEXT)
def test_no_part_of_the_user_info_is_shown(scheme: str, before: str, after: str) -> None:
    """No part of the user info is printed, even if a password contains delimiters that change the origin."""
    url = f"{scheme}user:{before}s3cret{after}@host.example/?s4cret#s5cret"
    read = read_url(url)

    assert "s4cret" not in str(read)
    assert "s5cret" not in str(read)
    # Between "@" and "/", every client takes the text for the host.
    is_host = read.origin is not None and "s3cret" in read.origin.host
    assert "s3cret" not in str(read) or is_host or Origin.parse(url) is not None


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    """Any text can be read as a URL, as the command line requires."""
    read = read_url(text)

    assert bool(read.origin) != bool(read.problem)
