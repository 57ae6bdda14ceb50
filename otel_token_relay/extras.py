"""The packages that this package's extras require, compared with the installed packages.

An environment can contain versions that pip would not have chosen: a directory on PYTHONPATH, such as the one that the
OpenTelemetry operator adds, is combined with the application's own packages.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import metadata

_logger = logging.getLogger("otel_token_relay")


def unmet(extra: str) -> list[str]:
    """Return one clause for each package that is missing or whose version *extra* does not accept. Never raises."""
    try:
        return list(_unmet(extra))
    except Exception:  # the environment has no readable metadata for this package
        _logger.debug("the requirements of an extra cannot be read", exc_info=True)
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
    """Return the *error* message; if a module could not be imported, append the unmet requirements of *extra*."""
    clauses = unmet(extra) if isinstance(error, ImportError) else []
    return "; ".join([str(error), *clauses])
