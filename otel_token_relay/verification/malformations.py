"""Describe why a token is malformed.

A description can include a position, a number, or a type of character, but never any part of the token.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

from otel_token_relay.token import is_b64token
from otel_token_relay.verification.jws import Claims, decode_segment, has_control_character, parse_object

_PART_NAMES: Final = ("header", "payload", "signature")
_QUOTES: Final = "\"'`\u201c\u201d\u2018\u2019"
_is_base64url = re.compile(r"[A-Za-z0-9_-]*", re.ASCII).fullmatch
_has_bearer_prefix = re.compile(r"(?:authorization\s*:\s*)?bearer\b", re.IGNORECASE).match

# The advice for each kind of problem.
_NOT_ENCRYPTED: Final = (
    "Configure the issuer to sign tokens without encrypting them. Auth0 encrypts a token if the client"
    " requests it without the audience parameter."
)
_PASS_TOKEN_ALONE: Final = "Pass only the token, which is the part after 'Authorization: Bearer '."
_COPY_AGAIN: Final = "Copy the whole token again. The token was probably truncated or modified."
_REMOVE: Final = "Remove these characters. A token is one word of ASCII characters."
_ENCODE: Final = "The issuer must encode this part as base64url"
_OMIT: Final = "The issuer must omit this member."
_WRITE_STRING: Final = "The issuer must send this member as a string."
_NOT_A_JWT: Final = (
    "Check that this is the access token. An opaque token has no parts and can be verified only by introspection."
)


def find_malformation(token: str) -> tuple[str, str] | None:
    """Return the problem and the recommended action, or ``None`` if the token is a well-formed JWS.

    This function checks for the problems that cause `jws.parse_jws` to reject a token as ``malformed``.
    """
    if problem := _find_foreign_characters(token):
        return problem
    parts = token.split(".")
    if len(parts) == 5:
        return "the token has five parts, so it is an encrypted token (JWE)", _NOT_ENCRYPTED
    if len(parts) != 3:
        count = "one part" if len(parts) == 1 else f"{len(parts)} parts"
        is_cut = token.startswith("eyJ") and len(parts) < 3
        return (
            f"the token has {count}; a signed token has three parts, separated by dots",
            _COPY_AGAIN if is_cut else _NOT_A_JWT,
        )
    for name, part in zip(_PART_NAMES, parts, strict=True):
        if problem := _find_bad_encoding(name, part):
            return problem
    return _find_bad_json(parts)


def read_unverified(token: str) -> tuple[Claims, Claims] | None:
    """Return an unverified token's header and claims, or ``None`` if the token cannot be parsed."""
    header, _, rest = token.partition(".")
    try:
        return parse_object(decode_segment(header)), parse_object(decode_segment(rest.partition(".")[0]))
    except (ValueError, UnicodeError):
        return None


def _find_foreign_characters(token: str) -> tuple[str, str] | None:
    return _first(
        (not token, "the token is empty", _PASS_TOKEN_ALONE),
        (_has_bearer_prefix(token), 'the token begins with "Bearer"', _PASS_TOKEN_ALONE),
        (token.strip(_QUOTES) != token, "the token is in quotation marks", "Remove the quotation marks."),
        (
            token.startswith(("{", "[")),
            "the token is a JSON document",
            "Pass only the value of the access_token member.",
        ),
        (any(c in token for c in "\r\n\u2028\u2029"), "the token contains line breaks", _REMOVE),
        (any(c.isspace() for c in token), "the token contains whitespace", _REMOVE),
        (has_control_character(token), "the token contains control characters", _REMOVE),
        (not token.isascii(), "the token contains non-ASCII characters", _REMOVE),
        ("%" in token, "the token contains percent signs", "Decode the token, which is URL-encoded."),
        (not is_b64token(token), "the token contains invalid characters", _COPY_AGAIN),
    )


def _first(*rows: tuple[object, str, str]) -> tuple[str, str] | None:
    """Return the problem and the advice from the first row whose condition is true."""
    return next(((problem, advice) for applies, problem, advice in rows if applies), None)


def _find_bad_encoding(name: str, part: str) -> tuple[str, str] | None:
    unsigned = "The token is not signed. " if name == "signature" else ""
    if problem := _first(
        (not part, f"the {name} is empty", unsigned + _COPY_AGAIN),
        (part.endswith("="), f"the {name} ends with padding (=)", f"{_ENCODE} without padding (RFC 7515)."),
        ("+" in part or "/" in part, f"the {name} is base64, not base64url", f"{_ENCODE} (RFC 7515)."),
        (not _is_base64url(part), f"the {name} is not base64url", _COPY_AGAIN),
    ):
        return problem
    try:
        decode_segment(part)
    except binascii.Error:
        return f"the {name} is not base64url: the length is invalid", _COPY_AGAIN
    except ValueError:
        return f"the {name} is not base64url: the unused bits are not zero", _COPY_AGAIN
    return None


def _find_bad_json(parts: list[str]) -> tuple[str, str] | None:
    objects = []
    for name, part in zip(_PART_NAMES[:2], parts[:2], strict=True):
        try:
            objects.append(parse_object(decode_segment(part)))
        except ValueError as error:
            return f"the {name} is not strict JSON: {error}", _COPY_AGAIN
    return _find_bad_header(objects[0])


def _find_bad_header(header: Claims) -> tuple[str, str] | None:
    kid = header.get("kid", "-")
    is_named = isinstance(kid, str) and kid != "" and not has_control_character(kid)
    return _first(
        ("crit" in header, "the header contains crit, which is not supported", _OMIT),
        ("b64" in header, "the header contains b64, which is not supported", _OMIT),
        (not is_named, "the kid in the header is not a valid string", _WRITE_STRING),
        (not isinstance(header.get("typ", ""), str), "the typ in the header is not a string", _WRITE_STRING),
    )
