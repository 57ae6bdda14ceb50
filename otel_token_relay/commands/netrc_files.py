"""Find the netrc entry for a host, because some clients send that entry's credential instead of the token.

This module reads netrc files but does not store or print their contents.
"""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# The Requests library looks for these files in the home directory, in this order.
_NAMES: Final = (".netrc", "_netrc")


def describe_netrc(host: str, environ: Mapping[str, str], pid: int | None) -> str:
    """Return a message about the effect of a netrc entry for *host*, or an empty string if *host* has no entry.

    Args:
        host: The request's host.
        environ: The client process's environment variables.
        pid: The ID of the client process, from whose file system the netrc file is read, or ``None`` for the current
            process.
    """
    names = [environ["NETRC"]] if "NETRC" in environ else [f"{environ.get('HOME', '~')}/{name}" for name in _NAMES]
    name = next((name for name in names if _file(name, pid).exists()), None)
    try:
        if name is None or not any(netrc.netrc(_file(name, pid)).authenticators(host) or ()):
            return ""
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):  # Clients ignore unreadable netrc files.
        return ""
    return (
        f"{name} has an entry for this host. The requests library and aiohttp (with trust_env) send the entry as"
        " Authorization: Basic, so such a request does not carry the token (explicit_credential)."
    )


def _file(name: str, pid: int | None) -> Path:
    if pid is None:
        return Path(name).expanduser()
    return Path(f"/proc/{pid}/root{name}" if name.startswith("/") else f"/proc/{pid}/cwd/{name}")
