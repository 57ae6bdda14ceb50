"""What every test starts from and leaves behind: nothing installed, and the propagator it found."""

import pytest
from opentelemetry.propagate import get_global_textmap, set_global_textmap

from otel_token_relay.install import hook_states, uninstall


@pytest.fixture(autouse=True)
def clean_process():
    """Start with nothing installed, and leave it so."""
    assert hook_states() == {}, "the test before left an installation"
    textmap = get_global_textmap()
    yield
    uninstall()
    set_global_textmap(textmap)
