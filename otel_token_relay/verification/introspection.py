"""Ask the authorization server whether a token is active: RFC 7662.

For opaque tokens it is the verification; for JWTs, where it is asked for, the check on
revocation. It fails closed: without an answer nobody is let in, and nobody is called invalid.
A failure counts for the token that was asked about. For all of them it counts only where the
endpoint does not answer our own question either: see `outages`.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import secrets
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
from otel_token_relay.verification.circuit_breaker import PAUSE_SECONDS, OutageWatch
from otel_token_relay.verification.drivers import Wait
from otel_token_relay.verification.http_client import FetchFailed, check_url, fetch
from otel_token_relay.verification.jws import parse_object

_logger = logging.getLogger("otel_token_relay")

MAX_REUSE_SECONDS: Final = 60.0
# A token that was just made may be unknown to one node of the server for a moment.
NEGATIVE_REUSE_SECONDS: Final = 5.0
# For how long the same token is not asked about again, where the server refuses to judge it.
REFUSED_REUSE_SECONDS: Final = 5.0
WARNING_SECONDS: Final = 10.0
# In each line.
MAX_UNDER_WAY: Final = 256
# Of those that nobody waits for: few, so that whoever has to wait behind them is served in time.
MAX_RENEWALS: Final = 32
# For how long a renewal that was dropped is not tried again: not at each request.
RENEWAL_PAUSE_SECONDS: Final = 1.0
_WORKERS: Final = 8
_RENEWERS: Final = 4
_PROBE_SECONDS: Final = 1.0

# What among the 4xx is about us, our URL or our pace, and not about the token: RFC 7662,
# section 2.3, RFC 6750, section 3.1, and RFC 6585, section 4.
_ABOUT_US: Final = frozenset({401, 403, 404, 405, 407, 408, 429})


class _TokenRefused(FetchFailed):
    """The server answers, but will not judge this token."""


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


class _Line:
    """Some workers, and how many questions are with them or wait for them. Its owner's lock guards it."""

    __slots__ = ("_name", "_workers", "executor", "load")

    def __init__(self, name: str, workers: int) -> None:
        self._name, self._workers = name, workers
        self.load = 0
        self.start_over()

    def start_over(self) -> None:
        """Take other workers; they are started when they are needed."""
        self.executor = ThreadPoolExecutor(self._workers, f"token-relay-{self._name}")

    @property
    def is_busy(self) -> bool:
        """Whether one more question has to wait for a worker."""
        return self.load >= self._workers


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
        # Until when a token is not asked about again: also apart, and of the same bound.
        self._failed: Cache[float] = Cache(size)
        self._outages = OutageWatch(monotonic)
        self._warn_at = float("-inf")
        self._start_over()
        _introspections.add(self)

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[bytes, Future[Verdict | None]] = {}
        # Apart, so that tokens which anybody can invent do not hold up those that were good a moment
        # ago, and renewals, which can wait, do not hold up those that nobody knows yet.
        self._questions = _Line("introspection", _WORKERS)
        self._renewals = _Line("renewal", _RENEWERS)
        self._outages.start_over()

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
        if verdict is None or now >= verdict.until:
            return None
        if token is not None and verdict.claims is not None and now >= verdict.soon:
            self._renew(key, token)
        return verdict

    def _renew(self, key: bytes, token: str) -> None:
        try:
            self._ask(key, token, is_renewal=True)
        except KeysUnavailable:
            _logger.debug("a verdict that soon ends could not be asked for again")

    def ask(self, key: bytes, token: str) -> Wait:
        """Start to ask, or join whoever is asking for the same token.

        Returns:
            What to wait for; its result is the verdict, or ``None`` after a failure.

        Raises:
            KeysUnavailable: The endpoint is out, it has just failed on this very token, or too many
                questions are under way.
        """
        return Wait(self._ask(key, token, is_renewal=False), self._timeout)

    def _ask(self, key: bytes, token: str, *, is_renewal: bool) -> Future[Verdict | None]:
        now = self._monotonic()
        if (remaining := (self._failed.get(key) or now) - now) > 0:
            raise KeysUnavailable(remaining)
        with self._lock:
            future = self._under_way.get(key)
            if future is None:
                future = self._start(key, token, now + self._timeout, is_renewal)
        return future

    def _start(self, key: bytes, token: str, deadline: float, is_renewal: bool) -> Future[Verdict | None]:
        line = self._line(key, is_renewal)
        if line.load >= (MAX_RENEWALS if is_renewal else MAX_UNDER_WAY):
            if is_renewal:
                self._put_off(key)
            raise KeysUnavailable
        if not self._outages.admits(key):
            raise KeysUnavailable(PAUSE_SECONDS)
        future: Future[Verdict | None] = Future()
        self._under_way[key] = future
        line.load += 1
        try:
            line.executor.submit(self._run, line, key, token, future, deadline)
        except RuntimeError:  # no thread can be had: the process is at its limit, or at its end
            # The executor may have it in its line all the same, and come to it when there is a thread.
            if future.cancel():
                self._take_back(line, key)
                raise KeysUnavailable from None
        return future

    def _take_back(self, line: _Line, key: bytes) -> None:
        del self._under_way[key]
        line.load -= 1
        self._outages.withdraw(key)
        if not line.load:
            # Nobody may ever clear that line, and tokens would pile up in it.
            line.start_over()

    def _line(self, key: bytes, is_renewal: bool) -> _Line:
        if is_renewal:
            return self._renewals
        if self._active.get(key) is None:
            return self._questions
        # It was good a moment ago, and now somebody waits for it: not behind renewals where others are idle.
        return self._questions if self._renewals.is_busy and not self._questions.is_busy else self._renewals

    def _put_off(self, key: bytes) -> None:
        """Let a renewal that was dropped rest for a while.

        Only for whoever may ask about *key* just now: a newer verdict could be overwritten otherwise.
        """
        verdict = self._active.get(key)
        if verdict is not None:
            self._active.put(key, verdict._replace(soon=self._monotonic() + RENEWAL_PAUSE_SECONDS))

    def _run(self, line: _Line, key: bytes, token: str, future: Future[Verdict | None], deadline: float) -> None:
        if not future.set_running_or_notify_cancel():
            return  # it was taken back
        verdict, probe_is_due = None, False
        try:
            if self._monotonic() < deadline and self._outages.still_admits(key):
                verdict = self._remember(key, self._introspect(token))
                self._outages.answer()
            else:  # it stood in line until nobody waits for it any more, or until the endpoint was out
                self._put_off(key)
                probe_is_due = self._outages.fail(key)
        except _TokenRefused as error:
            self._fail(key, REFUSED_REUSE_SECONDS, error)
            self._outages.answer()
        except Exception as error:  # noqa: BLE001  # whoever waits finds no verdict
            self._fail(key, PAUSE_SECONDS, error)
            probe_is_due = self._outages.fail(key)
        finally:
            with self._lock:
                self._under_way.pop(key, None)
                line.load -= 1
            future.set_result(verdict)
        if probe_is_due:
            self._outages.conclude(is_out=not self._answers())

    def _fail(self, key: bytes, seconds: float, error: Exception) -> None:
        now = self._monotonic()
        self._failed.put(key, now + seconds)
        # Anybody can bring tokens that fail, and so fill the log.
        level = logging.WARNING if now >= self._warn_at else logging.DEBUG
        if level == logging.WARNING:
            self._warn_at = now + WARNING_SECONDS
        _log(level, "introspection failed: %s", error)

    def _answers(self) -> bool:
        """Ask about a token that nobody has, which the server must be able to say no to (RFC 7662, section 2.2)."""
        try:
            self._introspect(secrets.token_urlsafe(32), min(self._timeout, _PROBE_SECONDS))
        except _TokenRefused:
            return True
        except Exception as error:  # noqa: BLE001  # that is the outage
            _log(logging.WARNING, "the introspection endpoint is out: %s", error)
            return False
        return True

    def _introspect(self, token: str, timeout: float | None = None) -> Mapping[str, Any] | None:
        form = urlencode({"token": token, "token_type_hint": "access_token"}).encode("ascii")
        seconds = self._timeout if timeout is None else timeout
        answer = fetch(self._endpoint, timeout=seconds, form=form, authorization=self._authorization)
        if answer.status != 200:
            about_token = 400 <= answer.status < 500 and answer.status not in _ABOUT_US
            failure = _TokenRefused if about_token else FetchFailed
            raise failure(f"the introspection endpoint answered with {answer.status}")
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


def _log(level: int, text: str, error: Exception) -> None:
    # Of an error that is not our own, only the type: its text may quote the answer.
    described = str(error) if isinstance(error, FetchFailed) else type(error).__name__
    with contextlib.suppress(Exception):  # a filter of the application's may raise, and the worker goes on
        _logger.log(level, text, described)


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
