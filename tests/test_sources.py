"""The first source of each setting applies, and unknown names are reported."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.configuration_file import ConfigurationFile, Section
from otel_token_relay.origin import OriginPattern
from otel_token_relay.settings import READER, VARIABLES, Settings
from otel_token_relay.sources import PREFIX, STRICTNESS, Source, are_given, describe_overridden, merge

A = OriginPattern.parse("https://a")


def problems(**environ: str) -> list[str]:
    return READER.read_environment(environ).problems


def source(name: str, **values: object) -> Source:
    return Source(name, values)


def test_the_first_source_applies_to_each_setting() -> None:
    """The first source that contains a setting applies to it, and settings from other sources are kept."""
    merged = merge([source("code", a=1), source("file", a=2, b=2), source("environment", a=3, b=3, c=3)])

    assert merged.values == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(("setting", "order"), STRICTNESS.items())
def test_the_strictest_value_applies_to_what_protects(setting: str, order: list[object]) -> None:
    """The strictest value from any source applies to a protective setting."""
    for index in range(3):
        sources = [source(name, **{setting: order[0]}) for name in "abc"]
        sources[index].values[setting] = order[-1]
        assert merge(sources).values[setting] == order[-1]
    assert merge([source("a"), source("b")]).values == {}


def test_the_settings_that_protect_are_ordered_from_off_to_on() -> None:
    """The values of protective settings are ordered from off to strict."""
    for setting, order in STRICTNESS.items():
        assert VARIABLES[setting].strict == order[-1]


def test_problems_are_in_the_order_of_the_sources() -> None:
    """All problems are reported in the order of the sources, even for values that do not apply."""
    one, other = Source("code", problems=["1", "2"]), Source("environment", problems=["3"])

    assert merge([one, other]).problems == ["1", "2", "3"]


def test_only_the_skipped_entries_of_the_list_that_applies_are_refused() -> None:
    """Only the skipped entries of the list that applies are refused."""
    winning, other = Source("file", {"destinations": ()}), Source("environment", {"destinations": ()}, refused={A})

    assert merge([winning, other]).refused == set()
    assert merge([other, winning]).refused == {A}
    assert merge([Source("code"), other]).refused == {A}


def test_an_invalid_header_removes_the_destinations_unless_another_source_replaces_it() -> None:
    """Unless another source replaces it, an invalid header name removes the destinations, so no token is sent in a
    wrong header.
    """
    listed = source("code", destinations=("https://a",))
    invalid = Source("environment", {"header": "Authorization"}, invalid={"header"})

    assert merge([listed, invalid]).values["destinations"] == ()
    assert merge([listed, source("file", header="x-token"), invalid]).values["destinations"] == ("https://a",)


def test_a_setting_is_given_if_any_source_contains_it() -> None:
    """A setting is given if any source contains a value for it, even an invalid one."""
    sources = [Source("code"), READER.read_environment({PREFIX + "LINGER": "soon", PREFIX + "MAX_AGE": "5"})]

    assert are_given("max_age", sources)
    assert are_given("linger", sources)
    assert not are_given("destinations", sources)
    assert not are_given("max_age", [])


# Names


@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES.values()])
@pytest.mark.parametrize("change", ["missing", "doubled", "lower", "short prefix", "hyphens", "no package"])
def test_each_misspelled_variable_is_reported_with_the_name_that_was_meant(name: str, change: str) -> None:
    """Each misspelled variable, which would otherwise be silently ignored, is reported with the intended name."""
    misspelled = {
        "missing": name[:-2] + name[-1],
        "doubled": name + name[-1],
        "lower": name.lower(),
        "short prefix": name.replace("OTEL_PYTHON_", "OTEL_"),
        "hyphens": name.replace("_", "-"),
        "no package": name.replace("OTEL_PYTHON_", ""),
    }[change]

    (problem,) = problems(**{misspelled: "1"})

    assert problem.startswith(f"{misspelled}: unknown variable; did you mean {name}?")


@pytest.mark.parametrize("rest", ["", "COLOR", "X_Y_Z", "VERIFICATION_MODE"])
def test_any_other_variable_with_the_prefix_is_reported(rest: str) -> None:
    """An unknown variable with the prefix is reported, even without a similar name to suggest."""
    assert problems(**{PREFIX + rest: "1"}) == [
        f"{PREFIX}{rest}: unknown variable; the configuration page lists all variables"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "TOKEN_RELAY_SERVICE_HOST",
        "TOKEN_RELAY_SERVICE_PORT",
        "TOKEN_RELAY_SERVICE_PORT_HTTP",
        "TOKEN_RELAY_PORT",
        "TOKEN_RELAY_PORT_8080_TCP",
        "TOKEN_RELAY_PORT_8080_TCP_ADDR",
        "OTEL_TOKEN_RELAY_SERVICE_HOST",
        "GITHUB_TOKEN",
        "RELAY_HEADER",
        "OTEL_PROPAGATORS",
        "OTEL_PYTHON_LOG_CORRELATION",
        "MY_TOKEN_RELAY_VERIFY",
    ],
)
def test_variables_of_others_are_not_reported(name: str) -> None:
    """Variables that Kubernetes sets for a service named token-relay are not reported."""
    assert problems(**{name: "1"}) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OTEL_PROPAGATOR", "OTEL_PROPAGATORS"),
        ("OTEL_PROPOGATORS", "OTEL_PROPAGATORS"),
        ("otel_propagators", "OTEL_PROPAGATORS"),
        ("OTEL_CONFIGFILE", "OTEL_CONFIG_FILE"),
        ("OTEL-CONFIG-FILE", "OTEL_CONFIG_FILE"),
    ],
)
def test_a_misspelled_variable_of_opentelemetry_that_switches_the_relay_on(name: str, meant: str) -> None:
    """A misspelled OpenTelemetry variable that was meant to enable the relay is reported."""
    assert problems(**{name: "token_relay"}) == [f"{name}: unknown variable; did you mean {meant}?"]


@pytest.mark.parametrize("text", ["", "  "])
def test_a_blank_variable_is_not_reported(text: str) -> None:
    """A blank variable is treated as unset and not reported."""
    assert problems(**{PREFIX + "COLOR": text}) == []


def test_a_hostile_name_is_escaped_and_shortened() -> None:
    """A hostile name from the environment is escaped and shortened in the report."""
    (problem,) = problems(**{PREFIX + "\x1b[31m" + "x" * 500: "1"})

    assert "\x1b" not in problem
    assert len(problem) < 250


@given(st.dictionaries(st.text(alphabet="OTEL_PYHNKRAVIFx-", max_size=40), st.text(max_size=5), max_size=4))
def test_no_environment_raises(environ: dict[str, str]) -> None:
    """No environment raises an error, so the application starts."""
    Settings.from_env(environ)


@pytest.mark.parametrize(
    ("misspelled", "setting", "strict"),
    [
        ("MAX_AEG", "max_age", 0.0),
        ("ALGORITHM", "algorithms", ()),
        ("SOURCE_HEADER", "source_headers", ()),
        ("REDACTON", "redaction", True),
        ("LINGR", "linger", 0.0),
    ],
)
def test_the_strict_value_applies_if_a_name_is_misspelled(misspelled: str, setting: str, strict: object) -> None:
    """If a variable's name is misspelled, the strict value applies, unless the correct name is also set."""
    name = PREFIX + misspelled

    assert READER.read_environment({name: "9"}).values == {setting: strict}
    both = READER.read_environment({name: "9", VARIABLES[setting].name: VARIABLES[setting].default or "0"})
    assert setting not in both.invalid


def test_a_misspelled_header_removes_the_destinations() -> None:
    """A misspelled header variable removes the destinations, so no token is sent in an unintended header."""
    settings = Settings.from_env({PREFIX + "HEADR": "x-token", PREFIX + "DESTINATIONS": "https://a"})

    assert settings.destinations == ()
    assert "no tokens are relayed" in settings.problems[0]


def test_a_source_that_raises_is_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that raises an error results in strict values, and the application starts."""
    monkeypatch.setattr(READER, "read_environment", lambda environ: 1 / 0)

    settings = Settings.load({PREFIX + "VERIFY": "off"})

    assert (settings.verify, settings.require_verified, settings.destinations) == ("enforce", True, ())
    assert settings.problems[0] == "environment: cannot be read: ZeroDivisionError"


# Files


def test_keys_are_reported_with_their_path() -> None:
    """A key in the file is reported with its path."""
    read = READER.read_section(Section("p.token_relay", {"max_age": "x", "hue": 1, 5: 2, "linger": 1}))

    assert read.problems == [
        "p.token_relay.max_age: expected a number of seconds, such as 30 or 0.5",
        "p.token_relay.hue: unknown key",
        "p.token_relay.5: unknown key",
    ]
    assert read.values == {"max_age": 0.0, "linger": 1.0}
    assert read.invalid == {"max_age"}


def test_a_duplicate_key_takes_the_strict_value() -> None:
    """A duplicate key results in the strict value, because the intended value is unknown."""
    read = READER.read_section(Section("p", {"verify": "off", "destinations": []}, ("verify", "destinations[0].scope")))

    assert read.values == {"verify": "enforce", "destinations": ()}
    assert read.problems == ["p.verify: duplicate key", "p.destinations[0].scope: duplicate key"]


@pytest.mark.parametrize("is_unknown", [True, False])
def test_a_file_that_cannot_be_read(is_unknown: bool) -> None:
    """A file that cannot be read results in strict values only if it might contain settings."""
    (read,) = READER.read_file(ConfigurationFile(problem="it is on fire", is_unknown=is_unknown))

    assert read.problems[0].startswith("OTEL_CONFIG_FILE: the file cannot be read: it is on fire; ")
    strict = {
        "verify": "enforce",
        "require_verified": True,
        "redaction": True,
        "protect_caches": True,
        "destinations": (),
    }
    assert read.values == (strict if is_unknown else {})


def test_a_misspelled_section_is_strict_for_the_settings_that_it_contains() -> None:
    """A misspelled section results in strict values for its settings, so that requests are still verified."""
    sections = [
        ({"verify": "enforce", "max_age": 1, "x": 1}, {"verify": "enforce", "max_age": 0.0}),
        ({"verify": "off"}, {}),
        (["verify"], {}),
    ]

    for content, values in sections:
        (read,) = READER.read_file(
            ConfigurationFile(misspelled=((Section("a.token-relay", content), "a.token_relay"),))
        )

        assert read.problems == ["a.token-relay: unknown key; did you mean a.token_relay?"]
        assert read.values == values


def test_a_variable_that_the_file_replaces_is_described() -> None:
    """A variable that the file overrides is reported, except if the values are equal or combined."""
    environment = {"max_age": 1.0, "linger": 2.0, "verify": "report", "min_ttl": 3.0}
    sources = [source("a.b", max_age=5.0, linger=2.0, verify="off"), source("environment", **environment)]

    assert list(describe_overridden(sources, VARIABLES)) == [
        f"{PREFIX}MAX_AGE has no effect, because a.b.max_age takes precedence"
    ]


@pytest.mark.parametrize(
    ("setting", "effect"),
    [("header", "no tokens are relayed"), ("source_headers", "no token is read from any request")],
)
def test_the_effect_of_a_strict_value_is_described(setting: str, effect: str) -> None:
    """The report describes the effect of a strict value, for example, that an invalid header stops the relay."""
    read = READER.read_section(Section("p", {setting: "a:b"}))

    assert read.problems == [f"p.{setting}: expected a header name; until this is corrected, {effect}"]
