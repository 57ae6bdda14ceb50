"""The public function redacts a single value."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from otel_token_relay import Settings, install, use_token
from otel_token_relay.redaction import known_tokens, redact
from otel_token_relay.redaction.scrubber import FAILED, MASK
from tests.redaction.corpus import FOREIGN_JWT, OWN_OPAQUE


@pytest.fixture(autouse=True)
def _stop_listening() -> Iterator[None]:
    yield
    known_tokens.stop_listening()


@pytest.mark.parametrize("bind", [True, False], ids=["bound", "unbound"])
def test_a_value_keeps_its_shape(bind: bool) -> None:
    """A redacted value keeps its type, the caller's token is masked while it is bound, and JWTs are always masked."""
    event = {"message": f"no user for {FOREIGN_JWT}", "extra": [OWN_OPAQUE, 7, ("kept",)]}
    with use_token(OWN_OPAQUE if bind else None):
        redacted = redact(event)

    assert redacted["message"] == f"no user for {MASK}"
    assert redacted["extra"][1:] == [7, ("kept",)]
    assert event["message"].endswith(FOREIGN_JWT)
    if bind:
        assert redacted["extra"][0] == MASK


def test_a_clean_value_is_returned_as_the_same_object() -> None:
    """A clean value is returned as the same object, even while a token is bound."""
    event = {"message": "no user", "numbers": [1, 2]}
    with use_token(OWN_OPAQUE):
        assert redact(event) is event


def test_the_installed_settings_apply() -> None:
    """The function uses the installed settings, even if they are installed after its first call."""
    assert redact({"tenant": "a"}) == {"tenant": "a"}

    install(Settings(redact_keys=("tenant",)))

    assert redact({"tenant": "a"}) == {"tenant": MASK}


def test_a_value_that_raises_does_not_stop_the_application() -> None:
    """A value that cannot be converted to text is not returned, and the application gets no error."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError(OWN_OPAQUE)

    assert redact(Broken()) == FAILED


def test_calls_do_not_keep_tokens_in_memory_after_redaction_is_uninstalled() -> None:
    """Any number of calls adds at most one listener, so no tokens remain in memory after redaction is uninstalled."""
    before = known_tokens._listeners
    for _ in range(3):
        redact("x")

    assert known_tokens._listeners <= before + 1
