"""Bearer tokens that do not print their values, and the leases that limit their use.

Invariants that the rest of the package relies on:

* A `BearerToken` contains only b64token characters, so it can neither break a header nor contain
  white space. It does not print its value, cannot be pickled, and is compared in constant time.
* A token that came with a request has that request's `Lease`. Once the lease has ended, no code
  can use the token, regardless of how the code obtained it.
* A token belongs to the process that received it. A forked child has no token, even if it has its parent's process ID.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
import math
import os
import secrets
import string
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, Protocol, final

Clock = Callable[[], float]

DEFAULT_MAX_LENGTH: Final = 16384

# RFC 6750, section 2.1:   b64token    = 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="
B64TOKEN_ALPHABET: Final = (string.ascii_letters + string.digits + "-._~+/").encode("ascii")

# Incremented in every forked child. The process ID alone does not identify a process: in a new PID namespace, a child
# can have its parent's ID, and the system reuses IDs.
_generation = 0


def _enter_child() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):  # missing on Windows, which cannot fork
    os.register_at_fork(after_in_child=_enter_child)

# Fingerprints distinguish tokens in a single process's logs. With a plain hash, anyone who reads the logs could test
# whether a given token appears in them, so fingerprints use a random key that never leaves the process.
_FINGERPRINT_KEY: Final = secrets.token_bytes(32)


def is_b64token(text: str) -> bool:
    """Return whether *text* has the form of a bearer token (RFC 6750, section 2.1)."""
    # This code runs for every request, on a thousand characters or more. A regular expression would take twice as long.
    body = text.rstrip("=")
    return body != "" and body.isascii() and not body.encode("ascii").translate(None, B64TOKEN_ALPHABET)


class Lease:
    """The period during which a token may be used: until `end` is called, or slightly longer with *linger*.

    Safe to share between threads, because every change is a single assignment.
    """

    __slots__ = ("_clock", "_deadline")

    def __init__(self, *, seconds: float | None = None, clock: Clock = time.monotonic) -> None:
        """Open a lease.

        Args:
            seconds: The time after which the lease ends automatically; ``None`` if only `end` ends it.
            clock: Returns the time in seconds, which never goes backward.
        """
        self._clock = clock
        self._deadline = math.inf if seconds is None else clock() + seconds

    def end(self, *, linger: float = 0.0) -> None:
        """End the lease *linger* seconds from now. A lease that would end sooner is not extended."""
        self._deadline = min(self._deadline, self._clock() + linger) if linger else -math.inf

    @property
    def is_open(self) -> bool:
        """Whether the token may still be used."""
        deadline = self._deadline
        return deadline == math.inf or self._clock() < deadline


class Verification(Protocol):
    """The result of verifying a request's token in this service."""

    @property
    def claims(self) -> Mapping[str, object]:
        """The verified claims, as a read-only mapping."""
        ...

    @property
    def expires_at(self) -> float | None:
        """When the token expires, in seconds since the epoch; ``None`` if unknown."""
        ...

    def is_still_valid(self) -> bool:
        """Return ``False`` if the token has been revoked since it was verified. Never blocks or raises."""
        ...


@final
class BearerToken:
    """A bearer token that does not print its value.

    ``repr``, ``str``, ``format``, and logging show only a keyed fingerprint and the length. Pickling raises
    `TypeError`. Only `reveal` and `reveal_all` return the value.

    Args:
        value: A b64token (RFC 6750, section 2.1), without ``Bearer``.
        lease: The period during which the token may be used; ``None`` for a token that did not come with a
            request. Such a token may be used for ``…_MAX_AGE`` seconds after *received_at*.
        received_at: When the token was received, in seconds on the monotonic clock; ``None`` for now.

    Raises:
        ValueError: *value* is not a b64token. The message does not contain it.
    """

    __slots__ = (
        "__weakref__",
        "_digest",
        "_generation",
        "_peeked",
        "_value",
        "_verification",
        "lease",
        "obtained",
        "pid",
        "received_at",
    )

    lease: Final[Lease | None]  # type: ignore[misc]  # `_make` sets it
    pid: Final[int]  # type: ignore[misc]
    received_at: Final[float]  # type: ignore[misc]
    _value: str
    _generation: int
    _peeked: tuple[float | None, bool] | None
    _verification: Verification | None
    _digest: bytes | None
    obtained: dict[int, Any] | None
    """The tokens obtained in exchange for this token during this request. `exchange.tokens` sets it."""

    def __new__(cls, value: str, *, lease: Lease | None = None, received_at: float | None = None) -> BearerToken:
        if not isinstance(value, str) or not is_b64token(value):
            raise ValueError(
                "not a bearer token (RFC 6750, section 2.1): expected letters, digits or -._~+/, with = only at the end"
            )
        return _make(value, lease, time.monotonic() if received_at is None else received_at)

    @staticmethod
    def from_parsed(parsed: str, *, lease: Lease | None = None) -> BearerToken:
        """Return a token for a value that `parse_credentials` returned, without checking the value again."""
        return _make(parsed, lease, time.monotonic())

    def rebind(self, *, lease: Lease | None, received_at: float | None = None) -> BearerToken:
        """Return the same token with a different lease. The returned token belongs to the calling process."""
        received_at = time.monotonic() if received_at is None else received_at
        return _make(self._value, lease, received_at, self._peeked, self._verification)

    def reveal(self) -> str:
        """Return the value. The calling code is responsible for where it sends or stores the value."""
        return self._value

    def reveal_all(self) -> tuple[str, ...]:
        """Return the value, and the values of all tokens obtained in exchange for it during this request."""
        obtained = self.obtained
        return (self._value, *(held.token.reveal() for held in list(obtained.values()))) if obtained else (self._value,)

    @property
    def expires_at(self) -> float | None:
        """When the token expires, in seconds since the epoch: the verified time, or else an unverified JWT's ``exp``.

        Use an unverified ``exp`` only to avoid sending an expired token.
        """
        if self._verification is not None and self._verification.expires_at is not None:
            return self._verification.expires_at
        return (self._peeked or self._peek())[0]

    @property
    def is_sender_constrained(self) -> bool:
        """Whether this is a JWT bound to its sender's key (``cnf``): RFC 9449, section 6; RFC 8705, section 3.1."""
        return (self._peeked or self._peek())[1]

    @property
    def is_usable(self) -> bool:
        """Whether this process received the token, and the token's lease, if any, is open."""
        return self.is_own_process and (self.lease is None or self.lease.is_open)

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that received the token, rather than a fork of that process.

        The process ID is also compared, because native code can fork without running Python's hooks.
        """
        return self._generation == _generation and self.pid == os.getpid()

    @property
    def claims(self) -> Mapping[str, object] | None:
        """The claims that this service has verified during this request; ``None`` if it has not verified the token."""
        return None if self._verification is None else self._verification.claims

    @property
    def verification(self) -> Verification | None:
        """This service's verification result for this request; ``None`` if it has not verified the token."""
        return self._verification

    def mark_verified(self, verification: Verification) -> None:
        """Record that a verifier has accepted this token for the request that it came with."""
        self._verification = verification

    def _peek(self) -> tuple[float | None, bool]:
        # Two threads may do this at the same time, but both get the same result.
        self._peeked = peeked = peek(self._value)
        return peeked

    def digest(self) -> bytes:
        """Return the SHA-256 digest of the value, computing it only once. Never show it; use `fingerprint` instead."""
        if self._digest is None:
            self._digest = hashlib.sha256(self._value.encode("ascii")).digest()
        return self._digest

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that distinguish this token from other tokens in this process."""
        return hmac.new(_FINGERPRINT_KEY, self._value.encode("ascii"), hashlib.sha256).hexdigest()[:8]

    def __repr__(self) -> str:
        return f"BearerToken(sha256:{self.fingerprint}…, {len(self._value)} chars)"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BearerToken):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash((BearerToken, self._value))

    def __copy__(self) -> BearerToken:
        return self

    def __deepcopy__(self, memo: object) -> BearerToken:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # In a queue or on disk, a pickled token would outlive its lease and its process.
        raise TypeError("a BearerToken cannot be pickled or sent to another process")

    def __getstate__(self) -> None:
        """Return nothing. Python's default method would return the value to code that dumps objects."""

    __reduce__ = __reduce_ex__  # type: ignore[assignment]  # neither method pickles


_new: Final = object.__new__


def _make(
    value: str,
    lease: Lease | None,
    received_at: float,
    peeked: tuple[float | None, bool] | None = None,
    verification: Verification | None = None,
) -> BearerToken:
    """Create a token without checking *value*.

    This is a plain function with positional arguments, because it runs for every request and a method would take 10%
    longer.
    """
    token: Any = _new(BearerToken)  # its attributes are Final
    token._value = value
    token.lease = lease
    token.pid = os.getpid()
    token._generation = _generation
    token.received_at = received_at
    token._peeked = peeked
    token._verification = verification
    token._digest = token.obtained = None
    return token  # type: ignore[no-any-return]


# `json.loads` first guesses the encoding, which takes as long as reading a JWT's claims. A JWT is always UTF-8.
_read_json: Final = json.JSONDecoder().raw_decode


def claims_of(token: str) -> dict[str, Any] | None:
    """Return an unverified JWT's claims; ``None`` for any other token or if the claims are unreadable.

    This function never raises an exception, regardless of the input.
    """
    start = token.find(".") + 1
    end = token.find(".", start)
    if not start or end < 0 or token.find(".", end + 1) >= 0:
        return None  # not three segments
    try:
        # Extra padding is ignored.
        payload = binascii.a2b_base64(token[start:end].replace("-", "+").replace("_", "/") + "==")
        claims = _read_json(payload.decode().lstrip("\ufeff \t\n\r"))[0]
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def peek(token: str) -> tuple[float | None, bool]:
    """Return an unverified JWT's ``exp``, and whether the JWT contains ``cnf``.

    This function never raises an exception, regardless of the input.

    Returns:
        ``(None, False)`` for an opaque token or an unreadable JWT. An ``exp`` that is not a finite
        number is ignored: the receiving service rejects such a token.

    Source: RFC 7519, section 4.1.4; RFC 7800, section 3.1.
    """
    claims = claims_of(token)
    if claims is None:
        return None, False
    expires_at: Any = claims.get("exp")
    # The comparison is false for NaN, infinity, and integers that no float can represent.
    is_number = type(expires_at) in (int, float) and abs(expires_at) <= sys.float_info.max
    return float(expires_at) if is_number else None, "cnf" in claims
