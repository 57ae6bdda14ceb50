"""A token is read from standard input."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from otel_token_relay.commands import token_input
from otel_token_relay.commands.token_input import MAX_BYTES, NoToken, read_token

REMOVED = 'The "Bearer" prefix was removed from the input.'


def give(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("data", "token", "notes"),
    [
        pytest.param(b"abc", "abc", [], id="bare"),
        pytest.param(b"abc\n", "abc", [], id="line break"),
        pytest.param(b" abc\r\n\n", "abc", [], id="white space"),
        pytest.param(b"Bearer abc\n", "abc", [REMOVED], id="Bearer"),
        pytest.param(b"bearer  abc", "abc", [REMOVED], id="lower case"),
        pytest.param(b"Authorization: Bearer abc\r\n", "abc", [REMOVED], id="the whole header"),
        pytest.param(b"Bearer \n", "Bearer", [], id="only the scheme"),
        pytest.param(b"a b", "a b", [], id="white space inside"),
        pytest.param(b"a\nb", "a\nb", [], id="two lines"),
        pytest.param(b"Bearerabc", "Bearerabc", [], id="no space after Bearer"),
        pytest.param(b"\xef\xbb\xbfabc\r\n", "abc", [], id="byte order mark"),
        pytest.param("abc\r\n".encode("utf-16"), "abc", [], id="UTF-16, as PowerShell writes"),
        pytest.param(b"a\xff", "a\N{REPLACEMENT CHARACTER}", [], id="not UTF-8"),
        pytest.param(b"a" * MAX_BYTES, "a" * MAX_BYTES, [], id="as long as allowed"),
    ],
)
def test_the_token_is_read(data: bytes, token: str, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whitespace and the scheme are removed from the token, and nothing else is changed."""
    give(monkeypatch, data)

    assert read_token("otel-token-relay verify") == (token, notes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "no token", id="empty"),
        pytest.param(b" \n\n", "no token", id="blank"),
        pytest.param(b"a" * (MAX_BYTES + 1), "larger than 1048576 bytes", id="too large"),
    ],
)
def test_without_a_token_the_usage_is_wrong(data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input without a usable token causes an error that explains the usage."""
    give(monkeypatch, data)

    with pytest.raises(NoToken, match=message):
        read_token("otel-token-relay verify")


def test_a_closed_standard_input_contains_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed standard input, for which Python sets `sys.stdin` to ``None``, is reported as having no token."""
    monkeypatch.setattr(sys, "stdin", None)

    with pytest.raises(NoToken, match="no token"):
        read_token("otel-token-relay verify")


def test_a_terminal_is_asked_without_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, the command prompts on standard error and does not echo the input."""
    asked: list[Any] = []

    def getpass(prompt: str, stream: Any) -> str:
        asked.append((prompt, stream))
        return "Bearer abc"

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(token_input.getpass, "getpass", getpass)

    assert read_token("otel-token-relay verify") == ("abc", [REMOVED])
    assert asked == [("Token (not shown): ", sys.stderr)]


def test_a_token_that_the_terminal_has_cut_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the terminal has truncated to 4,095 characters is rejected."""
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(token_input.getpass, "getpass", lambda prompt, stream: "a" * 4094)
    assert len(read_token("otel-token-relay verify")[0]) == 4094

    monkeypatch.setattr(token_input.getpass, "getpass", lambda prompt, stream: "a" * 4095)
    with pytest.raises(NoToken, match="the terminal truncates long lines"):
        read_token("otel-token-relay verify")


def test_the_end_of_the_input_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressing Ctrl-D ends the input without a token."""

    def getpass(prompt: str, stream: Any) -> str:
        raise EOFError

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(token_input.getpass, "getpass", getpass)

    with pytest.raises(NoToken, match="no token"):
        read_token("otel-token-relay verify")
