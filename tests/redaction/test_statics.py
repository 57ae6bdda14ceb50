"""The request's token is masked in resources, scopes, tracers, and instruments when they are created."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_token_relay import Settings, install, uninstall, use_token
from otel_token_relay.redaction.scrubber import FAILED, MASK
from tests.redaction.corpus import OWN_JWT, OWN_OPAQUE

# These words are what a caller can send instead of a token.
NAME = "profile-service-orders"


@pytest.fixture(autouse=True)
def _installed() -> None:
    install(Settings())


@pytest.fixture
def tracers() -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider
    provider.shutdown()


@pytest.fixture
def meters() -> Iterator[MeterProvider]:
    provider = MeterProvider(shutdown_on_exit=False)
    yield provider
    provider.shutdown()


@pytest.mark.parametrize("token", [OWN_OPAQUE, OWN_JWT], ids=["opaque", "JWT"])
def test_a_resource_is_created_without_the_token(token: str) -> None:
    """A resource is created without the token, and the rest of the resource is unchanged."""
    with use_token(token):
        resource = Resource({"service.name": f"of {token}", "n": 7}, f"https://a/{token}")

    assert dict(resource.attributes) == {"service.name": f"of {MASK}", "n": 7}
    assert resource.schema_url == f"https://a/{MASK}"


@pytest.mark.parametrize("token", [OWN_OPAQUE, OWN_JWT], ids=["opaque", "JWT"])
def test_a_scope_is_created_without_the_token(token: str) -> None:
    """A scope is created without the token, and its missing parts remain missing."""
    with use_token(token):
        scope = InstrumentationScope(f"of {token}", token, f"https://a/{token}", {"a": token})
        short = InstrumentationScope(name=f"of {token}")

    assert (scope.name, scope.version, scope.schema_url) == (f"of {MASK}", MASK, f"https://a/{MASK}")
    assert dict(scope.attributes or {}) == {"a": MASK}
    assert (short.name, short.version) == (f"of {MASK}", None)


def test_a_tracer_does_not_store_the_token_a_second_time(tracers: TracerProvider) -> None:
    """A tracer's legacy instrumentation info is removed if it contains the token and kept otherwise."""
    with use_token(OWN_OPAQUE):
        masked: Any = tracers.get_tracer(f"of {OWN_OPAQUE}")
        kept: Any = tracers.get_tracer("lib", "1")

    assert masked.instrumentation_info is None
    assert masked._instrumentation_scope.name == f"of {MASK}"
    assert (kept.instrumentation_info.name, kept.instrumentation_info.version) == ("lib", "1")


@pytest.mark.parametrize("kind", ["counter", "histogram", "observable_gauge", "observable_counter"])
def test_an_instrument_is_created_without_the_token(kind: str, meters: MeterProvider) -> None:
    """An instrument is created without the token in its name, unit, or description."""
    create = getattr(meters.get_meter("lib"), f"create_{kind}")
    with use_token(OWN_OPAQUE):
        masked = create(f"of.{OWN_OPAQUE}", unit=OWN_OPAQUE, description=f"of {OWN_OPAQUE}")
        kept = create("requests", unit="1", description="Requests.")

    assert (masked.name, masked.unit, masked.description) == (f"of.{MASK}", MASK, f"of {MASK}")
    assert (kept.name, kept.unit, kept.description) == ("requests", "1", "Requests.")


def describe_counter(text: str) -> str:
    """Create a counter with the description, and return the description that the counter has."""
    counter: Any = MeterProvider(shutdown_on_exit=False).get_meter("lib").create_counter("n", description=text)
    return str(counter.description)


CREATE: list[Callable[[str], Any]] = [
    lambda text: Resource({"a": text}).attributes["a"],
    lambda text: InstrumentationScope(text).name,
    describe_counter,
]


@pytest.mark.parametrize("create", CREATE, ids=["resource", "scope", "instrument"])
def test_a_caller_cannot_mask_a_name(create: Callable[[str], Any]) -> None:
    """A token that consists of words is not masked permanently, so a caller cannot remove a name from later records."""
    with use_token(NAME):
        assert create(NAME) == NAME
    with use_token(OWN_OPAQUE):
        assert create(NAME) == NAME


@pytest.mark.parametrize("create", CREATE, ids=["resource", "scope", "instrument"])
def test_only_the_tokens_of_the_current_context_are_masked(create: Callable[[str], Any]) -> None:
    """Only the current context's tokens are masked when an object is created."""
    with use_token(OWN_OPAQUE):
        assert create(OWN_OPAQUE) == MASK

    assert create(OWN_OPAQUE) == OWN_OPAQUE


def test_after_the_uninstallation_nothing_is_masked() -> None:
    """`uninstall` restores the SDK's constructors, so nothing is masked afterward."""
    uninstall()
    with use_token(OWN_OPAQUE):
        assert [create(OWN_OPAQUE) for create in CREATE] == [OWN_OPAQUE] * 3


class Hostile:
    """An object that raises an error after it was converted to text a given number of times."""

    def __init__(self, raises_from: int) -> None:
        self.left = raises_from

    def __str__(self) -> str:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no")
        return OWN_OPAQUE


@pytest.mark.parametrize("raises_from", [0, 1], ids=["at once", "after the first time"])
def test_a_value_that_cannot_be_read_is_replaced(raises_from: int) -> None:
    """A value that cannot be read is replaced, and the application's constructor does not raise an error."""
    with use_token(OWN_OPAQUE):
        resource = Resource({"a": Hostile(raises_from)})  # type: ignore[dict-item]  # this is the mistake
        scope = InstrumentationScope(Hostile(raises_from))  # type: ignore[arg-type]

    assert dict(resource.attributes) == {}
    assert (scope.name, scope.version) == (FAILED, None)
