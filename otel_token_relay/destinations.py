"""TODO."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from otel_token_relay.origin import OriginPattern

_TEXT_PARAMETERS = ("audience", "scope", "resource")


# RFC 3986, section 2.1: a percent sign stands before two hexadecimal digits.
_has_bad_percent: Final = re.compile(r"%(?![0-9A-Fa-f]{2})").search


_is_printable_ascii: Final = re.compile(r"[ -~]+").fullmatch


# What a value cannot contain as it is, and blanks at its ends, which reading takes off.
_special: Final = re.compile(r"[%,;]|^ +| +$")


_starts_with_scheme: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://").match


@dataclass(frozen=True, slots=True)
class Destination:
    """One entry of the allow-list: an origin pattern and how the token gets there.

    Attributes:
        pattern: Where the token may go.
        required: The call fails with `TokenUnavailable` before a byte of the request leaves if
            there is no token to relay and the call carries no credential of its own.
        audience: Exchange the token for one with this audience (RFC 8693, section 2.1).
        scope: The scope to ask for in the exchange.
        resource: The resource to ask for in the exchange.

    Raises:
        ValueError: A text is empty or not printable ASCII.
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
                raise ValueError(f"the value of ;{name}= must be printable ASCII, also after percent-decoding")

    @classmethod
    def parse(cls, entry: str) -> Destination:
        """Read ``ORIGIN[;param[=value]]…``. A value is percent-decoded.

        Raises:
            ValueError: With one sentence that says what is wrong.
        """
        if "," in entry:
            raise ValueError(
                "it contains a comma; percent-encode a comma in a value as %2C, begin an entry that follows parameters"
                " with its scheme, such as https://, and in code make each entry a text of its own"
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
                raise ValueError(f"the parameter {name} needs a value: ;{name}=…")
            else:
                raise ValueError("a parameter is one of required, audience=…, scope=…, resource=…")
        return cls(
            pattern,
            required="required" in seen,
            audience=seen.get("audience"),
            scope=seen.get("scope"),
            resource=seen.get("resource"),
        )

    @property
    def needs_exchange(self) -> bool:
        """Whether the caller's own token must not be sent here, only one made from it."""
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

    After parameters, an item without a scheme may be the rest of a value in which a comma was not
    encoded, so it is no destination. It is left in the same entry, which `Destination.parse` then refuses.
    """
    entries: list[str] = []
    follows_parameters = False
    for item in filter(None, map(str.strip, text.split(","))):
        scheme = _starts_with_scheme(item)
        if scheme is None and follows_parameters:
            entries[-1] += f",{item}"
            continue
        entries.append(item)
        # What has a scheme of another kind is no entry, so what comes next still follows the parameters.
        is_entry = scheme is None or scheme[1].lower() in ("http", "https")
        follows_parameters = ";" in item or (follows_parameters and not is_entry)
    return tuple(entries)


def _encode(value: str) -> str:
    return _special.sub(lambda found: "".join(f"%{ord(character):02X}" for character in found[0]), value)


def _decode(name: str, value: str) -> str:
    if _has_bad_percent(value):
        raise ValueError(
            f"the value of ;{name}= contains a % that is not followed by two hexadecimal digits; write %25"
        )
    try:
        return unquote_to_bytes(value).decode("ascii")
    except UnicodeError:
        raise ValueError(f"the value of ;{name}= must be printable ASCII, also after percent-decoding") from None


def _read_destinations(
    entries: Iterable[str | Destination], report: Callable[[str, str], None], refused: set[OriginPattern] | None = None
) -> tuple[Destination, ...]:
    """Parse what is text, and report what is wrong. Entries that contradict each other all go.

    Which of two contradicting entries is meant cannot be known, and one of them may be the
    stricter, as may one whose parameters cannot be read; so that origin gets nothing, not by a
    wider entry either, and is put into *refused*.
    """
    if isinstance(entries, str):
        report("destinations", "this must be a sequence of entries, not one text")
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


def _origins_of_unreadable(entry: str) -> Iterator[OriginPattern]:
    """Yield what an entry that cannot be used is for, as far as it can be told, if it has parameters.

    One without parameters asked for nothing stricter than what a wider entry gives. Several items
    may be left in one entry; see `split_entries`.
    """
    for item in entry.split(","):
        origin, semicolon, _ = item.partition(";")
        scheme, rest = _split_scheme(origin.strip()).groups()  # type: ignore[union-attr]  # it matches any text
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
        if semicolon:
            with suppress(ValueError):
                yield OriginPattern.parse(scheme + authority)


_split_scheme: Final = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*://)?)(.*)", re.DOTALL).fullmatch


# What stands behind a colon and is no port may be a password that its comma has cut in two.
_hide_half_userinfo: Final = re.compile(r"^([^\[\]/:]*:)(?!(?:[0-9]{1,5}|\*)(?:[;/?#]|$)).*", re.DOTALL).sub


def _show(entry: object) -> str:
    """Quote an entry for a message, without what may be a password in it."""
    scheme, rest = _split_scheme(str(entry)).groups()  # type: ignore[union-attr]  # it matches any text
    _, at, host = rest.rpartition("@")
    items = (_hide_half_userinfo(r"\1***", item) for item in rest.split(","))
    text = scheme + (f"***@{host}" if at else ",".join(items))
    return ascii(text if len(text) <= 200 else text[:200] + "...")
