"""OpenTelemetry's launcher offers the names of the environment variables as flags."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from otel_token_relay import environment_variables
from otel_token_relay.settings import VARIABLES

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"
LAUNCHER = str(Path(sys.executable).parent / "opentelemetry-instrument")


def test_every_variable_is_registered_with_opentelemetry():
    """Every variable is registered for `opentelemetry-instrument`, except secrets, which are never flags."""
    registered = {name: value for name, value in vars(environment_variables).items() if name.startswith("OTEL_")}

    assert registered == {v.name: v.name for v in VARIABLES.values() if not v.kind.is_secret}
    assert [v.name for v in VARIABLES.values() if v.kind.is_secret] == [f"{PREFIX}CLIENT_SECRET"]


def test_the_module_contains_nothing_else() -> None:
    """The module contains no imported names that start with `OTEL_`, which would become flags."""
    # pytest adds names that start with @ to the modules of a package that contains a plug-in.
    names = [name for name in vars(environment_variables) if not name.startswith(("_", "@"))]

    assert all(name.startswith(PREFIX) for name in names)


def test_the_entry_point_refers_to_this_module() -> None:
    """The launcher finds this module through the `opentelemetry_environment_variables` entry-point group."""
    (entry,) = entry_points(group="opentelemetry_environment_variables", name="token_relay")

    assert entry.load() is environment_variables


def test_the_launcher_passes_flags_on_as_variables() -> None:
    """The launcher passes flags to the application as environment variables."""
    flags = {"destinations": "https://profile-service;required", "max_age": "77"}
    options = [word for name, value in flags.items() for word in (f"--token_relay_{name}", value)]
    program = f"import os; print([os.environ[{PREFIX!r} + name.upper()] for name in {list(flags)!r}])"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environ = clean | {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}
    environ |= {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}

    ran = subprocess.run(
        [LAUNCHER, *options, sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=120
    )

    assert ran.stdout == f"{list(flags.values())}\n", ran.stderr
