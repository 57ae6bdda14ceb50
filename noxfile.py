"""Sessions that need their own environments: every Python, the oldest dependencies, the built wheel.

    nox                  everything that .ci/run runs
    FULL_MATRIX=1 nox    every test in every session, and the sessions that create environments of their own
    nox -s tests-3.12    the tests on one Python
    nox -s injected      five applications with older packages, as under the OpenTelemetry operator
    COVERAGE=1 nox       everything, with branch coverage across all sessions

The supported Python versions are those in pyproject.toml's classifiers. If this machine does not have one of them,
nox reports this and skips the session.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
LOWEST = PYTHONS[0]
PINS = ROOT / "requirements"
# Two workers per core, because most tests spend their time waiting for their own servers.
PARALLEL = ("-n", str(2 * (os.cpu_count() or 1)), "--dist", "worksteal")
EXTRAS = "verify,exchange,demo"
# Current frameworks require newer packages than the oldest supported OpenTelemetry allows. These tests use
# only their own clients and servers.
OLDEST_TESTS = (ROOT / "requirements" / "oldest-tests.txt").read_text().split()

# Tests whose results depend on the programs that they start, not on the version of Python or a library.
# `make test` and `make test-programs` run them. With FULL_MATRIX=1, every session runs them.
PROGRAMS = (
    *(ROOT / "requirements" / "program-tests.txt").read_text().split(),
    "tests/docs",
    "tests/promises/test_zero_code.py",
)

# Tests of code that uses no library. `make test` runs them. With FULL_MATRIX=1, every session runs them.
PURE = (
    "tests/commands",
    "tests/pictures",
    "tests/redaction/test_credential_patterns.py",
    "tests/redaction/test_scrubber.py",
    "tests/redaction/test_secret_names.py",
    "tests/redaction/test_token_search.py",
    "tests/redaction/test_unknown_tokens.py",
    "tests/test_cli.py",
    "tests/test_entry_mistakes.py",
    "tests/test_entry_syntax.py",
    "tests/test_prose.py",
    "tests/test_testing.py",
    "tests/testkit",
    "tests/verification/test_explanations.py",
)

# Slow tests. With the lowest dependencies, tests/caches, tests/clients, and the rest of tests/exchange
# and tests/verification cover the same libraries.
SLOW = (
    "tests/attacks/test_h04_shared_caches.py",
    "tests/exchange/test_retries.py",
    "tests/test_soak_exchange.py",
    "tests/verification/test_attacks.py",
    "tests/verification/test_headers.py",
    "tests/test_stream_limits.py",
)

# Tests of rules and of the package's own protocols. They run only on the oldest and the newest Python.
ELSEWHERE = ("tests/attacks", "tests/commands", "tests/exchange", "tests/verification")

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = False
# The `injected` and `pages` sessions spend minutes creating environments of their own.
FULL = bool(os.environ.get("FULL_MATRIX"))
nox.options.sessions = ["tests", "lowest", "oldest", *(("injected", "pages") if FULL else ()), "coverage"]

# uv finds pyenv's interpreters if they are on the path. uv must not download any interpreters.
os.environ["UV_PYTHON_DOWNLOADS"] = "never"
os.environ["PATH"] = os.pathsep.join(
    [
        os.environ["PATH"],
        *map(str, sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))),
    ]
)


def _without(*paths: str) -> list[str]:
    return [] if FULL else [f"--ignore={path}" for path in paths]


def _wheel(session: nox.Session) -> Path:
    """Build the wheel and return its path."""
    target = Path(session.create_tmp()) / "dist"
    shutil.rmtree(target, ignore_errors=True)
    session.run("uv", "build", "--quiet", "--wheel", "--out-dir", str(target), external=True)
    return next(target.resolve().glob("*.whl"))


def _test(session: nox.Session, *arguments: str) -> None:
    """Run pytest. With COVERAGE=1, also measure coverage, including that of processes that the tests start."""
    measured = ("-m", "coverage", "run") if os.environ.get("COVERAGE") else ()
    # -P and pytest's import mode keep the checkout off the path, so the tests import the wheel.
    session.run("python", "-P", *measured, "-m", "pytest", "-q", *PARALLEL, *arguments, *session.posargs)


@nox.session(python=PYTHONS[1:-1] or PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests of hooks, redaction, and promises against the wheel, with pinned dependency versions."""
    session.install("--compile-bytecode", "--require-hashes", "-r", str(PINS / "development.txt"))
    session.install("--no-deps", str(_wheel(session)))
    _test(session, *_without(*PROGRAMS, *PURE, *ELSEWHERE))


@nox.session(python=LOWEST)
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest dependency versions that pyproject.toml allows."""
    session.install(
        "--compile-bytecode",
        "--resolution",
        "lowest-direct",
        "--group",
        "test",
        f"otel-token-relay[{EXTRAS}] @ {_wheel(session).as_uri()}",
    )
    # Different releases of a server can call the application elsewhere, and different releases of OpenTelemetry
    # read a configuration file differently.
    kept = ("tests/attacks/test_configuration_file.py", "tests/servers/test_web_servers.py")
    _test(session, *_without(*(path for path in PROGRAMS if path not in kept), *PURE, *SLOW))


@nox.session(python=LOWEST)
def oldest(session: nox.Session) -> None:
    """Run the tests that involve OpenTelemetry with the oldest supported release of OpenTelemetry."""
    session.install("--compile-bytecode", "--group", "oldest", f"otel-token-relay[verify] @ {_wheel(session).as_uri()}")
    _test(session, *OLDEST_TESTS)


@nox.session(venv_backend="none")
def injected(session: nox.Session) -> None:
    """Inject the wheel into five applications with older packages, as the OpenTelemetry operator does.

    Their environments are installed into ``.cache`` on first use. The tests themselves need the dependencies of
    `make test`.
    """
    # Each worker builds the wheel and the image's directory.
    command = (sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "tests/injected")
    session.run(*command, *session.posargs, env={"INJECTED": "1"})


# Pages whose packages are not in the development environment. `make test` follows the remaining pages.
PAGES = ("docs/quickstarts/agents.md", "docs/observability-vendors.md")


@nox.session
def pages(session: nox.Session) -> None:
    """Follow pages in new virtual environments, with the built wheel. With FULL_MATRIX=1, follow all of them."""
    chosen = () if FULL else PAGES
    session.run("python", "tools/quickstarts.py", *(session.posargs or chosen))


@nox.session
def coverage(session: nox.Session) -> None:
    """Combine the other sessions' coverage, and fail if it is below the minimum in pyproject.toml."""
    if not os.environ.get("COVERAGE"):
        session.skip("set COVERAGE=1 to measure coverage, which takes nearly twice as long")
    session.install("coverage>=7.17")
    session.run("coverage", "combine")
    session.run("coverage", "report", "--skip-covered")
