"""Parse a compact JWS and its JSON objects strictly.

If two programs parse the same token differently, an attacker can exploit the difference. Such differences can result
from duplicate member names, numbers written as strings, and UTF-16 encoding. For this reason, a token is parsed
strictly before any other rule is checked. The size and the nesting depth are checked before the JSON is parsed.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from otel_token_relay.errors import TokenRejected

Claims = dict[str, Any]

MAX_DEPTH: Final = 32
MAX_INTEGER_DIGITS: Final = 20

# A JWS has three base64url parts that are separated by dots (RFC 7515, section 7.1). Base64url values do not have
# padding (RFC 7515, section 2).
_segments = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII).fullmatch

# C0 and C1 control characters, DEL, and the Unicode line and paragraph separators. Names that contain these characters
# could be used to forge log lines or break a header.
has_control_character: Callable[[str], re.Match[str] | None] = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]").search


class Jws(NamedTuple):
    """A parsed but unverified compact JWS."""

    header: Claims
    claims: Claims
    signing_input: bytes
    signature: bytes


def _reject_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not valid JSON")


def _read_integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer must not have more than {MAX_INTEGER_DIGITS} digits")
    return int(text)


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number must not exceed the range of a double")
    return value


def _read_object(pairs: list[tuple[str, Any]]) -> Claims:
    members = dict(pairs)
    # Duplicate names must be rejected (RFC 7515, section 4; RFC 7519, section 4).
    if len(members) != len(pairs):
        raise ValueError("duplicate member name")
    return members


_decode = json.JSONDecoder(
    object_pairs_hook=_read_object,
    parse_constant=_reject_constant,
    parse_int=_read_integer,
    parse_float=_read_float,
).decode


# The closing quote is optional to prevent backtracking. If the closing quote were required, an unclosed string with
# many escaped quotes would be scanned again from each quote, which could take almost a second.
_strings = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in _strings.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def parse_object(data: bytes) -> Claims:
    """Parse a UTF-8 JSON object with unique member names, finite numbers, and a limited nesting depth.

    Raises:
        ValueError: The data is invalid. The error message describes the problem without quoting the data.
    """
    try:
        text = data.decode("utf-8")
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        value = _decode(text)
        if "\\u" in text:
            # Reject unpaired surrogates, which cannot be encoded when the claims are serialized later.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("unpaired surrogate") from None
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def decode_segment(segment: str) -> bytes:
    """Decode a single part of a JWS (RFC 7515, section 2).

    Raises:
        ValueError: The part is not canonical base64url.
    """
    data = base64.urlsafe_b64decode(segment + "==")
    # The unused bits of the last character must be zero. Otherwise, a token would have more than one valid encoding.
    if base64.urlsafe_b64encode(data).rstrip(b"=") != segment.encode("ascii"):
        raise ValueError("the unused bits of the base64url value are not zero")
    return data


def parse_jws(token: str, *, max_length: int) -> Jws:
    """Parse a compact JWS whose payload is a JSON object of claims.

    Args:
        token: The token as received.
        max_length: The maximum length, in characters, of the token. Longer tokens are rejected without being parsed.

    Raises:
        TokenRejected: The token is too long or malformed, or ``alg`` is not a string. The reason is ``too_long``,
            ``malformed``, or ``algorithm_not_allowed``.

    Source: RFC 7515, sections 4, 5.2, and 7.1; RFC 7519, section 7.2; RFC 8725, section 3.
    """
    if not isinstance(token, str):
        raise TokenRejected("malformed")
    if len(token) > max_length:
        raise TokenRejected("too_long")
    match = _segments(token)
    if match is None:
        raise TokenRejected("malformed")
    header_segment, payload_segment, signature_segment = match.groups()
    try:
        header = parse_object(decode_segment(header_segment))
        claims = parse_object(decode_segment(payload_segment))
        signature = decode_segment(signature_segment)
    except ValueError:
        raise TokenRejected("malformed") from None
    _check_header(header)
    return Jws(header, claims, token[: match.end(2)].encode("ascii"), signature)


def _check_header(header: Claims) -> None:
    """Check the header rules that apply to all profiles. The ``jku``, ``jwk``, ``x5u``, and ``x5c`` members are never
    read."""
    if not isinstance(header.get("alg"), str):
        raise TokenRejected("algorithm_not_allowed")
    kid = header.get("kid", "-")
    is_named = isinstance(kid, str) and kid != "" and not has_control_character(kid)
    # A token with an unsupported critical extension must be rejected (RFC 7515, section 4.1.11). This package does not
    # support any critical extensions. The "b64" member requires the "crit" member (RFC 7797, section 6).
    is_critical = "crit" in header or "b64" in header
    if is_critical or not is_named or not isinstance(header.get("typ", "JWT"), str):
        raise TokenRejected("malformed")


def looks_like_jws(token: str) -> bool:
    """Return whether *token* has three parts, the first of which is a JSON object with an ``alg`` member."""
    match = _segments(token)
    if match is None:
        return False
    try:
        return "alg" in parse_object(decode_segment(match[1]))
    except ValueError:
        return False


def copy_json(value: Any) -> Any:
    """Return a deep copy of a JSON value so that requests cannot change each other's claims."""
    if isinstance(value, dict):
        return {name: copy_json(member) for name, member in value.items()}
    if isinstance(value, list):
        return [copy_json(member) for member in value]
    return value
