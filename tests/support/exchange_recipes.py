"""The blocks of settings in docs/exchange-servers.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

PAGE = (Path(__file__).parents[2] / "docs" / "exchange-servers.md").read_text("utf-8")


class Recipe(NamedTuple):
    """A block of settings on the page.

    Attributes:
        server: The heading of the recipe's section; empty for settings that apply to every server.
        line: The line of the page where the recipe starts.
        text: The commands.
    """

    server: str
    line: int
    text: str

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that the commands set."""
        words = [word for line in self.text.splitlines() for word in shlex.split(line)[1:]]
        return dict(word.split("=", 1) for word in words)


def _read() -> list[Recipe]:
    found = []
    for match in re.finditer(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        headings = re.findall(r"^## (.*)", PAGE[: match.start()], re.MULTILINE)
        found.append(Recipe(headings[-1] if headings else "", PAGE.count("\n", 0, match.start()) + 1, match[1]))
    return found


# Headings of the recipes that tests/exchange/test_real_servers.py runs, and the names of their servers in that file.
RUN = {"authgent-server": "authgent", "oidc-provider": "oidc-provider", "The demo's server": "demo"}

_EVERYWHERE, *RECIPES = _read()
COMMON = _EVERYWHERE.variables
