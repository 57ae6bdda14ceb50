"""The wheel's ``.pth`` file hooks servers, so requests are verified even if OpenTelemetry never starts."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otel_token_relay
from otel_token_relay import Settings
from otel_token_relay.hooks import SERVER_HOOKS
from tests.support.processes import ROOT, instrumentations, service, unused_port
from tests.support.servers import get

SITE = sysconfig.get_paths()["purelib"]
PACKAGE = Path(otel_token_relay.__file__).parent
# Unlike a checkout, a wheel contains both files under their names in site-packages.
FILES = {"otel_token_relay.pth": PACKAGE / "startup.pth", "_otel_token_relay_startup.py": PACKAGE / "startup.py"}
if not PACKAGE.joinpath("startup.py").exists():
    FILES = {name: Path(SITE, name) for name in FILES}
ENFORCE = {
    "OTEL_PYTHON_TOKEN_RELAY_VERIFY": "enforce",
    "OTEL_PYTHON_TOKEN_RELAY_ISSUERS": "https://issuer.example",
    "OTEL_PYTHON_TOKEN_RELAY_AUDIENCE": "this-service",
}
# The file cannot be imported from a wheel, because the wheel contains it only under its name in site-packages.
STARTUP = runpy.run_path(str(FILES["_otel_token_relay_startup.py"]))
NO_EXPORTERS = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
SETTINGS = {**ENFORCE, **NO_EXPORTERS, **instrumentations(), "PYTHONPATH": ""}
LOADED = "import sys; print(*sorted(name for name in sys.modules if name.partition('.')[0] in {names}))"
APP = "tests.support.plain_app:app"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment whose site-packages contains the wheel's files."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    site.joinpath("libraries.pth").write_text(f"{SITE}\n{PACKAGE.parent}\n{ROOT}\n")
    for name, source in FILES.items():
        shutil.copy(source, site / name)
    return folder / "bin" / "python"


def run(python: Path, *arguments: str, **variables: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [str(python), *arguments], env=environ | variables, capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.mark.parametrize("value", ["", "off", " OFF "])
def test_nothing_is_imported_unless_requests_are_verified(python: Path, value: str) -> None:
    """The ``.pth`` file, which every Python process reads, imports nothing unless requests are verified."""
    names = {"otel_token_relay", "_otel_token_relay_startup", "opentelemetry", "wrapt"}
    code = LOADED.format(names=names) + "; import wsgiref.handlers; " + LOADED.format(names=names)
    assert run(python, "-c", code, OTEL_PYTHON_TOKEN_RELAY_VERIFY=value).split() == []


def test_only_the_finder_is_imported_before_a_server(python: Path) -> None:
    """A process that never serves imports only the small finder module."""
    names = {"otel_token_relay", "_otel_token_relay_startup", "opentelemetry", "wrapt"}
    code = LOADED.format(names=names) + "; import wsgiref.handlers; print('otel_token_relay.boundary' in sys.modules)"
    assert run(python, "-c", code, **ENFORCE).split() == ["_otel_token_relay_startup", "True"]


def test_a_start_that_fails_is_reported_and_stops_no_import(python: Path) -> None:
    """A startup failure is reported on standard error and stops no import."""
    code = "import sys; sys.modules['otel_token_relay.installation'] = None\nimport wsgiref.handlers; print('imported')"
    environ = {**os.environ, **ENFORCE}
    done = subprocess.run([str(python), "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "imported\n"
    assert "requests are NOT verified: ModuleNotFoundError" in done.stderr


def served(python: Path, *command: str, port: int, **variables: str) -> Iterator[int]:
    """Start a server, and yield the status of an anonymous request to it."""
    with service(str(python), *command, environ={**SETTINGS, **variables}) as running:
        deadline = time.monotonic() + 60
        while True:
            try:
                yield get(port, "/").status
                return
            except OSError:
                assert running.process.poll() is None, running.log
                assert time.monotonic() < deadline, running.log
                time.sleep(0.1)


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        pytest.param(["-m"], {}, id="without OpenTelemetry"),
        pytest.param(["-I", "-m"], {}, id="isolated"),
        pytest.param(["-E", "-m"], {"OTEL_PROPAGATORS": "tracecontext"}, id="no PYTHON variables"),
    ],
)
def test_a_server_refuses_although_opentelemetry_does_not_start(
    python: Path, command: list[str], variables: dict[str, str]
) -> None:
    """A server and each of its workers reject requests if OpenTelemetry does not start."""
    port = unused_port()
    options = ["uvicorn", APP, "--port", str(port), "--log-level", "warning", "--workers", "2"]
    assert list(served(python, *command, *options, port=port, **variables)) == [401]


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"OTEL_TRACES_EXPORTER": "nope"}, id="missing exporter"),
        pytest.param({"OTEL_CONFIG_FILE": "/nonexistent.yaml"}, id="missing configuration file"),
        pytest.param({"OTEL_PYTHON_CONFIGURATOR": "nope"}, id="missing configurator"),
        pytest.param({"OTEL_PROPAGATORS": "tracecontext,token_relay"}, id="nothing missing"),
    ],
)
def test_a_server_refuses_although_opentelemetry_fails(python: Path, variables: dict[str, str]) -> None:
    """A server rejects requests whether OpenTelemetry fails before it calls the package or also starts the relay."""
    port = unused_port()
    code = (
        "import sys; from opentelemetry.instrumentation import auto_instrumentation;"
        "auto_instrumentation.initialize(); sys.argv = ['uvicorn', *sys.argv[1:]];"
        "import runpy; runpy.run_module('uvicorn', run_name='__main__')"
    )
    options = ["-c", code, APP, "--port", str(port), "--log-level", "warning"]
    assert list(served(python, *options, port=port, **variables)) == [401]


def test_every_hooked_server_and_framework_is_a_trigger() -> None:
    """Every hooked server and framework is a trigger of the finder, which cannot import the table of hooks."""
    roots = {hook.module.partition(".")[0] for hook in SERVER_HOOKS} - {"opentelemetry"}
    assert roots == STARTUP["TRIGGERS"]


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The finder of a process in which the package cannot start."""
    found = STARTUP["ServerFinder"]()
    monkeypatch.setattr(sys, "meta_path", [found, *sys.meta_path])
    monkeypatch.setitem(sys.modules, "otel_token_relay.installation", None)
    return found


def test_the_finder_starts_the_package_once(finder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The finder ignores all modules before the first server, finds no module, and reports a failure only once."""
    assert finder.find_spec("json") is finder.find_spec("flask.json") is None
    assert sys.meta_path[0] is finder
    assert capsys.readouterr().err == ""

    assert finder.find_spec("flask") is finder.find_spec("uvicorn") is None

    assert finder not in sys.meta_path
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("otel-token-relay: requests are NOT verified: ModuleNotFoundError: ")


def test_a_failure_stops_no_import_if_it_cannot_be_reported(finder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A startup failure stops no import if standard error is missing, as in a daemon."""
    monkeypatch.setattr(sys, "stderr", None)

    assert finder.find_spec("flask") is None
    assert finder not in sys.meta_path


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from("rid"), st.integers(0, 29), st.sampled_from("AEIRVXY_-")), min_size=1, max_size=2
    )
)
def test_every_misspelling_that_enforces_starts_the_finder(edits: list[tuple[str, int, str]]) -> None:
    """Every misspelling that enforces verification starts the finder, which accepts more misspellings than the
    settings.
    """
    name = "OTEL_PYTHON_TOKEN_RELAY_VERIFY"
    for kind, at, letter in edits:
        name = name[:at] + ("" if kind == "d" else letter) + name[at + (kind != "i") :]
    condition = FILES["otel_token_relay.pth"].read_text().partition("; ")[2].partition(" and __import__")[0]
    is_strict = Settings.from_env({name: "enforce"}).verify == "enforce"

    starts = eval(condition, {"os": SimpleNamespace(environ={name: "enforce"})})

    assert starts or not is_strict
