"""Determine whether a process's environment turns on the relay.

This module looks up entry points by name but does not load them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final

from otel_token_relay.configuration_file import FILE_VARIABLE, KEY, read_configuration_file
from otel_token_relay.installation import CONTEXT_PROBLEM
from otel_token_relay.printable import escape
from otel_token_relay.spelling import nearest

VARIABLE: Final = "OTEL_PROPAGATORS"
_DEFAULT: Final = "tracecontext,baggage"
_CONTEXT: Final = "OTEL_PYTHON_CONTEXT"
_DEFAULT_CONTEXT: Final = "contextvars_context"


def relay_problem(environ: Mapping[str, str]) -> str | None:
    """Return an explanation of why the relay is off and how to turn it on, or ``None`` if the relay is on.

    An application can also turn on the relay by calling `otel_token_relay.install`. This function cannot detect such a
    call.
    """
    known = {point.name for point in entry_points(group="opentelemetry_propagator")}
    names = [name.strip() for name in (environ.get(VARIABLE) or _DEFAULT).split(",")]
    proposal = f"set {VARIABLE}={_proposal(names, known)}"
    file = read_configuration_file(environ)
    off = "does not contain" if environ.get(VARIABLE) else "is not set, so it does not contain"
    if file.problem is not None:
        proposal = f"correct {FILE_VARIABLE}, if that file contains {KEY}, or {proposal}"
    elif environ.get(FILE_VARIABLE, "").strip():
        proposal = f"add {KEY} to propagator.composite in the configuration file, or {proposal}"
    is_on = file.names_propagator
    # OpenTelemetry loads the propagators in order and stops at the first "none".
    for name in names:
        if name.lower() == "none":
            off = "contains none before any"
            break
        if name not in known:
            return f"{VARIABLE} contains {_unknown(name, known)} The application cannot start: {proposal}"
        is_on = is_on or name == KEY
    return None if is_on else f"the relay is off, because {VARIABLE} {off} {KEY}: {proposal}, or call install()"


def context_problem(environ: Mapping[str, str]) -> str | None:
    """Return a description of the problem with the context implementation that OTEL_PYTHON_CONTEXT specifies.

    Return ``None`` for the default context implementation.
    """
    name = environ.get(_CONTEXT) or _DEFAULT_CONTEXT
    if name == _DEFAULT_CONTEXT:
        return None
    if not entry_points(group="opentelemetry_context", name=name):
        return (
            f"{_CONTEXT} contains {escape(name)[:60]}, which no installed package provides, so OpenTelemetry logs an"
            " error and uses its default context: unset this variable"
        )
    return CONTEXT_PROBLEM


def _unknown(name: str, known: Collection[str]) -> str:
    shown = escape(name)[:60] or "an empty name"
    meant = _meant(name, known)
    return f"{shown}, which no installed package provides{'.' if meant is None else f'; did you mean {meant}?'}"


def _meant(name: str, known: Collection[str]) -> str | None:
    """Return the propagator name that most closely resembles *name*, or ``None`` if no name is similar."""
    plain = name.strip("\"'").replace("-", "_").replace(" ", "_").replace(".", "_")
    return next(iter({plain.lower()} & {KEY}), None) or nearest(plain, [KEY, *sorted(known)])


def _proposal(names: Sequence[str], known: Collection[str]) -> str:
    """Return the list of propagators with misspelled names corrected, unknown names removed, and the relay added."""
    meant = dict.fromkeys(name if name in known else _meant(name, known) for name in names)
    kept = [name for name in meant if name is not None and name not in (KEY, "none")]
    return ",".join([*(kept or _DEFAULT.split(",")), KEY])
