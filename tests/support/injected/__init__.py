"""Applications in their own environments, with this package injected as the OpenTelemetry operator injects it.

The operator copies its image's directory into the pod and sets PYTHONPATH, so the image's packages take precedence
over the application's. Source: ``internal/instrumentation/python.go`` and ``autoinstrumentation/python/Dockerfile``
of open-telemetry/opentelemetry-operator.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support import installed
from tests.support.processes import ROOT, Service, service

FOLDER = Path(__file__).parent
IMAGE = ROOT / "examples" / "kubernetes" / "image"
APPLICATIONS = {
    "flask": ("-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "1", "flask_app:app"),
    "django": ("django_app.py",),
    "fastapi": ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "0", "fastapi_app:app"),
    "aiohttp": ("aiohttp_app.py",),
    "celery": ("celery_app.py",),
}

# This environment is the same, but without urllib3, so that the application uses the image's copy.
WITHOUT_URLLIB3 = "fastapi-new"


def build_plain_image(target: Path) -> Path:
    """Install all packages into the *target* directory, as the operator's own Dockerfile does for
    ``/autoinstrumentation``.
    """
    # Hard links are disabled because uv shares package files among all environments, and a file is replaced below.
    shutil.copytree(installed.injected_image(), target)
    shutil.rmtree(target / "bin")
    wheels = target.parent / "wheels"
    _run("uv", "build", "--quiet", "--wheel", "--out-dir", str(wheels), str(ROOT))
    (wheel,) = wheels.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    _run(*pip, "--target", str(target), str(wheel))
    return target


def build_image(target: Path) -> Path:
    """Fill *target* with the commands that the example's Dockerfile runs to fill ``/autoinstrumentation``."""
    text = (IMAGE / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    (workdir,) = re.findall(r"^WORKDIR (.*)$", text, re.MULTILINE)
    (commands,) = re.findall(r"^RUN pip install [^&]* && (.*)$", text, re.MULTILINE)
    (copied,) = re.findall(r"^COPY sitecustomize.py (.*)$", text, re.MULTILINE)
    inside = {name: Path(name.replace("/image", str(target), 1)) for name in (workdir, copied)}
    inside[workdir].parent.mkdir(parents=True)
    build_plain_image(inside[workdir])
    _run("sh", "-e", "-c", f"cd {inside[workdir]}; {commands.replace('/image/', f'{target}/')}")
    shutil.copy(IMAGE / "sitecustomize.py", inside[copied])
    return target


def run(name: str, image: Path, environ: Mapping[str, str]) -> AbstractContextManager[Service]:
    """Start an application with the injected image."""
    command = APPLICATIONS["fastapi" if name == WITHOUT_URLLIB3 else name]
    python = str(installed.injected_application(name))
    return service(python, *command, cwd=FOLDER, environ=_variables(image) | dict(environ))


def check(name: str, image: Path, environ: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``otel-token-relay check`` with the Python and the variables of an application's container."""
    command = [str(installed.injected_application(name)), "-m", "otel_token_relay", "check", *options]
    variables = installed.clean_environ() | _variables(image) | dict(environ)
    return subprocess.run(command, cwd=FOLDER, env=variables, capture_output=True, text=True, timeout=120, check=False)


def _variables(image: Path) -> dict[str, str]:
    """Return the variables that the operator sets. The container's own PYTHONPATH is between the operator's two
    directories.
    """
    auto = image / "opentelemetry" / "instrumentation" / "auto_instrumentation"
    return {
        "PYTHONPATH": os.pathsep.join(map(str, (auto, FOLDER, image))),
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "",
        "DJANGO_SETTINGS_MODULE": "django_settings",
        **{f"OTEL_{signal}_EXPORTER": "otlp_json_http" for signal in ("TRACES", "METRICS", "LOGS")},
    }


def _run(*command: str) -> None:
    environment = installed.clean_environ() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, env=environment, check=True, timeout=300)
