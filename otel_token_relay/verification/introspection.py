"""Ask the authorization server whether a token is active: RFC 7662.

For opaque tokens it is the verification; for JWTs, where it is asked for, the check on
revocation. It fails closed: without an answer nobody is let in, and nobody is called invalid.
"""

from __future__ import annotations

import base64
import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from otel_token_relay.errors import ConfigurationError, KeysUnavailable
from otel_token_relay.token import Clock
from otel_token_relay.verification.cache import Cache
from otel_token_relay.verification.claims import parse_object
from otel_token_relay.verification.fetch import FetchFailed, check_url, fetch
from otel_token_relay.verification.flights import Wait

_logger = logging.getLogger("otel_token_relay")

MAX_REUSE_SECONDS: Final = 60.0
# A token that was just made may be unknown to one node of the server for a moment.
NEGATIVE_REUSE_SECONDS: Final = 5.0
# After a failure nobody asks for so long: each attempt holds a thread until it times out.
FAILURE_PAUSE_SECONDS: Final = 1.0
# What is said of one token, which anybody can have made up: others are asked for all the same.
_OFFENCE_STATUSES: Final = frozenset({400, 413, 422})
MAX_UNDER_WAY: Final = 256
_WORKERS: Final = 8


class _Offence(FetchFailed):
    """The server does not take this token for a question; it is not out of order itself."""


class Verdict(NamedTuple):
    """What the server said.

    Attributes:
        claims: The members of an ``active`` answer; ``None`` for one that is not.
        until: Seconds of the monotonic clock; then it has to be asked again.
        soon: From here on a new answer is fetched in the background.
    """

    claims: Mapping[str, Any] | None
    until: float
    soon: float


class Introspection:
    """The introspection endpoint of one server. Safe to share between threads, tasks and loops.

    Args:
        endpoint: An https URL, or http on loopback.
        client_id: Who we are there, with *client_secret*; both or none.
        timeout: Seconds for one answer.
        size: How many answers are remembered, and as many that said no.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        client_id: str | None = None,
        client_secret: str | None = None,
        timeout: float = 4.0,
        size: int = 4096,
        monotonic: Clock = time.monotonic,
    ) -> None:
        if (client_id is None) != (client_secret is None):
            raise ConfigurationError("client_secret", "client_id and client_secret go together")
        self._endpoint = check_url("introspection_endpoint", endpoint)
        self._authorization = None
        if client_id is not None and client_secret is not None:
            self._authorization = basic_credentials(client_id, client_secret)
        self._timeout = timeout
        self._monotonic = monotonic
        self._active: Cache[Verdict] = Cache(size)
        # Apart, so that tokens which anybody can invent do not push out the good ones.
        self._inactive: Cache[Verdict] = Cache(size)
        self._pause_until = float("-inf")
        self._start_over()
        _introspections.add(self)

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[bytes, Future[Verdict | None]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"Introspection({self._endpoint!r})"

    def known(self, key: bytes, token: str | None = None) -> Verdict | None:
        """Give the verdict on a token if there is one that still counts. Never waits.

        Args:
            key: Its digest.
            token: Given, an answer that soon ends is fetched again in the background.
        """
        verdict = self._active.get(key) or self._inactive.get(key)
        now = self._monotonic()
        if token is not None and verdict is not None and verdict.claims is not None and now >= verdict.soon:
            self._renew(key, token)
        return verdict if verdict is not None and now < verdict.until else None

    def _renew(self, key: bytes, token: str) -> None:
        try:
            self.ask(key, token)
        except KeysUnavailable:
            _logger.debug("a verdict that soon ends could not be asked for again")

    def ask(self, key: bytes, token: str) -> Wait:
        """Start to ask, or join whoever is asking for the same token.

        Returns:
            What to wait for; its result is the verdict, or ``None`` after a failure.

        Raises:
            KeysUnavailable: The last attempt has just failed, or too many are under way.
        """
        if self._monotonic() < self._pause_until:
            raise KeysUnavailable(FAILURE_PAUSE_SECONDS)
        with self._lock:
            future = self._under_way.get(key)
            if future is None:
                if len(self._under_way) >= MAX_UNDER_WAY:
                    raise KeysUnavailable(FAILURE_PAUSE_SECONDS)
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(_WORKERS, "token-relay-introspection")
                self._under_way[key] = future = Future()
                try:
                    self._pool.submit(self._run, key, token, future)
                except RuntimeError:  # the interpreter is shutting down
                    del self._under_way[key]
                    raise KeysUnavailable from None
        return Wait(future, self._timeout)

    def _run(self, key: bytes, token: str, future: Future[Verdict | None]) -> None:
        verdict = None
        try:
            verdict = self._remember(key, self._introspect(token))
        except Exception as error:  # noqa: BLE001  # whoever waits finds no verdict, and that is the outage it is
            if not isinstance(error, _Offence):
                self._pause_until = self._monotonic() + FAILURE_PAUSE_SECONDS
            text = str(error) if isinstance(error, FetchFailed) else type(error).__name__
            _logger.warning("introspection failed: %s", text)
        finally:
            with self._lock:
                self._under_way.pop(key, None)
            future.set_result(verdict)

    def _introspect(self, token: str) -> Mapping[str, Any] | None:
        form = urlencode({"token": token, "token_type_hint": "access_token"}).encode("ascii")
        answer = fetch(self._endpoint, timeout=self._timeout, form=form, authorization=self._authorization)
        if answer.status != 200:
            kind = _Offence if answer.status in _OFFENCE_STATUSES else FetchFailed
            raise kind(f"the introspection endpoint answered with {answer.status}")
        claims = parse_object(answer.body)
        active = claims.get("active")
        if not isinstance(active, bool):
            raise FetchFailed("the introspection endpoint does not say whether the token is active")
        return claims if active else None

    def _remember(self, key: bytes, claims: Mapping[str, Any] | None) -> Verdict:
        now = self._monotonic()
        if claims is None:
            # First the new verdict, then the old one away: in between, the old one still counts.
            until = now + NEGATIVE_REUSE_SECONDS
            verdict = Verdict(None, until, until)
            self._inactive.put(key, verdict)
            self._active.drop(key)
        else:
            verdict = Verdict(claims, now + MAX_REUSE_SECONDS, now + MAX_REUSE_SECONDS / 2)
            self._active.put(key, verdict)
            self._inactive.drop(key)
        return verdict


def basic_credentials(client_id: str, client_secret: str) -> str:
    """Build the client's own Authorization header (RFC 6749, section 2.3.1: form-urlencoded parts)."""
    # A space as %20: form decoders read that too, and servers that only undo percents read it as well.
    pair = f"{quote(client_id, safe='')}:{quote(client_secret, safe='')}"
    return "Basic " + base64.b64encode(pair.encode("ascii")).decode("ascii")


_introspections: weakref.WeakSet[Introspection] = weakref.WeakSet()


def _start_over_in_child() -> None:
    for introspection in list(_introspections):
        introspection._start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over_in_child)
