"""What the user sets, as one frozen value.

`Settings(...)` raises on the first value that it cannot use: that is for code, where the mistake
is seen at once. `Settings.from_env()` never raises, since an exception there would keep the
application from starting: it leaves out what it cannot read, always to the strict side, and
lists it in `Settings.problems`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, cast

from otel_token_relay import environment_variables as env
from otel_token_relay.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS, PROFILES, Profile
from otel_token_relay.destinations import Destination, _read_destinations, split_entries
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import Origin, OriginPattern
from otel_token_relay.spelling import resembles
from otel_token_relay.token import DEFAULT_MAX_LENGTH

OnConflict = Literal["keep", "replace"]
Verify = Literal["off", "report", "enforce"]

# RFC 9110, section 5.1: a field name is a token.
_is_field_name = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch

# A relayed token under one of these names would break the request or send it elsewhere.
_UNUSABLE_HEADERS: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "cookie",
        "content-type",
        # For the next proxy, which is not the destination: urllib writes the first into a CONNECT.
        "proxy-authorization",
        "proxy-connection",
        "keep-alive",
    }
)
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Variable:
    """How one field is read from the environment, for `from_env` and for the reference page.

    Attributes:
        name: The environment variable.
        read: Turn the text into the field's value; raises `ValueError` with one sentence.
        strict: The value to use where the text cannot be read. It never relays more than the
            user asked for.
        meaning: One line for the reference.
        default: The default as a user would type it; empty for none.
    """

    name: str
    read: Callable[[str], Any]
    strict: Any
    meaning: str
    default: str


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _read_number(text: str) -> float:
    try:
        # float() also takes 1_000 and the digits of other scripts, which nobody means.
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("this must be a number of seconds, such as 30 or 0.5")
    return value


def _read_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("this must be a whole number above 0")
    return int(text)


def _read_flag(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError("this must be true or false")
    return text.lower() in _TRUE


def _setting(
    name: str, meaning: str, *, default: Any, shown: str, read: Callable[[str], Any] = str, strict: Any = None
) -> Any:
    variable = Variable(name, read, default if strict is None else strict, meaning, shown)
    return field(default=default, metadata={"variable": variable})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, checked. Nothing is relayed by default.

    Durations are seconds. Texts among *destinations* are parsed; see `Destination.parse`.

    Raises:
        ConfigurationError: Names the setting, and for a destination the entry.
    """

    destinations: Sequence[Destination | str] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS,
        "Where the token may go: comma-separated entries `ORIGIN[;param[=value]]…`, values percent-encoded. Empty:"
        " nothing is relayed.",
        default=(),
        shown="",
        read=split_entries,
    )
    source_headers: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS,
        "Comma-separated headers to take the token from; the first one that is present decides. Headers other than"
        " `authorization` hold the bare token, with or without `Bearer `.",
        default=("authorization",),
        shown="authorization",
        read=_split,
        strict=(),
    )
    header: str = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_HEADER,
        "The header to write. Into any other than `Authorization` the bare token is written.",
        default="Authorization",
        shown="Authorization",
    )
    on_conflict: OnConflict = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ON_CONFLICT,
        "`keep` the credential that a request already carries, or `replace` it.",
        default="keep",
        shown="keep",
    )
    max_age: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MAX_AGE,
        "Seconds after receipt past which a token without a lease (bare `extract`, no server boundary) is not relayed."
        " A leased one lives as long as its request.",
        default=300.0,
        shown="300",
        read=_read_number,
        strict=0.0,
    )
    linger: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_LINGER,
        "Seconds that the lease outlives the request, for background work.",
        default=0.0,
        shown="0",
        read=_read_number,
    )
    min_ttl: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MIN_TTL,
        "Seconds that a JWT must still have to live (`exp`).",
        default=0.0,
        shown="0",
        read=_read_number,
    )
    max_length: int = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MAX_LENGTH,
        "Characters of a token. A longer one is refused at the door, never cut. A header line that is more than seven"
        " characters longer is refused unread.",
        default=DEFAULT_MAX_LENGTH,
        shown="16384",
        read=_read_count,
    )
    require_verified: bool = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED,
        "Relay only a token that this service has verified in this request.",
        default=False,
        shown="false",
        read=_read_flag,
        strict=True,
    )
    redaction: bool = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REDACTION,
        "Take tokens out of spans, log records and metrics before they are exported.",
        default=True,
        shown="true",
        read=_read_flag,
    )
    redact_keys: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REDACT_KEYS,
        "Comma-separated attribute keys whose value is always masked, in addition to the built-in ones. Case does not"
        " matter, nor whether `-` or `_` is written; `x-api-key` also is `http.request.header.x-api-key`.",
        default=(),
        shown="",
        read=_split,
    )
    verify: Verify = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_VERIFY,
        "Verify the token of each request at the boundary: `enforce` answers 400, 401 or 503 to what is not valid"
        " (gRPC: `UNAUTHENTICATED` or `UNAVAILABLE`), `report` only counts and logs it. Needs `…_ISSUERS`,"
        " `…_AUDIENCE` and the extra `verify`.",
        default="off",
        shown="off",
        strict="enforce",
    )
    issuers: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ISSUERS,
        "Comma-separated issuers that are trusted, exactly as in `iss`.",
        default=(),
        shown="",
        read=_split,
    )
    audience: Sequence[str] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_AUDIENCE,
        "What this service is called in `aud`; several names with commas.",
        default=(),
        shown="",
        read=_split,
    )
    algorithms: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ALGORITHMS,
        "Comma-separated signature algorithms that are accepted; asymmetric ones only.",
        default=DEFAULT_ALGORITHMS,
        shown="RS256,PS256,ES256,EdDSA",
        read=_split,
        strict=(),
    )
    profile: Profile = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_PROFILE,
        "`rfc9068`, or `generic` for issuers whose access tokens are not of type `at+jwt`.",
        default="rfc9068",
        shown="rfc9068",
    )
    verify_exclude: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE,
        "Comma-separated paths that need no token, compared exactly; for gRPC full method names, such as"
        " `/grpc.health.v1.Health/Check`.",
        default=(),
        shown="",
        read=_split,
    )
    span_claims: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_SPAN_CLAIMS,
        "Comma-separated `claim:attribute` pairs, such as `sub:enduser.id`: verified claims that become attributes of"
        " the SERVER span.",
        default=(),
        shown="",
        read=_split,
    )
    problems: tuple[str, ...] = ()
    refused: tuple[OriginPattern, ...] = ()
    """Origins whose entries were skipped and may have been stricter: a wider entry does not reach them."""

    def __post_init__(self) -> None:
        _set(self, "destinations", _read_destinations(self.destinations, _raise))
        if isinstance(self.source_headers, str):
            raise ConfigurationError("source_headers", "this must be a sequence of names, not one text")
        _set(self, "source_headers", tuple(_read_header("source_headers", h).lower() for h in self.source_headers))
        _read_header("header", self.header)
        if self.on_conflict not in ("keep", "replace"):
            raise ConfigurationError("on_conflict", "this must be keep or replace")
        for name in ("max_age", "linger", "min_ttl"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigurationError(name, "this must be a number of seconds, 0 or more")
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 1:
            raise ConfigurationError("max_length", "this must be a whole number above 0")
        _check_verification(self)
        if not isinstance(self.redaction, bool):
            raise ConfigurationError("redaction", "this must be true or false")
        _set(self, "redact_keys", _read_keys(self.redact_keys))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings from environment variables.

        Never raises. A destination that cannot be read is skipped and the others count. Another
        variable that cannot be read takes the strict side; a bad ``…_HEADER`` leaves no
        destination at all, since the token must not go out under a name nobody chose. So does
        ``…_VERIFY`` or ``…_REQUIRE_VERIFIED`` if it is not set and a variable of a similar name is.
        """
        problems: list[str] = []
        refused: set[OriginPattern] = set()
        values: dict[str, Any] = {}

        def skip(setting: str, problem: str) -> None:
            problems.append(f"{setting}: {problem}")

        for name, variable in VARIABLES.items():
            text = environ.get(variable.name, "").strip()
            if not text:
                continue
            try:
                value = variable.read(text)
                if name == "destinations":
                    value = _read_destinations(
                        value, lambda _, problem: skip(env.OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS, problem), refused
                    )
                # The whole check of one field, by the same rules as in code.
                values[name] = getattr(cls(**cast("dict[str, Any]", {name: value})), name)
            except ValueError as error:
                problem = error.problem if isinstance(error, ConfigurationError) else str(error)
                skip(variable.name, problem)
                values[name] = variable.strict
                if name == "header":
                    values["destinations"] = ()
        for name, problem in _misspelled(environ):
            values[name] = VARIABLES[name].strict
            skip(VARIABLES[name].name, problem)
        settings = cls(**values)
        if settings.verify != "off" and not (settings.issuers and settings.audience and settings.algorithms):
            skip(env.OTEL_PYTHON_TOKEN_RELAY_VERIFY, "nothing can be verified without issuers, audience and algorithms")
        return replace(settings, problems=tuple(problems), refused=tuple(sorted(refused, key=str)))

    def with_unread(self, keys: Mapping[str, object]) -> Settings:
        """Return these settings with a problem for each key of OpenTelemetry's configuration file.

        Settings are not read from that file yet. So that no service is open which its operator has told
        to verify, ``verify`` and ``require_verified`` take their strict value unless they are off there.
        """
        problems = [
            f"configuration file: token_relay: {ascii(key)[1:-1][:60]} is not read from there;"
            " set the environment variable"
            for key in keys
        ]
        strict = {
            name: VARIABLES[name].strict
            for name in ("verify", "require_verified")
            if str(keys.get(name) or "off").strip().lower() not in _FALSE
        }
        return replace(self, **strict, problems=(*self.problems, *problems))

    @property
    def entries(self) -> tuple[Destination, ...]:
        """The destinations, parsed."""
        return cast("tuple[Destination, ...]", self.destinations)

    @property
    def header_is_authorization(self) -> bool:
        """Whether the token is written with its scheme (RFC 6750, section 2.1)."""
        return self.header.lower() == "authorization"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Settings that are valid and risky, in words."""
        found = []
        for destination in self.entries:
            pattern = destination.pattern
            if pattern.host == "*":
                found.append(f"the destination {pattern} sends every caller's token to any host")
            elif pattern.scheme == "http" and not pattern.is_loopback:
                found.append(f"the destination {pattern} sends tokens unencrypted; only a mesh sidecar makes that safe")
        return tuple(found)


VARIABLES: Final[Mapping[str, Variable]] = {
    f.name: cast("Variable", f.metadata["variable"]) for f in fields(Settings) if "variable" in f.metadata
}


RELAY_VARIABLES: Final = tuple(
    VARIABLES[name].name
    for name in ("destinations", "header", "on_conflict", "max_age", "linger", "min_ttl", "require_verified")
)
"""The variables that matter only if the relay is on."""

# Ignoring a misspelled one of these would admit or relay more than was asked for, without a word.
_GUARDED: Final = ("verify", "require_verified")
_NAMES: Final = frozenset(variable.name for variable in VARIABLES.values())


def _misspelled(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each guarded field that is not set while a variable of a similar name is, and the problem."""
    missing = {VARIABLES[name].name: name for name in _GUARDED if not environ.get(VARIABLES[name].name, "").strip()}
    for found in environ:
        for meant, name in missing.items():
            if found in _NAMES or not resembles(found, meant):
                continue
            text = environ.get(found, "").strip().lower()
            if text and text not in _FALSE:
                strict = str(VARIABLES[name].strict).lower()
                yield (
                    name,
                    f"not set, but {ascii(found)[1:-1]} is; correct that name, or set this variable. Until then,"
                    f" {strict} applies",
                )


def _set(settings: Settings, name: str, value: object) -> None:
    object.__setattr__(settings, name, value)


def _raise(setting: str, problem: str) -> None:
    raise ConfigurationError(setting, problem)


def _check_verification(settings: Settings) -> None:
    for name, choices in (("verify", ("off", "report", "enforce")), ("profile", PROFILES)):
        if getattr(settings, name) not in choices:
            raise ConfigurationError(name, f"this must be one of {', '.join(choices)}")
    for name, rule, is_good in (
        ("issuers", "an issuer is an https URL without a query, or an http one on loopback", is_issuer),
        ("audience", "a name of this service must not be empty", bool),
        ("algorithms", f"only these can be verified: {', '.join(ALGORITHMS)}", ALGORITHMS.__contains__),
        ("verify_exclude", "a path starts with a /", _is_path),
        ("span_claims", "an entry is claim:attribute, such as sub:enduser.id", _is_pair),
    ):
        values = getattr(settings, name)
        if name == "audience" and isinstance(values, str) and values:
            values = (values,)
        if isinstance(values, str) or not all(isinstance(value, str) and is_good(value) for value in values):
            raise ConfigurationError(name, rule)
        _set(settings, name, tuple(values))


def is_issuer(url: str) -> bool:
    """Whether keys can be asked for there: RFC 8414, section 2, and plain http on loopback only."""
    origin = Origin.parse(url)
    if origin is None or not url.isascii() or "?" in url or "#" in url:
        return False
    return origin.is_secure


def _is_path(text: str) -> bool:
    return text.startswith("/")


def _is_pair(text: str) -> bool:
    claim, colon, attribute = text.partition(":")
    return bool(claim and colon and attribute)


def _read_keys(keys: Iterable[object]) -> tuple[str, ...]:
    if isinstance(keys, str):
        raise ConfigurationError("redact_keys", "this must be a sequence of attribute keys, not one text")
    read = tuple(keys)
    if not all(isinstance(key, str) and key.strip() for key in read):
        raise ConfigurationError("redact_keys", "this must be the keys of attributes")
    return tuple(key.strip().lower() for key in cast("tuple[str, ...]", read))


def _read_header(setting: str, name: object) -> str:
    if not isinstance(name, str) or not _is_field_name(name):
        raise ConfigurationError(setting, "this must be the name of a header")
    if name.lower() in _UNUSABLE_HEADERS:
        raise ConfigurationError(setting, f"the header {name} has a meaning of its own and cannot hold a token")
    return name
