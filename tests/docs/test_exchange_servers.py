"""The token exchange recipes contain valid settings, and their tables contain only existing errors."""

from __future__ import annotations

import re
import shlex
from typing import get_args

import pytest

from otel_token_relay import Settings
from otel_token_relay.errors import ExchangeError
from otel_token_relay.exchange.tokens import DestinationTokens
from tests.support.exchange_recipes import COMMON, PAGE, RECIPES, RUN, Recipe

SERVERS = re.findall(r"^\| \[([^\]]+)\]\(#", PAGE, re.MULTILINE)


def name_of(recipe: Recipe) -> str:
    return f"{recipe.server}:{recipe.line}"


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_settings_of_each_recipe_have_no_problem(recipe: Recipe) -> None:
    """The settings of each recipe enforce verification and exchange the caller's token for billing."""
    settings = Settings.from_env(COMMON | recipe.variables)

    assert settings.problems == ()
    assert settings.verify == "enforce"
    assert settings.exchange_problem is None
    (entry,) = settings.entries
    assert entry.needs_exchange
    assert str(entry).startswith("https://billing;")
    assert DestinationTokens(settings)


def test_each_server_has_a_recipe() -> None:
    """The table lists the servers in the order of the sections, and each section contains settings."""
    assert list(dict.fromkeys(recipe.server for recipe in RECIPES)) == SERVERS
    assert re.findall(r"^## (.*)", PAGE, re.MULTILINE) == SERVERS
    assert len(SERVERS) == 8


def test_errors_in_the_tables_are_those_of_the_closed_set() -> None:
    """The last cell in each row that describes a mistake contains an existing error."""
    rows = re.findall(r"^\| .*\| (.*`.*`.*) \|$", PAGE, re.MULTILINE)
    # The server's own message is in parentheses.
    named = {word for row in rows for word in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row))}

    assert len(rows) > 20
    assert named <= set(get_args(ExchangeError))


def test_the_page_says_which_servers_were_run() -> None:
    """The page marks a server as tested if, and only if, a test exchanges tokens at the server."""
    tried = re.findall(r"^\| \[([^\]]+)\]\(#[^|]*\| yes ", PAGE, re.MULTILINE)

    assert sorted(tried) == sorted(RUN)


def test_commands_of_the_recipes_only_set_variables() -> None:
    """Each block consists only of export commands, so a reader can copy it into a shell."""
    for recipe in RECIPES:
        assert all(shlex.split(line)[0] == "export" for line in recipe.text.splitlines())
