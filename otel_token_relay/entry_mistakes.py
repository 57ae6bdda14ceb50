"""Explain what is wrong with an invalid allow-list entry, and suggest a correction.

An invalid entry is always skipped. The suggested correction appears only in messages. Broader entries do not apply to
the invalid entry's origins, because the operator might have intended a stricter entry.

User info is removed first so that it does not appear in messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from otel_token_relay.entry_syntax import CONTAINS_COMMA, FLAGS, PARAMETERS, TEXT_PARAMETERS, is_parameter
from otel_token_relay.origin import DEFAULT_PORTS, OriginPattern, address_of
from otel_token_relay.spelling import resembles

_EXPECTED: Final = "expected ;required, ;audience=..., ;scope=..., ;resource=..., or ;never"
# Alternative names for the parameters. The spelling check does not recognize most of these names, because they differ
# too much from the parameters' names.
_SYNONYMS: Final = {
    "aud": "audience",
    "scp": "scope",
    "deny": "never",
    "block": "never",
    "exclude": "never",
    "without_user": "without-user",
}

_MAX_SHOWN: Final = 200
_MAX_QUOTED: Final = 60

# Characters that can surround an origin in shell commands, YAML, JSON, Markdown, and regular expressions.
_WRAPPING: Final = "\"'`<>(){}^$\u2018\u2019\u201c\u201d\u00ab\u00bb\ufeff\u200b"
_VARIABLE: Final = re.compile(r"\$\{[^{}]*\}|\$\([^()]*\)|\$[A-Za-z_][A-Za-z0-9_]*|\{\{[^{}]*\}\}")

_split_scheme: Final = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*://)?)(.*)", re.DOTALL).fullmatch
# Matches the start of the next origin, which is a scheme that is not part of a longer word or a value.
_next_origin: Final = re.compile(r"(?<![A-Za-z0-9+.=/:%_-])[A-Za-z][A-Za-z0-9+.-]*:/{1,3}(?=[^/])")
_known_scheme: Final = re.compile(r"(https?)(?::/*|//)(.*)", re.DOTALL | re.IGNORECASE).fullmatch
_any_scheme: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/*(.*)", re.DOTALL).fullmatch
_has_value: Final = re.compile(rf"\s*(?:{'|'.join(TEXT_PARAMETERS)})\s*=").match
_in_value: Final = re.compile(rf";\s*(?:{'|'.join(TEXT_PARAMETERS)})\s*=[^;]*").search
_variable_name: Final = re.compile(r"([A-Za-z_]+\s*=\s*)[\"'A-Za-z]+[./:\w]*").match
_looks_like_regex: Final = re.compile(r"\\\.|(?:^|//)\.[*+]|\(\?").search
_read_authority: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", re.DOTALL).fullmatch
_is_port: Final = re.compile(r"\*|[0-9]{1,5}", re.ASCII).fullmatch
_leading_scheme: Final = re.compile(r"^\W*[A-Za-z][A-Za-z0-9+.:-]*:/+").sub
_value: Final = re.compile(r"=[^;]*")
_looks_like_host: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9_]))*").findall
# Matches text that hides the actual host, such as a variable, an encoded character, an inner wildcard, or an address
# range.
_cannot_be_read: Final = re.compile(r"[${}%\\]|\*.*\*|[A-Za-z0-9]\*|\.\*|[0-9]/[0-9]").search
_is_range: Final = re.compile(r"[0-9.]+|\[[0-9A-Fa-f:.]+\]").fullmatch
_bad_in_host: Final = re.compile(r"[^A-Za-z0-9._*\-\[\]:\u0080-\U0010ffff]").findall
# If user info contains a comma, the text after the first delimiter might be part of the password.
_hide_open: Final = re.compile(r"([^:/?#;]*[:/?#;])(?!(?:[0-9]{1,5}|\*)$).*", re.DOTALL).fullmatch

_BLANKS: Final = {"\n": "line break", "\r": "line break", "\t": "tab"}

# gRPC's own schemes, and the schemes that other programs use in gRPC URLs.
_GRPC: Final = frozenset({"grpc", "grpcs", "dns", "ipv4", "ipv6", "passthrough"})
_UNREACHABLE: Final = frozenset({"unix", "unix-abstract", "vsock", "xds", "xdstp", "google-c2p"})
_BOTH: Final = ("https", "http")
_MEANT: Final = {"ws": ("http",), "wss": ("https",), "grpcs": ("https",)}


def hide_user_info(entry: str, *, is_open: bool = False) -> str:
    """Return *entry* with its user info masked.

    Args:
        entry: All or part of an entry.
        is_open: Whether user info that contains a comma might start in this entry and end in a later entry.
    """
    scheme, rest = _scheme_and_rest(entry)
    end = _end_of_user_info(entry) - len(scheme)
    if end > 0:
        return f"{scheme}***" if is_open else f"{scheme}***@{rest[end:]}"
    if is_open and (hidden := _hide_open(rest)):
        rest = f"{hidden[1]}***"
    return scheme + rest


def describe(entry: str, problem: str, is_valid: Callable[[str], bool]) -> str:
    """Return a sentence that explains why an entry is invalid and, if possible, suggests a correction.

    The sentence does not contain user info.

    Args:
        entry: The entry.
        problem: The parser's error message, which must not contain user info. This message is returned if no specific
            problem is found.
        is_valid: A function that returns whether a string is a valid list of entries. Only valid corrections are
            suggested.
    """
    repair = _Repair(entry)
    if not repair.problems:
        return problem
    message = "; ".join(repair.problems)
    proposals = [
        text
        for text in repair.proposals()
        if len(text) <= _MAX_SHOWN and is_valid(text) and not _lacks_parameter(text, entry)
    ]
    if not proposals:
        return message
    shown = " or ".join(proposals)
    return f"{message}; did you mean {shown}?" if repair.is_guess else f"{message}; write {shown}"


def _lacks_parameter(proposal: str, entry: str) -> bool:
    """Return whether the entry contains a flag that the proposed correction omits."""
    return any(re.search(rf";\s*{name}\b", entry, re.IGNORECASE) and f";{name}" not in proposal for name in FLAGS)


def origins_of(entry: str) -> Iterator[OriginPattern]:
    """Yield all origins that the author of an invalid entry might have intended."""
    strings = [text for item in _Repair(entry).items for text in (*item.origins, *item.also_refused)]
    legible = [found for found in map(OriginPattern.find, strings) if found is not None]
    yield from legible
    if may_have_parameters(entry):
        # Any other host in the entry might be the intended one, even if it precedes an @, because text that looks like
        # user info might be a separate entry.
        known = {found.host for found in legible}
        hosts = dict.fromkeys([*_hosts(hide_user_info(entry)), *_hosts(entry)])
        others = [f"{scheme}://{host}:*" for host in hosts for scheme in _BOTH]
        yield from (found for found in map(OriginPattern.find, others) if found is not None and found.host not in known)


def is_illegible(entry: str) -> bool:
    """Return whether the host in an invalid entry cannot be determined. Any wildcard might match such a host."""
    origin = _leading_scheme("", entry.partition(";")[0])
    return _cannot_be_read(origin) is not None or not any(map(OriginPattern.find, _hosts(hide_user_info(entry))))


def _hosts(entry: str) -> list[str]:
    """Return all words in an entry that look like hosts, except those in parameter values."""
    text = _leading_scheme("", _value.sub("", entry))
    return [name for name in _looks_like_host(text) if name not in PARAMETERS]


def may_have_parameters(entry: str) -> bool:
    """Return whether an invalid entry might be stricter than an entry without parameters."""
    text = entry.lower()
    if any(mark in text for mark in (";", "=", "%3b", "without-user", "without_user")):
        return True
    return bool(set(re.findall("[a-z]+", text)) & set(PARAMETERS))


@dataclass(slots=True)
class _Item:
    """A corrected entry.

    Attributes:
        origins: The corrected origin, or several candidates if the intended origin is unknown; empty if the origin
            cannot be corrected.
        parameters: The corrected parameters.
        also_refused: If part of the entry is unreadable, patterns for other origins that might be intended.
    """

    origins: tuple[str, ...] = ()
    parameters: list[str] = field(default_factory=list)
    also_refused: tuple[str, ...] = ()


class _Repair:
    """A lenient parser for invalid entries.

    Attributes:
        problems: A clause for each problem in the entry.
        is_guess: Whether the correction is a guess.
        items: The corrected entries.
    """

    def __init__(self, entry: str) -> None:
        self.problems: list[str] = []
        self.is_guess = False
        self._has_comma = False
        text = self._without_user_info(entry)
        self.items: list[_Item] = []
        for item in self._split(text):
            self._add(item)

    def proposals(self) -> list[str]:
        """Return the corrected list of entries, or several alternatives if the intended origin is unknown."""
        if not self.items or not all(item.origins for item in self.items):
            return []
        count = max(len(item.origins) for item in self.items)
        found = [self._join(number) for number in range(count)]
        if self._has_comma and (encoded := self._with_encoded_comma()):
            found.insert(0, encoded)
        return found

    def _join(self, number: int) -> str:
        return ",".join(";".join((i.origins[min(number, len(i.origins) - 1)], *i.parameters)) for i in self.items)

    def _with_encoded_comma(self) -> str:
        """Return the entry with its commas encoded as part of the preceding value; empty if this is not possible."""
        first, *others = self.items
        if not first.parameters or not _has_value(first.parameters[-1]) or any(item.parameters for item in others):
            return ""
        hosts = [item.origins[0].removeprefix("https://") for item in others]
        return "%2C".join((";".join((first.origins[0], *first.parameters)), *hosts))

    def _say(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _unexpected(self, characters: str) -> None:
        found = dict.fromkeys(characters)
        if named := [_quote(character) for character in found if not character.isspace()]:
            self._say(f"unexpected character{'s' * (len(named) > 1)} {', '.join(named)}")
        for blank in found:
            if blank.isspace():
                self._say(f"unexpected {_BLANKS.get(blank, 'blank')}")

    def _without_user_info(self, entry: str) -> str:
        end = _end_of_user_info(entry)
        if end <= 0:
            return entry
        self._say("an entry must not contain a user name or password")
        return _scheme_and_rest(entry)[0] + entry[end:]

    # Separators

    def _split(self, text: str) -> list[str]:
        if _VARIABLE.search(text):
            return [text.strip()]
        if name := _variable_name(text):
            self._unexpected_text(name[1])
            text = text[name.end(1) :]
        items = [item for item in map(str.strip, text.split(",")) if item]
        if len(items) > 1 and not is_parameter(items[1]):
            self._has_comma = True
            self._say(CONTAINS_COMMA)
        return [piece for item in items for piece in self._split_item(item)]

    def _split_item(self, item: str) -> Iterator[str]:
        """Split an item at separators other than commas."""
        if "%3B" in item.partition(";")[0].upper():
            self._unexpected_text("%3B")
            item = re.sub("%3B", ";", item, flags=re.IGNORECASE)
        origin, semicolon, parameters = item.partition(";")
        pieces = self._split_origin(origin)
        if not semicolon:
            yield from pieces
            return
        yield from pieces[:-1]
        current = pieces[-1] if pieces else ""
        for parameter in parameters.split(";"):
            start = None if _has_value(parameter) else _next_origin.search(parameter)
            if start is None and not _is_other_origin(parameter):
                current += f";{parameter}"
                continue
            before, after = (parameter[: start.start()], parameter[start.start() :]) if start else ("", parameter)
            self._separated_by(";" if not before.strip() else before.strip()[-1:] if "|" in before else " ")
            yield f"{current};{before.strip(' |')}" if before.strip(" |\t\r\n") else current
            current = after
        yield current

    def _split_origin(self, text: str) -> list[str]:
        if is_parameter(text):
            return [text]
        if (start := _next_origin.search(text, 1)) and (before := text[: start.start()]).strip(_WRAPPING + "[] "):
            core = before.rstrip("|&+/:;- \t\r\n")
            self._separated_by(before[len(core) :].strip() or before[len(core) :][:1])
            return [*self._split_origin(core), *self._split_origin(text[start.start() :])]
        words = [word for word in re.split(r"[\s|]+", text) if word]
        if len(words) < 2:
            if text.strip("|") != text:
                self._unexpected("|")
            return words or [""]
        marks = re.findall(r"[\s|]", text.strip())
        parts = [words[0]]
        for word in words[1:]:
            if is_parameter(word):
                self._say(f"{word.partition('=')[0]} is a parameter and must follow a semicolon")
                parts[-1] += f";{word}"
            elif "|" not in marks and (word.startswith((":", "/")) or parts[-1].endswith((":", "/"))):
                self._unexpected("".join(marks))
                parts[-1] += word
            else:
                self._separated_by("|" if "|" in marks else marks[0])
                self.is_guess = True
                parts.append(word)
        return parts

    def _separated_by(self, mark: str) -> None:
        self._unexpected(mark)
        self._say("separate entries with commas")

    # One entry

    def _add(self, text: str) -> None:
        origin, *parameters = text.split(";")
        if self.items and is_parameter(text):
            name = text.strip(" ;").partition("=")[0].strip()
            self._say(f"{_plain(name)} is a parameter and must follow a semicolon")
            self.items[-1].parameters += self._parameters([text.strip(" ;"), *parameters[1:]])
            return
        item = self._origin(origin)
        item.parameters = self._parameters(parameters)
        self.items.append(item)

    def _origin(self, text: str) -> _Item:
        text = self._unwrap(text)
        if variable := _VARIABLE.search(text):
            self._say(f"the variable {_quote(variable[0])} has not been replaced with its value")
            return _Item()
        if _looks_like_regex(text):
            self._say("an entry is not a regular expression")
            self.is_guess = True
            text = text.replace("\\.", ".").replace(".*.", "*.")
        if "\\" in text:
            self._unexpected("\\")
            text = text.replace("\\", "/")
        schemes, is_certain, rest = self._scheme(text)
        authority = self._without_path(rest)
        if authority is None:
            return _Item()
        host, port = self._authority(authority)
        refused, host = self._host(host)
        text, is_known = self._port(port)
        origins = tuple(f"{scheme}://{host}{text}" for scheme in schemes)
        if host and is_known and is_certain:
            return _Item(origins)
        unclear = tuple(f"{scheme}://{refused}{text}" for scheme in schemes if refused)
        return _Item(also_refused=unclear if is_known else (*unclear, *(f"{origin}:*" for origin in unclear)))

    def _authority(self, text: str) -> tuple[str, str | None]:
        bare = text.strip("[]")
        if text.count(":") > 1 and address_of(bare) is not None and text != f"[{bare}]":
            self._say("an IPv6 address must be in brackets")
            return f"[{bare}]", None
        host, port = _read_authority(text).groups()  # type: ignore[union-attr]  # it matches any string
        return host, port

    def _unwrap(self, text: str) -> str:
        if _VARIABLE.search(text):
            return text
        core = text.strip().strip(_WRAPPING + " ")
        if core.startswith("[") and core.count("[") > core.count("]"):
            core = core[1:]
        if core.endswith("]") and core.count("]") > core.count("["):
            core = core[:-1]
        if core.startswith("[") and core.endswith("]") and not _is_range(core):
            core = core[1:-1]
        core = core.strip(_WRAPPING + " ")
        removed = [c for c in text.replace(core, "", 1) if not c.isspace()] if core else []
        if removed:
            self._unexpected("".join(removed))
        return core

    def _scheme(self, text: str) -> tuple[tuple[str, ...], bool, str]:
        """Return the possible schemes, whether they can be suggested, and the text after the scheme."""
        scheme, rest = _scheme_and_rest(text)
        name = scheme[:-3].lower()
        if not scheme:
            return self._without_scheme(text)
        if name not in DEFAULT_PORTS:
            return self._other_scheme(name, rest)
        if rest.startswith("/") and rest.strip("/"):
            self._say(f'expected "{name}://" before the host')
            rest = rest.lstrip("/")
        return (name,), True, rest

    def _without_scheme(self, text: str) -> tuple[tuple[str, ...], bool, str]:
        if (known := _known_scheme(text)) and not _is_port(known[2]):
            name = known[1].lower()
            self._say(f'expected "{name}://" before the host')
            return (name,), True, known[2]
        if (found := _any_scheme(text)) and not _is_port(found[2]):
            name = found[1].lower()
            if name in _GRPC | _UNREACHABLE or text[len(name) + 1 :].startswith("/"):
                return self._other_scheme(name, found[2])
        if text.startswith("*://"):
            self._say('the scheme must be http or https, not "*"')
            return _BOTH, True, text[4:]
        if text.startswith(("//", "://")) and text.strip(":/"):
            self._say('expected "https://" before the host')
            return ("https",), True, text.lstrip(":/")
        return ("https",), True, text

    def _other_scheme(self, name: str, rest: str) -> tuple[tuple[str, ...], bool, str]:
        if name in _UNREACHABLE:
            self._say(f"the scheme {name} is not supported: requests to such targets never get a token")
            return _BOTH, False, rest.lstrip("/").partition("/")[0]
        if name in _GRPC:
            self._say(
                f"the scheme {name} is not supported: for a gRPC target, write https://host:port with TLS or"
                " http://host:port without TLS"
            )
            rest = rest.lstrip("/")
            # gRPC's default port is 443, with or without TLS.
            has_port = ":" in rest.rpartition("]")[2] or not rest
            return _MEANT.get(name, _BOTH), True, rest if has_port else f"{rest}:443"
        if name in _MEANT:
            self._say(f"the scheme must be {_MEANT[name][0]}, which also applies to {name}")
            return _MEANT[name], True, rest
        self._say(f"the scheme must be http or https, not {_quote(name)}")
        near = tuple(known for known in _BOTH if name[:1] == "h" and resembles(name, known))
        if not near:
            return _BOTH, False, rest
        self.is_guess = True
        return near if name.endswith("p") else ("https",), True, rest

    def _without_path(self, rest: str) -> str | None:
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        path = rest[len(authority) :]
        if re.match(r"/[0-9]+$", path) and _is_range(authority):
            self._say(f"unexpected characters {_quote(path)}; list each address, because ranges are not supported")
            return None
        if path:
            self._unexpected_text(path)
            self._say("an entry must not contain a path, query, or fragment")
        return authority

    def _unexpected_text(self, text: str) -> None:
        self._say(f"unexpected characters {_quote(text)}" if len(text) > 1 else f"unexpected character {_quote(text)}")

    def _host(self, host: str) -> tuple[str, str]:
        """Return a pattern that matches all possible hosts, and the corrected host. Either string can be empty."""
        if not host:
            self._say("the host is missing; expected scheme://host[:port]")
            return "", ""
        if host == "*.":
            self._say("the domain after *. is missing")
            return "", ""
        if bad := _bad_in_host(host):
            self._unexpected("".join(bad))
            return "", ""
        if "*" in host and not re.fullmatch(r"\*|\*\.[^*]+", host):
            return self._star(host)
        if host.startswith(".") and host.strip("."):
            self._say("a host must not start with a dot")
            self.is_guess = True
            host = f"*{host}"
        if OriginPattern.find(f"https://{host}") is None:
            self._say(f"{_quote(host)} is not a host name or an IP address in canonical form")
            return "", ""
        return host, host

    def _star(self, host: str) -> tuple[str, str]:
        self._say("a * must be the whole host or its first label, as in https://*.example.com")
        suffix = host.rpartition("*")[2]
        if re.fullmatch(r"[*.]*\*", host.removesuffix(suffix)) and suffix.strip("."):
            # *example.com or *.*.example.com
            self.is_guess = True
            meant = f"*.{suffix.lstrip('.')}"
            return meant, meant
        parent = suffix.partition(".")[2]
        return f"*.{parent}" if parent else "*", ""

    def _port(self, port: str | None) -> tuple[str, bool]:
        """Return the port with a leading colon, and whether the port is known."""
        if port is None:
            return "", True
        if not port.strip():
            self._say('the port after ":" is missing')
            return "", True
        if _is_port(port) and (port == "*" or 0 < int(port) < 65536):
            return f":{port}", True
        if port.lower() in DEFAULT_PORTS:
            self._say(f"the port {_quote(port)} is not a number")
            self.is_guess = True
            return f":{DEFAULT_PORTS[port.lower()]}", True
        kind = "between 1 and 65535" if port.isdigit() else "a number"
        self._say(f"the port {_quote(port)} is not {kind}; write one entry for each port, or :* for any port")
        return "", False

    # Parameters

    def _parameters(self, parameters: list[str]) -> list[str]:
        return [repaired for text in parameters if (repaired := self._parameter(text))]

    def _parameter(self, text: str) -> str:
        name, equals, value = (part.strip() for part in text.partition("="))
        core = name.strip(_WRAPPING)
        if core != name or (not equals and name.rstrip("]") != name):
            self._unexpected("".join(c for c in name if c in _WRAPPING + "]"))
            name = core.rstrip("]")
        if not name and not equals:
            self._unexpected(";")
            return ""
        if name in FLAGS:
            if equals:
                self._say(f";{name} does not accept a value")
            return name
        if name in TEXT_PARAMETERS:
            return f"{name}={value}" if equals else name
        meant = _SYNONYMS.get(name.lower()) or next((known for known in PARAMETERS if _is_near(name, known)), None)
        if meant is None:
            self._say(f"unknown parameter ;{_plain(name)}; {_EXPECTED}")
            return f"{name}{equals}{value}"
        self._say(f"unknown parameter ;{_plain(name)}")
        self.is_guess = True
        return meant if meant in FLAGS else f"{meant}={value}"


def _is_near(name: str, known: str) -> bool:
    return len(name) > 2 and (resembles(name, known) or resembles(name, f"{known}s"))


def _is_other_origin(parameter: str) -> bool:
    """Return whether the text after a semicolon is an origin without a scheme, such as ``b.internal:8443``."""
    looks_like_origin = "=" not in parameter and ("." in parameter or ":" in parameter)
    return looks_like_origin and OriginPattern.find(parameter.strip()) is not None


def _scheme_and_rest(text: str) -> tuple[str, str]:
    scheme, rest = _split_scheme(text).groups()  # type: ignore[union-attr]  # it matches any string
    return scheme, rest


def _end_of_user_info(entry: str) -> int:
    """Return the position after the last ``@`` that might end user info, or 0 if none is found.

    A password can contain any character, even one that should be encoded. All text before an ``@`` might be user info,
    unless the ``@`` is in a parameter value that follows a valid origin.
    """
    end = entry.rfind("@")
    while end >= 0:
        if not _is_in_value(entry[:end].rpartition(",")[2]):
            return end + 1
        end = entry.rfind("@", 0, end)
    return 0


def _is_in_value(before: str) -> bool:
    origin, semicolon, parameters = before.partition(";")
    last = f";{parameters.rpartition(';')[2]}"
    has_value = bool(semicolon) and _in_value(last) is not None and "://" not in last
    return has_value and OriginPattern.find(origin.strip()) is not None


def _quote(text: str) -> str:
    """Quote part of an entry for use in a message."""
    shown = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)
    if len(shown) > _MAX_QUOTED:
        shown = f"{shown[:_MAX_QUOTED]}..."
    return f"'{shown}'" if '"' in shown else f'"{shown}"'


def _plain(text: str) -> str:
    """Escape and shorten a name for use in a message."""
    return ascii(text)[1:-1][:_MAX_QUOTED]
