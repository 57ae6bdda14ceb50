"""A netrc entry can make a client send its own credential."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import requests

from otel_token_relay.commands.explain import explain
from otel_token_relay.commands.netrc_files import describe_netrc
from tests.commands.test_explain import ON

ENTRY = "machine profile-service login reports password nightly-job\n"


@pytest.mark.parametrize("name", [".netrc", "_netrc"])
@pytest.mark.parametrize(
    ("content", "applies"),
    [
        (ENTRY, True),
        ("default login reports password nightly-job\n", True),
        ("machine elsewhere login reports password nightly-job\n", False),
        ("machine profile-service login", False),
        ("", False),
    ],
)
def test_an_entry_is_found_if_requests_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, applies: bool
) -> None:
    """The note is printed if, and only if, requests finds a credential in the netrc file."""
    (tmp_path / name).write_text(content)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert (requests.utils.get_netrc_auth("https://profile-service/me") is not None) is applies
    found = describe_netrc("profile-service", {"HOME": str(tmp_path)}, None)

    assert found.startswith(f"{tmp_path}/{name} has an entry for this host.") if applies else found == ""
    assert "nightly-job" not in found


@pytest.mark.parametrize("named", ["missing", "/dev/null"])
def test_the_variable_replaces_the_home_directory(tmp_path: Path, named: str) -> None:
    """If ``NETRC`` is set, the default netrc files are not read."""
    (tmp_path / ".netrc").write_text(ENTRY)

    assert describe_netrc("profile-service", {"HOME": str(tmp_path), "NETRC": named}, None) == ""


def test_the_files_are_those_of_the_process(tmp_path: Path) -> None:
    """A relative path in ``NETRC`` is resolved against the working directory of the explained process."""
    (tmp_path / "names").write_text(ENTRY)
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        try:
            found = describe_netrc("profile-service", {"NETRC": "names"}, process.pid)
        finally:
            process.kill()

    assert found.startswith("names has an entry")


def test_explain_prints_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a note about the netrc entry without changing the decision."""
    (tmp_path / ".netrc").write_text(ENTRY)
    environ = ON | {"OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": "profile-service,other", "HOME": str(tmp_path)}

    assert explain(["https://profile-service/me", "https://other/me"], environ) == 0

    first, _, second = capsys.readouterr().out.partition("\n\n")
    assert first.startswith("relayed")
    assert f"note: {tmp_path}/.netrc has an entry for this host." in first
    assert "note:" not in second
    assert "nightly-job" not in first
