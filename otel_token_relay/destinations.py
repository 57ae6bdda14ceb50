"""Allow-list entries, and functions that parse lists of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from otel_token_relay.origin import OriginPattern

_TEXT_PARAMETERS: Final = ("audience", "scope", "resource")

_is_printable_ascii: Final = re.compile(r"[ -~]+").fullmatch
# RFC 3986, section 2.1: a percent sign must be followed by two hexadecimal digits.
_has_bad_percent: Final = re.compile(r"%(?![0-9A-Fa-f]{2})").search
# Characters that must be encoded in a value, including leading and trailing spaces, which parsing would remove.
_special: Final = re.compile(r"[%,;]|^ +| +$")
_starts_with_scheme: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://").match
_split_scheme: Final = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*://)?)(.*)", re.DOTALL).fullmatch
# If the text after a colon is not a port, it may be the first half of a password that contains a comma.
_hide_half_userinfo: Final = re.compile(r"^([^\[\]/:]*:)(?!(?:[0-9]{1,5}|\*)(?:[;/?#]|$)).*", re.DOTALL).sub


@dataclass(frozen=True, slots=True)
class Destination:
    """One allow-list entry: an origin pattern and how the token is sent there.

    Attributes:
        pattern: The origins that may receive the token.
        required: Whether a call that has neither a token to relay nor its own credential fails with
            `TokenUnavailable` before any byte of the request is sent.
        audience: The audience to request in a token exchange (RFC 8693, section 2.1).
        scope: The scope to request in the exchange.
        resource: The resource to request in the exchange.

    Raises:
        ValueError: A value is empty or not printable ASCII.
    """

    pattern: OriginPattern
    required: bool = False
    audience: str | None = None
    scope: str | None = None
    resource: str | None = None

    def __post_init__(self) -> None:
        for name in _TEXT_PARAMETERS:
            value = getattr(self, name)
            if value is not None and not _is_printable_ascii(value):
                raise ValueError(f"the value of ;{name}= must be printable ASCII, even after percent-decoding")

    @classmethod
    def parse(cls, entry: str) -> Destination:
        """Parse ``ORIGIN[;param[=value]]…`` and percent-decode the values.

        Raises:
            ValueError: The entry is invalid. The message is a single sentence.
        """
        if "," in entry:
            raise ValueError(
                "it contains a comma; write a comma in a value as %2C, start an entry after parameters with its scheme,"
                " such as https://, and in code pass each entry as a separate string"
            )
        origin, *parameters = (part.strip() for part in entry.split(";"))
        pattern = OriginPattern.parse(origin)
        seen: dict[str, str | None] = {}
        for parameter in parameters:
            name, equals, value = (part.strip() for part in parameter.partition("="))
            if name in seen:
                raise ValueError(f"duplicate parameter: {name}")
            if name == "required" and not equals:
                seen[name] = None
            elif name in _TEXT_PARAMETERS and value:
                seen[name] = _decode(name, value)
            elif name in _TEXT_PARAMETERS:
                raise ValueError(f"the parameter {name} requires a value: ;{name}=…")
            else:
                raise ValueError("invalid parameter; expected required, audience=…, scope=… or resource=…")
        return cls(
            pattern,
            required="required" in seen,
            audience=seen.get("audience"),
            scope=seen.get("scope"),
            resource=seen.get("resource"),
        )

    @property
    def needs_exchange(self) -> bool:
        """Whether this destination must receive an exchanged token, never the caller's own."""
        return bool(self.audience or self.scope or self.resource)

    def __str__(self) -> str:
        parts = [str(self.pattern)]
        if self.required:
            parts.append("required")
        values = ((name, getattr(self, name)) for name in _TEXT_PARAMETERS)
        parts += [f"{name}={_encode(value)}" for name, value in values if value is not None]
        return ";".join(parts)


def split_entries(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of entries.

    After parameters, an item without a scheme may be the rest of a value with an unencoded comma. Such
    an item stays in the same entry, which `Destination.parse` then rejects.
    """
    entries: list[str] = []
    follows_parameters = False
    for item in filter(None, map(str.strip, text.split(","))):
        scheme = _starts_with_scheme(item)
        if scheme is None and follows_parameters:
            entries[-1] += f",{item}"
            continue
        entries.append(item)
        # An item with any other scheme is not an entry, so the next item still follows the parameters.
        is_entry = scheme is None or scheme[1].lower() in ("http", "https")
        follows_parameters = ";" in item or (follows_parameters and not is_entry)
    return tuple(entries)


def read_destinations(
    entries: Iterable[str | Destination], report: Callable[[str, str], None], refused: set[OriginPattern] | None = None
) -> tuple[Destination, ...]:
    """Parse the entries, skipping and reporting invalid ones.

    If two entries contradict each other, both are skipped, because it is unclear which one is meant. A skipped
    entry may have been stricter than a wider entry, so the wider one must not apply to the skipped entry's origin.

    Args:
        entries: The entries, as strings or already parsed.
        report: Called with the setting's name and the problem.
        refused: A set to which the origins of skipped entries are added.
    """
    if isinstance(entries, str):
        report("destinations", "expected a sequence of entries, not a single string")
        return ()
    found: dict[object, Destination] = {}
    contradicted = set()
    refused = set() if refused is None else refused
    for entry in entries:
        try:
            destination = Destination.parse(entry) if isinstance(entry, str) else entry
        except ValueError as error:
            report("destinations", f"the entry {_show(entry)} is skipped: {error}")
            refused.update(_origins_of_unreadable(str(entry)))
            continue
        if found.setdefault(destination.pattern, destination) != destination:
            contradicted.add(destination.pattern)
    for pattern in sorted(contradicted, key=str):
        report("destinations", f"two entries for {pattern} contradict each other; both are skipped")
    refused |= contradicted
    return tuple(d for d in found.values() if d.pattern not in refused)


def _encode(value: str) -> str:
    return _special.sub(lambda found: "".join(f"%{ord(character):02X}" for character in found[0]), value)


def _decode(name: str, value: str) -> str:
    if _has_bad_percent(value):
        raise ValueError(
            f"the value of ;{name}= contains a % that is not followed by two hexadecimal digits; write it as %25"
        )
    try:
        return unquote_to_bytes(value).decode("ascii")
    except UnicodeError:
        raise ValueError(f"the value of ;{name}= must be printable ASCII, even after percent-decoding") from None


def _origins_of_unreadable(entry: str) -> Iterator[OriginPattern]:
    """Yield each origin that can be read from an invalid entry with parameters.

    An entry without parameters is never stricter than a wider entry. One entry may contain several
    items; see `split_entries`.
    """
    for item in entry.split(","):
        origin, semicolon, _ = item.partition(";")
        scheme, rest = _split_scheme(origin.strip()).groups()  # type: ignore[union-attr]  # it matches any string
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
        if semicolon:
            with suppress(ValueError):
                yield OriginPattern.parse(scheme + authority)


def _show(entry: object) -> str:
    """Return an entry for use in a message, with anything that may be a password masked."""
    scheme, rest = _split_scheme(str(entry)).groups()  # type: ignore[union-attr]  # it matches any string
    _, at, host = rest.rpartition("@")
    items = (_hide_half_userinfo(r"\1***", item) for item in rest.split(","))
    text = scheme + (f"***@{host}" if at else ",".join(items))
    return ascii(text if len(text) <= 200 else text[:200] + "...")
