"""Bearer tokens: the header grammar, the value that never shows itself, and its lease.

Invariants, which the rest of the package builds on:

* A `BearerToken` holds a string of the b64token alphabet, so it can neither break a header
  nor hold white space. It does not print, pickle or compare in variable time.
* A token that came with a request carries that request's `Lease`. When the lease has ended,
  every holder of the token has nothing, however it got hold of it.
* A token belongs to the process that received it. A forked child has nothing, whatever its process id is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import os
import secrets
import string
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn, Protocol

Clock = Callable[[], float]

DEFAULT_MAX_LENGTH: Final = 16384
# What a header line may have beside its token: the scheme and one blank, seven characters.
_SCHEME_LENGTH: Final = len("Bearer ")

# RFC 6750, section 2.1:   b64token    = 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="
#                          credentials = "Bearer" 1*SP b64token
# RFC 9110, section 11.1:  the scheme is case-insensitive.  RFC 9110, section 5.5: a field value
# is read without the white space (SP, HTAB) around it.
_B64TOKEN_ALPHABET: Final = (string.ascii_letters + string.digits + "-._~+/").encode("ascii")
_B64TOKEN_TABLE: Final = bytes(ord("A") if byte in _B64TOKEN_ALPHABET else ord("!") for byte in range(256))

# Raised in every forked child. The process id alone does not tell processes apart: in a PID namespace
# of its own a child can have its parent's, and the system uses ids again.
_generation = 0


def _enter_child() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_enter_child)

# Fingerprints are for telling two tokens apart in one process's logs. A plain hash would let
# whoever reads the log test a token that they hold, so the key is random and never leaves.
_FINGERPRINT_KEY: Final = secrets.token_bytes(32)


def is_b64token(text: str) -> bool:
    """Return whether *text* has the form of a bearer token (RFC 6750, section 2.1)."""
    # Every request's token passes here, some thousand characters long: a regular expression takes twice as long.
    body = text.rstrip("=")
    return body.isascii() and body.encode("ascii").translate(_B64TOKEN_TABLE).isalpha()


class Lease:
    """How long a token serves: open until `end` is called, by default at once closed then.

    Safe to share between threads: every change is one assignment.
    """

    __slots__ = ("_clock", "_deadline")

    def __init__(self, *, seconds: float | None = None, clock: Clock = time.monotonic) -> None:
        """Open a lease.

        Args:
            seconds: The lease ends by itself after so many; ``None`` for not by itself.
            clock: Seconds that never go back.
        """
        self._clock = clock
        self._deadline = math.inf if seconds is None else clock() + seconds

    def end(self, *, linger: float = 0.0) -> None:
        """End the lease *linger* seconds from now. A lease that ends sooner stays as it is."""
        self._deadline = min(self._deadline, self._clock() + linger)

    @property
    def is_open(self) -> bool:
        """Whether the token still serves."""
        deadline = self._deadline
        return deadline == math.inf or self._clock() < deadline


class Verification(Protocol):
    """What a verifier of this service found out about a token, for one request."""

    @property
    def claims(self) -> Mapping[str, object]:
        """The verified claims, read-only."""
        ...

    @property
    def expires_at(self) -> float | None:
        """Seconds since the epoch; ``None`` where nobody said."""
        ...

    def is_still_valid(self) -> bool:
        """Whether it has not been revoked since. Does not wait and does not raise."""
        ...


class BearerToken:
    """A bearer token that does not show itself.

    ``repr``, ``str``, ``format`` and logging give a keyed fingerprint and the length. Pickling is
    refused. `reveal` is the only way to the value.

    Args:
        value: A b64token (RFC 6750, section 2.1), without ``Bearer``.
        lease: How long it serves; ``None`` for a token that no request brought, which then
            serves until ``…_MAX_AGE`` after *received_at*.
        received_at: Seconds of the monotonic clock; ``None`` for now.

    Raises:
        ValueError: *value* is no b64token. The message does not show it.
    """

    __slots__ = ("__weakref__", "_generation", "_peeked", "_value", "_verification", "lease", "pid", "received_at")

    lease: Final[Lease | None]
    pid: Final[int]
    received_at: Final[float]

    def __init__(self, value: str, *, lease: Lease | None = None, received_at: float | None = None) -> None:
        if not isinstance(value, str) or not is_b64token(value):
            raise ValueError(
                "not a bearer token (RFC 6750, section 2.1): only letters, digits, -._~+/ and a final = may stand there"
            )
        self._value = value
        self.lease = lease
        self.pid = os.getpid()
        self._generation = _generation
        self.received_at = time.monotonic() if received_at is None else received_at
        self._peeked: tuple[float | None, bool] | None = None
        self._verification: Verification | None = None

    def reveal(self) -> str:
        """Give the value. Whoever calls this answers for where it goes."""
        return self._value

    @property
    def expires_at(self) -> float | None:
        """When it expires, in seconds since the epoch: verified, or else the unverified ``exp`` of a JWT.

        The latter is good enough not to send a token that its issuer calls dead, and for nothing else.
        """
        if self._verification is not None and self._verification.expires_at is not None:
            return self._verification.expires_at
        return (self._peeked or self._peek())[0]

    @property
    def is_sender_constrained(self) -> bool:
        """Whether a JWT is bound to its sender's key (``cnf``): RFC 9449, section 6; RFC 8705, section 3.1."""
        return (self._peeked or self._peek())[1]

    @property
    def is_usable(self) -> bool:
        """Whether it is at home, and its lease, if it has one, is open."""
        return (
            self._generation == _generation and self.pid == os.getpid() and (self.lease is None or self.lease.is_open)
        )

    @property
    def is_own_process(self) -> bool:
        """Whether this is the process that received it, and not a fork of it.

        The process id is compared as well, for a fork by code that does not run Python's hooks.
        """
        return self._generation == _generation and self.pid == os.getpid()

    @property
    def claims(self) -> Mapping[str, object] | None:
        """The claims that this service has verified in this request; ``None`` if it has not."""
        return None if self._verification is None else self._verification.claims

    @property
    def verification(self) -> Verification | None:
        """What this service's verifier found in this request; ``None`` if none has looked."""
        return self._verification

    def mark_verified(self, verification: Verification) -> None:
        """Note that a verifier has accepted this token, for the request that brought it."""
        self._verification = verification

    def _peek(self) -> tuple[float | None, bool]:
        # Two threads may both do this once; they come to the same result.
        self._peeked = peeked = peek(self._value)
        return peeked

    @classmethod
    def from_parsed(cls, parsed: str, *, lease: Lease | None = None) -> BearerToken:
        """Make a token of what `parse_credentials` gave: it was checked there, and once is enough at the door."""
        token = object.__new__(cls)
        token._value = parsed
        token.lease = lease  # type: ignore[misc]  # Final, and this is a constructor
        token.pid = os.getpid()  # type: ignore[misc]
        token._generation = _generation
        token.received_at = time.monotonic()  # type: ignore[misc]
        token._peeked = None
        token._verification = None
        return token

    def rebind(self, *, lease: Lease | None, received_at: float | None = None) -> BearerToken:
        """Give the same token under another lease. It belongs to the calling process then."""
        copy = BearerToken.__new__(BearerToken)
        copy._value = self._value
        copy.lease = lease  # type: ignore[misc]  # Final, and this is the twin's constructor
        copy.pid = os.getpid()  # type: ignore[misc]
        copy._generation = _generation
        copy.received_at = time.monotonic() if received_at is None else received_at  # type: ignore[misc]
        copy._peeked = self._peeked
        copy._verification = self._verification
        return copy

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that tell this token from others within this process."""
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
        # A pickled token would outlive its lease and its process, in a queue or on a disk.
        raise TypeError("a BearerToken cannot be pickled or sent to another process")

    __reduce__ = __reduce_ex__  # type: ignore[assignment]  # both spellings are refused


def peek(token: str) -> tuple[float | None, bool]:
    """Read ``exp`` and whether there is a ``cnf`` from a JWT that nobody has verified.

    Never raises, whatever the bytes are.

    Returns:
        ``(None, False)`` for an opaque token or one that cannot be read. An ``exp`` that is not
        a finite number counts as none: the receiving service refuses such a token.

    Source: RFC 7519, section 4.1.4; RFC 7800, section 3.1.
    """
    segments = token.split(".")
    if len(segments) != 3:
        return None, False
    payload = segments[1].rstrip("=")
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return None, False
    if not isinstance(claims, dict):
        return None, False
    expires_at = claims.get("exp")
    if isinstance(expires_at, bool) or not isinstance(expires_at, (int, float)):
        expires_at = None
    else:
        try:
            expires_at = float(expires_at)
        except OverflowError:
            expires_at = None
        else:
            expires_at = expires_at if math.isfinite(expires_at) else None
    return expires_at, "cnf" in claims
