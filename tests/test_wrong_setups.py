"""For each incorrect setup, `check`, `explain`, `verify`, and the log contain words that lead to the cause.

`tests/support/set_ups.py` runs the commands and the relay.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.issuers import Issuer
from tests.support.set_ups import OPAQUE, PREFIX, SECRET, Observed, Output, Says, SetUp, observe, says
from tests.support.tokens import AUDIENCE, claims, hmac_token, make_token, unsigned
from tests.verification.test_concealment import runs_of

PROFILE: Final = "https://profile-service"
URL: Final = f"{PROFILE}/v1/me"
ON: Final = {"OTEL_PROPAGATORS": "tracecontext,baggage,token_relay"}
FILE: Final = {"OTEL_CONFIG_FILE": "{file}"}
VERIFYING: Final = {".VERIFY": "enforce", ".ISSUERS": "{issuer}", ".AUDIENCE": AUDIENCE}

NO_PROBLEM: Final = "No problems found"
CORRECT_SETTINGS: Final = "Correct the settings. The problem is described below."
CORRECT_ENTRY: Final = "Correct the entry. The problem is described below."
# The reason that `check` finds no problem.
ONLY_THE_CALL: Final = "check does not know which URLs the application calls"
ONLY_THE_TOKEN: Final = "check does not know which tokens the callers send"
RISKY: Final = "it works, so it is a warning, and a problem only with --strict"


def relay(**variables: str) -> dict[str, str]:
    """Return the variables of a service that relays to one destination, with changes."""
    changes = {name if name.startswith("OTEL") else f".{name}": value for name, value in variables.items()}
    return ON | {".DESTINATIONS": PROFILE} | changes


def verifying(**variables: str) -> dict[str, str]:
    """Return the variables of a service that also verifies tokens."""
    return relay() | VERIFYING | {f".{name}": value for name, value in variables.items()}


def without(variables: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}


# Propagators


def off(name: str, propagators: str | None, *words: str, startup: tuple[str, ...], instead: str = "") -> SetUp:
    """Describe a setup in which the relay is off although there is a destination."""
    variables = without(relay(), "OTEL_PROPAGATORS")
    instead = instead or "set OTEL_PROPAGATORS=tracecontext,baggage,token_relay"
    return SetUp(
        name=name,
        variables=variables if propagators is None else variables | {"OTEL_PROPAGATORS": propagators},
        check=says(1, "The relay is off", *words, instead),
        explain=says(1, "withheld: the relay is off", *words, instead, "With the relay on: relayed"),
        startup=startup,
    )


DOES_NOT_NAME: Final = ("DESTINATIONS is set, but OTEL_PROPAGATORS does not include token_relay",)
DOES_NOT_START: Final = ("the application does not start", "not found")

PROPAGATORS: Final = [
    SetUp(
        name="nothing is set",
        variables={},
        check=says(1, "nothing is configured", "to relay tokens, set", "to verify them, set"),
        explain=says(1, "the relay is off", f"{PREFIX}DESTINATIONS is not set in this environment", "--pid"),
    ),
    off("propagators unset", None, "OTEL_PROPAGATORS is not set", startup=DOES_NOT_NAME),
    off(
        "propagators without ours",
        "tracecontext,baggage",
        "OTEL_PROPAGATORS does not contain token_relay",
        startup=DOES_NOT_NAME,
    ),
    off("none before ours", "none,token_relay", "contains none before any token_relay", startup=DOES_NOT_NAME),
    off(
        "hyphen",
        "tracecontext,baggage,token-relay",
        "contains token-relay,",
        "did you mean token_relay?",
        startup=DOES_NOT_START,
    ),
    off(
        "upper case",
        "tracecontext,baggage,TOKEN_RELAY",
        "contains TOKEN_RELAY,",
        "did you mean token_relay?",
        startup=DOES_NOT_START,
    ),
    off("misspelled propagator", "tracecontext,baggage,token_rely", "contains token_rely,", startup=DOES_NOT_START),
    off(
        "semicolons between propagators",
        "tracecontext;baggage;token_relay",
        "contains tracecontext;baggage;token_relay, which no installed package provides",
        startup=DOES_NOT_START,
    ),
    off(
        "quotes around propagators",
        '"tracecontext,baggage,token_relay"',
        'contains "tracecontext, which no installed package provides; did you mean tracecontext?',
        startup=DOES_NOT_START,
    ),
    off(
        "propagator of a package that is missing",
        "tracecontext,b3multi,token_relay",
        "contains b3multi, which no installed package provides. The application cannot start",
        startup=DOES_NOT_START,
        instead="set OTEL_PROPAGATORS=tracecontext,token_relay",
    ),
    off(
        "comma at the end",
        "tracecontext,token_relay,",
        "contains an empty name",
        startup=DOES_NOT_START,
        instead="set OTEL_PROPAGATORS=tracecontext,token_relay",
    ),
    SetUp(
        name="misspelled OTEL_PROPAGATORS",
        variables=without(relay(OTEL_PROPAGATOR="token_relay"), "OTEL_PROPAGATORS"),
        check=says(1, "OTEL_PROPAGATOR: unknown variable; did you mean OTEL_PROPAGATORS?", "The relay is off"),
        explain=says(1, "the relay is off", "problem: OTEL_PROPAGATOR: unknown variable; did you mean"),
        startup=("OTEL_PROPAGATOR: unknown variable; did you mean OTEL_PROPAGATORS?",),
    ),
    SetUp(
        name="runtime context of a package that is missing",
        variables=relay(OTEL_PYTHON_CONTEXT="datadog_context"),
        check=says(
            1,
            "OTEL_PYTHON_CONTEXT contains datadog_context, which no installed package provides",
            "unset this variable",
            never=("no tokens are relayed",),
        ),
        explain=says(0, "relayed"),
        line=("decision=relayed",),
    ),
    SetUp(
        name="the relay is required",
        variables=VERIFYING,
        arguments=("--require", "relay"),
        check=says(1, "the relay is off", "set OTEL_PROPAGATORS"),
        explain=says(1, "the relay is off"),
        verify=says(1, "rejected: malformed"),
        line=("verification=refused",),
    ),
    SetUp(
        name="the command is installed apart from the service",
        variables=relay(),
        libraries=(),
        check=says(1, "no client, server, or framework that can be hooked", "the service's environment"),
        explain=says(0, "relayed"),
        line=("decision=relayed",),
    ),
]


# Names of variables


def unknown_name(name: str, *, meant: str = f"{PREFIX}DESTINATIONS") -> SetUp:
    """Describe a setup whose variable for destinations is misspelled, so there are no destinations."""
    problem = f"{name}: unknown variable; did you mean {meant}?"
    return SetUp(
        name=f"variable {name}",
        variables=ON | {name: PROFILE},
        check=says(1, problem, "no valid destination remains"),
        explain=says(1, CORRECT_SETTINGS, problem, never=("--pid",)),
        startup=(problem,),
        line=("decision=withheld", "reason=destination_not_listed", f"origin={PROFILE}"),
    )


NAMES: Final = [
    unknown_name(f"{PREFIX}DESTINATION"),
    unknown_name("otel_python_token_relay_destinations"),
    unknown_name("OTEL-PYTHON-TOKEN-RELAY-DESTINATIONS"),
    unknown_name("OTEL_TOKEN_RELAY_DESTINATIONS"),
    unknown_name("TOKEN_RELAY_DESTINATIONS"),
    unknown_name("OTEL_PYTHON_TOKEN_RELY_DESTINATIONS"),
    unknown_name("OTEL_PYTHON_TOKENRELAY_DESTINATIONS"),
    SetUp(
        name="variable of another program",
        variables=ON | {".ALLOWED_HOSTS": PROFILE},
        check=says(1, f"{PREFIX}ALLOWED_HOSTS: unknown variable", f"set {PREFIX}DESTINATIONS"),
        explain=says(1, f"{PREFIX}ALLOWED_HOSTS: unknown variable", "DESTINATIONS is not set"),
        startup=(f"{PREFIX}ALLOWED_HOSTS: unknown variable",),
        line=("reason=destination_not_listed",),
    ),
    SetUp(
        name="variable that does not exist, beside a working relay",
        variables=relay(TIMEOUT="5"),
        check=says(1, f"{PREFIX}TIMEOUT: unknown variable; the configuration page lists all variables"),
        explain=says(0, "relayed", f"{PREFIX}TIMEOUT: unknown variable"),
        startup=(f"{PREFIX}TIMEOUT: unknown variable",),
        line=("decision=relayed",),
    ),
    SetUp(
        name="blank destinations",
        variables=relay(DESTINATIONS="  "),
        check=says(1, "no destination is listed", f"set {PREFIX}DESTINATIONS"),
        explain=says(1, "DESTINATIONS is not set in this environment", "--pid"),
        line=("reason=destination_not_listed",),
    ),
    SetUp(
        name="misspelled REQUIRE_VERIFIED, which is guarded",
        variables=relay(REQUIRE_VERIFED="true"),
        check=says(1, "did you mean", f"{PREFIX}REQUIRE_VERIFIED? Until the name is corrected", "true applies"),
        explain=says(1, "withheld: not_verified", f"did you mean {PREFIX}REQUIRE_VERIFIED?"),
        startup=(f"did you mean {PREFIX}REQUIRE_VERIFIED?", "true applies"),
        line=("decision=withheld", "reason=not_verified"),
    ),
    SetUp(
        name="misspelled VERIFY, which is guarded",
        variables=relay(VERIFIY="enforce"),
        check=says(
            1,
            f"did you mean {PREFIX}VERIFY? Until the name is corrected",
            "enforce applies",
            f"because {PREFIX}ISSUERS and {PREFIX}AUDIENCE have no valid value",
            "requests receive a 503 response",
        ),
        explain=says(1, "problem: ", "requests receive a 503 response"),
        verify=says(1, "not configured", f"Set {PREFIX}ISSUERS and {PREFIX}AUDIENCE", f"did you mean {PREFIX}VERIFY?"),
        startup=(f"{PREFIX}VERIFIY: unknown variable", "enforce applies"),
        line=("verification=unavailable", "reason=cannot_start"),
    ),
    SetUp(
        name="misspelled VERIFY that switches off",
        variables=relay(VERIFIY="off"),
        check=says(1, f"did you mean {PREFIX}VERIFY?", "requests are not verified", never=("applies",)),
        explain=says(0, f"did you mean {PREFIX}VERIFY?"),
        startup=(f"did you mean {PREFIX}VERIFY?",),
        line=("decision=relayed",),
    ),
]


# Values


def value(setting: str, given: str, expected: str, applies: str, **changes: Any) -> SetUp:
    """Describe a setup in which a setting has an unreadable value, so a stricter value applies."""
    problem = f"{PREFIX}{setting}: {expected}"
    shown = f"{PREFIX}{setting} = {applies} (environment; the configured value is invalid)"
    row: dict[str, Any] = {
        "name": f"{setting}={given}",
        "variables": relay(**{setting: given}),
        "check": says(1, problem, shown),
        "explain": says(0, "relayed", f"problem: {problem}"),
        "startup": (problem,),
        "line": ("decision=relayed",),
    }
    return SetUp(**row | changes)


SECONDS: Final = "expected a number of seconds, such as 30 or 0.5"
NOT_LISTED: Final = ("decision=withheld", "reason=destination_not_listed")

VALUES: Final = [
    value("MAX_AGE", "5m", SECONDS, "0"),
    value("MAX_AGE", "-1", "expected a number of seconds, 0 or more", "0"),
    value("LINGER", "0,5", SECONDS, "0"),
    value("MIN_TTL", "soon", SECONDS, "0"),
    value("MAX_LENGTH", "16k", "expected a whole number greater than 0", "16384"),
    value("REDACTION", "disabled", "expected true or false", "true"),
    value("LOG", "info", "expected one of decisions, debug", "(empty)"),
    value("SPAN_CLAIMS", "sub", "expected claim:attribute pairs, such as sub:enduser.id", "(empty)"),
    value(
        "REQUIRE_VERIFIED",
        "always",
        "expected true or false",
        "true",
        explain=says(1, "withheld: not_verified", "expected true or false"),
        line=("reason=not_verified",),
    ),
    value(
        "HEADER",
        "Authorization:",
        "expected a header name; until this is corrected, no tokens are relayed",
        "Authorization",
        explain=says(1, CORRECT_SETTINGS, f"{PREFIX}HEADER:", never=("Add the origin",)),
        line=NOT_LISTED,
    ),
    value(
        "HEADER",
        "Cookie",
        "the header Cookie is reserved and cannot contain a token; until this is corrected, no tokens are relayed",
        "Authorization",
        explain=says(1, CORRECT_SETTINGS, "Cookie is reserved", never=("Add the origin",)),
        line=NOT_LISTED,
    ),
    value(
        "SOURCE_HEADERS",
        "authorization;x-token",
        "expected a header name; until this is corrected, no token is read from any request",
        "(empty)",
        explain=says(1, "withheld: no_token", f"Correct {PREFIX}SOURCE_HEADERS. Until then, no token is read"),
        line=("decision=withheld", "reason=no_token"),
    ),
    value(
        "ON_CONFLICT",
        "overwrite",
        "expected keep or replace",
        "keep",
        url=f"https://me:{SECRET}@profile-service/",
        explain=says(
            1,
            "withheld: explicit_credential",
            "or the URL (a username, signature, or token)",
            "expected keep or replace",
        ),
        line=("decision=withheld", "reason=explicit_credential"),
    ),
    value(
        "PLAINTEXT_HOSTS",
        "http://profile-service",
        "expected hosts without a scheme, such as profile-service",
        "(empty)",
        variables=relay(DESTINATIONS="http://profile-service", PLAINTEXT_HOSTS="http://profile-service"),
        url="http://profile-service/",
    ),
    value(
        "VERIFY",
        "yes",
        "expected one of off, report, optional, enforce",
        "enforce",
        variables=verifying(VERIFY="yes"),
        verify=says(1, "rejected: malformed", f"{PREFIX}VERIFY: expected one of off, report, optional, enforce"),
        line=("verification=refused",),
    ),
    value(
        "ALGORITHMS",
        "HS256",
        "expected one or more of RS256, ",
        "(empty)",
        variables=verifying(ALGORITHMS="HS256"),
        explain=says(1, "withheld: requests get 503", f"{PREFIX}ALGORITHMS has no valid value"),
        verify=says(1, "not configured", f"Set {PREFIX}ALGORITHMS", f"{PREFIX}ALGORITHMS has no valid value"),
        line=("verification=unavailable", "reason=cannot_start"),
    ),
    value(
        "PROFILE",
        "oidc",
        "expected one of rfc9068, generic",
        "rfc9068",
        variables=verifying(PROFILE="oidc"),
        token=lambda issuer: make_token(claims(issuer.url), typ="JWT"),
        verify=says(1, "rejected: wrong_type", "expected at+jwt", f"{PREFIX}PROFILE: expected one of"),
        line=("reason=wrong_type",),
    ),
    value(
        "VERIFY_EXCLUDE",
        "healthz",
        "expected paths that start with /",
        "(empty)",
        variables=verifying(VERIFY_EXCLUDE="healthz"),
        token=lambda issuer: make_token(claims(issuer.url)),
        verify=says(0, "accepted", f"{PREFIX}VERIFY_EXCLUDE: expected paths"),
        line=("verification=accepted",),
    ),
]


# Entries


def entry(name: str, destinations: str, *words: str, url: str = URL, never: tuple[str, ...] = ()) -> SetUp:
    """Describe a setup with an invalid entry, which is skipped, so its origin gets no token."""
    return SetUp(
        name=f"entry: {name}",
        variables=relay(DESTINATIONS=destinations),
        url=url,
        check=says(1, "is skipped", *words, "no valid destination remains", "see the problems above", never=never),
        explain=says(1, "withheld: destination_not_listed", CORRECT_ENTRY, *words),
        startup=("is skipped", *words),
        line=(*NOT_LISTED, "closest_entry=", "the entry is skipped"),
    )


def unreadable(name: str, destinations: str, *words: str, url: str = URL, never: tuple[str, ...] = ()) -> SetUp:
    """Describe a setup with an invalid entry whose origin is unknown."""
    return SetUp(
        name=f"entry: {name}",
        variables=relay(DESTINATIONS=destinations),
        url=url,
        check=says(1, "is skipped", *words, "no valid destination remains", never=never),
        explain=says(1, CORRECT_SETTINGS, *words, never=("Add the origin", *never)),
        startup=("is skipped", *words),
        line=NOT_LISTED,
    )


ENTRIES: Final = [
    entry("misspelled scheme", "htps://profile-service", 'not "htps"; did you mean https://profile-service?'),
    entry("another scheme", "ftp://profile-service", 'the scheme must be http or https, not "ftp"'),
    entry(
        "gRPC scheme",
        "grpc://profile-service:50051",
        "for a gRPC target, write https://host:port with TLS or http://host:port without TLS",
        url=f"{PROFILE}:50051/",
    ),
    unreadable(
        "Unix socket",
        "unix:///run/app.sock",
        "the scheme unix is not supported: requests to such targets never get a token",
        never=("must not contain a path",),
    ),
    entry("port by name", f"{PROFILE}:https", f'the port "https" is not a number; did you mean {PROFILE}:443?'),
    entry("range of ports", f"{PROFILE}:8000-8100", "write one entry for each port, or :* for any port"),
    entry("port that is too large", f"{PROFILE}:84430", 'the port "84430" is not between 1 and 65535'),
    entry("path", f"{PROFILE}/v1", 'unexpected characters "/v1"; an entry must not contain a path', f"write {PROFILE}"),
    entry("slash", f"{PROFILE}/", 'unexpected character "/"', f"write {PROFILE}"),
    entry("quotes", f'"{PROFILE}"', f"unexpected character '\"'; write {PROFILE}"),
    entry("quotes around a list", f'"{PROFILE},https://billing"', "unexpected character '\"'; write https://billing"),
    entry("JSON list", f'["{PROFILE}"]', 'unexpected characters "["', f"write {PROFILE}"),
    entry("blank between entries", f"{PROFILE} https://billing", "unexpected blank; separate entries with commas"),
    entry("line break", f"{PROFILE}\nhttps://billing", "unexpected line break; separate entries with commas"),
    entry("semicolon", f"{PROFILE};https://billing", 'unexpected character ";"; separate entries with commas'),
    entry("bar", f"{PROFILE}|https://billing", 'unexpected character "|"', f"write {PROFILE},https://billing"),
    entry(
        "misspelled parameter", f"{PROFILE};require", f"unknown parameter ;require; did you mean {PROFILE};required?"
    ),
    entry(
        "value of a flag", f"{PROFILE};required=true", f";required does not accept a value; write {PROFILE};required"
    ),
    entry("parameter after a comma", f"{PROFILE},required", "required is a parameter and must follow a semicolon"),
    entry(
        "other parameters beside never", f"{PROFILE};never;required", ";never cannot be combined with other parameters"
    ),
    entry("short name of audience", f"{PROFILE};aud=profile", f"did you mean {PROFILE};audience=profile?"),
    entry("audience without a value", f"{PROFILE};audience=", "the parameter audience requires a value: ;audience=..."),
    entry("comma in a scope", f"{PROFILE};scope=a,b", f"write {PROFILE};scope=a%2Cb or {PROFILE};scope=a,https://b"),
    entry("percent sign in a scope", f"{PROFILE};scope=100%", "write % as %25"),
    entry("user info", f"https://me:{SECRET}@profile-service", "must not contain a user name or password; write"),
    entry("address without brackets", "https://::1", "an IPv6 address must be in brackets", url="https://[::1]/"),
    entry(
        "wildcard in the middle",
        "https://profile.*.internal",
        "a * must be the whole host or its first label",
        url="https://profile.eu.internal/",
    ),
    entry(
        "wildcard without a dot",
        "https://*internal",
        "did you mean https://*.internal?",
        url="https://profile.internal/",
    ),
    entry(
        "leading dot",
        "https://.internal",
        "a host must not start with a dot; did you mean https://*.internal?",
        url="https://profile.internal/",
    ),
    entry("wildcard in an address", "https://10.0.0.*", "its first label", url="https://10.0.0.7/"),
    entry(
        "regular expression",
        r"https://.*\.internal",
        "an entry is not a regular expression; did you mean https://*.internal?",
        url="https://profile.internal/",
    ),
    entry("name in the value", f"DESTINATIONS={PROFILE}", 'unexpected characters "DESTINATIONS="', f"write {PROFILE}"),
    unreadable("range of addresses", "https://10.0.0.0/8", "list each address, because ranges are not supported"),
    unreadable(
        "variable that the shell did not replace",
        "https://${PROFILE_HOST}",
        'the variable "${PROFILE_HOST}" has not been replaced with its value',
    ),
    SetUp(
        name="entries that contradict each other",
        variables=relay(DESTINATIONS=f"{PROFILE},{PROFILE};required"),
        check=says(1, f"two entries for {PROFILE} contradict each other; both entries are skipped"),
        explain=says(1, "withheld: destination_not_listed", "the entry is skipped", "contradict each other"),
        startup=("contradict each other; both entries are skipped",),
        line=(*NOT_LISTED, "contradicts another entry"),
    ),
    SetUp(
        name="exchanged token without an endpoint",
        variables=relay(DESTINATIONS=f"{PROFILE};audience=profile"),
        check=says(
            1,
            f"no token can be exchanged for {PROFILE};audience=profile, because neither {PREFIX}TOKEN_ENDPOINT nor"
            f" {PREFIX}ISSUERS has a valid value",
        ),
        explain=says(1, "withheld: exchange_failed", f"neither {PREFIX}TOKEN_ENDPOINT nor {PREFIX}ISSUERS"),
        startup=("no token can be exchanged",),
        line=("decision=withheld", "reason=exchange_failed"),
    ),
    SetUp(
        name="exchanged token without a credential",
        variables=relay(DESTINATIONS=f"{PROFILE};audience=profile", TOKEN_ENDPOINT="https://idp.example/token"),
        check=says(1, f"this service has no credential: {PREFIX}CLIENT_ID has no valid value"),
        explain=says(1, "withheld: exchange_failed", f"{PREFIX}CLIENT_ID has no valid value"),
        startup=("no token can be exchanged",),
        line=("decision=withheld", "reason=exchange_failed"),
    ),
    SetUp(
        name="exchanged token with an unknown grant",
        variables=relay(DESTINATIONS=f"{PROFILE};audience=profile", EXCHANGE_GRANT="obo"),
        check=says(1, f"{PREFIX}EXCHANGE_GRANT: expected one of token-exchange, on-behalf-of, off"),
        explain=says(1, "withheld: exchange_failed", f"{PREFIX}EXCHANGE_GRANT is off"),
        startup=("EXCHANGE_GRANT: expected one of",),
        line=("decision=withheld", "reason=exchange_failed"),
    ),
    SetUp(
        name="exchanged token with an unknown actor",
        variables=relay(
            DESTINATIONS=f"{PROFILE};audience=profile",
            TOKEN_ENDPOINT="https://idp.example/token",
            CLIENT_ID="user-service",
            CLIENT_SECRET="s3cr3t",
            EXCHANGE_ACTOR="me",
        ),
        check=says(1, f"{PREFIX}EXCHANGE_ACTOR: expected one of none, client"),
        explain=says(1, "withheld: exchange_failed", f"{PREFIX}EXCHANGE_GRANT is off"),
        startup=("EXCHANGE_ACTOR: expected one of",),
        line=("decision=withheld", "reason=exchange_failed"),
    ),
    SetUp(
        name="exchanged token with an assertion for an unknown issuer",
        variables=relay(
            DESTINATIONS=f"{PROFILE};audience=profile",
            TOKEN_ENDPOINT="https://idp.example/token",
            CLIENT_ID="user-service",
            CLIENT_KEY_FILE="/run/secrets/key.pem",
        ),
        check=says(1, f"{PREFIX}CLIENT_AUTH cannot be used: private_key_jwt requires exactly one issuer"),
        explain=says(1, "withheld: exchange_failed", "private_key_jwt requires exactly one issuer"),
        startup=("no token can be exchanged",),
        line=("decision=withheld", "reason=exchange_failed"),
    ),
    SetUp(
        name="exchanged token of an issuer without metadata",
        variables=relay(
            DESTINATIONS=f"{PROFILE};audience=profile",
            ISSUERS="acme.com",
            JWKS_URI="https://login.acme.example/jwks",
            CLIENT_ID="user-service",
            CLIENT_SECRET="s3cr3t",
        ),
        check=says(1, f"{PREFIX}TOKEN_ENDPOINT has no valid value, and acme.com has no metadata that could contain it"),
        explain=says(1, "withheld: exchange_failed", "acme.com has no metadata"),
        startup=("no token can be exchanged",),
        line=("decision=withheld", "reason=exchange_failed"),
    ),
    SetUp(
        name="exchanged token that is not verified",
        variables=relay(
            DESTINATIONS=f"{PROFILE};audience=profile",
            TOKEN_ENDPOINT="https://idp.example/token",
            CLIENT_ID="user-service",
            CLIENT_SECRET="s3cr3t",
        ),
        works=RISKY,
        check=says(0, NO_PROBLEM, "tokens are exchanged only if the application verifies them in code"),
        explain=says(1, "withheld: not_verified", f"{PREFIX}EXCHANGE_UNVERIFIED"),
        line=("decision=withheld", "reason=not_verified"),
    ),
    SetUp(
        name="plain http",
        variables=relay(DESTINATIONS="http://profile-service"),
        url="http://profile-service/",
        works=RISKY,
        check=says(0, NO_PROBLEM, "Warnings", "http://profile-service receives unencrypted tokens"),
        explain=says(0, "relayed"),
        startup=("http://profile-service receives unencrypted tokens",),
        line=("decision=relayed",),
    ),
    SetUp(
        name="plain http with --strict",
        variables=relay(DESTINATIONS="http://profile-service"),
        url="http://profile-service/",
        arguments=("--strict",),
        check=says(1, "1 warning, which --strict treats as problems", "receives unencrypted tokens"),
        explain=says(0, "relayed"),
        startup=("receives unencrypted tokens",),
        line=("decision=relayed",),
    ),
    SetUp(
        name="any host",
        variables=relay(DESTINATIONS="https://*"),
        works=RISKY,
        check=says(0, NO_PROBLEM, "https://* allows every caller's token to be sent to any host"),
        explain=says(0, "relayed", "entry: https://*"),
        startup=("allows every caller's token to be sent to any host",),
        line=("decision=relayed", "entry=https://*"),
    ),
]


# URLs


def call(name: str, destinations: str, url: str, difference: str, *, reason: str = "destination_not_listed") -> SetUp:
    """Describe a setup with a valid list in which the application calls an origin that is not listed."""
    return SetUp(
        name=f"call: {name}",
        variables=relay(DESTINATIONS=destinations),
        url=url,
        works=ONLY_THE_CALL,
        check=says(0, NO_PROBLEM),
        explain=says(1, f"withheld: {reason}", difference),
        line=("decision=withheld", f"reason={reason}", *([] if reason == "explicit_credential" else [difference])),
    )


def unusable(name: str, url: str, *words: str) -> SetUp:
    """Describe a setup with a URL that clients reject."""
    return SetUp(
        name=f"call: {name}",
        variables=relay(),
        url=url,
        works=ONLY_THE_CALL,
        check=says(0, NO_PROBLEM),
        explain=says(1, "withheld: destination_unknown", *words),
        line=("decision=withheld", "origin=unknown"),
    )


CALLS: Final = [
    call("another scheme", PROFILE, "http://profile-service/", "the scheme differs: http, not https"),
    call("another port", PROFILE, f"{PROFILE}:8443/", "the port differs: 8443, not 443"),
    call("misspelled host", PROFILE, "https://profil-service/", "did you mean profile-service?"),
    call("short name", "https://profile.internal", "https://profile/", "the host differs: profile, not"),
    call(
        "parent of a wildcard", "https://*.internal", "https://internal/", "*.internal does not match internal itself"
    ),
    call("part of a label", "https://*.internal", "https://xinternal/", "matches whole labels only"),
    call("name without an umlaut", "https://münchen.example", "https://munchen.example/", "different names (IDNA)"),
    call(
        "address of localhost",
        "http://localhost:8000",
        "http://127.0.0.1:8000/",
        "127.0.0.1 and localhost are different origins, even if both refer to this machine",
    ),
    call("excluded origin", "https://*.internal,https://pay.internal;never", "https://pay.internal/", ";never"),
    call(
        "user info",
        PROFILE,
        f"https://me:{SECRET}@profile-service/",
        "Most clients send the user info in an Authorization: Basic header",
        reason="explicit_credential",
    ),
    unusable("no scheme", "profile-service/v1/me", f"The URL has no scheme: did you mean {URL}?"),
    unusable("one slash", "https:/profile-service/", 'Expected "://" after the scheme: did you mean', f"{PROFILE}/?"),
    unusable("misspelled scheme", "htps://profile-service/", "not htps: did you mean", f"{PROFILE}/?"),
    SetUp(
        name="call: trailing dot, which is fine",
        variables=relay(DESTINATIONS=f"{PROFILE}."),
        url=f"{PROFILE}./",
        works="clients connect to the same host with and without the dot",
        check=says(0, NO_PROBLEM),
        explain=says(0, "relayed", f"entry: {PROFILE}\n"),
        line=("decision=relayed", f"entry={PROFILE}"),
    ),
]


# Settings of verification


def cannot_start(name: str, variables: Mapping[str, str], *words: str, missing: str) -> SetUp:
    """Describe a setup in which verification lacks a setting, so every request is rejected."""
    return SetUp(
        name=name,
        variables=variables,
        check=says(1, *words, f"because {PREFIX}{missing} has no valid value", "requests receive a 503 response"),
        explain=says(1, "withheld: requests get 503", f"because {PREFIX}{missing} has no valid value", *words),
        verify=says(1, "not configured", f"Set {PREFIX}{missing}", *words),
        startup=(f"because {PREFIX}{missing} has no valid value", "requests receive a 503 response"),
        line=("verification=unavailable", "reason=cannot_start"),
    )


def valid(issuer: Issuer) -> str:
    return make_token(claims(issuer.url))


PLAIN_HTTP_ISSUER: Final = "http://login.example: keys are fetched over plain http only if plaintext_issuers"
ISSUER_FORM: Final = "login.example: expected an https URL; any other issuer requires jwks_uri"

VERIFICATION: Final = [
    cannot_start("no issuer", without(verifying(), ".ISSUERS"), missing="ISSUERS"),
    cannot_start("no audience", without(verifying(), ".AUDIENCE"), missing="AUDIENCE"),
    cannot_start("issuer over http", verifying(ISSUERS="http://login.example"), PLAIN_HTTP_ISSUER, missing="ISSUERS"),
    cannot_start("issuer without a scheme", verifying(ISSUERS="login.example"), ISSUER_FORM, missing="ISSUERS"),
    SetUp(
        name="issuers although verification is off",
        variables=without(verifying(), ".VERIFY"),
        token=valid,
        works=RISKY,
        check=says(0, NO_PROBLEM, f"{PREFIX}ISSUERS is set, but requests are not verified; set {PREFIX}VERIFY=enforce"),
        explain=says(0, "relayed"),
        verify=says(0, "accepted", f"note: {PREFIX}VERIFY is off, so the service does not verify any request"),
        startup=("ISSUERS is set, but requests are not verified",),
        line=("decision=relayed",),
    ),
    SetUp(
        name="verified tokens only, although nothing verifies them",
        variables=relay(REQUIRE_VERIFIED="true"),
        works="the application may verify tokens in code, so it is a warning",
        check=says(0, NO_PROBLEM, "tokens are relayed only if the application verifies them in code"),
        explain=says(1, "withheld: not_verified", f"with {PREFIX}VERIFY or BearerAuthMiddleware"),
        line=("decision=withheld", "reason=not_verified"),
    ),
    SetUp(
        name="verified tokens only, although verification cannot start in report mode",
        variables=relay(REQUIRE_VERIFIED="true", VERIFY="report"),
        check=says(1, f"because {PREFIX}ISSUERS and {PREFIX}AUDIENCE have no valid value", "requests are not verified"),
        explain=says(1, "withheld: not_verified", "requests are not verified"),
        startup=("verification cannot start", "requests are not verified"),
        line=("decision=withheld", "reason=not_verified"),
    ),
    SetUp(
        name="verification is required but off",
        variables=relay(),
        arguments=("--require", "relay,verify"),
        check=says(1, f"requests without a valid token are not refused: set {PREFIX}VERIFY=enforce"),
        explain=says(0, "relayed"),
        line=("decision=relayed",),
    ),
    SetUp(
        name="verification is required but only reports",
        variables=verifying(VERIFY="report"),
        arguments=("--require", "verify"),
        check=says(1, f"set {PREFIX}VERIFY=enforce", "requests without a valid token are reported, but not refused"),
        explain=says(0, "relayed"),
        verify=says(1, "rejected: malformed"),
        startup=("report mode: request would have been rejected (malformed)",),
        line=("verification=reported", "reason=malformed"),
    ),
]


# Tokens


def rejected(
    name: str, token: Callable[[Issuer], str], reason: str, cause: str, advice: str, **variables: str
) -> SetUp:
    """Describe a setup that works, but not for this token. The log contains the same cause as the command."""
    return SetUp(
        name=f"token: {name}",
        variables=verifying(**variables),
        token=token,
        works=ONLY_THE_TOKEN,
        check=says(0, NO_PROBLEM, "requests are verified (enforce)"),
        explain=says(0, "relayed"),
        verify=says(1, f"rejected: {reason}", cause, f"What to do: {advice}"),
        startup=(f"request rejected ({reason})",),
        line=("verification=refused", f"reason={reason}", cause),
    )


def unreadable_token(name: str, token: Callable[[Issuer], str], line: tuple[str, ...], verify: Says) -> SetUp:
    """Describe a setup in which the server reads no token from the header, so the log has the general cause."""
    return SetUp(
        name=f"token: {name}",
        variables=verifying(),
        token=token,
        works=ONLY_THE_TOKEN,
        check=says(0, NO_PROBLEM),
        explain=says(0, "relayed"),
        verify=verify,
        line=("verification=refused", *line),
    )


def changed(**changes: Any) -> Callable[[Issuer], str]:
    """Return a function that creates a token with changed claims."""
    return lambda issuer: make_token(claims(issuer.url, **changes))


def soon(seconds: int) -> int:
    return int(time.time()) + seconds


EXACTLY: Final = "If you trust this issuer, add it"
NOT_A_TOKEN: Final = ("reason=malformed", 'cause="The scheme is Bearer, but the value is not a valid token')

TOKENS: Final = [
    rejected(
        "issuer with a slash", valid, "unknown_issuer", "(a missing trailing slash)", EXACTLY, ISSUERS="{issuer}/"
    ),
    rejected(
        "issuer in another case",
        lambda issuer: make_token(claims(f"{issuer.url}/realms/a")),
        "unknown_issuer",
        "(the capitalization differs)",
        EXACTLY,
        ISSUERS="{issuer}/Realms/a",
    ),
    rejected(
        "issuer is the URL of its metadata",
        valid,
        "unknown_issuer",
        "(the path differs)",
        EXACTLY,
        ISSUERS="{issuer}/.well-known/openid-configuration",
    ),
    rejected(
        "another issuer",
        lambda issuer: make_token(claims("https://login.example")),
        "unknown_issuer",
        "the token has https://login.example",
        EXACTLY,
    ),
    rejected(
        "another audience",
        changed(aud="billing"),
        "wrong_audience",
        "aud: expected profile-service; the token has billing",
        f"If this is one of this service's names, add it to {PREFIX}AUDIENCE",
    ),
    rejected(
        "audience of Entra",
        changed(aud="api://profile-service"),
        "wrong_audience",
        "(the api:// prefix differs)",
        f"If this is one of this service's names, add it to {PREFIX}AUDIENCE",
    ),
    rejected(
        "no audience",
        changed(aud=...),
        "missing_claim",
        "the token lacks aud",
        "The issuer must add the missing claims (for example",
    ),
    rejected(
        "another algorithm",
        valid,
        "algorithm_not_allowed",
        "alg: expected ES256; the token has RS256",
        f"If the issuer uses this algorithm, add it to {PREFIX}ALGORITHMS",
        ALGORITHMS="ES256",
    ),
    rejected(
        "shared secret",
        lambda issuer: hmac_token({"alg": "HS256", "typ": "at+jwt"}, claims(issuer.url), SECRET.encode()),
        "algorithm_not_allowed",
        "the token has HS256",
        "Tokens signed with a shared secret are not supported",
    ),
    rejected(
        "not signed",
        lambda issuer: unsigned({"alg": "none", "typ": "at+jwt"}, claims(issuer.url)),
        "malformed",
        "form: the signature is empty",
        "The token is not signed",
    ),
    rejected(
        "another profile",
        lambda issuer: make_token(claims(issuer.url), typ="JWT"),
        "wrong_type",
        "typ: expected at+jwt; the token has JWT",
        f"Set {PREFIX}PROFILE=generic if this issuer's access tokens have a type other than at+jwt",
    ),
    rejected(
        "ID token",
        lambda issuer: make_token(claims(issuer.url, nonce="n"), typ="JWT"),
        "wrong_type",
        "typ: expected at+jwt; the token has JWT",
        "This is an ID token, because it has the nonce claim. The caller must send its access token",
    ),
    rejected(
        "ID token with the profile generic",
        lambda issuer: make_token(claims(issuer.url, nonce="n"), typ="JWT"),
        "wrong_type",
        "the token has the nonce claim, which only ID tokens have",
        "The caller must send its access token",
        PROFILE="generic",
    ),
    rejected(
        "refresh token",
        lambda issuer: make_token(claims(issuer.url, typ="Refresh"), typ="JWT"),
        "wrong_type",
        "claim typ: expected one of Bearer, JWT, at+jwt; the token has Refresh",
        "The typ claim indicates a different kind of token",
        PROFILE="generic",
    ),
    rejected(
        "claims of RFC 9068 missing",
        changed(jti=..., client_id=...),
        "missing_claim",
        "the token lacks client_id, jti",
        f"Set {PREFIX}PROFILE=generic if this issuer does not follow RFC 9068",
    ),
    rejected(
        "expired",
        lambda issuer: make_token(claims(issuer.url, exp=soon(-100))),
        "expired",
        "ago; leeway 30 s",
        "The caller must get a new token",
    ),
    rejected(
        "for later use",
        lambda issuer: make_token(claims(issuer.url, nbf=soon(400))),
        "not_yet_valid",
        "from now; leeway 30 s",
        "The issuer has issued the token for later use",
    ),
    rejected(
        "times in milliseconds",
        lambda issuer: make_token(claims(issuer.url, exp=soon(600) * 1000)),
        "invalid_claim",
        "expected a number of seconds since 1970; the token has a number that is too large",
        "The issuer must send this claim in the format required by RFC 7519",
    ),
    rejected(
        "time as text",
        lambda issuer: make_token(claims(issuer.url, exp=str(soon(600)))),
        "invalid_claim",
        "exp: expected a number of seconds since 1970; the token has a string",
        "The issuer must send this claim in the format required by RFC 7519",
    ),
    rejected(
        "opaque",
        lambda issuer: OPAQUE,
        "malformed",
        "form: the token has one part; a signed token has three parts, separated by dots",
        "Check that this is the access token. An opaque token has no parts",
    ),
    rejected(
        "encrypted",
        lambda issuer: "eyJhbGciOiJSU0EtT0FFUCJ9.a.b.c.d",
        "malformed",
        "the token has five parts, so it is an encrypted token (JWE)",
        "Configure the issuer to sign tokens without encrypting them",
    ),
    rejected(
        "without its signature",
        lambda issuer: valid(issuer).rpartition(".")[0],
        "malformed",
        "form: the token has 2 parts",
        "Copy the whole token again",
    ),
    rejected(
        "cut",
        lambda issuer: valid(issuer)[:-30],
        "bad_signature",
        "signature: the token was not signed with the issuer's key k1, or was modified afterward",
        "Copy the whole token again",
    ),
    rejected(
        "signed by another environment",
        lambda issuer: make_token(claims(issuer.url), name="second"),
        "bad_signature",
        "the token was not signed with the issuer's key k1",
        "Copy the whole token again. If the token is complete, a different system signed it",
    ),
    rejected(
        "unknown key",
        lambda issuer: make_token(claims(issuer.url), kid="k2"),
        "unknown_key",
        "kid: expected k1 from the issuer's key set; the token has k2",
        "Check that the token was not issued by a different environment",
    ),
    rejected(
        "no name of a key",
        lambda issuer: make_token(claims(issuer.url), kid=None),
        "unknown_key",
        "kid: expected k1 from the issuer's key set; the token has none",
        "The issuer must include the signing key's kid",
    ),
    rejected(
        "bound to a key",
        changed(cnf={"jkt": "x" * 43}),
        "sender_constrained",
        "cnf: expected a bearer token without cnf; the token is bound to DPoP (jkt)",
        "Configure the issuer to send bearer tokens to this client",
    ),
    unreadable_token(
        "in quotes",
        lambda issuer: f'"{valid(issuer)}"',
        NOT_A_TOKEN,
        says(1, "rejected: malformed", "the token is in quotation marks", "Remove the quotation marks"),
    ),
    unreadable_token(
        "Bearer twice",
        lambda issuer: f"Bearer {valid(issuer)}",
        NOT_A_TOKEN,
        says(0, "accepted", 'The "Bearer" prefix was removed from the input'),
    ),
    unreadable_token(
        "with a line break",
        lambda issuer: f"{valid(issuer)[:80]}\n{valid(issuer)[80:]}",
        NOT_A_TOKEN,
        says(1, "rejected: malformed", "the token contains line breaks"),
    ),
    unreadable_token(
        "two",
        lambda issuer: f"{valid(issuer)}, {valid(issuer)}",
        ("reason=ambiguous", "or the header's value contains a comma"),
        says(1, "rejected: malformed", "the token contains whitespace"),
    ),
    SetUp(
        name="token: too long",
        variables=verifying(MAX_LENGTH="100"),
        token=valid,
        works=ONLY_THE_TOKEN,
        check=says(0, NO_PROBLEM, f"{PREFIX}MAX_LENGTH = 100"),
        explain=says(0, "relayed"),
        verify=says(1, "rejected: too_long", "length: expected at most 100 characters", f"increase {PREFIX}MAX_LENGTH"),
        line=("verification=refused", "reason=too_long", f"The token is longer than {PREFIX}MAX_LENGTH characters"),
    ),
]


# Issuers


def issuer_of(name: str, fault: Callable[[Issuer], object] | None, *words: str, **changes: Any) -> SetUp:
    """Describe a setup with unusable issuer endpoints, in which every request fails with 503."""
    row: dict[str, Any] = {
        "name": f"issuer: {name}",
        "variables": verifying(),
        "token": valid,
        "fault": fault,
        "arguments": ("--online",),
        "check": says(1, "this issuer's tokens cannot be verified", *words),
        "explain": says(0, "relayed"),
        "verify": says(3, "unavailable", *words, "Correct the endpoint that has a problem"),
        "startup": ("could not be refreshed", *words),
        "line": ("verification=unavailable", "reason=unavailable"),
    }
    return SetUp(**row | changes)


def _html(handler: Any, path: str) -> bool:
    body = b"<html>sign in</html>"
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True


ISSUERS: Final = [
    issuer_of("no keys", lambda issuer: issuer.keys.clear(), "the key set is empty"),
    issuer_of("status 503", lambda issuer: setattr(issuer, "behave", issuer.fail), "status 503"),
    issuer_of(
        "metadata of another issuer",
        lambda issuer: issuer.metadata.update(issuer="https://login.example"),
        "the document specifies a different issuer",
    ),
    issuer_of(
        "metadata with a slash",
        lambda issuer: issuer.metadata.update(issuer=f"{issuer.url}/"),
        "the document specifies a different issuer (an extra trailing slash)",
    ),
    issuer_of("no jwks_uri", lambda issuer: issuer.metadata.pop("jwks_uri"), "the document has no jwks_uri"),
    issuer_of(
        "keys over http",
        lambda issuer: issuer.metadata.update(jwks_uri="http://login.example/keys"),
        "the document's jwks_uri is not an https URL",
    ),
    issuer_of(
        "keys that are not JSON",
        lambda issuer: setattr(issuer, "behave", lambda handler, path: path == "/jwks" and _html(handler, path)),
        "the response is not a JSON",
    ),
    issuer_of(
        "keys that are not a key set",
        lambda issuer: setattr(issuer, "keys", "none"),
        "the response is not a key set",
    ),
    issuer_of(
        "no metadata",
        lambda issuer: setattr(issuer, "metadata_path", "/none"),
        "status 404",
        check=says(
            1, "/.well-known/openid-configuration: status 404; metadata", "oauth-authorization-server: status 404"
        ),
        startup=("/openid-configuration: status 404; http", "/oauth-authorization-server: status 404)"),
    ),
    issuer_of(
        "down",
        None,
        "connection refused",
        is_down=True,
        check=says(3, "No response from http://127.0.0.1:", "connection refused", never=(NO_PROBLEM,)),
        verify=says(3, "unavailable", "connection refused", "Make sure that this machine can reach the issuer"),
    ),
    issuer_of(
        "keys for other algorithms",
        None,
        variables=verifying(ALGORITHMS="ES256"),
        check=says(1, "this issuer's tokens cannot be verified", "no usable key; 1 unusable key: k1"),
        verify=says(1, "rejected: algorithm_not_allowed", "expected ES256; the token has RS256"),
        startup=("request rejected (algorithm_not_allowed)",),
        line=("verification=refused", "reason=algorithm_not_allowed"),
    ),
    issuer_of(
        "another path",
        None,
        variables=verifying(ISSUERS="{issuer}/wrong"),
        check=says(1, "/wrong: this issuer's tokens cannot be verified", "status 404"),
        verify=says(1, "rejected: unknown_issuer", "(the path differs)"),
        startup=("request rejected (unknown_issuer)",),
        line=("verification=refused", "reason=unknown_issuer"),
    ),
]


# Configuration file


def composite(*lines: str) -> str:
    """Return a file with these lines below the propagator."""
    section = "".join(f"        {line}\n" for line in lines)
    return f"file_format: '1.0'\npropagator:\n  composite:\n    - tracecontext:\n    - token_relay:\n{section}"


SECTION: Final = "propagator.composite[1].token_relay"
INSTRUMENTATION: Final = "instrumentation/development.python.token_relay"
GOOD: Final = f"destinations: [{PROFILE}]"
CORRECT: Final = CORRECT_SETTINGS


def in_file(name: str, lines: tuple[str, ...], *words: str, **changes: Any) -> SetUp:
    """Describe a setup whose file enables the relay but contains unreadable destinations."""
    row: dict[str, Any] = {
        "name": f"file: {name}",
        "variables": FILE,
        "file": composite(*lines),
        "check": says(1, "The relay is on", *words, "no valid destination remains"),
        "explain": says(1, "withheld: destination_not_listed", CORRECT, *words, never=("--pid", "Add the origin")),
        "startup": words,
        "line": NOT_LISTED,
    }
    return SetUp(**row | changes)


def beside_a_relay(*words: str) -> dict[str, Any]:
    """Return the output of the commands if a key other than the destinations is wrong."""
    return {
        "check": says(1, "The relay is on", *words),
        "explain": says(0, "relayed", *words),
        "line": ("decision=relayed",),
    }


def broken(name: str, reason: str, **changes: Any) -> SetUp:
    """Describe a setup whose file cannot be read and might contain settings."""
    words = (f"OTEL_CONFIG_FILE: the file cannot be read: {reason}", "no tokens are relayed and every request must")
    row: dict[str, Any] = {
        "name": f"file: {name}",
        "variables": FILE | {".DESTINATIONS": PROFILE},
        "check": says(1, *words, "correct OTEL_CONFIG_FILE", never=("add token_relay to", "has no effect")),
        "explain": says(1, "the relay is off", "correct OTEL_CONFIG_FILE", *words, never=("add token_relay to",)),
        "startup": words,
        "line": ("verification=unavailable", "reason=cannot_start"),
    }
    return SetUp(**row | changes)


FILES: Final = [
    broken("missing", "No such file or directory"),
    broken("not YAML", "it cannot be parsed (ParserError on line 1)", file="propagator: {token_relay: [}]}"),
    broken("not JSON", "it cannot be parsed (JSONDecodeError on line 1)", file="{'token_relay'", suffix=".json"),
    SetUp(
        name="file: not YAML, without settings of ours",
        variables=FILE | relay(),
        file="tracer_provider: [",
        check=says(1, "it cannot be parsed (ParserError on line 1); OpenTelemetry does not start"),
        explain=says(0, "relayed", "OpenTelemetry does not start"),
        startup=("OpenTelemetry does not start",),
        line=("decision=relayed",),
    ),
    SetUp(
        name="file: misspelled OTEL_CONFIG_FILE",
        variables={"OTEL_CONFIG_FIEL": "{file}"},
        file=composite(GOOD),
        check=says(1, "OTEL_CONFIG_FIEL: unknown variable; did you mean OTEL_CONFIG_FILE?"),
        explain=says(1, "the relay is off", "did you mean OTEL_CONFIG_FILE?"),
        startup=("OTEL_CONFIG_FIEL: unknown variable; did you mean OTEL_CONFIG_FILE?",),
    ),
    in_file(
        "misspelled destinations",
        (f"destination: [{PROFILE}]",),
        f"{SECTION}.destination: unknown key; did you mean destinations?",
        check=says(
            1, f"{SECTION}.destination: unknown key; did you mean destinations?", "no valid destination remains"
        ),
        explain=says(1, CORRECT_SETTINGS, "did you mean destinations?", never=("--pid",)),
    ),
    in_file(
        "camel case",
        (GOOD, "maxAge: 5"),
        f"{SECTION}.maxAge: unknown key; did you mean max_age?",
        **beside_a_relay(f"{SECTION}.maxAge: unknown key; did you mean max_age?"),
    ),
    in_file(
        "wrong type of a number",
        (GOOD, "max_age: [5]"),
        f"{SECTION}.max_age: {SECONDS}",
        **beside_a_relay(f"{SECTION}.max_age: {SECONDS}"),
    ),
    in_file("wrong type of destinations", ("destinations: 7",), f"{SECTION}.destinations: expected a list"),
    in_file("number as a destination", ("destinations: [7]",), "expected text or a mapping for item 0"),
    in_file(
        "destination without an origin", (f"destinations: [{{url: '{PROFILE}'}}]",), "expected one origin", "in item 0"
    ),
    in_file(
        "misspelled parameter",
        (f"destinations: [{{origin: '{PROFILE}', requird: true}}]",),
        "unknown key 'requird' in item 0; did you mean required?",
    ),
    in_file("duplicate key", (GOOD, "destinations: [https://billing]"), f"{SECTION}.destinations: duplicate key"),
    in_file(
        "variable that is not set",
        ("destinations: ['${PROFILE_URL}']",),
        "the entry '' is skipped: it is empty; if the entry refers to a variable, the variable might not be set",
    ),
    in_file(
        "path",
        (f"destinations: ['{PROFILE}/v1']",),
        f"{SECTION}.destinations: the entry '{PROFILE}/v1' is skipped",
        explain=says(1, CORRECT_ENTRY, "is skipped", never=("--pid",)),
    ),
    in_file(
        "section is not a mapping",
        ("- destinations",),
        f"{SECTION}: expected a mapping",
        explain=says(1, "withheld: requests get 503", f"{SECTION}: expected a mapping"),
        line=("verification=unavailable", "reason=cannot_start"),
    ),
    in_file(
        "misspelled verify, which is guarded",
        (GOOD, "verifiy: enforce"),
        f"{SECTION}.verifiy: unknown key; did you mean verify?",
        check=says(1, "did you mean verify?", "requests are verified (enforce)", "requests receive a 503 response"),
        explain=says(1, "did you mean verify?", "requests receive a 503 response"),
        line=("verification=unavailable", "reason=cannot_start"),
    ),
    in_file(
        "verify: on",
        (GOOD, "verify: on"),
        f"{SECTION}.verify: expected one of off, report, optional, enforce",
        check=says(
            1, f"{SECTION}.verify: expected one of off, report, optional, enforce", "requests receive a 503 response"
        ),
        explain=says(1, "expected one of off, report, optional, enforce", "requests receive a 503 response"),
        line=("verification=unavailable", "reason=cannot_start"),
    ),
    SetUp(
        name="file: no propagator",
        variables=FILE,
        file=f"instrumentation/development:\n  python:\n    token_relay:\n      {GOOD}\n",
        check=says(1, "The relay is off", "add token_relay to propagator.composite in the configuration file"),
        explain=says(1, "the relay is off", "add token_relay to propagator.composite", "With the relay on: relayed"),
        startup=("DESTINATIONS is set, but OTEL_PROPAGATORS does not include token_relay",),
    ),
    SetUp(
        name="file: misspelled propagator",
        variables=FILE,
        file=f"propagator:\n  composite:\n    - token-relay:\n        {GOOD}\n",
        check=says(1, "propagator.composite[0].token-relay: unknown key; did you mean propagator.composite[0].token_r"),
        explain=says(1, "the relay is off", "propagator.composite[0].token-relay: unknown key"),
        startup=("propagator.composite[0].token-relay: unknown key",),
    ),
    SetUp(
        name="file: wrong name of the section for instrumentation",
        variables=FILE | ON,
        file=f"instrumentation:\n  python:\n    token_relay:\n      {GOOD}\n",
        check=says(1, f"instrumentation.python.token_relay: unknown key; did you mean {INSTRUMENTATION}?"),
        explain=says(1, "withheld: destination_not_listed", f"did you mean {INSTRUMENTATION}?"),
        startup=("instrumentation.python.token_relay: unknown key",),
        line=NOT_LISTED,
    ),
    SetUp(
        name="file: verification in a misspelled section",
        variables=FILE | relay(),
        file="instrumentation/development:\n  python:\n    token-relay:\n      verify: enforce\n",
        check=says(1, f"did you mean {INSTRUMENTATION}?", "requests are verified (enforce)", "a 503 response"),
        explain=says(1, f"did you mean {INSTRUMENTATION}?", "a 503 response"),
        startup=("instrumentation/development.python.token-relay: unknown key",),
        line=("verification=unavailable", "reason=cannot_start"),
    ),
    SetUp(
        name="file: other destinations than in the environment",
        variables=FILE | relay(),
        file=composite("destinations: [https://billing]"),
        works=RISKY,
        check=says(
            0, NO_PROBLEM, f"{PREFIX}DESTINATIONS has no effect, because {SECTION}.destinations takes precedence"
        ),
        explain=says(1, "withheld: destination_not_listed", f"note: {PREFIX}DESTINATIONS has no effect"),
        line=NOT_LISTED,
    ),
]

SET_UPS: Final = [*PROPAGATORS, *NAMES, *VALUES, *ENTRIES, *CALLS, *VERIFICATION, *TOKENS, *ISSUERS, *FILES]


@pytest.fixture(scope="module", params=SET_UPS, ids=lambda set_up: set_up.name)
def set_up(request: pytest.FixtureRequest) -> SetUp:
    """One row of the table. The tests of each row run in sequence, so that each setup runs once."""
    row: SetUp = request.param
    return row


@pytest.fixture(scope="module")
def found(set_up: SetUp, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """Return the output that explains the setup."""
    return observe(set_up, tmp_path_factory.mktemp("set-up"))


def assert_says(output: Output, expected: Says) -> None:
    assert [word for word in expected.words if word not in output.text] == [], output.text
    assert [word for word in expected.never if word in output.text] == [], output.text
    assert output.status == expected.status, output.text


def assert_one_line(lines: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert any(all(word in line for word in words) for line in lines) if words else not lines, lines


def test_the_table_has_many_rows_with_different_names() -> None:
    """The table has at least 60 rows with different names."""
    assert len({set_up.name for set_up in SET_UPS}) == len(SET_UPS) >= 80


def test_each_tool_names_the_cause(set_up: SetUp, found: Observed) -> None:
    """Each command's exit status and words match the table, and the log has no line for an empty cell."""
    assert_says(found.check, set_up.check)
    assert_says(found.explain, set_up.explain)
    assert_says(found.verify, set_up.verify)
    assert_one_line(found.lines, set_up.line)
    if set_up.startup:
        assert_one_line(found.startup, set_up.startup)


def test_check_finds_no_problem_only_if_the_table_says_why(set_up: SetUp, found: Observed) -> None:
    """`check` finds no problem only if the table contains the reason, and its words match its exit status."""
    check = found.check

    assert (NO_PROBLEM in check.text) == (check.status == 0) == bool(set_up.works)


def test_explain_and_the_relay_agree(found: Observed) -> None:
    """`explain` prints relayed and exits with 0 if and only if a request is served and its hop gets the token."""
    is_relayed = found.is_relayed and "requests receive a 503 response" not in found.check.text

    assert found.explain.text.startswith("relayed\n") == is_relayed, found.explain.text
    assert (found.explain.status == 0) == is_relayed


def test_no_output_contains_a_secret_or_a_traceback(found: Observed) -> None:
    """All output is printable ASCII without passwords or 17 consecutive characters of a token."""
    text = found.everything()

    assert SECRET not in text
    assert runs_of(found.token, text) == []
    assert runs_of(OPAQUE, text) == []
    assert "Traceback" not in text
    assert all(c == "\n" or " " <= c <= "~" for c in text)


# Setups that need a separate process


def run(*arguments: str, folder: Path, **environ: str) -> Output:
    """Run Python in an environment with the packages in *folder*."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env=clean | {"PYTHONPATH": str(folder)} | relay_variables() | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        text=True,
        check=False,
    )
    return Output(ran.returncode, ran.stdout)


def relay_variables() -> dict[str, str]:
    return ON | {f"{PREFIX}DESTINATIONS": PROFILE}


CONTEXT: Final = """
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.context.context import Context

class SpansOnly(ContextVarsRuntimeContext):
    def attach(self, context):
        return super().attach(Context({name: value for name, value in context.items() if "span" in name}))
"""
HOP: Final = f"""
from otel_token_relay import install, runtime, use_token
install()
with use_token("{OPAQUE}"):
    value = runtime.installed.relay.decide(None, lambda _: ("https", "profile-service", None), lambda *_: False)
print("relayed" if value else "withheld")
"""


@pytest.fixture
def foreign_context(tmp_path: Path) -> Iterator[Path]:
    """A package with a runtime context that keeps only spans, as Datadog's does."""
    metadata = tmp_path / "spans_only-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: spans-only\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[opentelemetry_context]\nspans_only = spans_only:SpansOnly\n")
    (tmp_path / "spans_only.py").write_text(CONTEXT)
    return tmp_path


def test_a_runtime_context_that_loses_tokens(foreign_context: Path) -> None:
    """With a runtime context that loses tokens, no hop gets the token, and `check` and `explain` report this."""
    given = {"folder": foreign_context, "OTEL_PYTHON_CONTEXT": "spans_only"}

    hop = run("-c", HOP, **given)
    check = run("-m", "otel_token_relay", "check", **given)
    explain = run("-m", "otel_token_relay", "explain", URL, **given)

    assert "withheld" in hop.text
    assert_says(check, says(1, "no tokens are relayed", "OTEL_PYTHON_CONTEXT", never=(NO_PROBLEM,)))
    assert_says(explain, says(1, "withheld: the relay is off", "OTEL_PYTHON_CONTEXT"))


def test_the_environment_of_another_service(tmp_path: Path) -> None:
    """With --pid, the reported problem is the service's, not that of the current shell."""
    wrong = {"OTEL_PROPAGATORS": "tracecontext"}
    with subprocess.Popen(["sleep", "60"], env=wrong) as service:
        try:
            check = run(
                "-m", "otel_token_relay", "check", "--require", "relay", "--pid", str(service.pid), folder=tmp_path
            )
            explain = run("-m", "otel_token_relay", "explain", "--pid", str(service.pid), URL, folder=tmp_path)
        finally:
            service.kill()

    assert_says(
        check, says(1, "The relay is off", "OTEL_PROPAGATORS does not contain token_relay", never=(NO_PROBLEM,))
    )
    assert_says(
        explain, says(1, "the relay is off", f"DESTINATIONS is not set in the environment of process {service.pid}")
    )
