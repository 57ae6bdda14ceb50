"""The words in unused credentials are bounded in number and length."""

from __future__ import annotations

import pickle

import pytest

from otel_token_relay import Settings
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.unused_credentials import UnusedCredentials, find_unused, may_have_unused

TOKEN = "tGzv3JOkF0XG5Qx2TlKWIA.k9_Zr-71bLxYqHs4"


def words(*lines: object, sources: tuple[str, ...] = ("authorization",), token: str | None = None) -> tuple[str, ...]:
    found = BearerToken(token) if token else None
    return find_unused(lambda name: lines, Settings(source_headers=sources), found)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ()),
        ("Basic", ()),
        ("Bearer short", ()),
        ("Negotiate", ("Negotiate",)),  # this can be a token without a scheme
        ("Negotiate dGhlIHRpY2tldA==", ("dGhlIHRpY2tldA==",)),
        (f"Bearer {TOKEN}\u00e4", (TOKEN,)),
        (b"Bearer \xff" + TOKEN.encode(), (TOKEN,)),
        (f"{TOKEN} trailing-word", (TOKEN, "trailing-word")),
        (f"{TOKEN}=x", (TOKEN,)),
        ("SignedHeaders=host;x-a-date", ("x-a-date",)),
        (f"Bearer {TOKEN}, Negotiate {TOKEN}", (TOKEN,)),
        (f"Bearer {TOKEN}\t", (TOKEN,)),
    ],
)
def test_words(line: str | bytes, expected: tuple[str, ...]) -> None:
    """Schemes and parameter names are not words, unless they look like credentials."""
    assert words(line) == expected


def test_the_longest_four_words_are_kept() -> None:
    """The four longest words are kept, because a caller can send any number of words."""
    many = [f"{'x' * (8 + at)}" for at in range(100)]

    assert words(" ".join(["Bearer", *many])) == tuple(reversed(many[-4:]))


@pytest.mark.parametrize("count", [1, 2, 8, 1000])
def test_the_number_of_characters_is_bounded(count: int) -> None:
    """All lines share a limit on the number of characters, and the beginning and end of each line are read."""
    found = words(*(f"Bearer {at:04}{'y' * 100_000}" for at in range(count)))

    assert 0 < sum(map(len, found)) <= 16_384


def test_the_used_token_is_not_included() -> None:
    """The used token is not included, because redaction already has it."""
    assert words(f"Bearer {TOKEN}", token=TOKEN) == ()


@pytest.mark.parametrize("lines", [(None,), (7,), (object(),)])
def test_invalid_lines_raise_nothing(lines: tuple[object, ...]) -> None:
    """Invalid header lines raise no error, and the request continues."""
    assert words(*lines) == ()


def test_credentials_are_neither_printed_nor_pickled() -> None:
    """Unused credentials are not printed or pickled with their context."""
    unused = UnusedCredentials((TOKEN,), Lease())

    assert TOKEN not in f"{unused!r} {unused!s} {unused.__getstate__()!r}"
    with pytest.raises(TypeError):
        pickle.dumps(unused)


def test_credentials_are_in_use_until_the_request_ends() -> None:
    """Credentials are in use until the request's lease ends, and indefinitely if the end of the request is unknown."""
    lease = Lease()
    unused, endless = UnusedCredentials((TOKEN,), lease), UnusedCredentials((TOKEN,), None)
    assert unused.is_open
    assert endless.is_open

    lease.end()

    assert not unused.is_open
    assert endless.is_open


@pytest.mark.parametrize(
    ("sources", "is_present", "token", "expected"),
    [
        pytest.param(("authorization",), False, None, False, id="no credentials"),
        pytest.param(("authorization",), True, TOKEN, False, id="used credentials"),
        pytest.param(("authorization",), True, None, True, id="rejected credentials"),
        pytest.param(("x-token",), True, TOKEN, True, id="Authorization is not a source header"),
        pytest.param(("x-token", "authorization"), True, TOKEN, True, id="several source headers"),
        pytest.param(("x-token",), False, None, True, id="only Authorization might be present"),
    ],
)
def test_only_some_requests_are_searched(
    sources: tuple[str, ...], is_present: bool, token: str | None, expected: bool
) -> None:
    """A request is searched only if its credentials were rejected or if a header can remain unread."""
    found = BearerToken(token) if token else None

    assert may_have_unused(Settings(source_headers=sources), is_present=is_present, token=found) is expected
