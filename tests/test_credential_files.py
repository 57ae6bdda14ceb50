"""Files with credentials: limited, read again when they change, and never quoted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_token_relay.credential_files import (
    MAX_FILE_BYTES,
    CredentialUnavailable,
    FileUnusable,
    FileVersion,
    read_file,
    read_text,
    use_file,
    version_of,
)

SECRET = "s3cret-of-user-service"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\r\n")
    return path


def test_a_file_is_parsed_once_until_it_changes(file: Path) -> None:
    """Keys take a while to parse, and operators rotate them."""
    parsed: list[bytes] = []

    def parse(content: bytes) -> bytes:
        parsed.append(content)
        return content

    for _ in range(3):
        assert read_file(str(file), "SETTING", parse) == f"{SECRET}\r\n".encode()
    assert len(parsed) == 1
    replacement = file.with_name("next")
    replacement.write_text("another")
    replacement.replace(file)

    assert read_file(str(file), "SETTING", parse) == b"another"


def test_two_parsers_of_a_file_have_their_own_results(file: Path) -> None:
    """A file can contain both a certificate and its key."""
    assert read_file(str(file), "A", read_text) == SECRET
    assert read_file(str(file), "B", len) == len(SECRET) + 2


def test_a_version_depends_on_the_content(file: Path) -> None:
    """A file that is replaced has a new inode, even if its size and time are the same."""
    before = version_of(str(file))
    assert before == version_of(str(file)) == FileVersion.of(os.stat(file))
    file.write_text("x")

    assert version_of(str(file)) != before


def _missing(file: Path) -> None:
    file.unlink()


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _large(file: Path) -> None:
    file.write_bytes(b"x" * (MAX_FILE_BYTES + 1))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_missing, "cannot be read"),
        (_directory, "is not a regular file"),
        (_pipe, "is not a regular file"),
        (_large, "is too large"),
        (lambda file: file.write_bytes(b" \n"), "is empty"),
        (lambda file: file.write_bytes(b"\r\n"), "is empty"),
        (lambda file: file.write_bytes(SECRET.encode() + b"\xff"), "is not valid UTF-8"),
    ],
    ids=["missing", "directory", "pipe", "large", "blank", "line break", "not UTF-8"],
)
def test_an_unusable_file_is_named_and_forgotten(file: Path, spoil: Callable[[Path], object], problem: str) -> None:
    """The error names the setting. It contains neither the content nor an error that could quote it."""
    assert read_file(str(file), "CLIENT_SECRET_FILE", read_text) == SECRET
    spoil(file)

    for _ in range(2):
        with pytest.raises(CredentialUnavailable) as failed:
            read_file(str(file), "CLIENT_SECRET_FILE", read_text)
        assert str(failed.value) == f"the file in CLIENT_SECRET_FILE {problem}"
        assert failed.value.__context__ is None


def test_a_file_of_the_maximum_size_is_read(file: Path) -> None:
    """One byte more is too large."""
    file.write_bytes(b"x" * MAX_FILE_BYTES)

    assert read_file(str(file), "SETTING", len) == MAX_FILE_BYTES


def test_the_problem_of_any_use_is_named() -> None:
    """OpenSSL loads a certificate itself, from its file."""

    def use() -> None:
        raise FileUnusable("is not a certificate")

    with pytest.raises(CredentialUnavailable, match=r"^the file in SETTING is not a certificate$"):
        use_file("SETTING", use)
    assert use_file("SETTING", lambda: 7) == 7


def test_a_text_without_content_is_unusable() -> None:
    """Only trailing line breaks are removed."""
    assert read_text(b" secret \r\n\n") == " secret "
    with pytest.raises(FileUnusable):
        read_text(b"\n")
