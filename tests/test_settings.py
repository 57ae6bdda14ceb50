"""Invalid settings in code raise an error. Invalid settings in the environment never raise an error and fail closed."""

import copy
import dataclasses
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_token_relay.destinations import Destination
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.relay import Relay
from otel_token_relay.settings import VARIABLES, Settings, is_resource

PREFIX = "OTEL_PYTHON_TOKEN_RELAY_"


def from_env(**values):
    """Read settings from variables whose names lack the prefix."""
    return Settings.from_env({PREFIX + name: value for name, value in values.items()})


def test_nothing_is_relayed_by_default():
    """By default, the policy is empty and nothing is relayed."""
    assert Settings().destinations == ()
    assert Settings.from_env({}) == Settings()


def test_strings_are_parsed():
    """Strings and parsed values are equivalent."""
    assert Settings(destinations=("https://a",)).destinations == (Destination.parse("https://a"),)
    assert Settings(destinations=[Destination.parse("https://a")]) == Settings(destinations=("https://a",))


def test_settings_are_immutable():
    """Settings are immutable, because all threads share them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().linger = 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("destinations", ("https://a/path",)),
        ("destinations", "https://a"),
        ("destinations", ("https://a", "https://a;required")),
        ("source_headers", ("bad header",)),
        ("source_headers", ("cookie",)),
        ("source_headers", "authorization"),
        ("header", "Host"),
        ("header", "Proxy-Authorization"),
        ("header", "a\r\nb"),
        ("header", ""),
        ("on_conflict", "error"),
        ("max_age", -1),
        ("max_age", float("nan")),
        ("max_age", float("inf")),
        ("linger", True),
        ("min_ttl", "5"),
        ("max_length", 0),
        ("max_length", 1.5),
    ],
)
def test_an_invalid_value_in_code_raises_and_names_the_setting(field, value):
    """An invalid value in code raises an error at startup that contains the setting's name."""
    with pytest.raises(ConfigurationError) as failure:
        Settings(**{field: value})

    assert failure.value.setting == field
    assert str(failure.value).startswith(field)


def test_an_invalid_destination_is_skipped_and_the_valid_ones_are_kept():
    """Each invalid destination is skipped and reported once, and the valid destinations are kept."""
    settings = from_env(DESTINATIONS="https://a, https://b/path ,, c;requird, http://d:1")

    assert [str(d) for d in settings.destinations] == ["https://a", "http://d:1"]
    assert len(settings.problems) == 2
    assert all(p.startswith(PREFIX + "DESTINATIONS") for p in settings.problems)
    assert "b/path" in settings.problems[0]


def test_contradicting_entries_are_all_skipped():
    """Contradictory entries are all skipped, because one of them might be stricter."""
    settings = from_env(DESTINATIONS="https://a,https://a;audience=b,https://c,https://c")

    assert [str(d) for d in settings.destinations] == ["https://c"]
    assert len(settings.problems) == 1


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param("https://a.x;audience=one,https://a.x;audience=two", id="contradicting entries"),
        pytest.param("https://a.x;audiance=one", id="misspelled parameter"),
        pytest.param("https://a.x;audience=", id="parameter without its value"),
        pytest.param("https://a.x/;audience=one", id="path before the parameter"),
        pytest.param("https://me@a.x;audience=one", id="userinfo before the parameter"),
        pytest.param("https://a.x,https://a.x;audiance=one", id="beside a plain entry"),
    ],
)
@pytest.mark.parametrize("wider", ["https://*.x", "https://*", "https://a.x:*"])
def test_a_wider_entry_does_not_cover_the_origin_of_a_skipped_entry(entries, wider):
    """A wider entry does not cover the origin of a skipped entry, which might have been stricter."""
    relay = Relay(from_env(DESTINATIONS=f"{wider},{entries}"))

    assert relay.explain("https://a.x/")[0].outcome == "withheld"
    assert relay.explain("https://a.x:8443/" if wider == "https://a.x:*" else "https://b.x/")[0].outcome == "relayed"


def test_a_password_in_an_entry_is_not_shown():
    """The logged problem of an entry does not contain the entry's password."""
    settings = from_env(DESTINATIONS="https://user:hunter2@a,user:hunter3@b,https://x@y:hunter4@c")

    assert settings.destinations == ()
    assert len(settings.problems) == 3
    assert "hunter" not in "".join(settings.problems)


@pytest.mark.parametrize(
    ("name", "value", "field", "strict"),
    [
        ("MAX_AGE", "10s", "max_age", 0.0),
        ("MAX_AGE", "-1", "max_age", 0.0),
        ("MAX_AGE", "nan", "max_age", 0.0),
        ("MAX_AGE", "1_000", "max_age", 0.0),
        ("LINGER", "soon", "linger", 0.0),
        ("MIN_TTL", "inf", "min_ttl", 0.0),
        ("MAX_LENGTH", "0", "max_length", 16384),
        ("MAX_LENGTH", "9" * 5000, "max_length", 16384),
        ("ON_CONFLICT", "replce", "on_conflict", "keep"),
        ("REQUIRE_VERIFIED", "ture", "require_verified", True),
        ("SOURCE_HEADERS", "a b", "source_headers", ()),
        ("SOURCE_HEADERS", "authorization, host", "source_headers", ()),
    ],
)
def test_an_unreadable_variable_falls_back_to_the_strict_value(name, value, field, strict):
    """An unreadable variable is reported and replaced with the strict value, and the other variables apply."""
    settings = from_env(**{name: value, "DESTINATIONS": "https://a"})

    assert getattr(settings, field) == strict
    assert len(settings.problems) == 1
    assert settings.problems[0].startswith(PREFIX + name)
    assert settings.destinations


def test_an_unreadable_header_name_leaves_no_destination():
    """An unreadable header name removes all destinations, so no token is sent in an unintended header."""
    settings = from_env(HEADER="Txn Token", DESTINATIONS="https://a")

    assert settings.destinations == ()
    assert settings.problems


def test_valid_values_are_read():
    """The valid values of every variable are read."""
    settings = from_env(
        DESTINATIONS="a",
        SOURCE_HEADERS="X-Forwarded-Access-Token, Authorization",
        HEADER="Txn-Token",
        ON_CONFLICT="replace",
        MAX_AGE="10",
        LINGER="0.5",
        MIN_TTL="30",
        MAX_LENGTH="4096",
        REQUIRE_VERIFIED="TRUE",
    )

    assert settings == Settings(
        destinations=("https://a",),
        source_headers=("x-forwarded-access-token", "authorization"),
        header="Txn-Token",
        on_conflict="replace",
        max_age=10,
        linger=0.5,
        min_ttl=30,
        max_length=4096,
        require_verified=True,
    )
    assert settings.problems == ()


@given(st.dictionaries(st.sampled_from([v.name for v in VARIABLES.values()]), st.text()))
def test_from_env_never_raises(environ):
    """`from_env` never raises an exception, which would prevent the application from starting."""
    Settings.from_env(environ)


@given(st.text())
def test_any_list_of_destinations_is_parsed_or_reported(text):
    """Every item in a list of destinations is parsed or reported, and the text of a parsed entry can be parsed
    again.
    """
    settings = from_env(DESTINATIONS=text)

    assert Settings(destinations=tuple(map(str, settings.destinations))).destinations == settings.destinations
    if text.strip().strip(", "):
        assert settings.destinations or settings.problems or not any(part.strip() for part in text.split(","))


@pytest.mark.parametrize(
    ("entry", "warned"),
    [
        ("https://a", 0),
        ("http://localhost:*", 0),
        ("http://a", 1),
        ("https://*", 1),
        ("http://*", 1),
        ("http://*.mesh", 1),
    ],
)
def test_risky_destinations_cause_a_warning(entry, warned):
    """Risky destinations are valid but cause a warning, because a service mesh can encrypt plain http."""
    assert len(Settings(destinations=(entry,)).warnings) == warned


@pytest.mark.parametrize(
    ("entry", "host", "warned"),
    [
        pytest.param("http://profile-service:8080", "profile-service", 0, id="host"),
        pytest.param("http://profile-service:8080", "profile-service:8080", 0, id="host and port"),
        pytest.param("http://profile-service:8080", "profile-service:80", 1, id="another port"),
        pytest.param("http://profile-service:*", "profile-service:8080", 1, id="any port"),
        pytest.param("http://profile-service:*", "profile-service", 0, id="any port, host"),
        pytest.param("http://[fd00::1]:8080", "[fd00::1]:8080", 0, id="IPv6"),
        pytest.param("http://[fd00::1]:*", "[fd00::1]", 0, id="IPv6, any port"),
    ],
)
def test_deliberate_plain_http_causes_no_warning(entry, host, warned):
    """Deliberate plain http to a configured host, and to its port if specified, causes no warning."""
    assert len(Settings(destinations=(entry,), plaintext_hosts=(host,)).warnings) == warned


@pytest.mark.parametrize(("text", "expected"), [("false", False), ("true", True), ("maybe", True), ("", True)])
def test_redaction_is_on_unless_it_is_disabled_explicitly(text, expected):
    """Redaction is enabled unless it is explicitly disabled, even if the value is unreadable."""
    settings = Settings.from_env({"OTEL_PYTHON_TOKEN_RELAY_REDACTION": text})

    assert settings.redaction is expected
    assert bool(settings.problems) == (text == "maybe")


def test_redact_keys_are_read_from_the_environment():
    """The `redact_keys` setting is read from a comma-separated list and converted to lowercase."""
    settings = Settings.from_env({"OTEL_PYTHON_TOKEN_RELAY_REDACT_KEYS": " X-Api-Key, tenant.id ,"})

    assert settings.redact_keys == ("x-api-key", "tenant.id")


@pytest.mark.parametrize("name", ["issuers", "audience", "algorithms", "verify_exclude", "redact_keys", "span_claims"])
def test_a_list_may_be_any_iterable_but_not_a_string(name):
    """A list can be any iterable, including a generator, but not a string, which would be split into characters."""
    values = {"issuers": "https://idp.example", "algorithms": "RS256", "verify_exclude": "/healthz"}
    value = values.get(name, "sub:enduser.id")

    assert getattr(Settings(**{name: (each for each in [value])}), name) == (value,)
    if name != "audience":  # which can be a single name
        with pytest.raises(ConfigurationError, match=name):
            Settings(**{name: value})


def test_only_explicit_values_are_given() -> None:
    """Only fields that differ from the defaults are considered explicit, because `dataclasses.replace` passes all
    fields.
    """
    settings = Settings(destinations=["https://a"], max_age=300)

    assert settings.given == {"destinations", "max_age"}
    assert replace(settings, linger=1).given == {"destinations", "linger"}
    assert copy.copy(settings).given == pickle.loads(pickle.dumps(settings)).given == settings.given
    assert Settings.from_env({PREFIX + "DESTINATIONS": "https://a"}).given == {"destinations"}
    assert settings == replace(settings)
    assert hash(settings) == hash(replace(settings))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("https://*.internal:*,https://pay.internal;never", 1),
        ("https://*.internal:*,https://*.pay.internal;never", 1),
        ("https://*.internal:*,https://pay.internal:*;never", 0),
        ("https://*.internal,https://pay.internal;never", 0),
        ("http://*.internal:*,https://pay.internal;never", 0),
        ("https://pay.internal;never", 0),
    ],
)
def test_never_warns_if_other_ports_get_the_token(text: str, count: int) -> None:
    """`never` causes a warning if other ports get the token, because an unspecified port means 443."""
    warnings = Settings.from_env({PREFIX + "DESTINATIONS": text}).warnings

    assert sum("excludes only one port" in warning for warning in warnings) == count


ISSUER = "https://idp.example"
CLIENT = {"CLIENT_ID": "orders", "CLIENT_SECRET": "s3cret-of-orders"}


def test_code_takes_precedence_over_a_section_and_a_section_over_the_environment() -> None:
    """The value of each setting comes from the first source that contains it."""
    environ = {VARIABLES[name].name: "4" for name in ("max_age", "linger", "min_ttl")}

    settings = Settings.load(environ, code=Settings(max_age=1), passed={"max_age": 2, "linger": 2})

    assert (settings.max_age, settings.linger, settings.min_ttl) == (1, 2, 4)
    assert settings.given == {"max_age", "linger", "min_ttl"}
    assert settings.problems == ()


def test_a_problem_in_a_section_is_reported_with_its_path() -> None:
    """A problem in a section that the application has loaded is reported with the path of the key."""
    settings = Settings.load({}, passed={"destinations": ["https://a/path", "https://b"]})

    assert [str(entry) for entry in settings.destinations] == ["https://b"]
    (problem,) = settings.problems
    assert problem.startswith("propagator.composite[].token_relay.destinations: ")
    assert [str(origin) for origin in settings.refused] == ["https://a"]


@pytest.mark.parametrize("other", ["off", "report", "optional", "enforce"])
def test_the_strictest_source_wins(other: Any) -> None:
    """The strictest source applies: ``optional`` is stricter than ``report`` and less strict than ``enforce``."""
    order = ["off", "report", "optional", "enforce"]
    for mode in order:
        loaded = Settings.load({PREFIX + "VERIFY": mode}, code=Settings(verify=other))
        assert loaded.verify == max(mode, other, key=order.index)
        assert loaded.rejects is (loaded.verify in ("optional", "enforce"))


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        pytest.param(
            {"TOKEN_ENDPOINT": "https://idp.example/token"} | CLIENT, None, id="token endpoint without an issuer"
        ),
        pytest.param({"ISSUERS": ISSUER} | CLIENT, None, id="endpoint from the metadata"),
        pytest.param(
            {"ISSUERS": ISSUER, "EXCHANGE_GRANT": "off"} | CLIENT, f"{PREFIX}EXCHANGE_GRANT is off", id="grant is off"
        ),
        pytest.param(
            {
                "ISSUERS": ISSUER,
                "EXCHANGE_ACTOR": "client",
                "DESTINATIONS": "https://billing;audience=billing;grant=on-behalf-of",
            }
            | CLIENT,
            f"{PREFIX}EXCHANGE_ACTOR cannot be used with the on-behalf-of grant",
            id="actor of the wrong grant",
        ),
        pytest.param(
            CLIENT,
            f"neither {PREFIX}TOKEN_ENDPOINT nor {PREFIX}ISSUERS has a valid value",
            id="no authorization server",
        ),
        pytest.param(
            {"TOKEN_ENDPOINT": "https://idp.example/token"},
            f"this service has no credential: {PREFIX}CLIENT_ID has no valid value",
            id="token endpoint without a credential",
        ),
        pytest.param(
            {"ISSUERS": ISSUER},
            f"this service has no credential: {PREFIX}CLIENT_ID has no valid value",
            id="issuer without a credential",
        ),
        pytest.param(
            {"ISSUERS": "acme.com", "JWKS_URI": "https://idp.example/jwks"} | CLIENT,
            f"{PREFIX}TOKEN_ENDPOINT has no valid value, and acme.com has no metadata that could contain it",
            id="issuer without metadata",
        ),
        pytest.param(
            {"ISSUERS": ISSUER, "CLIENT_ID": "orders"},
            f"{PREFIX}CLIENT_SECRET cannot be used: ",
            id="incomplete credential",
        ),
        pytest.param(
            {"ISSUERS": f"{ISSUER},https://b.example", "TOKEN_ENDPOINT": "https://idp.example/token"} | CLIENT,
            f"{PREFIX}TOKEN_ENDPOINT cannot be used: token_endpoint requires exactly one issuer",
            id="one token endpoint for two issuers",
        ),
    ],
)
def test_the_reason_why_tokens_cannot_be_exchanged(variables: dict[str, str], problem: str | None) -> None:
    """The reason why tokens cannot be exchanged contains the variable to correct and never the secret."""
    found = from_env(**variables).exchange_problem

    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(problem)
        assert "s3cret" not in found


def test_the_only_issuer_receives_the_endpoint_and_the_credential() -> None:
    """The only issuer receives the endpoint and the credential that are configured globally."""
    settings = from_env(ISSUERS=ISSUER, TOKEN_ENDPOINT="https://idp.example/token", **CLIENT)

    (issuer,) = settings.trusted_issuers
    assert (issuer.issuer, issuer.token_endpoint) == (ISSUER, "https://idp.example/token")
    assert issuer.client == settings.client_credential
    assert from_env(ISSUERS=ISSUER).client_credential is None


@pytest.mark.parametrize(
    ("url", "is_accepted"),
    [
        ("https://orders.example", True),
        ("https://orders.example/api", True),
        ("http://127.0.0.1:8080/api", True),
        ("http://orders.example", False),
        ("https://orders.example?a=b", False),
        ("https://orders.example#a", False),
        ("https://orders.example/.well-known/oauth-protected-resource", False),
        (None, False),
    ],
)
def test_the_url_of_a_protected_resource(url: Any, is_accepted: bool) -> None:
    """A protected resource is identified by an https URL without a query or fragment, not by its metadata's URL."""
    assert is_resource(url) is is_accepted
