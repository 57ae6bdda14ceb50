"""Define allow-list entries, and parse lists of entries."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from types import ModuleType
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from otel_token_relay.entry_syntax import (
    CONTAINS_COMMA,
    FLAGS,
    GRANTS,
    RETRIES,
    TEXT_PARAMETERS,
    Grant,
    Retry,
    field_of,
    is_parameter,
)
from otel_token_relay.origin import OriginPattern

_MAX_SHOWN: Final = 200
_IS_PART: Final = "it contains all or part of a user name or password; expected scheme://host[:port]"

_is_printable_ascii: Final = re.compile(r"[ -~]+").fullmatch
# RFC 3986, section 2.1: a percent sign must be followed by two hexadecimal digits.
_has_bad_percent: Final = re.compile(r"%(?![0-9A-Fa-f]{2})").search
# Characters that must be encoded in a value, including leading and trailing spaces, which the parser would otherwise
# strip.
_special: Final = re.compile(r"[%,;]|^ +| +$")
# Matches a JWT, because an operator might set the variable to a token by mistake.
_jwt: Final = re.compile(r"eyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9_.-]*")
_starts_with_scheme: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://").match
_starts_with_web_scheme: Final = re.compile(r"https?://", re.IGNORECASE).match


@dataclass(frozen=True, slots=True)
class Destination:
    """An allow-list entry, which consists of an origin pattern and parameters.

    Attributes:
        pattern: The origins that can receive the token.
        required: Whether a request that has no token and no credential of its own fails with `TokenUnavailable` before
            any data is sent.
        audience: The audience to request in a token exchange (RFC 8693, section 2.1).
        scope: A space-separated list of scopes to request in the exchange.
        resource: The resource to request in the exchange.
        expect: A space-separated list of audiences to accept in the exchanged token, in addition to the requested
            audience and resource.
        grant: The grant type for the exchange; ``None`` to use the ``exchange_grant`` setting.
        without_user: ``client`` to send the service's own token when no request is being served.
        retry: ``idempotent`` to retry a request once if its method is idempotent and its token is rejected.
        never: Whether to withhold the token, even if a broader entry matches. The *never* flag cannot be combined with
            other parameters.

    Raises:
        ValueError: A value is empty, contains characters other than printable ASCII, or is not one of the allowed
            values; *never* is combined with another parameter; or a required exchange parameter is missing.
    """

    pattern: OriginPattern
    required: bool = False
    audience: str | None = None
    scope: str | None = None
    resource: str | None = None
    never: bool = False
    expect: str | None = None
    grant: Grant | None = None
    without_user: Literal["client"] | None = None
    retry: Retry | None = None

    def __post_init__(self) -> None:
        given = [name for name in TEXT_PARAMETERS if getattr(self, field_of(name)) is not None]
        for name in given:
            if not _is_printable_ascii(getattr(self, field_of(name))):
                raise ValueError(f"the value of ;{name}= must be printable ASCII, even after percent-decoding")
        if self.never and (self.required or given):
            raise ValueError(";never cannot be combined with other parameters; remove them or ;never")
        for name, choices in (("grant", GRANTS), ("without-user", ("client",)), ("retry", RETRIES)):
            if getattr(self, field_of(name)) not in (None, *choices):
                raise ValueError(f"the value of ;{name}= must be {' or '.join(choices)}")
        if given and not self.needs_exchange:
            raise ValueError(f";{given[0]}= requires an exchange: add ;audience=, ;scope=, or ;resource=")
        if self.expect is not None and self.audience is None and self.resource is None:
            raise ValueError(";expect= requires ;audience= or ;resource=")

    @classmethod
    def parse(cls, entry: str) -> Destination:
        """Parse ``ORIGIN[;param[=value]]…`` and percent-decode the values.

        Raises:
            ValueError: The entry is invalid. The message explains the problem in one sentence, suggests a correction
                if possible, and does not contain user info.
        """
        try:
            return cls._parse(entry)
        except ValueError as error:
            message = _mistakes().describe(entry, str(error), _are_valid)
            raise ValueError(_jwt.sub("***", message)) from None

    @classmethod
    def _parse(cls, entry: str) -> Destination:
        if _jwt.search(entry):
            raise ValueError("it contains a token")  # otherwise, log messages would contain the token
        if not entry.strip():
            raise ValueError("it is empty; if the entry refers to a variable, the variable might not be set")
        if "," in entry:
            raise ValueError(CONTAINS_COMMA)
        origin, *parameters = (part.strip() for part in entry.split(";"))
        pattern = OriginPattern.parse(origin)
        seen: dict[str, str | None] = {}
        for parameter in parameters:
            name, equals, value = (part.strip() for part in parameter.partition("="))
            if name in seen:
                raise ValueError(f"duplicate parameter: {name}")
            if name in FLAGS and not equals:
                seen[name] = None
            elif name in TEXT_PARAMETERS and value:
                seen[name] = _decode(name, value)
            elif name in TEXT_PARAMETERS:
                raise ValueError(f"the parameter {name} requires a value: ;{name}=...")
            else:
                raise ValueError("invalid parameter")
        return cls(
            pattern,
            required="required" in seen,
            never="never" in seen,
            **{field_of(name): value for name, value in seen.items() if name in TEXT_PARAMETERS},  # type: ignore[arg-type]
        )

    @property
    def needs_exchange(self) -> bool:
        """Whether this destination must receive an exchanged token instead of the caller's token."""
        # This property is read for each hop that relays a token, so the conditions are unrolled for speed. Empty values
        # have already been rejected, so comparing with None is sufficient.
        return self.audience is not None or self.scope is not None or self.resource is not None

    @property
    def expected(self) -> tuple[str, ...]:
        """The audiences to accept in the exchanged token, in addition to the requested audience and resource."""
        return () if self.expect is None else tuple(self.expect.split())

    def __str__(self) -> str:
        parts = [str(self.pattern)]
        parts += [name for name in FLAGS if getattr(self, name)]
        values = ((name, getattr(self, field_of(name))) for name in TEXT_PARAMETERS)
        parts += [f"{name}={_encode(value)}" for name, value in values if value is not None]
        return ";".join(parts)


def split_entries(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of entries.

    An item that follows an entry's parameters but has no scheme might be the rest of a value that contains an unencoded
    comma. Such an item is kept in the same entry, which `Destination.parse` rejects. A parameter that follows a comma
    instead of a semicolon is also kept in the same entry, because the entry must not apply without that parameter.
    """
    entries: list[str] = []
    follows_parameters = False
    for item in filter(None, map(str.strip, text.split(","))):
        scheme = _starts_with_scheme(item)
        if scheme is None and (follows_parameters or (entries and is_parameter(item))):
            entries[-1] += f",{item}"
            follows_parameters = True
            continue
        entries.append(item)
        # An item with a scheme other than http or https is not an entry, so the next item might still be part of the
        # parameters.
        is_entry = scheme is None or scheme[1].lower() in ("http", "https")
        follows_parameters = ";" in item or (follows_parameters and not is_entry)
    return tuple(entries)


def read_destinations(
    entries: Iterable[str | Destination], report: Callable[[str, str], None], refused: set[OriginPattern] | None = None
) -> tuple[Destination, ...]:
    """Parse the entries, reporting and skipping any that are invalid.

    If two entries contradict each other, both are skipped, because it is unclear which one is intended. A broader entry
    must not apply to a skipped entry's origin, because the skipped entry might have been stricter.

    Args:
        entries: The entries, as strings or `Destination` objects.
        report: A function to call with the setting's name and a description of the problem.
        refused: A set to which the origins of skipped entries are added.
    """
    if isinstance(entries, str):
        report("destinations", "expected a sequence of entries, not a single string")
        return ()
    given = tuple(entries)
    found: dict[OriginPattern, Destination] = {}
    contradicted: set[OriginPattern] = set()
    skipped: set[OriginPattern] = set()
    plain: set[OriginPattern] = set()
    hides_origin = False
    for position, entry in enumerate(given):
        try:
            destination = Destination.parse(entry) if isinstance(entry, str) else entry
        except ValueError as error:
            report("destinations", _skip(str(entry), str(error), given, position))
            may_be_stricter = _mistakes().may_have_parameters(str(entry))
            (skipped if may_be_stricter else plain).update(_mistakes().origins_of(str(entry)))
            hides_origin = hides_origin or (may_be_stricter and _mistakes().is_illegible(str(entry)))
            continue
        if found.setdefault(destination.pattern, destination) != destination:
            contradicted.add(destination.pattern)
    for pattern in sorted(contradicted, key=str):
        report("destinations", f"two entries for {pattern} contradict each other; both entries are skipped")
    if hides_origin and (wide := [d for d in found.values() if d.pattern.host.startswith("*")]):
        # The skipped entry's intended origins are unknown, so wildcard entries must not apply.
        report("destinations", f"{', '.join(map(str, wide))}: skipped until the entry above is corrected")
        skipped.update(d.pattern for d in wide)
    listed = tuple(d for d in found.values() if d.pattern not in contradicted | skipped)
    if refused is not None:
        # A skipped entry without parameters is not stricter than a valid entry for the same origin.
        refused |= contradicted | skipped | (plain - {d.pattern for d in listed})
    return listed


def _mistakes() -> ModuleType:
    """Import `entry_mistakes` only when necessary, because its regular expressions take 20 ms to compile."""
    return importlib.import_module("otel_token_relay.entry_mistakes")


def _encode(value: str) -> str:
    return _special.sub(lambda found: "".join(f"%{ord(character):02X}" for character in found[0]), value)


def _decode(name: str, value: str) -> str:
    if _has_bad_percent(value):
        raise ValueError(
            f"the value of ;{name}= contains a % that is not followed by two hexadecimal digits; write % as %25"
        )
    try:
        return unquote_to_bytes(value).decode("ascii")
    except UnicodeError:
        raise ValueError(f"the value of ;{name}= must be printable ASCII, even after percent-decoding") from None


def _skip(entry: str, problem: str, given: Sequence[object], position: int) -> str:
    """Return a message about a skipped entry, with user info masked."""
    hide_user_info = _mistakes().hide_user_info
    shown = hide_user_info(entry)
    if _contains_user_info_of(given[position + 1 :]):
        # The user info contains a comma, so it starts in this entry or an earlier one, and ends in a later one.
        is_start = position == 0 or _starts_with_web_scheme(entry)
        hidden = hide_user_info(entry, is_open=True) if is_start else "***"
        if hidden != shown:
            shown = hidden
            problem = _IS_PART
    elif position and "@" in shown and not _starts_with_web_scheme(entry):
        # The user info ends in this entry, so text that looks like a scheme might be part of it.
        shown = f"***@{shown.rpartition('***@')[2]}"
        problem = _IS_PART
    shown = _jwt.sub("***", shown)
    shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
    return f"the entry {shown!a} is skipped: {problem}"


def _contains_user_info_of(later: Sequence[object]) -> bool:
    """Return whether user info ends in a *later* entry, before the next entry that starts with a scheme."""
    return any("@" in entry for entry in takewhile(lambda entry: not _starts_with_web_scheme(entry), map(str, later)))


def _are_valid(text: str) -> bool:
    """Return whether *text* is a non-empty list of valid entries."""
    try:
        return all(Destination._parse(entry) for entry in split_entries(text)) and bool(text)
    except ValueError:
        return False
