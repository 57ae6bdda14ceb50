"""The settings, in one frozen dataclass.

`Settings(...)` raises at the first invalid value. `Settings.from_env()` never raises, because an exception
there would keep the application from starting. It replaces an invalid value with the variable's strict value
and adds the problem to `Settings.problems`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, cast

from otel_token_relay import environment_variables as env
from otel_token_relay.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS, PROFILES, Profile
from otel_token_relay.destinations import Destination, read_destinations, split_entries
from otel_token_relay.durations import check_seconds
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import OriginPattern, is_trustworthy
from otel_token_relay.spelling import resembles
from otel_token_relay.token import DEFAULT_MAX_LENGTH

OnConflict = Literal["keep", "replace"]
Verify = Literal["off", "report", "enforce"]

# RFC 9110, section 5.1: a field name has the syntax that the RFC calls `token`.
_is_field_name = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch

# A bearer token in one of these headers would break the request or make it go elsewhere.
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
        # These are for the next proxy, not the destination: urllib sends proxy-authorization in a CONNECT request.
        "proxy-authorization",
        "proxy-connection",
        "keep-alive",
    }
)
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Variable:
    """How `from_env` reads one field from the environment, and how the reference page describes it.

    Attributes:
        name: The environment variable.
        read: Converts the string to the field's value; raises `ValueError` with a one-sentence message.
        strict: The value that replaces an invalid one. It never causes more to be relayed than intended.
        meaning: The description on the reference page, in Markdown.
        default: The default as a user would type it; empty if there is none.
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
        # float() also accepts 1_000 and digits from other scripts.
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("expected a number of seconds, such as 30 or 0.5")
    return value


def _read_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("expected a whole number above 0")
    return int(text)


def _read_flag(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError("expected true or false")
    return text.lower() in _TRUE


def _setting(
    name: str, meaning: str, *, default: Any, shown: str, read: Callable[[str], Any] = str, strict: Any = None
) -> Any:
    variable = Variable(name, read, default if strict is None else strict, meaning, shown)
    return field(default=default, metadata={"variable": variable})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, after validation. By default, no token is relayed.

    Durations are in seconds. Strings in *destinations* are parsed with `Destination.parse`.

    Raises:
        ConfigurationError: A value is invalid. The error names the setting and, for a destination, the entry.
    """

    destinations: Sequence[Destination | str] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS,
        "The destinations that may receive the token: comma-separated entries `ORIGIN[;param[=value]]…` with"
        " percent-encoded values. If the list is empty, no token is relayed.",
        default=(),
        shown="",
        read=split_entries,
    )
    source_headers: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS,
        "Comma-separated headers that may contain the incoming token; only the first one present is read. In"
        " headers other than `authorization`, the prefix `Bearer ` is optional.",
        default=("authorization",),
        shown="authorization",
        read=_split,
        strict=(),
    )
    header: str = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_HEADER,
        "The header in which the token is sent. Any header except `Authorization` contains it without `Bearer `.",
        default="Authorization",
        shown="Authorization",
    )
    on_conflict: OnConflict = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ON_CONFLICT,
        "Whether to `keep` or `replace` a credential that the outgoing request already has.",
        default="keep",
        shown="keep",
    )
    max_age: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MAX_AGE,
        "The number of seconds after receipt for which a token without a lease is relayed. Such a token comes from"
        " `extract` without a server boundary. A token with a lease is relayed until its request ends.",
        default=300.0,
        shown="300",
        read=_read_number,
        strict=0.0,
    )
    linger: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_LINGER,
        "The number of seconds for which the lease stays open for background work after the request has ended.",
        default=0.0,
        shown="0",
        read=_read_number,
    )
    min_ttl: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MIN_TTL,
        "The number of seconds for which a JWT must still be valid (according to `exp`) to be relayed.",
        default=0.0,
        shown="0",
        read=_read_number,
    )
    max_length: int = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MAX_LENGTH,
        "The maximum length of an incoming token, in characters. A longer token is rejected, never truncated. A header"
        " line that exceeds the maximum by more than seven characters is rejected without being read.",
        default=DEFAULT_MAX_LENGTH,
        shown="16384",
        read=_read_count,
    )
    require_verified: bool = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED,
        "Whether to relay a token only if this service has verified it during the current request.",
        default=False,
        shown="false",
        read=_read_flag,
        strict=True,
    )
    redaction: bool = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REDACTION,
        "Whether to mask tokens in spans, log records and metrics before these are exported.",
        default=True,
        shown="true",
        read=_read_flag,
    )
    redact_keys: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REDACT_KEYS,
        "Comma-separated attribute keys whose values are always masked, in addition to the built-in keys. Case is"
        " ignored, and `-` and `_` are equivalent; `x-api-key` also matches `http.request.header.x-api-key`.",
        default=(),
        shown="",
        read=_split,
    )
    verify: Verify = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_VERIFY,
        "Whether the server boundary verifies each request's token. `enforce` rejects a request without a valid token,"
        " with the status 400, 401 or 503 (gRPC: `UNAUTHENTICATED` or `UNAVAILABLE`); `report` only counts and logs"
        " such a request. Both require `…_ISSUERS`, `…_AUDIENCE` and the extra `verify`.",
        default="off",
        shown="off",
        strict="enforce",
    )
    issuers: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ISSUERS,
        "Comma-separated trusted issuers, exactly as they appear in the `iss` claim.",
        default=(),
        shown="",
        read=_split,
    )
    audience: Sequence[str] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_AUDIENCE,
        "Comma-separated names of this service. The `aud` claim must contain at least one of them.",
        default=(),
        shown="",
        read=_split,
    )
    algorithms: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ALGORITHMS,
        "The accepted signature algorithms, comma-separated. Only asymmetric algorithms are supported.",
        default=DEFAULT_ALGORITHMS,
        shown="RS256,PS256,ES256,EdDSA",
        read=_split,
        strict=(),
    )
    profile: Profile = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_PROFILE,
        "The rules for access tokens: `rfc9068`, or `generic` for issuers whose tokens are not of type `at+jwt`.",
        default="rfc9068",
        shown="rfc9068",
    )
    verify_exclude: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE,
        "Comma-separated paths that require no token. A request's path must match exactly. For gRPC, list full method"
        " names, such as `/grpc.health.v1.Health/Check`.",
        default=(),
        shown="",
        read=_split,
    )
    span_claims: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_SPAN_CLAIMS,
        "Comma-separated `claim:attribute` pairs, such as `sub:enduser.id`. Each verified claim is written to that"
        " attribute of the SERVER span.",
        default=(),
        shown="",
        read=_split,
    )
    problems: tuple[str, ...] = ()
    """One sentence for each value that could not be read. Set by `from_env` and `with_unread`; do not pass it."""
    refused: tuple[OriginPattern, ...] = ()
    """The origins of skipped entries. Set by `from_env`; do not pass it.

    A skipped entry may have been stricter than a wider one that also matches its origin, so the wider entry does
    not apply to that origin.
    """

    def __post_init__(self) -> None:
        _set(self, "destinations", read_destinations(self.destinations, _raise))
        if isinstance(self.source_headers, str):
            raise ConfigurationError("source_headers", "expected a sequence of header names, not a single string")
        _set(self, "source_headers", tuple(_read_header("source_headers", h).lower() for h in self.source_headers))
        _read_header("header", self.header)
        if self.on_conflict not in ("keep", "replace"):
            raise ConfigurationError("on_conflict", "expected keep or replace")
        for name in ("max_age", "linger", "min_ttl"):
            check_seconds(name, getattr(self, name))
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 1:
            raise ConfigurationError("max_length", "expected a whole number above 0")
        _check_choices_and_lists(self)
        if not isinstance(self.redaction, bool):
            raise ConfigurationError("redaction", "expected true or false")
        _set(self, "redact_keys", tuple(key.strip().lower() for key in self.redact_keys))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings from environment variables.

        This never raises. Invalid destinations are skipped, and the valid ones are kept. Any other invalid
        variable takes its strict value. So does ``…_VERIFY`` or ``…_REQUIRE_VERIFIED`` if it is unset but a
        variable with a similar name is set. An invalid ``…_HEADER`` removes all destinations, because the
        token must not be sent in a header that was not configured.
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
                    value = read_destinations(
                        value, lambda _, problem: skip(env.OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS, problem), refused
                    )
                # Validate the value by the same rules as a value passed in code.
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
            skip(env.OTEL_PYTHON_TOKEN_RELAY_VERIFY, "verification requires issuers, audience and algorithms")
        return replace(settings, problems=tuple(problems), refused=tuple(sorted(refused, key=str)))

    def with_unread(self, keys: Mapping[str, object]) -> Settings:
        """Return these settings with one more problem for each key found in OpenTelemetry's configuration file.

        Settings are not read from that file yet. If it turns on ``verify`` or ``require_verified``, that field takes
        its strict value: a service that is configured to verify tokens must not accept unverified requests.
        """
        problems = [
            f"configuration file: token_relay: {ascii(key)[1:-1][:60]} is not supported in that file;"
            " set the environment variable instead"
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
        """The parsed destinations."""
        return cast("tuple[Destination, ...]", self.destinations)

    @property
    def header_is_authorization(self) -> bool:
        """Whether the token is sent with the scheme ``Bearer`` (RFC 6750, section 2.1)."""
        return self.header.lower() == "authorization"

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each setting that is valid but risky."""
        found = []
        for destination in self.entries:
            pattern = destination.pattern
            if destination.never:
                continue
            if pattern.host == "*":
                found.append(f"the destination {pattern} sends every caller's token to any host")
            elif pattern.scheme == "http" and not pattern.is_loopback:
                found.append(
                    f"the destination {pattern} sends tokens unencrypted; this is safe only behind a mesh sidecar"
                )
        return tuple(found)


VARIABLES: Final[Mapping[str, Variable]] = {
    f.name: cast("Variable", f.metadata["variable"]) for f in fields(Settings) if "variable" in f.metadata
}

RELAY_VARIABLES: Final = tuple(
    VARIABLES[name].name
    for name in ("destinations", "header", "on_conflict", "max_age", "linger", "min_ttl", "require_verified")
)
"""The variables that have an effect only if the relay is on."""


def is_issuer(url: str) -> bool:
    """Return whether keys may be fetched from the issuer *url* (RFC 8414, section 2). Allow http only on loopback."""
    return is_trustworthy(url) and "?" not in url


# Ignoring a misspelled name for one of these would accept or relay more than intended.
_GUARDED: Final = ("verify", "require_verified")
_NAMES: Final = frozenset(variable.name for variable in VARIABLES.values())


def _misspelled(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the problem of each guarded field that is unset while a similarly named variable is set."""
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
                    f"not set, but {ascii(found)[1:-1]} is; correct that name or set this variable. Until then,"
                    f" {strict} applies",
                )


def _set(settings: Settings, name: str, value: object) -> None:
    object.__setattr__(settings, name, value)


def _raise(setting: str, problem: str) -> None:
    raise ConfigurationError(setting, problem)


def _check_choices_and_lists(settings: Settings) -> None:
    for name, choices in (("verify", ("off", "report", "enforce")), ("profile", PROFILES)):
        if getattr(settings, name) not in choices:
            raise ConfigurationError(name, f"expected one of {', '.join(choices)}")
    for name, rule, is_good in (
        ("issuers", "expected https URLs without a query or fragment; http is allowed on loopback only", is_issuer),
        ("audience", "expected names of this service, none of them empty", bool),
        ("algorithms", f"expected one or more of {', '.join(ALGORITHMS)}", ALGORITHMS.__contains__),
        ("verify_exclude", "expected paths that start with /", _is_path),
        ("redact_keys", "expected a sequence of non-empty attribute keys", str.strip),
        ("span_claims", "expected claim:attribute pairs, such as sub:enduser.id", _is_pair),
    ):
        values = getattr(settings, name)
        if name == "audience" and isinstance(values, str) and values:
            values = (values,)
        read = () if isinstance(values, str) else tuple(values)  # a generator can be read only once
        if isinstance(values, str) or not all(isinstance(value, str) and is_good(value) for value in read):
            raise ConfigurationError(name, rule)
        _set(settings, name, read)


def _is_path(text: str) -> bool:
    return text.startswith("/")


def _is_pair(text: str) -> bool:
    claim, colon, attribute = text.partition(":")
    return bool(claim and colon and attribute)


def _read_header(setting: str, name: object) -> str:
    if not isinstance(name, str) or not _is_field_name(name):
        raise ConfigurationError(setting, "expected a header name")
    if name.lower() in _UNUSABLE_HEADERS:
        raise ConfigurationError(setting, f"the header {name} is reserved and cannot contain a token")
    return name
