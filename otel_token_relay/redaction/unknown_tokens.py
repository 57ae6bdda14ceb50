"""Find unknown tokens in text by pattern (JWTs, ``Bearer …``) and by label.

A label is a name from `secret_names` that precedes a value. The search supports every notation for names and values
that is common in telemetry: URLs, forms, JSON, ``repr``, header lines, XML, multipart bodies, pairs such as ``(key='…',
value='…')``, and nested combinations of these notations.

The running time is linear in the length of the text for three reasons. Nested repetitions cannot match the same
characters in two ways, the search never reads beyond the end of an unmasked value, and users cannot supply patterns.

Operators tend to disable rules that produce false positives, so each rule requires more than a keyword. For example,
``bearer of news``, ``status_code=404``, ``token_type=Bearer``, and ``WHERE access_token = $1`` are not masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Final

from otel_token_relay.redaction.credential_patterns import (
    Interval,
    ascii_lower,
    bearers_in,
    is_words,
    jwts_in,
    looks_like_credential,
    looks_secret,
)
from otel_token_relay.redaction.secret_names import BUILT_IN, Kind, SecretNames, normalize
from otel_token_relay.redaction.stand_ins import end_of_call, is_call_without_secret, is_stand_in

MASK: Final = "[REDACTED]"

# Matches a quote around a name or a value in JSON, ``repr``, HTML, or a URL, even in a nested string.
_QUOTE: Final = r"(?:\\{0,7}[\"']|\\u0022|&quot;|&\#34;|&\#39;|&\#x27;|%22|%27|%2522|%2527)"

# Patterns for the characters between a name and a value, in lowercase text.
_SPACES: Final = r"(?:\s|\+|%20|%2520){0,8}"
_SEPARATOR: Final = rf"""(?:
    # "name": "value", 'name', b'value', 'name': ['value'], key='name', value='value'
    {_QUOTE}{_SPACES}(?:,{_SPACES}{_QUOTE}?value{_QUOTE}?{_SPACES}[:=]|:|=>|=|(?P<comma>,)|%3a|%253a)
    {_SPACES}(?:\[\s{{0,8}})?b?(?P<quote>{_QUOTE})
  | # name="value"
    \s{{0,8}}[=:]\s{{0,8}}b?(?P<quote2>{_QUOTE})
  | # name=value, name%3Dvalue, name[]=value
    (?:\[\]|%5b%5d)?(?:=|%3d|%253d)
  | # name: value, name = value
    (?P<loose>\s{{0,8}}[:=]\s{{1,8}}|%3a(?:%20|\+)|%253a%2520)
  | # <name>value</name>
    (?P<tag>>|&gt;|%3e)
  | # multipart/form-data (RFC 7578)
    {_QUOTE}(?P<part>(?:\r?\n|\\r\\n|\\n){{2}})
)"""

_LABEL_CHARACTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
_MAX_LABEL: Final = 128
# The maximum number of labels to examine. Examining this many labels takes about a third of a second. If a string
# contains more labels, the rest of the string is masked.
_MAX_LABELS: Final = 20_000
# An escape sequence before a label can end in letters or digits, which are not part of the label.
_after_percent = re.compile(r"(?:25)*[0-9A-Fa-f]{2}").match
_after_backslash = re.compile(r"u[0-9A-Fa-f]{4}|[nrtbf]").match
_before_tag: Final = ("<", "&lt;", "%3C", "%3c", ":")
_previous_word = re.compile(r"([A-Za-z0-9]{1,32}) \Z").search

_VALUE: Final = re.compile(
    r"(?:%(?!22|26|27|2[36]|25(?:22|26|27))[0-9A-Fa-f]{2}|\\[/u]|[^\s\"'\\&<>{}\[\](),;%\#\0|])++"
)
# A value in plain quotes ends at the closing quote, even if it contains characters that tokens cannot contain.
_QUOTED: Final = {
    '"': re.compile(r'(?:\\.|[^"\\])*+', re.DOTALL),
    "'": re.compile(r"(?:\\.|[^'\\])*+", re.DOTALL),
}
# Matches the rest of a header line. Quotes are matched only around a parameter's value (RFC 9110, section 11.2).
_LINE: Final = re.compile(r"(?:=\"[^\"\r\n]*+\"|[^\r\n\"'\\\0<>\[\]])*+")
# Patterns for an authentication scheme's name and for the text after the name, in plain text or in a URL.
_scheme = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}+").match
_after_scheme = re.compile(r"(?:[ \t+]|%20|%2520){1,8}+").match
_IN_URL: Final = re.compile(r"(?:%(?!26|23|25(?:26|23))[0-9A-Fa-f]{2}|[^\s\"'\\&<>{}\[\]#%\0])++")
_CREDENTIALS: Final = re.compile(r"[^\s\"'\\<>\[\],;\0]++")
_are_parameters = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]++=[^=]").match
_SCHEMES: Final = frozenset(
    [
        "apikey",
        "basic",
        "bearer",
        "digest",
        "dpop",
        "gnap",
        "hoba",
        "key",
        "mutual",
        "negotiate",
        "ntlm",
        "oauth",
        "privatetoken",
        "sharedaccesssignature",
        "sharedkey",
        "sharedkeylite",
        "signature",
        "token",
        "vapid",
    ]
)
_SCHEME_FAMILIES: Final = ("aws", "goog4-", "hmac", "scram-")
_MAX_PLAIN_WORD: Final = 15

# Matches an identifier in code. Digits are excluded, because an identifier with digits could be a credential.
_is_identifier = re.compile(r"[A-Za-z_]+(?:\.[A-Za-z_]+)*").fullmatch
_before_member_value = re.compile(rf"{_QUOTE}\s{{0,8}}(?::|=>)").match
_is_snake_case = re.compile(r"[a-z]+(?:_[a-z]+)*(?: [a-z]+(?:_[a-z]+)*)*").fullmatch
_NAMES_OF_VALUES: Final = frozenset(
    {"token", "secret", "code", "assertion", "verifier", "hint", "password", "passwd", "key", "credentials", "jwt"}
)

_BEFORE_CODE: Final = ("", "(", " ", ",", "{", "\n", "\t")
_IN_URLS: Final = ("?", "&", "#", ";")

# If one of these parameters occurs in the same string or mapping as ``code``, the code is considered an OAuth
# authorization code.
_OAUTH_CONTEXT: Final = ("state=", "grant_type", "redirect_uri", "client_id", "session_state", "code_verifier", "iss=")
OAUTH_CONTEXT_KEYS: Final = frozenset(name.rstrip("=") for name in _OAUTH_CONTEXT)
OAUTH_NAMES: Final = frozenset({"code", "assertion"})
"""The names whose values are credentials if other OAuth parameters are present."""

# Headers that can contain multiple values on one line.
_LINES: Final = frozenset({"cookie", "set-cookie"})


# Every built-in name contains one of these words. For speed, `may_be_labeled_in` repeats the words instead of using
# this tuple.
_WORDS: Final = (
    "token",
    "code",
    "key",
    "secret",
    "pass",
    "sig",
    "authorization",
    "assertion",
    "sess",
    "credentials",
    "jwt",
)


class UnknownTokens:
    """A search for unknown tokens that uses one configuration. This class is thread-safe.

    Args:
        names: The names that identify secrets.
    """

    def __init__(self, names: SecretNames) -> None:
        self._names = names
        self._words = tuple(word for word in names.words if not any(built_in in word for built_in in _WORDS))
        self._label = re.compile(rf"(?P<name>{names.pattern}){_SEPARATOR}", re.VERBOSE)

    def may_be_labeled_in(self, lowered: str) -> bool:
        """Return whether lowercase text contains a name that is followed by a value.

        The separators are checked first, because searching for a single character is five times faster than searching
        for a word.
        """
        return bool(
            (
                "=" in lowered
                or '"' in lowered
                or "'" in lowered
                or ": " in lowered
                or "%" in lowered
                or "&" in lowered
                or ">" in lowered
                or "\\" in lowered
                or ":\t" in lowered
                or ":\n" in lowered
            )
            and (
                "token" in lowered
                or "code" in lowered
                or "key" in lowered
                or "secret" in lowered
                or "pass" in lowered
                or "sig" in lowered
                or "authorization" in lowered
                or "assertion" in lowered
                or "sess" in lowered
                or "credentials" in lowered
                or "jwt" in lowered
                or (self._words and any(word in lowered for word in self._words))
            )
            and self._label.search(lowered) is not None
        )

    def intervals_in(self, text: str) -> list[Interval]:
        """Return the start and end positions of likely credentials. The intervals are not sorted and can be nested."""
        found = jwts_in(text)
        lowered = ascii_lower(text)
        if self.may_be_labeled_in(lowered):
            found += self._labeled_in(text, lowered)
        return found + bearers_in(text, lowered)

    def _labeled_in(self, text: str, lowered: str) -> Iterator[Interval]:
        context = _Context(text)
        at = count = 0
        while match := self._label.search(lowered, at):
            count += 1
            if count > _MAX_LABELS:
                yield match.start(), len(text)
                return
            found = self._value_of(match, context)
            if found is not None:
                yield found
            at = match.end() if found is None else max(match.end(), found[1])

    def _value_of(self, match: re.Match[str], context: _Context) -> Interval | None:
        """Return the start and end positions of a label's value, or ``None`` if the value is not a credential."""
        text = context.text
        begin, end = match.span("name")
        begin = _begin_of_label(text, begin)
        label = text[begin:end]
        if match["tag"] and not text.endswith(_before_tag, 0, begin):
            return None
        if match["part"] and not text[max(0, begin - 16) : begin].rstrip("\\\"'").endswith("name="):
            return None
        if match["tag"] and text.endswith(("/<", ":<"), 0, begin) and text.startswith("@", end + 1):
            return None  # https://<user>:<token>@…
        if match["quote2"] and text[begin - 1 : begin] == match["quote2"] and not text[match.end() :][:1].isalnum():
            return None  # the quote ends a string such as "Password: "
        kind = self._names.kind_of(label)
        if (
            kind < Kind.STRONG
            and text[begin - 1 : begin] == " "
            and (word := _previous_word(text, max(0, begin - 33), begin))
        ):
            # The preceding word can change the kind, as in "Access token: …" and "Unexpected token: …".
            longer = self._names.kind_of(f"{word[1]}_{label}")
            if longer is not Kind.ORDINARY and longer is not kind:
                kind, label = longer, f"{word[1]} {label}"
        if kind <= Kind.HARMLESS:
            return None
        return _Value(kind, label, begin, match, context).interval()


def _names_a_scheme(value: str) -> bool:
    """Return whether a header's value is a single word or a scheme name that is followed by a placeholder."""
    word, _, rest = value.strip().partition(" ")
    return word.isalpha() and len(word) <= _MAX_PLAIN_WORD and (not rest or is_stand_in(rest))


def _begin_of_label(text: str, begin: int) -> int:
    """Return the start position of the label whose last word begins at *begin*."""
    start = max(0, begin - _MAX_LABEL)
    begin = start + len(text[start:begin].rstrip(_LABEL_CHARACTERS))
    before = text[begin - 1 : begin]
    if before == "%":
        escape = _after_percent(text, begin)
    elif before == "\\":
        escape = _after_backslash(text, begin)
    else:
        return begin
    return begin if escape is None else escape.end()


def _scheme_at(text: str, start: int) -> tuple[re.Match[str] | None, re.Match[str] | None]:
    """Return the matches for an authentication scheme's name and for the gap after it."""
    scheme = _scheme(text, start)
    return scheme, None if scheme is None else _after_scheme(text, scheme.end())


class _Context:
    """A string and its cached properties."""

    def __init__(self, text: str) -> None:
        self.text: str = text

    @cached_property
    def is_oauth(self) -> bool:
        return any(name in self.text for name in _OAUTH_CONTEXT)


class _Value:
    """The value that follows a label."""

    def __init__(self, kind: Kind, label: str, begin: int, match: re.Match[str], context: _Context) -> None:
        self._kind = kind
        self._label = label
        self._begin = begin
        self._match = match
        self._context = context
        self._text = context.text
        self._start = match.end()
        # A label that contains a space might be part of a sentence.
        self._is_loose = bool(match["loose"]) or " " in label

    def interval(self) -> Interval | None:
        quote = self._match["quote"] or self._match["quote2"]
        end = self._end_of_quoted(quote) if quote else None
        if end is not None:
            return self._found(end, is_quoted=True)
        if self._kind is Kind.HEADER:
            return self._credentials()
        if self._kind is Kind.CONFIGURED and self._label.lower().rpartition(".")[2].replace("_", "-") in _LINES:
            line = _LINE.match(self._text, self._start)
            return None if line is None or not line[0].strip() else line.span()
        value = _VALUE.match(self._text, self._start)
        if value is None:
            return None
        call = None if self._is_loose else self._end_of_call(value.end())
        return self._found(value.end()) if call is None else self._in_call(call)

    def _end_of_call(self, end: int) -> int | None:
        if self._kind is not Kind.STRONG or self._text[self._begin - 1 : self._begin] in _IN_URLS:
            return None
        return end_of_call(self._text, self._start, end)

    def _in_call(self, end: int) -> Interval | None:
        call = self._text[self._start : end]
        return None if MASK in call or is_call_without_secret(call) else (self._start, end)

    def _end_of_quoted(self, quote: str) -> int | None:
        """Return the closing quote's position.

        If the quote is missing and later text might be unrelated, the result is ``None``.
        """
        text, start = self._text, self._start
        if quote in _QUOTED:
            quoted = _QUOTED[quote].match(text, start)
            end = len(text) if quoted is None else quoted.end()
            return end if end < len(text) or self._kind >= Kind.STRONG else None
        # Escapes such as %2C can be in uppercase or lowercase, but each escape for a quote has only one spelling.
        end = text.find(quote, start)
        while end > 0 and text[end - 1] == "\\":
            end = text.find(quote, end + 1)
        return end if end >= 0 else None

    def _found(self, end: int, *, is_quoted: bool = False) -> Interval | None:
        value = self._text[self._start : end]
        if value == "" or value.strip(":. ") == MASK or not self._is_secret(value, end, is_quoted=is_quoted):
            return None
        return self._start, end

    def _is_secret(self, value: str, end: int, *, is_quoted: bool = False) -> bool:
        kind = self._kind
        if kind is Kind.CONFIGURED:
            return True
        if is_stand_in(value):
            return False
        if self._match["comma"] and self._is_next_name(value, end):
            return False
        if kind is Kind.HEADER:
            return not _names_a_scheme(value)
        if kind is Kind.STRONG:
            if value.isupper() and normalize(value) == normalize(self._label):
                return False  # access_token=ACCESS_TOKEN
            if self._is_loose and not (is_quoted and self._match["quote"]):
                return looks_secret(value)
            return is_quoted or not self._is_code(value, end)
        if self._is_loose:
            return kind is Kind.WEAK and looks_like_credential(value)
        if looks_secret(value):
            return True
        return self._label.lower() in OAUTH_NAMES and self._context.is_oauth

    def _credentials(self) -> Interval | None:
        """Return the start and end positions of credentials after ``Authorization: `` or ``authorization=``."""
        text, start = self._text, self._start
        first = _VALUE.match(text, start)
        if first is None:
            return None
        scheme, gap = _scheme_at(text, start)
        if gap is not None:  # "Bearer Bearer …" is a common mistake
            again, gap_after = _scheme_at(text, gap.end())
            if again is not None and gap_after is not None and again[0].lower() in _SCHEMES:
                scheme, gap = again, gap_after
        if gap is not None and text.startswith(MASK, gap.end()):
            return None
        if gap is not None and not gap[0].isspace():
            in_url = _IN_URL.match(text, start)
            return None if in_url is None else in_url.span()
        rest = None if gap is None else _CREDENTIALS.match(text, gap.end())
        if scheme is None or gap is None or rest is None:
            is_secret = looks_secret(first[0]) if self._is_loose else self._is_secret(first[0], first.end())
            return first.span() if is_secret else None
        name = scheme[0].lower()
        if name in _SCHEMES or name.startswith(_SCHEME_FAMILIES):
            if _are_parameters(text, gap.end()):
                line = _LINE.match(text, gap.end())
                return rest.span() if line is None else line.span()
            # Text such as "Basic authentication is required" does not contain credentials.
            word = rest[0].rstrip(".:!?")
            is_plain = word.isalpha() and len(word) <= _MAX_PLAIN_WORD and is_words(word)
            return None if is_plain or is_stand_in(word) else rest.span()
        if looks_secret(rest[0]):
            return (start if looks_secret(scheme[0]) else rest.start()), rest.end()
        return first.span() if looks_secret(first[0]) else None

    def _is_next_name(self, value: str, end: int) -> bool:
        """Return whether a value is the next name in a list of columns or grants rather than the value in a pair."""
        if _before_member_value(self._text, end) is not None:
            return True  # {"name": "DB_PASSWORD", "valueFrom": …}
        if _is_snake_case(value) is None:
            return False
        before = self._text[max(0, self._begin - 8) : self._begin].rstrip("b\"'\\")
        is_pair = before[-1:] == "(" and self._text[end + 1 : end + 2] == ")"
        return "_" in value or " " in value or not is_pair

    def _is_code(self, value: str, end: int) -> bool:
        """Return whether a value is an identifier in code, as in ``refresh(access_token=self._token, …)``."""
        before = self._text[max(0, self._begin - 1) : self._begin]
        if _is_identifier(value) is None or before not in _BEFORE_CODE:
            return False
        if value.startswith(("self.", "this.")):
            return True
        last_word = re.split(r"[._]", value)[-1].lower()
        owner, _, name = value.rpartition(".")
        if owner and normalize(name) in (normalize(self._label), normalize(self._label).rpartition("_")[2]):
            return True  # password=user.password
        return before in ("(", " ") and last_word in _NAMES_OF_VALUES and self._text[end : end + 1] in (")", ",", "(")


BUILT_IN_RULES: Final = UnknownTokens(BUILT_IN)
