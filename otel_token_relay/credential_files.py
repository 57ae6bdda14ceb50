"""Files that contain credentials. Each file's size is limited, and each file is read again when it changes.

No error message quotes a file. A message contains only the setting's name and the problem with its file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

MAX_FILE_BYTES: Final = 64 * 1024

_Content = TypeVar("_Content")


class CredentialUnavailable(Exception):
    """The credential cannot be used now. The message does not contain the credential."""


class FileUnusable(ValueError):
    """A file does not have the expected content. The message is a clause that follows "the file in SETTING"."""


class FileVersion(NamedTuple):
    """File properties that show whether a file has been modified or replaced."""

    modified: int
    size: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileVersion:
        """Return the version of the file that has the given status."""
        return cls(status.st_mtime_ns, status.st_size, status.st_ino)


# The parsed content of each file, so that a key, for example, does not have to be parsed again for each request.
_contents: dict[tuple[str, Callable[[bytes], Any]], tuple[FileVersion, Any]] = {}


def version_of(path: str) -> FileVersion:
    """Return the version of a file.

    Raises:
        FileUnusable: The file is too large, or reading it could block or never finish.
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
    """Call *use*, which reads the file that a setting specifies, and return the result.

    Raises:
        CredentialUnavailable: The file cannot be used now.
    """
    try:
        return use()
    except FileUnusable as error:
        problem = str(error)
    except (OSError, ValueError):
        problem = "cannot be read"
    # This exception is raised outside the handlers, so that no exception that may quote the content is attached to it.
    raise CredentialUnavailable(f"the file in {setting} {problem}")


def read_file(path: str, setting: str, parse: Callable[[bytes], _Content]) -> _Content:
    """Return the result of *parse* for the file's content.

    Args:
        path: The file's path.
        setting: The setting that specifies the file, for use in messages.
        parse: A pure function that raises `FileUnusable` for content that it cannot use.

    Raises:
        CredentialUnavailable: The file cannot be used now.
    """
    try:
        return use_file(setting, lambda: _read(path, parse))
    except CredentialUnavailable:
        _contents.pop((path, parse), None)  # do not keep the content of a removed file
        raise


def _read(path: str, parse: Callable[[bytes], _Content]) -> _Content:
    version = version_of(path)
    known = _contents.get((path, parse))
    if known is not None and known[0] == version:
        return known[1]  # type: ignore[no-any-return]  # the same function returned it
    with open(path, "rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:  # the file has grown
        raise FileUnusable("is too large")
    if not content.strip():
        raise FileUnusable("is empty")
    found = parse(content)
    _contents[path, parse] = version, found
    return found


def read_text(content: bytes) -> str:
    """Return a file's text without trailing line breaks."""
    try:
        text = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise FileUnusable("cannot be read as UTF-8") from None
    if not text:
        raise FileUnusable("is empty")
    return text
