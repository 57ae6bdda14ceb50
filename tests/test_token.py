"""A token does not print its value, has a lease, and provides `exp` and `cnf`."""

import base64
import copy
import hashlib
import json
import logging
import os
import pickle
import string
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.token import BearerToken, Lease, peek

B64TOKEN = string.ascii_letters + string.digits + "-._~+/"
tokens = st.builds(str.__add__, st.text(B64TOKEN, min_size=12), st.sampled_from(["", "=", "=="]))


def jwt(payload: object) -> str:
    """Build an unsigned JWT. A text payload is used unchanged."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return "eyJhbGciOiJub25lIn0." + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") + ".sig"


@given(tokens)
def test_a_token_never_prints_its_value(value):
    """No conversion of a token to text contains its value."""
    token = BearerToken(value)
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s %r", (token, token), None)

    for shown in (repr(token), str(token), f"{token}", f"{token:>80}", f"{[token]}", record.getMessage()):
        assert value not in shown
    assert f"{len(value)} chars" in repr(token)


def test_a_token_has_no_dict():
    """A token has no ``__dict__``, so `vars` and debuggers that use it do not reveal the value."""
    with pytest.raises(TypeError):
        vars(BearerToken("abcdefghijkl"))


def test_the_state_of_a_token_shows_nothing():
    """The state of a token, which code that dumps objects reads, does not contain the value."""
    token = BearerToken("abcdefghijkl", lease=Lease())

    assert "abcdefghijkl" not in repr(token.__getstate__())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_token_cannot_be_pickled(protocol):
    """A token cannot be pickled, because a queue or a disk would keep it after its lease ends."""
    with pytest.raises(TypeError) as failure:
        pickle.dumps([BearerToken("abcdefghijkl")], protocol)

    assert "abcdefghijkl" not in str(failure.value)


def test_copies_within_the_process_are_the_same_token():
    """A copy within the process is the same token with the same lease, even in a deep copy of a structure."""
    token = BearerToken("abcdefghijkl", lease=Lease())

    assert copy.copy(token) is token
    assert copy.deepcopy({"a": [token]})["a"][0] is token


def test_tokens_are_equal_only_to_tokens_with_the_same_value():
    """A token is equal only to a token with the same value, regardless of the lease, and not to a string."""
    token = BearerToken("abcdefghijkl", lease=Lease())

    assert token == BearerToken("abcdefghijkl")
    assert hash(token) == hash(BearerToken("abcdefghijkl"))
    assert token != BearerToken("abcdefghijkm")
    assert token != "abcdefghijkl"


@pytest.mark.parametrize("value", ["", "a b", "a\r\nX: y", "Bearer abc", "ä", "a,b", None, b"abc"])
def test_only_a_b64token_is_a_token(value):
    """A value that is not a b64token is rejected, and the message does not contain the value."""
    with pytest.raises(ValueError, match="RFC 6750") as failure:
        BearerToken(value)

    assert not value or repr(value) not in str(failure.value)


def test_fingerprints_distinguish_tokens_and_are_keyed():
    """Fingerprints distinguish tokens and use a per-process key, so a log reader cannot test for a known token."""
    import hashlib

    token = BearerToken("abcdefghijkl")

    assert token.fingerprint == BearerToken("abcdefghijkl").fingerprint
    assert token.fingerprint != BearerToken("abcdefghijkm").fingerprint
    assert token.fingerprint != hashlib.sha256(b"abcdefghijkl").hexdigest()[:8]


def test_a_lease_is_open_until_it_is_ended():
    """A lease is open until it is explicitly ended."""
    lease = Lease(clock=lambda: 100.0)

    assert lease.is_open
    lease.end()
    assert not lease.is_open


def test_a_lease_lingers_for_exactly_the_given_time():
    """A lease lingers for exactly the specified time, which a second end does not extend."""
    now = [0.0]
    lease = Lease(clock=lambda: now[0])

    lease.end(linger=5)
    lease.end(linger=50)

    now[0] = 4.9
    assert lease.is_open
    now[0] = 5.0
    assert not lease.is_open


def test_a_timed_lease_ends_after_its_seconds():
    """A timed lease, as used for work that outlives its request, ends after the specified number of seconds."""
    now = [0.0]
    lease = Lease(seconds=3, clock=lambda: now[0])

    now[0] = 2.9
    assert lease.is_open
    now[0] = 3.0
    assert not lease.is_open


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param({"exp": 10}, (10.0, False), id="exp"),
        pytest.param({"exp": 10.5}, (10.5, False), id="fraction"),
        pytest.param({"exp": -1}, (-1.0, False), id="negative"),
        pytest.param({}, (None, False), id="no exp"),
        pytest.param({"exp": "10"}, (None, False), id="text"),
        pytest.param({"exp": True}, (None, False), id="bool"),
        pytest.param({"exp": None}, (None, False), id="null"),
        pytest.param({"exp": [10]}, (None, False), id="list"),
        pytest.param('{"exp": 1e999}', (None, False), id="infinity"),
        pytest.param('{"exp": NaN}', (None, False), id="not a number"),
        pytest.param('{"exp": 1' + "0" * 400 + "}", (None, False), id="larger than a float"),
        pytest.param('{"exp": 1' + "0" * 5000 + "}", (None, False), id="larger than int() accepts"),
        pytest.param({"cnf": {"jkt": "x"}}, (None, True), id="DPoP-bound"),
        pytest.param({"cnf": None, "exp": 1}, (1.0, True), id="cnf without a value"),
        pytest.param([1], (None, False), id="array"),
        pytest.param("no json", (None, False), id="not JSON"),
        pytest.param("[" * 100_000, (None, False), id="deeply nested"),
    ],
)
def test_peek_reads_exp_and_cnf_of_a_jwt(payload, expected):
    """`peek` reads `exp` and `cnf` from a JWT and ignores unreadable values."""
    assert peek(jwt(payload)) == expected


@pytest.mark.parametrize("token", ["opaque", "a.b", "a.b.c.d", "a.b.c.d.e", "..", "a..c", "a.é.c"])
def test_peek_reads_nothing_from_an_opaque_token(token):
    """`peek` reads nothing from an opaque token, because only a token with three segments can be a JWS."""
    assert peek(token) == (None, False)


@given(st.text(), st.binary())
def test_peek_never_raises(text, payload):
    """`peek` accepts any text and any bytes without raising an error."""
    peek(text)
    peek("h." + text + ".s")
    peek("h." + base64.urlsafe_b64encode(payload).decode() + ".s")


def test_a_token_is_peeked_only_once():
    """A token is parsed only once, and later hops of the request use the same result."""
    token = BearerToken(jwt({"exp": 10}))

    first = token._peek()

    assert token.expires_at == 10.0
    assert token._peeked is first
    assert token.rebind(lease=None)._peeked is first


def test_no_public_member_shows_the_value() -> None:
    """No public attribute or property exposes the value; only a method call can return it."""
    token = BearerToken("a-token-that-must-not-be-shown", lease=Lease())
    token.obtained = {1: BearerToken("another-token-that-must-not-be-shown")}
    shown = {name: getattr(token, name) for name in dir(token) if not name.startswith("_")}

    digests = [hashlib.sha256(value.encode()).digest() for value in ("a-token-that-must-not-be-shown",)]
    assert "must-not-be-shown" not in repr(shown)
    assert not any(value in digests for value in shown.values())


def test_only_a_method_returns_the_value() -> None:
    """The value can be read, together with the values of the tokens that were obtained in exchange for the token."""
    token = BearerToken.from_parsed("abcdefghijkl", lease=Lease())
    assert token == BearerToken("abcdefghijkl")
    assert token.is_usable
    assert token.reveal() == "abcdefghijkl"
    assert token.reveal_all() == ("abcdefghijkl",)

    token.obtained = {1: SimpleNamespace(token=BearerToken("exchanged-token"))}

    assert token.reveal_all() == ("abcdefghijkl", "exchanged-token")
    token.lease.end()
    assert not token.is_usable


def test_the_digest_is_that_of_the_value() -> None:
    """The digest is the SHA-256 digest of the value, so equal tokens share a cache entry."""
    expected = hashlib.sha256(b"abcdefghijkl").digest()
    token = BearerToken("abcdefghijkl")

    assert token.digest() == token.digest() == expected
    assert token.rebind(lease=Lease()).digest() == expected


def test_a_verified_token_has_the_claims_and_the_expiration_time_of_its_verification() -> None:
    """A verified token has its verification's claims and expiration time, which a copy for another lease keeps."""
    token = BearerToken(jwt({"exp": 10, "sub": "mallory"}))
    assert (token.claims, token.verification, token.expires_at) == (None, None, 10.0)
    verification = SimpleNamespace(claims={"sub": "alice"}, expires_at=20.0, is_still_valid=lambda: True)

    token.mark_verified(verification)

    for marked in (token, token.rebind(lease=None)):
        assert marked.verification is verification
        assert (marked.claims, marked.expires_at) == ({"sub": "alice"}, 20.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_cannot_use_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child cannot use its parent's token, even if it has the same process ID, but it can use its own."""
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid)
    token = BearerToken("abcdefghijkl", lease=Lease())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests might have left threads
        child = os.fork()
    if child == 0:
        is_correct = False
        try:
            is_correct = not token.is_own_process and not token.is_usable and BearerToken("abcdefghijkl").is_usable
        finally:
            os._exit(0 if is_correct else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert token.is_usable
