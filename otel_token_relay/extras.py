"""Compare the installed packages with the requirements of this package's extras.

An environment can contain package versions that pip would not install together. For example, the OpenTelemetry operator
adds a directory to PYTHONPATH, and that directory's packages are combined with the application's packages.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import metadata

_logger = logging.getLogger("otel_token_relay")


def unmet(extra: str) -> list[str]:
    """Describe each package that *extra* requires but that is missing or has an unsupported version."""
    try:
        return list(_unmet(extra))
    except Exception:  # this package's metadata cannot be read
        _logger.debug("cannot read the requirements of an extra", exc_info=True)
        return []


def _unmet(extra: str) -> Iterator[str]:
    from packaging.requirements import Requirement  # a dependency of opentelemetry-instrumentation

    for line in metadata.requires("otel-token-relay") or ():
        required = Requirement(line)
        if required.marker is None or not required.marker.evaluate({"extra": extra}):
            continue
        wanted = f"{required.name}{required.specifier}"
        try:
            version = metadata.version(required.name)
        except metadata.PackageNotFoundError:
            yield f"{wanted} is not installed"
            continue
        if not required.specifier.contains(version, prereleases=True):
            yield f"{required.name} {version} is installed, but {wanted} is required"


def with_unmet(error: Exception, extra: str) -> str:
    """Return the error message. If *error* is an `ImportError`, append the unmet requirements of *extra*."""
    clauses = unmet(extra) if isinstance(error, ImportError) else []
    return "; ".join([str(error), *clauses])
