"""Error messages about arguments never repeat a credential."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay import cli
from otel_token_relay.commands.arguments import conceal, describe_unrecognized, looks_like_token, mask_arguments
from tests.support.tokens import b64

TOKEN = f"{b64({'alg': 'RS256', 'kid': 'k1'})}.{b64({'iss': 'https://idp.example'})}.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
OPAQUE = "2YotnFZFEjr1zCsicMWpAA"


@pytest.mark.parametrize(
    ("argument", "is_token"),
    [
        (TOKEN, True),
        (TOKEN[:40], True),
        (f"Bearer {OPAQUE}", True),
        ("bearer x", True),
        (OPAQUE, True),
        ("abcdefgh.ijklmnop.qrstuvwx", True),
        ("access_token=s3cr3tvalue", True),
        ("sub", False),
        ("realm_access.roles", False),
        ("https://example.com/claims/roles", False),
        ("urn:zitadel:iam:org:project:roles", False),
        ("preferred_username", False),
        ("--claims", False),
        ("", False),
    ],
)
def test_what_looks_like_a_token(argument: str, is_token: bool) -> None:
    """A credential is recognized as a token, and a claim name, with or without a namespace, is not."""
    assert looks_like_token(argument) is is_token


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        pytest.param([TOKEN], "invalid choice: '[REDACTED]' (choose from ", id="in place of the command"),
        pytest.param([f"Bearer {TOKEN}"], "invalid choice: 'Bearer [REDACTED]' (choose from ", id="with Bearer"),
        pytest.param(["verify", TOKEN], "the token is read from standard input", id="verify"),
        pytest.param(["verify", "hunter2"], "the token is read from standard input", id="verify, short"),
        pytest.param(["verify", "--token", "hunter2"], "the token is read from standard input", id="verify, option"),
        pytest.param(["verify", "--token=hunter2"], "unrecognized arguments: --token\n", id="verify, equals sign"),
        pytest.param(["verify", "-thunter2"], "the token is read from standard input", id="verify, short option"),
        pytest.param(["verify", "--json=hunter2"], "ignored explicit argument [REDACTED]", id="verify, flag"),
        pytest.param(["verify", "--jso=hunter2"], "ignored explicit argument [REDACTED]", id="verify, abbreviated"),
        pytest.param(["verify", "--", "hunter2"], "the token is read from standard input", id="verify, two dashes"),
        pytest.param(["check", TOKEN], "unrecognized arguments: [REDACTED]\n", id="check"),
        pytest.param(["check", "--x" + TOKEN], "unrecognized arguments: --x[REDACTED]\n", id="check, option"),
        pytest.param(["check", "a" * 41], "unrecognized arguments: [REDACTED]\n", id="check, long"),
        pytest.param(["check", "a" * 40], f"unrecognized arguments: {'a' * 40}\n", id="check, as long as allowed"),
        pytest.param(["check", "b\x1b[31m"], "unrecognized arguments: b\\x1b[31m\n", id="check, control sequence"),
        pytest.param(["check", "https://u:hunter2@b"], "unrecognized", id="user info"),
        pytest.param(["chek"], "invalid choice: 'chek' (choose from ", id="a misspelled command"),
        pytest.param(["check", "--yaml"], "unrecognized arguments: --yaml\n", id="an unknown option"),
    ],
)
def test_a_usage_error_does_not_repeat_a_credential(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage error explains the mistake without repeating the token, and the exit status is 2."""
    with pytest.raises(SystemExit) as exited:
        cli.main(arguments)
    output, errors = capsys.readouterr()

    assert exited.value.code == 2
    assert output == ""
    assert shown in errors
    assert "hunter2" not in errors
    assert TOKEN[:17] not in errors
    assert TOKEN[-17:] not in errors


def test_options_are_named_without_their_values() -> None:
    """An unrecognized option is reported without its value, which might be a secret."""
    assert describe_unrecognized(["--a=b", "c"], None) == "unrecognized arguments: --a c"
    assert describe_unrecognized(["--a=b"], "instead") == "unrecognized arguments: --a"
    assert describe_unrecognized(["--a=b", "c"], "instead") == "instead"


@given(st.text(max_size=20), st.sampled_from([TOKEN, OPAQUE, TOKEN[30:90]]), st.text(max_size=20))
def test_any_message_is_masked(before: str, token: str, after: str) -> None:
    """A token is masked in any error message, regardless of how the message quotes the token."""
    for message in (f"{before} {token} {after}", repr(f"{before}'{token}'{after}"), f"{before}={token} {after}"):
        masked = mask_arguments(message)

        assert token not in masked
        assert all(" " <= c <= "~" for c in masked)


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Pressing Ctrl-C ends the command without a message and with the exit status for SIGINT."""

    def interrupt(options: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("otel_token_relay.commands.verify.run", interrupt)

    assert cli.main(["verify"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_setting_is_shown_without_its_credentials() -> None:
    """A token in a setting is masked, but a URL remains readable even if its path resembles a token."""
    assert conceal(f"DESTINATIONS: the entry {TOKEN} is skipped") == "DESTINATIONS: the entry [REDACTED] is skipped"
    url = f"https://idp.example/{'a' * 50}"
    assert conceal(f"ISSUERS: {url}") == f"ISSUERS: {url}"
