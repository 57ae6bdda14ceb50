"""Whether an environment switches the relay on. Entry points are looked up by name; nothing is imported."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Final

from otel_token_relay.spelling import resembles

VARIABLE: Final = "OTEL_PROPAGATORS"
NAME: Final = "token_relay"
# As `opentelemetry.propagate` does, which reads the variable when it is imported.
_DEFAULT: Final = "tracecontext,baggage"
_GROUP: Final = "opentelemetry_propagator"


def activation_problem(environ: Mapping[str, str]) -> str | None:
    """Return why the relay is off in processes with these environment variables, and what to set; ``None`` if it is on.

    It is a single sentence. An application that calls ``install()`` switches the relay on as well, regardless of the
    variable, unless OpenTelemetry cannot start.
    """
    text = environ.get(VARIABLE, "")
    names = [name.strip() for name in text.split(",")]
    if not text.strip():
        state = "is blank, so the application does not start" if text else f"is not set, so it is {_DEFAULT}"
        return f"{VARIABLE} {state}: set {VARIABLE}={_DEFAULT},{NAME}, or call install() in the application"
    if any(name.lower() == "none" for name in names):
        return f"{VARIABLE} contains none, which removes all propagators: set {VARIABLE}={_proposal(names)}"
    unknown = [name for name in dict.fromkeys(names) if not _exists(name)]
    meant = next((name for name in names if name != NAME and _is_misspelled(name)), None)
    if meant is not None and NAME not in names:
        return f"{VARIABLE} contains {_shown(meant)}, not {NAME}{_effect(unknown)}: set {VARIABLE}={_proposal(names)}"
    if unknown:
        return (
            f"{VARIABLE} contains {', '.join(map(_shown, unknown))}{_effect(unknown)}: install the package, or set"
            f" {VARIABLE}={_proposal(names)}"
        )
    if NAME not in names:
        return f"{VARIABLE} does not contain {NAME}: set {VARIABLE}={_proposal(names)}, or call install()"
    return None


def _exists(name: str) -> bool:
    return bool(name) and bool(entry_points(group=_GROUP, name=name))


def _effect(unknown: list[str]) -> str:
    return ", which no installed package provides, so the application does not start" if unknown else ""


def _is_misspelled(name: str) -> bool:
    return resembles(name.replace("-", "_").replace(" ", "_").replace(".", "_"), NAME)


def _proposal(names: list[str]) -> str:
    """Return the same list with the relay and without names that no installed package provides."""
    kept = [name for name in dict.fromkeys(names) if name != NAME and name.lower() != "none" and _exists(name)]
    return ",".join([*(kept or _DEFAULT.split(",")), NAME])


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:60] or "an empty name"
