"""The grammar of the Authorization header and of other source headers determines which tokens are accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay import Settings
from otel_token_relay.credentials import find, locate, parse_credentials, read
from otel_token_relay.reasons import Reason
from otel_token_relay.token import BearerToken, Lease


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(["Bearer abc.def"], "abc.def", id="plain"),
        pytest.param(["bearer abc"], "abc", id="lower-case scheme"),
        pytest.param(["BEARER abc"], "abc", id="upper-case scheme"),
        pytest.param(["Bearer    abc"], "abc", id="several spaces"),
        pytest.param([" \tBearer abc \t"], "abc", id="surrounding white space"),
        pytest.param(["Bearer abc=="], "abc==", id="padding"),
        pytest.param(["Bearer -._~+/"], "-._~+/", id="every special character"),
        pytest.param([], Reason.ABSENT, id="no header"),
        pytest.param([""], Reason.ABSENT, id="empty header"),
        pytest.param(["Basic dTpw"], Reason.ABSENT, id="another scheme"),
        pytest.param(["DPoP abc"], Reason.ABSENT, id="DPoP"),
        pytest.param(["abc"], Reason.ABSENT, id="no scheme"),
        pytest.param(["BearerX abc"], Reason.ABSENT, id="longer scheme"),
        pytest.param(["Bearer\tabc"], Reason.ABSENT, id="a tab is not a space"),
        pytest.param(["Bearer"], Reason.MALFORMED, id="scheme alone"),
        pytest.param(["Bearer "], Reason.MALFORMED, id="scheme and a space"),
        pytest.param(["Bearer a b"], Reason.MALFORMED, id="two words"),
        pytest.param(["Bearer =abc"], Reason.MALFORMED, id="leading padding"),
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
def test_authorization_is_parsed_by_the_grammar_or_rejected(values, expected):
    """An Authorization header without exactly one set of bearer credentials results in a reason instead of a token."""
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
def test_another_source_header_may_contain_only_the_token(value, expected):
    """A custom source header can contain only the token, with or without the scheme."""
    assert parse_credentials([value], bare=True) == expected


@pytest.mark.parametrize(("length", "expected"), [(9, "a" * 9), (10, "a" * 10), (11, Reason.TOO_LONG)])
def test_a_token_that_is_too_long_is_rejected_and_never_truncated(length, expected):
    """A token that exceeds the maximum length is rejected and never truncated."""
    assert parse_credentials(["Bearer " + "a" * length], max_length=10) == expected


@given(st.lists(st.text(), max_size=3), st.booleans())
def test_parsing_a_header_never_raises(values, bare):
    """Parsing any header text returns a b64token or a reason and never raises an error."""
    read = parse_credentials(values, bare=bare)

    assert isinstance(read, Reason) or BearerToken(read).reveal() == read


def test_the_first_source_header_that_is_present_decides():
    """A later source header is not used even if the first one is invalid, and an unreadable request has no token."""
    settings = Settings(source_headers=("x-user-token", "authorization"), max_length=20)
    first = {"x-user-token": ["alice-token"], "authorization": ["Bearer bob-token"]}.get
    invalid = {"x-user-token": ["a b"], "authorization": ["Bearer bob-token"]}.get
    second = {"authorization": [b"bearer bob-token"]}.get

    def broken(name):
        raise UnicodeDecodeError("ascii", b"\xff", 0, 1, name)

    lease = Lease()
    token = read(find(first, settings), settings, lease=lease)
    assert (token.reveal(), token.lease) == ("alice-token", lease)
    assert read(locate(invalid, settings), settings) is Reason.MALFORMED
    assert read(locate(second, settings), settings).reveal() == "bob-token"
    assert find({}.get, settings) is None
    assert read(None, settings) is Reason.ABSENT
    assert locate(broken, settings) is Reason.MALFORMED
    assert read(("authorization", [7]), settings) is Reason.MALFORMED
    assert read(("authorization", ["Bearer " + "a" * 21]), settings) is Reason.TOO_LONG
