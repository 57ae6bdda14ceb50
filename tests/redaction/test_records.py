"""Attributes, resources, and scopes are masked in a copy, and the results for shared objects are cached."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_token_relay import Settings, install, uninstall
from otel_token_relay.copying import shallow_copy
from otel_token_relay.redaction import records
from otel_token_relay.redaction.records import (
    ScrubberInForce,
    are_clean,
    clean_attributes,
    clean_resource,
    clean_scope,
    gather_resource,
    gather_scope,
    plain,
    scrubber_for,
)
from otel_token_relay.redaction.scrubber import MASK, Scrubber
from otel_token_relay.redaction.secret_names import Kind
from otel_token_relay.redaction.token_search import NOTHING, known_from
from tests.redaction.corpus import FOREIGN_JWT, OWN_OPAQUE

SCRUBBER = Scrubber()


@pytest.fixture(autouse=True)
def _empty_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_statics", {})
    monkeypatch.setattr(records, "_clean_pairs", {})


def test_the_rules_contain_the_configured_keys_and_headers() -> None:
    """A token in a header that the service configured is masked under the header's name, regardless of its value."""
    scrubber = scrubber_for(Settings(redact_keys=("session",), source_headers=("x-user-token",), header="x-out"))
    values = {"app.session": "a", "http.request.header.x_user_token": "b", "x-out": "c", "other": "d"}

    assert scrubber.clean(values, NOTHING) == dict.fromkeys(values, MASK) | {"other": "d"}


def test_the_rules_follow_the_settings_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules are built once for equal settings, and rules without given settings follow later installations."""
    monkeypatch.setenv("OTEL_PYTHON_TOKEN_RELAY_REDACT_KEYS", "environment")
    in_force, given = ScrubberInForce(None), ScrubberInForce(Settings(redact_keys=("given",)))

    before = in_force()
    assert before.names.kind_of("environment") is Kind.CONFIGURED
    assert in_force() is before
    install(Settings(redact_keys=("installed",)))
    assert in_force().names.kind_of("installed") is Kind.CONFIGURED
    assert in_force().names.kind_of("environment") is not Kind.CONFIGURED
    assert given().names.kind_of("given") is Kind.CONFIGURED
    assert given().names.kind_of("installed") is not Kind.CONFIGURED
    uninstall()
    assert in_force().names.kind_of("environment") is Kind.CONFIGURED


def test_the_dictionary_inside_the_containers_of_the_sdk_is_found() -> None:
    """The dictionary inside the SDK's containers is found, and any other mapping is returned unchanged."""
    values = {"a": "b"}

    assert dict(plain(BoundedAttributes(attributes=values))) == values
    assert type(plain(BoundedAttributes(attributes=values))) is not BoundedAttributes
    assert plain(values) is values


class Constructed:
    """An object whose constructor must not run a second time."""

    def __init__(self) -> None:
        self.calls = ["constructed"]


def test_a_shallow_copy_runs_no_constructor() -> None:
    """A shallow copy has the original's state, runs no constructor, and does not share new attributes with the
    original.
    """
    original = Constructed()

    copied: Any = shallow_copy(original)
    copied.other = 1

    assert type(copied) is Constructed
    assert copied.calls is original.calls == ["constructed"]
    assert not hasattr(original, "other")


@pytest.mark.parametrize("attributes", [None, {}, {"a": "b", "n": 7}, BoundedAttributes(attributes={"a": "b"})])
def test_clean_attributes_are_the_same_object(attributes: Any) -> None:
    """Attributes that are clean, as nearly all are, are returned as the same object."""
    assert clean_attributes(attributes, SCRUBBER, known_from(OWN_OPAQUE)) is attributes


def test_masked_attributes_keep_their_container_with_its_counts_and_limits() -> None:
    """Masked attributes are copied into a container with the same counts and limits, and the original is unchanged."""
    attributes = BoundedAttributes(2, {"dropped": 1, "a": OWN_OPAQUE, "n": 7}, max_value_len=100)

    cleaned = clean_attributes(attributes, SCRUBBER, known_from(OWN_OPAQUE))

    assert dict(cleaned) == {"a": MASK, "n": 7}
    assert (type(cleaned), cleaned.maxlen, cleaned.dropped, cleaned.max_value_len) == (BoundedAttributes, 2, 1, 100)
    assert dict(attributes) == {"a": OWN_OPAQUE, "n": 7}
    assert clean_attributes({"a": OWN_OPAQUE}, SCRUBBER, known_from(OWN_OPAQUE)) == {"a": MASK}


def test_a_resource_is_masked_by_pattern_in_a_copy() -> None:
    """All records of a provider get the same masked copy of its resource, and the original is unchanged."""
    resource = Resource({"service.name": "orders", "a": FOREIGN_JWT}, f"https://a/?access_token={FOREIGN_JWT}")

    cleaned = clean_resource(resource, SCRUBBER)

    assert dict(cleaned.attributes) == {"service.name": "orders", "a": MASK}
    assert cleaned.schema_url == f"https://a/?access_token={MASK}"
    assert clean_resource(resource, SCRUBBER) is cleaned
    assert resource.attributes["a"] == FOREIGN_JWT
    assert clean_resource(resource, Scrubber(["service.name"])).attributes["service.name"] == MASK


def test_a_scope_is_masked_by_pattern_in_a_copy() -> None:
    """A token in a scope's name, version, schema URL, or attributes is masked in a copy."""
    scope = InstrumentationScope(f"n {FOREIGN_JWT}", FOREIGN_JWT, f"https://a/{FOREIGN_JWT}", {"a": FOREIGN_JWT})

    cleaned = clean_scope(scope, SCRUBBER)

    assert (cleaned.name, cleaned.version, cleaned.schema_url) == (f"n {MASK}", MASK, f"https://a/{MASK}")
    assert dict(cleaned.attributes) == {"a": MASK}
    assert clean_scope(scope, SCRUBBER) is cleaned
    assert scope.version == FOREIGN_JWT


@pytest.mark.parametrize(
    ("scope", "resource", "expected"),
    [
        (InstrumentationScope("lib", "1"), Resource({"service.name": "orders"}), True),
        (InstrumentationScope("lib", attributes={"a": "b"}), Resource({}), True),
        (None, None, True),
        (InstrumentationScope(f"n {FOREIGN_JWT}"), Resource({}), False),
        (InstrumentationScope("lib", attributes={"authorization": "x"}), Resource({}), False),
        (InstrumentationScope("lib"), Resource({"a": FOREIGN_JWT}), False),
    ],
    ids=["clean", "clean attributes", "neither", "name of the scope", "key of the scope", "resource"],
)
def test_a_pair_is_clean_if_both_are(scope: Any, resource: Any, expected: bool) -> None:
    """A resource and a scope are reported as clean only if both are clean, also from the cache."""
    assert [are_clean(resource, scope, SCRUBBER) for _ in range(2)] == [expected] * 2
    is_same = clean_resource(resource, SCRUBBER) is resource and clean_scope(scope, SCRUBBER) is scope
    assert is_same is expected


def test_the_caches_are_bounded_and_do_not_confuse_objects() -> None:
    """The caches are bounded and do not confuse a new object with an old one that had the same ID."""
    for number in range(1000):
        token = FOREIGN_JWT if number % 2 else "clean"
        scope, resource = InstrumentationScope(f"lib {number} {token}"), Resource({"a": token})

        assert are_clean(resource, scope, SCRUBBER) is (number % 2 == 0)

    assert len(records._statics) <= 128
    assert len(records._clean_pairs) <= 128


def test_the_texts_of_resources_and_scopes_are_gathered() -> None:
    """The texts of resources and scopes are collected, and a sensitive key makes the record suspect regardless of
    its value.
    """
    strings: list[str] = []

    assert not gather_resource(Resource({"a": "b"}, "https://r"), SCRUBBER, strings, NOTHING)
    assert not gather_scope(InstrumentationScope("lib", "1", "https://s", {"c": "d"}), SCRUBBER, strings, NOTHING)
    assert {"https://r", "b", "lib", "1", "https://s", "d"} <= set(strings)
    assert gather_resource(Resource({"authorization": "x"}), SCRUBBER, [], NOTHING)
    assert gather_scope(InstrumentationScope("lib", attributes={"authorization": "x"}), SCRUBBER, [], NOTHING)
