"""The packages that an extra requires are compared with the installed packages."""

from __future__ import annotations

from importlib import metadata

import pytest

from otel_token_relay import extras
from otel_token_relay.extras import unmet, with_unmet

REQUIRES = [
    "idna>=3.7",
    "PyJWT[crypto]>=2.15; extra == 'verify'",
    "urllib3>=2.6.3; extra == 'verify'",
    "rich>=13; extra == 'demo'",
]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the installed packages, which a test can modify."""
    installed = {"PyJWT": "2.15.1", "urllib3": "2.8.0", "idna": "3.7"}

    def version(name: str) -> str:
        try:
            return installed[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(metadata, "version", version)
    return installed


def test_nothing_is_unmet_if_all_versions_fit(versions: dict[str, str]) -> None:
    """Nothing is unmet if all versions fit, regardless of the packages of other extras."""
    assert unmet("verify") == []


@pytest.mark.parametrize(
    ("version", "clauses"),
    [
        pytest.param("2.6.2", ["urllib3 2.6.2 is installed, but urllib3>=2.6.3 is required"], id="older"),
        pytest.param("2.6.3", [], id="oldest accepted"),
        pytest.param("3.0.0rc1", [], id="pre-release"),
    ],
)
def test_a_version_that_does_not_fit_is_named(versions: dict[str, str], version: str, clauses: list[str]) -> None:
    """For an unsuitable version, the clause contains the installed and the required version."""
    versions["urllib3"] = version

    assert unmet("verify") == clauses


def test_a_missing_package_is_named(versions: dict[str, str]) -> None:
    """A package without metadata is reported as missing."""
    del versions["PyJWT"]

    assert unmet("verify") == ["PyJWT>=2.15 is not installed"]


def test_metadata_that_cannot_be_read_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the package's own metadata cannot be read, nothing is reported."""

    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)

    assert unmet("verify") == []


def test_only_import_errors_are_completed(versions: dict[str, str]) -> None:
    """Only import errors get additional text, because other errors have their own messages."""
    versions["urllib3"] = "1.26.18"

    assert with_unmet(ImportError("cannot import name 'x'"), "verify").startswith(
        "cannot import name 'x'; urllib3 1.26"
    )
    assert with_unmet(ValueError("no issuer"), "verify") == "no issuer"


def test_this_environment_has_what_the_extras_require() -> None:
    """The package's metadata can be read, and this environment meets the extras' requirements."""
    assert extras.metadata.requires("otel-token-relay")
    assert unmet("verify") == []
