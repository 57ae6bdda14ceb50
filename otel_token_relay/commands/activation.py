"""Whether the relay is switched on, judged from outside the process. Nothing is imported."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Final

from otel_token_relay.configuration_file import KEY, read_configuration_file
from otel_token_relay.spelling import nearest

VARIABLE: Final = "OTEL_PROPAGATORS"
_DEFAULT: Final = "tracecontext,baggage"
_HOW: Final = f"set {VARIABLE}=tracecontext,baggage,token_relay"


def relay_problem(environ: Mapping[str, str]) -> str | None:
    """Return why no token is relayed, in one sentence; ``None`` if the relay is on.

    An application that calls `otel_token_relay.install` switches the relay on as well, which cannot be seen from
    outside.
    """
    known = {point.name for point in entry_points(group="opentelemetry_propagator")}
    names = [name.strip() for name in (environ.get(VARIABLE) or _DEFAULT).split(",")]
    is_on = read_configuration_file(environ).names_propagator
    off = f"{VARIABLE} does not contain {KEY}"
    # OpenTelemetry loads the propagators one by one, up to the first none.
    for name in names:
        if name.lower() == "none":
            off = f"{VARIABLE} contains none before any {KEY}"
            break
        if name not in known:
            return f"{VARIABLE} cannot be loaded, so the application does not start: {_unknown(name, known)}"
        is_on = is_on or name == KEY
    return None if is_on else f"the relay is off, because {off}: {_how(environ)}"


def _how(environ: Mapping[str, str]) -> str:
    if environ.get("OTEL_CONFIG_FILE", "").strip():
        return f"add {KEY} to propagator.composite in the configuration file, or {_HOW}"
    return f"{_HOW}, unless the application calls install()"


def _unknown(name: str, known: set[str]) -> str:
    shown = ascii(name)[1:-1][:60]
    meant = nearest(name.replace("-", "_").replace(" ", "_"), sorted(known))
    if name.replace("-", "").replace("_", "").lower() == KEY.replace("_", ""):
        meant = KEY
    hint = f"; did you mean {meant}?" if meant is not None else "; install the package that contains it"
    return f"there is no propagator {shown or '(empty)'}{hint}"
