"""A table of the attribute keys, header names, parameter names, and text labels that identify secrets.

`SecretNames.kind_of` treats a name the same way regardless of where it occurs. Matching ignores case. The words in a
name can be joined by ``_`` or ``-``, written in camelCase, or concatenated. For example, ``access_token``,
``Access-Token``, ``accessToken``, and ``accesstoken`` are equivalent. A name from the table also matches the end of a
longer name, such as ``x_forwarded_access_token``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple


class Kind(IntEnum):
    """Whether a value is a secret, judging by its name."""

    ORDINARY = 0
    """The name is not in the table."""
    HARMLESS = 1
    """The name resembles a secret's name, but the value (for example, a pagination token) is not a secret."""
    ALONE = 2
    """Like `WEAK`, but the name must not be part of a longer name. For example, a ``country_code`` is not a secret."""
    WEAK = 3
    """The value is a secret if it looks like a credential."""
    STRONG = 4
    """The value is a secret, even if it does not look like a credential."""
    HEADER = 5
    """The value contains HTTP credentials, optionally preceded by a scheme name (RFC 9110, section 11.6.2)."""
    CONFIGURED = 6
    """The value is always a secret, because a setting lists the name."""


class Row(NamedTuple):
    """A group of names from one source.

    Attributes:
        source: The specification, provider, or project that uses these names or considers their values secret.
        kind: The kind that applies to all of the names.
        names: A comma-separated list of lowercase names, with spaces between words.
    """

    source: str
    kind: Kind
    names: str


TABLE: Final = (
    Row("RFC 9110, sections 11.6.2 and 11.7.2", Kind.HEADER, "authorization, proxy authorization"),
    Row(
        "RFC 6749, sections 2.3.1, 4.3.2, and 5.1",
        Kind.STRONG,
        "access token, refresh token, client secret, password, authorization code",
    ),
    Row("RFC 6749, section 4.1.2", Kind.ALONE, "code"),
    Row("RFC 7009, section 2.1; RFC 7662, section 2.1", Kind.WEAK, "token"),
    Row("RFC 7521, sections 4.1 and 4.2", Kind.STRONG, "client assertion"),
    Row("RFC 7521, section 4.1", Kind.ALONE, "assertion"),
    Row("RFC 7636, section 4.5", Kind.STRONG, "code verifier"),
    Row("RFC 8628, section 3.2", Kind.STRONG, "device code"),
    Row("RFC 8693, section 2.1", Kind.STRONG, "subject token, actor token"),
    Row(
        "OpenID Connect Core, RP-Initiated and Back-Channel Logout",
        Kind.STRONG,
        "id token, id token hint, logout token",
    ),
    Row("RFC 7519", Kind.WEAK, "jwt"),
    Row(
        "AWS: STS, and Signature Version 2 and 4 in queries",
        Kind.STRONG,
        "session token, security token, secret access key, aws access key id, amz signature",
    ),
    Row("Google Cloud: API keys, and V4 signed URLs", Kind.STRONG, "api key, goog signature"),
    Row(
        "Azure: Storage, Service Bus, API Management, and Functions",
        Kind.STRONG,
        "account key, shared access key, subscription key, functions key",
    ),
    Row("OpenTelemetry semantic conventions, url.query; Azure SAS; CloudFront", Kind.ALONE, "sig, signature"),
    Row(
        "Signed URLs in Alibaba Cloud OSS, Tencent Cloud COS, Volcengine TOS, and OpenStack Swift",
        Kind.STRONG,
        "oss signature, q signature, tos signature, temp url sig",
    ),
    Row("GitLab, GitHub, HashiCorp Vault, Slack", Kind.STRONG, "private token, api token, auth token, bearer token"),
    Row("OAuth 1.0 (RFC 5849) and SDKs", Kind.STRONG, "oauth token, oauth signature, token secret, consumer secret"),
    Row("Django, Angular, Spring", Kind.STRONG, "csrf token, xsrf token, csrfmiddlewaretoken, jsessionid, phpsessid"),
    Row(
        "Scrubbers in Sentry, Logfire, Datadog, and Elastic APM",
        Kind.STRONG,
        "passwd, passphrase, private key, secret key, signing key, encryption key, webhook secret",
    ),
    Row("Scrubbers in Sentry, Logfire, Datadog, and Elastic APM", Kind.WEAK, "secret, credentials"),
    Row(
        "Pagination in AWS, Google, Azure, and Microsoft Graph; change feeds",
        Kind.HARMLESS,
        "next token, page token, continuation token, pagination token, starting token, cursor token, resume token,"
        " sync token, delta token, skip token, next forward token, next backward token, progress token,"
        " start token, end token, previous token, prev token",
    ),
    Row(
        "Idempotency in AWS and Google; cancellation; language models and parsers",
        Kind.HARMLESS,
        "client token, client request token, request token, idempotency token, cancellation token, max token,"
        " input token, output token, stop token, eos token, bos token, pad token, unk token, sep token, mask token,"
        " unexpected token, invalid token",
    ),
)

_MAX_WORDS: Final = max(len(name.split()) for row in TABLE for name in row.names.split(","))
# Matches the positions where words begin in a camelCase name.
_humps = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MAX_LABEL: Final = 128


def rows() -> Iterator[tuple[str, Kind, str]]:
    """Yield each name in the table with its kind and source."""
    for row in TABLE:
        for name in row.names.split(","):
            yield name.strip(), row.kind, row.source


# Maps each name, without spaces, to its kind.
_KINDS: Final = {name.replace(" ", ""): kind for name, kind, _ in rows()}
_LAST_WORDS: Final = tuple({name.split()[-1] for name, _, _ in rows()})


def _any_of(words: Iterable[str]) -> str:
    """Return a pattern that matches any of the words.

    The pattern is structured as a trie, so each character is compared with only a few alternatives.
    """
    by_first: dict[str, list[str]] = {}
    for word in words:
        by_first.setdefault(word[:1], []).append(word[1:])
    is_optional = by_first.pop("", None) is not None
    parts = [re.escape(first) + _any_of(rest) for first, rest in sorted(by_first.items())]
    if len(parts) == 1 and not is_optional:
        return parts[0]
    return f"(?:{'|'.join(parts)})" + "?" * is_optional if parts else ""


def _ends() -> set[str]:
    """Return the last word of each name that identifies a secret.

    ``access_key_id`` replaces ``id``, which would match too often.
    """
    names = [name for name, kind, _ in rows() if kind is not Kind.HARMLESS]
    words = {"access_key_id" if name.endswith(" id") else name.split()[-1] for name in names}
    return {word for word in words if not any(word != other and word.endswith(other) for other in words)}


BUILT_IN_PATTERN: Final = _any_of(_ends()).replace("_", "[_-]?")
"""A pattern for lowercase text.

The pattern matches the end of every built-in name that identifies a secret.
"""


class SecretNames:
    """The names that identify secrets in one configuration. Instances are immutable and therefore thread-safe.

    Args:
        keys: The configured names, such as ``x-api-key``. A configured name matches the entire name or the part of a
            longer name that follows a dot, as in ``http.request.header.x_api_key``.
        headers: The names of headers that contain tokens. Header names are matched in the same way as *keys*.
    """

    def __init__(self, keys: Iterable[str] = (), headers: Iterable[str] = ()) -> None:
        self._keys = frozenset(filter(None, map(normalize, keys)))
        self._configured = self._keys | frozenset(filter(None, map(normalize, headers)))
        self._ends = tuple("." + name for name in self._configured)
        names = sorted(self._configured, key=len, reverse=True)
        self.pattern: str = "|".join([*(re.escape(name).replace("_", "[_-]") for name in names), BUILT_IN_PATTERN])
        """A pattern for lowercase text.

        The pattern matches the end of every name that identifies a secret.
        """
        self.words: tuple[str, ...] = tuple({max(re.split("[_-]", name), key=len) for name in names})
        """If lowercase text contains none of these words, it does not contain a configured name."""

    def kind_of(self, name: str) -> Kind:
        """Return the kind of a key, a header name, a parameter, or a label."""
        normal = normalize(name)
        if normal.endswith("authorization"):
            return Kind.HEADER
        if normal in self._configured or normal.endswith(self._ends):
            return Kind.CONFIGURED
        if not normal.endswith(_LAST_WORDS):
            return Kind.ORDINARY
        if len(name) > _MAX_LABEL:
            name = name[-_MAX_LABEL:]
        words = normalize(_humps.sub("_", name)).rpartition(".")[2].split("_")
        for start in range(max(0, len(words) - _MAX_WORDS), len(words)):
            kind = _KINDS.get("".join(words[start:]))
            if kind is not None and (kind is not Kind.ALONE or start == 0):
                return kind
        return Kind.ORDINARY

    def masks_numbers(self, name: str) -> bool:
        """Return whether a setting requires a key's value to be masked even if the value is a number."""
        normal = normalize(name)
        return normal in self._keys or any(normal.endswith("." + key) for key in self._keys)


def normalize(name: str) -> str:
    """Return a name in lowercase with hyphens replaced by underscores.

    If a name begins with a brace, only the text in the braces is used. For example, the access log formats of Apache,
    gunicorn, and hypercorn refer to a header as ``{authorization}i``.
    """
    name = name.strip()
    if name[:1] == "{":
        name = name[1:].partition("}")[0]
    return (name.lower() if name.isascii() else "".join(c.lower() if c.isascii() else c for c in name)).replace(
        "-", "_"
    )


BUILT_IN: Final = SecretNames()
