"""Which destinations get the token: the allow-list, and nothing that is not on it.

The lookup is one dictionary access for an exact origin and one for each label of the host
for wildcards, so that it costs the same with one entry and with ten thousand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from otel_token_relay.origin import ANY_HOST, ANY_PORT, Origin, OriginPattern

_TEXT_PARAMETERS = ("audience", "scope", "resource")

# RFC 3986, section 2.1: a percent sign stands before two hexadecimal digits.
_has_bad_percent: Final = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_is_printable_ascii: Final = re.compile(r"[ -~]+").fullmatch
# What a value cannot contain as it is, and blanks at its ends, which reading takes off.
_special: Final = re.compile(r"[%,;]|^ +| +$")

_starts_with_scheme: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://").match
_REMEMBERED_ORIGINS = 4096
# The longest host has 253 characters and a dot (RFC 1035, section 2.3.4), the longest scheme is https.
_MAX_REMEMBERED_LENGTH = 260


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


class RelayPolicy:
    """Look up the destination of an origin. Immutable, and safe to share between threads.

    Where several entries match, the most specific one counts: the exact host before the
    longest wildcard before ``*``, and a named port before any port.
    """

    def __init__(self, destinations: Iterable[Destination], refused: Iterable[OriginPattern] = ()) -> None:
        """Build the lookup.

        Args:
            destinations: The entries.
            refused: What gets nothing, though a wider entry may name it.
        """
        entries = {d.pattern: d for d in destinations}
        self._by_pattern: Mapping[OriginPattern, Destination | None] = {**entries, **dict.fromkeys(refused)}
        self._has_wildcards = any(pattern.host.startswith("*") for pattern in self._by_pattern)
        self.is_empty = not entries
        self.has_required = any(d.required for d in entries.values())
        # A client gives the same three parts at every hop. What it gives comes from outside
        # (redirects), so what is remembered is bounded, in number and in length.
        self._remembered = lru_cache(maxsize=_REMEMBERED_ORIGINS)(self._find)

    def find(self, scheme: str, host: str, port: int | None) -> Destination | None:
        """Give the entry for what a client will connect to; see `Origin.of`."""
        return None if len(scheme) + len(host) > _MAX_REMEMBERED_LENGTH else self._remembered(scheme, host, port)

    def _find(self, scheme: str, host: str, port: int | None) -> Destination | None:
        origin = Origin.of(scheme, host, port)
        return None if origin is None else self.match(origin)

    def match(self, origin: Origin) -> Destination | None:
        """Give the entry that names *origin*, or ``None``."""
        for host in self._host_patterns(origin.host):
            for port in (origin.port, ANY_PORT):
                pattern = OriginPattern(origin.scheme, host, port)
                if pattern in self._by_pattern:
                    return self._by_pattern[pattern]
        return None

    def _host_patterns(self, host: str) -> Iterable[str]:
        yield host
        if not self._has_wildcards:
            return
        is_address = ":" in host or host.rpartition(".")[2].isdigit()
        parent = "" if is_address else host.partition(".")[2]
        while parent:
            yield f"*.{parent}"
            parent = parent.partition(".")[2]
        yield ANY_HOST
