"""Run the tests on the other supported Pythons that are here, on the oldest with the lowest dependencies.

    python tests/matrix.py

What the frameworks of today need is newer than the oldest OpenTelemetry that the package supports,
so that one has a run of its own, of the tests that need no client or server but its own.

Each run has an environment of its own, ``.venv-NAME``, made with uv.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
LOWEST = "3.11"
# Not by the extra "all": what that names is not a direct dependency, and would not be the lowest.
EVERYTHING = ("--editable", ".[verify,exchange,demo]", "--group", "test")
OLDEST_TESTS = (
    "tests/attacks/test_h02_enforcement.py",
    "tests/attacks/test_s1_redaction_locks.py",
    "tests/promises/test_p3_never_in_telemetry.py",
    "tests/redaction/test_credential_patterns.py",
    "tests/redaction/test_deferred.py",
    "tests/redaction/test_fallback.py",
    "tests/redaction/test_installation.py",
    "tests/redaction/test_known_tokens.py",
    "tests/redaction/test_log_filter.py",
    "tests/redaction/test_logs.py",
    "tests/redaction/test_metrics.py",
    "tests/redaction/test_processors.py",
    "tests/redaction/test_scrubber.py",
    "tests/redaction/test_self_test.py",
    "tests/redaction/test_spans.py",
    "tests/servers/test_asgi.py",
    "tests/servers/test_wsgi.py",
    "tests/test_carrying.py",
    "tests/test_context.py",
    "tests/test_installation.py",
    "tests/test_propagator.py",
    "tests/test_relay.py",
    "tests/test_threads.py",
)


def find_python(version: str) -> str | None:
    """Return the path of that Python version as found by uv, or ``None``. Downloads nothing."""
    command = ["uv", "python", "find", "--no-python-downloads", "--system", version]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=_environ())
    return found.stdout.strip() or None


def _environ() -> dict[str, str]:
    bin_dir = str(Path(sys.executable).parent)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    pythons = [str(path / "bin") for path in sorted(pyenv.glob("3.*"))]
    environ = {**os.environ, "PATH": os.pathsep.join([bin_dir, *pythons, os.environ["PATH"]])}
    # uv would take an active environment for the interpreter it is asked for.
    environ.pop("VIRTUAL_ENV", None)
    return environ


def run(name: str, python: str, requirements: Sequence[str] = EVERYTHING, tests: Sequence[str] = ()) -> bool:
    """Build one environment, run the tests in it, and say whether they passed."""
    print(f"== {name}: {python}", flush=True)
    venv = ROOT / f".venv-{name}"
    own = str(venv / "bin" / "python")
    steps = [
        ["uv", "venv", "--quiet", "--clear", "--python", python, str(venv)],
        # Compiled once here, and not by each of the hundreds of processes that the tests start.
        ["uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", own, *requirements],
        [own, "-m", "pytest", "-q", "-n", str(2 * (os.cpu_count() or 1)), "--dist", "worksteal", *tests],
    ]
    return all(subprocess.run(step, cwd=ROOT, env=_environ(), check=False).returncode == 0 for step in steps)


def main() -> int:
    """Run what there is and name what is not."""
    current = f"{sys.version_info.major}.{sys.version_info.minor}"
    results: dict[str, bool] = {}
    for version in SUPPORTED:
        if version in (current, LOWEST):
            continue
        python = find_python(version)
        if python is None:
            print(f"== {version}: not on this machine")
        else:
            results[version] = run(version, python)
    # The oldest Python is also tested with the oldest dependencies.
    if (python := find_python(LOWEST)) is not None:
        results["lowest"] = run("lowest", python, ["--resolution", "lowest-direct", *EVERYTHING])
        results["oldest"] = run("oldest", python, ["--editable", ".[verify]", "--group", "oldest"], OLDEST_TESTS)
    for name, passed in results.items():
        print(f"{name}: {'passed' if passed else 'FAILED'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
