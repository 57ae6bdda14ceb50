"""The header grammar, the value that does not show itself, the lease and the peek."""

import base64
import copy
import json
import logging
import pickle
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.reasons import Reason
from otel_token_relay.token import BearerToken, Lease, parse_credentials, peek

B64TOKEN = string.ascii_letters + string.digits + "-._~+/"
tokens = st.builds(str.__add__, st.text(B64TOKEN, min_size=12), st.sampled_from(["", "=", "=="]))


def jwt(payload: object) -> str:
    """Build an unsigned JWT; a payload that is text goes in as it is."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return "eyJhbGciOiJub25lIn0." + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") + ".sig"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(["Bearer abc.def"], "abc.def", id="plain"),
        pytest.param(["bearer abc"], "abc", id="lower-case scheme"),
        pytest.param(["BEARER abc"], "abc", id="upper-case scheme"),
        pytest.param(["Bearer    abc"], "abc", id="several spaces"),
        pytest.param([" \tBearer abc \t"], "abc", id="white space around it"),
        pytest.param(["Bearer abc=="], "abc==", id="padding"),
        pytest.param(["Bearer -._~+/"], "-._~+/", id="every special character"),
        pytest.param([], Reason.ABSENT, id="no header"),
        pytest.param([""], Reason.ABSENT, id="empty header"),
        pytest.param(["Basic dTpw"], Reason.ABSENT, id="another scheme"),
        pytest.param(["DPoP abc"], Reason.ABSENT, id="DPoP"),
        pytest.param(["abc"], Reason.ABSENT, id="no scheme"),
        pytest.param(["BearerX abc"], Reason.ABSENT, id="longer scheme"),
        pytest.param(["Bearer\tabc"], Reason.ABSENT, id="a tab is no space"),
        pytest.param(["Bearer"], Reason.MALFORMED, id="scheme alone"),
        pytest.param(["Bearer "], Reason.MALFORMED, id="scheme and a space"),
        pytest.param(["Bearer a b"], Reason.MALFORMED, id="two words"),
        pytest.param(["Bearer =abc"], Reason.MALFORMED, id="padding in front"),
        pytest.param(["Bearer a=b"], Reason.MALFORMED, id="padding inside"),
        pytest.param(['Bearer "abc"'], Reason.MALFORMED, id="quoted"),
        pytest.param(["Bearer token=abc;x"], Reason.MALFORMED, id="parameters"),
        pytest.param(["Bearer abc\r\nX: y"], Reason.MALFORMED, id="line break"),
        pytest.param(["Bearer abc\n"], Reason.MALFORMED, id="final line break"),
        pytest.param(["Bearer abc\x00"], Reason.MALFORMED, id="nul"),
        pytest.param(["Bearer äbc"], Reason.MALFORMED, id="not ASCII"),
        pytest.param(["Bearer abc", "Bearer abc"], Reason.AMBIGUOUS, id="two lines"),
        pytest.param(["Basic dTpw", "Bearer abc"], Reason.AMBIGUOUS, id="two schemes"),
        pytest.param(["Bearer abc,Bearer abc"], Reason.AMBIGUOUS, id="folded by a server"),
        pytest.param(["Bearer abc,"], Reason.AMBIGUOUS, id="comma"),
    ],
)
def test_authorization_is_read_by_the_grammar_or_refused(values, expected):
    """What is not exactly one set of bearer credentials gives a reason and no token."""
    assert parse_credentials(values) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("abc.def", "abc.def"),
        ("Bearer abc", "abc"),
        ("Bearer", Reason.MALFORMED),
        ("a b", Reason.MALFORMED),
        ("", Reason.ABSENT),
        ("a,b", Reason.AMBIGUOUS),
    ],
)
def test_another_source_header_may_hold_the_token_alone(value, expected):
    """Proxies hand the token over without its scheme, or with it."""
    assert parse_credentials([value], bare=True) == expected


@pytest.mark.parametrize(("length", "expected"), [(9, "a" * 9), (10, "a" * 10), (11, Reason.TOO_LONG)])
def test_a_token_that_is_too_long_is_refused_and_never_cut(length, expected):
    """The border is the length itself."""
    assert parse_credentials(["Bearer " + "a" * length], max_length=10) == expected


@given(st.lists(st.text(), max_size=3), st.booleans())
def test_reading_a_header_never_raises(values, bare):
    """Any text gives a b64token or a reason."""
    read = parse_credentials(values, bare=bare)

    assert isinstance(read, Reason) or BearerToken(read).reveal() == read


@given(tokens)
def test_a_token_never_shows_itself(value):
    """No way of turning a token into text gives its value away."""
    token = BearerToken(value)
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s %r", (token, token), None)

    for shown in (repr(token), str(token), f"{token}", f"{token:>80}", f"{[token]}", record.getMessage()):
        assert value not in shown
    assert f"{len(value)} chars" in repr(token)


def test_a_token_has_no_dictionary_to_show():
    """`vars` and debuggers that use it have nothing."""
    with pytest.raises(TypeError):
        vars(BearerToken("abcdefghijkl"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_token_is_not_pickled(protocol):
    """A queue or a disk would keep it past its lease."""
    with pytest.raises(TypeError) as failure:
        pickle.dumps([BearerToken("abcdefghijkl")], protocol)

    assert "abcdefghijkl" not in str(failure.value)


def test_copies_within_the_process_are_the_token_itself():
    """A deep copy of a structure shares the token, and so its lease."""
    token = BearerToken("abcdefghijkl", lease=Lease())

    assert copy.copy(token) is token
    assert copy.deepcopy({"a": [token]})["a"][0] is token


def test_tokens_are_equal_by_value_and_to_nothing_else():
    """Equality ignores the lease; text is no token."""
    token = BearerToken("abcdefghijkl", lease=Lease())

    assert token == BearerToken("abcdefghijkl")
    assert hash(token) == hash(BearerToken("abcdefghijkl"))
    assert token != BearerToken("abcdefghijkm")
    assert token != "abcdefghijkl"


@pytest.mark.parametrize("value", ["", "a b", "a\r\nX: y", "Bearer abc", "ä", "a,b", None, b"abc"])
def test_only_a_b64token_is_a_token(value):
    """Anything else could break a header; the message does not show it."""
    with pytest.raises(ValueError, match="RFC 6750") as failure:
        BearerToken(value)

    assert not value or repr(value) not in str(failure.value)


def test_fingerprints_tell_tokens_apart_and_do_not_name_the_hash():
    """The key is the process's own, so a log reader cannot test a token that they hold."""
    import hashlib

    token = BearerToken("abcdefghijkl")

    assert token.fingerprint == BearerToken("abcdefghijkl").fingerprint
    assert token.fingerprint != BearerToken("abcdefghijkm").fingerprint
    assert token.fingerprint != hashlib.sha256(b"abcdefghijkl").hexdigest()[:8]


def test_a_lease_is_open_until_it_is_ended():
    """Ending it closes it at once."""
    lease = Lease(clock=lambda: 100.0)

    assert lease.is_open
    lease.end()
    assert not lease.is_open


def test_a_lease_lingers_for_exactly_as_long_as_was_asked():
    """Both sides of the border, and a second end does not make it longer."""
    now = [0.0]
    lease = Lease(clock=lambda: now[0])

    lease.end(linger=5)
    lease.end(linger=50)

    now[0] = 4.9
    assert lease.is_open
    now[0] = 5.0
    assert not lease.is_open


def test_a_timed_lease_ends_by_itself():
    """So much for work that outlives its request."""
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
        pytest.param('{"exp": 1' + "0" * 5000 + "}", (None, False), id="larger than int() reads"),
        pytest.param({"cnf": {"jkt": "x"}}, (None, True), id="DPoP-bound"),
        pytest.param({"cnf": None, "exp": 1}, (1.0, True), id="cnf of no meaning"),
        pytest.param([1], (None, False), id="array"),
        pytest.param("no json", (None, False), id="no json"),
        pytest.param("[" * 100_000, (None, False), id="deep"),
    ],
)
def test_the_peek_reads_exp_and_cnf_of_a_jwt(payload, expected):
    """What cannot be read counts as not there."""
    assert peek(jwt(payload)) == expected


@pytest.mark.parametrize("token", ["opaque", "a.b", "a.b.c.d", "a.b.c.d.e", "..", "a..c", "a.é.c"])
def test_an_opaque_token_has_nothing_to_peek_at(token):
    """Only three segments make a JWS."""
    assert peek(token) == (None, False)


@given(st.text(), st.binary())
def test_the_peek_never_raises(text, payload):
    """Whatever the bytes are."""
    peek(text)
    peek("h." + text + ".s")
    peek("h." + base64.urlsafe_b64encode(payload).decode() + ".s")


def test_a_token_peeks_once():
    """The second hop of a request pays nothing for it."""
    token = BearerToken(jwt({"exp": 10}))

    first = token._peek()

    assert token.expires_at == 10.0
    assert token._peeked is first
    assert token.rebind(lease=None)._peeked is first
