"""The ten faults, each of which changes one service's environment or the issuer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"
USER_SERVICE = "user-service"
PROFILE_SERVICE = "profile-service"


@dataclass(frozen=True)
class Fault:
    """A fault and its location.

    The values of variables can contain ``{profile_service}``, ``{profile_host}``, ``{issuer}``, and ``{folder}``.

    Attributes:
        section: The heading of the fault's section in ``docs/troubleshooting.md``.
        status: The status of user-service's response.
        at: The service whose environment must be corrected.
        environment: The service's changed variables; ``None`` removes a variable.
        files: The files to create in the run's directory, by name.
        issuer: The issuer's changed options.
        issuer_is_down: Whether the issuer does not listen.
        in_background: Whether user-service calls profile-service after its response.
    """

    section: str
    status: int = 401
    at: str = USER_SERVICE
    environment: Mapping[str, str | None] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    issuer: Mapping[str, Any] = field(default_factory=dict)
    issuer_is_down: bool = False
    in_background: bool = False


# The order differs from that of the page, so the numbers do not reveal the section.
FAULTS = {
    1: Fault("The token is for another audience", at=PROFILE_SERVICE, environment={f"{PREFIX}AUDIENCE": "profiles"}),
    2: Fault("The destination differs from the entry", environment={f"{PREFIX}DESTINATIONS": "{profile_host}"}),
    3: Fault(
        "The request has a credential of its own",
        environment={"HOME": "{folder}"},
        files={".netrc": "machine 127.0.0.1\nlogin reports\npassword nightly-job\n"},
    ),
    4: Fault("The issuer's tokens have another type", at=PROFILE_SERVICE, issuer={"token_type": "JWT"}),
    5: Fault("The relay is off", environment={"OTEL_PROPAGATORS": "tracecontext,baggage"}),
    6: Fault("The issuer does not respond", status=503, at=PROFILE_SERVICE, issuer_is_down=True),
    7: Fault("The call is made after the request has ended", in_background=True),
    8: Fault("The issuer's name differs", at=PROFILE_SERVICE, environment={f"{PREFIX}ISSUERS": "{issuer}/"}),
    9: Fault(
        "A variable is misspelled, or the origin is not listed",
        environment={f"{PREFIX}DESTINATIONS": None, f"{PREFIX}DESTINATION": "{profile_service}"},
    ),
    10: Fault("The token has expired, or the clocks differ", issuer={"clock_error": -7200}),
}

RELAY = {
    "OTEL_PROPAGATORS": "tracecontext,baggage,token_relay",
    f"{PREFIX}DESTINATIONS": "{profile_service}",
}
VERIFICATION = {
    f"{PREFIX}VERIFY": "enforce",
    f"{PREFIX}ISSUERS": "{issuer}",
    f"{PREFIX}AUDIENCE": "profile-service",
}
