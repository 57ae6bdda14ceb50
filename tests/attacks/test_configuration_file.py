"""OpenTelemetry's configuration file: no mapping under ``token_relay:`` stops the start, relaying or redaction."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_token_relay import uninstall
from otel_token_relay.installation import propagator_from_env
from otel_token_relay.testing import third_party
from tests.support.processes import BIN, INSTRUMENT, RELAY, service

MAPPINGS: dict[str, Any] = {
    "nothing": None,
    "empty": {},
    "a setting": {"destinations": ["https://a"]},
    "unknown keys": {"color": "red", "self": 1, "options": {"nested": [1, None]}},
    "odd names": {"": 1, "with space": 2, "settings": 3, "relay": 4, "x" * 500: 5},
    "verification is off": {"verify": False, "require_verified": "off"},
}
PROGRAM = """
import os
from fastapi import FastAPI
import httpx

app = FastAPI(openapi_url=None)

@app.get("/me")
async def me(authorization: str = ""):
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(os.environ["DOWNSTREAM"])
    print("called", flush=True)
"""


@pytest.fixture(autouse=True)
def _nothing_left() -> Any:
    yield
    uninstall()


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=MAPPINGS)
def test_configuration_file_no_mapping_raises(mapping: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The entry point accepts any mapping, and each key causes one error in the log."""
    propagator = propagator_from_env(**(mapping or {}))

    assert propagator.relay.settings.destinations == ()
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == len(mapping or {})
    assert all("configuration file" in error for error in errors)


@pytest.mark.parametrize("value", ["enforce", "report", True, "ENFORCE ", 1, ["enforce"]])
def test_configuration_file_with_verification_fails_closed(value: Any) -> None:
    """Settings are not read from the file yet, so the strict value applies."""
    settings = propagator_from_env(verify=value).relay.settings

    assert settings.verify == "enforce"
    assert propagator_from_env(require_verified=value).relay.settings.require_verified


def test_configuration_file_relays_and_redacts(tmp_path: Path) -> None:
    """With an unsupported mapping, a service starts and relays, and its first export contains no token."""
    token = "kq3Zt9vX0aPl7bN2mR8sT4uW6yC1dE5f"
    (tmp_path / "program.py").write_text(PROGRAM)
    with third_party() as behind:
        (tmp_path / "otel.json").write_text(
            json.dumps(
                {
                    "file_format": "1.0",
                    "propagator": {
                        "composite": [{"tracecontext": None}, {"token_relay": {"destinations": ["x"], "color": 1}}]
                    },
                    "tracer_provider": {"processors": [{"simple": {"exporter": {"console": None}}}]},
                }
            )
        )
        environ = RELAY | {
            "OTEL_CONFIG_FILE": str(tmp_path / "otel.json"),
            "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": behind.url,
            "DOWNSTREAM": behind.url,
        }
        del environ["OTEL_PROPAGATORS"]
        command = (*INSTRUMENT, str(BIN / "uvicorn"), "program:app", "--port", "0", "--no-access-log")
        with service(*command, cwd=tmp_path, environ=environ) as running:
            url = f"{running.url}/me?authorization={token}"
            assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200

        assert [request.authorization for request in behind.requests] == [f"Bearer {token}"]
        assert '"token_relay.decision": "relayed"' in running.log
        assert "color" in running.log
        assert token not in running.log
