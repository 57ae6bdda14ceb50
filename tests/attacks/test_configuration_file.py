"""A malformed mapping in OpenTelemetry's configuration file disables neither startup, relaying, nor redaction."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import jsonschema
import pytest

from otel_token_relay import Settings, install, uninstall
from otel_token_relay.commands.activation import relay_problem
from otel_token_relay.installation import propagator_from_env, start_before_servers
from otel_token_relay.settings import VARIABLES, load_sources
from otel_token_relay.testing import third_party
from tests.support.processes import BIN, INSTRUMENT, RELAY, ROOT, instrumentations, service

SCHEMA = json.loads((ROOT / "otel_token_relay" / "settings.schema.json").read_text())
TOKEN = "kq3Zt9vX0aPl7bN2mR8sT4uW6yC1dE5f"
INSTRUMENTATION = "instrumentation/development.python.token_relay"
PROGRAM = """
import os
from fastapi import FastAPI
import httpx

app = FastAPI(openapi_url=None)

@app.get("/me")
async def me(authorization: str = ""):
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(os.environ["DOWNSTREAM"])
    print("called", flush=True)
"""

WRONG_VALUES: tuple[Any, ...] = (
    *([], {}, [1], [None], [""], {"a": 1}, [[]], [{}], [{"origin": 1}], True, -1, 1.5, 10**30, "\0", "\n", "ä"),
    *("x" * 300, "1_0", "nan", "inf", "-inf", "yes please", "${UNSET}x", ["a", 1], {"": None}),
)
MAPPINGS: list[dict[Any, Any]] = [
    *({name: value} for name, value in itertools.product(VARIABLES, WRONG_VALUES)),
    *(
        {name: "1"}
        for name in ("", "destination", "Destinations", "DESTINATIONS", "verif", "requireVerified", "x" * 500)
    ),
    *(
        {"destinations": [{"origin": "https://a", key: value}]}
        for key in ("audience", "required", "x")
        for value in (1, [])
    ),
    *(
        {"destinations": [{"origin": value}]}
        for value in ("", " ", "a;b", "a,b", "https://u:pw@a", "a b", "http://a/b")
    ),
    {"destinations": ["https://a"], "settings": 3, "self": 1, "options": {"nested": [1, None]}},
    {"verify": "enforce", "issuers": ["http://plain.example"]},
]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    uninstall()


@pytest.fixture
def in_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes a configuration file, selects the file, and returns the environment."""

    def write(document: Any, **environ: str) -> dict[str, str]:
        path = tmp_path / "otel.json"
        path.write_text(json.dumps(document))
        environ["OTEL_CONFIG_FILE"] = str(path)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return environ

    return write


def in_instrumentation(mapping: Any) -> dict[str, Any]:
    return {"instrumentation/development": {"python": {"token_relay": mapping}}}


def in_propagator(mapping: Any) -> dict[str, Any]:
    return {"propagator": {"composite": [{"token_relay": mapping}]}}


def is_in_schema(mapping: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(mapping)


# One source of settings


def test_code_comes_before_the_file_and_the_file_before_the_environment(in_file: Any) -> None:
    """Each setting comes from the first source that contains it."""
    environ = in_file(
        {**in_instrumentation({"max_age": 2, "linger": 2}), **in_propagator({"max_age": 3, "linger": 3, "min_ttl": 3})},
        **{VARIABLES[name].name: "4" for name in ("max_age", "linger", "min_ttl", "max_length")},
    )

    settings = Settings.load(environ, code=Settings(max_age=1))

    assert (settings.max_age, settings.linger, settings.min_ttl, settings.max_length) == (1, 2, 3, 4)
    assert Settings.from_env(environ).max_age == 4
    assert settings.problems == ()


@pytest.mark.parametrize(
    ("name", "weak", "strict"),
    [("verify", "off", "enforce"), ("require_verified", False, True), ("redaction", False, True)],
)
@pytest.mark.parametrize("source", ["code", "file", "propagator", "environment"])
def test_the_strictest_source_protects(in_file: Any, name: str, weak: Any, strict: Any, source: str) -> None:
    """A setting that one source makes strict cannot be weakened by any other source."""
    values = {place: strict if place == source else weak for place in ("code", "file", "propagator", "environment")}
    environ = in_file(
        {**in_instrumentation({name: values["file"]}), **in_propagator({name: values["propagator"]})},
        **{VARIABLES[name].name: str(values["environment"])},
    )

    settings = Settings.load(environ, code=Settings(**{name: values["code"]}))

    assert getattr(settings, name) == strict


def test_installed_settings_are_completed_by_the_other_sources(in_file: Any) -> None:
    """An application that installs its own settings cannot accidentally disable the operator's verification."""
    in_file(
        in_instrumentation({"verify": "enforce", "issuers": ["https://issuer.example"], "audience": ["orders"]}),
        OTEL_PYTHON_TOKEN_RELAY_MAX_AGE="5",
    )

    install(Settings(destinations=["https://a"]))

    settings = propagator_from_env().relay.settings
    assert [str(entry) for entry in settings.destinations] == ["https://a"]
    assert (settings.verify, settings.audience, settings.max_age) == ("enforce", ("orders",), 5)


def test_an_invalid_header_in_the_file_relays_nothing(in_file: Any) -> None:
    """An invalid header name in the file disables relaying, and a valid header name overrides the variable."""
    environ = in_file(in_instrumentation({"header": "x y"}), OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS="https://a")
    assert Settings.load(environ).destinations == ()

    environ = in_file(in_instrumentation({"header": "x-token"}), OTEL_PYTHON_TOKEN_RELAY_HEADER="x y")
    assert Settings.load(environ).header == "x-token"


def test_a_skipped_entry_of_the_file_is_refused_to_wider_entries(in_file: Any) -> None:
    """If an entry in the file is skipped, no wider entry applies to its origin."""
    environ = in_file(in_instrumentation({"destinations": ["https://*.a", {"origin": "https://b.a", "audience": "ä"}]}))

    settings = Settings.load(environ)

    assert [str(entry) for entry in settings.destinations] == ["https://*.a"]
    assert [str(pattern) for pattern in settings.refused] == ["https://b.a"]


# Malformed mappings


def test_there_are_enough_malformed_mappings() -> None:
    """The list contains more than two hundred malformed mappings."""
    assert len(MAPPINGS) > 200


@pytest.mark.parametrize("place", [in_instrumentation, in_propagator])
def test_each_malformed_mapping_is_reported_with_its_path(tmp_path: Path, place: Any) -> None:
    """Each malformed mapping is reported as a problem that begins with the path of the invalid key."""
    path = tmp_path / "otel.json"
    prefix = INSTRUMENTATION if place is in_instrumentation else "propagator.composite[0].token_relay"
    for mapping in MAPPINGS:
        path.write_text(json.dumps(place(mapping)))
        settings = Settings.load({"OTEL_CONFIG_FILE": str(path)})

        problems = [problem for problem in settings.problems if problem.startswith(f"{prefix}.")]
        key = ascii(next(iter(mapping)))[1:-1][:100]
        if not is_in_schema(mapping):
            assert any(problem.startswith(f"{prefix}.{key}: ") or key == "destinations" for problem in problems), (
                mapping
            )
        assert not problems or all("pw@" not in problem for problem in problems), mapping
        (values,) = (source.values for source in load_sources({"OTEL_CONFIG_FILE": str(path)})[:1])
        assert not problems or "destinations" not in mapping or "https://u" not in str(values)


@pytest.mark.parametrize("content", [5, "x", [], ["destinations"], True], ids=repr)
def test_anything_but_a_mapping_is_strict(in_file: Any, content: Any) -> None:
    """If the section is not a mapping, the relay sends no token and verifies every request."""
    settings = Settings.load(in_file(in_instrumentation(content), OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS="https://a"))

    assert settings.problems[0] == f"{INSTRUMENTATION}: expected a mapping"
    assert (settings.destinations, settings.verify, settings.require_verified) == ((), "enforce", True)


@pytest.mark.parametrize("content", [None, {}], ids=repr)
def test_an_empty_section_changes_nothing(in_file: Any, content: Any) -> None:
    """An empty section leaves every setting at its default."""
    assert Settings.load(in_file(in_propagator(content))) == Settings()


@pytest.mark.parametrize(
    "mapping",
    [
        {"destinations": "https://a,https://b", "max_age": "5", "redaction": "false"},
        {"destinations": [{"origin": "https://a", "scope": "a b", "required": True}], "max_age": 5, "redaction": False},
        {
            "verify": False,
            "log": "decisions",
            "issuers": [],
            "audience": "a,b",
            "max_length": 5,
            "header": "",
            "linger": None,
        },
    ],
)
def test_each_valid_form_is_in_the_schema(in_file: Any, mapping: dict[str, Any]) -> None:
    """Each valid form of a mapping conforms to the schema and is read without a problem."""
    assert is_in_schema(mapping)
    assert Settings.load(in_file(in_instrumentation(mapping))).problems == ()


@pytest.mark.parametrize("key", ["verify", "verif", "require_verified", "required_verified"])
def test_a_guarded_key_that_cannot_be_read_is_strict(in_file: Any, key: str) -> None:
    """A protective setting with an unreadable value or a misspelled name gets its strict value."""
    settings = Settings.load(in_file(in_instrumentation({key: ["enforce"]})))

    assert (
        settings.verify == "enforce"
        if "verif" not in key[1:]
        else settings.require_verified or settings.verify != "off"
    )
    assert any(problem.startswith(f"{INSTRUMENTATION}.{key}: ") for problem in settings.problems)


@pytest.mark.parametrize(
    "text",
    [
        '{"instrumentation/development": {"python": {"token_relay": {"verify": "enforce"}, "token_relay": {}}}}',
        '{"instrumentation/development": {"python": {"token_relay": {"verify": "enforce"}}, "python": {}}}',
        '{"instrumentation/development": {"python": {"token_relay": {"verify": "enforce"}}},'
        ' "instrumentation/development": {}}',
        '{"propagator": {"composite": [{"token_relay": {"verify": "enforce"}}], "composite": []}}',
        '{"propagator": {"composite": [{"token_relay": {"verify": "enforce"}, "token_relay": null}]}}',
    ],
)
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_repeated_key_on_the_way_to_the_settings_is_strict(tmp_path: Path, text: str, suffix: str) -> None:
    """A duplicate key on the path to the settings enforces verification and is reported."""
    path = tmp_path / f"otel.{suffix}"
    path.write_text(text)
    settings = Settings.load({"OTEL_CONFIG_FILE": str(path)})

    assert settings.verify == "enforce"
    assert "duplicate key" in settings.problems[0]


def test_a_repeated_key_relays_nothing(tmp_path: Path) -> None:
    """A duplicate ``token_relay`` key disables relaying."""
    path = tmp_path / "otel.json"
    path.write_text(
        '{"instrumentation/development": {"python": {"token_relay": {"destinations": ["https://a"]},'
        ' "token_relay": {"destinations": ["https://*"]}}}}'
    )

    assert Settings.load({"OTEL_CONFIG_FILE": str(path)}).destinations == ()


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"token_relay": {}}, "token_relay"),
        ({"instrumentation/development": {"token_relay": {}}}, "instrumentation/development.token_relay"),
        ({"instrumentation/development": {"general": {"token_relay": {}}}}, "instrumentation/development.general."),
        ({"instrumentation/development": {"python": [{"token_relay": {}}]}}, "instrumentation/development.python.0."),
        ({"instrumentation": {"python": {"token-relay": {}}}}, "instrumentation.python.token-relay"),
        ({"instrumentation/development": {"java": {"token_relay": {}}}}, None),
        ({"resource": {"token_relay": {}}}, None),
    ],
)
def test_a_section_in_another_place_is_strict(in_file: Any, document: Any, path: str | None) -> None:
    """A misplaced section enforces verification and is reported with its path."""
    text = json.dumps(document).replace("{}", '{"verify": "enforce"}')
    settings = Settings.load(in_file(json.loads(text)))

    assert settings.verify == ("off" if path is None else "enforce")
    assert path is None or settings.problems[0].startswith(path)


@pytest.mark.parametrize("value", ["${MODE:-enforce}", "${MODE}", " "])
def test_a_blank_variable_does_not_switch_verification_off(in_file: Any, value: str) -> None:
    """Verification is enforced if the value is blank or if it refers to an empty variable."""
    settings = Settings.load(in_file(in_instrumentation({"verify": value}), MODE=""))

    assert settings.verify == "enforce"


def test_a_number_that_python_does_not_print_is_strict(tmp_path: Path) -> None:
    """A misspelled key whose hexadecimal value is too long for Python to print enforces verification."""
    path = tmp_path / "otel.yaml"
    path.write_text("instrumentation/development: {python: {token_relay: {verfy: 0x" + "f" * 4000 + "}}}")

    assert Settings.load({"OTEL_CONFIG_FILE": str(path)}).verify == "enforce"


# Without OTEL_CONFIG_FILE


def test_a_file_that_the_application_loads_itself_is_read_from_the_options(caplog: pytest.LogCaptureFixture) -> None:
    """The propagator reads the settings of a file that the application itself loads."""
    settings = propagator_from_env(destinations=["https://a"], color="red").relay.settings

    assert [str(entry) for entry in settings.destinations] == ["https://a"]
    assert "propagator.composite[].token_relay.color: unknown key" in caplog.text


def test_options_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The propagator's options take precedence over the environment, even after verification has started."""
    monkeypatch.setenv(VARIABLES["destinations"].name, "https://*.internal")
    monkeypatch.setenv(VARIABLES["verify"].name, "report")
    start_before_servers()

    settings = propagator_from_env(destinations=["https://profile.internal"], min_ttl=60).relay.settings

    assert [str(entry) for entry in settings.destinations] == ["https://profile.internal"]
    assert (settings.min_ttl, settings.verify) == (60, "report")


def test_options_complete_the_installed_settings() -> None:
    """Settings installed in code take precedence over the propagator's options."""
    install(Settings(max_age=7))

    settings = propagator_from_env(max_age=8, verify="enforce").relay.settings

    assert (settings.max_age, settings.verify) == (7, "enforce")
    assert propagator_from_env(max_age=9, linger=1).relay.settings.max_age == 7


# OpenTelemetry itself

# A start takes seconds of processor time, so all variants run only if FULL_MATRIX is set.
ALL: Final = bool(os.environ.get("FULL_MATRIX"))

CONSOLE = {"tracer_provider": {"processors": [{"simple": {"exporter": {"console": None}}}]}}

STARTING = """
import json, logging, sys
from opentelemetry import trace
from opentelemetry.configuration import configure_sdk, load_config_file

failures = []
logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
logging.getLogger("opentelemetry.configuration.instrumentation").handle = lambda r: failures.append(r.getMessage())
token, documents = json.load(sys.stdin)
for number, document in enumerate(documents):
    with open("otel.json", "w") as file:
        json.dump(document, file)
    try:
        configure_sdk(load_config_file("otel.json"))
    except Exception as error:
        failures.append(f"{number}: {error!r}")
    with trace.get_tracer("test").start_as_current_span("work", attributes={"url.query": f"access_token={token}"}):
        pass
print(len(documents), failures)
"""


@pytest.mark.parametrize("place", [in_instrumentation, in_propagator])
def test_opentelemetry_starts_with_each_malformed_mapping(tmp_path: Path, place: Any) -> None:
    """OpenTelemetry starts with a malformed mapping and exports no token.

    Validating a file takes a tenth of a second, so all mappings are tested only if FULL_MATRIX is set.
    """
    pytest.importorskip("opentelemetry.configuration")  # OpenTelemetry 1.43 and earlier do not support this file
    mappings = MAPPINGS if ALL else MAPPINGS[place is in_propagator :: 96]
    documents = [{"file_format": "1.0", **CONSOLE, **place(mapping)} for mapping in mappings]
    environ = {**os.environ, "OTEL_CONFIG_FILE": "otel.json", "OTEL_PROPAGATORS": "token_relay"}
    done = subprocess.run(
        [sys.executable, "-c", STARTING],
        input=json.dumps([TOKEN, documents]),
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.stdout.splitlines()[-1:] == [f"{len(mappings)} []"], done.stderr[-2000:]
    assert done.stdout.count('"url.query"') == len(mappings)
    assert TOKEN not in done.stdout + done.stderr


# Real processes


def start(tmp_path: Path, document: dict[str, Any], behind: Any, **environ: str) -> Any:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "otel.json").write_text(json.dumps({"file_format": "1.0", **document}))
    variables = {
        **{name: value for name, value in RELAY.items() if name != "OTEL_PROPAGATORS"},
        "OTEL_CONFIG_FILE": str(tmp_path / "otel.json"),
        "DOWNSTREAM": behind.url,
        **instrumentations("fastapi", "httpx", "logging"),
        **environ,
    }
    command = (*INSTRUMENT, str(BIN / "uvicorn"), "program:app", "--port", "0", "--no-access-log")
    return service(*command, cwd=tmp_path, environ=variables)


COMPOSITE = {"composite": [{"tracecontext": None}, {"token_relay": None}]}
STARTS = {
    "composite": ({"propagator": COMPOSITE, **CONSOLE}, {}),
    "composite_list": ({"propagator": {"composite_list": "tracecontext,token_relay"}, **CONSOLE}, {}),
    "disabled": ({"disabled": True, "propagator": COMPOSITE}, {}),
    "unknown exporter": (
        {"propagator": COMPOSITE, "tracer_provider": {"processors": [{"simple": {"exporter": {"nope": None}}}]}},
        {},
    ),
    "invalid elsewhere": ({"propagator": COMPOSITE, "resource": 5}, {}),
    "the environment switches on": ({**CONSOLE}, {"OTEL_PROPAGATORS": "tracecontext,token_relay"}),
}


@pytest.mark.parametrize(
    "name", STARTS if ALL else ["composite_list", "disabled", "unknown exporter", "the environment switches on"]
)
def test_a_service_relays_with_the_settings_of_the_file(tmp_path: Path, name: str) -> None:
    """A service relays tokens to the destinations in the file and exports no token."""
    document, environ = STARTS[name]
    with third_party() as behind:
        mapping = {"destinations": ["${DOWNSTREAM}"], "color": 1}
        with start(tmp_path, {**document, **in_instrumentation(mapping)}, behind, **environ) as running:
            url = f"{running.url}/me?authorization={TOKEN}"
            assert httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200

        assert [request.authorization for request in behind.requests] == [f"Bearer {TOKEN}"]
        assert TOKEN not in running.log
        assert f"{INSTRUMENTATION}.color: unknown key" in running.log
        assert "Skipping instrumentation 'token_relay'" not in running.log


@pytest.mark.parametrize("name", [*STARTS, "no propagator"] if ALL else ["unknown exporter", "no propagator"])
def test_a_service_verifies_with_the_settings_of_the_file(tmp_path: Path, name: str) -> None:
    """A service verifies requests with the settings in the file, even without OpenTelemetry or the propagator."""
    document, environ = STARTS.get(name, ({}, {}))
    mapping = {"verify": "enforce", "issuers": ["https://issuer.example"], "audience": ["orders"]}
    with third_party() as behind:
        with start(tmp_path, {**document, **in_instrumentation(mapping)}, behind, **environ) as running:
            assert httpx.get(f"{running.url}/me").status_code == 401

        assert behind.requests == []


def test_check_exits_with_1_and_the_path(tmp_path: Path) -> None:
    """The `check` command exits with 1 and prints only the package's own problem, with the path of the key."""
    path = tmp_path / "otel.json"
    path.write_text(json.dumps({**in_propagator({"max_age": "soon"}), "resource": 5}))
    environ = {**os.environ, "OTEL_CONFIG_FILE": str(path)}
    done = subprocess.run(
        [sys.executable, "-m", "otel_token_relay", "check"], env=environ, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert "  propagator.composite[0].token_relay.max_age: expected a number of seconds" in done.stdout
    assert relay_problem({"OTEL_CONFIG_FILE": str(path)}) is None
