"""The scrubber accepts values and returns them without tokens."""

from __future__ import annotations

import base64
import html
import json
import re
import time
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_token_relay.redaction.scrubber import FAILED, MASK, Scrubber
from otel_token_relay.redaction.token_search import NOTHING, KnownTokens, _Index, known_from
from tests.redaction.corpus import (
    BENIGN,
    FOREIGN_FORMS,
    FOREIGN_JWT,
    MARKED,
    MARKS,
    OWN,
    OWN_FORMS,
    SECRETS_OF_MARKS,
    fragments,
)

SCRUBBER = Scrubber()
B64TOKEN = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/", min_size=17, max_size=120)


def flatten(value: Any) -> str:
    """Return all readable text of a value, including the joined elements of sequences."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, dict):
        return " ".join(f"{flatten(k)} {flatten(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "".join(map(flatten, value)) + " " + " ".join(map(flatten, value))
    return str(value)


def decoded(text: str) -> str:
    """Return a text and its decoded forms."""
    seen = [text, text.replace("\n", "").replace(" ", ""), unquote(unquote(text)), html.unescape(text)]
    plain = text.replace("\\\\", "\\").replace("\\/", "/")
    seen.append(re.sub(r"\\u00([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), plain))
    for run in re.findall(r"[A-Za-z0-9+/_-]{16,}", text):
        for start in range(4):
            piece = run[start:].replace("-", "+").replace("_", "/")
            raw = base64.b64decode(piece[: len(piece) // 4 * 4])
            seen.append(raw.decode("latin-1"))
    return "\n".join(seen).lower()


def surviving(token: str, value: Any) -> int:
    """Count the runs of 17 characters of a token that remain readable."""
    text = decoded(flatten(value))
    return sum(run.lower() in text for run in fragments(token))


@pytest.mark.parametrize("token", OWN.values(), ids=OWN)
@pytest.mark.parametrize("form", OWN_FORMS.values(), ids=OWN_FORMS)
def test_a_known_token_is_masked_in_every_form(form, token):
    """No 17 consecutive characters of the caller's token remain, regardless of the encoding."""
    value = form(token)

    cleaned = SCRUBBER.redact(value, known_from(token))

    assert surviving(token, value)
    assert not surviving(token, cleaned)
    assert SCRUBBER.redact(cleaned, known_from(token)) is cleaned


@pytest.mark.parametrize("form", FOREIGN_FORMS.values(), ids=FOREIGN_FORMS)
def test_an_unknown_jwt_is_masked(form):
    """A JWT from a different user is recognized by its format, and its payload and signature are masked."""
    value = form(FOREIGN_JWT)

    cleaned = SCRUBBER.redact(value, NOTHING)

    payload_and_signature = FOREIGN_JWT[FOREIGN_JWT.index(".") + 1 :]
    assert surviving(FOREIGN_JWT, value)
    assert not surviving(payload_and_signature, cleaned)
    assert SCRUBBER.redact(cleaned, NOTHING) is cleaned


@pytest.mark.parametrize("text", MARKS.values(), ids=MARKS)
def test_a_labeled_unknown_token_is_masked(text):
    """A token that the scrubber does not know is masked after `Bearer` or an OAuth parameter name."""
    cleaned = SCRUBBER.redact(text, NOTHING)

    assert any(secret in text for secret in SECRETS_OF_MARKS)
    assert not any(secret in cleaned for secret in SECRETS_OF_MARKS)
    assert MASK in cleaned
    assert SCRUBBER.redact(cleaned, NOTHING) is cleaned


def of_one_issuer(user: str) -> str:
    """Return a JWT whose header and first claims are the same for all of the issuer's users."""
    segments = (
        {"alg": "RS256", "kid": "2026-11", "typ": "at+jwt"},
        {"iss": "https://idp.example", "aud": "profile-service", "sub": user, "exp": 4870000000},
    )
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in segments]
    signature = base64.urlsafe_b64encode(user.encode() * 8).decode().rstrip("=")
    return ".".join([*coded, signature])


@pytest.mark.parametrize(
    "text",
    [
        "Bearer {}",
        "https://x/?access_token={}",
        "Authorization: Bearer {} and more",
        '{{"id_token": "{}"}}',
        "{}",
        "from {} to",
    ],
)
def test_a_token_with_the_same_beginning_as_the_callers_is_masked_completely(text):
    """A token that begins like the caller's token is masked completely, not only at the beginning."""
    own, other = of_one_issuer("alice"), of_one_issuer("bob")
    assert own[:60] == other[:60]

    cleaned = SCRUBBER.redact(text.format(other), known_from(own))

    assert not surviving(other[60:], cleaned)
    assert SCRUBBER.redact(cleaned, known_from(own)) is cleaned


@pytest.mark.parametrize("columns", [8, 12, 60, 64, 76])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n    ", "\\n"], ids=repr)
@pytest.mark.parametrize("token", [OWN["opaque"], OWN["jwt"]], ids=["opaque", "jwt"])
def test_a_token_is_found_across_line_breaks(token, end, columns):
    """A token is found across line breaks, in plain text and in base64, at any column."""
    for before in range(0, columns, 3):
        for text in ("x" * before + token, base64.b64encode(b"x" * before + token.encode()).decode()):
            wrapped = end.join(text[at : at + columns] for at in range(0, len(text), columns))

            cleaned = SCRUBBER.redact(wrapped, known_from(token))

            assert not surviving(token, cleaned.replace(end, "")), (before, columns)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("token request: client_id=svc, client_secret=SuperSecretPassword, scope=read", "SuperSecretPassword"),
        ("login failed (client_secret=CorrectHorseBatteryStaple)", "CorrectHorse"),
        ("refresh_token=qWeRtYuIoPaSdFgHjKlZxCvBnMqWeRtYu, retrying", "qWeRtY"),
        ("Grant(device_code=GmRhmhcxhwAzkoEqiMEg, user_code=None)", "GmRhmh"),
        ("[('client_secret', 'Password1')]", "Password1"),
        ("[('refresh_token', 'correct-horse-battery-staple')]", "horse"),
        ("[(b'client_secret', b's3cr3t!')]", "s3cr3t"),
        ('[["client_secret", "s3cr3t!"]]', "s3cr3t"),
        ("('client_secret', 'swordfish')", "swordfish"),
        ("sent Bearer 1234-5678-9012-3456-7890 there", "5678"),
        ("sent Bearer billing-service-prod-token-2024 there", "billing"),
        ("sent Bearer correct-horse-battery-staple there", "horse"),
        ("Authorization: Bearer swordfishswordfish", "swordfish"),
        ("/cb?token=abcd-1234-efgh-5678", "efgh"),
    ],
)
def test_a_secret_that_consists_of_words_is_masked(text, secret):
    """A secret that consists of words is masked, although error codes, lists of names, and lines of code are not."""
    cleaned = SCRUBBER.redact(text, NOTHING)

    assert secret not in cleaned
    assert MASK in cleaned


def test_another_word_does_not_hide_a_token_across_line_breaks():
    """In a long text, a label such as `bearer` does not hide a token that is split across line breaks."""
    token = OWN["jwt"]
    wrapped = "\n".join(token[at : at + 10] for at in range(0, len(token), 10))
    text = "a word\n" * 10_000 + "the bearer\n" + wrapped

    assert SCRUBBER.redact(text, known_from(token)) == MASK


def test_a_token_that_is_split_over_bytes_is_found():
    """A token that is split across a list of byte strings is found as in a list of strings."""
    token = OWN["opaque"]
    value = [token[at : at + 5].encode() for at in range(0, len(token), 5)]

    assert SCRUBBER.redact(value, known_from(token)) == [MASK] * len(value)


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        (
            {"grant_type": "authorization_code", "code": "x1-y2", "redirect_uri": "https://a"},
            {"grant_type": "authorization_code", "code": MASK, "redirect_uri": "https://a"},
        ),
        ({"code": ["SplxlOBeZQQYbYS6WxSbIA"], "n": 1}, {"code": [MASK], "n": 1}),
        ({"url.query.code": "SplxlOBeZQQYbYS6WxSbIA"}, {"url.query.code": MASK}),
        ({"assertion": "PHNhbWxwOl9nOFpqdGVzdA"}, {"assertion": MASK}),
        ({"token": "7Fjfp0ZBr1KtDRbnfVdmIw"}, {"token": MASK}),
        ({"code": 404, "state": "x"}, {"code": 404, "state": "x"}),
        ({"code": "NOT_FOUND", "message": "no such user"}, {"code": "NOT_FOUND", "message": "no such user"}),
    ],
)
def test_a_form_in_a_mapping_is_treated_like_a_form_in_text(value, cleaned):
    """A code, a token, or an assertion is masked because of its format or the neighboring keys."""
    assert SCRUBBER.redact({"form": value}, NOTHING) == {"form": cleaned}


class PretendsToBeStr:
    """An object that claims to be a string, as the proxy objects of frameworks do."""

    __class__ = str  # type: ignore[assignment]

    def __str__(self) -> str:
        return "clean"


def test_an_object_that_claims_to_be_a_string_is_treated_by_its_type():
    """An object is treated according to its type, not its `__class__` attribute."""
    value = {"user": PretendsToBeStr()}

    assert SCRUBBER.redact(value, known_from(OWN["opaque"])) is value


ODD = {
    "only reserved characters": "+/" * 8192,
    "alternating letters and reserved characters": "a+b/" * 4096,
    "long": ("Qk7dW3xPz0sVbN5mL2rTyU8iOpA4" * 600)[:16384],
    "one letter": "a" * 16384,
}


@pytest.mark.parametrize("token", ODD.values(), ids=ODD)
def test_a_token_of_any_form_is_searched_for_in_bounded_time(token):
    """Values that contain a token of any form are masked, and no record takes a second."""
    record = {f"k{at}": f"GET /{at}?x={token[:400]}" for at in range(16)} | {"whole": token, "long": "word " * 12_000}
    known = KnownTokens((token,))

    begun = time.process_time()
    cleaned = SCRUBBER.redact(record, known)

    assert time.process_time() - begun < 10
    assert len(_Index.of(token).ngrams) < 10_000
    assert cleaned["whole"] == MASK
    assert not any(token[:40] in text for text in cleaned.values())


def test_text_that_contains_an_encoded_odd_token_is_masked_completely():
    """Text that contains an encoded token of unusual form is masked completely, and other text in the record is not."""
    token = "Qk7dW3xPz0+sVbN5mL2rT/" * 100
    record = {"a": f"see {quote(token, safe='')} there", "b": "see nothing here"}

    assert SCRUBBER.redact(record, known_from(token)) == {"a": MASK, "b": "see nothing here"}


def test_text_beyond_the_search_limit_is_masked():
    """In a record that contains a token, text beyond the search limit is masked."""
    token = OWN["opaque"]

    cleaned = SCRUBBER.redact({"a": token} | dict.fromkeys(range(5000), "word " * 100), known_from(token))

    assert (cleaned["a"], cleaned[0], cleaned[4999]) == (MASK, "word " * 100, MASK)


@pytest.mark.parametrize("text", BENIGN, ids=[f"{n}-{t[:24]}" for n, t in enumerate(BENIGN)])
@pytest.mark.parametrize("known", [NOTHING, known_from(*OWN.values())], ids=["no-token", "five-tokens"])
def test_benign_text_is_returned_as_the_same_object(known, text):
    """Text without a token is returned as the same object, with and without known tokens."""
    if text in OWN.values():
        return

    assert SCRUBBER.redact(text, known) is text
    assert SCRUBBER.clean(text, known) is text


def test_there_are_at_least_eighty_benign_texts():
    """The list of benign texts has at least 80 entries."""
    assert len(set(BENIGN)) >= 80


@pytest.mark.parametrize(
    "value",
    [7, 2.5, True, None, [1, 2, 3], ("a", "b"), {"k": [1, {"n": None}]}, b"\x00\xff", 10**40, float("nan")],
    ids=repr,
)
def test_other_clean_values_are_returned_as_the_same_object(value):
    """Numbers, sequences, mappings, and bytes without a token are not copied."""
    assert SCRUBBER.redact(value, known_from(*OWN.values())) is value


@pytest.mark.parametrize(
    "key",
    [
        "authorization",
        "Authorization",
        "http.request.header.authorization",
        "HTTP_PROXY_AUTHORIZATION",
        "http.request.header.proxy_authorization",
        "access_token",
        "oauth.refresh_token",
        "clientSecret",
        "id-token",
    ],
)
def test_a_value_under_a_credential_key_is_masked(key):
    """Text under a key that indicates a credential is masked, and numbers are not."""
    cleaned = Scrubber().redact({key: ("opaque", "x y"), "n": 1}, NOTHING)

    assert cleaned == {key: (MASK, MASK), "n": 1}
    assert SCRUBBER.redact(cleaned, NOTHING) == cleaned
    unchanged = {key: True}
    assert SCRUBBER.redact(unchanged, NOTHING) is unchanged


@pytest.mark.parametrize(
    "key",
    [
        "author",
        "authority",
        "session.id",
        "token_id",
        "gen_ai.usage.input_tokens",
        "http.response.status_code",
        "code",
        "http.request.header.content_type",
    ],
)
def test_a_value_under_another_key_is_not_changed(key):
    """A value remains unchanged if its key merely contains such a word."""
    value = {key: "opaque-value"}

    assert SCRUBBER.redact(value, NOTHING) is value


def test_configured_keys_are_masked_with_any_value():
    """A configured key matches the same key and the end of a longer key, in any spelling."""
    scrubber = Scrubber(["X-Api-Key", "tenant.id"], ["x-forwarded-access-token"])

    cleaned = scrubber.redact(
        {
            "http.request.header.x_api_key": ["a", "b"],
            "tenant.id": 42,
            "my.tenant.id": None,
            "x-api-keys": "stays",
            "http.request.header.x-forwarded-access-token": "plain",
        },
        NOTHING,
    )

    assert cleaned == {
        "http.request.header.x_api_key": [MASK, MASK],
        "tenant.id": MASK,
        "my.tenant.id": None,
        "x-api-keys": "stays",
        "http.request.header.x-forwarded-access-token": MASK,
    }


def test_the_mask_is_constant():
    """Two tokens of different lengths leave identical text."""
    masked = {SCRUBBER.redact(f"a {token} b", known_from(token)) for token in OWN.values()}

    assert masked == {f"a {MASK} b"}


def test_the_callers_objects_are_not_modified():
    """Masked values are in a copy, and the original is unchanged."""
    token = OWN["opaque"]
    value = {"a": [token, {"b": token}], "c": 1}
    before = json.dumps(value)

    cleaned = SCRUBBER.redact(value, known_from(token))

    assert json.dumps(value) == before
    assert cleaned == {"a": [MASK, {"b": MASK}], "c": 1}


class Hostile:
    """An object that raises an error when it is converted to text."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def deep(levels: int, leaf: object) -> object:
    value = leaf
    for _ in range(levels):
        value = [value]
    return value


def loop() -> list[object]:
    value: list[object] = ["x"]
    value += [value, value]
    return value


HOSTILE = {
    "str-raises": Hostile(),
    "str-raises-inside": {"a": [Hostile()]},
    "ten-thousand-deep": deep(10_000, OWN["opaque"]),
    "contains-itself": loop(),
    "five-megabytes": "x" * 5_000_000,
    "five-megabytes-of-almost": "eyJ" * 1_700_000,
    "five-megabytes-of-bearer": "bearer " * 700_000,
    "five-megabytes-of-names": "access_token=" * 400_000,
    "many-quotes": '"access_token": "' + '\\"' * 2_000_000,
    "many-spaces": "access_token" + " " * 3_000_000 + "=x",
    "half-a-megabyte-of-names": "code=" * 100_000,
    "sixty-kilobytes-of-head": OWN["opaque"][:16] * 4000,
    "many-small": [OWN["opaque"][:5]] * 150_000,
    "twenty-thousand-texts": ["bearer of news"] * 20_000,
    "lone-surrogates": "\ud800" + OWN["opaque"] + "\udfff",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_values_are_cleaned_in_bounded_time(value):
    """A hostile value does not raise an error and takes at most a few seconds, even on a slow machine."""
    begun = time.process_time()

    cleaned = SCRUBBER.redact(value, known_from(OWN["opaque"]))

    assert time.process_time() - begun < 10
    if isinstance(cleaned, (str, bytes)):
        assert not surviving(OWN["opaque"], cleaned[:200_000])


def test_only_attributes_that_contain_a_token_are_copied():
    """The attributes of a suspect record are copied only if a value or a key of theirs contains a token."""
    attributes = {"http.route": "/me", "note": f"of {OWN['opaque']}", "rows": 3}

    assert SCRUBBER.clean_mapping(attributes, known_from(OWN["opaque"])) == {
        "http.route": "/me",
        "note": f"of {MASK}",
        "rows": 3,
    }
    assert attributes["note"] == f"of {OWN['opaque']}"
    assert SCRUBBER.clean_mapping({OWN["opaque"]: "a"}, known_from(OWN["opaque"])) == {MASK: "a"}
    assert SCRUBBER.clean_mapping(attributes, known_from(OWN["uuid"])) is None


@pytest.mark.parametrize(
    ("attributes", "is_suspect"),
    [
        ({"http.route": "/me", "rows": 3, "ratio": 0.5, "missing": None}, False),
        ({"tags": ("/me", "b"), "nested": {"http.route": "c"}}, False),
        ({"client_secret": "/me"}, True),
        ({"form": {"password": "/me"}}, True),
        ({"header": ("authorization", "/me")}, True),
    ],
)
def test_the_strings_of_attributes_are_gathered(attributes, is_suspect):
    """All strings of attributes are gathered for one search, and the name of a secret makes them suspect by itself."""
    strings: list[str] = []

    assert Scrubber().gather(attributes, strings, NOTHING) is is_suspect
    assert "/me" in strings
    assert all(type(text) is str for text in strings)


def test_an_unreadable_object_is_replaced():
    """An object that cannot be converted to text is not exported."""
    assert SCRUBBER.redact(Hostile(), NOTHING) == FAILED


def test_an_object_whose_text_contains_a_token_becomes_its_masked_text():
    """An object whose text contains a token is replaced with the masked text, because exporters convert objects to
    text.
    """
    cleaned = SCRUBBER.redact([ValueError(f"bad {OWN['opaque']}")], known_from(OWN["opaque"]))

    assert cleaned == [f"bad {MASK}"]


ENCODINGS = {
    name: OWN_FORMS[name]
    for name in OWN_FORMS
    if name not in {"head-and-tail", "wrapped-20", "split-5", "characters", "halves"}
}


@pytest.mark.parametrize("kind", ["jwt", "opaque", "base64", "hex"])
@pytest.mark.parametrize("name", OWN_FORMS)
def test_a_remembered_token_is_found_in_every_form_of_the_whole(kind, name):
    """A remembered token is also masked in other requests' records, except for parts that could be an identifier."""
    value = OWN_FORMS[name](OWN[kind])
    is_part = name in {"head-17", "head-24", "tail-17", "head-and-tail"}
    if is_part and kind in ("base64", "hex"):
        return

    cleaned = SCRUBBER.redact(value, KnownTokens((), (OWN[kind],)))

    assert not surviving(OWN[kind], cleaned)
    assert SCRUBBER.redact(cleaned, KnownTokens((), (OWN[kind],))) is cleaned


@given(token=B64TOKEN, name=st.sampled_from(sorted(ENCODINGS)), before=st.text(max_size=20), after=st.text(max_size=20))
def test_no_fragment_of_any_known_token_survives_any_encoding(token, name, before, after):
    """For any token and any surrounding text, no 17 consecutive characters of the token remain."""
    value = ENCODINGS[name](token)
    value = f"{before}{value}{after}" if isinstance(value, str) else value

    cleaned = SCRUBBER.redact(value, KnownTokens([token]))

    assert not surviving(token, cleaned)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from([*MARKS.values(), *BENIGN, FOREIGN_JWT, *OWN.values()]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4) | st.tuples(inner)
    ),
    max_leaves=8,
)


@given(VALUES)
@example(["SUBJECTTOKEN=0TOKEN", "000000000'"])
def test_redacting_never_raises_and_is_idempotent(value):
    """Redaction never raises an error, and a second pass returns the same object."""
    known = known_from(*OWN.values())

    once = SCRUBBER.redact(value, known)

    assert SCRUBBER.redact(once, known) is once


@given(st.text(st.characters(codec="utf-8", exclude_characters="=:\"'%&"), max_size=200))
def test_text_without_a_label_is_the_same_object(text):
    """Text without any sign of a token is returned as the same object."""
    if "eyJ" in text or "bearer" in text.lower():
        return

    assert SCRUBBER.redact(text, known_from(OWN["opaque"])) is text


@given(st.text("ABab01-._~+/%=&?\"':{} \\u0eyJ", max_size=80), st.text("beartokncsid_=:\"' ", max_size=40))
def test_rules_are_idempotent_on_their_own_alphabet(left, right):
    """A second pass does not change text that consists only of characters that the rules use."""
    text = f"{left}{right}{left}"

    once = SCRUBBER.redact(text, NOTHING)

    assert SCRUBBER.redact(once, NOTHING) is once
    assert quote(once) is not None


@pytest.mark.parametrize(
    "key",
    [
        "http.request.header.x_forwarded_access_token",
        "http.request.header.x-ms-token-aad-id-token",
        "x_forwarded_accesstoken",
        "userAccessToken",
        "OIDCAccessToken",
        "userIDToken",
        "upstream.clientSecret",
        "aws.session_token",
    ],
)
def test_the_name_of_a_secret_may_end_a_longer_key(key: str) -> None:
    """A value is masked if its key ends with the name of a secret, as the captured headers of proxies do."""
    assert Scrubber().redact({key: ("plain",)}, NOTHING) == {key: (MASK,)}


@pytest.mark.parametrize("key", ["gen_ai.usage.max_tokens", "access_token_type", "access_token.length", "my_tokens"])
def test_a_longer_key_that_only_contains_the_name_stays(key: str) -> None:
    """A value under a key that merely contains a secret's name remains, because it describes the secret."""
    values = {key: "plain"}

    assert Scrubber().redact(values, NOTHING) is values


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        ([("authorization", "Basic YTpi"), ("accept", "*/*")], [("authorization", MASK), ("accept", "*/*")]),
        ([[b"x-api-key", b"k9-2f"], [b"accept", b"*/*"]], [[b"x-api-key", MASK], [b"accept", b"*/*"]]),
        ({"name": "Authorization", "value": "Basic YTpi"}, {"name": "Authorization", "value": MASK}),
        (
            {"headers": [{"key": "cookie-token", "value": MARKED}]},
            {"headers": [{"key": "cookie-token", "value": MASK}]},
        ),
        ((("tenant", 42), ("n", 1)), (("tenant", MASK), ("n", 1))),
    ],
)
def test_a_value_beside_the_name_of_a_secret_is_masked(value, cleaned):
    """A value next to the name of a secret is masked in pairs and in mappings, as in lists of headers."""
    assert Scrubber(["tenant"]).redact({"x": value}, NOTHING) == {"x": cleaned}


@pytest.mark.parametrize(
    "value",
    [
        ["authorization", "content-type"],
        ("access_token", "refresh_token"),
        ["token", "hello"],
        [("code", 404), ("token", None)],
        {"name": "password", "value": "required"},
        {"name": "next_token", "value": MARKED},
        {"name": 7, "value": 8},
        {"value": MARKED},
    ],
)
def test_two_values_without_a_secret_stay(value):
    """Lists of names, and pairs whose value is a word or a number, remain unchanged."""
    value = {"x": value}

    assert Scrubber().redact(value, NOTHING) is value


def test_a_prompt_of_several_megabytes_keeps_its_text():
    """Only the secret is masked in a prompt whose embedded picture makes it several megabytes long."""
    picture = base64.b64encode(bytes(range(256)) * 10_000).decode()
    prompt = json.dumps({"language_code": "en", "image": picture, "api_key": MARKED, "text": "What is this?"})

    cleaned = SCRUBBER.redact({"prompt": prompt}, known_from(OWN["opaque"]))

    assert cleaned == {"prompt": prompt.replace(MARKED, MASK)}
    harmless = {"prompt": prompt.replace(MARKED, "none")}
    assert SCRUBBER.redact(harmless, known_from(OWN["opaque"])) is harmless
