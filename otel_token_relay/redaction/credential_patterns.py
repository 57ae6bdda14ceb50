"""Find unknown tokens by pattern: JWTs, ``Bearer …``, OAuth parameters.

These functions are pure, and their running time is linear in the length of the text: no nested repetition
can match the same characters in two ways, and users cannot supply patterns.

Operators switch off a rule that produces false positives, so each rule requires more than a keyword:
``bearer of news``, ``status_code=404``, ``token_type=Bearer`` and ``WHERE access_token = $1`` are not masked.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

Interval = tuple[int, int]

# RFC 6749; RFC 7009; RFC 7521; RFC 7636; RFC 8628; RFC 8693; OpenID Connect Core and Logout. Cloud providers and
# forges call theirs session, security, private and API tokens.
PARAMETER_NAMES: Final = frozenset(
    {
        "accesstoken",
        "refreshtoken",
        "idtoken",
        "idtokenhint",
        "subjecttoken",
        "actortoken",
        "apitoken",
        "authtoken",
        "oauthtoken",
        "bearertoken",
        "logouttoken",
        "privatetoken",
        "securitytoken",
        "sessiontoken",
        "registrationaccesstoken",
        "clientsecret",
        "clientassertion",
        "codeverifier",
        "devicecode",
        "authorizationcode",
    }
)

# A strong name indicates a credential. A weak name is a plain word, so its value must look like a credential, too.
_STRONG: Final = (
    r"(?:access|refresh|id|subject|actor|api|auth|oauth|bearer|logout|private|security|session)[_-]?token(?:[_-]?hint)?"
    r"|client[_-]?(?:secret|assertion)|code[_-]?verifier|(?:device|authorization)[_-]?code"
)
_WEAK: Final = r"code|token|assertion"

# The quotes that may surround a name or a value, as written in JSON, repr, HTML and URLs.
_QUOTE: Final = r"(?:\\{0,3}[\"']|\\u0022|&quot;|&\#34;|&\#39;|&\#x27;|%22|%27)"

# A name must not begin in the middle of a word, but may follow an escape that ends in a letter or a digit.
_BEFORE_NAME: Final = r"(?:(?<![A-Za-z0-9])|(?<=%3[Ff])|(?<=%26)|(?<=%22)|(?<=%20)|(?<=\\n)|(?<=\\t))"

_PARAMETER: Final = re.compile(
    rf"""{_BEFORE_NAME}(?:(?P<strong>{_STRONG})|(?<![_.\-])(?P<weak>{_WEAK}))
    (?:
        # "name": "value", 'name', b'value', 'name': ['value']
        {_QUOTE}\s{{0,8}}(?::|=>|=|(?P<comma>,)|%3[Aa])\s{{0,8}}(?:\[\s{{0,8}})?b?(?P<quote>{_QUOTE})
      | # name="value"
        \s{{0,8}}[=:]\s{{0,8}}b?(?P<quote2>{_QUOTE})
      | # name=value, name%3Dvalue
        (?:=|%3[Dd]|%253[Dd])
      | # name: value, name = value
        (?P<loose>\s{{0,8}}[:=]\s{{1,8}})
    )
    (?P<value>(?:%(?!22|26|27|2[36]|25(?:22|26|27))[0-9A-Fa-f]{{2}}|\\[/u]|[^\s"'\\&<>{{}}\[\](),;%\#\0|])++)
    """,
    re.IGNORECASE | re.VERBOSE,
)
# A quoted value ends at the closing quote, not at the first character that no token contains.
_QUOTED: Final = {
    '"': re.compile(r'(?:\\.|[^"\\])*+', re.DOTALL),
    "'": re.compile(r"(?:\\.|[^'\\])*+", re.DOTALL),
}

# Some load balancers pad the segments, contrary to RFC 7515, section 2.
_PADDING: Final = "(?:=|%3[Dd]){0,2}+"
_pad = re.compile("=|%3[Dd]")
_JWT: Final = re.compile(rf"eyJ[A-Za-z0-9_-]{{5,}}+(?:{_PADDING}\.[A-Za-z0-9_-]*+)*+{_PADDING}")
_SEPARATOR: Final = r"(?:[\s+:=]|%20|%3[Aa]|%253[Aa]|%2520|\\u0020|\\[nrt]|&nbsp;|&\#32;){1,8}+[\"']?"
_BEARER: Final = re.compile(
    rf"(?<![A-Za-z])bearer{_SEPARATOR}(?P<value>(?:[A-Za-z0-9\-._~+/]|%2[BbFf]|%3[Dd](?![A-Za-z0-9]))++=*+)",
    re.IGNORECASE,
)

_is_nothing = re.compile(
    r"(?:none|null|nil|undefined|true|false|str|string|text|bytes|int|optional|required|missing|invalid|expired|empty"
    r"|unknown|absent|redacted|x+|\.+|-+|\*+|:\w+)\.?",
    re.IGNORECASE,
).fullmatch
# Placeholders in SQL, templates and shells.
_is_placeholder = re.compile(r"\?|\$|\$\d+(?:::\w+)?|\$[A-Z][A-Z0-9_]*|@[Pp]\d+|:\w+::\w+").fullmatch
# An identifier in code, without digits: one with digits could be a credential.
_is_name = re.compile(r"[A-Za-z_]+(?:\.[A-Za-z_]+)*").fullmatch
_is_snake_case = re.compile(r"[a-z]+(?:_[a-z]+)*(?: [a-z]+(?:_[a-z]+)*)*").fullmatch
_NAMES_OF_VALUES: Final = frozenset({"token", "secret", "code", "assertion", "verifier", "hint"})
_is_specification = re.compile(r"(?:oauth|openid|oidc|rfc|http|https|jwt|jws|jwe|tls|draft)[\d.\-/]*", re.I).fullmatch
# A credential is a single word, possibly after the name of its scheme (RFC 9110, section 11.4). Programs, sentences
# and error codes such as 0x80070005 are not credentials.
_is_no_credential = re.compile(r"0[xX][0-9A-Fa-f]+\Z|[^\s()\[\]{}<>]*+[\s()\[\]{}<>]").match
_after_scheme = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}+\s++(\S++)").fullmatch
_is_url = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}+://").match
_is_constant_of_words = re.compile(
    r"(?:[A-Z]{2,24}+\d{0,2}|\d{1,3}+[A-Z]{0,3}+\d?|[A-Z]\d{1,2})(?:_(?:[A-Z]{2,24}+\d{0,2}|\d{1,3}+[A-Z]{0,3}+\d?|[A-Z]\d{1,2}))++"
).fullmatch
_is_constant = re.compile(r"[A-Z0-9_.\-]+").fullmatch
# Words, alone or joined in the usual ways, possibly with short numbers between them.
_WORD: Final = (
    r"(?:[a-z]{1,22}+|[A-Z][a-z]{0,21}+(?![a-z])|[A-Z]{2,22}+(?![a-z])|[A-Z]?[a-z]{2,15}+(?:[A-Z][a-z]{2,15}+)++)"
)
_is_words = re.compile(rf"(?:{_WORD}\d?|\d{{1,4}}+)(?:[ _.\-/:]+(?:{_WORD}\d?|\d{{1,4}}+))*").fullmatch
# The maximum number of digits in an error code or a product number. Credentials with separators have more.
_MAX_DIGITS: Final = 6
_is_prose = re.compile(r"[A-Za-z]{1,22}(?:/[A-Za-z]{1,22})*").fullmatch
_AUTH_PARAMETERS: Final = frozenset(
    {"realm", "scope", "error", "error_description", "error_uri", "resource_metadata", "charset", "algs", "title"}
)

# Parameters that identify a ``code`` in the same string or mapping as an OAuth code.
_OAUTH_CONTEXT: Final = ("state=", "grant_type", "redirect_uri", "client_id", "session_state", "code_verifier", "iss=")
OAUTH_CONTEXT_KEYS: Final = frozenset(name.rstrip("=") for name in _OAUTH_CONTEXT)
WEAK_NAMES: Final = frozenset(_WEAK.split("|"))

# The first member name in a JOSE header (RFC 7515, RFC 7516) or in a claims set (RFC 7519, RFC 9068).
_first_name = re.compile(
    rb'\{"(?:alg|typ|kid|enc|cty|jku|jwk|x5t|x5c|x5u|x5t#S256|crit|zip|apu|apv|epk|b64|p2s|p2c'
    rb'|iss|sub|aud|exp|nbf|iat|jti|azp|scope|scp|client_id|cnf|acr|amr|sid|auth_time|roles|realm_access|preferred_username)"'
).match

_has_mark = re.compile(
    r"(?:token|hint|code|secret|assertion|verifier)(?:\s{0,8}[=:]|\\{0,3}[\"']|\\u0022|&quot;|&#|%22|%27|%3d|%253d)"
).search


def has_parameter_mark(lowered: str) -> bool:
    """Return whether lowercase text may contain the name of a token parameter, followed by its value.

    The separators are checked first: searching for one character takes a fifth of the time that searching for
    a word takes.
    """
    return (
        (
            "=" in lowered
            or ":" in lowered
            or '"' in lowered
            or "'" in lowered
            or "%" in lowered
            or "&" in lowered
            or "\\" in lowered
        )
        # Every parameter name contains one of these words.
        and ("token" in lowered or "code" in lowered or "secret" in lowered or "assertion" in lowered)
        and _has_mark(lowered) is not None
    )


def intervals_by_rule(text: str) -> list[Interval]:
    """Return the intervals that look like credentials, in no particular order. One interval may contain another."""
    found: list[Interval] = []
    if "eyJ" in text:
        found += [match.span() for match in _JWT.finditer(text) if _is_jwt(match[0])]
    lowered = text.lower()
    if _has_mark(lowered) is not None:
        found += _parameters_in(text)
    if "bearer" in lowered:
        found += [match.span("value") for match in _BEARER.finditer(text) if _is_bearer(match, text)]
    return found


def _is_jwt(text: str) -> bool:
    """Return whether a string is a JWT or the beginning of one, rather than other base64-encoded JSON."""
    segments = [segment for segment in _pad.sub("", text).split(".") if segment]
    if len(segments) > 1 and len(segments[1]) >= 10:
        return True
    head = segments[0][:24]
    try:
        decoded = base64.urlsafe_b64decode(head[: len(head) // 4 * 4])
    except binascii.Error:
        return False
    return _first_name(decoded) is not None


def _parameters_in(text: str) -> Iterator[Interval]:
    in_oauth_context: bool | None = None
    at = 0
    while match := _PARAMETER.search(text, at):
        start, end = match.span("value")
        at = end
        quote = match["quote"] or match["quote2"]
        quoted = _QUOTED[quote].match(text, start) if quote in _QUOTED else None
        # If the closing quote is missing, the text that follows a value under a weak name is not part of the value.
        if quoted is not None and (match["strong"] or quoted.end() < len(text)):
            end = max(end, quoted.end())
        value = text[start:end]
        if match["comma"]:
            is_secret = not is_nothing(value) and not _is_next_name(match, end, text, value)
        elif match["strong"]:
            is_secret = not is_nothing(value) and not (match["loose"] and not looks_secret(value))
            is_secret = is_secret and not _is_code(match, end, text)
        elif looks_secret(value):
            is_secret = not match["loose"]
        else:
            if in_oauth_context is None:
                in_oauth_context = any(word in text for word in _OAUTH_CONTEXT)
            is_secret = in_oauth_context and not match["loose"] and not is_nothing(value) and match["weak"] != "token"
        if is_secret:
            yield start, end
            at = end


def _is_next_name(match: re.Match[str], end: int, text: str, value: str) -> bool:
    """Return whether a value is the next name in a list of columns or grants, rather than the value in a pair."""
    if _is_snake_case(value) is None:
        return False
    is_pair = text[: match.start()].rstrip("b\"'")[-1:] == "(" and text[end + 1 : end + 2] == ")"
    return "_" in value or " " in value or not is_pair


def _is_code(match: re.Match[str], end: int, text: str) -> bool:
    """Return whether a value is an identifier in code, as in ``refresh(access_token=self._token, …)``."""
    value = match["value"]
    if _is_name(value) is None or text[match.start() - 1 : match.start()] not in ("(", " "):
        return False
    if value.startswith("self."):
        return True
    last_word = re.split(r"[._]", value)[-1].lower()
    return last_word in _NAMES_OF_VALUES and text[end : end + 1] in (")", ",", "(")


def looks_secret(value: str) -> bool:
    """Return whether a value looks like a credential rather than like a number, words, a constant or a program."""
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


# A shorter token could easily match something that operators need to read.
_MIN_CREDENTIAL_LENGTH: Final = 20
# The minimum total length of a credential's unreadable runs.
_MIN_RANDOM: Final = 12
_CACHED: Final = 512

_ATOM: Final = re.compile(r"[A-Za-z0-9]+")
_LETTERS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_DIGITS: Final = re.compile(r"[0-9]+")
# A word has a vowel and does not have five consonants in a row.
_is_word = re.compile(r"(?=[^aeiouyAEIOUY]*[aeiouyAEIOUY])(?!.*[^aeiouyAEIOUY]{5})[A-Za-z]{3,}").fullmatch
# Trace IDs, UUIDs, object IDs and truncated digests. Some frameworks create tokens with more hexadecimal digits.
_is_short_hex = re.compile(r"[0-9a-f]{1,39}|[0-9A-F]{1,39}").fullmatch
_is_ulid = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}").fullmatch
# The length of the longest random suffix in pod, instance and stack names.
_MAX_SUFFIX: Final = 13
_MAX_NAME: Final = 64
# Callers choose the length of their tokens, and every token is checked.
_MAX_CHECKED: Final = 512


@lru_cache(maxsize=_CACHED)
def looks_like_credential(token: str) -> bool:
    """Return whether a token is so random that other requests' telemetry will not contain it by chance.

    The check is strict because callers choose what they send: names, paths, hosts, versions, dates, addresses,
    UUIDs and trace IDs are not credentials, nor is any combination of them.
    """
    # A JWT's header is public, so only the rest is checked (RFC 7515, section 3.1).
    start = token.find(".") + 1 if token[:3] == "eyJ" else 0
    head = token[start : start + _MAX_NAME + 1]
    if len(head) > _MAX_NAME and head.isalnum() and not head.isdecimal():
        return True  # `is_random` would return the same; nearly every JWT takes this branch
    return len(token) >= _MIN_CREDENTIAL_LENGTH and is_random(token[start:])


def is_random(text: str) -> bool:
    """Return whether a string contains more than words, numbers and the usual identifiers."""
    count = 0
    for match in _ATOM.finditer(text, 0, _MAX_CHECKED):
        if not _is_readable(match[0]):
            count += len(match[0])
            if count >= _MIN_RANDOM:
                return True
    return False


def _is_readable(atom: str) -> bool:
    """Return whether a run of letters and digits is a number or an identifier, or consists of words.

    The thresholds were measured: `tests/redaction/test_credential_patterns.py` states how many random tokens are
    mistaken for words.
    """
    size = len(atom)
    if atom.isdecimal() or _is_short_hex(atom):
        return True
    if size > _MAX_NAME:
        return False
    has_one_case = atom.islower() or atom.isupper()
    if has_one_case and (size <= _MAX_SUFFIX or _is_ulid(atom)):
        return True
    words = _LETTERS.findall(atom)
    if has_one_case:
        # 20261126T083000Z, AKIAIOSFODNN7EXAMPLE
        return len(words) + len(_DIGITS.findall(atom)) <= 4 and 5 * _count_unpronounceable(words) <= size
    in_words = len("".join(words))
    # Words in CamelCase have at least 3.5 letters on average.
    return 2 * in_words >= 7 * len(words) and 10 * _count_unpronounceable(words) <= 3 * in_words


def _count_unpronounceable(words: list[str]) -> int:
    return sum(len(word) for word in words if _is_word(word) is None)


def is_nothing(value: str) -> bool:
    """Return whether a value is empty, a placeholder, or a word that means "no value"."""
    return not value or _is_nothing(value) is not None or _is_placeholder(value) is not None


def _is_bearer(match: re.Match[str], text: str) -> bool:
    value = match["value"]
    after = text[match.end() : match.end() + 2]
    name = value.rstrip("=.,")
    if name.lower() in _AUTH_PARAMETERS or not _is_bearer_value(name, match, text):
        return False
    if value.endswith("=") and after[:1] in ('"', "'"):
        return False  # a different auth-param
    return not (after in ('":', "':") and _is_words(name))  # the object's next key


def _is_bearer_value(value: str, match: re.Match[str], text: str) -> bool:
    before = text[max(0, match.start() - 28) : match.start()]
    is_quoted = before[-1:] in ("'", '"') and text[match.end() : match.end() + 1] in ("'", '"', "\\")
    if match.span() == (0, len(text)) or is_quoted or "authorization" in before.lower():
        # In these places, every value is masked except a placeholder or a short single word ("Bearer token").
        return not (value.isalpha() and len(value) <= 15) and not is_nothing(value) and bool(value)
    if len(value) >= 20:
        return not _is_prose(value)
    return len(value) >= 8 and any(c.isdigit() for c in value) and not _is_specification(value)
