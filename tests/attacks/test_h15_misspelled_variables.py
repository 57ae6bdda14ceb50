"""h15: a misspelled name of a protective variable is reported as an error, and the strict value applies."""

from __future__ import annotations

import logging
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay import Settings, install, use_token
from otel_token_relay.settings import VARIABLES
from tests.commands.test_check import run
from tests.support import apps
from tests.support.loopback import party
from tests.support.servers import get, serve_asgi

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"
VERIFY, REQUIRE = PREFIX + "VERIFY", PREFIX + "REQUIRE_VERIFIED"
ISSUER = {PREFIX + "ISSUERS": "https://issuer.example", PREFIX + "AUDIENCE": "orders"}
TOKEN = "h15-callers-token"

MISSPELLED = [
    pytest.param(VERIFY, PREFIX + "VERIFIY", id="a letter too many"),
    pytest.param(VERIFY, PREFIX + "VERFY", id="a letter missing"),
    pytest.param(VERIFY, PREFIX + "VERIVY", id="a wrong letter"),
    pytest.param(VERIFY, PREFIX + "VERFIY", id="two letters swapped"),
    pytest.param(VERIFY, PREFIX + "VERIF", id="cut"),
    pytest.param(VERIFY, PREFIX + "VERIFYER", id="two letters too many"),
    pytest.param(VERIFY, PREFIX + "_VERIFY", id="an underscore too many"),
    pytest.param(VERIFY, "OTEL_PYTHON_TOKENRELAY_VERIFY", id="an underscore missing"),
    pytest.param(VERIFY, "OTEL_PYHTON_TOKEN_RELAY_VERIFY", id="in the prefix"),
    pytest.param(VERIFY, "OTEL-PYTHON-TOKEN_RELAY_VERIFY", id="hyphens"),
    pytest.param(VERIFY, VERIFY.lower(), id="in lower case"),
    pytest.param(VERIFY, "otel_python_token_relay_verifiy", id="a letter too many, in lower case"),
    pytest.param(VERIFY, VERIFY + " ", id="a blank at the end"),
    pytest.param(REQUIRE, PREFIX + "REQUIRE_VERIFED", id="required: a letter missing"),
    pytest.param(REQUIRE, PREFIX + "REQUIRES_VERIFIED", id="required: a letter too many"),
    pytest.param(REQUIRE, PREFIX + "REQUIRED_VERIFIED", id="required: another ending"),
    pytest.param(REQUIRE, PREFIX + "REQIURE_VERIFIED", id="required: two letters swapped"),
    pytest.param(REQUIRE, PREFIX + "REQUIREVERIFIED", id="required: an underscore missing"),
    pytest.param(REQUIRE, "OTEL_PYTHON_TOKEN_RELEY_REQUIRE_VERIFIED", id="required: in the prefix"),
]


def field(variable: str, settings: Settings) -> object:
    return settings.verify if variable == VERIFY else settings.require_verified


STRICT = {VERIFY: "enforce", REQUIRE: True}


@pytest.mark.parametrize("value", ["enforce", "true", "report", "1", "whatever", "s3cret"])
@pytest.mark.parametrize(("meant", "name"), MISSPELLED)
def test_h15_the_strict_value_applies(meant: str, name: str, value: str) -> None:
    """The strict value applies regardless of the variable's value, and the problem does not quote the value."""
    settings = Settings.from_env({name: value, **ISSUER})

    assert field(meant, settings) == STRICT[meant]
    assert len(settings.problems) == 1
    assert settings.problems[0].startswith(f"{name}: unknown variable; did you mean {meant}?")
    assert f"{str(STRICT[meant]).lower()} applies" in settings.problems[0]
    assert "s3cret" not in settings.problems[0]


@pytest.mark.parametrize("value", ["off", "OFF", " off ", "false", "False", "0", "no", "No", "", "   ", "\t"])
@pytest.mark.parametrize(("meant", "name"), MISSPELLED)
def test_h15_a_value_that_switches_off_changes_nothing(meant: str, name: str, value: str) -> None:
    """A misspelled variable whose value disables protection changes nothing but is reported unless it is blank."""
    settings = Settings.from_env({name: value})

    assert replace(settings, problems=()) == Settings()
    assert len(settings.problems) == (1 if value.strip() else 0)


@pytest.mark.parametrize("value", ["off", "report", "enforce"])
@pytest.mark.parametrize("name", [PREFIX + "VERIFIY", VERIFY.lower()])
def test_h15_the_right_name_wins(name: str, value: str) -> None:
    """The value of the correctly spelled variable applies, and the misspelled name is reported."""
    settings = Settings.from_env({name: "enforce", VERIFY: value, **ISSUER})

    assert settings.verify == value
    assert settings.problems == (f"{name}: unknown variable; did you mean {VERIFY}?",)


def test_h15_a_blank_right_name_is_not_set() -> None:
    """A blank variable is considered unset, so a misspelled name still enforces verification."""
    assert Settings.from_env({VERIFY: " ", PREFIX + "VERIFIY": "report", **ISSUER}).verify == "enforce"


def test_h15_both_may_be_misspelled_and_one_may_be_twice() -> None:
    """Each misspelled name is reported as a separate problem."""
    names = [PREFIX + "VERIFIY", PREFIX + "VERFY", PREFIX + "REQUIRE_VERIFED"]
    settings = Settings.from_env({**dict.fromkeys(names, "true"), **ISSUER})

    assert (settings.verify, settings.require_verified) == ("enforce", True)
    assert [name for problem, name in zip(settings.problems, names, strict=True) if problem.startswith(name)] == names


@pytest.mark.parametrize(
    "name",
    [
        *(variable.name for variable in VARIABLES.values() if variable.name not in (VERIFY, REQUIRE)),
        "VERIFY",
        "OTEL_PYTHON_TOKEN_RELAY",
        "OTEL_PYTHON_TOKEN_RELAY_VERBOSITY",
        "MY_OTEL_PYTHON_TOKEN_RELAY_VERIFY",
        "OTEL_PYTHON_TRACER_PROVIDER",
        "PATH",
        "",
    ],
)
def test_h15_no_other_name_resembles_them(name: str) -> None:
    """No existing variable is mistaken for a misspelled name."""
    settings = Settings.from_env({name: "1"})

    assert (settings.verify, settings.require_verified) == ("off", False)
    assert not any(problem.startswith((f"{VERIFY}:", f"{REQUIRE}:")) for problem in settings.problems)


@given(st.dictionaries(st.text() | st.sampled_from([VERIFY, REQUIRE]).map(lambda name: name[:-1]), st.text()))
def test_h15_any_environment_is_read(environ: dict[str, str]) -> None:
    """Reading the settings never raises an exception, regardless of the variables' names and values."""
    Settings.from_env(environ)


@pytest.mark.parametrize("value", ["enforce", "report"])
def test_h15_a_misspelled_verify_accepts_no_request(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the verification variable is misspelled, every request is rejected, and an error is logged."""
    monkeypatch.setenv(PREFIX + "VERIFIY", value)
    with caplog.at_level(logging.ERROR, "otel_token_relay"):
        install()
    with serve_asgi(apps.starlette()) as port:
        status = get(port, "/token", TOKEN).status

    assert status == 503
    assert [message for message in caplog.messages if PREFIX + "VERIFIY" in message]


def test_h15_a_misspelled_require_verified_relays_nothing_unverified(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the ``REQUIRE_VERIFIED`` variable is misspelled, no unverified token is relayed, and an error is logged."""
    monkeypatch.setenv(PREFIX + "REQIURE_VERIFIED", "true")
    with party() as one:
        monkeypatch.setenv(PREFIX + "DESTINATIONS", one.url)
        install()
        with use_token(TOKEN):
            httpx.get(one.url, trust_env=False)

    assert one.lines() == [[]]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert PREFIX + "REQIURE_VERIFIED" in errors[0]


@pytest.mark.parametrize(
    ("name", "shown"), [(PREFIX + "VERIFIY", f"{VERIFY} = enforce"), (PREFIX + "REQUIRE_VERIFED", f"{REQUIRE} = true")]
)
def test_h15_check_exits_with_1(name: str, shown: str) -> None:
    """The `check` command prints the effective value, marks the value as replaced, and exits with 1."""
    variables = {name: "true", "OTEL_PROPAGATORS": "tracecontext,token_relay", **ISSUER}
    status, output = run("check", **variables)

    assert status == 1
    assert f"{shown} (environment; the configured value is invalid)" in output
    assert name in output
