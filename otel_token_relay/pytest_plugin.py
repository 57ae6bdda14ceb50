"""A pytest plug-in with fixtures that install the relay, act as a caller, and record decisions.

The plug-in does not import OpenTelemetry or the rest of this package until a test uses one of the fixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from otel_token_relay.testing import (
        AuthorizationServer,
        Caller,
        InstalledRelay,
        RecordedDecisions,
        ThirdParty,
    )

__all__ = ["as_caller", "authorization_server", "recorded_decisions", "third_party", "token_relay"]

_MARKER = "token_relay"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", f"{_MARKER}(**fields): install the relay for the test, with these Settings fields"
    )


def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Apply the ``token_relay`` fixture to each test function that has the marker or inherits it from its class or
    module.
    """
    if collector.istestfunction(obj, name):
        own: list[pytest.Mark] = getattr(obj, "pytestmark", [])
        if collector.get_closest_marker(_MARKER) is not None or any(mark.name == _MARKER for mark in own):
            pytest.mark.usefixtures(_MARKER)(obj)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Apply the ``token_relay`` fixture to each test that gets the marker from a different source, such as
    `pytest.param`.
    """
    names = getattr(item, "fixturenames", None)
    if names is not None and _MARKER not in names and item.get_closest_marker(_MARKER) is not None:
        item.fixturenames = [*names, _MARKER]  # type: ignore[attr-defined]  # a new list: items share the old one


@pytest.fixture
def token_relay(request: pytest.FixtureRequest) -> Iterator[InstalledRelay]:
    """Install the relay for the duration of the test.

    Markers on the test, its class, and its module specify `Settings` fields. For each field, the closest marker takes
    precedence. Without a marker, the relay uses the application's settings and the environment variables. To install
    different settings, call the fixture: ``token_relay(destinations=[server.url])``.
    """
    if "httpx_mock" in request.fixturenames:
        # pytest-httpx replaces the methods that the relay hooks, so the relay must wrap the replacements.
        request.getfixturevalue("httpx_mock")
    from otel_token_relay.testing import installed_relay

    fields: dict[str, Any] = {}
    for marker in request.node.iter_markers(_MARKER):
        if marker.args:
            raise pytest.UsageError(
                f"the {_MARKER} marker accepts only keyword arguments for Settings fields, such as destinations=[...]"
            )
        fields = {**marker.kwargs, **fields}
    with installed_relay(**fields) as relay:
        yield relay


@pytest.fixture
def recorded_decisions(token_relay: InstalledRelay) -> Iterator[RecordedDecisions]:
    """Record the relay's decisions and verification results during the test in chronological order."""
    from otel_token_relay.testing import recording

    with recording() as records:
        yield records


@pytest.fixture
def third_party() -> Iterator[Callable[[], ThirdParty]]:
    """Return a function that starts a loopback server that records incoming requests and runs until the test ends."""
    from otel_token_relay.testing import third_party

    with ExitStack() as running:
        yield lambda: running.enter_context(third_party())


@pytest.fixture(scope="session")
def authorization_server() -> Iterator[AuthorizationServer]:
    """Start a real authorization server on a loopback address in a separate process. This fixture requires the ``demo``
    extra.
    """
    from otel_token_relay.testing import running_authorization_server

    with ExitStack() as running:
        try:
            server = running.enter_context(running_authorization_server())
        except ModuleNotFoundError as missing:
            pytest.fail(missing.msg, pytrace=False)
        yield server


@pytest.fixture
def as_caller(token_relay: InstalledRelay, authorization_server: AuthorizationServer) -> Callable[..., Caller]:
    """Return a function that signs in a user and returns a `Caller` with a new token.

    For example, the block in ``with as_caller("alice"): ...`` runs as if it were handling a request from Alice. The
    function has the same parameters as `AuthorizationServer.token_for`.
    """
    from otel_token_relay.testing import Caller

    def sign_in(user: str, *, audience: str | Sequence[str] = "profile-service", scope: str = "profile") -> Caller:
        return Caller(user, authorization_server.token_for(user, audience=audience, scope=scope))

    return sign_in
