"""Each malformed token has a description of its defect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.errors import TokenRejected
from otel_token_relay.token import is_b64token
from otel_token_relay.verification.jws import parse_jws
from otel_token_relay.verification.malformations import find_malformation, read_unverified
from tests.support.tokens import b64

HEADER = b64({"alg": "RS256", "kid": "k1"})
PAYLOAD = b64({"iss": "https://idp.example"})
GOOD = f"{HEADER}.{PAYLOAD}.AAAA"


def with_payload(payload: str | bytes) -> str:
    return f"{HEADER}.{b64(payload)}.AAAA"


def with_header(header: dict[str, object]) -> str:
    return f"{b64(header)}.{PAYLOAD}.AAAA"


@pytest.mark.parametrize(
    ("token", "problem", "advice"),
    [
        pytest.param("", "the token is empty", "Pass only the token", id="empty"),
        pytest.param(f"Bearer {GOOD}", 'the token begins with "Bearer"', "Pass only the token", id="Bearer"),
        pytest.param(
            f"authorization: bearer {GOOD}",
            'the token begins with "Bearer"',
            "Pass only the token",
            id="the whole header",
        ),
        pytest.param(f'"{GOOD}"', "the token is in quotation marks", "Remove the quotation marks", id="quotes"),
        pytest.param(f"{GOOD}'", "the token is in quotation marks", "Remove", id="one quote"),
        pytest.param(
            f'{{"access_token": "{GOOD}"}}', "the token is a JSON document", "access_token", id="the response"
        ),
        pytest.param(f"{HEADER}.\n{PAYLOAD}.AAAA", "the token contains line breaks", "one word", id="line break"),
        pytest.param(f"{HEADER}. {PAYLOAD}.AAAA", "the token contains whitespace", "one word", id="space"),
        pytest.param(f"{GOOD}\x00", "the token contains control characters", "one word", id="NUL"),
        pytest.param(f"{GOOD}é", "the token contains non-ASCII characters", "one word", id="not ASCII"),
        pytest.param(GOOD.replace(".", "%2E"), "the token contains percent signs", "Decode the token", id="percent"),
        pytest.param(f"{GOOD};", "the token contains invalid characters", "Copy the whole", id="semicolon"),
        pytest.param(
            "a.b.c.d.e", "the token has five parts, so it is an encrypted token (JWE)", "without encrypting", id="JWE"
        ),
        pytest.param("opaque", "the token has one part; a signed token has three parts", "opaque token", id="opaque"),
        pytest.param(
            HEADER,
            "the token has one part; a signed token has three parts",
            "Copy the whole",
            id="cut after the header",
        ),
        pytest.param(
            "a.b.c.d", "the token has 4 parts; a signed token has three parts", "opaque token", id="four parts"
        ),
        pytest.param(f".{PAYLOAD}.AAAA", "the header is empty", "Copy the whole", id="no header"),
        pytest.param(f"{HEADER}.{PAYLOAD}.", "the signature is empty", "The token is not signed", id="no signature"),
        pytest.param(
            f"{HEADER}.{PAYLOAD}.AA==", "the signature ends with padding (=)", "without padding", id="padding"
        ),
        pytest.param(f"{HEADER}.{PAYLOAD}.A+/A", "the signature is base64, not base64url", "base64url", id="base64"),
        pytest.param(f"{HEADER}.{PAYLOAD}.A~AA", "the signature is not base64url", "Copy the whole", id="tilde"),
        pytest.param(
            f"{HEADER}.{PAYLOAD}.AAAAA", "the signature is not base64url: the length is invalid", "Copy", id="cut"
        ),
        pytest.param(
            f"{HEADER}.{PAYLOAD}.AB", "the signature is not base64url: the unused bits are not zero", "Copy", id="bits"
        ),
        pytest.param(f"{b64('{')}.{PAYLOAD}.AAAA", "the header is not strict JSON: not JSON", "Copy", id="header"),
        pytest.param(with_payload("[1]"), "the payload is not strict JSON: not a JSON object", "Copy", id="a list"),
        pytest.param(with_payload(b"{}\xff"), "the payload is not strict JSON: not UTF-8", "", id="UTF-8"),
        pytest.param(
            with_payload('{"a": 1, "a": 2}'),
            "the payload is not strict JSON: duplicate member name",
            "",
            id="duplicate",
        ),
        pytest.param(with_payload('{"a": NaN}'), "the payload is not strict JSON: NaN and Infinity are", "", id="NaN"),
        pytest.param(
            with_payload(r'{"a": "\ud800"}'),
            "the payload is not strict JSON: unpaired surrogate",
            "",
            id="surrogate",
        ),
        pytest.param(
            with_payload('{"a": ' + "[" * 40 + "]" * 40 + "}"),
            "the payload is not strict JSON: nested more than 32 levels deep",
            "",
            id="deep",
        ),
        pytest.param(with_header({"alg": "RS256", "crit": []}), "the header contains crit", "omit", id="crit"),
        pytest.param(with_header({"alg": "RS256", "b64": True}), "the header contains b64", "omit", id="b64"),
        pytest.param(with_header({"alg": "RS256", "kid": 1}), "the kid in the header", "string", id="kid"),
        pytest.param(with_header({"alg": "RS256", "typ": 1}), "the typ in the header", "string", id="typ"),
    ],
)
def test_each_malformation_is_named(token: str, problem: str, advice: str) -> None:
    """The verifier rejects each malformed token, and the description states the reason."""
    if is_b64token(token):  # otherwise, the verifier rejects the token before it parses it
        with pytest.raises(TokenRejected, match="malformed"):
            parse_jws(token, max_length=10_000)

    found = find_malformation(token)

    assert found is not None
    assert found[0].startswith(problem)
    assert advice in found[1]


PARTS = st.sampled_from(
    [HEADER, PAYLOAD, "", "AAAA", "A", "AB", "a=", "+/", "~", b64("[]"), b64({"alg": 1}), b64({"alg": "a", "crit": 1})]
)


@given(st.lists(PARTS, max_size=6).map(".".join) | st.text(alphabet="eyJ.-_AB=+/~", max_size=40))
def test_exactly_what_the_verifier_rejects_has_a_description(token: str) -> None:
    """Exactly the tokens that the verifier rejects as malformed have a description."""
    try:
        parse_jws(token, max_length=10_000)
    except TokenRejected as error:
        is_malformed = error.reason == "malformed"
    else:
        is_malformed = False

    found = find_malformation(token)

    read = read_unverified(token)
    if read is None or isinstance(read[0].get("alg"), str):  # otherwise, the verifier rejects the algorithm first
        assert (found is not None) == (is_malformed or not is_b64token(token))


@given(st.text(st.characters(codec=None)))
def test_no_description_contains_the_token(token: str) -> None:
    """A description never contains the token, even if the token is arbitrary text."""
    found = find_malformation(token)

    if found is not None and len(token) > 40:
        assert token not in " ".join(found)


def test_the_header_and_the_claims_are_read_without_a_signature() -> None:
    """For explanations only, the header and the claims are read without decoding the signature."""
    assert read_unverified(GOOD) == ({"alg": "RS256", "kid": "k1"}, {"iss": "https://idp.example"})
    assert read_unverified(f"{HEADER}.{PAYLOAD}") == read_unverified(GOOD)
    for token in ("", "a", "é.é.é", f"{HEADER}.{b64('[]')}.AAAA", "A.A.A"):
        assert read_unverified(token) is None
