"""What every test starts from and leaves behind: nothing installed, and the propagator it found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
from opentelemetry.propagate import get_global_textmap, set_global_textmap

from otel_token_relay.install import hook_states, uninstall

if TYPE_CHECKING:
    from tests.support.loopback import Party

# Machines are busy, and no test is about time.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def clean_process():
    """Start with nothing installed, and leave it so."""
    assert hook_states() == {}, "the test before left an installation"
    textmap = get_global_textmap()
    yield
    uninstall()
    set_global_textmap(textmap)


@pytest.fixture
def one(request: pytest.FixtureRequest) -> Iterator[Party]:
    """One server, which speaks what the row of the test's table sends."""
    from tests.support.loopback import party

    row = next((request.getfixturevalue(name) for name in ("client", "form") if name in request.fixturenames), None)
    with (party if row is None else row.party)() as server:
        yield server
