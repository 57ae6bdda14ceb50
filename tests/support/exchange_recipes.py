"""The blocks of settings in docs/exchange-servers.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

PAGE = (Path(__file__).parents[2] / "docs" / "exchange-servers.md").read_text("utf-8")


class Recipe(NamedTuple):
    """One block.

    Attributes:
        server: The heading of its section; empty for what is the same everywhere.
        line: The line of the page at which it begins.
        text: The commands.
    """

    server: str
    line: int
    text: str

    @property
    def variables(self) -> dict[str, str]:
        """The variables that the commands set."""
        words = [word for line in self.text.splitlines() for word in shlex.split(line)[1:]]
        return dict(word.split("=", 1) for word in words)


def _read() -> list[Recipe]:
    found = []
    for match in re.finditer(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        headings = re.findall(r"^## (.*)", PAGE[: match.start()], re.MULTILINE)
        found.append(Recipe(headings[-1] if headings else "", PAGE.count("\n", 0, match.start()) + 1, match[1]))
    return found


# The servers at which tests/exchange/test_real_servers.py runs the recipe: their headings, and their names there.
RUN = {"authgent-server": "authgent", "oidc-provider": "oidc-provider", "The demo's server": "demo"}

_EVERYWHERE, *RECIPES = _read()
COMMON = _EVERYWHERE.variables
