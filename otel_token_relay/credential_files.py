"""Read files that contain credentials. File sizes are limited, and files are read again when they change.

Error messages contain only the setting's name and a description of the problem, never the file's content.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

MAX_FILE_BYTES: Final = 64 * 1024

_Content = TypeVar("_Content")


class CredentialUnavailable(Exception):
    """An error raised if a credential cannot currently be used. The error message does not contain the credential."""


class FileUnusable(ValueError):
    """An error raised if a file's content is invalid. The error message completes the clause "the file in SETTING"."""


class FileVersion(NamedTuple):
    """File attributes that change when a file is modified or replaced."""

    modified: int
    size: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileVersion:
        """Return a file's version, based on the result of `os.stat`."""
        return cls(status.st_mtime_ns, status.st_size, status.st_ino)


# A cache of parsed files, which avoids parsing keys again for each request.
_contents: dict[tuple[str, Callable[[bytes], Any]], tuple[FileVersion, Any]] = {}


def version_of(path: str) -> FileVersion:
    """Return a file's version.

    Raises:
        FileUnusable: The file is too large or is not a regular file.
        OSError: The file does not exist or cannot be read.
        ValueError: The path is not valid.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FileUnusable("is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise FileUnusable("is too large")
    return FileVersion.of(status)


def use_file(setting: str, use: Callable[[], _Content]) -> _Content:
    """Call *use*, which reads the file for a setting, and return the result.

    Raises:
        CredentialUnavailable: The file cannot currently be used.
    """
    try:
        return use()
    except FileUnusable as error:
        problem = str(error)
    except (OSError, ValueError):
        problem = "cannot be read"
    # Raise the error outside the handlers so that it is not chained to an exception that might quote the content.
    raise CredentialUnavailable(f"the file in {setting} {problem}")


def read_file(path: str, setting: str, parse: Callable[[bytes], _Content]) -> _Content:
    """Return the result of *parse* for the file's content.

    Args:
        path: The file's path.
        setting: The setting that specifies the file, as displayed in messages.
        parse: A pure function that parses the content and raises `FileUnusable` if the content is invalid.

    Raises:
        CredentialUnavailable: The file cannot currently be used.
    """
    try:
        return use_file(setting, lambda: _read(path, parse))
    except CredentialUnavailable:
        _contents.pop((path, parse), None)  # remove the unusable file from the cache
        raise


def _read(path: str, parse: Callable[[bytes], _Content]) -> _Content:
    version = version_of(path)
    known = _contents.get((path, parse))
    if known is not None and known[0] == version:
        return known[1]  # type: ignore[no-any-return]  # the same function returned it
    with open(path, "rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:  # the file grew after its size was checked
        raise FileUnusable("is too large")
    if not content.strip():
        raise FileUnusable("is empty")
    found = parse(content)
    _contents[path, parse] = version, found
    return found


def read_text(content: bytes) -> str:
    """Decode a file's content and remove trailing line breaks."""
    try:
        text = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise FileUnusable("is not valid UTF-8") from None
    if not text:
        raise FileUnusable("is empty")
    return text
