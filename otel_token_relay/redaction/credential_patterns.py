"""Recognize JWTs, ``Bearer …`` credentials, and values that look random.

The functions in this module are pure, and their running time is linear in the length of the text.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from functools import lru_cache
from typing import Final

Interval = tuple[int, int]

# Some load balancers pad a JWT's segments, in violation of RFC 7515, section 2.
_PADDING: Final = "(?:=|%3[Dd]){0,2}+"
_pad = re.compile("=|%3[Dd]")
# The base64url encodings of the character sequences that can begin a JWT header: {", { ", {\n ", {\n", or {\r\n.
_BEGINNINGS: Final = ("eyJ", "eyAi", "eyAg", "ewog", "ewoi", "ew0K")
_JWT: Final = re.compile(rf"(?:{'|'.join(_BEGINNINGS)})[A-Za-z0-9_-]{{4,}}+(?:{_PADDING}\.[A-Za-z0-9_-]*+)*+{_PADDING}")
# Matches the next line of a JWT that is wrapped across multiple lines, as in an email or a PEM-like block.
_NEXT_LINE: Final = re.compile(
    r"(?:(?:\r?\n|(?:\\{1,2}r)?\\{1,2}n)[ \t]{0,64}| )([A-Za-z0-9_.-]++)(?=[\s\\\"'<,;)\]}]|\Z)"
)
_MIN_LINE: Final = 12
_SEPARATOR: Final = r"(?:[\s+:=]|%20|%3a|%253a|%2520|\\u0020|\\[nrt]|&nbsp;|&\#32;){1,8}+[\"']?"
# Matches lowercase text. The pattern begins with a literal word, because searching for a literal word is fast.
_BEARER: Final = re.compile(
    rf"bearer{_SEPARATOR}(?:bearer{_SEPARATOR}){{0,3}}+(?P<value>(?:[a-z0-9\-._~+/]|%2[bf]|%3d(?![a-z0-9\[]))++=*+)"
)

_is_nothing = re.compile(
    r"(?:none|null|nil|undefined|true|false|str|string|text|bytes|int|optional|required|missing|invalid|expired|empty"
    r"|unknown|absent|redacted|x+|\.+|-+|\*+"
    r"|(?-i::[a-z]+(?:_[a-z0-9]+)*\d*))\.?",
    re.IGNORECASE,
).fullmatch
# Matches placeholders in SQL, templates, and shell commands.
_is_placeholder = re.compile(
    r"\?|\$|\$\d+(?:::\w+)?|\$[A-Z][A-Z0-9_]*|@[Pp]\d+|:\w+::\w+|(?:YOUR|your|Your)(?:[_-][A-Za-z]{1,24}){0,4}"
    r"[_-](?i:token|key|secret|password|jwt|code|credentials|here)"
).fullmatch
_is_specification = re.compile(r"(?:oauth|openid|oidc|rfc|http|https|jwt|jws|jwe|tls|draft)[\d.\-/]*", re.I).fullmatch
# A credential is a single word, optionally preceded by a scheme name (RFC 9110, section 11.4). Code, sentences, and
# error codes such as 0x80070005 are not credentials.
_is_no_credential = re.compile(r"0[xX][0-9A-Fa-f]+\Z|[^\s()\[\]{}<>]*+[\s()\[\]{}<>]").match
_after_scheme = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}+\s++(\S++)").fullmatch
_is_url = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}+://").match
_is_constant_of_words = re.compile(
    r"(?:[A-Z]{2,24}+\d{0,2}|\d{1,3}+[A-Z]{0,3}+\d?|[A-Z]\d{1,2})(?:_(?:[A-Z]{2,24}+\d{0,2}|\d{1,3}+[A-Z]{0,3}+\d?|[A-Z]\d{1,2}))++"
).fullmatch
_is_constant = re.compile(r"[A-Z0-9_.\-]+").fullmatch
# Matches a sequence of words and short numbers with common separators between them.
_WORD: Final = (
    r"(?:[a-z]{1,22}+|[A-Z][a-z]{0,21}+(?![a-z])|[A-Z]{2,22}+(?![a-z])|[A-Z]?[a-z]{2,15}+(?:[A-Z][a-z]{2,15}+)++)"
)
_is_words = re.compile(rf"(?:{_WORD}\d?|\d{{1,4}}+)(?:[ _.\-/:]+(?:{_WORD}\d?|\d{{1,4}}+))*").fullmatch
# The maximum number of digits in an error code or a product number. Credentials that contain separators usually have
# more digits.
_MAX_DIGITS: Final = 6
_is_prose = re.compile(r"[A-Za-z]{1,22}(?:/[A-Za-z]{1,22})*").fullmatch
_AUTH_PARAMETERS: Final = frozenset(
    {"realm", "scope", "error", "error_description", "error_uri", "resource_metadata", "charset", "algs", "title"}
)

# Matches the first member name in a JOSE header (RFC 7515, RFC 7516) or a claims set (RFC 7519, RFC 9068).
_first_name = re.compile(
    rb'\{\s*"(?:alg|typ|kid|enc|cty|jku|jwk|x5t|x5c|x5u|x5t#S256|crit|zip|apu|apv|epk|b64|p2s|p2c'
    rb'|iss|sub|aud|exp|nbf|iat|jti|azp|scope|scp|client_id|cnf|acr|amr|sid|auth_time|roles|realm_access|preferred_username)"'
).match


def jwts_in(text: str) -> list[Interval]:
    """Return the start and end positions of the JWTs in *text*.

    A JWT can contain padding and line breaks, and its signature can be missing.
    """
    if not may_have_jwt(text):
        return []
    found = []
    at = 0
    while match := _JWT.search(text, at):
        at = match.end()
        if _is_jwt(match[0]):
            at = _end_of_wrapped(text, *match.span())
            found.append((match.start(), at))
    return found


def may_have_jwt(text: str) -> bool:
    """Return whether *text* might contain a JWT. The check is fast but can produce false positives."""
    return "eyJ" in text or "eyAi" in text or "eyAg" in text or "ewog" in text or "ewoi" in text or "ew0K" in text


def _end_of_wrapped(text: str, start: int, end: int) -> int:
    """Return the end position of the JWT whose first line is ``text[start:end]``.

    The next line is part of the JWT if it contains only JWT characters and looks random. If the JWT is incomplete or
    already spans multiple lines, the next line does not need to look random, but it must not consist of words. A JWT
    contains two dots (RFC 7515, section 3.1) or four dots (RFC 7516, section 3.1).
    """
    dots = text.count(".", start, end)
    is_wrapped = False
    while line := _NEXT_LINE.match(text, end):
        content = line[1]
        is_complete = dots >= 2 and text[end - 1] != "."
        is_same_line = text[end] == " "
        if dots + content.count(".") > 4 or (is_same_line and is_complete and not is_wrapped):
            break
        if len(content) < _MIN_LINE:
            # A short line can be either the end of a wrapped JWT or an unrelated word.
            if is_complete or "." not in content or is_words(content):
                break
        elif not is_random(content) and ((is_complete and not is_wrapped) or is_words(content)):
            break
        dots += content.count(".")
        end, is_wrapped = line.end(), True
    return end


def bearers_in(text: str, lowered: str) -> list[Interval]:
    """Return the start and end positions of the credentials that follow ``Bearer``.

    Args:
        text: The text to search.
        lowered: The same text in lowercase, as returned by `ascii_lower`.
    """
    if "bearer" not in lowered:
        return []
    return [match.span("value") for match in _BEARER.finditer(lowered) if _is_bearer(match, text)]


_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def ascii_lower(text: str) -> str:
    """Return the text with its ASCII letters in lowercase.

    Unlike ``str.lower``, this function never changes the text's length.
    """
    return text.lower() if text.isascii() else text.translate(_LOWER)


def _is_jwt(text: str) -> bool:
    """Return whether a string is a complete or truncated JWT rather than other base64-encoded JSON."""
    segments = [segment for segment in _pad.sub("", text).split(".") if segment]
    if len(segments) > 1 and len(segments[1]) >= 10:
        return True
    head = segments[0][:24]
    try:
        decoded = base64.urlsafe_b64decode(head[: len(head) // 4 * 4])
    except binascii.Error:
        return False
    return _first_name(decoded) is not None


def looks_secret(value: str) -> bool:
    """Return whether a value looks like a credential rather than a number, words, a constant, or code."""
    value = value.strip()
    if (credentials := _after_scheme(value)) is not None:
        value = credentials[1]
    if _is_no_credential(value) is not None:
        return False
    if _is_url(value) is not None:
        return is_random(value)
    digits = sum(c.isdigit() for c in value)
    if len(value) < 10 or value.isdecimal() or (digits <= _MAX_DIGITS and _is_words(value)):
        return False
    if _is_constant(value) and (len(value) < 24 or _is_constant_of_words(value)):
        return False
    return bool(digits) or len(value) >= 24


# A shorter token could match text that operators need to read.
_MIN_CREDENTIAL_LENGTH: Final = 20
# Text is considered random if its unreadable runs contain at least this many characters in total.
_MIN_RANDOM: Final = 12
_CACHED: Final = 512

_ATOM: Final = re.compile(r"[A-Za-z0-9]+")
_LETTERS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_DIGITS: Final = re.compile(r"[0-9]+")
# A word contains a vowel and does not contain five consecutive consonants.
_is_word = re.compile(r"(?=[^aeiouyAEIOUY]*[aeiouyAEIOUY])(?!.*[^aeiouyAEIOUY]{5})[A-Za-z]{3,}").fullmatch
# Matches trace IDs, UUIDs, object IDs, and truncated digests. Longer hexadecimal strings might be tokens.
_is_short_hex = re.compile(r"[0-9a-f]{1,39}|[0-9A-F]{1,39}").fullmatch
_is_ulid = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}").fullmatch
# The maximum length of the random suffix in the name of a pod, an instance, or a stack.
_MAX_SUFFIX: Final = 13
_MAX_NAME: Final = 64
# The first 40 characters of a JWT's encoded claims always look random. In a test with 30,000 sets of claims, including
# short claims and claims that consisted of words, `is_random` returned ``True`` for every set.
_MIN_CLAIMS: Final = 40
# The maximum number of characters to check. This limit is necessary because every token is checked and callers choose
# the length of their tokens.
_MAX_CHECKED: Final = 512


@lru_cache(maxsize=_CACHED)
def looks_like_credential(token: str) -> bool:
    """Return whether a token is too random to occur in other requests' telemetry by chance.

    The check is strict, because callers choose their tokens. Names, paths, hosts, versions, dates, addresses, UUIDs,
    trace IDs, and combinations of these identifiers are not considered credentials.
    """
    # A JWT's header is public, so only the rest of the JWT is checked (RFC 7515, section 3.1).
    start = token.find(".") + 1 if token[:3] == "eyJ" else 0
    head = token[start : start + _MIN_CLAIMS]
    if start and len(head) == _MIN_CLAIMS and head.isalnum() and head[:3] == "eyJ":
        return True  # a shortcut for most JWTs, for which `is_random` returns the same result
    return len(token) >= _MIN_CREDENTIAL_LENGTH and is_random(token[start:])


def is_random(text: str) -> bool:
    """Return whether a string contains more than words, numbers, and common identifiers."""
    count = 0
    for match in _ATOM.finditer(text, 0, _MAX_CHECKED):
        if not _is_readable(match[0]):
            count += len(match[0])
            if count >= _MIN_RANDOM:
                return True
    return False


def _is_readable(atom: str) -> bool:
    """Return whether a run of letters and digits is a number, an identifier, or a sequence of words.

    The thresholds were determined empirically. `tests/redaction/test_credential_patterns.py` documents how many random
    tokens are mistaken for words.
    """
    size = len(atom)
    if atom.isdecimal() or _is_short_hex(atom):
        return True
    has_one_case = atom.islower() or atom.isupper()
    if has_one_case and size > _MAX_NAME:
        return False
    if has_one_case and (size <= _MAX_SUFFIX or _is_ulid(atom)):
        return True
    words = _LETTERS.findall(atom)
    if has_one_case:
        # 20261126T083000Z, AKIAIOSFODNN7EXAMPLE
        return len(words) + len(_DIGITS.findall(atom)) <= 4 and 5 * _count_unpronounceable(words) <= size
    in_words = len("".join(words))
    # The words in a CamelCase name have at least 3.5 letters on average.
    return 2 * in_words >= 7 * len(words) and 10 * _count_unpronounceable(words) <= 3 * in_words


def is_unpronounceable(word: str) -> bool:
    """Return whether a run of letters is not a word. A run of up to three letters is considered an abbreviation."""
    return len(word) > 3 and 2 * _count_unpronounceable(_LETTERS.findall(word)) > len(word)


def _count_unpronounceable(words: list[str]) -> int:
    return sum(len(word) for word in words if _is_word(word) is None)


def is_nothing(value: str) -> bool:
    """Return whether a value is empty, a placeholder, or a word such as ``null`` that indicates a missing value."""
    return not value or _is_nothing(value) is not None or _is_placeholder(value) is not None


def is_words(value: str) -> bool:
    """Return whether a value consists only of words, short numbers, and common separators."""
    return _is_words(value) is not None


def _is_bearer(match: re.Match[str], text: str) -> bool:
    start, end = match.span("value")
    value, before = text[start:end], text[match.start() - 1 : match.start()]
    if before.isascii() and before.isalpha():
        return False
    after = text[end : end + 2]
    if before[-1:] in ("'", '"') and text[start - 1 : start] == before[-1:]:
        return False  # "Bearer " + token
    name = value.rstrip("=.,")
    is_quoted = before in ("'", '"') and after[:1] in ("'", '"', "\\")
    # If the match is quoted or is the entire text, the value is masked unless it is a placeholder or a short single
    # word ("Bearer token").
    is_alone = match.span() == (0, len(text)) or is_quoted
    if name.lower() in _AUTH_PARAMETERS or not _is_bearer_value(name, is_alone=is_alone):
        return False
    if value.endswith("=") and after[:1] in ('"', "'"):
        return False  # a different auth-param
    return not (after in ('":', "':") and _is_words(name))  # the next key in a JSON object


def _is_bearer_value(value: str, *, is_alone: bool) -> bool:
    if not any(c.isalnum() for c in value):
        return False  # punctuation, such as a line of dashes
    if is_alone:
        return not (value.isalpha() and len(value) <= 15) and not is_nothing(value) and bool(value)
    if len(value) >= 20:
        return not _is_prose(value)
    return len(value) >= 8 and any(c.isdigit() for c in value) and not _is_specification(value)
