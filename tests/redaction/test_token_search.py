"""Known tokens are found whole or in part, in any encoding, and words of remembered tokens are not."""

from __future__ import annotations

import base64
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.redaction import token_search
from otel_token_relay.redaction.credential_patterns import looks_like_credential
from otel_token_relay.redaction.token_search import (
    LONGEST_SURVIVOR,
    NOTHING,
    KnownTokens,
    ascii_lower,
    clear_caches,
    known_from,
    known_from_one,
    known_with_remembered,
    merge,
)
from tests.redaction.corpus import BENIGN, OWN, OWN_BASE64, OWN_FORMS, OWN_OPAQUE
from tests.redaction.test_scrubber import surviving

B64TOKEN = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=", min_size=17, max_size=90)
# This token is not random because a caller can choose the name of a service as its token.
WORDS = "profile-service.internal.example"
# Nearly all parts of this token contain a character that encoders change.
ODD = "Qk7dW3xPz0+sVbN5mL2rT/" * 100


def found(text: str, *own: str, remembered: tuple[str, ...] = ()) -> list[str]:
    """Return the parts of a text that contain parts of tokens."""
    return [text[start:end] for start, end in KnownTokens(own, remembered).intervals_in(text)]


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("text", "lowered"),
    [
        ("ABC xyz", "abc xyz"),
        ("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}STANBUL", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}stanbul"),
        ("GRÖSSE", "grÖsse"),
        ("", ""),
    ],
)
def test_lower_case_keeps_the_length_of_a_text(text: str, lowered: str) -> None:
    """A position in the lowercase text is the same position in the original text."""
    assert ascii_lower(text) == lowered


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(OWN_OPAQUE, OWN_OPAQUE, id="whole"),
        pytest.param(f"see {OWN_OPAQUE}, sorry", OWN_OPAQUE, id="in a sentence"),
        pytest.param(f"({OWN_OPAQUE.upper()})", OWN_OPAQUE.upper(), id="in another case"),
        pytest.param(f"{OWN_OPAQUE[:17]}...", OWN_OPAQUE[:17], id="the first 17 characters"),
        pytest.param(f"...{OWN_OPAQUE[-17:]}", OWN_OPAQUE[-17:], id="the last 17 characters"),
        pytest.param(
            f"{OWN_OPAQUE[:20]}\n   {OWN_OPAQUE[20:]}", f"{OWN_OPAQUE[:20]}\n   {OWN_OPAQUE[20:]}", id="wrapped"
        ),
        pytest.param(f"{OWN_OPAQUE}\r\n{OWN_OPAQUE}", f"{OWN_OPAQUE}\r\n{OWN_OPAQUE}", id="two lines"),
    ],
)
def test_the_interval_covers_exactly_the_part_of_the_token(text: str, expected: str) -> None:
    """The masked interval covers exactly the part of the token, including line breaks between long parts."""
    assert found(text, OWN_OPAQUE) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"'{OWN_OPAQUE[:9]}\\n{OWN_OPAQUE[9:]}'", id="an escaped line break"),
        pytest.param("\r\n".join(f"  {OWN_OPAQUE[at : at + 7]}" for at in range(0, 40, 7)), id="short lines"),
        pytest.param(f"<{quote(base64_of(OWN_OPAQUE), safe='')}>", id="base64, percent-encoded"),
        pytest.param("<" + "".join(f"%{byte:02x}" for byte in OWN_OPAQUE.encode()) + ">", id="every character"),
        pytest.param(f"{OWN_OPAQUE} {base64_of(OWN_OPAQUE)}", id="plain and in base64"),
    ],
)
def test_a_wrapped_or_encoded_part_masks_the_whole_text(text: str) -> None:
    """A wrapped or encoded part masks the whole text, because the positions of its characters are unknown."""
    assert found(text, OWN_OPAQUE) == found(text, remembered=(OWN_OPAQUE,)) == [text]


@pytest.mark.parametrize(
    "encode",
    [
        lambda token: quote(token, safe=""),
        lambda token: quote(quote(token, safe=""), safe=""),
        lambda token: token.replace("/", "\\/"),
        lambda token: token.replace("+", "\\u002b").replace("=", "\\u003d"),
        lambda token: token.replace("+", "&#43;").replace("/", "&#47;").replace("=", "&#61;"),
        lambda token: token.replace("+", " "),
    ],
    ids=["percent", "percent twice", "escaped slash", "JSON", "HTML", "form"],
)
def test_an_encoded_token_masks_the_whole_text(encode: object) -> None:
    """An encoded token masks the whole text even if the encoder changes all special characters."""
    text = f"a={encode(OWN_BASE64)}&b"  # type: ignore[operator]

    assert found(text, OWN_BASE64) == [text]


@pytest.mark.parametrize("token", OWN.values(), ids=OWN)
@pytest.mark.parametrize("form", [name for name in OWN_FORMS if isinstance(OWN_FORMS[name](OWN_OPAQUE), str)])
def test_every_form_of_a_token_contains_one_of_its_needles(form: str, token: str) -> None:
    """The fast check finds every form of a token that the thorough search finds."""
    text = OWN_FORMS[form](token)
    assert isinstance(text, str)

    assert KnownTokens((token,)).may_be_in(text)
    assert KnownTokens((), (token,)).may_be_in(text)
    assert KnownTokens((token,)).intervals_in(text)


def test_claims_of_words_mask_no_word_in_other_records() -> None:
    """Claims that consist of words, which a caller can choose, do not mask those words in later records."""
    words = "eyJCheckoutServiceInventoryPaymentsOrdersReservation"
    token = f"eyJhbGciOiJub25lIn0.{words}."
    assert looks_like_credential(token)
    known = known_with_remembered((), (token,))

    assert known.intervals_in(f"POST /{words}/CheckoutServiceInventory") == []


def test_benign_text_contains_no_token() -> None:
    """Benign text, including `Bearer` alone, contains no token."""
    known = known_from(*OWN.values())
    texts = [text for text in BENIGN if text not in OWN.values()]

    assert [text for text in texts if known.may_be_in(text)] == []
    assert [text for text in texts if known.intervals_in(text)] == []
    assert NOTHING.needles_in("the bearer of news") == ["bearer"]
    assert NOTHING.intervals_in(f"the bearer of {OWN_OPAQUE}") == []


@pytest.mark.parametrize(
    ("token", "text", "expected"),
    [
        pytest.param("a1b2c3d", "see a1b2c3d", [], id="7 characters are any word"),
        pytest.param("a1b2c3d4", "see A1b2c3d4, a1b2c3d4", ["A1b2c3d4, a1b2c3d4"], id="8 characters"),
        pytest.param("a1b2c3d4", "a1b2c3d4 and a1b2c3d4", ["a1b2c3d4", "a1b2c3d4"], id="twice"),
        pytest.param("a1b2c3d4", "a1b2c3d", [], id="truncated"),
        pytest.param("~" * 12, f"<{'fn5-' * 4}>", [f"<{'fn5-' * 4}>"], id="base64url"),
        pytest.param("a1b2c3d4e5f6", "<a1b2c3d4e5f6>", ["a1b2c3d4e5f6"], id="12 characters"),
        pytest.param("a1/b2+c3", quote("a1/b2+c3", safe=""), ["a1%2Fb2%2Bc3"], id="percent-encoded"),
        pytest.param("a1b2c3d4e5f6", base64_of("a1b2c3d4e5f6"), [base64_of("a1b2c3d4e5f6")], id="base64"),
    ],
)
def test_a_short_token_is_found_only_in_whole(token: str, text: str, expected: list[str]) -> None:
    """A short token is found only if it is complete, because its parts could be ordinary words."""
    known = KnownTokens((token,))

    assert found(text, token) == expected
    assert known.may_be_in(text) or not expected


def test_a_token_with_many_reserved_characters_is_found_like_any_other() -> None:
    """A token with many reserved characters is found regardless of its length."""
    encoded, plain = f"see {quote(ODD, safe='')} there", f"see {ODD[:60]} there"

    assert found(encoded, ODD) == [encoded]
    assert found(plain, ODD) == found(plain, remembered=(ODD,)) == [ODD[:60]]
    assert found("see nothing here", ODD) == found("see nothing here", remembered=(ODD,)) == []


@pytest.mark.parametrize(
    ("token", "text", "expected"),
    [
        pytest.param(OWN_OPAQUE, f"see {OWN_OPAQUE}!", [OWN_OPAQUE], id="random, in whole"),
        pytest.param(OWN_OPAQUE, f"see {OWN_OPAQUE[:20]}!", [OWN_OPAQUE[:20]], id="random, in part"),
        pytest.param(OWN_OPAQUE, f"see {OWN_OPAQUE[:16]}!", [], id="random, but too short"),
        pytest.param(WORDS, f"to {WORDS}!", [WORDS], id="words, in whole"),
        pytest.param(WORDS, "to profile-service.internal now", [], id="words, in part"),
        pytest.param(f"{OWN_OPAQUE}.{WORDS}", f"to {WORDS} now", [], id="the words of a random token"),
        pytest.param("a1b2c3d4", "see a1b2c3d4!", ["a1b2c3d4"], id="short, in whole"),
        pytest.param("a1b2c3d", "see a1b2c3d!", [], id="too short"),
    ],
)
def test_only_unlikely_parts_of_a_remembered_token_are_found(token: str, text: str, expected: list[str]) -> None:
    """Only unlikely parts of a remembered token are found, so a caller cannot mask a name in later telemetry."""
    assert found(text, remembered=(token,)) == expected


def test_a_long_text_is_masked_for_a_remembered_token_only_if_it_is_complete() -> None:
    """A long text is masked for a remembered token only if the text contains the complete token."""
    part = f"see {OWN_OPAQUE[:20]}"

    assert KnownTokens((OWN_OPAQUE,)).may_be_in_long(part)
    assert not KnownTokens((), (OWN_OPAQUE,)).may_be_in_long(part)
    assert KnownTokens((), (OWN_OPAQUE,)).may_be_in_long(f"see {OWN_OPAQUE}")
    assert KnownTokens((OWN["hex"],), (OWN_OPAQUE,)).may_be_in_long(f"see {OWN['hex'][:20]}")
    assert not KnownTokens((OWN["hex"],), (OWN_OPAQUE,)).may_be_in_long("see nothing")


def test_known_tokens_are_shared_until_the_caches_are_cleared() -> None:
    """Records of one request share one object of known tokens until the caches are cleared."""
    one, two = OWN_OPAQUE, OWN["hex"]
    clear_caches()  # other tests fill the caches, and each cache evicts its own values

    assert known_from(one) is known_from_one(one) is known_with_remembered((one,), ())
    assert known_from(one, two) is known_with_remembered((one, two), ())
    assert known_with_remembered((), ()) is NOTHING
    with_remembered = known_with_remembered((one,), (two,))
    assert with_remembered is known_with_remembered((one,), (two,))
    assert (with_remembered.values, with_remembered.remembered) == ((one,), (two,))
    before = known_from(one)
    clear_caches()
    assert known_from(one) is not before
    assert token_search._index_of.cache_info().currsize == 0


def test_needles_and_clean_rows_are_created_at_first_use() -> None:
    """Needles and clean rows are created once, at first use, and no other attribute exists."""
    known = KnownTokens((OWN_OPAQUE,))

    assert known.needles is known.needles
    assert known.needles[0] == "bearer"
    known.clean_rows.add(("key", "value"))
    assert known.clean_rows == {("key", "value")}
    with pytest.raises(AttributeError, match="other"):
        _ = known.other


def test_known_tokens_are_not_printed():
    """The `repr` and `str` of known tokens do not contain a token."""
    for shown in (
        repr(known_from(OWN["opaque"])),
        str(KnownTokens((OWN["opaque"],))),
        f"{[known_from(*OWN.values())]}",
    ):
        assert not surviving(OWN["opaque"], shown)
        assert not surviving(OWN["jwt"], shown)


@pytest.mark.parametrize(
    ("intervals", "gap", "expected"),
    [
        ([], 0, []),
        ([(5, 9), (0, 2)], 0, [(0, 2), (5, 9)]),
        ([(0, 9), (2, 4)], 0, [(0, 9)]),
        ([(0, 4), (4, 8)], 0, [(0, 8)]),
        ([(0, 4), (5, 8)], 0, [(0, 4), (5, 8)]),
        ([(0, 4), (8, 9)], 4, [(0, 9)]),
        ([(0, 4), (9, 12)], 4, [(0, 4), (9, 12)]),
    ],
)
def test_intervals_are_merged(intervals: list[tuple[int, int]], gap: int, expected: list[tuple[int, int]]) -> None:
    """Intervals are sorted, and joined if they overlap or are at most *gap* characters apart."""
    assert merge(intervals, gap=gap) == expected


@given(B64TOKEN, st.text(max_size=20), st.text(max_size=20), st.data())
def test_every_long_part_of_any_token_is_found(token: str, before: str, after: str, data: st.DataObject) -> None:
    """Every long part of a token is found in any surrounding text, in intervals that do not overlap."""
    start = data.draw(st.integers(0, len(token) - LONGEST_SURVIVOR - 1))
    part = token[start : start + LONGEST_SURVIVOR + 1]
    text = f"{before}{part}{after}"
    known = KnownTokens((token,))

    intervals = known.intervals_in(text)

    assert any(begin < len(before) + len(part) and len(before) < end for begin, end in intervals)
    assert all(left[1] < right[0] for left, right in pairwise(intervals))


@given(B64TOKEN, st.text(max_size=20), st.text(max_size=20), st.integers(LONGEST_SURVIVOR + 1, 90))
def test_the_cheap_check_finds_every_truncated_token(token: str, before: str, after: str, length: int) -> None:
    """The fast check finds the beginning or the end of a token in any surrounding text."""
    known = KnownTokens((token,))

    assert known.may_be_in(f"{before}{token[:length]}{after}")
    assert known.may_be_in(f"{before}{token[-length:]}{after}")
