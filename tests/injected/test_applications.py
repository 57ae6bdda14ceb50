"""Five applications with older packages work with the image that the OpenTelemetry operator injects.

Their environments are installed on first use, so these tests run in a separate session: ``nox -s injected``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_token_relay.testing import ThirdParty, third_party
from tests.support import injected, tokens
from tests.support.issuers import Issuer, bearer, issuing, wait_until

pytestmark = pytest.mark.skipif("INJECTED" not in os.environ, reason="run with: nox -s injected")

ALICE = "token-of-alice-0123456789"
RELAY = {"OTEL_PROPAGATORS": "tracecontext,baggage,token_relay"}
CONSOLE = {
    "OTEL_TRACES_EXPORTER": "console",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_BSP_SCHEDULE_DELAY": "50",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the image that the example's Dockerfile describes."""
    return injected.build_image(tmp_path_factory.mktemp("built") / "image")


@pytest.fixture
def listed() -> Iterator[ThirdParty]:
    """Run a service that is listed as a destination."""
    with third_party() as service:
        yield service


@pytest.fixture
def unlisted() -> Iterator[ThirdParty]:
    """Run a service that is not listed as a destination."""
    with third_party() as service:
        yield service


def environ(listed: ThirdParty, unlisted: ThirdParty, **more: str) -> dict[str, str]:
    own = {"LISTED": listed.url, "UNLISTED": unlisted.url, "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": listed.url}
    return RELAY | CONSOLE | own | more


def get(url: str, token: str | None = ALICE) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(url, headers=headers, trust_env=False, timeout=60)


def received(service: ThirdParty) -> list[list[str]]:
    return [request.header_lines("authorization") for request in service.requests]


def enforcing(issuer: Issuer) -> dict[str, str]:
    prefix = "OTEL_PYTHON_TOKEN_RELAY_"
    return {
        f"{prefix}VERIFY": "enforce",
        f"{prefix}ISSUERS": issuer.url,
        f"{prefix}AUDIENCE": tokens.AUDIENCE,
        f"{prefix}VERIFY_EXCLUDE": "/healthz",
    }


@pytest.mark.parametrize("name", injected.APPLICATIONS)
def test_application_starts_with_its_own_packages_and_relays(
    name: str, image: Path, listed: ThirdParty, unlisted: ThirdParty
) -> None:
    """The application keeps its own urllib3, and only the listed service gets the token."""
    with injected.run(name, image, environ(listed, unlisted)) as service:
        with_token, without = get(service.url), get(service.url, None)
        versions: dict[str, Any] = get(f"{service.url}/versions", None).json()
        wait_until(lambda: '"token_relay.reason": "relayed"' in service.log, 60)

    assert (with_token.status_code, without.status_code) == (200, 200), service.log
    assert received(listed) == [[f"Bearer {ALICE}"], []]
    assert received(unlisted) == [[], []]
    assert versions["urllib3"].startswith("1.26.")
    assert "token relay" not in service.log
    assert ALICE not in service.log


def test_check_runs_in_the_container(image: Path, listed: ThirdParty, unlisted: ThirdParty) -> None:
    """The `check` command, as run in the container, reports the relay and incompatible package versions."""
    settings = environ(listed, unlisted)
    relays = injected.check("flask", image, settings, "--require", "relay")
    with issuing() as issuer:
        verifies = injected.check("flask", image, settings | enforcing(issuer))

    assert relays.returncode == 0, relays.stdout
    assert verifies.returncode == 1
    assert "urllib3 1.26.14 is installed, but urllib3>=" in verifies.stdout


def test_task_of_a_worker_gets_no_token(image: Path, listed: ThirdParty, unlisted: ThirdParty) -> None:
    """A Celery task runs outside the request that queued it, so its call carries no token."""
    with injected.run("celery", image, environ(listed, unlisted)) as service:
        assert get(f"{service.url}/task").status_code == 200

    assert received(listed) == [[]]


@pytest.mark.parametrize("name", ["django", "aiohttp"])
def test_verification_that_cannot_start_refuses_and_says_why(
    name: str, image: Path, listed: ThirdParty, unlisted: ThirdParty
) -> None:
    """If urllib3 is too old for verification, the application runs, but requests other than probes get status 503."""
    with issuing(tokens.public_jwk("RS256", "k1")) as issuer:
        settings = environ(listed, unlisted, **enforcing(issuer))
        with injected.run(name, image, settings) as service:
            refused = get(service.url)
            probe = get(f"{service.url}/healthz", None)

    assert (refused.status_code, probe.status_code) == (503, 200), service.log
    assert received(listed) == []
    assert "is installed, but urllib3>=" in service.log


def test_verification_starts_although_an_exporter_is_missing(
    image: Path, listed: ThirdParty, unlisted: ThirdParty
) -> None:
    """An exporter that is missing from the image stops OpenTelemetry, but neither verification nor the relay."""
    with issuing(tokens.public_jwk("RS256", "k1")) as issuer:
        settings = environ(listed, unlisted, **enforcing(issuer), OTEL_TRACES_EXPORTER="otlp_proto_grpc")
        with injected.run(injected.WITHOUT_URLLIB3, image, settings) as service:
            refused = get(service.url, None)
            accepted = httpx.get(service.url, headers=bearer(issuer), trust_env=False, timeout=60)

    assert "Failed to auto initialize OpenTelemetry" in service.log
    assert (refused.status_code, accepted.status_code) == (401, 200), service.log
    assert [len(lines) for lines in received(listed)] == [1]
    assert received(unlisted) == [[]]


@pytest.mark.parametrize("name", ["flask", "aiohttp"])
def test_image_of_one_directory_relays_as_well(
    name: str, tmp_path: Path, listed: ThirdParty, unlisted: ThirdParty
) -> None:
    """In the operator's default layout, the image's packages replace the application's, and tokens are relayed."""
    plain = injected.build_plain_image(tmp_path / "plain")
    with injected.run(name, plain, environ(listed, unlisted)) as service:
        response = get(service.url)
        versions: dict[str, Any] = get(f"{service.url}/versions", None).json()

    assert response.status_code == 200, service.log
    assert received(listed) == [[f"Bearer {ALICE}"]]
    assert received(unlisted) == [[]]
    assert versions["urllib3"].startswith("2.")
