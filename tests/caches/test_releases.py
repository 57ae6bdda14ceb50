"""A cache release that cannot be hooked is reported in the log and by the `check` command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from otel_token_relay.caches.releases import checker
from otel_token_relay.patching import Patches
from otel_token_relay.runtime import Runtime
from otel_token_relay.settings import Settings

PROGRAM = """
import logging, sys
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
from otel_token_relay import Settings, cli, install
install(Settings(destinations=("https://billing",)))
import requests_cache
print("IMPORTED", flush=True)
print("STATUS", cli.main(["check"]))
"""


@pytest.mark.parametrize(
    ("files", "reason", "log"),
    [
        (
            {"policy/__init__.py": "", "session.py": ""},
            "this release has no module requests_cache.policy.actions",
            ["token relay cannot hook requests_cache, which remains unchanged: this release has no module"],
        ),
        (
            {
                "policy/__init__.py": "",
                "policy/actions.py": "class CacheActions:\n    def __init__(self): pass",
                "backends/base.py": "class BaseCache:\n    def get_response(self, key, default): pass",
                "backends/__init__.py": "",
                "session.py": "class CacheMixin:\n    def send(self): pass",
                "__init__.py": "from .policy import actions\nfrom .backends import base\nfrom . import session",
            },
            "CacheActions has no update_from_response",
            ["token relay cannot hook requests_cache.policy.actions, which remains unchanged"],
        ),
    ],
    ids=["no module", "no method"],
)
def test_a_release_that_cannot_be_hooked(files: dict[str, str], reason: str, log: list[str], tmp_path: Path) -> None:
    """The log and the `check` command report one error that identifies the cache, and the command exits with 1."""
    for name, source in {"__init__.py": "", **files}.items():
        path = tmp_path / "requests_cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environ |= {
        "PYTHONPATH": str(tmp_path),
        "OTEL_PROPAGATORS": "tracecontext,token_relay",
        "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS": "https://billing",
    }

    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=120, check=False
    )

    logged, _, printed = ran.stdout.partition("IMPORTED")
    errors = [line.removeprefix("ERROR ") for line in logged.splitlines() if line.startswith("ERROR")]
    assert [error for error in errors if error.startswith(log[0])] == errors[:1]
    assert errors[1:] == ["token relay: requests-cache may serve one user's response to another user"]
    assert "1 problem found" in printed
    assert f"one user may get another user's response: {reason}" in " ".join(printed.split())
    assert "STATUS 1" in printed


def test_the_check_looks_for_files_and_imports_nothing(tmp_path: Path) -> None:
    """The check finds modules without importing them, and it checks nothing if protection is disabled."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "actions.py").write_text("raise SystemExit", "utf-8")
    module = ModuleType("library")
    module.__path__ = [str(tmp_path)]
    protects, does_not = Runtime(Settings()), Runtime(Settings(protect_caches=False))

    checker("library.policy.actions")(module, protects, Patches())
    checker("library.missing")(module, does_not, Patches())
    with pytest.raises(AttributeError, match=r"this release has no module library\.missing"):
        checker("library.policy.actions", "library.missing")(module, protects, Patches())
