"""Bearer tokens that do not print their values, and leases that limit how long tokens can be used.

The rest of the package relies on the following invariants:

* A `BearerToken` contains only b64token characters, so it cannot contain white space or break a header. A token never
  prints its value and cannot be pickled. Tokens are compared in constant time.
* A token that was received with a request has that request's `Lease`. After the lease ends, no code can use the token,
  regardless of how the code obtained it.
* A token can be used only in the process that received it. A forked child process cannot use its parent's tokens, even
  if both processes have the same process ID.
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

# A forked child process increments this number. A process ID does not uniquely identify a process, because the system
# reuses IDs, and a child in a new PID namespace can have the same ID as its parent.
_generation = 0


def _enter_child() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):  # not available on Windows
    os.register_at_fork(after_in_child=_enter_child)

# A fingerprint distinguishes tokens in one process's logs. The random key never leaves the process. If fingerprints
# were not keyed, a person who can read the logs could test whether the logs refer to a given token.
_FINGERPRINT_KEY: Final = secrets.token_bytes(32)


def is_b64token(text: str) -> bool:
    """Return whether *text* has the syntax of a bearer token (RFC 6750, section 2.1)."""
    # This code runs for every request, and tokens often have more than a thousand characters. A regular expression
    # would take twice as long.
    body = text.rstrip("=")
    return body != "" and body.isascii() and not body.encode("ascii").translate(None, B64TOKEN_ALPHABET)


class Lease:
    """The period during which a token can be used.

    A lease ends when `end` is called, or *linger* seconds after the call. This class is thread-safe, because every
    change is a single assignment.
    """

    __slots__ = ("_clock", "_deadline")

    def __init__(self, *, seconds: float | None = None, clock: Clock = time.monotonic) -> None:
        """Open a lease.

        Args:
            seconds: The number of seconds after which the lease ends automatically; ``None`` if the lease ends only
                when `end` is called.
            clock: A monotonic clock that returns the time in seconds.
        """
        self._clock = clock
        self._deadline = math.inf if seconds is None else clock() + seconds

    def end(self, *, linger: float = 0.0) -> None:
        """End the lease *linger* seconds from now. This method never extends a lease."""
        self._deadline = min(self._deadline, self._clock() + linger) if linger else -math.inf

    @property
    def is_open(self) -> bool:
        """Whether the token can still be used."""
        deadline = self._deadline
        return deadline == math.inf or self._clock() < deadline


class Verification(Protocol):
    """The result of verifying a token in this service."""

    @property
    def claims(self) -> Mapping[str, object]:
        """The verified claims, as a read-only mapping."""
        ...

    @property
    def expires_at(self) -> float | None:
        """The expiration time, as seconds since the epoch; ``None`` if the expiration time is unknown."""
        ...

    def is_still_valid(self) -> bool:
        """Return ``False`` if the token has been revoked since it was verified.

        This method never blocks or raises an exception.
        """
        ...


@final
class BearerToken:
    """A bearer token whose value is never printed.

    Log messages and the results of ``repr``, ``str``, and ``format`` contain only a keyed fingerprint and the token's
    length. Pickling raises `TypeError`. Only `reveal` and `reveal_all` return the value.

    Args:
        value: A b64token (RFC 6750, section 2.1), without the ``Bearer`` prefix.
        lease: The period during which the token can be used; ``None`` for a token that was not received with a request.
            A token without a lease can be used for ``…_MAX_AGE`` seconds after *received_at*.
        received_at: The monotonic time, in seconds, at which the token was received; ``None`` for the current time.

    Raises:
        ValueError: The *value* is not a b64token. The error message does not contain the value.
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
    """The tokens that were obtained in exchange for this token during the current request.

    The `exchange.tokens` module sets this attribute.
    """

    def __new__(cls, value: str, *, lease: Lease | None = None, received_at: float | None = None) -> BearerToken:
        if not isinstance(value, str) or not is_b64token(value):
            raise ValueError(
                "not a bearer token (RFC 6750, section 2.1): expected letters, digits or -._~+/, with = only at the end"
            )
        return _make(value, lease, time.monotonic() if received_at is None else received_at)

    @staticmethod
    def from_parsed(parsed: str, *, lease: Lease | None = None) -> BearerToken:
        """Return a token for a value that `parse_credentials` has already checked."""
        return _make(parsed, lease, time.monotonic())

    def rebind(self, *, lease: Lease | None, received_at: float | None = None) -> BearerToken:
        """Return a copy of the token with a different lease.

        The current process can use the copy, even if it did not receive the original token.
        """
        received_at = time.monotonic() if received_at is None else received_at
        return _make(self._value, lease, received_at, self._peeked, self._verification)

    def reveal(self) -> str:
        """Return the token's value. The calling code is responsible for sending and storing the value securely."""
        return self._value

    def reveal_all(self) -> tuple[str, ...]:
        """Return the values of this token and of all tokens obtained in exchange for it during the current request."""
        obtained = self.obtained
        return (self._value, *(held.token.reveal() for held in list(obtained.values()))) if obtained else (self._value,)

    @property
    def expires_at(self) -> float | None:
        """The expiration time, as seconds since the epoch; ``None`` if the expiration time is unknown.

        If the token has no verified expiration time, the result is the unverified ``exp`` claim of the JWT. Use an
        unverified time only to avoid sending an expired token.
        """
        if self._verification is not None and self._verification.expires_at is not None:
            return self._verification.expires_at
        return (self._peeked or self._peek())[0]

    @property
    def is_sender_constrained(self) -> bool:
        """Whether the token is a JWT that is bound to its sender's key.

        Such a JWT contains a ``cnf`` claim (RFC 9449, section 6; RFC 8705, section 3.1).
        """
        return (self._peeked or self._peek())[1]

    @property
    def is_usable(self) -> bool:
        """Whether the token can be used.

        A token can be used if the current process received it and its lease has not ended.
        """
        return self.is_own_process and (self.lease is None or self.lease.is_open)

    @property
    def is_own_process(self) -> bool:
        """Whether the current process received the token.

        A forked child process is not considered to have received its parent's tokens. The process ID is also compared,
        because native code can fork the process without running Python's fork hooks.
        """
        return self._generation == _generation and self.pid == os.getpid()

    @property
    def claims(self) -> Mapping[str, object] | None:
        """The claims that were verified during this request; ``None`` if the token has not been verified."""
        return None if self._verification is None else self._verification.claims

    @property
    def verification(self) -> Verification | None:
        """The result of verifying the token during this request; ``None`` if the token has not been verified."""
        return self._verification

    def mark_verified(self, verification: Verification) -> None:
        """Record that a verifier has accepted this token during the current request."""
        self._verification = verification

    def _peek(self) -> tuple[float | None, bool]:
        # Two threads can set this attribute at the same time, but both set the same value.
        self._peeked = peeked = peek(self._value)
        return peeked

    def digest(self) -> bytes:
        """Return the value's SHA-256 digest, which is computed only once.

        Never print the digest. Print `fingerprint` instead.
        """
        if self._digest is None:
            self._digest = hashlib.sha256(self._value.encode("ascii")).digest()
        return self._digest

    @property
    def fingerprint(self) -> str:
        """An eight-digit hexadecimal string that distinguishes this token from other tokens in this process."""
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
        # A pickled token in a queue or on disk could be used after its lease has ended or in a different process.
        raise TypeError("a BearerToken cannot be pickled or sent to another process")

    def __getstate__(self) -> None:
        """Return ``None``. Python's default method would disclose the value to code that serializes objects."""

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

    This code runs for every request. A method with keyword arguments would take 10% longer than this function.
    """
    token: Any = _new(BearerToken)  # the attributes of `BearerToken` are Final
    token._value = value
    token.lease = lease
    token.pid = os.getpid()
    token._generation = _generation
    token.received_at = received_at
    token._peeked = peeked
    token._verification = verification
    token._digest = token.obtained = None
    return token  # type: ignore[no-any-return]


# `json.loads` first detects the encoding, which takes as long as parsing a JWT's claims. A JWT is always encoded in
# UTF-8.
_read_json: Final = json.JSONDecoder().raw_decode


def claims_of(token: str) -> dict[str, Any] | None:
    """Return the claims of an unverified JWT; ``None`` if the token is not a JWT or is unreadable.

    This function never raises an exception, regardless of the input.
    """
    start = token.find(".") + 1
    end = token.find(".", start)
    if not start or end < 0 or token.find(".", end + 1) >= 0:
        return None  # not three segments
    try:
        # The decoder ignores excess padding.
        payload = binascii.a2b_base64(token[start:end].replace("-", "+").replace("_", "/") + "==")
        claims = _read_json(payload.decode().lstrip("\ufeff \t\n\r"))[0]
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def peek(token: str) -> tuple[float | None, bool]:
    """Return the ``exp`` claim of an unverified JWT, and whether the JWT contains a ``cnf`` claim.

    This function never raises an exception, regardless of the input.

    Returns:
        The expiration time and a Boolean; ``(None, False)`` for an opaque token or an unreadable JWT. If ``exp`` is not
        a finite number, the time is ``None``, because the receiving service rejects such a token.

    See RFC 7519, section 4.1.4, and RFC 7800, section 3.1.
    """
    claims = claims_of(token)
    if claims is None:
        return None, False
    expires_at: Any = claims.get("exp")
    # The comparison is false for NaN, infinity, and integers that are too large for a float.
    is_number = type(expires_at) in (int, float) and abs(expires_at) <= sys.float_info.max
    return float(expires_at) if is_number else None, "cnf" in claims
