"""Identity providers' tokens are verified with the settings that the page on identity providers recommends.

The tokens are in `tests/vectors/providers.json`, created according to the providers' public documentation. The
issuers have their real names, as described in `tests/support/provider_matrix.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.provider_matrix import PREFIX, load_rows, name_of

ROWS = load_rows()
PAGE = Path(__file__).parents[2] / "docs" / "identity-providers.md"

# The number of rows after the most recent addition. Do not remove rows, so that no provider loses its test.
MIN_ROWS = {
    "AD FS": 1,
    "Amazon Cognito": 4,
    "Auth0": 5,
    "Authentik": 2,
    "Azure AD B2C": 3,
    "Casdoor": 2,
    "Clerk": 1,
    "Cloudflare Access": 1,
    "Dex": 3,
    "Duende IdentityServer": 4,
    "FusionAuth": 3,
    "GitHub Actions": 1,
    "GitLab CI": 1,
    "Google": 6,
    "Keycloak": 8,
    "Kubernetes": 4,
    "Microsoft Entra": 12,
    "Okta": 3,
    "Ory Hydra": 5,
    "Ping Identity": 5,
    "SPIFFE": 2,
    "Supabase": 1,
    "WSO2 Identity Server": 1,
    "Zitadel": 2,
    "flask-jwt-extended": 2,
}


@pytest.fixture(scope="module")
def decisions() -> dict[str, Any]:
    """Return both verifiers' decisions about each row, in a process that trusts a different certificate authority."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.provider_matrix"],
        env=environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("verifier", ["sync", "async"])
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_each_token_is_decided_as_expected(row: dict[str, Any], verifier: str, decisions: dict[str, Any]) -> None:
    """Each token is decided as expected with environment variables that cause no problems."""
    found = decisions[name_of(row)]

    assert found["problems"] == []
    assert {name: found[verifier].get(name) for name in row["expected"]} == row["expected"]


@pytest.mark.parametrize("row", [row for row in ROWS if not row["should_pass"]], ids=name_of)
def test_no_token_that_must_be_refused_is_accepted(row: dict[str, Any], decisions: dict[str, Any]) -> None:
    """An ID token, a refresh token, or a token for a different service is rejected with a cause and advice."""
    for verifier in ("sync", "async"):
        found = decisions[name_of(row)][verifier]
        assert found["result"] not in ("accepted", "unavailable")
        assert found["cause"]
        assert found["advice"]


def test_a_name_is_never_fetched(decisions: dict[str, Any]) -> None:
    """Keys are never fetched for an issuer that is not an https URL, because any computer could serve them."""
    for row in ROWS:
        if "JWKS_URI" in row["settings"]:
            assert set(decisions[name_of(row)]["requests"]) == {row["jwks_url"]}


def test_each_token_that_cannot_be_verified_has_a_reason() -> None:
    """A row with a valid token that cannot be verified states the reason and what to do instead."""
    page = PAGE.read_text("utf-8")
    refused = [row for row in ROWS if row["should_pass"] and row["expected"]["result"] != "accepted"]

    assert len(refused) == 5
    for row in refused:
        assert row["why"]
        assert row["token"].partition(":")[0] in page


def test_the_matrix_does_not_shrink() -> None:
    """Each row has a unique name, a source, and an expectation."""
    counts = Counter(row["provider"] for row in ROWS)

    assert len({name_of(row) for row in ROWS}) == len(ROWS)
    assert all(row["source"] and row["expected"]["result"] for row in ROWS)
    assert {provider: count for provider, count in MIN_ROWS.items() if counts[provider] < count} == {}
    assert counts.keys() == MIN_ROWS.keys()


# The variables in a code block of the page, without their prefix and quotation marks.
_variable = re.compile(rf"^export {PREFIX}([A-Z_]+)=(.*)$", re.MULTILINE)


def recipes() -> list[tuple[str, dict[str, str]]]:
    """Return the section and the variables, without their prefix, of each code block on the page."""
    found = []
    for section in PAGE.read_text("utf-8").split("\n## ")[1:]:
        title = section.partition("\n")[0]
        for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
            found.append((title, {name: value.strip("'\"") for name, value in _variable.findall(block)}))
    return found


@pytest.mark.parametrize(
    ("title", "variables"),
    [pytest.param(*recipe, id=f"{recipe[0]} {number}") for number, recipe in enumerate(recipes(), 1)],
)
def test_each_recipe_is_a_row_of_the_matrix(title: str, variables: dict[str, str]) -> None:
    """Each recipe on the page has a row in the matrix."""
    rows = [row for row in ROWS if row.get("recipe") == title and row["settings"] == variables]

    assert [row for row in rows if row["expected"]["result"] == "accepted"]


def test_each_provider_with_a_recipe_has_a_section() -> None:
    """The page has a section and a table row for each provider that has a recipe."""
    page = PAGE.read_text("utf-8")
    for recipe in {row["recipe"] for row in ROWS if "recipe" in row}:
        assert f"\n## {recipe}\n" in page
        assert f"\n| [{recipe}](#" in page
