"""Sessions that need environments of their own: every Python, the oldest dependencies, the built wheel.

    nox                  everything that .ci/run runs
    nox -s tests-3.12    the tests on one Python
    COVERAGE=1 nox       the same, with branch coverage over all sessions

The supported versions of Python are the classifiers in pyproject.toml. A version that this machine does not
have is skipped, and the session says so.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
LOWEST = PYTHONS[0]
PINS = ROOT / "requirements"
# Two workers for each core: most tests wait for servers of their own.
PARALLEL = ("-n", str(2 * (os.cpu_count() or 1)), "--dist", "worksteal")
EXTRAS = "verify,exchange,demo"
# What the frameworks of today need is newer than the oldest OpenTelemetry that the package supports. These
# tests need no client or server but their own.
OLDEST_TESTS = [line for line in (ROOT / "requirements" / "oldest-tests.txt").read_text().split() if line]

# What depends on the programs that a test starts, not on the version of Python or of a library. `make test` runs it,
# and FULL_MATRIX=1 runs it in every session.
PROGRAMS = (
    "tests/attacks/test_h01_moved_paths.py",
    "tests/attacks/test_h02_enforcement.py",
    "tests/demo",
    "tests/docs",
    "tests/promises/test_zero_code.py",
    "tests/redaction/test_live_leaks.py",
    "tests/test_benchmarks.py",
    "tests/test_soak.py",
    "tests/test_soak_threads.py",
    "tests/verification/test_examples.py",
)

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = False
nox.options.sessions = ["tests", "lowest", "oldest", "coverage"]

# uv finds the interpreters of pyenv if they are on the path, and downloads none.
os.environ["UV_PYTHON_DOWNLOADS"] = "never"
os.environ["PATH"] = os.pathsep.join(
    [
        os.environ["PATH"],
        *map(str, sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))),
    ]
)


def _without_programs() -> list[str]:
    return [] if os.environ.get("FULL_MATRIX") else [f"--ignore={path}" for path in PROGRAMS]


def _wheel(session: nox.Session) -> Path:
    """Build the wheel and return it."""
    target = Path(session.create_tmp()) / "dist"
    shutil.rmtree(target, ignore_errors=True)
    session.run("uv", "build", "--quiet", "--wheel", "--out-dir", str(target), external=True)
    return next(target.resolve().glob("*.whl"))


def _test(session: nox.Session, *arguments: str) -> None:
    """Run pytest; with COVERAGE=1 under coverage, which also measures the processes that the tests start."""
    measured = ("-m", "coverage", "run") if os.environ.get("COVERAGE") else ()
    # -P and the import mode of pytest keep the checkout out of the path: the wheel is what is tested.
    session.run("python", "-P", *measured, "-m", "pytest", "-q", *PARALLEL, *arguments, *session.posargs)


@nox.session(python=PYTHONS[1:-1] or PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests against the wheel, with the pinned versions."""
    session.install("--compile-bytecode", "--require-hashes", "-r", str(PINS / "development.txt"))
    session.install("--no-deps", str(_wheel(session)))
    _test(session, *_without_programs())


@nox.session(python=LOWEST)
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml allows."""
    session.install(
        "--compile-bytecode",
        "--resolution",
        "lowest-direct",
        "--group",
        "test",
        f"otel-token-relay[{EXTRAS}] @ {_wheel(session).as_uri()}",
    )
    _test(session, *_without_programs())


@nox.session(python=LOWEST)
def oldest(session: nox.Session) -> None:
    """Run what concerns OpenTelemetry on the oldest release that is supported."""
    session.install("--compile-bytecode", "--group", "oldest", f"otel-token-relay[verify] @ {_wheel(session).as_uri()}")
    _test(session, *OLDEST_TESTS)


@nox.session
def coverage(session: nox.Session) -> None:
    """Combine what the other sessions measured, and fail below the floor in pyproject.toml."""
    if not os.environ.get("COVERAGE"):
        session.skip("set COVERAGE=1 to measure; it takes nearly twice as long")
    session.install("coverage>=7.17")
    session.run("coverage", "combine")
    session.run("coverage", "report", "--skip-covered")
